"""Going to the start: the arm gets there, past everything that may stand on the table, only when nobody else has the arm."""

import json
import threading
from itertools import pairwise

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64, String

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent
from rlco_common.errors import ConfigError, RlcoError
from rlco_common.gate import GateState, Source
from rlco_common.gate_drives import LockstepGate, RealTimeGate
from rlco_common.messages import diagnostic_values, pose_from_msg
from rlco_common.observation import joints_by_name
from rlco_common.pose import Pose, compose_delta, delta_between
from rlco_common.processes import Processes
from rlco_common.ros import COMMAND_QOS, EVENT_QOS, STATE_QOS, stamp_from_ns
from rlco_common.ros_client import RosClient
from rlco_sim_bridge.experts.arm_model import ArmModel
from rlco_sim_bridge.experts.base import down
from rlco_sim_bridge.experts.planned import TABLE, container_boxes, panda_urdf
from rlco_sim_bridge.experts.starts import start_pose
from rlco_sim_bridge.scene_state import scene_state_from_json
from rlco_teleop.cell_view import CellView
from rlco_teleop.start_move import MoveSettings, Phase, StartMove
from rlco_teleop.start_planner import OwnPlanner
from rlco_teleop.start_settings import StartSettings
from rlco_teleop.start_way import StartError, cell_blocks, lift, plan_way

CONTRACT = load_contract()
GOAL = start_pose("pick_place")
REST = np.array([0.0, 0.13, 0.0, -2.4, 0.0, 2.43, 0.79])
SECOND = 1_000_000_000
STEP_NS = SECOND // 20


# -- the gate's part


def gate_with_state(pose=GOAL):
    gate = RealTimeGate(CONTRACT, 20.0, (0.15, 0.8))
    gate.on_state(pose, SECOND, SECOND)
    return gate


def drive(gate, target, seconds, now, measured=None, send=True):
    """Targets of the gate over some time, the arm following; returns (targets, now)."""
    sent = []
    for _ in range(round(seconds * 20)):
        now += STEP_NS
        gate.on_state(measured or (sent[-1] if sent else GOAL), now, now)
        if send:
            gate.on_planned(target, None, now)
        command = gate.step(now)
        sent.append(command.target if command else gate._measured)
    return sent, now


def test_a_planned_move_is_slower_than_its_limit_whatever_it_asks_for():
    gate = gate_with_state()
    assert gate.allow_planned(True, SECOND) is None
    far = compose_delta(GOAL, [0.2, 0.1, 0.0, 0.0, 0.0, 0.5])
    sent, _ = drive(gate, far, 3.0, SECOND)
    for before, after in zip([GOAL, *sent], sent, strict=False):
        delta = delta_between(before, after)
        assert np.linalg.norm(delta[:3]) <= 0.15 / 20 + 1e-9 and np.linalg.norm(delta[3:]) <= 0.8 / 20 + 1e-9
    assert np.abs(delta_between(sent[-1], far)).max() < 1e-6
    assert gate.state is GateState.PLANNED


def test_nothing_moves_before_it_is_allowed_and_silence_gives_the_arm_back():
    gate = gate_with_state()
    _, now = drive(gate, compose_delta(GOAL, [0.1, 0, 0, 0, 0, 0]), 0.5, SECOND)
    assert gate.held_command is None
    assert gate.allow_planned(True, now) is None
    sent, now = drive(gate, compose_delta(GOAL, [0.1, 0, 0, 0, 0, 0]), 0.3, now)
    assert np.linalg.norm(sent[-1].position - GOAL.position) > 0.03
    held, now = drive(gate, None, 1.0, now, measured=sent[-1], send=False)
    assert gate.source is Source.NOBODY and not gate.planned_allowed
    assert np.linalg.norm(held[-1].position - sent[-1].position) <= 0.15 * 0.4
    again, _ = drive(gate, compose_delta(GOAL, [0.2, 0, 0, 0, 0, 0]), 0.5, now, measured=held[-1])
    assert (again[-1].position == held[-1].position).all(), "late targets mean nothing"


def test_an_operator_takes_the_arm_and_the_plan_does_not_come_back():
    gate = gate_with_state()
    assert gate.allow_planned(True, SECOND) is None
    target = compose_delta(GOAL, [0.1, 0, 0, 0, 0, 0])
    _, now = drive(gate, target, 0.2, SECOND)
    gate.on_deadman(True, now)
    gate.step(now + STEP_NS)
    assert gate.source is Source.OPERATOR
    gate.on_deadman(False, now + STEP_NS)
    before = gate.held_command.target
    drive(gate, target, 0.5, now + 2 * STEP_NS)
    assert gate.source is Source.NOBODY
    assert np.linalg.norm(gate.held_command.target.position - before.position) < 0.01


def test_a_stop_ends_it_and_latches():
    gate = gate_with_state()
    assert gate.allow_planned(True, SECOND) is None
    sent, now = drive(gate, compose_delta(GOAL, [0.1, 0, 0, 0, 0, 0]), 0.2, SECOND)
    gate.stop()
    after, _ = drive(gate, compose_delta(GOAL, [0.1, 0, 0, 0, 0, 0]), 0.5, now)
    assert gate.state is GateState.STOPPED
    assert (after[-1].position == sent[-1].position).all()


def test_who_has_the_arm_keeps_it():
    gate = gate_with_state()
    gate.on_deadman(True, SECOND)
    assert "dead-man" in gate.allow_planned(True, SECOND)
    gate.on_deadman(False, SECOND)
    gate.enable_policy(True, SECOND)
    assert "policy" in gate.allow_planned(True, SECOND)
    gate.enable_policy(False, SECOND)
    assert gate.allow_planned(True, SECOND) is None
    assert "planned move" in gate.enable_policy(True, SECOND)
    gate.stop()
    assert "stopped" in gate.allow_planned(True, SECOND)
    assert "not heard" in RealTimeGate(CONTRACT, 20.0).allow_planned(True, SECOND)
    assert "lock step" in LockstepGate(CONTRACT).allow_planned(True, SECOND)


# -- the way


@pytest.fixture(scope="module")
def planner():
    return OwnPlanner(CONTRACT, "", cell_blocks(CONTRACT, 0.0, 0.12), 0.01, 10.0)


@pytest.fixture(scope="module")
def model():
    """A check of its own: what may stand on the table as one block, without the planner's margin."""
    return ArmModel(panda_urdf(), [TABLE], margin_m=0.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_way_leaves_the_table_straight_up_and_stays_above_what_stands_there(planner, model, seed):
    rng = np.random.default_rng(seed)
    pose = Pose([rng.uniform(0.35, 0.7), rng.uniform(-0.3, 0.3), rng.uniform(0.02, 0.1)], down(rng.uniform(-0.8, 0.8)))
    joints = model.inverse(pose, REST)
    way = plan_way(planner, joints, pose, GOAL, lift(0.05, 0.12), CONTRACT.limits)
    assert np.abs(delta_between(way[0], pose)).max() < 1e-9 and np.abs(delta_between(way[-1], GOAL)).max() < 1e-3
    for a, b in pairwise(way):
        assert np.linalg.norm(b.position - a.position) < 0.06 and np.linalg.norm(delta_between(a, b)[3:]) < 0.3
        joints = model.inverse(b, joints)
        assert model.is_free(joints)
        if np.linalg.norm(b.position[:2] - pose.position[:2]) > 1e-3:
            assert b.position[2] > 0.12, "sideways only above what stands on the table"


def test_no_way_is_refused_with_the_reason(planner, tmp_path):
    pose = Pose([0.5, 0.1, 0.1], down(0.0))
    joints = planner.joints_at(pose, REST)
    with pytest.raises(RlcoError, match="what stands on the table"):
        plan_way(planner, joints, pose, Pose([0.46, 0.0, 0.05], down(0.0)), lift(0.05, 0.12), CONTRACT.limits)
    file = tmp_path / "blocks.yaml"
    file.write_text("blocks:\n- {name: shelf, centre_m: [0.5, 0.1, 0.6], half_size_m: [0.2, 0.2, 0.05]}\n")
    shelf = OwnPlanner(CONTRACT, "", cell_blocks(CONTRACT, 0.0, 0.12, str(file)), 0.01, 2.0)
    with pytest.raises(StartError, match=r"straight up from here .* shelf"):
        plan_way(shelf, joints, pose, GOAL, lift(0.3, 0.12), CONTRACT.limits)
    file.write_text("blocks: [{name: shelf, centre_m: [0, 0, 0], half_size_m: [0, 1, 1]}]\n")
    with pytest.raises(ConfigError, match="half sizes"):
        cell_blocks(CONTRACT, 0.0, 0.12, str(file))


# -- the move


SETTINGS = MoveSettings(0.1, 0.5, 0.004, 0.04, 0.04, True)
WAY = [Pose([0.5, 0.1, 0.05], down(0.4)), Pose([0.5, 0.1, 0.15], down(0.4)), GOAL]


def perform(move, arm, opening=lambda t: 1.0, seconds=60.0, follow=True):
    """Step the move with an arm (wish -> measured pose) until it is over; returns the wishes."""
    now, wishes, measured, commanded = 0, [], WAY[0], WAY[0]
    while not move.over and now < seconds * SECOND:
        now += STEP_NS
        wishes.append(move.step(now, measured, opening(now / SECOND), commanded))
        if follow:
            commanded = wishes[-1].target
        measured = arm(commanded)
    return wishes


def test_the_gripper_opens_before_the_arm_moves_and_speeds_are_kept():
    move = StartMove(WAY, SETTINGS, 0)
    wishes = perform(move, lambda target: target, opening=lambda t: min(1.0, t))
    assert move.phase is Phase.DONE, move.reason
    assert {wish.opening for wish in wishes} == {1.0}
    still = [wish for wish in wishes if wish.target is WAY[0] or np.allclose(wish.target.position, WAY[0].position)]
    assert len(still) >= 0.9 * 20
    for a, b in pairwise(wishes):
        delta = delta_between(a.target, b.target)
        assert np.linalg.norm(delta[:3]) <= 0.1 / 20 + 1e-9 and np.linalg.norm(delta[3:]) <= 0.5 / 20 + 1e-6


def test_a_soft_arm_is_corrected_until_it_is_there():
    move = StartMove(WAY, SETTINGS, 0)
    perform(move, lambda target: compose_delta(target, [0.012, -0.006, -0.015, 0, 0, 0.06]))
    assert move.phase is Phase.DONE, move.reason


def test_what_cannot_be_corrected_or_followed_fails_and_says_so():
    move = StartMove(WAY, SETTINGS, 0)
    perform(move, lambda target: compose_delta(target, [0.1, 0, 0, 0, 0, 0]))
    assert move.phase is Phase.FAILED and "beside the start" in move.reason
    move = StartMove(WAY, SETTINGS, 0)
    wishes = perform(move, lambda target: target, follow=False)
    assert move.phase is Phase.FAILED and "does not follow" in move.reason
    assert np.linalg.norm(wishes[-1].target.position - WAY[0].position) < 0.04, "it waits for the gate"


def test_a_gripper_is_left_alone_when_it_is_to_stay():
    settings = MoveSettings(**{**vars(SETTINGS), "open_gripper": False})
    assert {wish.opening for wish in perform(StartMove(WAY, settings, 0), lambda target: target)} == {None}


def test_the_view_of_the_cell_names_what_stands_against_a_move():
    view, now = CellView(CONTRACT), SECOND
    assert "gate is not heard" in view.problem(now)
    status = {"state": "HOLD", "source": "NOBODY", "policy_enabled": "False"}
    view.on_gate(status, now)
    assert "joint states are not heard" in view.problem(now)
    view.on_joints(REST, 1.0, now)
    view.on_pose(GOAL, now)
    assert view.problem(now) == ""
    view.on_event(EpisodeEvent("start", episode="e1"), now)
    view.on_recorder("", now)       # its last word of before, overtaken
    assert "'e1' is being recorded" in view.problem(now)
    view.on_event(EpisodeEvent("success"), now)
    for change, reason in (({"state": "STOPPED"}, "re-arm"), ({"policy_enabled": "True"}, "policy"),
                           ({"source": "OPERATOR"}, "dead-man")):
        view.on_gate(status | change, now)
        assert reason in view.problem(now)
    assert view.interruption(now) and view.moved(compose_delta(GOAL, [0.02, 0, 0, 0, 0, 0]), now)


def test_the_start_is_that_of_a_task_or_given():
    assert StartSettings(task="close_drawer").goal.position[0] == pytest.approx(0.42)
    assert StartSettings(start_position_m=(0.5, 0.1, 0.3)).goal.position == pytest.approx([0.5, 0.1, 0.3])
    with pytest.raises(ConfigError, match="juggle"):
        _ = StartSettings(task="juggle").goal


# -- over ROS, on the stand-in


class Cell:
    """The stand-in with gate and start node, and an operator's hands."""

    def __init__(self, client):
        self.client = client
        names = CONTRACT.topics
        self.deadman = client.publisher(Bool, topics.TELEOP_DEADMAN, COMMAND_QOS)
        self.twist = client.publisher(TwistStamped, topics.TELEOP_TWIST, COMMAND_QOS)
        self.gripper = client.publisher(Float64, topics.TELEOP_GRIPPER, COMMAND_QOS)
        self.event = client.publisher(String, EVENT_TOPIC, EVENT_QOS)
        self.poses = client.subscribe(PoseStamped, names.ee_pose)
        self.joints = client.subscribe(JointState, names.joint_states)
        self.scenes = client.subscribe(String, topics.SCENE)
        self.gate = client.subscribe(DiagnosticArray, topics.GATE_STATUS, STATE_QOS)
        self.status = client.subscribe(DiagnosticArray, topics.START_STATUS, STATE_QOS)
        self.goal, self.closed = None, False
        client.node.create_timer(0.04, self._operate)

    @property
    def pose(self):
        return pose_from_msg(self.poses.last)

    def _operate(self):
        """Drive towards the goal while there is one, with the dead-man held."""
        if self.goal is None:
            return
        self.deadman.publish(Bool(data=True))
        self.gripper.publish(Float64(data=0.0 if self.closed else 1.0))
        delta = delta_between(self.pose, self.goal)
        speed = np.clip(2.0 * delta, [-0.2] * 3 + [-1.0] * 3, [0.2] * 3 + [1.0] * 3)
        message = TwistStamped()
        message.header.stamp = stamp_from_ns(self.client.node.get_clock().now().nanoseconds)
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, speed)
        self.twist.publish(message)

    def drive_to(self, *goals):
        for goal in goals:
            self.goal = goal
            self.client.wait_until(lambda: np.linalg.norm(self.pose.position - self.goal.position) < 0.015, 20, "the place")
        self.let_go()

    def let_go(self):
        self.goal = None
        self.deadman.publish(Bool(data=False))
        self.client.wait_until(lambda: self.gate_value("source") == "NOBODY", 5, "the released dead-man")

    def gate_value(self, key):
        return diagnostic_values(self.gate.last.status[0])[key]

    def go(self, until=None):
        """Call the service; meanwhile `until(cell)` may interfere, once it returns true."""
        for _ in range(3):
            self.status.clear()
            success, message = self._go(until)
            if success or not any(late in message for late in ("not heard", "took the arm away")):
                break       # else the machine was so busy that states or targets came late, which rightly ends it
        return success, message

    def _go(self, until):
        answer, done = [], threading.Event()

        def call():
            with RosClient("caller", self.domain) as caller:
                answer.append(caller.trigger(topics.START_GO, 60.0))
            done.set()

        thread = threading.Thread(target=call)
        thread.start()
        if until is not None:
            self.client.wait_until(lambda: done.is_set() or until(), 60, "the moment to interfere")
        self.client.wait_until(done.is_set, 60, "the answer")
        thread.join()
        return answer[0]

    def stage(self):
        return self.status.last.status[0].message if self.status.last else ""


@pytest.fixture(scope="module")
def cell(tmp_path_factory, module_ros_domain):
    with (Processes(tmp_path_factory.mktemp("start"), module_ros_domain) as processes,
          RosClient("operator", module_ros_domain, processes.check) as client):
        processes.start_node("rlco_sim_bridge.nodes.bridge_node", task="pick_place", domain="standin", seed=3)
        processes.start_node("rlco_teleop.nodes.gate_node")
        processes.start_node("rlco_teleop.nodes.start_node", task="pick_place")
        cell = Cell(client)
        cell.domain = module_ros_domain
        for node in ("/sim", "/gate", "/start"):
            client.wait_active(node, 60)
        client.wait_until(lambda: len(cell.poses) and len(cell.joints) and len(cell.gate) and len(cell.scenes), 20, "the cell")
        yield cell


def place(rng, scene):
    """A low place on the table, a hand's width away from everything on it."""
    while True:
        position = np.array([rng.uniform(0.38, 0.7), rng.uniform(-0.3, 0.3), rng.uniform(0.03, 0.08)])
        if all(np.linalg.norm(position[:2] - thing.position[:2]) > 0.16 for thing in scene.objects.values()):
            return Pose(position, down(rng.uniform(-0.6, 0.6)))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_from_a_random_place_the_arm_gets_back_and_touches_nothing(cell, seed):
    scene = scene_state_from_json(cell.scenes.last.data)
    low = place(np.random.default_rng(seed), scene)
    above = Pose([*low.position[:2], 0.25], low.quaternion)
    cell.closed = True
    cell.drive_to(Pose([*cell.pose.position[:2], 0.25], cell.pose.quaternion), above, low)
    cell.joints.clear()
    success, message = cell.go()
    assert success, message
    delta = delta_between(cell.pose, GOAL)
    assert np.linalg.norm(delta[:3]) < 0.005 and np.linalg.norm(delta[3:]) < 0.05
    arm = ArmModel(panda_urdf(), [TABLE, *container_boxes(scene)], margin_m=0.0)
    states = [joints_by_name(CONTRACT, joints.name, joints.position) for joints in cell.joints.messages]
    assert len(states) > 20
    touched = [pair for joints, _ in states if (pair := arm.touching(joints))]
    assert not touched
    assert states[-1][1] > 0.9, "the gripper was opened"
    after = scene_state_from_json(cell.scenes.last.data)
    for name, before in scene.objects.items():
        assert np.linalg.norm(after.objects[name].position - before.position) < 2e-3, name
    cell.client.wait_until(lambda: cell.gate_value("source") == "NOBODY" and cell.gate_value("state") == "HOLD", 3,
                           "the gate, which holds the arm at the start")


def test_a_planner_that_is_not_installed_is_named(tmp_path, ros_domain):
    with Processes(tmp_path, ros_domain) as processes, RosClient("reader", ros_domain) as client:
        processes.start_node("rlco_teleop.nodes.start_node", planner="moveit")
        client.wait_until(lambda: "needs moveit_py" in processes["start_node"].tail(), 60, "the reason in the log")
        assert client.trigger(topics.START_GO) == (False, "the start node is not active")


def far_away(cell):
    scene = scene_state_from_json(cell.scenes.last.data)
    low = place(np.random.default_rng(9), scene)
    cell.drive_to(Pose([*cell.pose.position[:2], 0.3], cell.pose.quaternion), Pose([*low.position[:2], 0.3], low.quaternion))


@pytest.mark.long
def test_an_operator_a_stop_a_cancel_and_an_episode_end_it(cell):
    """One after the other, on the way; the arm then stays where it was stopped, and the way can be begun anew."""
    far_away(cell)
    moving = "on the way"

    def operator():
        if cell.stage() == moving:
            cell.goal = cell.pose
            return True
        return False

    success, message = cell.go(operator)
    assert not success and "operator took over" in message
    cell.let_go()
    success, message = cell.go(lambda: cell.stage() == moving and cell.client.trigger(topics.GATE_STOP)[0])
    assert not success and "stopped" in message
    assert "re-arm" in cell.client.trigger(topics.START_GO)[1]
    cell.client.must_trigger(topics.GATE_REARM)
    cell.client.wait_until(lambda: cell.gate_value("state") == "IDLE", 5, "the re-armed gate")
    cell.client.spin_for(0.3)
    success, message = cell.go(lambda: cell.stage() == moving and cell.client.trigger(topics.START_CANCEL)[0])
    assert not success and message == "cancelled"
    cell.client.spin_for(0.5)
    held = cell.pose
    cell.client.spin_for(0.5)
    assert np.linalg.norm(cell.pose.position - held.position) < 2e-3

    def episode_begins():
        if cell.stage() == moving:
            cell.event.publish(String(data=EpisodeEvent("start", episode="demo").to_json()))
            return True
        return False

    success, message = cell.go(episode_begins)
    assert not success and "'demo' began" in message
    success, message = cell.client.trigger(topics.START_GO)
    assert not success and "being recorded" in message
    cell.event.publish(String(data=EpisodeEvent("discard", episode="demo").to_json()))
    cell.client.spin_for(0.3)
    success, message = cell.go()
    assert success, message


def test_neither_policy_nor_planned_move_pushes_the_other_aside(cell):
    assert cell.client.set_bool(topics.GATE_ENABLE_POLICY, True)[0]
    cell.client.wait_until(lambda: cell.gate_value("policy_enabled") == "True", 5, "the policy's turn")
    cell.client.spin_for(0.3)
    success, message = cell.client.trigger(topics.START_GO)
    assert not success and "policy" in message
    assert "policy" in cell.client.set_bool(topics.GATE_ALLOW_PLANNED, True)[1]
    assert cell.client.set_bool(topics.GATE_ENABLE_POLICY, False)[0]
    assert cell.client.trigger(topics.START_CANCEL) == (False, "nothing to cancel")
    assert json.loads(cell.scenes.last.data)["task"] == "pick_place"
