"""Twins in worker processes give what one twin gives, and a worker that dies is an error at once."""

import os
import signal
import time

import numpy as np
import pytest

from rlco_common import seeds
from rlco_common.contract import load_contract
from rlco_common.errors import ConfigError, TwinError
from rlco_common.observation import encode_image, encode_proprioception
from rlco_sim_bridge.demos import DemoGenerator
from rlco_sim_bridge.pool import TwinPool
from rlco_sim_bridge.pool_worker import NO_RESET
from rlco_sim_bridge.twin import Twin

CONTRACT = load_contract()
FIRST = seeds.SELECTION[100]
CAMERA = "front_camera"
SCENES, CHUNK = 3, 4


@pytest.fixture(scope="module")
def pool():
    with TwinPool(CONTRACT, "push_cube", "twin", scenes=SCENES, workers=2, image_size=64) as pool:
        yield pool


@pytest.fixture(scope="module")
def twin():
    twin = Twin(CONTRACT, "push_cube", "twin")
    yield twin
    twin.close()


def chunks(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(CONTRACT.action.low, CONTRACT.action.high, (count, SCENES, CHUNK, 7)) * 0.5


def assert_shows(batch, row, observation):
    np.testing.assert_array_equal(batch.images[CAMERA][row], encode_image(observation.images[CAMERA], 64))
    np.testing.assert_array_equal(batch.proprioception[row], encode_proprioception(CONTRACT, observation))


def test_a_pool_equals_a_single_twin(pool, twin):
    actions = chunks(3)
    first = pool.reset(range(FIRST, FIRST + SCENES))
    batches = [pool.step_chunks(chunk) for chunk in actions]
    assert first.images[CAMERA].shape == (SCENES, 64, 64, 3)
    for row in range(SCENES):
        assert_shows(first, row, twin.reset(FIRST + row))
        assert first.instructions[row] == twin.instruction
        for chunk, batch in zip(actions, batches, strict=True):
            result = [twin.step(action) for action in chunk[row]][-1]
            assert not result.done, "choose another seed: this test is about running episodes"
            assert (batch.steps[row], batch.executed[row], batch.done[row]) == (result.steps, CHUNK, False)
            assert_shows(batch.observations, row, twin.observe())


def test_results_do_not_depend_on_the_number_of_workers(pool):
    actions = chunks(2, seed=1)
    pool.reset(range(FIRST, FIRST + SCENES))
    spread = [pool.step_chunks(chunk) for chunk in actions]
    with TwinPool(CONTRACT, "push_cube", "twin", scenes=SCENES, workers=0, image_size=64) as local:
        local.reset(range(FIRST, FIRST + SCENES))
        for chunk, expected in zip(actions, spread, strict=True):
            batch = local.step_chunks(chunk)
            np.testing.assert_array_equal(batch.observations.images[CAMERA], expected.observations.images[CAMERA])
            np.testing.assert_array_equal(batch.observations.proprioception, expected.observations.proprioception)


def test_groups_that_step_one_beside_the_other_give_what_all_at_once_give():
    """Each group is told its next chunk while the other has one under way."""
    actions = np.random.default_rng(3).uniform(CONTRACT.action.low, CONTRACT.action.high, (3, 5, CHUNK, 7)) * 0.5
    with TwinPool(CONTRACT, "push_cube", "twin", scenes=5, workers=2, image_size=64) as pool:
        pool.reset(range(FIRST, FIRST + 5))
        whole = [pool.step_chunks(chunk) for chunk in actions]
        assert sorted(scene for group in pool.groups for scene in group) == list(range(5))
        assert pool.groups == [[0, 3], [1, 2, 4]], "half of each worker's scenes"
        pool.reset(range(FIRST, FIRST + 5))
        pool.begin_chunks(pool.groups[0], actions[0][pool.groups[0]])
        for turn in range(3):
            pool.begin_chunks(pool.groups[1], actions[turn][pool.groups[1]])
            for group in pool.groups:
                outcome = pool.end_chunks()
                for row, scene in enumerate(group):
                    for name in ("success", "done", "steps", "executed"):
                        assert getattr(outcome, name)[row] == getattr(whole[turn], name)[scene]
                    for name in ("proprioception", "places"):
                        np.testing.assert_array_equal(getattr(outcome.observations, name)[row],
                                                      getattr(whole[turn].observations, name)[scene])
                    np.testing.assert_array_equal(outcome.observations.images[CAMERA][row],
                                                  whole[turn].observations.images[CAMERA][scene])
                if group is pool.groups[0] and turn < 2:
                    pool.begin_chunks(group, actions[turn + 1][group])


def test_a_pool_with_chunks_under_way_refuses_other_work_until_they_ended(pool):
    pool.reset(range(FIRST, FIRST + SCENES))
    pool.begin_chunks([0], np.zeros((1, 1, 7)))
    for work in (lambda: pool.reset([FIRST] * SCENES), lambda: pool.step_chunks(np.zeros((SCENES, 1, 7))),
                 lambda: next(pool.rollout_expert([FIRST]))):
        with pytest.raises(TwinError, match="chunks are under way"):
            work()
    pool.drain()
    assert pool.reset([FIRST, NO_RESET, NO_RESET]).instructions[0]
    assert pool.step_chunks(np.zeros((SCENES, 1, 7))).steps.tolist() == [1, 1, 1]


def test_an_episode_that_is_to_end_makes_room_for_the_next(pool, twin):
    pool.reset(range(FIRST, FIRST + SCENES))
    pool.begin_chunks([2, 0], chunks(1)[0][:2], [FIRST + 50, NO_RESET], [True, True])
    outcome = pool.end_chunks()
    assert outcome.done.tolist() == [True, True] and not outcome.success.any()
    assert outcome.executed.tolist() == outcome.steps.tolist() == [CHUNK, CHUNK]
    assert_shows(outcome.observations, 0, twin.reset(FIRST + 50))
    after = pool.step_chunks(np.zeros((SCENES, CHUNK, 7)))
    assert after.executed.tolist() == [0, CHUNK, CHUNK]


def run_out(pool):
    """Use up max_steps but for one tick in every scene."""
    pool.reset(range(FIRST, FIRST + SCENES))
    ticks = CONTRACT.task("push_cube").max_steps - 1
    still = np.zeros((SCENES, ticks, 7))
    assert not pool.step_chunks(still).done.any()


def test_a_done_scene_stops_inside_the_chunk_and_starts_the_next_episode(pool, twin):
    run_out(pool)
    batch = pool.step_chunks(np.zeros((SCENES, CHUNK, 7)), [FIRST + 50, NO_RESET, FIRST + 51])
    assert batch.done.all()
    assert batch.executed.tolist() == [1, 1, 1]
    assert set(batch.steps) == {CONTRACT.task("push_cube").max_steps}
    assert_shows(batch.observations, 0, twin.reset(FIRST + 50))
    assert batch.observations.instructions[0] == twin.instruction
    assert_shows(batch.observations, 2, twin.reset(FIRST + 51))
    after = pool.step_chunks(np.zeros((SCENES, CHUNK, 7)))
    assert after.done.tolist() == [False, True, False]
    assert after.executed.tolist() == [CHUNK, 0, CHUNK]
    assert after.steps.tolist() == [CHUNK, CONTRACT.task("push_cube").max_steps, CHUNK]


def test_demonstrations_are_the_same_for_any_number_of_workers(pool):
    """Although every worker saw other episodes before, with contacts."""
    episodes = range(FIRST, FIRST + 12)
    spread = list(pool.rollout_expert(episodes, noise=0.2))
    with TwinPool(CONTRACT, "push_cube", "twin", scenes=1, workers=0, render=False) as local:
        for demo, expected in zip(local.rollout_expert(episodes, noise=0.2), spread, strict=True):
            assert demo.seed == expected.seed
            assert len(demo.observations) == len(demo.actions)
            np.testing.assert_array_equal(demo.actions, expected.actions)
            assert demo.instruction == expected.instruction
            assert np.abs(demo.actions - demo.intended).max() > 0


def test_failed_demonstrations_are_rejected_and_a_hopeless_expert_is_an_error():
    generator = DemoGenerator(CONTRACT, "push_cube", "twin", range(FIRST, FIRST + 100), 100, noise=3.0, workers=0,
                              render=False)
    with pytest.raises(TwinError, match="the expert failed in"):
        list(generator)
    assert generator.rejected > 10
    with pytest.raises(TwinError, match="2 seeds gave only 2 of 3"):
        list(DemoGenerator(CONTRACT, "push_cube", "twin", range(FIRST, FIRST + 2), 3, noise=0.0, workers=0, render=False))


def test_bad_input_is_refused(pool):
    with pytest.raises(ValueError, match=r"actions must be \[3, n, 7\]"):
        pool.step_chunks(np.zeros((2, 4, 7)))
    with pytest.raises(ValueError, match="non-finite"):
        pool.step_chunks(np.full((SCENES, 1, 7), np.nan))
    with pytest.raises(ValueError, match="one for each of the 3 scenes"):
        pool.reset([1])


def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(TwinError, match="no domain named 'moon'"):
        TwinPool(CONTRACT, "push_cube", "moon", scenes=1, workers=1, render=False)
    with pytest.raises(ConfigError, match="no domain named 'moon'"):
        TwinPool(CONTRACT, "push_cube", "moon", scenes=1, workers=0, render=False)


def test_a_dead_worker_is_an_error_at_once():
    with TwinPool(CONTRACT, "push_cube", "twin", scenes=1, workers=1, render=False) as pool:
        pool.reset([FIRST])
        os.kill(pool.worker_pids[0], signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(TwinError, match="died with signal SIGKILL"):
            for _ in range(50):
                pool.step_chunks(np.zeros((1, 10, 7)))
        assert time.monotonic() - start < 5.0
