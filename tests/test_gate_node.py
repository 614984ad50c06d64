"""The gate's promises over real topics: one publisher, monotonic staleness, stop, takeover, dead processes."""

import itertools
import math
import os
import signal
import statistics
import sys
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import Transition
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, Float64, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.contract import contract_directory, load_contract
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent
from rlco_common.errors import ProcessError
from rlco_common.gate import Refusal
from rlco_common.limiter import Limit
from rlco_common.messages import diagnostic_values, pose_from_msg
from rlco_common.pose import Pose
from rlco_common.processes import Processes
from rlco_common.ros import COMMAND_QOS, EVENT_QOS, STATE_QOS, chunk_to_msg, pose_to_msg, stamp_from_ns
from rlco_common.ros_client import RosClient

CONTRACT = load_contract()
START = Pose([0.5, 0.0, 0.2], [1.0, 0.0, 0.0, 0.0])
TIMEOUT_S = CONTRACT.limits.command_timeout_s
GATE = "rlco_teleop.nodes.gate_node"
POLICY = """
import numpy as np
from geometry_msgs.msg import PoseStamped
from rlco_common.contract import contract_directory, load_contract
from rlco_common.ros import COMMAND_QOS, STATE_QOS, chunk_to_msg, stamp_to_ns
from rlco_common.ros_client import RosClient
from trajectory_msgs.msg import JointTrajectory
with RosClient("policy") as client:
    contract = load_contract()
    chunks = client.publisher(JointTrajectory, "/policy/action_chunk", COMMAND_QOS)
    states = client.subscribe(PoseStamped, contract.topics.ee_pose, STATE_QOS)
    actions = np.tile([0.0, 0.01, 0, 0, 0, 0, 1.0], (2, 1))
    while True:
        seen = len(states)
        client.wait_until(lambda: len(states) > seen, 60, "a state")
        chunks.publish(chunk_to_msg(contract, actions, stamp_to_ns(states.last.header.stamp)))
        client.spin_for(0.35)
"""


class Cell:
    """A gate process, an arm that follows at once, an operator's hands, and every target that the gate sent."""

    def __init__(self, processes, client, sim_time=False):
        self.processes, self.client = processes, client
        self.pose, self.follow = START, True
        self.sim_time_ns = 10**12 if sim_time else None
        self.ee_pose = client.publisher(PoseStamped, CONTRACT.topics.ee_pose, STATE_QOS)
        self.twist = client.publisher(TwistStamped, topics.TELEOP_TWIST, COMMAND_QOS)
        self.gripper = client.publisher(Float64, topics.TELEOP_GRIPPER, COMMAND_QOS)
        self.deadman = client.publisher(Bool, topics.TELEOP_DEADMAN, COMMAND_QOS)
        self.chunk = client.publisher(JointTrajectory, topics.ACTION_CHUNK, COMMAND_QOS)
        self.event = client.publisher(String, EVENT_TOPIC, EVENT_QOS)
        self.targets = client.subscribe(PoseStamped, CONTRACT.topics.target_pose, STATE_QOS)
        self.status = client.subscribe(DiagnosticArray, topics.GATE_STATUS, STATE_QOS)
        self.held, self.velocity, self.counts_before = False, None, {}
        client.node.create_timer(0.02, self._arm)
        client.node.create_timer(0.04, self._operator)
        client.wait_active("/gate")
        client.wait_until(lambda: self.twist.get_subscription_count() and self.ee_pose.get_subscription_count()
                          and self.deadman.get_subscription_count() and len(self.status), 10, "the gate's endpoints")

    def now_ns(self):
        return self.client.node.get_clock().now().nanoseconds if self.sim_time_ns is None else self.sim_time_ns

    def _arm(self):
        if self.follow and self.targets.last is not None:
            self.pose = pose_from_msg(self.targets.last)
        self.ee_pose.publish(pose_to_msg(self.pose, CONTRACT.robot.base_frame, self.now_ns()))

    def _operator(self):
        if self.held:
            self.deadman.publish(Bool(data=True))
        if self.velocity is not None:
            self.send_twist(self.velocity)

    def send_twist(self, values, age_s=0.0):
        message = TwistStamped()
        message.header.stamp = stamp_from_ns(self.now_ns() - round(age_s * 1e9))
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, values)
        self.twist.publish(message)

    def send_chunk(self, actions, age_s=0.0):
        self.chunk.publish(chunk_to_msg(CONTRACT, actions, self.now_ns() - round(age_s * 1e9)))

    def state(self):
        return self.status.last.status[0].message

    def values(self):
        return diagnostic_values(self.status.last.status[0])

    def wait_state(self, state, timeout_s=5.0):
        self.client.wait_until(lambda: self.state() == state, timeout_s, f"gate state {state}")

    def x(self):
        return self.targets.last.pose.position.x

    def release(self):
        """Let the dead-man go, and wait until the gate knows."""
        self.held, self.velocity = False, None
        self.deadman.publish(Bool(data=False))
        self.client.wait_until(lambda: self.values()["source"] != "OPERATOR", 5, "the released dead-man")

    def enable_policy(self):
        ok, reason = self.client.set_bool(topics.GATE_ENABLE_POLICY, True)
        assert ok, reason

    def moving_arrivals_ns(self):
        """Arrival times of the targets that differ from the one before them."""
        pairs = itertools.pairwise(pose_from_msg(message).as_array() for message in self.targets.messages)
        return [at for at, (a, b) in zip(self.targets.arrivals_ns[1:], pairs, strict=True) if (a != b).any()]

    def begin_anew(self):
        """As if the gate had just been started: nothing latched, no target, arm at the start."""
        self.release()
        self.follow, self.pose = False, START
        self.client.wait_until(lambda: self.client.trigger(topics.GATE_REARM)[0], 3, "re-arming")
        self.event.publish(String(data=EpisodeEvent(kind="reset").to_json()))
        self.client.wait_until(self.quiet, 10, "the last of the old targets")
        self.wait_state("IDLE")
        self.counts_before = self.counts()
        self.follow = True

    def quiet(self):
        """Whether no target comes any more. Many may have queued up while another test's graph was spun."""
        self.targets.clear()
        self.client.spin_for(0.15)
        return not len(self.targets)

    def counts(self):
        return {key: int(value) for key, value in self.values().items() if key.isupper()}

    def counted(self, cause):
        return self.counts().get(cause, 0) - self.counts_before.get(cause, 0)

    def drive(self, velocity=(0.1, 0, 0, 0, 0, 0), distance_m=0.02):
        """Take the dead-man and move until the target has gone that far along x."""
        self.held, self.velocity = True, velocity
        start = self.pose.position[0]
        self.client.wait_until(lambda: len(self.targets) and abs(self.x() - start) > distance_m, 5, "motion")


def open_cell(directory, domain, **parameters):
    processes = Processes(directory, domain)
    client = RosClient(f"test_{domain}", domain, processes.check)
    processes.start_node(GATE, **parameters)
    return Cell(processes, client, sim_time=parameters.get("use_sim_time", False))


def close_cell(cell):
    cell.client.close()
    cell.processes.stop_all()


@pytest.fixture(scope="module")
def shared_cell(tmp_path_factory, module_ros_domain):
    cell = open_cell(tmp_path_factory.mktemp("gate"), module_ros_domain)
    yield cell
    close_cell(cell)


@pytest.fixture
def cell(shared_cell):
    """A gate in real time; one process for all tests that leave it intact."""
    shared_cell.begin_anew()
    return shared_cell


@pytest.fixture
def start_cell(tmp_path, ros_domain):
    cells = []

    def start(**parameters):
        cells.append(open_cell(tmp_path, ros_domain, **parameters))
        return cells[-1]

    yield start
    for cell in cells:
        close_cell(cell)


def test_operator_drives_and_the_gate_is_the_only_publisher_on_the_arm(cell):
    cell.drive()
    for topic in (CONTRACT.topics.target_pose, CONTRACT.topics.gripper_command):
        publishers = cell.client.node.get_publishers_info_by_topic(topic)
        assert [info.node_name for info in publishers] == ["gate"]
    assert cell.state() == "OPERATOR"
    cell.release()
    cell.wait_state("HOLD")
    count, held = len(cell.targets), cell.x()
    cell.client.wait_until(lambda: len(cell.targets) > count + 5, 3, "the held target, again and again")
    assert cell.x() == held


def test_a_silent_operator_is_dropped_within_timeout_and_one_period(cell):
    cell.drive()
    cell.velocity = None        # the dead-man stays held, but no command comes any more
    silent_ns = time.monotonic_ns()
    cell.wait_state("HOLD")
    assert (cell.moving_arrivals_ns()[-1] - silent_ns) / 1e9 <= TIMEOUT_S + 0.05 + 0.1    # 0.1: a loaded machine
    assert cell.counted("COMMAND_STALE") == 1


def test_bad_commands_over_topics_never_move_the_arm_and_are_counted(cell):
    cell.held = True
    cell.client.wait_until(lambda: cell.values()["source"] == "OPERATOR", 5, "the operator in charge")
    for values, age_s in (([math.nan] * 6, 0), ([math.inf, 0, 0, 0, 0, 0], 0), ([0.1, 0, 0, 0, 0, 0], 5.0)):
        cell.send_twist(values, age_s)
        cell.client.spin_for(0.15)
    unstamped = TwistStamped()
    unstamped.twist.linear.x = 0.1
    cell.twist.publish(unstamped)
    cell.client.wait_until(lambda: cell.counted("UNSTAMPED") == 1, 3, "the counted refusal")
    cell.release()
    cell.enable_policy()
    chunk = chunk_to_msg(CONTRACT, np.full((2, 7), 0.01), cell.now_ns())
    chunk.joint_names = list(reversed(chunk.joint_names))
    cell.chunk.publish(chunk)
    cell.client.wait_until(lambda: cell.counted("BAD_SHAPE") == 1, 3, "the counted refusal")
    cell.send_chunk(np.full((2, 7), math.nan))
    cell.client.wait_until(lambda: cell.counted("NOT_FINITE") == 3, 3, "the counted refusals")
    assert not len(cell.targets), "nothing was ever commanded"
    # far beyond the limits: clipped to them
    cell.held = True
    cell.drive([100.0, 0, 0, 0, 0, 0], 0.05)
    steps = [b.pose.position.x - a.pose.position.x for a, b in itertools.pairwise(cell.targets.messages)]
    assert max(steps) <= CONTRACT.action.max_translation_m / 4 + 1e-9


def test_targets_follow_the_twists_of_a_steady_device_at_once(cell):
    """Also when its clock stands so that every twist comes just after a step of the gate, and would wait for the next."""
    cell.held = True
    cell.client.wait_until(lambda: cell.values()["source"] == "OPERATOR", 5, "the operator in charge")
    cell.send_twist([0.0] * 6)
    cell.client.wait_until(lambda: len(cell.targets), 3, "a target")
    count = len(cell.targets)
    cell.client.wait_until(lambda: len(cell.targets) > count, 3, "a step")
    start_s, sent_ns = time.monotonic(), []
    for number in range(50):
        cell.client.spin_for(start_s + 0.05 * number - time.monotonic())
        sent_ns.append(time.monotonic_ns())
        cell.send_twist([0.02, 0, 0, 0, 0, 0])
    cell.client.spin_for(0.2)
    arrivals_ns = np.array(cell.targets.arrivals_ns)
    waits_ms = [(arrivals_ns[arrivals_ns > at][0] - at) / 1e6 for at in sent_ns]
    print(f"\ntwist to target: first {waits_ms[0]:.0f} ms, then {np.median(waits_ms[-25:]):.1f} ms")
    assert np.median(waits_ms[-25:]) < 20


def test_every_refusal_and_limit_is_counted_by_its_cause_on_diagnostics(cell):
    client, contract = cell.client, CONTRACT
    diagnostics = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS, matched_s=5)

    def caused(cause):
        client.wait_until(lambda: cell.counted(cause), 3, f"{cause} to be counted")

    cell.held = True
    client.wait_until(lambda: cell.values()["source"] == "OPERATOR", 5, "the operator in charge")
    cell.send_twist([math.nan] * 6)
    caused("NOT_FINITE")
    cell.send_twist([0.0] * 6, age_s=5.0)
    caused("COMMAND_STALE")
    cell.twist.publish(TwistStamped())
    caused("UNSTAMPED")
    sideways = TwistStamped()
    sideways.header.frame_id, sideways.header.stamp = contract.robot.ee_frame, stamp_from_ns(cell.now_ns())
    sideways.twist.linear.x = 0.2
    cell.twist.publish(sideways)
    caused("WRONG_FRAME")
    assert not len(cell.targets), "nothing of this was executed"
    cell.send_twist([9.0, 0, 0, 0, 0, 0])
    caused("SPEED")
    cell.ee_pose.publish(pose_to_msg(Pose([9.0, 0, 0], START.quaternion), contract.robot.base_frame, cell.now_ns()))
    caused("STATE_INVALID")
    cell.velocity = [0.0, 0.0, 0.25, 0, 0, 0]
    client.wait_until(lambda: cell.counted("WORKSPACE"), 5, "the ceiling of the workspace to be reached")
    cell.release()
    cell.enable_policy()
    cell.send_chunk(np.full((2, 3), 0.0))
    caused("BAD_SHAPE")
    cell.send_chunk(np.tile([0, 0.2, 0, 0, 0, 0, 1.0], (2, 1)))
    caused("ACTION_DELTA")

    def told():
        found = diagnostics.find(lambda message: message.status[0].name == "gate")
        return found and {key: value for key, value in diagnostic_values(found.status[0]).items() if key.isupper()}

    client.wait_until(lambda: told() == {key: str(count) for key, count in cell.counts().items()}, 5,
                      "the same on /diagnostics")
    known = {cause.name for cause in (*Refusal, *Limit)}
    assert set(told()) <= known and len(known & set(told())) >= 9


def test_stop_freezes_at_once_latches_and_needs_a_deliberate_rearm(cell):
    cell.client.must_trigger(topics.GATE_STOP)      # connects the client, so that the call below is only the call
    cell.client.must_trigger(topics.GATE_REARM)
    cell.drive(distance_m=0.01)
    called_ns = time.monotonic_ns()
    cell.client.must_trigger(topics.GATE_STOP)
    answered_ns = time.monotonic_ns()
    cell.wait_state("STOPPED")
    cell.client.spin_for(0.3)
    after = [message.pose.position.x for message, arrival in
             zip(cell.targets.messages, cell.targets.arrivals_ns, strict=True) if arrival > answered_ns]
    assert len(after) > 3 and len(set(after)) == 1
    last_motion_ms = (cell.moving_arrivals_ns()[-1] - called_ns) / 1e6
    answer_ms = (answered_ns - called_ns) / 1e6
    print(f"\nstop: answer {answer_ms:.1f} ms, last motion {last_motion_ms:.1f} ms after the call")
    assert last_motion_ms < 100
    cell.event.publish(String(data=EpisodeEvent(kind="reset").to_json()))
    ok, reason = cell.client.trigger(topics.GATE_REARM)
    assert not ok and "dead-man" in reason
    assert not cell.client.set_bool(topics.GATE_ENABLE_POLICY, True)[0]
    assert cell.state() == "STOPPED"
    cell.release()
    cell.client.must_trigger(topics.GATE_REARM)
    cell.wait_state("IDLE")
    cell.drive()


def test_a_killed_policy_leaves_the_arm_holding_and_its_return_makes_no_jump(cell):
    cell.processes.start("policy", [sys.executable, "-c", POLICY])
    cell.enable_policy()
    cell.wait_state("POLICY", 10)
    cell.client.wait_until(lambda: cell.pose.position[1] > 0.02, 10, "policy motion")
    cell.processes.kill("policy")
    cell.wait_state("HOLD", 2 * CONTRACT.control_period_s + TIMEOUT_S + 1.0)
    held = cell.targets.last.pose.position.y
    cell.client.spin_for(0.2)
    assert cell.targets.last.pose.position.y == held
    cell.processes.start("policy", [sys.executable, "-c", POLICY])
    cell.client.wait_until(lambda: cell.targets.last.pose.position.y > held + 0.015, 10, "policy motion")
    cell.processes.kill("policy")
    steps = np.diff([message.pose.position.y for message in cell.targets.messages])
    assert steps.max() <= 0.01 / 4 + 1e-9 and steps.min() >= -1e-9


def test_a_takeover_is_without_a_bump_and_the_old_chunk_never_comes_back(cell):
    cell.enable_policy()
    cell.send_chunk(np.tile([0, 0.04, 0, 0, 0, 0, 1.0], (8, 1)))
    cell.client.wait_until(lambda: len(cell.targets) and cell.targets.last.pose.position.y > 0.03, 5, "policy motion")
    cell.drive([0.05, 0, 0, 0, 0, 0], 0.005)
    y = cell.targets.last.pose.position.y
    cell.release()
    cell.enable_policy()
    cell.client.spin_for(0.5)
    assert cell.targets.last.pose.position.y == pytest.approx(y, abs=1e-9)
    steps = np.diff([[m.pose.position.x, m.pose.position.y] for m in cell.targets.messages], axis=0)
    assert np.abs(steps).max() <= 0.04 / 4 + 1e-9


def test_after_a_pause_of_two_seconds_no_old_command_is_executed(cell):
    cell.drive()
    gate = cell.processes["gate_node"].pid
    os.kill(gate, signal.SIGSTOP)
    cell.client.spin_for(0.3)           # the operator goes on sending into the queue ...
    cell.velocity = None                # ... and then stops
    before = cell.x()
    cell.client.spin_for(2.0)
    count = len(cell.targets)
    os.kill(gate, signal.SIGCONT)
    cell.client.wait_until(lambda: len(cell.targets) > count + 10, 5, "targets after the pause")
    assert abs(cell.x() - before) < 1e-9


def test_a_frozen_or_jumping_clock_does_not_extend_life(start_cell):
    cell = start_cell(use_sim_time=True)
    clock = cell.client.publisher(Clock, "/clock", matched_s=5)
    cell.client.node.create_timer(0.02, lambda: clock.publish(Clock(clock=stamp_from_ns(cell.sim_time_ns))))
    for jump_s in (0.0, -500.0, 500.0):
        cell.begin_anew()
        cell.drive([0.1, 0, 0, 0, 0, 0], 0.01)      # the clock stands still all along, and yet the operator can drive
        cell.velocity = None
        at_silence = cell.x()
        cell.sim_time_ns += round(jump_s * 1e9)
        cell.wait_state("HOLD", 3)
        assert cell.x() - at_silence <= 0.1 * (TIMEOUT_S + 0.2)


def test_a_reset_forgets_the_target_and_revokes_the_policy(cell):
    cell.enable_policy()
    cell.send_chunk(np.tile([0.02, 0, 0, 0, 0, 0, 1.0], (1, 1)))
    cell.client.wait_until(lambda: len(cell.targets) and cell.x() > START.position[0] + 0.019, 5, "policy motion")
    stamp_ns = cell.now_ns()
    cell.event.publish(String(data=EpisodeEvent(kind="reset", stamp_ns=stamp_ns).to_json()))
    cell.client.wait_until(lambda: cell.values()["episode_start_ns"] == str(stamp_ns), 5, "the gate to have heard the reset")
    assert cell.state() == "IDLE" and cell.values()["policy_enabled"] == "False"
    count = len(cell.targets)
    cell.client.spin_for(0.2)
    assert len(cell.targets) <= count + 1
    cell.follow, cell.pose = False, Pose([0.45, 0.1, 0.25], START.quaternion)
    cell.client.spin_for(0.1)
    cell.targets.clear()
    cell.held, cell.velocity = True, [0.0] * 6
    cell.client.wait_until(lambda: len(cell.targets) > 2, 3, "targets")
    assert cell.x() == 0.45, "the next engagement starts at the measured pose"


def test_inactive_it_commands_nothing_and_a_stop_is_remembered(start_cell):
    cell = start_cell()
    assert cell.client.change_state("/gate", Transition.TRANSITION_DEACTIVATE)
    cell.held, cell.velocity = True, [0.1, 0, 0, 0, 0, 0]
    cell.client.spin_for(0.3)
    assert not len(cell.targets)
    cell.client.must_trigger(topics.GATE_STOP)
    assert cell.client.change_state("/gate", Transition.TRANSITION_ACTIVATE)
    cell.wait_state("STOPPED")
    assert not len(cell.targets)


def test_a_contract_without_limits_is_refused(tmp_path, ros_domain):
    text = (contract_directory() / "panda_tabletop.yaml").read_text()
    broken = tmp_path / "broken.yaml"
    broken.write_text("\n".join(line for line in text.splitlines() if "max_linear_speed_m_s" not in line))
    with Processes(tmp_path, ros_domain) as processes:
        child = processes.start_node(GATE, contract=str(broken))
        child.process.wait(timeout=20)
        with pytest.raises(ProcessError, match=r"missing field.*max_linear_speed_m_s"):
            processes.check()


def test_lock_step_answers_each_tick_once_with_its_stamp(start_cell):
    cell = start_cell(lockstep=True, use_sim_time=True)
    cell.client.node.destroy_timer(next(iter(cell.client.node.timers)))     # the arm speaks tick by tick instead
    grippers = cell.client.subscribe(Float64MultiArray, CONTRACT.topics.gripper_command, STATE_QOS, matched_s=5)
    cell.client.wait_until(lambda: cell.gripper.get_subscription_count(), 5, "the gate")
    cell.deadman.publish(Bool(data=True))
    cell.client.wait_until(lambda: cell.values()["source"] == "OPERATOR", 5, "the operator in charge")
    target, latencies = START, []
    cell.targets.clear()
    for tick in range(30):
        cell.sim_time_ns = 10**9 + tick * CONTRACT.control_period_ns
        cell.ee_pose.publish(pose_to_msg(target, CONTRACT.robot.base_frame, cell.sim_time_ns))
        cell.gripper.publish(Float64(data=0.25))
        sent_ns = time.monotonic_ns()
        cell.send_twist([0.05, 0.0, 0.0, 0.0, 0.0, 0.5])
        cell.client.wait_until(lambda tick=tick: len(cell.targets) == tick + 1, 5, "the tick's target")
        latencies.append((cell.targets.arrivals_ns[-1] - sent_ns) / 1e6)
        assert cell.targets.last.header.stamp == stamp_from_ns(cell.sim_time_ns)
        action = np.array([0.05, 0, 0, 0, 0, 0.5]) * CONTRACT.control_period_s
        target = CONTRACT.compose_target(target, action)
        assert (pose_from_msg(cell.targets.last).as_array() == target.as_array()).all()
    cell.client.wait_until(lambda: len(grippers) == 30, 3, "a gripper command for each tick")
    print(f"\ntwist to target: median {statistics.median(latencies):.2f} ms, max {max(latencies):.2f} ms")
