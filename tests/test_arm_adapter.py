"""The arm adapter: follows the gate's targets within the joints' limits, starts nothing by itself, holds when in doubt."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64, Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.messages import pose_from_msg
from rlco_common.pose import Pose, compose_delta, delta_between
from rlco_common.processes import Processes
from rlco_common.ros import COMMAND_QOS, STATE_QOS, joint_state_to_msg, pose_to_msg, stamp_from_ns
from rlco_common.ros_client import RosClient
from rlco_sim_bridge.experts.arm_model import ArmKinematics
from rlco_sim_bridge.experts.planned import panda_urdf
from rlco_teleop.arm_adapter import GripperGoals, PoseStream, Refusal, Refused, checked_target, finger_positions
from rlco_teleop.joint_follower import JointFollower, JointLimits

CONTRACT = load_contract()
BASE = CONTRACT.robot.base_frame
DOWN = [1.0, 0.0, 0.0, 0.0]
START = Pose([0.46, 0.0, 0.2], DOWN)
REST = np.array([0.0, 0.13, 0.0, -2.4, 0.0, 2.43, 0.79])
TRAJECTORY = "/joint_trajectory_controller/joint_trajectory"
MS = 1_000_000


@pytest.fixture(scope="module")
def arm():
    return ArmKinematics(panda_urdf())


@pytest.fixture
def follower(arm):
    follower = JointFollower(arm, JointLimits())
    follower.on_joints(arm.inverse(START, REST), 0)
    return follower


def walk(rng, count, scale=0.005):
    """Targets that wander as the gate's do: at most `scale` metres from one to the next."""
    pose = START
    for _ in range(count):
        delta = rng.uniform(-1, 1, 6) * [scale, scale, scale, 0.01, 0.01, 0.01]
        moved = compose_delta(pose, delta)
        pose = Pose(np.clip(moved.position, [0.35, -0.25, 0.05], [0.65, 0.25, 0.4]), moved.quaternion)
        yield pose


# -- joint positions


@pytest.mark.parametrize("seed", range(3))
def test_the_tool_gets_to_every_target_within_a_millimetre_and_no_joint_is_too_fast(arm, follower, seed):
    now, joints = 0, arm.inverse(START, REST)
    for target in walk(np.random.default_rng(seed), 60):
        now += 50 * MS
        follower.on_joints(joints, now)
        step = follower.follow(target, now)
        assert not step.limited
        assert (np.abs(step.positions - joints) <= 0.5 * arm.max_speed * 0.1 + 1e-9).all()
        assert arm.within_limits(step.positions)
        error = delta_between(target, arm.forward(step.positions))
        assert np.linalg.norm(error[:3]) < 1e-3 and np.linalg.norm(error[3:]) < 1e-3
        joints = step.positions


def test_a_fast_target_is_followed_no_faster_than_the_joints_may_and_reached_later(arm):
    follower = JointFollower(arm, JointLimits(speed_scale=0.1))
    joints, now = arm.inverse(START, REST), 0
    target, steps = compose_delta(START, [0.0, 0.08, 0.0, 0.0, 0.0, 0.0]), []
    for _ in range(20):
        now += 50 * MS
        follower.on_joints(joints, now)
        steps.append(follower.follow(target, now))
        moved = steps[-1].positions - joints
        assert (np.abs(moved) <= 0.1 * arm.max_speed * (0.1 if len(steps) == 1 else 0.05) + 1e-9).all()
        joints = steps[-1].positions
    assert steps[0].limited and not steps[-1].limited
    assert np.abs(delta_between(target, arm.forward(joints))).max() < 1e-3


def refusal(follower, target, now):
    with pytest.raises(Refused) as refused:
        follower.follow(target, now)
    return refused.value.refusal


def test_what_cannot_be_followed_safely_is_refused_by_name(arm, follower):
    assert refusal(JointFollower(arm, JointLimits()), START, 0) is Refusal.NO_JOINT_STATE
    assert refusal(follower, START, 300 * MS) is Refusal.NO_JOINT_STATE, "joint states too old"
    assert refusal(follower, Pose([1.5, 0.0, 0.2], DOWN), 1) is Refusal.OUT_OF_REACH
    assert refusal(follower, Pose([0.46, 0.3, 0.2], DOWN), 1) is Refusal.JOINT_JUMP
    follower.follow(START, 1)
    follower.on_joints(arm.inverse(START, REST) + 0.4, 2 * MS)
    assert refusal(follower, START, 2 * MS) is Refusal.JOINT_LEAD


def test_after_a_refusal_the_arm_goes_on_from_where_it_was_sent(arm, follower):
    before = follower.follow(START, 1).positions
    refusal(follower, Pose([0.46, 0.3, 0.2], DOWN), 50 * MS)
    near = compose_delta(START, [0.002, 0, 0, 0, 0, 0])
    assert np.abs(follower.follow(near, 100 * MS).positions - before).max() < 0.02


def test_after_a_pause_the_next_command_starts_at_the_measured_positions(arm, follower):
    follower.follow(START, 1)
    elsewhere = Pose([0.5, 0.1, 0.25], DOWN)        # moved by hand meanwhile
    joints = arm.inverse(elsewhere, REST)
    follower.on_joints(joints, 2000 * MS)
    step = follower.follow(elsewhere, 2000 * MS)
    assert np.abs(step.positions - joints).max() < 1e-3


def test_joint_states_that_are_not_numbers_do_not_count(arm, follower):
    follower.on_joints([np.nan] * 7, 190 * MS)
    assert refusal(follower, START, 250 * MS) is Refusal.NO_JOINT_STATE


# -- poses between the targets


def test_poses_between_the_targets_lie_between_them_and_end_at_the_last():
    stream, sent = PoseStream(0.3), []
    assert stream.sample(0) is None
    targets = [compose_delta(START, [0.01 * k, 0, 0, 0, 0, 0.02 * k]) for k in range(5)]
    for k, target in enumerate(targets):
        stream.on_target(target, k * 50 * MS)
        sent += [stream.sample((k * 50 + j * 10) * MS) for j in range(5)]
    sent += [stream.sample((250 + j * 10) * MS) for j in range(5)]
    steps = np.diff([pose.position[0] for pose in sent])
    assert (steps >= -1e-12).all() and steps.max() <= 0.0021
    assert sent[-1] is targets[-1]
    assert stream.sample((200 + 301) * MS) is None


def test_after_silence_the_first_target_is_passed_on_as_it_is():
    stream = PoseStream(0.3)
    stream.on_target(START, 0)
    other = compose_delta(START, [0.1, 0, 0, 0, 0, 0])
    stream.on_target(other, 5000 * MS)
    assert stream.sample(5000 * MS) is other


def test_unusable_targets_are_refused():
    for target, frame, age_ns, expected in (
            (START, "world", 0, Refusal.WRONG_FRAME), (Pose([np.nan, 0, 0], DOWN), BASE, 0, Refusal.NOT_FINITE),
            (Pose([0.5, 0, 0.2], [0, 0, 0, 0]), BASE, 0, Refusal.NOT_FINITE), (START, BASE, 400 * MS, Refusal.STALE)):
        with pytest.raises(Refused) as refused:
            checked_target(target, frame, BASE, age_ns, 0.3)
        assert refused.value.refusal is expected
    assert checked_target(START, BASE, BASE, -10**12, 0.3) is START


# -- the gripper


def test_openings_become_metres_per_finger_and_only_changes_become_goals():
    assert finger_positions(CONTRACT.robot, 1.0, 2) == [0.04, 0.04]
    assert finger_positions(CONTRACT.robot, 0.25, 1) == [pytest.approx(0.01)]
    goals = GripperGoals()
    wanted = [goals.next(opening) for opening in (1.0, 1.0, 0.99, 0.5, 0.51, 0.01, 0.0, 0.0)]
    assert wanted == [1.0, None, None, 0.5, None, 0.01, 0.0, None]
    goals.forget()
    assert goals.next(0.0) == 0.0


# -- over ROS


class Cell:
    """What an operator does and sees of a cell with an adapter."""

    def __init__(self, client):
        self.client = client
        names = CONTRACT.topics
        self.deadman = client.publisher(Bool, topics.TELEOP_DEADMAN, COMMAND_QOS)
        self.twist = client.publisher(TwistStamped, topics.TELEOP_TWIST, COMMAND_QOS)
        self.gripper = client.publisher(Float64, topics.TELEOP_GRIPPER, COMMAND_QOS)
        self.poses = client.subscribe(PoseStamped, names.ee_pose)
        self.targets = client.subscribe(PoseStamped, names.target_pose)
        self.trajectories = client.subscribe(JointTrajectory, TRAJECTORY)
        self.fingers = client.subscribe(Float64MultiArray, "/gripper_controller/commands")
        self.velocity = None
        client.node.create_timer(0.04, self._operate)

    def _operate(self):
        if self.velocity is None:
            return
        self.deadman.publish(Bool(data=True))
        message = TwistStamped()
        message.header.stamp = stamp_from_ns(self.client.node.get_clock().now().nanoseconds)
        linear = message.twist.linear
        linear.x, linear.y, linear.z = map(float, self.velocity)
        self.twist.publish(message)
        self.gripper.publish(Float64(data=0.5))

    def settled(self):
        """The arm is where the gate's last target is, to 5 mm."""
        if not (self.targets.last and self.poses.last):
            return False
        error = delta_between(pose_from_msg(self.targets.last), pose_from_msg(self.poses.last))
        return np.linalg.norm(error[:3]) < 0.005


def test_gate_adapter_and_arm_follow_an_operator(tmp_path, ros_domain, arm):
    """The whole path: dead-man -> gate -> adapter -> joint trajectories -> the stand-in's joints -> its tool pose."""
    with (Processes(tmp_path, ros_domain) as processes, RosClient("operator", ros_domain, processes.check) as client):
        processes.start_node("rlco_sim_bridge.nodes.bridge_node", domain="standin", arm_input="trajectory")
        processes.start_node("rlco_teleop.nodes.gate_node")
        processes.start_node("rlco_teleop.nodes.arm_adapter_node", kind="trajectory", gripper="forward")
        cell = Cell(client)
        for node in ("/sim", "/gate", "/arm_adapter"):
            client.wait_active(node, 60)
        client.wait_until(lambda: len(cell.poses) > 3, 20, "tool poses")
        client.spin_for(0.5)
        assert not len(cell.trajectories), "nobody commanded anything"
        start = pose_from_msg(cell.poses.last)
        cell.velocity = [0.05, 0.05, -0.03]
        client.wait_until(lambda: cell.targets.last and cell.targets.last.pose.position.x > start.position[0] + 0.05, 20,
                          "motion")
        cell.velocity = [0.0, 0.0, 0.0]
        client.wait_until(cell.settled, 10, "the arm at the gate's target")
        sent = cell.trajectories.last
        positions = dict(zip(sent.joint_names, sent.points[0].positions, strict=True))
        tool = arm.forward([positions[name] for name in CONTRACT.robot.arm_joints])
        error = delta_between(pose_from_msg(cell.targets.last), tool)
        assert np.linalg.norm(error[:3]) < 1e-3
        assert list(cell.fingers.last.data) == pytest.approx([0.02, 0.02])
        processes.kill("gate_node")     # no targets any more: no trajectories either, and the arm stays
        client.spin_for(0.5)
        cell.trajectories.clear()
        held = pose_from_msg(cell.poses.last)
        client.spin_for(0.5)
        assert not len(cell.trajectories)
        assert np.abs(delta_between(held, pose_from_msg(cell.poses.last))).max() < 2e-3


@pytest.fixture
def adapter(tmp_path, ros_domain):
    """adapter(**parameters): an adapter, and a client as the only other node of its graph."""
    with Processes(tmp_path, ros_domain) as processes, RosClient("cell", ros_domain, processes.check) as client:
        def start(active=True, **parameters):
            processes.start_node("rlco_teleop.nodes.arm_adapter_node", **parameters)
            if active:
                client.wait_active("/arm_adapter", 60)
            return client

        yield start, processes


def now_ns(client):
    return client.node.get_clock().now().nanoseconds


def test_cartesian_poses_are_denser_in_the_controllers_frame_and_end_with_the_targets(adapter):
    start, _ = adapter
    client = start(kind="cartesian", target_topic="/controller/target_frame", frame="base", interpolate_hz=100.0)
    out = client.subscribe(PoseStamped, "/controller/target_frame", COMMAND_QOS, matched_s=5)
    gate = client.publisher(PoseStamped, CONTRACT.topics.target_pose, COMMAND_QOS, matched_s=5)
    client.spin_for(0.3)
    assert not len(out)
    for k in range(10):
        gate.publish(pose_to_msg(compose_delta(START, [0.005 * k, 0, 0, 0, 0, 0]), BASE, now_ns(client)))
        client.spin_for(0.05)
    assert len(out) > 15, "denser than the ten targets"
    assert {message.header.frame_id for message in out.messages} == {"base"}
    last = compose_delta(START, [0.045, 0, 0, 0, 0, 0])

    def at_last():
        gate.publish(pose_to_msg(last, BASE, now_ns(client)))
        return out.last.pose.position.x == pytest.approx(last.position[0])

    client.wait_until(at_last, 5, "the last target")
    client.spin_for(0.5)
    count = len(out)
    client.spin_for(0.3)
    assert len(out) == count, "without targets nothing is sent"
    gate.publish(pose_to_msg(START, "world", now_ns(client)))
    gate.publish(pose_to_msg(START, BASE, now_ns(client) - 10**9))
    diagnostics = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
    client.wait_until(lambda: diagnostics.find(lambda array: any(
        status.name == "arm_adapter" and ("frame 'world'" in status.message or "old" in status.message)
        for status in array.status)), 5, "the refusal in diagnostics")
    assert len(out) == count


def test_a_second_publisher_on_the_arm_is_an_error(adapter):
    start, _ = adapter
    client = start(kind="cartesian")
    client.publisher(PoseStamped, "/target_pose", COMMAND_QOS)
    diagnostics = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
    client.wait_until(lambda: diagnostics.find(lambda array: "other publisher" in array.status[0].message), 5, "the error")


def test_a_reset_activation_sends_nothing_of_before(adapter):
    start, _ = adapter
    client = start(kind="trajectory")
    arm = ArmKinematics(panda_urdf())
    joints, out = arm.inverse(START, REST), client.subscribe(JointTrajectory, TRAJECTORY, STATE_QOS, matched_s=5)
    states = client.publisher(JointState, CONTRACT.topics.joint_states, STATE_QOS, matched_s=5)
    gate = client.publisher(PoseStamped, CONTRACT.topics.target_pose, COMMAND_QOS, matched_s=5)
    client.node.create_timer(0.02, lambda: states.publish(joint_state_to_msg(CONTRACT, joints, 1.0, now_ns(client))))
    client.spin_for(0.2)
    gate.publish(pose_to_msg(START, BASE, now_ns(client)))
    client.wait_until(lambda: len(out), 5, "a trajectory")
    assert client.change_state("/arm_adapter", Transition.TRANSITION_DEACTIVATE)
    gate.publish(pose_to_msg(START, BASE, now_ns(client)))
    client.spin_for(0.2)
    assert client.change_state("/arm_adapter", Transition.TRANSITION_ACTIVATE)
    client.spin_for(0.5)
    assert len(out) == 1


@pytest.mark.parametrize(("parameters", "reason"), [
    ({"target_topic": CONTRACT.topics.target_pose}, "no adapter is needed"),
    ({"gripper": "action"}, "needs control_msgs"),
    ({"kind": "trajectory", "urdf": "/no/such.urdf"}, "no/such.urdf does not exist"),
])
def test_wrong_settings_are_refused_at_configuration(adapter, parameters, reason):
    start, processes = adapter
    client = start(active=False, **parameters)
    client.wait_until(lambda: reason in processes["arm_adapter_node"].tail(), 60, "the reason in the log")
