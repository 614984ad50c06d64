"""The twin's promises: determinism, the same start in every domain, the action convention, success and failure."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from rlco_common import seeds
from rlco_common.contract import load_contract
from rlco_common.errors import ConfigError, TwinError
from rlco_common.pose import Pose, delta_between
from rlco_sim_bridge.domain import load_domain
from rlco_sim_bridge.environment import ENVIRONMENTS
from rlco_sim_bridge.experts import make_expert
from rlco_sim_bridge.scene_state import scene_state_from_json
from rlco_sim_bridge.twin import Twin
from rlco_sim_bridge.view import side_by_side

CONTRACT = load_contract()
SEED = seeds.SELECTION[0]
CAMERA = "front_camera"


@pytest.fixture(scope="module")
def rendered():
    twins = {name: Twin(CONTRACT, "push_cube", name) for name in ("twin", "standin")}
    yield twins
    for twin in twins.values():
        twin.close()


@pytest.fixture(scope="module")
def blind():
    """Twins without images, for tests of motion."""
    twins = {name: Twin(CONTRACT, "push_cube", name, render=False) for name in ("twin", "standin")}
    yield twins
    for twin in twins.values():
        twin.close()


def changed(name, **arm):
    domain = load_domain(name)
    return dataclasses.replace(domain, arm=dataclasses.replace(domain.arm, **arm))


def expert_episode(twin, seed, noise=0.0):
    twin.reset(seed)
    expert = make_expert("push_cube", CONTRACT, np.random.default_rng(seed), noise)
    while not (result := twin.step(expert.act(twin.scene_state()))).done:
        pass
    return result


def random_actions(count, seed=0):
    return np.random.default_rng(seed).uniform(CONTRACT.action.low, CONTRACT.action.high, (count, 7)) * 0.6


def trace(twin, seed, actions):
    """Every number and pixel of an episode."""
    observations = [twin.reset(seed)]
    for action in actions:
        twin.step(action)
        observations.append(twin.observe())
    return observations


def same(a, b):
    return (np.array_equal(a.ee_pose.as_array(), b.ee_pose.as_array()) and a.gripper == b.gripper
            and np.array_equal(a.joint_positions, b.joint_positions) and a.stamp_ns == b.stamp_ns
            and a.images.keys() == b.images.keys() and all(np.array_equal(a.images[k], b.images[k]) for k in a.images))


def test_an_episode_repeats_to_the_last_bit(rendered):
    """In the same scene after another episode, and in a fresh scene; with images, over contact with the cubes."""
    twin, actions = rendered["standin"], random_actions(8)
    first = trace(twin, SEED, actions)
    expert_episode(twin, SEED + 1)
    again = trace(twin, SEED, actions)
    fresh_twin = Twin(CONTRACT, "push_cube", "standin")
    fresh = trace(fresh_twin, SEED, actions)
    fresh_twin.close()
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert all(same(a, b) for a, b in zip(first, fresh, strict=True))
    assert not np.array_equal(first[0].images[CAMERA], first[-1].images[CAMERA])


def test_contact_does_not_leak_into_the_next_episode(blind):
    twin = blind["twin"]
    episodes = []
    for disturbance in (SEED + 5, SEED + 6):
        expert_episode(twin, disturbance, noise=0.3)
        expert_episode(twin, SEED)
        episodes.append(twin.scene_state().to_json())
    assert episodes[0] == episodes[1]


def test_domains_share_initial_states_and_instructions(rendered):
    for seed in range(SEED, SEED + 5):
        observations = {name: twin.reset(seed) for name, twin in rendered.items()}
        scenes = {name: twin.scene_state() for name, twin in rendered.items()}
        assert scenes["twin"].to_json() == scenes["standin"].to_json()
        assert rendered["twin"].instruction == rendered["standin"].instruction
        assert np.array_equal(observations["twin"].joint_positions, observations["standin"].joint_positions)
        difference = observations["twin"].images[CAMERA].astype(int) - observations["standin"].images[CAMERA]
        assert np.abs(difference).mean() > 20, "the domains look alike"


@pytest.mark.parametrize("domain", ["twin", "standin"])
def test_the_expert_solves_the_task(blind, domain):
    results = [expert_episode(blind[domain], seed, noise=0.1) for seed in range(SEED, SEED + 25)]
    assert sum(result.success for result in results) >= 24
    assert np.mean([result.steps for result in results]) < 12


def test_the_expert_recovers_from_strong_disturbances(blind):
    results = [expert_episode(blind["twin"], seed, noise=0.25) for seed in range(SEED, SEED + 15)]
    assert sum(result.success for result in results) >= 13


@pytest.mark.parametrize(("axis", "size"), [(0, 0.03), (1, 0.03), (2, 0.03), (3, 0.1), (4, 0.1), (5, 0.1)])
def test_an_action_moves_the_tool_along_its_base_axis(blind, axis, size):
    """Pins sign, axis and scale of every action dimension, in metres and radians of *target* motion."""
    twin = blind["twin"]
    twin.reset(SEED)
    start = twin.tool_pose()
    action = np.zeros(7)
    action[axis] = size
    for _ in range(3):
        twin.step(action)
    for _ in range(6):
        twin.step(np.zeros(7))
    expected = np.zeros(6)
    expected[axis] = 3 * size
    np.testing.assert_allclose(delta_between(start, twin.tool_pose()), expected, atol=0.004)


def test_the_gripper_is_zero_closed_one_open(blind):
    twin = blind["twin"]
    assert twin.reset(SEED).gripper == pytest.approx(1.0, abs=0.01)
    for opening in (0.0, 0.5, 1.0):
        for _ in range(5):
            twin.step(np.array([0, 0, 0, 0, 0, 0, opening]))
        assert twin.observe().gripper == pytest.approx(opening, abs=0.03)


def test_gain_and_delay_of_a_domain():
    push = np.array([0.0, 0.04, 0, 0, 0, 0, 1.0])

    def path(domain, ticks=8):
        twin = Twin(CONTRACT, "push_cube", domain, render=False)
        start = twin.reset(SEED).ee_pose.position[1]
        positions = []
        for tick in range(ticks):
            twin.step(push if tick < 3 else push * 0)
            positions.append(twin.tool_pose().position[1] - start)
        twin.close()
        return np.array(positions)

    plain = path("twin")
    assert plain[-1] == pytest.approx(0.12, abs=0.003)
    assert path(changed("twin", gain=0.8))[-1] == pytest.approx(0.096, abs=0.003)
    delayed = path(changed("twin", delay_s=0.2))
    assert abs(delayed[0]) < 1e-6
    np.testing.assert_allclose(delayed[1:], plain[:-1], atol=0.002)
    half = path(changed("twin", delay_s=0.1))
    assert delayed[1] < half[1] < plain[1]


def test_the_lean_path_equals_maniskills_own_step(blind):
    """Stepping without gym gives the states of env.step of the registered environment, through a push."""
    twin = blind["twin"]
    env = ENVIRONMENTS["push_cube"](num_envs=1, obs_mode="none", contract=CONTRACT, domain="twin", sim_backend="physx_cpu",
                      render_backend="none")
    env.reset(seed=SEED)
    twin.reset(SEED)
    expert = make_expert("push_cube", CONTRACT, np.random.default_rng(0))
    done = False
    while not done:
        action = expert.act(twin.scene_state())
        result = twin.step(action)
        _, _, terminated, _, info = env.step(np.append(action[:6], 2 * action[6] - 1).astype(np.float32))
        qpos = env.agent.robot.qpos[0].numpy()
        np.testing.assert_allclose(twin.observe().joint_positions, qpos[:7], atol=2e-3)
        for color, pose in twin.scene_state().objects.items():
            np.testing.assert_allclose(pose.position, env.bodies[color].pose.p[0].numpy(), atol=2e-3)
        assert bool(info["success"]) == result.success
        assert bool(terminated) == result.done
        done = result.done
    assert result.success
    env.close()


def test_the_registered_environment_shows_what_the_twin_shows(rendered):
    env = gym.make("RlcoPushCube-v1", domain="standin", obs_mode="rgb", num_envs=1, sim_backend="physx_cpu",
                   render_backend="cpu")
    observation, _ = env.reset(seed=SEED)
    image = observation["sensor_data"][CAMERA]["rgb"][0].numpy()
    np.testing.assert_array_equal(image, rendered["standin"].reset(SEED).images[CAMERA])
    np.testing.assert_allclose(env.action_space.high[:6], CONTRACT.action.high[:6])
    _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
    assert (float(reward), bool(terminated), bool(truncated)) == (0.0, False, False)
    env.close()


def test_pushing_another_cube_fails_and_doing_nothing_times_out(blind):
    twin = blind["twin"]
    twin.reset(SEED)
    expert = make_expert("push_cube", CONTRACT, np.random.default_rng(0))
    other = next(color for color in twin.scene_state().objects if color != twin.scene_state().named)
    while not (result := twin.step(expert.act(dataclasses.replace(twin.scene_state(), named=other)))).done:
        pass
    assert result.failure
    assert not result.success
    twin.reset(SEED)
    for tick in range(1, CONTRACT.task("push_cube").max_steps + 1):
        result = twin.step(np.zeros(7))
        assert (result.steps, result.done) == (tick, tick == CONTRACT.task("push_cube").max_steps)
    assert not (result.success or result.failure)


def test_actions_are_clipped_and_non_finite_ones_refused(blind):
    twin = blind["twin"]
    twin.reset(SEED)
    twin.step(np.full(7, 10.0))
    clipped = twin.scene_state().to_json()
    twin.reset(SEED)
    twin.step(CONTRACT.action.high)
    assert twin.scene_state().to_json() == clipped
    with pytest.raises(ValueError, match="non-finite"):
        twin.step(np.full(7, np.nan))
    with pytest.raises(ValueError, match="non-finite"):
        twin.apply_target(Pose([np.inf, 0, 0], [0, 0, 0, 1]), 0.0)


def test_a_target_out_of_reach_is_counted_and_the_arm_holds(blind):
    twin = blind["twin"]
    twin.reset(SEED)
    before = twin.tool_pose()
    twin.apply_target(Pose([1.5, 0.0, 0.4], before.quaternion), 1.0)
    assert twin.unreached_targets == 1
    assert np.linalg.norm(twin.tool_pose().position - before.position) < 0.002


def test_the_scene_state_survives_its_json(blind):
    blind["twin"].reset(SEED)
    text = blind["twin"].scene_state().to_json()
    assert scene_state_from_json(text).to_json() == text


def test_misuse_is_named(blind):
    with pytest.raises(ConfigError, match=r"no twin for task 'juggle'.*push_cube"):
        Twin(CONTRACT, "juggle", render=False)
    with pytest.raises(ConfigError, match=r"no domain named 'moon'.*standin"):
        Twin(CONTRACT, "push_cube", "moon", render=False)
    with pytest.raises(TwinError, match="render=False"):
        blind["twin"].picture()


def test_cubes_and_tool_can_be_told_apart_at_policy_size(rendered):
    """At 64 px every cube covers enough pixels, and colours differ, in both domains."""
    from rlco_common.observation import encode_image

    for twin in rendered.values():
        image = encode_image(twin.reset(SEED).images[CAMERA], 64).astype(float)
        view = twin.domain.cameras[CAMERA]
        means = []
        for pose in twin.scene_state().objects.values():
            u, v = view.project(pose.position, 64, 64)
            patch = image[round(v) - 2 : round(v) + 2, round(u) - 2 : round(u) + 2].reshape(-1, 3)
            means.append(patch.mean(axis=0))
        distances = [np.linalg.norm(a - b) for i, a in enumerate(means) for b in means[:i]]
        assert min(distances) > 25


def test_the_picture_for_people_shows_the_domains_side_by_side():
    picture = side_by_side(CONTRACT, "push_cube", seed=SEED, width=160, height=120)
    assert picture.shape == (120, 2 * 160 + 8, 3)
    assert np.abs(picture[:, :160].astype(int) - picture[:, -160:]).mean() > 15
