"""Recorded commands in a twin: the same domain gives the same motion, another one shows the gap between them."""

from dataclasses import replace

import numpy as np
import pytest

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.errors import DataError
from rlco_common.pose import compose_delta
from rlco_common.seeds import REAL_DEMOS
from rlco_sim_bridge.domain import load_domain
from rlco_sim_bridge.environment import PHYSICS_RATE_HZ
from rlco_sim_bridge.replay import NO_SEED, Recording, Track, best_lag, replay
from rlco_sim_bridge.twin import Twin
from rlco_sim_bridge.variation import variation_from_text
from rlco_teleop.bags import read_episode_metadata
from rlco_trainer.dataset.build import read_streams
from rlco_trainer.replay_report import read_recording
from rlco_trainer.sessions import open_session

CONTRACT = load_contract()
STEP_NS = 1_000_000_000 // PHYSICS_RATE_HZ


@pytest.fixture(scope="module")
def bags(tmp_path_factory, module_ros_domain):
    """Recorded episodes, {name: bag}, of one lock-step session: bridge, gate, operator, recorder as processes."""
    out = tmp_path_factory.mktemp("replay")

    def driver(processes):
        processes.start_node("rlco_teleop.nodes.teleop_node", noise=0.1, lockstep=True, use_sim_time=True)
        return "/teleop"

    recorded = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(module_ros_domain))
        with open_session(CONTRACT, out, task="push_cube", domain="twin", lockstep=True, operator="scripted",
                          driver=driver) as session:
            for name, domain, variation in (("twin", "twin", ""), ("standin", "standin", ""),
                                            ("varied", "standin", "start=perturbed,camera=0.5,light=0.5")):
                session.client.set_parameters("/sim", domain=domain, variation=variation)
                session.reset(REAL_DEMOS[0])
                session.operate()
                recorded[name] = session.client.must_trigger(topics.RECORDER_SUCCESS)
    return recorded


@pytest.mark.long
@pytest.mark.parametrize("name", ["twin", "standin", "varied"])
def test_a_recorded_lock_step_episode_comes_out_again_to_the_last_bit(bags, name):
    """Motion, gripper, pictures and success: a bag's commands and metadata are all there is to an episode."""
    metadata = read_episode_metadata(bags[name])
    images = read_streams(CONTRACT, bags[name]).images["front_camera"]
    played = replay(CONTRACT, read_recording(CONTRACT, bags[name]), metadata.domain,
                    variation=variation_from_text(metadata.variation), pictures_ns=images.stamps_ns)
    assert not played.position_error_m.any()
    assert played.rotation_error_rad.max() < 1e-7       # an angle below 1e-8 is lost in the arc tangent
    assert not played.opening_error.any()
    assert len(played.position_error_m) >= 6
    for stamp_ns, image in zip(images.stamps_ns, images.values, strict=True):
        np.testing.assert_array_equal(played.pictures[stamp_ns]["front_camera"], image())
    assert played.result.success
    assert played.instruction == metadata.instruction


def test_the_stand_ins_episode_in_the_twin_shows_its_gain_and_softness(bags):
    recording = read_recording(CONTRACT, bags["standin"])
    figures = replay(CONTRACT, recording, "twin").summary()
    assert 0.003 < figures["rms_position_m"] < 0.05
    assert figures["largest_position_m"] < 0.1
    twins_arm = replace(load_domain("standin"), arm=load_domain("twin").arm)
    same_gap = replay(CONTRACT, recording, twins_arm).summary()
    assert same_gap["rms_position_m"] == pytest.approx(figures["rms_position_m"], rel=0.5), "it is the arm that differs"


def test_without_a_seed_the_arm_starts_where_it_was_measured(bags):
    recording = read_recording(CONTRACT, bags["twin"])
    moved = recording.ee_pose.values + np.array([0.01, -0.02, 0.015, 0, 0, 0, 0])
    on_a_table = replace(recording, seed=NO_SEED, ee_pose=Track(recording.ee_pose.stamps_ns, moved))
    played = replay(CONTRACT, on_a_table, "twin")
    assert played.position_error_m[0] < 1e-3
    assert played.rotation_error_rad[0] < 1e-2


def motion(domain, command_steps, count_steps=320):
    """A recording made in this process: commands at the given physics steps, the pose at every one of them."""
    twin = Twin(CONTRACT, "push_cube", domain, render=False)
    twin.reset(3)
    rng = np.random.default_rng(0)
    target, commands, poses, openings = twin.target, [], [], []
    for step in range(count_steps):
        observation = twin.observe(images=False)
        poses.append(observation.ee_pose.as_array())
        openings.append(observation.gripper)
        if step in command_steps:
            target = compose_delta(target, np.append(rng.uniform(-0.03, 0.03, 3), rng.uniform(-0.1, 0.1, 3)))
            commands.append((step, target.as_array()))
            following = [later for later in command_steps if later > step]
            gap = (following[0] - step) / PHYSICS_RATE_HZ if following else 1.0
            twin.command(target, float(len(commands) % 5 > 2), min(gap, CONTRACT.control_period_s))
        twin.simulate(1 / PHYSICS_RATE_HZ)
    twin.close()
    stamps_ns = 7_000_000_000 + STEP_NS * np.arange(count_steps)
    sent_ns = [stamps_ns[step] for step, _ in commands]
    return Recording(
        task="push_cube", seed=3, start_ns=int(stamps_ns[0]), targets=Track(sent_ns, [pose for _, pose in commands]),
        gripper=Track(sent_ns, [float((n + 1) % 5 > 2) for n in range(len(commands))]),
        ee_pose=Track(stamps_ns, poses), opening=Track(stamps_ns, openings))


@pytest.fixture(scope="module")
def uneven():
    """Commands at 20 Hz with jitter and one gap, as a gate in real time sends them."""
    steps = np.cumsum(np.random.default_rng(1).integers(3, 8, 50))
    return motion(load_domain("twin"), [int(step) for step in steps if not 100 < step < 160])


def test_commands_between_ticks_act_at_their_own_time(uneven):
    assert not replay(CONTRACT, uneven, "twin").position_error_m.any()
    shifted = replace(uneven, targets=Track(uneven.targets.stamps_ns + 4 * STEP_NS, uneven.targets.values))
    assert replay(CONTRACT, shifted, "twin").summary()["rms_position_m"] > 5e-4


def test_a_command_is_held_until_the_next_one(uneven):
    """In the gap the arm rests at its last target; stamps off the physics grid are taken at the nearest step."""
    jittered = replace(uneven, targets=Track(uneven.targets.stamps_ns + STEP_NS // 3, uneven.targets.values))
    played = replay(CONTRACT, jittered, "twin")
    assert not played.position_error_m.any()
    rest = played.simulated.values[150:158, :3]
    assert np.ptp(rest, axis=0).max() < 1e-3


@pytest.mark.parametrize("delay_s", [0.0, 0.07, 0.15])
def test_an_inserted_delay_is_found(uneven, delay_s):
    late = replace(uneven, ee_pose=Track(uneven.ee_pose.stamps_ns + round(delay_s * 1e9), uneven.ee_pose.values))
    lag = replay(CONTRACT, late, "twin").lag
    assert lag.lag_s == pytest.approx(delay_s, abs=0.005)
    assert lag.correlation > 0.99


def test_the_delay_of_a_domain_is_found_behind_a_gain_and_a_soft_arm():
    standin = load_domain("standin")
    delayed = replace(standin, arm=replace(standin.arm, delay_s=0.1))
    recording = motion(delayed, list(range(10, 300, 20)))
    lag = replay(CONTRACT, recording, standin).lag
    assert lag.lag_s == pytest.approx(0.1, abs=0.015)
    against_twin = replay(CONTRACT, recording, "twin").lag
    assert against_twin.lag_s == pytest.approx(0.1, abs=0.06)      # a soft arm is itself late
    assert against_twin.lag_s > 0.08


def test_without_motion_there_is_no_lag():
    stamps_ns = STEP_NS * np.arange(400)
    still = Track(stamps_ns, np.zeros((400, 7)))
    moving = Track(stamps_ns, np.linspace(0, 1, 400)[:, None] * np.ones(7))
    assert best_lag(still, moving) is None
    assert best_lag(moving, Track(stamps_ns[:50], moving.values[:50])) is None


@pytest.mark.parametrize(("stamps_ns", "values"), [
    ([], []), ([2, 1], [[0.0], [0.0]]), ([1], [[np.nan]]), ([1, 2], [[0.0]])])
def test_a_track_refuses_what_is_not_a_signal(stamps_ns, values):
    with pytest.raises(DataError, match="a track needs"):
        Track(stamps_ns, values)
