"""The bridge over real topics: lock step is exact and repeatable, real time keeps its rate or says so."""

import json
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, String

from rlco_common import seeds, topics
from rlco_common.contract import load_contract
from rlco_common.episode import EVENT_TOPIC, event_from_json
from rlco_common.errors import RlcoError
from rlco_common.messages import diagnostic_values, image_from_msg, pose_from_msg
from rlco_common.pose import Pose, compose_delta, quaternion_from_rotation_vector, rotation_matrix
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
from rlco_sim_bridge.frames import optical_pose, quaternion_from_matrix
from rlco_sim_bridge.pacing import LockstepClock, RealTimeMeter, RealTimePacer
from rlco_sim_bridge.ros import TF_STATIC_QOS, transform_msg
from rlco_sim_bridge.scene_state import scene_state_from_json
from rlco_sim_bridge.twin import Twin
from rlco_sim_bridge.variation import variation_from_text

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
        self.client.set_parameters("/sim", **({"task": "push_cube", "variation": ""} | parameters))
        return self.restart()

    def restart(self):
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
            clock = self.clocks.find(lambda message: clock_ns(message) == stamp_ns)
            return (*found, scene) if all(found) and scene and clock else None

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
    stamp_ns = robot.reset(**parameters).stamp_ns
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


@pytest.mark.parametrize(("task", "domain", "variation"), [
    ("push_cube", "standin", ""), ("open_drawer", "twin", ""), ("pick_place", "standin", "objects=unseen,camera=0.5,light=0.5"),
])
def test_lock_step_equals_the_twin_to_the_last_bit(lockstep, task, domain, variation):
    ticks = drive(lockstep, task=task, domain=domain, variation=variation, seed=SEED)
    twin = Twin(CONTRACT, task, domain, variation=variation_from_text(variation))
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
    first = drive(lockstep, task="push_cube", domain="standin", variation="", seed=SEED + 1)
    other = drive(lockstep, domain="twin", seed=SEED + 2)
    again = drive(lockstep, domain="standin", seed=SEED + 1)
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert not equal(first[0], other[0])


def test_simulation_stands_still_without_the_command_of_its_tick(lockstep):
    event = lockstep.reset(domain="twin", seed=SEED)
    stamp_ns = event.stamp_ns
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
    stamp_ns = lockstep.reset(domain="twin", seed=SEED).stamp_ns
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
    stamp_ns = lockstep.reset(domain="twin", seed=SEED).stamp_ns
    lockstep.wait_tick(stamp_ns)
    late = lockstep.client.subscribe(PoseStamped, CONTRACT.topics.ee_pose, STATE_QOS)
    lockstep.client.wait_until(lambda: late.last, 5, "the tool pose, for a node that starts after the reset")
    assert stamp_to_ns(late.last.header.stamp) == stamp_ns


def test_wrong_parameters_are_refused_when_they_are_set(lockstep):
    lockstep.reset(task="push_cube", domain="twin", variation="", seed=SEED)
    for wrong, reason in (
        ({"domain": "moon"}, r"no domain named 'moon'.*standin"),
        ({"task": "juggle"}, r"no twin for task 'juggle'.*open_drawer"),
        ({"seed": -1}, "seed"),
        ({"variation": "objects=imaginary"}, "objects.*seen"),
        ({"variation": "camera=7"}, r"camera.*\[0, 1\]"),
        ({"task": "pick_place", "domain": "moon"}, "moon"),
    ):
        with pytest.raises(RlcoError, match=reason):
            lockstep.client.set_parameters("/sim", **wrong)
    event = lockstep.restart()        # nothing of what was refused acts
    assert (event.task, event.domain, event.seed) == ("push_cube", "twin", SEED)


def test_a_choice_that_only_the_task_can_refuse_fails_at_the_reset_and_leaves_the_episode(lockstep):
    before = lockstep.reset(task="push_cube", domain="twin", variation="", seed=SEED).stamp_ns
    with pytest.raises(RlcoError, match="objects=unseen is for pick_place"):
        lockstep.reset(variation="objects=unseen")
    lockstep.client.set_parameters("/sim", variation="")
    lockstep.command(Pose([0.5, 0.0, 0.2], [1.0, 0.0, 0.0, 0.0]), 1.0, before)
    lockstep.wait_tick(before + PERIOD_NS)


def test_a_parameter_waits_for_the_next_reset(lockstep):
    stamp_ns = lockstep.reset(task="push_cube", domain="twin", variation="", seed=SEED).stamp_ns
    lockstep.client.set_parameters("/sim", task="close_drawer")
    pose = Pose(*np.split(lockstep.wait_tick(stamp_ns)[2], [3]))
    lockstep.command(pose, 1.0, stamp_ns)
    assert json.loads(lockstep.wait_tick(stamp_ns + PERIOD_NS)[3])["task"] == "push_cube"
    assert lockstep.restart().task == "close_drawer"


@pytest.mark.parametrize("task", list(CONTRACT.tasks))
def test_every_task_is_served_in_both_domains(lockstep, task):
    shown = {}
    for domain in ("twin", "standin"):
        event = lockstep.reset(task=task, domain=domain, seed=SEED)
        shown[domain] = lockstep.wait_tick(event.stamp_ns)
        assert (event.task, event.domain) == (task, domain)
        assert event.instruction
    np.testing.assert_allclose(shown["twin"][2], shown["standin"][2], atol=1e-6)     # one seed, one start
    assert not np.array_equal(shown["twin"][0], shown["standin"][0])


def test_jpeg_shows_the_same_picture_to_those_who_subscribe(lockstep):
    """Also that somebody who subscribes in mid-episode is shown the present tick, and that quality is a parameter."""
    stamp_ns = lockstep.reset(task="push_cube", domain="twin", seed=SEED).stamp_ns
    raw = lockstep.wait_tick(stamp_ns)[0]
    jpegs = lockstep.client.subscribe(CompressedImage, f"{CAMERA.topic}/compressed", CAMERA_QOS)
    fine = lockstep.client.wait_until(lambda: lockstep.at(jpegs, stamp_ns), 5, "a JPEG of the present tick")
    assert (fine.format, fine.header.frame_id) == ("rgb8; jpeg compressed bgr8", CAMERA.frame)
    decoded = simplejpeg.decode_jpeg(bytes(fine.data), colorspace="RGB").astype(int)
    assert decoded.shape == raw.shape
    assert np.abs(decoded - raw).mean() < 3.0
    assert np.abs(decoded[..., ::-1] - raw).mean() > 10.0, "red and blue are swapped"
    lockstep.client.set_parameters("/sim", jpeg_quality=20)
    lockstep.restart()
    coarse = lockstep.client.wait_until(lambda: jpegs.find(
        lambda message: stamp_to_ns(message.header.stamp) > stamp_ns), 5, "a JPEG of the next episode")
    assert len(coarse.data) < 0.6 * len(fine.data)


def test_frames_are_on_tf_or_diagnostics_say_why_not(lockstep):
    """With tf2_msgs: a point goes through /tf_static and camera_info to where the camera sees it."""
    lockstep.reset(task="open_drawer", domain="twin", seed=SEED)
    status = lockstep.client.wait_until(lambda: lockstep.diagnostics.last, 5, "diagnostics").status[0]
    told = diagnostic_values(status)["tf"]
    try:
        from tf2_msgs.msg import TFMessage
    except ImportError:
        assert told.startswith("no TF") and "tf2_msgs" in told
        return
    assert told == "all"
    static = lockstep.client.subscribe(TFMessage, "/tf_static", TF_STATIC_QOS)
    frame = lockstep.client.wait_until(lambda: static.last, 5, "/tf_static").transforms[0]
    assert (frame.header.frame_id, frame.child_frame_id) == (CONTRACT.robot.base_frame, CAMERA.frame)
    view = load_domain("twin").camera("front_camera", "open_drawer")
    np.testing.assert_allclose(vars_of(frame), optical_pose(view).as_array(), atol=1e-12)


def vars_of(transform):
    translation, rotation = transform.transform.translation, transform.transform.rotation
    return [translation.x, translation.y, translation.z, rotation.x, rotation.y, rotation.z, rotation.w]


@pytest.mark.parametrize(("domain", "task"), [("twin", "push_cube"), ("standin", "close_drawer")])
def test_a_point_goes_through_transform_and_intrinsics_to_its_pixel(domain, task):
    view = load_domain(domain).camera("front_camera", task)
    message = transform_msg(optical_pose(view), "base", CAMERA.frame, 0)
    x, y, z, *quaternion = vars_of(message)
    rng = np.random.default_rng(0)
    for point in np.array(view.target_m) + rng.uniform(-0.1, 0.1, (20, 3)):
        seen = rotation_matrix(np.array(quaternion)).T @ (point - [x, y, z])
        assert seen[2] > 0.1, "z of an optical frame points forward"
        u, v, w = view.intrinsics(CAMERA.width, CAMERA.height) @ seen
        np.testing.assert_allclose([u / w, v / w], view.project(point, CAMERA.width, CAMERA.height), atol=1e-9)


def test_quaternions_of_matrices_are_exact_also_for_half_turns():
    rng = np.random.default_rng(1)
    rotations = [*rng.uniform(-3, 3, (50, 3)), *(np.pi * np.eye(3)), [np.pi - 1e-9, 0, 0], [0, 0, 0]]
    for rotation in rotations:
        matrix = rotation_matrix(quaternion_from_rotation_vector(rotation))
        quaternion = quaternion_from_matrix(matrix)
        assert np.linalg.norm(quaternion) == pytest.approx(1.0)
        np.testing.assert_allclose(rotation_matrix(quaternion), matrix, atol=1e-12)


def test_paused_and_stepped_lock_step_is_the_same_episode(lockstep):
    choice = {"task": "push_cube", "domain": "standin", "variation": "", "seed": SEED}
    straight = drive(lockstep, count=3, **choice)
    stamp_ns = lockstep.restart().stamp_ns
    ticks = [lockstep.wait_tick(stamp_ns)]
    (first, second, third) = targets(Pose(ticks[0][2][:3], ticks[0][2][3:]), 3)
    assert lockstep.client.set_bool("/sim/pause", True)[0]
    lockstep.command(*first, stamp_ns)
    lockstep.client.spin_for(0.3)
    assert clock_ns(lockstep.clocks.last) == stamp_ns
    lockstep.client.must_trigger("/sim/step")               # with the command that was kept
    ticks.append(lockstep.wait_tick(stamp_ns + PERIOD_NS))
    lockstep.command(*second, stamp_ns + PERIOD_NS)
    lockstep.client.spin_for(0.3)
    assert clock_ns(lockstep.clocks.last) == stamp_ns + PERIOD_NS
    assert lockstep.client.set_bool("/sim/pause", False)[0]     # goes on with the command that came meanwhile
    ticks.append(lockstep.wait_tick(stamp_ns + 2 * PERIOD_NS))
    lockstep.command(*third, stamp_ns + 2 * PERIOD_NS)
    ticks.append(lockstep.wait_tick(stamp_ns + 3 * PERIOD_NS))
    assert all(equal(a, (*b[:3], without_stamp(b[3]))) for a, b in zip(straight, ticks, strict=True))
    lockstep.client.must_trigger("/sim/step")               # without any command the arm holds its target
    lockstep.wait_tick(stamp_ns + 4 * PERIOD_NS)


@pytest.mark.parametrize(("domain", "variation"), [("twin", ""), ("standin", ""), ("twin", "camera=1.0")])
def test_camera_info_reprojects_the_cubes(lockstep, domain, variation, tmp_path):
    """The outline of each cube in the picture is where intrinsics and camera pose put its corners, within 2 px.

    In the twin's plain colours, by which cubes can be found; the cameras of both domains. Also: a domain from a file.
    """
    path = tmp_path / "plain.yaml"
    plain = replace(load_domain("twin"), cameras=load_domain(domain).cameras)
    path.write_text(yaml.safe_dump(to_mapping(plain)))
    stamp_ns = lockstep.reset(task="push_cube", domain=str(path), variation=variation, seed=SEED).stamp_ns
    image, _, _, text = lockstep.wait_tick(stamp_ns)
    info = lockstep.infos.last
    assert (info.width, info.height, info.header.frame_id) == (CAMERA.width, CAMERA.height, CAMERA.frame)
    intrinsics = np.array(info.k).reshape(3, 3)
    view = variation_from_text(variation).camera_view(load_domain(domain).camera("front_camera", "push_cube"), SEED)
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


@pytest.fixture(scope="module")
def real_time(tmp_path_factory, module_ros_domain):
    other_domain = module_ros_domain % 99 + 1
    yield from start_robot(tmp_path_factory, other_domain, state_rate_hz=20.0, camera_rate_hz=5.0, seed=SEED)


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


def test_paused_time_stands_still_and_goes_on_where_it_stood(real_time):
    client, poses = real_time.client, real_time.poses
    client.wait_until(lambda: poses.last, 20, "the first tool pose")
    with pytest.raises(RlcoError, match="pause it first"):
        client.must_trigger("/sim/step")
    real_time.reset(task="push_cube", domain="twin", seed=SEED)
    assert client.set_bool("/sim/pause", True)[0]
    client.wait_until(lambda: said(real_time, "paused"), 5, "diagnostics that say so")
    rest = pose_from_msg(poses.last)
    goal = compose_delta(rest, np.array([0.0, 0.06, 0.0, 0, 0, 0]))
    poses.clear()
    deaf_ns = 200_000_000       # right after the reset old targets do not count
    real_time.command(goal, 1.0, client.node.get_clock().now().nanoseconds + deaf_ns)
    client.spin_for(0.4)
    assert not len(poses)
    client.must_trigger("/sim/step")
    client.wait_until(lambda: len(poses), 5, "the tool pose after the step")
    stepped = pose_from_msg(poses.last)
    assert 0.005 < stepped.position[1] - rest.position[1] < 0.062, "one control tick towards the goal"
    client.spin_for(0.3)
    assert len(poses) == 1
    real_time.diagnostics.clear()
    assert client.set_bool("/sim/pause", False)[0]
    client.wait_until(lambda: len(poses) > 5, 5, "time that goes on")
    assert np.linalg.norm(pose_from_msg(poses.messages[1]).position - stepped.position) < 0.03
    client.wait_until(lambda: abs(pose_from_msg(poses.last).position[1] - goal.position[1]) < 0.004, 10, "the goal")
    client.wait_until(lambda: said(real_time, ""), 5, "diagnostics")
    assert not said(real_time, "factor 0.[0-7]"), "the pause was counted as slowness"


def said(robot, text):
    """Whether the bridge's diagnostics contain the text (a regular expression)."""
    return robot.diagnostics.find(lambda message: any(
        status.name == "sim" and re.search(text, status.message) for status in message.status))


class Machine:
    """A clock that stands still but for the work that is done: how a slow machine looks to the pacer."""

    def __init__(self, simulating_1s_takes_s, image_s):
        self.now, self._cost, self._image_s = 0.0, simulating_1s_takes_s, image_s
        self.images, self.states = [], []
        self.meter = RealTimeMeter(clock=lambda: self.now)

    def run(self, rate_hz, image_every, duration_s):
        """(simulated seconds per second, pictures per second)"""
        pacer = RealTimePacer(rate_hz, image_every, 100.0, clock=lambda: self.now)
        while self.now < duration_s:
            self.now = (np.floor(self.now * rate_hz + 1e-9) + 1) / rate_hz      # the timer's next time
            self.now += pacer.steps_due() / 100.0 * self._cost
            image = pacer.picture_due()
            self.states.append(self.now)
            self.now += image * self._image_s
            self.images += [self.now] if image else []
            self.meter.add(pacer.simulated_s, image)
        return pacer.simulated_s / self.now, len(self.images) / self.now


def test_a_machine_that_renders_slowly_drops_pictures_and_keeps_time():
    fast = Machine(0.04, image_s=0.01)
    assert fast.run(20.0, 2, 20.0) == (pytest.approx(1.0, abs=0.01), pytest.approx(10.0, rel=0.02))
    assert fast.meter.complaint(10.0) == ""
    slow = Machine(0.04, image_s=0.18)
    factor, images_per_s = slow.run(20.0, 2, 20.0)
    assert factor == pytest.approx(1.0, abs=0.02)
    assert 2.5 < images_per_s < 5.0
    assert np.diff(slow.states).max() < 0.26, "states are still shown between pictures"
    assert "of 10 images/s" in slow.meter.complaint(10.0)
    slow.meter.restart()
    assert slow.meter.complaint(10.0) == "", "too early to tell"


def test_a_machine_too_slow_for_the_physics_shows_a_picture_every_second_and_admits_it():
    slow = Machine(2.0, image_s=0.02)
    factor, _ = slow.run(20.0, 2, 30.0)
    assert factor == pytest.approx(0.5, abs=0.05)
    assert 1.0 < np.diff(slow.images).max() < 3.0
    assert re.match(r"slower than real time \(factor 0\.[45]", slow.meter.complaint(10.0))


def test_what_was_missed_in_a_long_stall_is_given_up():
    now = [0.0]
    pacer = RealTimePacer(20.0, 2, 100.0, clock=lambda: now[0])
    now[0] = 30.0
    assert pacer.steps_due() == 30
    now[0] += 0.05
    assert pacer.steps_due() == 5
    assert pacer.simulated_s == pytest.approx(0.35)


def test_the_real_time_meter_measures_the_recent_past():
    now, simulated = [0.0], 0.0
    meter = RealTimeMeter(window_s=1.0, clock=lambda: now[0])
    for period_s, factor in ((0.05, 1.0), (0.1, 0.5)):
        for _ in range(40):
            now[0] += period_s
            simulated += 0.05
            meter.add(simulated)
        assert meter.factor == pytest.approx(factor)


def test_lock_step_clock_is_monotonic_across_episodes():
    clock = LockstepClock(PERIOD_NS)
    times = [clock.new_episode(), clock.tick(), clock.tick(), clock.new_episode(), clock.tick()]
    assert np.all(np.diff(times) > 0)
    assert times[1] - times[0] == PERIOD_NS
