"""A batch in one ManiSkill environment gives what twins in worker processes give; the GPU backend where there is a GPU."""

import numpy as np
import pytest
import torch

from rlco_common import seeds
from rlco_common.contract import load_contract
from rlco_common.errors import ConfigError, TwinError
from rlco_common.observation import encode_image
from rlco_sim_bridge.batched_pool import BatchedPool, encode_images
from rlco_sim_bridge.environment import make_environment
from rlco_sim_bridge.experts import make_expert
from rlco_sim_bridge.pool import TwinPool
from rlco_sim_bridge.pool_worker import NO_RESET
from rlco_sim_bridge.scenes import open_scenes
from rlco_sim_bridge.tasks import TASKS
from rlco_sim_bridge.twin import Twin
from rlco_sim_bridge.variation import Variation

CONTRACT = load_contract()
FIRST = seeds.SELECTION[200]
CAMERA = "front_camera"
CHUNK = 4
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: GPU backend not tested here")


def expert_actions(task, seed):
    """[T, 7] of an episode that succeeds."""
    twin = Twin(CONTRACT, task, render=False)
    twin.reset(seed)
    expert, actions = make_expert(task, CONTRACT, np.random.default_rng(0)), []
    while True:
        actions.append(expert.act(twin.scene_state()))
        result = twin.step(actions[-1])
        if result.done:
            assert result.success
            twin.close()
            return np.array(actions)


def chunks_of(actions):
    """[n, 1, CHUNK, 7]; the last action is repeated to fill the last chunk."""
    missing = -len(actions) % CHUNK
    return np.concatenate([actions, actions[-1:].repeat(missing, axis=0)]).reshape(-1, 1, CHUNK, 7)


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_one_scene_on_a_cpu_equals_a_twin_pool(task):
    """Through an episode of the expert: the same start, close states, the same success at the same tick."""
    render = task == "push_cube"
    with (TwinPool(CONTRACT, task, "standin", scenes=1, workers=0, image_size=64, render=render) as pool,
          BatchedPool(CONTRACT, task, "standin", scenes=1, image_size=64, render=render, sim_backend="physx_cpu") as batch):
        assert batch.reset([NO_RESET]).instructions == [""]
        expected, first = pool.reset([FIRST]), batch.reset([FIRST])
        assert first.instructions == expected.instructions
        assert first.images.keys() == expected.images.keys()
        for name, images in expected.images.items():
            np.testing.assert_array_equal(first.images[name], images)
        np.testing.assert_allclose(first.proprioception, expected.proprioception, atol=1e-5)
        np.testing.assert_allclose(first.places, expected.places, atol=1e-5)
        for actions in chunks_of(expert_actions(task, FIRST)):
            wanted, got = pool.step_chunks(actions), batch.step_chunks(actions)
            np.testing.assert_allclose(got.observations.proprioception, wanted.observations.proprioception, atol=3e-3)
            np.testing.assert_allclose(got.observations.places, wanted.observations.places, atol=3e-3)
            for field in ("success", "failure", "done", "steps", "executed"):
                np.testing.assert_array_equal(getattr(got, field), getattr(wanted, field), field)


def test_a_missed_grasp_is_the_same_start_on_both():
    options = {"scenes": 1, "image_size": 64, "render": False, "variation": Variation(start="missed")}
    with (TwinPool(CONTRACT, "pick_place", workers=0, **options) as pool,
          BatchedPool(CONTRACT, "pick_place", sim_backend="physx_cpu", **options) as batch):
        expected, got = (each.reset([FIRST]).proprioception for each in (pool, batch))
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert expected[0, -1] == 0.0, "the gripper is closed"


@pytest.fixture(scope="module")
def batch():
    with BatchedPool(CONTRACT, "push_cube", scenes=1, image_size=64, sim_backend="physx_cpu") as batch:
        yield batch


def test_a_done_scene_stops_inside_the_chunk_and_starts_the_next_episode(batch):
    limit = CONTRACT.task("push_cube").max_steps
    batch.reset([FIRST])
    start = batch.reset([FIRST + 1]).images[CAMERA].copy()
    assert not batch.step_chunks(np.zeros((1, limit - 1, 7))).done.any()
    last = batch.step_chunks(np.zeros((1, CHUNK, 7)))
    assert (last.done[0], last.executed[0], last.steps[0]) == (True, 1, limit)
    stays = batch.step_chunks(np.zeros((1, CHUNK, 7)))
    assert (stays.done[0], stays.executed[0]) == (True, 0)
    again = batch.step_chunks(np.zeros((1, CHUNK, 7)), [FIRST + 1])
    assert (again.done[0], again.executed[0], again.steps[0]) == (True, 0, limit)
    np.testing.assert_array_equal(again.observations.images[CAMERA], start)
    assert batch.step_chunks(np.zeros((1, CHUNK, 7))).steps[0] == CHUNK


def test_a_scene_is_rendered_once_per_chunk_and_not_at_a_reset_within_it(batch, monkeypatch):
    batch.reset([FIRST])
    camera, captured = batch._cameras[CAMERA], []
    capture = camera.capture
    monkeypatch.setattr(camera, "capture", lambda: (captured.append(1), capture()))
    batch.step_chunks(np.zeros((1, CONTRACT.task("push_cube").max_steps, 7)), [FIRST + 1])
    assert len(captured) == 1


def test_a_partial_reset_leaves_the_targets_of_other_scenes_alone():
    """ManiSkill resets the controllers of all scenes; a scene that goes on would forget where its arm was going."""
    env = make_environment("push_cube", render=False, contract=CONTRACT)
    env.reset(seed=[FIRST])
    env.step(torch.tensor([[0.05, 0.03, -0.02, 0.0, 0.1, 0.2, 1.0]]))
    arm = env.agent.controller.controllers["arm"]
    before = arm.targets()
    assert (before[2] - arm.ee_pose_at_base.raw_pose).abs().max() > 1e-3, "the arm should lag behind its target"
    env.reset(seed=[FIRST + 1], options={"env_idx": torch.tensor([], dtype=torch.long)})
    assert all(torch.equal(now, then) for now, then in zip(arm.targets(), before, strict=True))
    env.reset(seed=[FIRST + 1], options={"env_idx": torch.tensor([0])})
    assert not torch.equal(arm.targets()[2], before[2])
    env.close()


@pytest.mark.parametrize(("shape", "size", "levels"), [
    ((128, 128), 64, 0), ((128, 128), 128, 0), ((120, 160), 40, 0), ((128, 128), 96, 1), ((224, 224), 96, 1)])
def test_images_are_encoded_in_a_batch_as_one_by_one(shape, size, levels):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    batch = encode_images(torch.from_numpy(images), size).numpy()
    assert batch.dtype == np.uint8
    one_by_one = np.stack([encode_image(image, size) for image in images])
    assert np.abs(batch.astype(int) - one_by_one).max() <= levels
    with pytest.raises(TwinError, match="smaller than the policy's 512x512"):
        encode_images(torch.from_numpy(images), 512)


def test_what_a_batch_cannot_do_is_refused_by_name(batch):
    with pytest.raises(TwinError, match="holds one scene, not 2"):
        BatchedPool(CONTRACT, "push_cube", scenes=2, sim_backend="physx_cpu")
    with pytest.raises(ConfigError, match="no delay and no variation of camera or light"):
        BatchedPool(CONTRACT, "push_cube", scenes=1, sim_backend="physx_cpu", variation=Variation(camera=0.5))
    with pytest.raises(ValueError, match=r"actions must be \[1, n, 7\]"):
        batch.step_chunks(np.zeros((2, 4, 7)))
    with pytest.raises(ConfigError, match="backend must be cpu or gpu"):
        open_scenes(CONTRACT, "push_cube", backend="tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_the_gpu_backend_says_so():
    with pytest.raises(TwinError, match="no CUDA device"):
        open_scenes(CONTRACT, "push_cube", backend="gpu")


@GPU
@pytest.mark.parametrize("task", TASKS)
def test_a_batch_on_a_gpu_equals_a_twin_pool(task):
    """Equal starts, close motions while nothing is touched, and the expert's actions mostly succeed."""
    scenes = 8
    actions = np.zeros((scenes, CHUNK, 7))
    actions[..., 2], actions[..., 6] = 0.02, 1.0      # up, away from everything
    with (open_scenes(CONTRACT, task, scenes=scenes, workers=1, image_size=64) as pool,
          open_scenes(CONTRACT, task, scenes=scenes, backend="gpu", image_size=64) as batch):
        resets = list(range(FIRST, FIRST + scenes))
        expected, first = pool.reset(resets), batch.reset(resets)
        assert first.instructions == expected.instructions
        np.testing.assert_allclose(first.proprioception, expected.proprioception, atol=1e-3)
        for name, images in expected.images.items():     # another rasterizer: edges may differ
            assert np.abs(first.images[name].astype(int) - images).mean() < 4
        wanted, got = pool.step_chunks(actions), batch.step_chunks(actions)
        np.testing.assert_allclose(got.observations.proprioception, wanted.observations.proprioception, atol=0.01)
        before = batch.step_chunks(np.zeros((scenes, 0, 7))).observations.proprioception
        after = batch.reset([FIRST + 50] + [NO_RESET] * (scenes - 1)).proprioception
        np.testing.assert_allclose(after[1:], before[1:], atol=1e-4)
