"""Many twins at once: a few worker processes, several scenes in each, batches of numpy arrays in and out.

A process pays seconds for its first scene (shaders) and little for each further one, so one process per core with many
scenes is the efficient split. A policy looks only once per chunk of actions, so a scene renders once per chunk.
"""

import multiprocessing.connection
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import TwinError
from rlco_sim_bridge.domain import Domain
from rlco_sim_bridge.pool_worker import NO_RESET, LocalWorker, Scenes, SharedMemory, WorkerProcess
from rlco_sim_bridge.variation import NOMINAL, Variation


@dataclass(frozen=True)
class ObservationBatch:
    """What N scenes look like.

    images: camera -> uint8 [N, H, W, 3] RGB, empty without rendering. proprioception: float32 [N, S], physical units.
    instructions: N strings. places: float32 [N, 6], the privileged SceneState.places, for training only.
    """

    images: dict[str, np.ndarray]
    proprioception: np.ndarray
    instructions: list[str]
    places: np.ndarray

    def of(self, scenes: Sequence[int]) -> "ObservationBatch":
        """Copies of some rows."""
        rows = np.asarray(scenes, dtype=np.int64)
        return ObservationBatch({name: np.asarray(images)[rows] for name, images in self.images.items()},
                                np.asarray(self.proprioception)[rows], [self.instructions[row] for row in rows],
                                np.asarray(self.places)[rows])


@dataclass(frozen=True)
class ChunkBatch:
    """The outcome of a chunk of actions in N scenes.

    success, failure, done: [N] bool, steps: [N] int64, of the episode that the chunk acted in. observations: after the
    chunk; of the next episode where the scene was reset. executed: [N] how many actions of the chunk were carried out.
    """

    observations: ObservationBatch
    success: np.ndarray
    failure: np.ndarray
    done: np.ndarray
    steps: np.ndarray
    executed: np.ndarray


def checked_chunks(actions, scenes: int, dim: int) -> np.ndarray:
    """float64 [scenes, n, dim]. Raises ValueError on another shape or non-finite actions."""
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 3 or actions.shape[0] != scenes or actions.shape[2] != dim:
        raise ValueError(f"actions must be [{scenes}, n, {dim}], got {list(actions.shape)}")
    if not np.isfinite(actions).all():
        raise ValueError("non-finite actions; the policy has diverged")
    return actions


def per_scene(values: Sequence[int], scenes: int, what: str) -> list[int]:
    """One integer for each scene. Raises ValueError on another number of them."""
    if len(values) != scenes:
        raise ValueError(f"{what}: need one for each of the {scenes} scenes, got {len(values)}")
    return [int(value) for value in values]


def checked_request(scenes: Sequence[int], actions, dim: int, reset_seeds: Sequence[int] | None,
                    ending: Sequence[bool] | None) -> tuple[list[int], np.ndarray, list[int], list[bool]]:
    """(scenes, actions, reset_seeds, ending) of begin_chunks with what was left out: nothing is reset, nothing ends."""
    scenes = list(scenes)
    resets = per_scene([NO_RESET] * len(scenes) if reset_seeds is None else reset_seeds, len(scenes), "reset_seeds")
    ends = per_scene([False] * len(scenes) if ending is None else ending, len(scenes), "ending")
    return scenes, checked_chunks(actions, len(scenes), dim), resets, list(map(bool, ends))


class TwinPool:
    """N scenes of one task in `workers` processes; workers=0 runs them in this process.

    domain: one for all scenes, or a sequence with one per scene. image_size: images are encoded to this size for policies
    (rlco_common.observation.encode_image); None keeps the camera's size. A dead worker raises TwinError; close the pool
    then. Use as a context manager. The calling script needs an `if __name__ == "__main__"` guard when workers > 0.

    groups: the scenes in two groups, each with half of every worker's (one group where there are too few). While the
    workers step one group, a policy can decide for the other: begin_chunks and end_chunks.
    """

    def __init__(self, contract: Contract, task: str, domain: str | Domain | Sequence = "twin",
                 scenes: int = 8, workers: int = 2, *, variation: Variation = NOMINAL, image_size: int | None = None,
                 layout=None, render: bool = True, timeout_s: float = 300.0):
        domains = (domain,) * scenes if isinstance(domain, (str, Domain)) else tuple(domain)
        if scenes < 1 or len(domains) != scenes:
            raise TwinError(f"a pool of {scenes} scenes needs one domain, or one for each; got {len(domains)}")
        self.scenes = scenes
        self.contract = contract
        self._parts = [part.tolist() for part in np.array_split(np.arange(scenes), min(workers, scenes) or 1)]
        self.groups = _halves(self._parts) if workers else [list(range(scenes))]
        self._memory = SharedMemory(contract, scenes, image_size, render, shared=workers > 0)
        self._instructions = [""] * scenes
        self._under_way: deque = deque()
        self._timeout_s = timeout_s
        make = WorkerProcess if workers else LocalWorker
        self._workers = [make(Scenes(contract, task, tuple(domains[scene] for scene in part), variation, layout, render,
                                     image_size), self._memory, part[0]) for part in self._parts]
        self._call_all("ready", [()] * len(self._workers))

    def reset(self, seeds: Sequence[int]) -> ObservationBatch:
        """Start episode seeds[i] in scene i; NO_RESET leaves a scene as it is. A scene never started stays done."""
        self._require_idle()
        seeds = per_scene(seeds, self.scenes, "seeds")
        self._instructions = [text for part in self._call_all(
            "reset", [([seeds[scene] for scene in part],) for part in self._parts]) for text in part]
        return self._observations().of(range(self.scenes))

    def step_chunks(self, actions: np.ndarray, reset_seeds: Sequence[int] | None = None) -> ChunkBatch:
        """Carry out n physical actions [N, n, 7] in every scene; each stops acting once its episode is done.

        reset_seeds [N]: a scene that is done starts this episode at once (NO_RESET: it stays); its terminal state is
        then not rendered. A scene that stays done ignores further chunks until `reset`.
        """
        self._require_idle()
        self.begin_chunks(range(self.scenes), actions, reset_seeds)
        return self.end_chunks()

    def begin_chunks(self, scenes: Sequence[int], actions: np.ndarray, reset_seeds: Sequence[int] | None = None,
                     ending: Sequence[bool] | None = None) -> None:
        """As step_chunks, in some scenes, without waiting for it; `end_chunks` has the outcome.

        actions [n scenes, n, 7], reset_seeds and ending [n scenes]. ending: the episode is done after this chunk, as it is.
        """
        scenes, actions, resets, ending = checked_request(scenes, actions, self.contract.action.dim, reset_seeds, ending)
        busy = []
        for worker, part in zip(self._workers, self._parts, strict=True):
            rows = [row for row, scene in enumerate(scenes) if part[0] <= scene <= part[-1]]
            if rows:
                worker.send("step_chunk", ([scenes[row] - part[0] for row in rows], actions[rows],
                                           [resets[row] for row in rows], [ending[row] for row in rows]))
                busy.append((worker, [scenes[row] for row in rows]))
        self._under_way.append((scenes, busy))

    def end_chunks(self) -> ChunkBatch:
        """Wait for the chunks that were begun first. Their outcome, in the order of their scenes."""
        scenes, busy = self._under_way.popleft()
        replies = self._receive([worker for worker, _ in busy])
        for (_, part), texts in zip(busy, replies, strict=True):
            for scene, text in zip(part, texts, strict=True):
                self._instructions[scene] = text
        outcome = np.array(self._memory.outcome[scenes])
        return ChunkBatch(self._observations().of(scenes), outcome[:, 0] > 0, outcome[:, 1] > 0, outcome[:, 2] > 0,
                          outcome[:, 3], outcome[:, 4])

    def drain(self) -> None:
        """Let chunks that are under way end, and forget them."""
        while self._under_way:
            for worker, _ in self._under_way.popleft()[1]:
                worker.drain(self._timeout_s)

    def rollout_expert(self, seeds: Sequence[int], noise: float = 0.0, kind: str = "scripted"):
        """Yield the expert's Rollout of every seed, in the order of the seeds; workers run ahead of the consumer.

        Uses the first scene of each worker; call `reset` before stepping the pool again. The expert's disturbance comes
        from the episode's seed, so a rollout does not depend on the number of workers. kind: see experts.make_expert.
        """
        self._require_idle()
        waiting = list(seeds)[::-1]
        order, finished = list(seeds), {}
        busy = {}
        try:
            for worker in self._workers:
                self._start_rollout(worker, waiting, busy, (noise, kind))
            for seed in order:
                while seed not in finished:
                    for worker in self._wait(list(busy)):
                        finished[busy.pop(worker)] = worker.receive()
                        self._start_rollout(worker, waiting, busy, (noise, kind))
                yield finished.pop(seed)
        finally:
            for worker in busy:   # the consumer stopped early: take the answers that are under way
                worker.drain(self._timeout_s)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers; empty in-process."""
        return [worker.pid for worker in self._workers if isinstance(worker, WorkerProcess)]

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _start_rollout(self, worker, waiting, busy, style):
        if waiting:
            busy[worker] = waiting.pop()
            worker.send("rollout", (busy[worker], *style))

    def _call_all(self, method, arguments):
        for worker, args in zip(self._workers, arguments, strict=True):
            worker.send(method, args)
        return self._receive(self._workers)

    def _receive(self, workers):
        """The next answer of each."""
        replies = {}
        while len(replies) < len(workers):
            for worker in self._wait([worker for worker in workers if worker not in replies]):
                replies[worker] = worker.receive()
        return [replies[worker] for worker in workers]

    def _require_idle(self):
        if self._under_way:
            raise TwinError("chunks are under way in this pool; call end_chunks for them, or drain")

    def _wait(self, workers):
        """The workers that have something to say: an answer, or their death."""
        local = [worker for worker in workers if isinstance(worker, LocalWorker)]
        if local:
            return local
        handles = {handle: worker for worker in workers for handle in worker.handles()}
        ready = multiprocessing.connection.wait(list(handles), timeout=self._timeout_s)
        if not ready:
            raise TwinError(f"no answer from {len(workers)} twin worker(s) within {self._timeout_s:.0f} s; close the pool")
        return list(dict.fromkeys(handles[handle] for handle in ready))

    def _observations(self):
        """Of all scenes, in the memory that workers write to."""
        memory = self._memory
        return ObservationBatch(memory.images, memory.proprioception, self._instructions, memory.places)


def _halves(parts: list[list[int]]) -> list[list[int]]:
    """Two groups of scenes with half of each part; one when a part is too small for that."""
    if min(map(len, parts)) < 2:
        return [[scene for part in parts for scene in part]]
    return [[scene for part in parts for scene in part[: len(part) // 2]],
            [scene for part in parts for scene in part[len(part) // 2:]]]
