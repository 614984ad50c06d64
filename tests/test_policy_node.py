"""The policy node over real topics: right chunks at the right stamps, nothing from stale or foreign observations."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent
from rlco_common.errors import DataError
from rlco_common.messages import diagnostic_values
from rlco_common.observation import Observation, encode_image, encode_proprioception
from rlco_common.pose import Pose
from rlco_common.processes import Processes
from rlco_common.ros import (
    CAMERA_QOS,
    COMMAND_QOS,
    EVENT_QOS,
    STATE_QOS,
    chunk_from_msg,
    image_to_msg,
    joint_state_to_msg,
    pose_to_msg,
    stamp_to_ns,
)
from rlco_common.ros_client import RosClient
from rlco_policy.checkpoint import load_policy, save_policy
from rlco_policy.registry import create_policy
from rlco_policy.runner import PolicyRunner, observation_batch
from rlco_policy.statistics import Statistics

CONTRACT = load_contract()
NODE = "rlco_policy.nodes.policy_node"
PERIOD_NS = CONTRACT.control_period_ns
CAMERA, CAMERA_SPEC = next(iter(CONTRACT.cameras.items()))
CHUNK, HORIZON = 4, 8
RED, BLUE = "push the red cube", "push the blue cube"


def observation(stamp_ns, seed):
    rng = np.random.default_rng(seed)
    return Observation(
        images={CAMERA: rng.integers(0, 256, CAMERA_SPEC.shape, dtype=np.uint8)},
        ee_pose=Pose(rng.normal([0.5, 0.0, 0.2], 0.05), [1.0, 0.0, 0.0, 0.0]),
        gripper=float(rng.random()), joint_positions=rng.normal(size=7), stamp_ns=int(stamp_ns))


class Robot:
    """Publishes observations, collects chunks, and computes the same chunks without ROS."""

    def __init__(self, processes, client, checkpoint):
        self.processes, self.client = processes, client
        self.images = client.publisher(Image, CAMERA_SPEC.topic, CAMERA_QOS)
        self.joints = client.publisher(JointState, CONTRACT.topics.joint_states, STATE_QOS)
        self.ee_pose = client.publisher(PoseStamped, CONTRACT.topics.ee_pose, STATE_QOS)
        self.events = client.publisher(String, EVENT_TOPIC, EVENT_QOS)
        self.chunks = client.subscribe(JointTrajectory, topics.ACTION_CHUNK, COMMAND_QOS)
        self.reports = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        self.runner = PolicyRunner(load_policy(checkpoint, CONTRACT), CONTRACT)
        self.now_ns = 10**12

    def connect(self):
        self.client.wait_active("/policy")
        for publisher in (self.images, self.joints, self.ee_pose, self.events):
            self.client.wait_until(lambda p=publisher: p.get_subscription_count(), 10, f"the node on {publisher.topic}")
        self.client.wait_until(lambda: self.client.node.count_publishers(topics.ACTION_CHUNK), 10, "the chunk publisher")

    def reset(self, instruction=RED, seed=3):
        """A new episode: its stamps continue where the last one's ended."""
        self.now_ns += PERIOD_NS
        self.events.publish(String(data=EpisodeEvent(
            kind="reset", task="push_cube", instruction=instruction, domain="twin", seed=seed, stamp_ns=self.now_ns).to_json()))
        return self.now_ns

    def publish(self, seen, *, streams=("image", "joints", "pose"), stamp_ns=None, shuffle=False):
        stamp = seen.stamp_ns if stamp_ns is None else stamp_ns
        if "image" in streams:
            self.images.publish(image_to_msg(seen.images[CAMERA], CAMERA_SPEC.frame, seen.stamp_ns))
        if "joints" in streams:
            message = joint_state_to_msg(CONTRACT, seen.joint_positions, seen.gripper, stamp)
            if shuffle:
                order = np.random.default_rng(0).permutation(len(message.name))
                message.name, message.position = [message.name[i] for i in order], [message.position[i] for i in order]
            self.joints.publish(message)
        if "pose" in streams:
            self.ee_pose.publish(pose_to_msg(seen.ee_pose, CONTRACT.robot.base_frame, stamp))

    def tick(self, seed, **options):
        """The observation of the next lock-step tick."""
        seen = observation(self.now_ns, seed)
        self.publish(seen, **options)
        self.now_ns += PERIOD_NS
        return seen

    def chunk(self, stamp_ns, timeout_s=10.0):
        return self.client.wait_until(
            lambda: self.chunks.find(lambda m: stamp_to_ns(m.header.stamp) == stamp_ns), timeout_s, f"a chunk of {stamp_ns}")

    def stamps(self):
        """Distinct stamps of all chunks so far, in order (lock step repeats a chunk that nobody takes)."""
        return list(dict.fromkeys(stamp_to_ns(m.header.stamp) for m in self.chunks.messages))

    def expected(self, seen, instruction=RED):
        self.runner.new_episode(3)
        return self.runner.infer(seen, instruction)

    def report(self, fits):
        """A diagnostic status of the node that fits, among those since the last clear, or None."""
        found = self.reports.find(lambda m: m.status[0].name == "policy" and fits(m.status[0]))
        return found and found.status[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    names = CONTRACT.proprioception_names
    statistics = Statistics.from_proprioception(names, np.random.default_rng(0).normal(0.2, 0.3, (50, len(names))))
    policy = create_policy("compact_flow", CONTRACT, statistics, seed=1)
    return save_policy(policy, tmp_path_factory.mktemp("policy") / "checkpoint")


@pytest.fixture(scope="module")
def running(request, checkpoint, tmp_path_factory, module_ros_domain):
    """One node for all tests of a mode."""
    with Processes(tmp_path_factory.mktemp("logs"), module_ros_domain) as processes, \
            RosClient("robot", module_ros_domain, processes.check) as client:
        robot = Robot(processes, client, checkpoint)
        processes.start_node(NODE, checkpoint=str(checkpoint), lockstep=request.param, use_sim_time=request.param)
        robot.connect()
        yield robot


@pytest.fixture
def robot(running):
    running.chunks.clear()
    return running


@pytest.fixture
def instructed(robot):
    """The robot once its policy has an instruction."""
    robot.client.set_parameters("/policy", instruction=RED)
    return robot


in_lockstep = pytest.mark.parametrize("running", [True], indirect=True, ids=["lockstep"])
in_realtime = pytest.mark.parametrize("running", [False], indirect=True, ids=["realtime"])


def ticks_until_chunk(robot, seed):
    """Publish an episode's first tick and return its observation and its chunk message."""
    seen = robot.tick(seed)
    return seen, robot.chunk(seen.stamp_ns)


# -- lock step


@in_lockstep
def test_an_episode_gets_chunks_at_ticks_0_4_8_that_equal_the_policys_own(robot):
    robot.reset()
    expected = []
    for tick in range(2 * CHUNK + 1):
        seen = robot.tick(seed=tick)
        if tick % CHUNK == 0:
            message = robot.chunk(seen.stamp_ns)
            actions = chunk_from_msg(CONTRACT, message)      # names, count and times as the contract has them
            assert actions.shape == (CHUNK, CONTRACT.action.dim)
            assert np.array_equal(actions, robot.expected(seen)), "over ROS and in-process must agree bit for bit"
            expected.append(seen.stamp_ns)
    assert robot.stamps() == expected


@in_lockstep
def test_a_new_episode_starts_over_whatever_tick_the_last_one_was_at(robot):
    """And equal observations give equal actions, in another episode and at other stamps."""
    first = []
    for ticks in (2, 3):
        robot.reset()
        _, message = ticks_until_chunk(robot, seed=50)
        first.append(chunk_from_msg(CONTRACT, message))
        for tick in range(1, ticks):
            robot.tick(seed=tick)
    assert np.array_equal(*first)


@in_lockstep
def test_what_was_seen_before_the_reset_is_never_acted_on_after_it(robot):
    robot.reset(RED)
    ticks_until_chunk(robot, seed=1)
    robot.tick(seed=2)                       # the newest observation of the old episode, not yet due
    start = robot.reset(BLUE)
    robot.client.spin_for(0.4)               # long enough for an inference
    assert max(robot.stamps()) < start
    seen, message = ticks_until_chunk(robot, seed=3)
    assert seen.stamp_ns == start
    assert np.array_equal(chunk_from_msg(CONTRACT, message), robot.expected(seen, BLUE))


@in_lockstep
def test_the_instruction_of_the_event_decides(robot):
    results = []
    for instruction in (RED, BLUE):
        robot.reset(instruction)
        results.append(chunk_from_msg(CONTRACT, ticks_until_chunk(robot, seed=7)[1]))
    assert np.abs(results[0] - results[1]).max() > 1e-4


@in_lockstep
def test_the_order_of_joint_names_does_not_matter(robot):
    results = []
    for shuffle in (False, True):
        robot.reset()
        seen = robot.tick(seed=8, shuffle=shuffle)
        results.append(chunk_from_msg(CONTRACT, robot.chunk(seen.stamp_ns)))
    assert np.array_equal(*results)


@pytest.mark.parametrize("late", ["image", "joints", "pose"])
@in_lockstep
def test_a_tick_is_acted_on_only_when_every_stream_has_reached_it(robot, late):
    """The tick before is younger than the contract's age limit, so age alone would let it pass."""
    robot.reset()
    ticks_until_chunk(robot, seed=1)
    for tick in range(1, CHUNK):
        robot.tick(seed=tick)
    seen = observation(robot.now_ns, 9)
    robot.publish(seen, streams=[stream for stream in ("image", "joints", "pose") if stream != late])
    robot.client.spin_for(0.4)
    assert seen.stamp_ns not in robot.stamps()
    robot.publish(seen, streams=[late])
    robot.now_ns += PERIOD_NS
    assert np.array_equal(chunk_from_msg(CONTRACT, robot.chunk(seen.stamp_ns)), robot.expected(seen))


@in_lockstep
def test_a_chunk_that_nobody_takes_is_sent_again_unchanged(robot):
    """The gate drops chunks at a takeover; without a repetition both would wait for ever."""
    robot.reset()
    _, message = ticks_until_chunk(robot, seed=4)
    robot.client.wait_until(lambda: len(robot.chunks) >= 3, 6, "two repetitions")
    assert all(repeated == message for repeated in robot.chunks.messages)


# -- real time


def stream(robot, duration_s, until=lambda: False, image_age_s=0.0, state_age_s=0.0,
           streams=("image", "joints", "pose")):
    """Publish at 10 Hz for a time or until something is true, which is returned; samples are of the given ages."""
    end = time.monotonic() + duration_s
    sent = robot.sent = {}
    while time.monotonic() < end:
        now = time.time_ns()
        seen = observation(now - int(image_age_s * 1e9), seed=len(sent))
        robot.publish(seen, stamp_ns=now - int(state_age_s * 1e9), streams=streams)
        sent[seen.stamp_ns] = seen
        robot.client.spin_for(0.1)
        if found := until():
            return found
    return until()


def stream_until_report(robot, fits, **options):
    robot.reports.clear()
    status = stream(robot, 8.0, lambda: robot.report(fits), **options)
    assert status, [message.status[0].message for message in robot.reports.messages]
    return status


@in_realtime
def test_without_an_instruction_nothing_is_published_and_diagnostics_say_so(robot):
    """Runs first: later tests give one."""
    status = stream_until_report(robot, lambda s: "no instruction" in s.message)
    assert status.level == DiagnosticStatus.WARN and not robot.chunks.messages
    robot.client.set_parameters("/policy", instruction=RED)
    assert stream(robot, 8.0, lambda: robot.chunks.messages)


@in_realtime
def test_chunks_follow_each_other_when_they_are_used_up(instructed):
    """The stand-in for a gate says nothing, so the policy looks every `chunk` ticks; the rest of the horizon is reserve."""
    stream(instructed, 4.0)
    stamps = [stamp for stamp in instructed.stamps() if stamp in instructed.sent]     # the first may belong to the test before
    assert len(stamps) >= 3
    gaps_s, chunk_s = np.diff(stamps) * 1e-9, CHUNK * CONTRACT.control_period_s
    assert (gaps_s > chunk_s - 0.021).all(), gaps_s
    assert np.median(gaps_s) < chunk_s + 0.25, gaps_s
    for message in instructed.chunks.messages:
        assert np.isfinite(chunk_from_msg(CONTRACT, message)).all() and len(message.points) == HORIZON
    status = stream_until_report(instructed, lambda s: s.level == DiagnosticStatus.OK)
    values = diagnostic_values(status)
    assert int(values["chunks"]) >= 3 and 0 < float(values["latency_s"]) < 1.0
    assert values["execution"] == "asynchronous" and 0 < float(values["queue_length"]) <= HORIZON and values["slowdown"] == "1"


@in_realtime
@pytest.mark.parametrize("state_age_s", [0.0, CAMERA_SPEC.max_age_s + 0.3], ids=["image late", "everything late"])
def test_an_image_past_its_age_is_refused_and_named(robot, state_age_s):
    stream(robot, 1.0)
    robot.client.spin_for(0.5)          # a last chunk may be under way
    robot.chunks.clear()
    late = {"image_age_s": CAMERA_SPEC.max_age_s + 0.3, "state_age_s": state_age_s}
    status = stream_until_report(robot, lambda s: CAMERA in s.message and "old" in s.message, **late)
    assert status.level == DiagnosticStatus.WARN
    stream(robot, 1.2, **late)
    assert not robot.chunks.messages


@in_realtime
def test_a_camera_that_stops_is_reported_while_states_go_on(instructed):
    stream_until_report(instructed, lambda s: s.level == DiagnosticStatus.OK)
    stream_until_report(instructed, lambda s: CAMERA in s.message and "old" in s.message, streams=("joints", "pose"))


@in_realtime
def test_an_instruction_that_cannot_be_read_is_reported_and_a_good_one_goes_on(robot):
    robot.client.set_parameters("/policy", instruction="!?")
    stream_until_report(robot, lambda s: "0 words" in s.message)
    robot.client.set_parameters("/policy", instruction=BLUE)
    robot.chunks.clear()
    assert stream(robot, 8.0, lambda: robot.chunks.messages)


@in_realtime
def test_deactivated_it_is_silent_and_comes_back(robot):
    assert robot.client.change_state("/policy", Transition.TRANSITION_DEACTIVATE)
    robot.client.spin_for(0.2)
    robot.chunks.clear()
    stream(robot, 1.2)
    assert not robot.chunks.messages
    assert robot.client.change_state("/policy", Transition.TRANSITION_ACTIVATE)
    robot.connect()
    assert stream(robot, 8.0, lambda: robot.chunks.messages)


# -- refusals at start, and the runner without ROS


@pytest.mark.long
@pytest.mark.parametrize(("parameters", "complaint"), [
    ({"contract": "other"}, "control_rate_hz: 10.0 -> 5.0"),
    ({"checkpoint": ""}, "parameter checkpoint is empty"),
    ({"checkpoint": "/nowhere"}, "/nowhere/policy.json: no such file"),
    ({"checkpoint": "altered"}, "altered after it was saved (statistics"),
    ({"device": "cuda"}, "torch sees no GPU here"),
])
def test_a_policy_that_does_not_fit_is_refused_before_it_runs(tmp_path, ros_domain, checkpoint, parameters, complaint):
    from rlco_common.contract import contract_directory

    if "contract" in parameters:
        text = (contract_directory() / "panda_tabletop.yaml").read_text()
        (tmp_path / "other.yaml").write_text(text.replace("control_rate_hz: 5.0", "control_rate_hz: 10.0"))
        parameters = {"contract": str(tmp_path / "other.yaml")}
    if parameters.get("checkpoint") == "altered":
        shutil.copytree(checkpoint, tmp_path / "altered")
        description = json.loads((tmp_path / "altered" / "policy.json").read_text())
        statistics = json.loads(description["statistics"])
        statistics["mean"][0] += 0.1
        description["statistics"] = json.dumps(statistics, sort_keys=True)
        (tmp_path / "altered" / "policy.json").write_text(json.dumps(description))
        parameters = {"checkpoint": str(tmp_path / "altered")}
    if parameters.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with Processes(tmp_path, ros_domain) as processes, RosClient("operator", ros_domain, processes.check) as client:
        child = processes.start_node(NODE, **({"checkpoint": str(checkpoint)} | parameters))
        client.wait_until(lambda: complaint in child.tail(100), 60, f"'{complaint}' in the log")
        assert not client.node.count_publishers(topics.ACTION_CHUNK)


def test_the_runner_feeds_the_policy_through_the_common_codec(checkpoint):
    policy = load_policy(checkpoint, CONTRACT)
    assert policy.spec.chunk == CHUNK
    seen = observation(10**9, 1)
    batch = observation_batch(policy, [seen], [RED])
    assert np.array_equal(batch.images[CAMERA][0].numpy(), encode_image(seen.images[CAMERA], policy.spec.image_size))
    assert np.array_equal(batch.proprio[0].numpy(), encode_proprioception(CONTRACT, seen))


def test_the_runner_refuses_a_non_finite_chunk(checkpoint):
    policy = load_policy(checkpoint, CONTRACT)
    with torch.no_grad():
        policy.expert.project_out.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="non-finite action"):
        PolicyRunner(policy, CONTRACT).infer(observation(10**9, 1), RED)


def test_random_actions_repeat_with_the_episodes_seed(checkpoint):
    runner = PolicyRunner(load_policy(checkpoint, CONTRACT), CONTRACT, temperature=1.0)
    seen, results = observation(10**12, 1), []
    for seed in (5, 5, 6):
        runner.new_episode(seed)
        results.append(runner.infer(seen, RED))
    assert np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])
