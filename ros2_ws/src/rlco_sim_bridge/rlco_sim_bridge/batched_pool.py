"""Many twins as one ManiSkill environment that steps them all at once, for its GPU backend; the interface of TwinPool.

Written for `sim_backend="gpu"` after ManiSkill's code and documentation, but not yet run on a GPU: only on a CPU, with one
scene.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError, TwinError
from rlco_common.observation import Observation, area_weights, encode_proprioception
from rlco_common.pose import Pose
from rlco_sim_bridge.domain import Domain, load_domain
from rlco_sim_bridge.environment import make_environment
from rlco_sim_bridge.pool import ChunkBatch, ObservationBatch, checked_request, per_scene
from rlco_sim_bridge.pool_worker import NO_RESET
from rlco_sim_bridge.tasks import load_task
from rlco_sim_bridge.variation import NOMINAL, Variation


class BatchedPool:
    """N scenes of one task in one environment, with the methods of TwinPool but for the expert's. They step at once: one group.

    sim_backend: "gpu" needs a CUDA device; "physx_cpu" holds one scene. What batching changes: a scene that is done holds its
    target while the others finish the chunk, so its last picture may be some ticks later; on a GPU the inverse kinematics is
    one step of ManiSkill's, so motions differ a little; all episodes share one physics system, so equal seeds give equal
    starts, but equal bits later only in a fresh pool.
    Raises TwinError without a CUDA device, ConfigError for what a batch cannot do: a domain with a delay, a variation of camera
    or light.
    """

    def __init__(self, contract: Contract, task: str, domain: str | Domain = "twin", scenes: int = 8, *,
                 variation: Variation = NOMINAL, image_size: int | None = None, layout=None, render: bool = True,
                 sim_backend: str = "gpu"):
        if sim_backend == "gpu" and not torch.cuda.is_available():
            raise TwinError("no CUDA device for the GPU backend; use worker processes (backend=cpu)")
        if sim_backend != "gpu" and scenes != 1:
            raise TwinError(f"a batch on a CPU holds one scene, not {scenes}; use worker processes (backend=cpu)")
        self._domain = load_domain(domain)
        if self._domain.arm.delay_s or variation.camera or variation.light:
            raise ConfigError("a batch has no delay and no variation of camera or light; use worker processes (backend=cpu)")
        self.contract, self.scenes = contract, scenes
        self.groups = [list(range(scenes))]     # they step at once
        self._ended: deque[ChunkBatch] = deque()
        self._image_size = image_size
        self._max_steps = contract.task(task).max_steps
        self._env = make_environment(task, num_envs=scenes, sim_backend=sim_backend, render=render, contract=contract,
                                     domain=self._domain, layout=load_task(task, layout).layout, variation=variation)
        self._cameras = {name: self._env._sensors[name] for name in contract.cameras} if render else {}
        self._seeds = np.zeros(scenes, dtype=np.int64)
        self._instructions = [""] * scenes
        self._gripper = np.ones(scenes)
        self._started = np.zeros(scenes, dtype=bool)
        self._success, self._failure = np.zeros(scenes, dtype=bool), np.zeros(scenes, dtype=bool)
        self._done, self._steps = np.ones(scenes, dtype=bool), np.zeros(scenes, dtype=np.int64)

    def reset(self, seeds: Sequence[int]) -> ObservationBatch:
        """Start episode seeds[i] in scene i; NO_RESET leaves a scene as it is. A scene never started stays done."""
        self._begin(per_scene(seeds, self.scenes, "seeds"))
        return self._observations()

    def step_chunks(self, actions: np.ndarray, reset_seeds: Sequence[int] | None = None) -> ChunkBatch:
        """Carry out n physical actions [N, n, 7] in every scene; each stops acting once its episode is done.

        reset_seeds [N]: a scene that is done starts this episode at once (NO_RESET: it stays). Renders once, at the end.
        """
        self.begin_chunks(range(self.scenes), actions, reset_seeds)
        return self.end_chunks()

    def begin_chunks(self, scenes: Sequence[int], actions: np.ndarray, reset_seeds: Sequence[int] | None = None,
                     ending: Sequence[bool] | None = None) -> None:
        """As TwinPool's; it is carried out here and now."""
        rows, actions, resets, ending = checked_request(scenes, actions, self.contract.action.dim, reset_seeds, ending)
        chosen, executed = np.zeros(self.scenes, dtype=bool), np.zeros(self.scenes, dtype=np.int64)
        chosen[rows] = True
        commands = np.zeros((self.scenes, *actions.shape[1:]))
        commands[rows] = actions
        for tick in range(actions.shape[1]):
            acting = chosen & ~self._done
            if not acting.any():
                break
            self._act(commands[:, tick], acting)
            executed += acting
        self._done[rows] |= ending
        outcome = [flags[rows] for flags in (self._success, self._failure, self._done, self._steps, executed)]
        seeds = [NO_RESET] * self.scenes
        for row, seed in zip(rows, resets, strict=True):
            seeds[row] = seed if self._done[row] else NO_RESET
        self._begin(seeds)
        self._ended.append(ChunkBatch(self._observations().of(rows), *outcome))

    def end_chunks(self) -> ChunkBatch:
        """The outcome of the chunks that were begun first, in the order of their scenes."""
        return self._ended.popleft()

    def drain(self) -> None:
        """Forget outcomes that nobody asked for."""
        self._ended.clear()

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of workers: there are none."""
        return []

    def close(self) -> None:
        """Free the scenes."""
        self._cameras = {}
        self._env.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _begin(self, seeds: list[int]):
        """Start the episodes of all seeds but NO_RESET, in one partial reset."""
        rows = [row for row, seed in enumerate(seeds) if seed != NO_RESET]
        if not rows:
            return
        for row in rows:
            self._seeds[row] = seeds[row]
            self._instructions[row] = self._env.sample(seeds[row]).instruction
        # ManiSkill wants the seeds of all scenes, and reads those of env_idx
        self._env.reset(seed=self._seeds.tolist(), options={"env_idx": torch.tensor(rows, device=self._env.device)})
        self._started[rows] = True
        self._done[rows] = self._success[rows] = self._failure[rows] = False
        self._steps[rows], self._gripper[rows] = 0, 1.0

    def _act(self, actions, acting):
        """One control tick; scenes that do not act hold their target."""
        command = np.where(acting[:, None], self.contract.action.clip(actions), 0.0)
        self._gripper[acting] = command[acting, 6]
        command[:, 6] = 2.0 * self._gripper - 1.0       # ManiSkill's -1 closed, 1 open
        *_, info = self._env.step(torch.tensor(command, dtype=torch.float32, device=self._env.device))
        self._success |= acting & info["success"].cpu().numpy()
        self._failure |= acting & info["fail"].cpu().numpy()
        self._steps += acting
        self._done |= self._success | self._failure | (self._steps >= self._max_steps)

    def _observations(self) -> ObservationBatch:
        images = {name: image.cpu().numpy() for name, image in self._pictures().items()}
        robot = self._env.agent
        qpos, tool = (tensor.cpu().numpy().astype(np.float64) for tensor in (robot.robot.get_qpos(), robot.tcp.pose.raw_pose))
        proprioception = np.stack([encode_proprioception(self.contract, Observation(
            {}, Pose(tool[row, :3], tool[row, [4, 5, 6, 3]]), self.contract.robot.gripper_opening(qpos[row, 7]), qpos[row, :7],
            0)) for row in range(self.scenes)])
        places = self._env.places().cpu().numpy()
        for array in (*images.values(), proprioception, places):
            array[~self._started] = 0
        return ObservationBatch(images, proprioception, list(self._instructions), places)

    def _pictures(self) -> dict[str, torch.Tensor]:
        """camera -> uint8 [N, H, W, 3] on the device, encoded for policies there."""
        if not self._cameras:
            return {}
        self._env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        for camera in self._cameras.values():
            camera.capture()
        pictures = {name: camera.get_obs(rgb=True, depth=False, position=False, segmentation=False)["rgb"]
                    for name, camera in self._cameras.items()}
        size = self._image_size
        pictures = {name: encode_images(picture, size) if size else picture.clone() for name, picture in pictures.items()}
        if self._env.device.type == "cuda":
            torch.cuda.synchronize()    # physics must not overwrite what the renderer still reads
        return pictures


def encode_images(images: torch.Tensor, size: int) -> torch.Tensor:
    """rlco_common.observation.encode_image for a batch: uint8 [N, H, W, 3] to [N, size, size, 3], on the images' device.

    The same bytes where size divides the camera's shorter side; otherwise rounding may differ by one level.
    """
    height, width = images.shape[1:3]
    side = min(height, width)
    if size > side:
        raise TwinError(f"camera images {width}x{height} are smaller than the policy's {size}x{size}; use a smaller size")
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, top:top + side, left:left + side]
    if side % size == 0:
        factor = side // size
        blocks = square.reshape(-1, size, factor, size, factor, 3).sum((2, 4), dtype=torch.int32)
        return ((blocks + factor * factor // 2) // (factor * factor)).to(torch.uint8)
    weights = torch.from_numpy(area_weights(side, size)).to(images.device)
    mean = torch.einsum("rh,nhwc,sw->nrsc", weights, square.to(torch.float32), weights)
    return (mean + 0.5).clamp(0, 255).to(torch.uint8)
