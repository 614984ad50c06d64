"""Operator devices: nothing moves without the dead-man, a silent device is a released one, directions and speeds are pinned.

The second half drives each device as its driver would, over real topics or a real pseudo-terminal, through the real teleop
node and the real gate.
"""

import os
import pty
import signal
import subprocess
import sys
import termios
import time
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager, suppress
from types import MappingProxyType

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, Twist
from hypothesis import given, settings
from hypothesis import strategies as st
from mani_skill.agents.robots import Panda
from sensor_msgs.msg import JointState
from sensor_msgs.msg import Joy as JoyMessage
from std_msgs.msg import Bool, Float64MultiArray, String

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent
from rlco_common.errors import ConfigError, DataError
from rlco_common.messages import pose_from_msg
from rlco_common.pose import Pose, delta_between
from rlco_common.processes import Processes
from rlco_common.ros import COMMAND_QOS, EVENT_QOS, STATE_QOS, joint_state_to_msg, pose_to_msg
from rlco_common.ros_client import RosClient
from rlco_sim_bridge.experts.arm_model import PANDA_JOINTS, ArmModel
from rlco_teleop.devices import DEVICES, make_device
from rlco_teleop.devices.base import Joints, Joy
from rlco_teleop.devices.gamepad import GamepadSettings
from rlco_teleop.devices.keyboard import HELP, MOTIONS, KeyboardSettings, Keys
from rlco_teleop.devices.leader import LeaderSettings
from rlco_teleop.devices.spacemouse import SpacemouseSettings
from rlco_teleop.devices.switch import DeadMan, beyond_dead_zone
from rlco_teleop.devices.terminal import Terminal
from rlco_teleop.urdf_chain import UrdfChain

CONTRACT = load_contract()
START = Pose([0.5, 0.0, 0.2], [1.0, 0.0, 0.0, 0.0])
MS = 1_000_000
REST = np.array([0.0, 0.13, 0.0, -2.4, 0.0, 2.43, 0.79])


# -- pure: the switch


def test_a_button_that_is_down_from_the_start_or_after_a_silence_counts_only_after_it_was_up():
    switch = DeadMan(0.3)
    switch.hear(True, 0)
    assert not switch.held(0)
    switch.hear(False, 10 * MS)
    switch.hear(True, 20 * MS)
    assert switch.held(320 * MS)
    assert not switch.held(321 * MS), "silent"
    switch.hear(True, 400 * MS)
    assert not switch.held(400 * MS), "it may have been let go meanwhile"
    switch.hear(False, 410 * MS)
    switch.hear(True, 420 * MS)
    assert switch.held(420 * MS)
    switch.release()
    switch.hear(True, 430 * MS)
    assert not switch.held(430 * MS)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 500)), max_size=40))
def test_the_switch_is_held_only_after_a_change_from_up_to_down_without_a_silence_since(reports):
    switch, now_ns, last, engaged = DeadMan(0.3), 0, None, False
    for pressed, wait_ms in reports:
        now_ns += wait_ms * MS
        if wait_ms > 300:
            engaged, last = False, None
        engaged = pressed and (engaged or last is False)
        last = pressed if pressed is False or engaged else last
        switch.hear(pressed, now_ns)
        assert switch.held(now_ns) == engaged


@given(st.floats(-2.0, 2.0), st.floats(0.0, 0.9))
def test_a_dead_zone_is_continuous_and_keeps_the_full_deflection(value, dead_zone):
    result = beyond_dead_zone(np.array([value]), dead_zone)[0]
    assert abs(result) <= min(1.0, abs(value)) + 1e-12 and result * value >= 0.0
    assert (result == 0.0) == (abs(min(1.0, abs(value))) <= dead_zone or value == 0.0)
    assert beyond_dead_zone(np.array([-1.0, 1.0]), dead_zone).tolist() == [-1.0, 1.0]


# -- pure: devices


def joy(axes=(), buttons=()):
    values = [0.0] * 6
    for axis, value in dict(axes).items():
        values[axis] = value
    return Joy(tuple(values), tuple(int(index in buttons) for index in range(16)))


def gamepad(**changes):
    return make_device("gamepad", CONTRACT, GamepadSettings(**changes))


def feed(device, values, now_ns, which=0):
    device.inputs[which].receive(values, now_ns)


def engaged_gamepad(moved=(), pressed=(), **changes):
    device = gamepad(**changes)
    feed(device, joy(), 0)
    feed(device, joy(moved, (10, *pressed)), MS)
    return device.operate(MS, 0.7)


@pytest.mark.parametrize(("axes", "buttons", "axis", "direction"), [
    ({1: 1.0}, (), 0, 1), ({1: -1.0}, (), 0, -1), ({0: 1.0}, (), 1, 1), ({3: 1.0}, (), 2, 1), ({2: 1.0}, (), 5, 1),
    ((), (14,), 3, 1), ((), (13,), 3, -1), ((), (11,), 4, 1), ((), (12,), 4, -1),
])
def test_gamepad_directions_and_speeds(axes, buttons, axis, direction):
    expected = np.zeros(6)
    expected[axis] = direction * (0.07 if axis < 3 else 0.4)
    operation = engaged_gamepad(axes, buttons, linear_speed_m_s=0.07, angular_speed_rad_s=0.4)
    assert operation.held and np.allclose(operation.twist, expected, atol=1e-12) and operation.gripper is None


def test_a_gamepads_mapping_signs_and_gripper_are_parameters():
    operation = engaged_gamepad({5: 0.55, 0: -1.0}, (2,), axes=(5, -1, -1, -1, -1, -1), signs=(-1, 1, 1, 1, 1, 1),
                                dead_zone=0.1, button_close=2, linear_speed_m_s=0.1)
    assert np.allclose(operation.twist, [-0.05, 0, 0, 0, 0, 0]) and operation.gripper == 0.0
    assert engaged_gamepad((), (1,)).gripper == 1.0


@pytest.mark.parametrize(("changes", "problem"), [
    ({"axes": (1, 2)}, "axes needs 6 values"), ({"signs": (2, 1, 1, 1, 1, 1)}, "1 or -1"),
    ({"button_deadman": 0}, "three different"),
])
def test_a_mapping_that_cannot_be_is_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        GamepadSettings(**changes)


@pytest.mark.parametrize("name", ["gamepad", "spacemouse", "keyboard"])
def test_a_speed_that_the_gate_would_cut_is_refused(name):
    kind = DEVICES[name]
    with pytest.raises(ConfigError, match=r"linear_speed_m_s 0\.3 is more than .* 0\.25"):
        make_device(name, CONTRACT, kind.Settings(linear_speed_m_s=0.3))
    with pytest.raises(ConfigError, match="angular_speed_rad_s"):
        make_device(name, CONTRACT, kind.Settings(angular_speed_rad_s=2.0))


@pytest.mark.parametrize(("bad", "problem"), [(Joy((0.0, float("nan"), 0, 0, 0, 0), (0,) * 16), "not finite"),
                                              (Joy((0.0, 0.0), (0,) * 16), "2 axes")])
def test_a_pad_that_sends_nonsense_is_released_and_named(bad, problem):
    device = gamepad()
    feed(device, joy(), 0)
    feed(device, joy({1: 1.0}, (10,)), MS)
    with pytest.raises(DataError, match=problem):
        feed(device, bad, 2 * MS)
    assert not device.operate(2 * MS, None).held
    feed(device, joy({1: 1.0}, (10,)), 3 * MS)
    assert not device.operate(3 * MS, None).held, "the button was never up"


def test_what_was_wished_before_the_release_does_not_come_back():
    device = gamepad()
    for at, buttons, wish in ((0, (), None), (1, (10, 0), 0.0), (2, (10,), 0.0), (3, (), None), (4, (10,), None)):
        feed(device, joy((), buttons), at * MS)
        assert device.operate(at * MS, 0.0).gripper == wish


def spacemouse(deflections, buttons=(0,), opening=1.0, **changes):
    device = make_device("spacemouse", CONTRACT, SpacemouseSettings(**changes))
    feed(device, np.array(deflections, dtype=float), 0, 0)
    feed(device, joy(), 0, 1)
    feed(device, joy((), buttons), MS, 1)
    return device, device.operate(MS, opening)


def test_spacemouse_directions_scale_and_gripper():
    _, operation = spacemouse([0.68, -0.68, 0.0, 0.0, 0.374, 2.0], signs=(1, 1, 1, 1, -1, 1))
    assert np.allclose(operation.twist, [0.1, -0.1, 0.0, 0.0, -0.25, 0.5]), "full, half beyond the dead zone, clipped"
    device = make_device("spacemouse", CONTRACT)
    for at, buttons in enumerate(((), (), (0,))):       # asked all the while
        feed(device, np.zeros(6), at * MS, 0)
        feed(device, joy((), buttons), at * MS, 1)
        assert device.operate(at * MS, 1.0).held == bool(buttons)
    device, operation = spacemouse([0.0] * 6, (0, 1))
    assert operation.gripper == 0.0
    for at, buttons, wish in ((2, (0,), 0.0), (3, (0, 1), 1.0), (4, (0, 1), 1.0)):
        feed(device, joy((), buttons), at * MS, 1)
        assert device.operate(at * MS, 0.2).gripper == wish
    assert not spacemouse([0.68] * 6, ())[1].held


def test_a_spacemouse_whose_cap_is_silent_is_released_though_its_button_is_heard():
    device, operation = spacemouse([0.68, 0, 0, 0, 0, 0])
    assert operation.held
    for at in range(50, 401, 50):
        feed(device, joy((), (0,)), at * MS, 1)
    assert not device.operate(400 * MS, None).held
    with pytest.raises(DataError, match="not finite"):
        feed(device, np.full(6, np.inf), 401 * MS, 0)


# -- pure: keyboard


def keys(**changes):
    return Keys(KeyboardSettings(**changes))


def test_keys_move_only_with_the_dead_man_and_only_for_a_moment():
    pressed = keys()
    pressed.type("w", 0)
    assert not pressed.held(0) and not pressed.deflection(0).any()
    pressed.type(" ", MS)
    assert pressed.held(MS) and not pressed.deflection(MS).any(), "what was pressed before does not count"
    pressed.type("w", 2 * MS)
    assert pressed.deflection(152 * MS).tolist() == [1, 0, 0, 0, 0, 0]
    assert not pressed.deflection(153 * MS).any() and pressed.held(153 * MS)
    assert pressed.held(3002 * MS) and not pressed.held(3003 * MS), "no key for three seconds"


@pytest.mark.parametrize("key", sorted(MOTIONS))
def test_every_key_is_in_the_help_and_moves_one_axis(key):
    assert len(key) > 1 or f" {key}" in HELP
    pressed = keys()
    pressed.type(f" {key}", 0)
    axis, direction = MOTIONS[key]
    assert pressed.deflection(0)[axis] == direction and np.count_nonzero(pressed.deflection(0)) == 1


@pytest.mark.parametrize("key", [" ", "\x1b", "x", "\n", "\x1b[Z"])
def test_any_other_key_and_the_space_bar_switch_the_dead_man_off(key):
    pressed = keys()
    pressed.type(" w", 0)
    pressed.type(key, MS)
    pressed.type("", 2 * MS)
    assert not pressed.held(2 * MS) and not pressed.deflection(2 * MS).any()


def test_an_arrow_that_arrives_in_pieces_is_an_arrow():
    pressed = keys()
    for at, piece in enumerate((" ", "\x1b", "[", "A")):
        pressed.type(piece, at * MS)
    assert pressed.held(4 * MS) and pressed.deflection(4 * MS).tolist() == [1, 0, 0, 0, 0, 0]
    pressed.type("s", 5 * MS)
    assert pressed.deflection(5 * MS).tolist() == [-1, 0, 0, 0, 0, 0], "turning round is at once"


@settings(deadline=None)
@given(st.text(alphabet=[*"wasdrfocx \x1b[A5~", "\n"], max_size=30), st.integers(1, 400))
def test_whatever_is_typed_no_motion_outlives_its_key(text, gap_ms):
    pressed, now_ns = keys(), 0
    for character in text:
        now_ns += gap_ms * MS
        pressed.type(character, now_ns)
    now_ns += 151 * MS
    pressed.type("", now_ns)
    assert not pressed.deflection(now_ns).any() or not text


# -- pure: leader


@pytest.fixture(scope="module")
def panda_chain():
    return UrdfChain(Panda.urdf_path, "panda_hand_tcp")


def leader_settings(**changes):
    return LeaderSettings(urdf=Panda.urdf_path, tip_link="panda_hand_tcp", **changes)


def positions(qpos, **more):
    return Joints({**dict(zip(PANDA_JOINTS, map(float, qpos), strict=True)), **more})


class LeaderHand:
    """A leader device at 20 Hz with its button held, and the follower's target as its twists move it."""

    def __init__(self, hold=True, opening=1.0, **changes):
        self.device = make_device("leader", CONTRACT, leader_settings(**changes), 20.0)
        self.now_ns, self.follower, self.opening = 0, START, opening
        self.hold = hold
        feed(self.device, joy(), 0, 1)

    def step(self, joints):
        self.now_ns += 50 * MS
        feed(self.device, joints, self.now_ns, 0)
        feed(self.device, joy((), (0,) if self.hold else ()), self.now_ns, 1)
        operation = self.device.operate(self.now_ns, self.opening)
        self.follower = CONTRACT.compose_target(self.follower, np.append(operation.twist * 0.05, 0.0))
        if operation.gripper is not None:
            self.opening = operation.gripper
        return operation


def test_forward_kinematics_is_pinocchios_and_by_name(panda_chain):
    model = ArmModel(Panda.urdf_path)
    rng = np.random.default_rng(3)
    assert panda_chain.joint_names == PANDA_JOINTS and panda_chain.base == "panda_link0"
    for qpos in rng.uniform(model.lower, model.upper, (20, 7)):
        shuffled = dict(sorted(positions(qpos).positions.items(), key=lambda item: rng.random()))
        assert np.abs(delta_between(panda_chain.forward(shuffled), model.forward(qpos))).max() < 1e-9


@pytest.mark.parametrize(("edit", "problem"), [
    (lambda root: root.remove(root.findall("joint")[2]), "no link 'panda_link0'|not below|on the way"),
    (lambda root: root.findall("joint")[1].remove(root.findall("joint")[1].find("parent")), "lacks its name, parent"),
    (lambda root: root.findall("joint")[1].set("type", "planar"), "'planar' is not supported"),
])
def test_a_urdf_that_does_not_work_is_refused(tmp_path, edit, problem):
    tree = ElementTree.parse(Panda.urdf_path)
    edit(tree.getroot())
    tree.write(tmp_path / "arm.urdf")
    with pytest.raises(ConfigError, match=problem):
        UrdfChain(tmp_path / "arm.urdf", "panda_hand_tcp", "panda_link0")
    with pytest.raises(ConfigError, match="no link 'nowhere'"):
        UrdfChain(Panda.urdf_path, "nowhere")
    with pytest.raises(ConfigError, match=r"tips .*name one"):
        UrdfChain(Panda.urdf_path)


def test_engaging_a_leader_never_moves_the_follower_and_then_it_follows_relatively(panda_chain):
    hand = LeaderHand(hold=False)
    far = REST + np.array([0.5, -0.4, 0.3, 0.2, 0.1, -0.2, 0.4])
    for _ in range(3):
        assert not hand.step(positions(far)).held
    hand.hold = True
    for _ in range(3):
        operation = hand.step(positions(far))
        assert operation.held and np.abs(operation.twist).max() < 1e-12
    goal = far + np.array([0.05, 0.05, -0.05, 0.05, 0.1, 0.05, -0.05])
    for share in np.linspace(0, 1, 40):
        assert np.abs(hand.step(positions(far + share * (goal - far))).twist[:3]).max() <= 0.25 + 1e-12
    wanted = delta_between(panda_chain.forward(positions(far).positions), panda_chain.forward(positions(goal).positions))
    assert np.abs(delta_between(START, hand.follower) - wanted).max() < 1e-9
    hand.hold = False
    for _ in range(3):
        assert not hand.step(positions(REST)).held
    before, hand.hold = hand.follower, True
    hand.step(positions(REST))
    assert np.abs(delta_between(before, hand.follower)).max() < 1e-12, "re-clutched elsewhere: no jump"


def test_a_leader_that_is_thrown_is_followed_for_a_quarter_second_only():
    hand = LeaderHand()
    thrown = positions(REST + np.array([0.6, 0, 0, 0, 0, 0, 0]))        # by 30 cm
    hand.step(positions(REST))
    hand.step(thrown)
    moved = [np.abs(hand.step(thrown).twist).max() > 1e-6 for _ in range(12)]
    assert sum(moved) == 5
    assert np.abs(hand.follower.position - START.position).max() < 0.25 * 0.3 + 1e-9


def test_scale_and_direction_of_a_leader():
    hand = LeaderHand(scale=0.5, base_yaw_rad=np.pi / 2)
    plain = LeaderHand()
    for share in np.linspace(0, 1, 20):
        for each in (hand, plain):
            each.step(positions(REST + share * np.array([0, 0.1, 0, 0, 0, 0, 0])))
    moved, reference = (each.follower.position - START.position for each in (hand, plain))
    assert np.allclose(moved, 0.5 * np.array([-reference[1], reference[0], reference[2]]), atol=1e-9)
    assert abs(reference[0]) > 0.01


def test_a_leaders_gripper_is_adopted_only_when_it_meets_the_followers():
    hand = LeaderHand(opening=0.0, gripper_joint="trigger", gripper_closed=1.0, gripper_open=0.0)
    wishes = [hand.step(positions(REST, trigger=value)).gripper for value in (0.0, 0.3, 0.8, 1.0, 0.5)]
    assert wishes == [None, None, None, 0.0, 0.5], "it holds something; only a leader that closes, too, takes over"


def test_a_leader_without_a_joint_or_with_nonsense_is_released_and_named():
    hand = LeaderHand()
    assert hand.step(positions(REST)).held
    incomplete = dict(list(positions(REST).positions.items())[1:])
    with pytest.raises(DataError, match=r"/leader/joint_states: joint\(s\) panda_joint1 missing"):
        hand.step(Joints(incomplete))
    assert not hand.step(positions(REST)).held, "the button was never up"
    with pytest.raises(DataError, match="not finite"):
        hand.step(positions(REST * np.nan))


@pytest.mark.parametrize(("offset", "reported"), [(0.12, True), (0.02, False)])
def test_a_constant_offset_between_leader_and_follower_is_reported_by_joint(offset, reported):
    device = make_device("leader", CONTRACT, leader_settings(joint_prefix="l_"), 20.0)
    prefix, now_ns = {}, 0
    rng = np.random.default_rng(0)
    for pose in rng.uniform(-0.5, 0.5, (5, 7)) + REST:
        for _ in range(4):
            now_ns += 50 * MS
            lag = rng.normal(0, 0.002, 7)
            lag[1] += rng.uniform(-0.3, 0.3)        # a joint that differs, but not constantly
            feed(device, positions(pose + lag), now_ns, 2)
            leader = pose + np.array([0, 0, 0, offset, 0, 0, 0])
            prefix = {f"l_{name}": value for name, value in positions(leader).positions.items()}
            feed(device, Joints({**prefix, **positions(leader).positions}), now_ns, 0)
            feed(device, joy(), now_ns, 1)
    health = device.health(now_ns)
    assert ("panda_joint4 +0.120 rad" in health.complaint) == reported
    assert set(health.values) == ({"offset panda_joint4"} if reported else set())


# -- the real node and the real gate


class Table:
    """A gate, an arm that follows at once with its gripper three quarters open, and a device's driver at 20 Hz."""

    def __init__(self, processes, client):
        self.processes, self.client = processes, client
        self.pose, self.drive = START, lambda: None
        self.ee_pose = client.publisher(PoseStamped, CONTRACT.topics.ee_pose, STATE_QOS)
        self.joints = client.publisher(JointState, CONTRACT.topics.joint_states, STATE_QOS)
        self.targets = client.subscribe(PoseStamped, CONTRACT.topics.target_pose, STATE_QOS)
        self.grippers = client.subscribe(Float64MultiArray, CONTRACT.topics.gripper_command, STATE_QOS)
        self.deadman = client.subscribe(Bool, topics.TELEOP_DEADMAN, STATE_QOS)
        self.diagnostics = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        self.event = client.publisher(String, EVENT_TOPIC, EVENT_QOS)
        client.node.create_timer(0.05, self._tick)

    def begin_anew(self):
        self.event.publish(String(data=EpisodeEvent("reset").to_json()))
        self.client.spin_for(0.2)       # targets of before may be under way
        self.pose = START
        for inbox in (self.targets, self.grippers, self.deadman, self.diagnostics):
            inbox.clear()

    def _tick(self):
        if self.targets.last is not None:
            self.pose = pose_from_msg(self.targets.last)
        now_ns = self.client.node.get_clock().now().nanoseconds
        self.ee_pose.publish(pose_to_msg(self.pose, CONTRACT.robot.base_frame, now_ns))
        self.joints.publish(joint_state_to_msg(CONTRACT, REST, 0.75, now_ns))
        self.drive()

    def start(self, device, **parameters):
        self.processes.start_node("rlco_teleop.nodes.teleop_node", device=device, linear_speed_m_s=0.05, **parameters)
        self.client.wait_active("/teleop")

    def steps(self):
        """[n, 3]: how far each target is from the one before, of those that moved at all."""
        steps = np.diff([pose_from_msg(message).position for message in self.targets.messages], axis=0)
        return steps[np.abs(steps).max(axis=1) > 1e-9] if len(steps) else steps

    def require_motion(self, direction=(1, 0, 0)):
        """Wait for ten steps of 50 mm/s at the gate's 20 Hz."""
        self.targets.clear()
        self.client.wait_until(lambda: len(self.steps()) >= 10, 10, "motion")
        assert np.allclose(np.median(self.steps(), axis=0), np.array(direction) * 0.05 / 20, atol=2e-5)

    def require_rest(self, within_s=0.6):
        """From `within_s` on, nothing moves and the last dead-man is not held."""
        self.client.spin_for(within_s)
        self.targets.clear()
        self.client.spin_for(0.4)
        assert len(self.targets) == 0 or not len(self.steps())
        assert not self.held()

    def held(self):
        """What a gate takes the dead-man for; False also when it was never heard."""
        return bool(len(self.deadman)) and self.deadman.last.data and (
            time.monotonic_ns() - self.deadman.arrivals_ns[-1] <= 300 * MS)

    def complaint(self):
        message = self.diagnostics.find(lambda message: message.status[0].name == "teleop")
        return message.status[0].message if message else ""


@pytest.fixture(scope="module")
def shared_table(tmp_path_factory, module_ros_domain):
    logs = tmp_path_factory.mktemp("logs")
    with Processes(logs, module_ros_domain) as processes, RosClient("table", module_ros_domain, processes.check) as client:
        processes.start_node("rlco_teleop.nodes.gate_node")
        client.wait_active("/gate")
        yield Table(processes, client)


@pytest.fixture
def table(shared_table):
    """The table at the start of an episode, without a device."""
    shared_table.begin_anew()
    yield shared_table
    shared_table.drive = lambda: None
    with suppress(KeyError):        # a test may have ended it
        shared_table.processes.stop("teleop_node")


class PadDriver:
    parameters = MappingProxyType({})

    def __init__(self, table):
        self.joy = table.client.publisher(JoyMessage, "/joy", COMMAND_QOS)

    def send(self, held, moved, close=False):
        message = joy({1: 1.0} if moved else {}, (10,) * held + (0,) * close)
        self.joy.publish(JoyMessage(axes=list(message.axes), buttons=list(message.buttons)))


class CapDriver:
    parameters = MappingProxyType({})

    def __init__(self, table):
        self.twist = table.client.publisher(Twist, "/spacenav/twist", COMMAND_QOS)
        self.joy = table.client.publisher(JoyMessage, "/spacenav/joy", COMMAND_QOS)

    def send(self, held, moved, close=False):
        message = Twist()
        message.linear.x = 0.68 * moved
        self.twist.publish(message)
        self.joy.publish(JoyMessage(axes=[0.0] * 6, buttons=[int(held), int(close)]))


class LeaderDriver:
    """A Panda as leader that is pulled forward at more than the speed that the follower may have, and jumps back when its
    dead-man is released; joints in any order."""

    parameters = MappingProxyType({"urdf": Panda.urdf_path, "tip_link": "panda_hand_tcp", "gripper_joint": "trigger"})

    def __init__(self, table):
        self.joints = table.client.publisher(JointState, "/leader/joint_states", COMMAND_QOS)
        self.joy = table.client.publisher(JoyMessage, "/leader/joy", COMMAND_QOS)
        self.arm, self.qpos = ArmModel(Panda.urdf_path), REST
        self.trigger, self.order = 1.0, np.random.default_rng(0)

    def send(self, held, moved, close=False):
        if moved:
            pose = self.arm.forward(self.qpos if held else REST)
            self.qpos = self.arm.inverse(Pose(pose.position + np.array([0.003, 0, 0]), pose.quaternion), near=self.qpos)
        self.trigger = max(0.0, self.trigger - 0.1) if close else self.trigger
        names = [*PANDA_JOINTS, "trigger"]
        values = [*self.qpos, self.trigger]
        order = self.order.permutation(len(names))
        self.joints.publish(JointState(name=[names[i] for i in order], position=[float(values[i]) for i in order]))
        self.joy.publish(JoyMessage(buttons=[int(held)]))


@pytest.mark.long
@pytest.mark.parametrize(("name", "driver_type"), [("gamepad", PadDriver), ("spacemouse", CapDriver), ("leader", LeaderDriver)])
def test_over_topics_a_device_moves_only_with_its_dead_man_and_stops_when_it_goes_silent(table, name, driver_type):
    table.start(name, **driver_type.parameters)
    client, driver = table.client, driver_type(table)
    client.wait_until(lambda: table.complaint().startswith("nothing"), 5, "the report that the device is silent")
    table.drive = lambda: driver.send(False, True)
    client.wait_until(lambda: table.complaint() == "released", 5, "a device that is heard")
    table.require_rest(0.1)
    table.drive = lambda: driver.send(True, True)
    table.require_motion()
    assert table.grippers.last.data[0] == pytest.approx(0.75), "taking over leaves the gripper as it is"
    table.drive = lambda: driver.send(False, True)
    table.require_rest()
    table.drive = lambda: driver.send(True, True)
    table.require_motion()
    table.drive = lambda: None
    table.require_rest()
    table.drive = lambda: driver.send(True, True)
    table.require_rest()    # it was silent: the dead-man has to be released first
    table.drive = lambda: driver.send(False, False)
    client.spin_for(0.3)
    table.drive = lambda: driver.send(True, False, close=True)
    client.wait_until(lambda: table.grippers.last.data[0] < 0.3, 5, "a closing gripper")


@contextmanager
def terminal():
    """A pseudo-terminal as (descriptor of the side where keys are typed, path of the other side, its attributes)."""
    ours, theirs = pty.openpty()
    try:
        os.set_blocking(ours, False)
        yield ours, os.ttyname(theirs), lambda: termios.tcgetattr(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def without_control(path):
    """A terminal opened so that it never becomes the one that ends these tests when it closes."""
    return open(path, opener=lambda name, flags: os.open(name, flags | os.O_NOCTTY))


def screen(ours):
    """What the program wrote, which has to be read or it could not write more."""
    try:
        return os.read(ours, 65536).decode()
    except BlockingIOError:
        return ""


def test_typed_in_a_terminal_keys_move_with_the_dead_man_and_the_terminal_is_as_before_after_sigterm(table):
    with terminal() as (keyboard, path, attributes):
        before = attributes()
        table.start("keyboard", tty=path)
        assert not attributes()[3] & (termios.ECHO | termios.ICANON)
        assert "dead-man on / off" in screen(keyboard)
        table.drive = lambda: os.write(keyboard, b"w")
        table.require_rest(0.2)
        os.write(keyboard, b" ")
        table.require_motion()
        assert table.grippers.last.data[0] == pytest.approx(0.75)
        assert "dead-man ON" in screen(keyboard)
        table.drive = lambda: os.write(keyboard, b"\x1b[C")
        table.require_motion((0, -1, 0))
        os.write(keyboard, b"c")
        table.client.wait_until(lambda: table.grippers.last.data[0] == 0.0, 5, "the closed gripper")
        table.drive = lambda: None
        table.client.spin_for(0.4)
        table.targets.clear()
        table.client.spin_for(0.4)
        assert table.held() and not len(table.steps()), "the key is up, and the dead-man is on still"
        os.write(keyboard, b"\x1b")
        table.client.wait_until(lambda: not table.held(), 2, "the released dead-man")
        table.drive = lambda: os.write(keyboard, b"w")
        table.require_rest(0.2)
        child = table.processes["teleop_node"]
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(10) == 0
        assert attributes() == before
        table.processes.take_ended()


@pytest.mark.parametrize("end", ["raise RuntimeError('crash')", "os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)",
                                 "os.kill(os.getpid(), signal.SIGSEGV)"])
def test_the_terminal_is_restored_however_the_process_ends(end):
    with terminal() as (_, path, attributes):
        before = attributes()
        code = ("import os, signal, sys; from rlco_teleop.devices.terminal import Terminal; Terminal(sys.argv[1]); "
                f"print('raw', flush=True); sys.stdin.readline(); {end}")
        with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout.readline() == "raw\n"
            assert attributes() != before
            process.stdin.write("\n")
            process.stdin.close()
            assert process.wait(10) != 0
        deadline = time.monotonic() + 5.0
        while attributes() != before:       # another process does it
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_launched_keyboard_reads_the_terminal_that_it_was_launched_from(tmp_path, ros_domain, monkeypatch):
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path))
    command = [sys.executable, "-m", "rlco_trainer.cli", "up", "teleop", "device:=keyboard", "gate:=false"]
    with terminal() as (keyboard, path, attributes), without_control(path) as stdin, RosClient("table", ros_domain) as client:
        before = attributes()
        deadman = client.subscribe(Bool, topics.TELEOP_DEADMAN, COMMAND_QOS)
        with subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, start_new_session=True) as process:
            client.wait_active("/teleop", 60)
            os.write(keyboard, b" ")
            client.wait_until(lambda: len(deadman) and deadman.last.data, 10, "the held dead-man")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        assert attributes() == before


def test_a_terminal_that_is_not_one_is_refused_and_one_that_closes_releases(tmp_path):
    for path in (tmp_path / "none", "/dev/null"):
        with pytest.raises(ConfigError, match=r"tty:=|not a terminal"):
            Terminal(str(path))
    ours, theirs = pty.openpty()
    device = make_device("keyboard", CONTRACT, KeyboardSettings(tty=os.ttyname(theirs)))
    device.open()
    try:
        os.write(ours, b" w")
        assert device.operate(0, None).held
        os.close(theirs)
        os.close(ours)
        assert not device.operate(MS, None).held
        assert "is gone" in device.health(MS).complaint
    finally:
        device.close()


def test_a_persons_device_is_refused_in_lock_step_and_a_bad_mapping_by_its_name(tmp_path, ros_domain):
    with Processes(tmp_path, ros_domain) as processes:
        lockstep = processes.start_node("rlco_teleop.nodes.teleop_node", "lockstep", device="gamepad", lockstep=True)
        mapping = processes.start_node("rlco_teleop.nodes.teleop_node", "mapping", device="gamepad", axes=[1, 2])
        assert mapping.process.wait(20) == 1
        assert "axes needs 6 values" in mapping.tail()
        with RosClient("reader", ros_domain) as client:
            client.wait_until(lambda: "real time only" in lockstep.tail(), 20, "the refusal")
