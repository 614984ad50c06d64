"""The scripted operator drives through the teleop topics as a human would, and means exactly what its expert means."""

import json
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from std_msgs.msg import Bool, String

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent
from rlco_common.errors import ConfigError, DataError
from rlco_common.messages import diagnostic_values, pose_from_msg
from rlco_common.pose import Pose
from rlco_common.processes import Processes
from rlco_common.ros import EVENT_QOS, STATE_QOS, pose_to_msg, stamp_from_ns
from rlco_common.ros_client import RosClient
from rlco_sim_bridge.experts import make_expert
from rlco_sim_bridge.scene_state import SceneState, scene_state_from_json
from rlco_teleop.devices import make_device
from rlco_teleop.devices.scripted import ScriptedSettings

CONTRACT = load_contract()
PERIOD_S = CONTRACT.control_period_s
START = Pose([0.46, 0.0, 0.2], [1.0, 0.0, 0.0, 0.0])
GOAL_X = 0.62
NOISE = 0.1


def scene_text(tool, cube_x, tick):
    """A table with one cube; the episode is a success when the cube has reached its goal."""
    scene = SceneState(
        stamp_ns=10**9 + tick * CONTRACT.control_period_ns, task="push_cube", named="red",
        goal_m=np.array([GOAL_X, 0.0, 0.025]), objects={"red": Pose([cube_x, 0.0, 0.025], [0, 0, 0, 1])}, tool=tool,
        tool_velocity_m_s=np.zeros(3), gripper=0.0, joint_positions=np.zeros(7))
    return json.dumps(json.loads(scene.to_json()) | {"success": bool(cube_x >= GOAL_X), "failure": False})


def push(tool, cube_x):
    low = tool.position[2] < 0.05 and abs(tool.position[1]) < 0.02
    return max(cube_x, tool.position[0] + 0.03) if low else cube_x


def test_held_twist_times_the_period_is_the_experts_action():
    device = make_device("scripted", CONTRACT, ScriptedSettings(noise=NOISE), 4 * CONTRACT.control_rate_hz)
    device.on_scene(scene_text(START, 0.55, 0))
    assert not device.operate().held, "it does not begin by itself"
    device.begin(seed=5)
    operations = [device.operate() for _ in range(4)]
    assert all((operation.twist == operations[0].twist).all() and operation.held for operation in operations)
    action = np.append(operations[0].twist * PERIOD_S, operations[0].gripper)
    assert np.allclose(action, CONTRACT.action.clip(action), atol=1e-12)
    quiet = make_expert("push_cube", CONTRACT, np.random.default_rng(0)).act(
        scene_state_from_json(scene_text(START, 0.55, 0)))
    assert 0 < np.abs(action - quiet).max() < 4 * NOISE * 0.05, "the expert's action, with a human's unsteadiness"


def test_it_is_deterministic_in_the_seed_and_lets_go_at_the_end():
    def twists(seed):
        device = make_device("scripted", CONTRACT, ScriptedSettings(noise=NOISE))
        device.begin(seed)
        result = []
        for tick in range(3):
            device.on_scene(scene_text(START, 0.55, tick))
            result.append(device.operate().twist)
        device.on_scene(scene_text(START, GOAL_X, 3))
        assert not device.operate().held
        device.on_scene(scene_text(START, 0.55, 4))
        assert not device.operate().held, "a new episode needs a new start"
        return np.array(result)

    assert (twists(1) == twists(1)).all() and (twists(1) != twists(2)).any()


def test_unknown_devices_and_scenes_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"no operator device 'mouse'; there are .*scripted"):
        make_device("mouse", CONTRACT)
    with pytest.raises(DataError, match="scene"):
        make_device("scripted", CONTRACT).on_scene("{}")


def test_in_lock_step_the_gates_targets_are_the_experts_and_the_dead_man_falls_at_success(tmp_path, ros_domain):
    with Processes(tmp_path, ros_domain) as processes, RosClient("table", ros_domain, processes.check) as client:
        processes.start_node("rlco_teleop.nodes.gate_node", lockstep=True, use_sim_time=True)
        processes.start_node("rlco_teleop.nodes.teleop_node", lockstep=True, use_sim_time=True, noise=NOISE)
        scenes = client.publisher(String, topics.SCENE, STATE_QOS)
        ee_pose = client.publisher(PoseStamped, CONTRACT.topics.ee_pose, STATE_QOS)
        event = client.publisher(String, EVENT_TOPIC, EVENT_QOS)
        targets = client.subscribe(PoseStamped, CONTRACT.topics.target_pose, STATE_QOS)
        deadman = client.subscribe(Bool, topics.TELEOP_DEADMAN, STATE_QOS)
        twists = client.subscribe(TwistStamped, topics.TELEOP_TWIST, STATE_QOS)
        client.wait_active("/teleop")
        diagnosed = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        client.wait_active("/gate")
        client.wait_until(lambda: diagnosed.find(lambda m: diagnostic_values(m.status[0]).get("readers") == "2"), 10,
                          "gate and table as readers of the twist")
        client.wait_until(lambda: scenes.get_subscription_count() and ee_pose.get_subscription_count()
                          and event.get_subscription_count() == 2, 10, "gate and operator")
        twin = make_device("scripted", CONTRACT, ScriptedSettings(noise=NOISE))
        twin.begin(seed=11)
        event.publish(String(data=EpisodeEvent("reset", task="push_cube", seed=11).to_json()))
        tool, cube_x, tick = START, 0.55, 0
        while cube_x < GOAL_X:
            text = scene_text(tool, cube_x, tick)
            stamp_ns = json.loads(text)["stamp_ns"]
            ee_pose.publish(pose_to_msg(tool, CONTRACT.robot.base_frame, stamp_ns))
            scenes.publish(String(data=text))
            if tick == 0:
                client.trigger_when_ready(topics.OPERATOR_START)        # after the scene it is to act on
            client.wait_until(lambda tick=tick: len(targets) == tick + 1, 5, "the tick's target")
            twin.on_scene(text)
            operation = twin.operate()
            wanted = CONTRACT.compose_target(tool, np.append(operation.twist * PERIOD_S, operation.gripper))
            tool = pose_from_msg(targets.last)
            assert targets.last.header.stamp == stamp_from_ns(stamp_ns)
            assert np.abs(tool.as_array() - wanted.as_array()).max() < 1e-12
            cube_x, tick = push(tool, cube_x), tick + 1
            assert tick < 30, "the expert does not get there"
        ee_pose.publish(pose_to_msg(tool, CONTRACT.robot.base_frame, stamp_ns + CONTRACT.control_period_ns))
        scenes.publish(String(data=scene_text(tool, cube_x, tick)))
        client.wait_until(lambda: not deadman.last.data, 5, "the released dead-man")
        assert len(targets) == tick
        assert [m.header.stamp for m in twists.messages] == [m.header.stamp for m in targets.messages]


def test_in_lock_step_it_does_not_start_before_anybody_reads_its_twist(tmp_path, ros_domain):
    """The tick's only twist would be lost, and the simulation wait for ever."""
    with Processes(tmp_path, ros_domain) as processes, RosClient("table", ros_domain, processes.check) as client:
        processes.start_node("rlco_teleop.nodes.teleop_node", lockstep=True, use_sim_time=True)
        event = client.publisher(String, EVENT_TOPIC, EVENT_QOS)
        client.wait_active("/teleop")
        event.publish(String(data=EpisodeEvent("reset", task="push_cube", seed=11).to_json()))
        client.wait_until(lambda: "nobody reads /teleop/twist" in client.trigger(topics.OPERATOR_START)[1], 10, "the refusal")
        client.subscribe(TwistStamped, topics.TELEOP_TWIST, STATE_QOS)
        assert client.trigger_when_ready(topics.OPERATOR_START) == "operating, seed 11"


def test_in_real_time_the_twist_is_held_at_20_hz_and_stop_releases_the_dead_man(tmp_path, ros_domain):
    with Processes(tmp_path, ros_domain) as processes, RosClient("table", ros_domain, processes.check) as client:
        processes.start_node("rlco_teleop.nodes.teleop_node")
        scenes = client.publisher(String, topics.SCENE, STATE_QOS)
        deadman = client.subscribe(Bool, topics.TELEOP_DEADMAN, STATE_QOS)
        twists = client.subscribe(TwistStamped, topics.TELEOP_TWIST, STATE_QOS)
        client.wait_active("/teleop")
        client.wait_until(scenes.get_subscription_count, 10, "the operator")
        scenes.publish(String(data=scene_text(START, 0.55, 0)))
        client.must_trigger(topics.OPERATOR_START)
        client.wait_until(lambda: len(twists) >= 21, 10, "a second of twists")
        rate_hz = 20 / ((twists.arrivals_ns[20] - twists.arrivals_ns[0]) / 1e9)
        assert 15 < rate_hz < 25
        stamp_s = twists.last.header.stamp.sec + twists.last.header.stamp.nanosec / 1e9
        assert abs(time.time() - stamp_s) < 0.5
        client.must_trigger(topics.OPERATOR_STOP)
        client.wait_until(lambda: not deadman.last.data, 3, "the released dead-man")
        count = len(twists)
        client.spin_for(0.3)
        assert len(twists) <= count + 1
