"""Faults of what the robot's side sends: camera, joint states, tool pose, and the clocks that stamp them."""

import time

import numpy as np
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState

from rlco_common import topics
from rlco_common.observation import joints_by_name
from rlco_common.ros import STATE_QOS, stamp_from_ns, stamp_to_ns
from rlco_teleop.bags import Bag, read_audit
from rlco_trainer.faults.base import Fault, NotTried, Outcome
from rlco_trainer.faults.graph import GATE_PERIOD_S, SLACK_S, SOURCE, FaultGraph, end_of_chunk_ns

WARN_S = 2.5        # the audit judges the last two seconds, five times a second
LATE_S = 0.5        # beyond every max_age_s of the contract
OPERATED = ("sim", "relay", "gate", "recorder", "teleop")
DECIDED = ("sim", "relay", "gate", "recorder", "policy")
CLOCK_PERIOD_S = 0.02


def _audited(kind_of_trouble: str, warnings: tuple[str, ...]):
    """Disturb the camera while an operator drives and an episode is recorded; the recorder has to notice."""
    def check(graph: FaultGraph) -> Outcome:
        camera = graph.camera.topic
        graph.begin()
        graph.drive()
        graph.record()
        graph.spin(0.5)
        if graph.warning(warnings, camera):
            raise NotTried(f"the audit warns of '{graph.warning(warnings, camera)}' before the fault: this machine is too busy")
        began_s = time.monotonic()
        graph.disturb(f"{camera}={kind_of_trouble}")
        graph.client.wait_until(lambda: graph.warning(warnings, camera), WARN_S + 2.0, f"a warning of {' or '.join(warnings)}")
        seconds, kind = time.monotonic() - began_s, graph.warning(warnings, camera)
        graph.spin(max(0.0, WARN_S - seconds))      # the verdict is on the episode: the fault must be a part of it
        audit = read_audit(graph.saved())
        named = any(camera in reason for reason in audit.reasons)
        return Outcome(seconds <= WARN_S and not audit.go and named,
                       f"warned of '{kind}' after {seconds:.1f} s; verdict {audit.verdict}")
    return check


def _starved(kind_of_trouble: str):
    """Take fresh pictures from a policy that moves the arm, and give them back."""
    def check(graph: FaultGraph) -> Outcome:
        contract, camera = graph.contract, graph.camera.topic
        graph.begin()
        graph.hand_over()
        graph.disturb(f"{camera}={kind_of_trouble}")
        began_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        stopped_s = graph.stopped_after_s(began_ns, 8.0)
        from_late_pictures = sum(stamp_to_ns(chunk.header.stamp) > wall_ns for chunk in graph.chunks.messages)
        allowed_s = (end_of_chunk_ns(contract, graph.chunks.last) - wall_ns) / 1e9 + contract.limits.command_timeout_s
        graph.disturb("")
        again_s, seen = time.monotonic(), graph.last_move_ns()
        graph.client.wait_until(lambda: graph.last_move_ns() > seen, 10.0, "the policy to go on with fresh pictures")
        again_s = time.monotonic() - again_s
        return Outcome(from_late_pictures == 0 and stopped_s <= max(0.0, allowed_s) + GATE_PERIOD_S + SLACK_S,
                       f"{from_late_pictures} chunks from late pictures; arm stood after {stopped_s:.2f} s, went on "
                       f"{again_s:.2f} s after the end")
    return check


def _joint_order(graph: FaultGraph) -> Outcome:
    contract, topic = graph.contract, graph.contract.topics.joint_states
    sent = graph.client.subscribe(JointState, SOURCE + topic, STATE_QOS, matched_s=5.0)
    graph.begin()
    graph.hand_over()
    graph.record()
    graph.disturb(f"{topic}=shuffle")
    wall_ns = time.time_ns()
    graph.client.wait_until(lambda: sum(stamp_to_ns(chunk.header.stamp) > wall_ns for chunk in graph.chunks.messages) > 1, 10.0,
                            "the policy to go on")
    bag = graph.saved()
    truth = {stamp_to_ns(m.header.stamp): joints_by_name(contract, m.name, m.position) for m in sent.messages}
    orders, errors = set(), []
    with Bag(bag) as episode:
        for item in episode.messages(topic):
            if item.stamp_ns > wall_ns and item.stamp_ns in truth:
                orders.add(tuple(item.message.name))
                arm, gripper = joints_by_name(contract, item.message.name, item.message.position)
                errors.append(np.abs(np.append(arm - truth[item.stamp_ns][0], gripper - truth[item.stamp_ns][1])).max())
    return Outcome(len(orders) > 3 and max(errors) == 0.0,
                   f"{len(orders)} orders in {len(errors)} messages; largest difference {max(errors, default=np.nan):g} rad")


def _joint_missing(graph: FaultGraph) -> Outcome:
    contract, topic = graph.contract, graph.contract.topics.joint_states
    graph.begin()
    graph.hand_over()
    graph.disturb(f"{topic}=rename")
    began_ns = time.monotonic_ns()

    def named():
        status = graph.status_of("policy")
        return status is not None and status.level != b"\x00" and "joint" in status.message

    graph.client.wait_until(named, 5.0, "the policy to name the missing joint on /diagnostics")
    stopped_s = graph.stopped_after_s(began_ns, 8.0)
    # the last good joint state lives on for its max age, and a chunk for its own length
    allowed_s = contract.topics.state_max_age_s + len(graph.chunks.last.points) * contract.control_period_s
    return Outcome(stopped_s <= allowed_s + contract.limits.command_timeout_s + GATE_PERIOD_S + SLACK_S,
                   f"named on /diagnostics; arm stood after {stopped_s:.2f} s")


def _stamps_jump(graph: FaultGraph) -> Outcome:
    contract, camera = graph.contract, graph.camera.topic
    streams = (camera, contract.topics.joint_states, contract.topics.ee_pose)
    graph.begin()
    graph.hand_over()
    graph.record()
    graph.disturb(" ".join(f"{topic}=shift:{-LATE_S}" for topic in streams))
    began_s, wall_ns = time.monotonic(), time.time_ns()
    graph.client.wait_until(lambda: graph.warning(("backwards",), camera), WARN_S + 2.0, "a warning of 'backwards'")
    warned_s = time.monotonic() - began_s
    graph.spin(max(0.0, LATE_S + 0.5 - warned_s))       # until shifted stamps have passed the newest true one
    wrong = sum(stamp_to_ns(chunk.header.stamp) > wall_ns for chunk in graph.chunks.messages)
    graph.disturb("")
    audit = read_audit(graph.saved())
    limit_m = np.sqrt(3) * contract.action.max_translation_m * GATE_PERIOD_S / contract.control_period_s
    return Outcome(warned_s <= WARN_S and not audit.go and wrong == 0 and graph.longest_step_m() <= limit_m,
                   f"warned after {warned_s:.1f} s; {wrong} chunks from wrong times; longest step "
                   f"{1000 * graph.longest_step_m():.1f} mm")


def _ros_time_jumps(graph: FaultGraph) -> Outcome:
    graph.start("gate", "teleop", use_sim_time=True)
    offset_ns, frozen_ns = 0, 0
    clock = graph.client.publisher(Clock, "/clock", STATE_QOS)
    timer = graph.client.node.create_timer(CLOCK_PERIOD_S, lambda: clock.publish(
        Clock(clock=stamp_from_ns(frozen_ns or time.time_ns() + offset_ns))))
    operator = " ".join(f"{topic}=cut" for topic in (topics.TELEOP_TWIST, topics.TELEOP_DEADMAN, topics.TELEOP_GRIPPER))
    times = {}
    try:
        graph.require("gate", "teleop", use_sim_time=True)
        for name, jump_s in (("halt", 0.0), ("back", -500.0), ("ahead", 500.0)):
            graph.begin()
            graph.drive()
            graph.disturb(operator)
            began_ns = time.monotonic_ns()
            frozen_ns = time.time_ns() + offset_ns if jump_s == 0.0 else 0
            offset_ns += round(jump_s * 1e9)
            times[name] = graph.stopped_after_s(began_ns)
            frozen_ns = 0
    finally:
        graph.client.node.destroy_timer(timer)
    allowed_s = graph.contract.limits.command_timeout_s + GATE_PERIOD_S + SLACK_S
    return Outcome(max(times.values()) <= allowed_s, "stopped after " + ", ".join(
        f"{seconds:.2f} s ({name})" for name, seconds in times.items()))


FAULTS = (
    Fault("camera_drop", "every second picture is lost on the way",
          f"The recorder warns within {WARN_S} s, while the episode is recorded, and its verdict is no-go.",
          OPERATED, _audited("drop:0.5", ("loss", "rate", "gap"))),
    Fault("camera_freeze", "the camera repeats its last picture under new stamps",
          f"The recorder warns within {WARN_S} s, while the episode is recorded, and its verdict is no-go.",
          OPERATED, _audited("freeze", ("frozen",))),
    Fault("camera_reorder", "every two pictures change places",
          f"Pictures are recorded as they came and nothing is reordered silently: the recorder warns within {WARN_S} s, "
          "verdict no-go.", OPERATED, _audited("reorder", ("backwards",))),
    Fault("camera_late", f"pictures arrive {LATE_S} s late while an episode is recorded",
          f"The recorder warns of their age within {WARN_S} s, and its verdict is no-go.",
          OPERATED, _audited(f"delay:{LATE_S}", ("age",))),
    Fault("camera_delay", f"pictures arrive {LATE_S} s late while a policy moves the arm",
          "A policy never acts on a picture older than the contract's max_age_s; the arm stands when the last chunk is over, "
          "and goes on with fresh pictures.", DECIDED, _starved(f"delay:{LATE_S}")),
    Fault("camera_dead", "no picture arrives any more while a policy moves the arm",
          "The arm stands when the last chunk is over, and goes on when pictures come again.", DECIDED, _starved("cut")),
    Fault("joint_order", "the joints of /joint_states come in another order in every message",
          "Joints are known by name: policy and recording go on, and every value is that of its joint.", DECIDED, _joint_order),
    Fault("joint_missing", "a joint of the contract is missing in /joint_states",
          "The policy names it on /diagnostics and stops instead of guessing.", DECIDED, _joint_missing),
    Fault("clock_back", f"the robot's clock is set back {LATE_S} s: stamps of camera, joints and tool pose jump",
          f"The recorder warns within {WARN_S} s, verdict no-go; no policy acts on data of a wrong time; the target never "
          "jumps.",
          DECIDED, _stamps_jump),
    Fault("clock_jump", "ROS time halts, jumps back or ahead by 500 s, at the moment at which the operator is cut off",
          "Commands age on the monotonic clock: the arm stops within command_timeout_s and one gate period.",
          OPERATED, _ros_time_jumps),
)
