"""The processes of a TwinPool: several scenes in each, arrays in shared memory, commands and answers through a pipe.

Commands wait in the pipe: a worker carries them out, and answers, in the order in which they were sent.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import traceback
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import RlcoError, TwinError
from rlco_common.observation import Observation, encode_image, encode_proprioception
from rlco_sim_bridge.domain import Domain
from rlco_sim_bridge.experts import make_expert
from rlco_sim_bridge.scene_state import PLACE_NAMES, StepResult
from rlco_sim_bridge.variation import Variation

NO_RESET = -1   # in reset_seeds: leave this scene as it is

# Memory of a worker process with its first scene, and of each further scene, as `make bench-sim` measured it (docs/twins.md).
PROCESS_BYTES, SCENE_BYTES = 600 * 2**20, 2.4 * 2**20

_NEVER_STARTED = StepResult(False, False, 0, done=True)
_STARTED = StepResult(False, False, 0, done=False)


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


@dataclass(frozen=True)
class Scenes:
    """What a worker needs to build its scenes; picklable."""

    contract: Contract
    task: str
    domains: tuple[str | Domain, ...]
    variation: Variation
    layout: object
    render: bool
    image_size: int | None


class SharedMemory:
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

    def __init__(self, spec: Scenes, memory: SharedMemory, first: int):
        from rlco_sim_bridge.twin import Twin  # a parent that only holds workers needs no simulator

        self._spec, self._memory, self._first = spec, memory, first
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
        return [self._instruction(i) for i in range(len(self._twins))]

    def step_chunk(self, scenes, actions, reset_seeds, ending):
        """Of the scenes with these indices here; their instructions after it."""
        for row, i in enumerate(scenes):
            executed = self._act(i, actions[row])
            if ending[row]:
                self._results[i] = replace(self._results[i], done=True)
            result = self._results[i]
            self._memory.outcome[self._first + i] = (result.success, result.failure, result.done, result.steps, executed)
            if result.done and reset_seeds[row] != NO_RESET:
                self._reset(i, reset_seeds[row])
            elif executed:
                self._show(i, self._twins[i].observe())
        return [self._instruction(i) for i in scenes]

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

    def _instruction(self, i):
        return "" if self._results[i] is _NEVER_STARTED else self._twins[i].instruction


class LocalWorker:
    """A worker without a process: it does what it is told while it is told."""

    def __init__(self, spec: Scenes, memory: SharedMemory, first: int):
        self._group = _SceneGroup(spec, memory, first)
        self._answers: deque = deque()

    def send(self, method, args):
        self._answers.append(getattr(self._group, method)(*args))

    def receive(self):
        return self._answers.popleft()

    def drain(self, timeout_s):
        self._answers.popleft()

    def hang_up(self):
        self._group.close()

    def join(self):
        """There is no process."""


class WorkerProcess:
    """A worker process and its pipe. first: number of its first scene in the memory."""

    def __init__(self, spec: Scenes, memory: SharedMemory, first: int):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec, memory, first), daemon=True, name="rlco_twin")
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
        with contextlib.suppress(EOFError, OSError):   # it died; whoever calls it next is told
            if self._pipe.poll(timeout_s):
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


def _serve(pipe, spec, memory, first):
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
            group = group or _SceneGroup(spec, memory, first)
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
