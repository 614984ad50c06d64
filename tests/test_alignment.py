"""Alignment of recorded episodes: causal, from commands, honest about what is missing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlco_common.contract import load_contract
from rlco_common.episode import EpisodeMetadata
from rlco_common.errors import DataError
from rlco_common.pose import Pose
from rlco_trainer.dataset.align import RecordedStreams, Samples, align
from rlco_trainer.dataset.episode import idle_ticks

CONTRACT = load_contract()
PERIOD = CONTRACT.control_period_ns
MS = 1_000_000
JOINTS = [*CONTRACT.robot.arm_joints, CONTRACT.robot.gripper_joint]
METADATA = EpisodeMetadata("e", "push_cube", "push the red cube", "standin", "test", 1, CONTRACT.hash, "", True)


def image(stamp: int):
    """A picture that carries its own stamp (milliseconds) in its first pixels."""
    picture = np.zeros(CONTRACT.cameras["front_camera"].shape, np.uint8)
    picture.ravel()[:8] = np.frombuffer(np.int64(stamp // MS).tobytes(), np.uint8)
    return lambda: picture


def image_stamp_ms(picture: np.ndarray) -> int:
    return int(np.frombuffer(picture.ravel()[:8].tobytes(), np.int64)[0])


def streams(images, states, targets, gripper=1.0):
    """Streams with the given stamps; x of a pose and of the first joint are its stamp in seconds, targets are given."""
    pose = [(stamp, Pose([stamp * 1e-9, 0, 0.2], [1, 0, 0, 0])) for stamp in states]
    joints = [(stamp, (JOINTS, np.array([stamp * 1e-9] + [0.0] * 7))) for stamp in states]
    return RecordedStreams(
        images={"front_camera": Samples.of([(stamp, image(stamp)) for stamp in images])},
        joint_states=Samples.of(joints), ee_pose=Samples.of(pose), targets=Samples.of(targets),
        gripper=Samples.of([(stamp, gripper) for stamp, _ in targets]),
    )


def target(stamp: int, x: float) -> tuple[int, Pose]:
    return stamp, Pose([x, 0.0, 0.2], [1, 0, 0, 0])


stamps = st.lists(st.integers(0, 3000), min_size=2, max_size=60, unique=True).map(sorted)


@settings(max_examples=60, deadline=None)
@given(images=stamps, states=stamps, targets=stamps)
def test_no_sample_is_newer_than_its_tick(images, states, targets):
    recorded = streams([s * MS for s in images], [s * MS for s in states], [target(s * MS, 0.4) for s in targets])
    try:
        result = align(CONTRACT, recorded, METADATA)
    except DataError:
        return
    episode = result.episode
    for k, tick in enumerate(episode.stamps_ns):
        seen = image_stamp_ms(episode.images["front_camera"][k]) * MS
        state = round(float(episode.proprioception[k, 0]) * 1e9)
        newest_image = max(s * MS for s in images if s * MS <= tick)
        newest_state = max(s * MS for s in states if s * MS <= tick)
        assert seen == newest_image <= tick
        assert abs(state - newest_state) < 1000     # float32 seconds
        assert episode.ages_s[k] == pytest.approx([(tick - newest_image) * 1e-9, (tick - newest_state) * 1e-9], abs=1e-6)
        assert tick - newest_image <= CONTRACT.cameras["front_camera"].max_age_s * 1e9


def test_actions_are_commands_not_measured_motion():
    ticks = [i * PERIOD for i in range(5)]
    commanded = [0.40, 0.43, 0.45, 0.45]
    recorded = streams(ticks, ticks, [target(tick, x) for tick, x in zip(ticks, commanded, strict=False)])
    actions = align(CONTRACT, recorded, METADATA).episode.actions
    # Tick 0 leads from the measured pose at the start (x = 0) to the first command; then from command to command.
    assert actions[:, 0] == pytest.approx([0.40, 0.03, 0.02, 0.0], abs=1e-6)
    assert actions[:, 6] == pytest.approx(1.0)


def test_commands_within_a_tick_add_up():
    """A gate at 20 Hz sends four targets a tick; the 5 Hz action is their sum, whatever their phase."""
    ticks = [1_000_000_000 + i * PERIOD for i in range(4)]
    targets = [target(ticks[0] + i * PERIOD // 4, 0.4 + 0.01 * i) for i in range(12)]
    actions = align(CONTRACT, streams(ticks, ticks, targets), METADATA).episode.actions
    assert actions[1:3, 0] == pytest.approx([0.04, 0.04], abs=1e-6)


def test_replaying_the_actions_gives_the_commanded_targets():
    rng = np.random.default_rng(0)
    ticks = [i * PERIOD for i in range(20)]
    pose = Pose([0.0, 0.0, 0.2], [1, 0, 0, 0])      # the measured pose of the first tick in `streams`
    targets = []
    for tick in ticks:
        pose = CONTRACT.compose_target(pose, rng.uniform(CONTRACT.action.low, CONTRACT.action.high) * [1] * 7)
        targets.append((tick, pose))
    actions = align(CONTRACT, streams(ticks, ticks, targets), METADATA).episode.actions
    replayed = targets[0][1]
    for action, (_, wanted) in zip(actions[1:], targets[1:], strict=True):
        replayed = CONTRACT.compose_target(replayed, action.astype(np.float64))
        assert replayed.position == pytest.approx(wanted.position, abs=1e-5)
        assert abs(abs(replayed.quaternion @ wanted.quaternion) - 1) < 1e-6


def test_a_gap_in_the_camera_refuses_ticks_instead_of_filling_them():
    ticks = [i * PERIOD for i in range(10)]
    seen = ticks[:4] + ticks[7:]
    result = align(CONTRACT, streams(seen, ticks, [target(tick, 0.4) for tick in ticks]), METADATA)
    # max_age_s is one period: the tick right after the last image may still use it, the next two may not.
    assert [tick for tick, _ in result.refused] == [ticks[5], ticks[6]]
    assert all("camera front_camera" in reason for _, reason in result.refused)
    assert len(result.episode) == 8


@pytest.mark.parametrize("absent", ["images", "joint_states", "ee_pose", "targets", "gripper"])
def test_an_absent_stream_is_refused_by_topic(absent):
    ticks = [i * PERIOD for i in range(3)]
    recorded = streams(ticks, ticks, [target(tick, 0.4) for tick in ticks])
    empty = Samples([], [])
    broken = RecordedStreams(**{**vars(recorded), absent: {"front_camera": empty} if absent == "images" else empty})
    topic = {"images": "/front_camera/image_raw", "joint_states": "/joint_states", "ee_pose": "/arm/ee_pose",
             "targets": "/arm/target_pose", "gripper": "/gripper/command"}[absent]
    with pytest.raises(DataError, match=topic):
        align(CONTRACT, broken, METADATA)


def test_true_stamps_survive():
    ticks = [5_000_000_000 + i * PERIOD for i in range(4)]
    jittered = [tick - jitter * MS for tick, jitter in zip(ticks, (0, 7, 31, 2), strict=True)]
    episode = align(CONTRACT, streams(jittered, jittered, [target(tick, 0.4) for tick in ticks]), METADATA).episode
    assert episode.stamps_ns.tolist() == ticks
    assert episode.ages_s[:, 0] == pytest.approx([0.0, 0.007, 0.031, 0.002], abs=1e-6)


def test_idle_ticks_are_those_that_command_nothing():
    actions = np.zeros((8, 7), np.float32)
    actions[1, 0] = 0.01
    actions[2, 5] = 0.1
    actions[3:, 6] = 1.0     # the gripper opens at tick 3; standing still while the fingers move is not idle
    assert idle_ticks(actions).tolist() == [True, False, False, False, False, False, True, True]
