"""Faults of what goes to the gate: links, numbers, and processes that end."""

import os
import signal
import time

import numpy as np

from rlco_common import topics
from rlco_common.messages import pose_from_msg
from rlco_trainer.faults.base import Fault, Outcome
from rlco_trainer.faults.graph import GATE_PERIOD_S, SLACK_S, FaultGraph, end_of_chunk_ns

LOST_S = 2.0
ARM_RESTS_S = 0.6               # in which an arm comes to rest at a target that does not move any more
ARM_NOISE_M = 1e-3              # how far an arm that rests still creeps up to its target
OPERATOR = (topics.TELEOP_TWIST, topics.TELEOP_DEADMAN, topics.TELEOP_GRIPPER)
OPERATED = ("sim", "relay", "gate", "teleop")
DECIDED = ("sim", "relay", "gate", "policy")
IN_TIME = "The arm's target stands still within command_timeout_s and one gate period"


def _timeout_s(graph: FaultGraph) -> float:
    return graph.contract.limits.command_timeout_s + GATE_PERIOD_S + SLACK_S


def _operator_link(graph: FaultGraph) -> Outcome:
    graph.begin()
    graph.drive()
    graph.disturb(" ".join(f"{topic}=hold" for topic in OPERATOR))
    began_ns = time.monotonic_ns()
    stopped_s = graph.stopped_after_s(began_ns)
    graph.spin(LOST_S - 0.6 - (time.monotonic_ns() - began_ns) / 1e9)
    graph.let_go()                  # so that nothing new is sent: whatever moves now is old
    graph.disturb("")               # and everything that was held back arrives at once
    back_ns = time.monotonic_ns()
    graph.spin(0.5)
    moved = graph.last_move_ns() > back_ns
    return Outcome(stopped_s <= _timeout_s(graph) and not moved,
                   f"stopped after {stopped_s:.2f} s; {'moved' if moved else 'no motion'} when the old commands arrived")


def _robot_link(graph: FaultGraph) -> Outcome:
    names = graph.contract.topics
    graph.begin()
    graph.drive()
    graph.disturb(f"{names.ee_pose}=cut {names.joint_states}=cut")
    began_ns = time.monotonic_ns()
    stopped_s = graph.stopped_after_s(began_ns)
    graph.spin(LOST_S - (time.monotonic_ns() - began_ns) / 1e9)
    seen = graph.last_move_ns()
    graph.disturb("")
    graph.client.wait_until(lambda: graph.last_move_ns() > seen, 5.0, "the operator to drive again")
    graph.spin(0.2)
    step_m = graph.longest_step_m()
    allowed_m = np.sqrt(2) * 0.1 * GATE_PERIOD_S + 1e-6       # the pad's speed along two axes
    return Outcome(stopped_s <= names.state_max_age_s + GATE_PERIOD_S + SLACK_S and step_m <= allowed_m,
                   f"stopped after {stopped_s:.2f} s; longest step {1000 * step_m:.1f} mm")


def _nan_twist(graph: FaultGraph) -> Outcome:
    graph.begin()
    graph.drive()
    before = graph.count("NOT_FINITE")
    graph.disturb(f"{topics.TELEOP_TWIST}=nan")
    began_ns = time.monotonic_ns()
    stopped_s = graph.stopped_after_s(began_ns)
    graph.spin(0.3)
    refused, finite = graph.count("NOT_FINITE") - before, bool(np.isfinite(graph.target_path()).all())
    return Outcome(stopped_s <= _timeout_s(graph) and refused > 3 and finite,
                   f"{refused} refused; stopped after {stopped_s:.2f} s; {'every' if finite else 'NOT every'} target finite")


def _nan_chunk(graph: FaultGraph) -> Outcome:
    graph.begin()
    graph.hand_over()
    before = graph.count("NOT_FINITE")
    last = graph.chunks.last
    graph.disturb(f"{topics.ACTION_CHUNK}=nan")
    began_ns, wall_ns = time.monotonic_ns(), time.time_ns()
    stopped_s = graph.stopped_after_s(began_ns, 8.0)
    graph.client.wait_until(lambda: graph.count("NOT_FINITE") > before, 5.0, "the refusal to be counted")
    finite = bool(np.isfinite(graph.target_path()).all())
    allowed_s = max(0.0, (end_of_chunk_ns(graph.contract, last) - wall_ns) / 1e9) + graph.contract.control_period_s
    return Outcome(finite and stopped_s <= allowed_s + _timeout_s(graph),
                   f"{graph.count('NOT_FINITE') - before} refused; stopped after {stopped_s:.2f} s; "
                   f"{'every' if finite else 'NOT every'} target finite")


def _kill_device(graph: FaultGraph) -> Outcome:
    graph.begin()
    graph.drive()
    graph.kill("teleop")
    stopped_s = graph.stopped_after_s(time.monotonic_ns())
    graph.require("teleop")                 # its button is still held down
    back_ns = time.monotonic_ns()
    graph.spin(0.6)
    moved = graph.last_move_ns() > back_ns
    return Outcome(stopped_s <= _timeout_s(graph) and not moved,
                   f"stopped after {stopped_s:.2f} s; {'moved' if moved else 'no motion'} when it came back, button down")


def _kill_policy(graph: FaultGraph) -> Outcome:
    graph.begin()
    graph.hand_over()
    graph.kill("policy")
    began_ns, wall_ns = time.monotonic_ns(), time.time_ns()
    stopped_s = graph.stopped_after_s(began_ns, 8.0)
    allowed_s = max(0.0, (end_of_chunk_ns(graph.contract, graph.chunks.last) - wall_ns) / 1e9)
    graph.client.wait_until(lambda: graph.state() == "HOLD", 3.0, "the gate to hold")
    graph.client.set_bool(topics.GATE_ENABLE_POLICY, False)
    return Outcome(stopped_s <= allowed_s + _timeout_s(graph),
                   f"stopped after {stopped_s:.2f} s, {max(0.0, stopped_s - allowed_s):.2f} s after its last action; then HOLD")


def _kill_gate(graph: FaultGraph) -> Outcome:
    graph.begin()
    graph.drive()
    graph.kill("gate")
    began_ns = time.monotonic_ns()
    graph.spin(ARM_RESTS_S)
    rest_ns = time.monotonic_ns()
    graph.spin(0.4)
    positions = np.array([pose_from_msg(message).position for message, arrived_ns in
                          zip(graph.poses.messages, graph.poses.arrivals_ns, strict=True) if arrived_ns > rest_ns])
    wander_m = float(np.ptp(positions, axis=0).max())
    late = sum(arrived_ns > began_ns + SLACK_S * 1e9 for arrived_ns in graph.targets.arrivals_ns)
    graph.pad_held = False
    graph.spin(0.2)
    graph.targets.clear()
    graph.require("gate")
    graph.spin(0.3)
    alone = len(graph.targets)
    graph.pad_held = True
    graph.client.wait_until(lambda: len(graph.targets), 5.0, "the restarted gate to be driven")
    jump_m = float(np.linalg.norm(graph.target_path()[0, :3] - pose_from_msg(graph.poses.last).position))
    return Outcome(wander_m <= ARM_NOISE_M and late == 0 and alone == 0 and jump_m <= 0.01,
                   f"arm at rest within {ARM_RESTS_S} s ({1000 * wander_m:.2f} mm); back: {alone} targets before the dead-man, "
                   f"then {1000 * jump_m:.1f} mm from the measured pose")


def _stall_gate(graph: FaultGraph) -> Outcome:
    graph.begin()
    graph.drive()
    os.kill(graph.pid("gate"), signal.SIGSTOP)
    try:
        graph.spin(LOST_S - 0.6)            # commands go on into its queues
        graph.let_go()
    finally:
        os.kill(graph.pid("gate"), signal.SIGCONT)
    began_ns, count = time.monotonic_ns(), len(graph.targets)
    graph.client.wait_until(lambda: len(graph.targets) > count + 5, 5.0, "targets after the stall")
    moved = graph.last_move_ns() > began_ns
    return Outcome(not moved, f"{'moved' if moved else 'no motion'} after {LOST_S:g} s; then {graph.state()}")


FAULTS = (
    Fault("link_operator", f"the operator's link is lost for {LOST_S:g} s, and then delivers everything at once",
          f"{IN_TIME}, and no old command is executed when the link is back.", OPERATED, _operator_link),
    Fault("link_robot", f"joint states and tool pose are lost for {LOST_S:g} s while the operator goes on",
          "The gate moves nothing that it cannot see: it holds within state_max_age_s and one gate period, and goes on without "
          "a jump.", OPERATED, _robot_link),
    Fault("nan_operator", "the operator's twists are not numbers",
          f"{IN_TIME}; every such twist is refused and counted, and no target is ever not finite.", OPERATED, _nan_twist),
    Fault("nan_policy", "the policy's actions are not numbers",
          "Such chunks are refused and counted; the arm stands when the chunk before is over; no target is ever not finite.",
          DECIDED, _nan_chunk),
    Fault("stall_gate", f"the gate's process sleeps for {LOST_S:g} s (SIGSTOP) while commands go on",
          "When it wakes, nothing that it held or had in its queues is executed.", OPERATED, _stall_gate),
    Fault("kill_device", "kill -9 of the operator's device while it moves the arm",
          f"{IN_TIME}; a device that comes back with its button down does not move before it was released.",
          OPERATED, _kill_device),
    Fault("kill_gate", "kill -9 of the gate while the operator moves the arm",
          "The arm stays at its last target; the restarted gate commands nothing before it is driven, and then begins at the "
          "measured pose.", OPERATED, _kill_gate),
    Fault("kill_policy", "kill -9 of the policy while it moves the arm",
          "The arm's target stands still when the last chunk is over, within command_timeout_s and one gate period, and "
          "the gate holds.", DECIDED, _kill_policy),
)
