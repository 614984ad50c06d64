"""The bridge over real topics: lock step is exact and repeatable, real time keeps its rate or says so."""

import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray, String

from rlco_common import seeds, topics
from rlco_common.contract import load_contract
from rlco_common.episode import EVENT_TOPIC, event_from_json
from rlco_common.errors import RlcoError
from rlco_common.messages import image_from_msg, pose_from_msg
from rlco_common.pose import Pose, compose_delta, rotation_matrix
from rlco_common.processes import Processes
from rlco_common.ros import (
    CAMERA_QOS,
    COMMAND_QOS,
    EVENT_QOS,
    STATE_QOS,
    pose_to_msg,
    stamp_to_ns,
)
from rlco_common.ros_client import RosClient
from rlco_common.strict import to_mapping
from rlco_sim_bridge.domain import load_domain
from rlco_sim_bridge.pacing import LockstepClock, RealTimeMeter
from rlco_sim_bridge.scene_state import scene_state_from_json
from rlco_sim_bridge.twin import Twin

CONTRACT = load_contract()
CAMERA = CONTRACT.cameras["front_camera"]
PERIOD_NS = CONTRACT.control_period_ns
SEED = seeds.SELECTION[200]
NODE = "rlco_sim_bridge.nodes.bridge_node"


class Robot:
    """What a user's process sees of the robot: topics in, topics out."""

    def __init__(self, client):
        self.client = client
        names = CONTRACT.topics
        self.images = client.subscribe(Image, CAMERA.topic, CAMERA_QOS)
        self.infos = client.subscribe(CameraInfo, CAMERA.info_topic, CAMERA_QOS)
        self.joints = client.subscribe(JointState, names.joint_states)
        self.poses = client.subscribe(PoseStamped, names.ee_pose)
        self.scenes = client.subscribe(String, topics.SCENE)
        self.clocks = client.subscribe(Clock, "/clock")
        self.events = client.subscribe(String, EVENT_TOPIC, EVENT_QOS)
        self.diagnostics = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS)
        self.gripper = client.publisher(Float64MultiArray, names.gripper_command, COMMAND_QOS, matched_s=40)
        self.target = client.publisher(PoseStamped, names.target_pose, COMMAND_QOS, matched_s=40)
        client.wait_active("/sim", 40)

    def reset(self, **parameters):
        self.client.set_parameters("/sim", **parameters)
        count = len(self.events)
        self.client.must_trigger(topics.SIM_RESET)
        self.client.wait_until(lambda: len(self.events) > count, 10, "the reset event")
        return event_from_json(self.events.last.data)

    def at(self, inbox, stamp_ns):
        return inbox.find(lambda message: stamp_to_ns(message.header.stamp) == stamp_ns)

    def wait_tick(self, stamp_ns):
        """The complete observation with this stamp: (image, joint positions, pose, scene)."""
        def complete():
            found = [self.at(inbox, stamp_ns) for inbox in (self.images, self.infos, self.joints, self.poses)]
            scene = self.scenes.find(lambda message: json.loads(message.data)["stamp_ns"] == stamp_ns)
            return (*found, scene) if all(found) and scene else None

        image, _, joints, pose, scene = self.client.wait_until(complete, 10, f"the observation of {stamp_ns}")
        return image_from_msg(CAMERA, image), np.array(joints.position), pose_from_msg(pose).as_array(), scene.data

    def command(self, target, gripper, stamp_ns):
        self.gripper.publish(Float64MultiArray(data=[gripper]))
        self.target.publish(pose_to_msg(target, CONTRACT.robot.base_frame, stamp_ns))


@pytest.fixture(scope="module")
def lockstep(tmp_path_factory, module_ros_domain):
    yield from start_robot(tmp_path_factory, module_ros_domain, lockstep=True, domain="standin")


def start_robot(tmp_path_factory, domain_id, **parameters):
    with (Processes(tmp_path_factory.mktemp("bridge"), domain_id) as processes,
          RosClient("test_bridge", domain_id, processes.check) as client):
        processes.start_node(NODE, **parameters)
        yield Robot(client)


def targets(start: Pose, count: int):
    """A command sequence that goes down among the cubes."""
    rng = np.random.default_rng(3)
    pose, sequence = start, []
    for tick in range(count):
        delta = np.array([0.03, 0.0, -0.03, 0, 0, 0]) + rng.uniform(-0.01, 0.01, 6)
        pose = compose_delta(pose, delta)
        sequence.append((pose, 0.0 if tick > 1 else 1.0))
    return sequence


def drive(robot, count=6, **parameters):
    """One lock-step episode: [(image, joints, pose, scene without stamp)] of every tick."""
    robot.reset(**parameters)
    stamp_ns = robot.client.wait_until(lambda: robot.clocks.last and clock_ns(robot.clocks.last), 10, "/clock")
    ticks = [robot.wait_tick(stamp_ns)]
    for target, gripper in targets(Pose(ticks[0][2][:3], ticks[0][2][3:]), count):
        robot.command(target, gripper, stamp_ns)
        stamp_ns += PERIOD_NS
        ticks.append(robot.wait_tick(stamp_ns))
    return [(*tick[:3], without_stamp(tick[3])) for tick in ticks]


def clock_ns(message):
    return stamp_to_ns(message.clock)


def without_stamp(scene):
    data = json.loads(scene)
    del data["stamp_ns"]
    return data


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a[:3], b[:3], strict=True)) and a[3] == b[3]


def test_lock_step_equals_the_twin_to_the_last_bit(lockstep):
    ticks = drive(lockstep, task="push_cube", domain="standin", seed=SEED)
    twin = Twin(CONTRACT, "push_cube", "standin")
    observations = [twin.reset(SEED)]
    for target, gripper in targets(observations[0].ee_pose, len(ticks) - 1):
        twin.apply_target(target, gripper)
        observations.append(twin.observe())
    for observation, (image, joints, pose, _) in zip(observations, ticks, strict=True):
        np.testing.assert_array_equal(image, observation.images["front_camera"])
        np.testing.assert_array_equal(pose, observation.ee_pose.as_array())
        np.testing.assert_array_equal(joints, [*observation.joint_positions,
                                               CONTRACT.robot.gripper_joint_position(observation.gripper)])
    assert not np.array_equal(ticks[0][0], ticks[-1][0])
    scene = without_stamp(json.dumps(json.loads(twin.scene_state().to_json())))
    assert scene.items() <= ticks[-1][3].items()
    twin.close()


def test_a_lock_step_episode_repeats_to_the_last_bit(lockstep):
    first = drive(lockstep, domain="standin", seed=SEED + 1)
    other = drive(lockstep, domain="twin", seed=SEED + 2)
    again = drive(lockstep, domain="standin", seed=SEED + 1)
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert not equal(first[0], other[0])


def test_simulation_stands_still_without_the_command_of_its_tick(lockstep):
    event = lockstep.reset(domain="twin", seed=SEED)
    stamp_ns = clock_ns(lockstep.clocks.last)
    pose = Pose(*np.split(lockstep.wait_tick(stamp_ns)[2], [3]))
    lockstep.command(pose, 1.0, stamp_ns - PERIOD_NS)
    lockstep.command(pose, 1.0, stamp_ns + PERIOD_NS)
    lockstep.target.publish(pose_to_msg(pose, "somewhere_else", stamp_ns))
    lockstep.command(Pose([np.nan, 0, 0], [0, 0, 0, 1]), 1.0, stamp_ns)
    lockstep.client.spin_for(0.5)
    assert clock_ns(lockstep.clocks.last) == stamp_ns
    lockstep.command(pose, 1.0, stamp_ns)
    lockstep.wait_tick(stamp_ns + PERIOD_NS)
    assert (event.kind, event.task, event.domain, event.seed) == ("reset", "push_cube", "twin", SEED)


def test_time_never_goes_back_and_all_messages_of_a_tick_share_its_stamp(lockstep):
    lockstep.clocks.clear()
    drive(lockstep, count=2, domain="twin", seed=SEED)
    drive(lockstep, count=2, domain="twin", seed=SEED + 1)
    times = [clock_ns(message) for message in lockstep.clocks.messages]
    assert times == sorted(times)
    assert len(set(times)) == 6
    for stamp in set(times):
        assert all(lockstep.at(inbox, stamp) for inbox in (lockstep.images, lockstep.infos, lockstep.joints))


def test_an_episode_ends_and_says_how(lockstep):
    """Also that simulation stands still after the end, so that every recording has the same length."""
    lockstep.reset(domain="twin", seed=SEED)
    stamp_ns = clock_ns(lockstep.clocks.last)
    pose = Pose(*np.split(lockstep.wait_tick(stamp_ns)[2], [3]))
    max_steps = CONTRACT.task("push_cube").max_steps
    for _ in range(max_steps):
        lockstep.command(pose, 1.0, stamp_ns)
        stamp_ns += PERIOD_NS
        scene = json.loads(lockstep.wait_tick(stamp_ns)[3])
    assert (scene["done"], scene["success"], scene["failure"]) == (True, False, False)
    success, message = lockstep.client.trigger(topics.SIM_SUCCESS)
    status = json.loads(message)
    assert not success
    assert (status["steps"], status["done"], status["failure"]) == (max_steps, True, False)
    lockstep.command(pose, 1.0, stamp_ns)
    lockstep.client.spin_for(0.3)
    assert clock_ns(lockstep.clocks.last) == stamp_ns


def test_a_late_subscriber_is_shown_the_present_tick(lockstep):
    lockstep.reset(domain="twin", seed=SEED)
    late = lockstep.client.subscribe(PoseStamped, CONTRACT.topics.ee_pose, STATE_QOS)
    lockstep.client.wait_until(lambda: late.last, 5, "the tool pose, for a node that starts after the reset")
    assert stamp_to_ns(late.last.header.stamp) == clock_ns(lockstep.clocks.last)


def test_wrong_parameters_are_refused_with_the_reason(lockstep):
    with pytest.raises(RlcoError, match=r"no domain named 'moon'.*standin"):
        lockstep.reset(domain="moon")
    with pytest.raises(RlcoError, match=r"no twin for task 'juggle'"):
        lockstep.reset(domain="twin", task="juggle")
    with pytest.raises(RlcoError, match="seed"):
        lockstep.reset(task="push_cube", seed=-1)
    lockstep.reset(task="push_cube", domain="twin", seed=SEED)


@pytest.mark.parametrize("domain", ["twin", "standin"])
def test_camera_info_reprojects_the_cubes(lockstep, domain, tmp_path):
    """The outline of each cube in the picture is where intrinsics and camera pose put its corners, within 2 px.

    In the twin's plain colours, by which cubes can be found; the cameras of both domains. Also: a domain from a file.
    """
    path = tmp_path / "plain.yaml"
    plain = replace(load_domain("twin"), cameras=load_domain(domain).cameras)
    path.write_text(yaml.safe_dump(to_mapping(plain)))
    lockstep.reset(domain=str(path), seed=SEED)
    image, _, _, text = lockstep.wait_tick(clock_ns(lockstep.clocks.last))
    info = lockstep.infos.last
    assert (info.width, info.height, info.header.frame_id) == (CAMERA.width, CAMERA.height, CAMERA.frame)
    intrinsics = np.array(info.k).reshape(3, 3)
    view = load_domain(domain).cameras["front_camera"]
    forward, left, up = view.rotation().T
    optical = np.stack([-left, -up, forward])
    scene = scene_state_from_json(text)
    for color, pose in scene.objects.items():
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
        corners = pose.position[:, None] + rotation_matrix(pose.quaternion) @ (0.025 * signs)
        pixels = intrinsics @ optical @ (corners - np.array(view.eye_m)[:, None])
        u, v = pixels[:2] / pixels[2]
        mask = looks_like(image, plain.look.objects[color])
        rows, columns = np.nonzero(mask)
        near = (abs(columns - u.mean()) < 14) & (abs(rows - v.mean()) < 14)
        rows, columns = rows[near], columns[near]
        found = [columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]
        np.testing.assert_allclose(found, [u.min(), u.max(), v.min(), v.max()], atol=2.0)


def looks_like(image, color):
    """Pixels whose hue is that of `color`, whatever the light."""
    chroma = image / np.maximum(image.sum(axis=-1, keepdims=True), 1)
    wanted = np.array(color) ** (1 / 2.2)
    return np.linalg.norm(chroma - wanted / wanted.sum(), axis=-1) < 0.09


@pytest.fixture
def real_time(tmp_path_factory, ros_domain):
    yield from start_robot(tmp_path_factory, ros_domain, state_rate_hz=20.0, camera_rate_hz=5.0, seed=SEED)


def test_real_time_keeps_its_rate_or_says_so(real_time):
    real_time.client.wait_until(lambda: real_time.poses.last, 20, "the first tool pose")
    start = pose_from_msg(real_time.poses.last)
    for inbox in (real_time.diagnostics, real_time.poses, real_time.images):
        inbox.clear()
    real_time.client.wait_until(lambda: len(real_time.poses) >= 60, 30, "60 tool poses")
    rate_hz = 59e9 / (real_time.poses.arrivals_ns[-1] - real_time.poses.arrivals_ns[0])
    status = next(s for message in reversed(real_time.diagnostics.messages) for s in message.status if s.name == "sim")
    slow = status.level == DiagnosticStatus.WARN
    assert rate_hz == pytest.approx(20.0, rel=0.1) or slow, f"{rate_hz:.1f} Hz, yet it says '{status.message}'"
    assert len(real_time.images) == pytest.approx(15, abs=3)
    gaps = np.diff([stamp_to_ns(message.header.stamp) for message in real_time.poses.messages]) / 1e9
    assert slow or statistics.median(gaps) == pytest.approx(0.05, rel=0.1)
    assert not len(real_time.clocks)
    goal = compose_delta(start, np.array([0.0, 0.06, 0.0, 0, 0, 0]))
    real_time.command(compose_delta(start, np.array([0.0, -0.1, 0.0, 0, 0, 0])), 0.0, 0)    # stamp before the reset
    count = len(real_time.poses)
    real_time.client.wait_until(lambda: len(real_time.poses) > count + 8, 10, "8 tool poses")
    assert abs(pose_from_msg(real_time.poses.last).position[1] - start.position[1]) < 0.002
    real_time.command(goal, 0.0, real_time.client.node.get_clock().now().nanoseconds)
    real_time.client.wait_until(
        lambda: abs(pose_from_msg(real_time.poses.last).position[1] - goal.position[1]) < 0.004, 10,
        "the arm at its target")


def test_the_real_time_meter_measures_the_recent_past():
    now = [0.0]
    meter = RealTimeMeter(window_s=1.0, clock=lambda: now[0])
    for _ in range(40):
        now[0] += 0.05
        meter.add(0.05)
    assert meter.factor == pytest.approx(1.0)
    for _ in range(40):
        now[0] += 0.1
        meter.add(0.05)
    assert meter.factor == pytest.approx(0.5)


def test_lock_step_clock_is_monotonic_across_episodes():
    clock = LockstepClock(PERIOD_NS)
    times = [clock.new_episode(), clock.tick(), clock.tick(), clock.new_episode(), clock.tick()]
    assert np.all(np.diff(times) > 0)
    assert times[1] - times[0] == PERIOD_NS
