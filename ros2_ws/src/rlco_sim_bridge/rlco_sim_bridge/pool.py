"""Many twins at once: a few worker processes, several scenes in each, batches of numpy arrays in and out.

A process pays seconds for its first scene (shaders) and little for each further one, so one process per core with many
scenes is the efficient split. A policy looks only once per chunk of actions, so a scene renders once per chunk.
"""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import RlcoError, TwinError
from rlco_common.observation import Observation, encode_image, encode_proprioception
from rlco_sim_bridge.domain import Domain
from rlco_sim_bridge.experts import make_expert
from rlco_sim_bridge.scene_state import PLACE_NAMES, StepResult
from rlco_sim_bridge.variation import NOMINAL, Variation

NO_RESET = -1   # in reset_seeds: leave this scene as it is

# Memory of a worker process with its first scene, and of each further scene, as `make bench-sim` measured it (docs/twins.md).
PROCESS_BYTES, SCENE_BYTES = 600 * 2**20, 2.4 * 2**20


_NEVER_STARTED = StepResult(False, False, 0, done=True)
_STARTED = StepResult(False, False, 0, done=False)


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


@dataclass(frozen=True)
class Rollout:
    """One episode of the scripted expert, T control ticks.

    observations: what was seen before each action. actions: [T, 7] commanded, intended: [T, 7] the expert's before its
    disturbance; both physical.
    """

    seed: int
    instruction: str
    observations: list[Observation]
    actions: np.ndarray
    intended: np.ndarray
    success: bool
    failure: bool


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


@dataclass(frozen=True)
class _Scenes:
    """What a worker needs to build its scenes; picklable."""

    contract: Contract
    task: str
    domains: tuple[str | Domain, ...]
    variation: Variation
    layout: object
    render: bool
    image_size: int | None


class TwinPool:
    """N scenes of one task in `workers` processes; workers=0 runs them in this process.

    domain: one for all scenes, or a sequence with one per scene. image_size: images are encoded to this size for policies
    (rlco_common.observation.encode_image); None keeps the camera's size. A dead worker raises TwinError; close the pool
    then. Use as a context manager. The calling script needs an `if __name__ == "__main__"` guard when workers > 0.
    """

    def __init__(self, contract: Contract, task: str, domain: str | Domain | Sequence = "twin",
                 scenes: int = 8, workers: int = 2, *, variation: Variation = NOMINAL, image_size: int | None = None,
                 layout=None, render: bool = True, timeout_s: float = 300.0):
        domains = (domain,) * scenes if isinstance(domain, (str, Domain)) else tuple(domain)
        if scenes < 1 or len(domains) != scenes:
            raise TwinError(f"a pool of {scenes} scenes needs one domain, or one for each; got {len(domains)}")
        self.scenes = scenes
        self.contract = contract
        parts = np.array_split(np.arange(scenes), min(workers, scenes) or 1)
        self._slices = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
        self._memory = _Memory(contract, scenes, image_size, render, shared=workers > 0)
        self._timeout_s = timeout_s
        specs = [_Scenes(contract, task, domains[part], variation, layout, render, image_size) for part in self._slices]
        if workers:
            self._workers = [_Process(spec, self._memory, part) for spec, part in zip(specs, self._slices, strict=True)]
        else:
            self._workers = [_Local(spec, self._memory, part) for spec, part in zip(specs, self._slices, strict=True)]
        self._call_all("ready", [()] * len(self._workers))

    def reset(self, seeds: Sequence[int]) -> ObservationBatch:
        """Start episode seeds[i] in scene i; NO_RESET leaves a scene as it is. A scene never started stays done."""
        seeds = per_scene(seeds, self.scenes, "seeds")
        self._instructions = [text for part in self._call_all(
            "reset", [(seeds[part],) for part in self._slices]) for text in part]
        return self._observations()

    def step_chunks(self, actions: np.ndarray, reset_seeds: Sequence[int] | None = None) -> ChunkBatch:
        """Carry out n physical actions [N, n, 7] in every scene; each stops acting once its episode is done.

        reset_seeds [N]: a scene that is done starts this episode at once (NO_RESET: it stays); its terminal state is
        then not rendered. A scene that stays done ignores further chunks until `reset`.
        """
        actions = checked_chunks(actions, self.scenes, self.contract.action.dim)
        resets = per_scene([NO_RESET] * self.scenes if reset_seeds is None else reset_seeds, self.scenes, "reset_seeds")
        replies = self._call_all("step_chunk", [(actions[part], resets[part]) for part in self._slices])
        self._instructions = [text for part in replies for text in part]
        outcome = np.array(self._memory.outcome)
        return ChunkBatch(self._observations(), outcome[:, 0] > 0, outcome[:, 1] > 0, outcome[:, 2] > 0, outcome[:, 3],
                          outcome[:, 4])

    def rollout_expert(self, seeds: Sequence[int], noise: float = 0.0, kind: str = "scripted"):
        """Yield the expert's Rollout of every seed, in the order of the seeds; workers run ahead of the consumer.

        Uses the first scene of each worker; call `reset` before stepping the pool again. The expert's disturbance comes
        from the episode's seed, so a rollout does not depend on the number of workers. kind: see experts.make_expert.
        """
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
        return [worker.pid for worker in self._workers if isinstance(worker, _Process)]

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
        replies = {}
        while len(replies) < len(self._workers):
            for worker in self._wait([worker for worker in self._workers if worker not in replies]):
                replies[worker] = worker.receive()
        return [replies[worker] for worker in self._workers]

    def _wait(self, workers):
        """The workers that have something to say: an answer, or their death."""
        local = [worker for worker in workers if isinstance(worker, _Local)]
        if local:
            return local
        handles = {handle: worker for worker in workers for handle in worker.handles()}
        ready = multiprocessing.connection.wait(list(handles), timeout=self._timeout_s)
        if not ready:
            raise TwinError(f"no answer from {len(workers)} twin worker(s) within {self._timeout_s:.0f} s; close the pool")
        return list(dict.fromkeys(handles[handle] for handle in ready))

    def _observations(self):
        images = {name: np.array(array) for name, array in self._memory.images.items()}
        return ObservationBatch(images, np.array(self._memory.proprioception), list(self._instructions),
                                np.array(self._memory.places))


class _Memory:
    """The arrays that workers fill: images per camera, proprioception, places, outcome (success, failure, done, steps,
    executed)."""

    def __init__(self, contract, scenes, image_size, render, shared):
        allocate = _SharedArray if shared else np.zeros
        self.images = {
            name: allocate((scenes, image_size, image_size, 3) if image_size else (scenes, *camera.shape), np.uint8)
            for name, camera in contract.cameras.items()
        } if render else {}
        self.proprioception = allocate((scenes, len(contract.proprioception_names)), np.float32)
        self.places = allocate((scenes, len(PLACE_NAMES)), np.float32)
        self.outcome = allocate((scenes, 5), np.int64)


class _SharedArray(np.ndarray):
    """A numpy array in memory that a spawned process can be handed."""

    def __new__(cls, shape, dtype, raw=None):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = raw if raw is not None else multiprocessing.get_context("spawn").RawArray(ctypes.c_uint8, size)
        array = np.frombuffer(raw, dtype=dtype).reshape(shape).view(cls)
        array.raw = raw
        return array

    def __array_finalize__(self, other):
        self.raw = getattr(other, "raw", None)

    def __reduce__(self):
        return type(self), (self.shape, self.dtype, self.raw)


class _SceneGroup:
    """The scenes of one worker, writing into their part of the memory."""

    def __init__(self, spec: _Scenes, memory: _Memory, part: slice):
        from rlco_sim_bridge.twin import Twin  # a parent that only holds workers needs no simulator

        self._spec, self._memory, self._first = spec, memory, part.start
        self._twins = [Twin(spec.contract, spec.task, domain, variation=spec.variation, layout=spec.layout,
                            render=spec.render)
                       for domain in spec.domains]
        self._results = [_NEVER_STARTED] * len(self._twins)

    def ready(self):
        return None

    def reset(self, seeds):
        for i, seed in enumerate(seeds):
            if seed != NO_RESET:
                self._reset(i, seed)
        return self._instructions()

    def step_chunk(self, actions, reset_seeds):
        for i, twin in enumerate(self._twins):
            executed = self._act(i, actions[i])
            result = self._results[i]
            self._memory.outcome[self._first + i] = (result.success, result.failure, result.done, result.steps, executed)
            if result.done and reset_seeds[i] != NO_RESET:
                self._reset(i, reset_seeds[i])
            elif executed:
                self._show(i, twin.observe())
        return self._instructions()

    def rollout(self, seed, noise, kind):
        twin = self._twins[0]
        expert = make_expert(self._spec.task, self._spec.contract, np.random.default_rng([seed, 1]), noise, kind)
        observation = twin.reset(seed)
        observations, actions, intended = [], [], []
        while True:
            observations.append(observation)
            actions.append(expert.act(twin.scene_state()))
            intended.append(expert.intended)
            result = twin.step(actions[-1])
            if result.done:
                return Rollout(seed, twin.instruction, observations, np.array(actions), np.array(intended),
                               result.success, result.failure)
            observation = twin.observe()

    def close(self):
        for twin in self._twins:
            twin.close()

    def _act(self, i, actions):
        if self._results[i].done:
            return 0
        executed = 0
        for action in actions:
            self._results[i] = self._twins[i].step(action)
            executed += 1
            if self._results[i].done:
                break
        return executed

    def _reset(self, i, seed):
        self._show(i, self._twins[i].reset(seed))
        self._results[i] = _STARTED

    def _show(self, i, observation):
        row = self._first + i
        for name, image in observation.images.items():
            size = self._spec.image_size
            self._memory.images[name][row] = encode_image(image, size) if size else image
        self._memory.proprioception[row] = encode_proprioception(self._spec.contract, observation)
        self._memory.places[row] = self._twins[i].scene_state().places()

    def _instructions(self):
        return ["" if result is _NEVER_STARTED else twin.instruction
                for twin, result in zip(self._twins, self._results, strict=True)]


class _Local:
    """A worker without a process."""

    def __init__(self, spec, memory, part):
        self._group = _SceneGroup(spec, memory, part)

    def send(self, method, args):
        self._answer = getattr(self._group, method)(*args)

    def receive(self):
        return self._answer

    def drain(self, timeout_s):
        """Nothing is ever under way here."""

    def hang_up(self):
        self._group.close()

    def join(self):
        """There is no process."""


class _Process:
    """A worker process and its pipe."""

    def __init__(self, spec, memory, part):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec, memory, part), daemon=True, name="rlco_twin")
        self._process.start()
        theirs.close()

    @property
    def pid(self):
        return self._process.pid

    def handles(self):
        return self._pipe, self._process.sentinel

    def send(self, method, args):
        try:
            self._pipe.send((method, args))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death() from error

    def receive(self):
        if not self._pipe.poll():
            raise self._death()
        try:
            error, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError) as cause:
            raise self._death() from cause
        if error is not None:
            raise TwinError(f"twin worker (pid {self.pid}) failed:\n{error}")
        return answer

    def drain(self, timeout_s):
        if self._pipe.poll(timeout_s):
            with contextlib.suppress(EOFError, ConnectionResetError):   # it died; whoever calls it next is told
                self._pipe.recv()

    def hang_up(self):
        self._pipe.close()   # the worker ends when the pipe does

    def join(self):
        self._process.join(timeout=5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _death(self):
        self._process.join(timeout=5.0)
        code = self._process.exitcode
        cause = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        hint = "; it may have run out of memory" if code == -signal.SIGKILL else ""
        return TwinError(f"twin worker (pid {self.pid}) died with {cause}{hint}; close the pool and make a new one")


def _serve(pipe, spec, memory, part):
    """Main of a worker process: answer (method, args) with (error, answer) until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C ends the parent, and the parent's end ends this
    os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    group = None
    while True:
        try:
            method, args = pipe.recv()
        except (EOFError, ConnectionResetError):
            break
        try:
            group = group or _SceneGroup(spec, memory, part)
            reply = (None, getattr(group, method)(*args))
        except RlcoError as error:
            reply = (str(error), None)
        except Exception:
            reply = (traceback.format_exc(), None)
        try:
            pipe.send(reply)
        except (BrokenPipeError, ConnectionResetError):
            break
    os._exit(0)   # taking the scenes apart one by one would take seconds
