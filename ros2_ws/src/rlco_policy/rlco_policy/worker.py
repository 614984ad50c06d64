"""The inference thread: newest observation in, chunks out, on the schedule of an execution. Pure, no ROS and no model."""

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import numpy as np

from rlco_common.assembler import ObservationAssembler, ObservationUnavailable
from rlco_common.contract import Contract
from rlco_common.errors import RlcoError
from rlco_common.observation import Observation
from rlco_policy.execution import START, AsynchronousExecution, Continuation, SynchronousExecution

REPEAT_AFTER_S = 1.0      # lock step: the gate drops chunks at a takeover; without a new one both would wait for ever
JOIN_TIMEOUT_S = 10.0

Execution = SynchronousExecution | AsynchronousExecution


class Runner(Protocol):
    """A policy, here or on a server. horizon: predicted steps. guided: continues the chunk under way. latency_s: of an
    inference, as measured by warm_up."""

    horizon: int
    chunk: int
    guided: bool
    latency_s: float

    def warm_up(self) -> None: ...

    def new_episode(self, seed: int) -> None: ...

    def infer(self, observation: Observation, instruction: str, steps: int | None = None,
              continuation: Continuation = START) -> np.ndarray: ...

    def close(self) -> None: ...


class InferenceWorker:
    """Runs a policy on its own thread. Every public method may be called from any other thread."""

    def __init__(self, contract: Contract, runner: Runner, execution: Execution, *, lockstep: bool,
                 publish: Callable[[np.ndarray, int], None], clock_ns: Callable[[], int], warn: Callable[[str], None]):
        """publish(actions [n, 7], stamp_ns): called on the thread. clock_ns: the clock that stamps observations."""
        self._runner, self._execution, self._lockstep = runner, execution, lockstep
        self._publish, self._clock_ns, self._warn = publish, clock_ns, warn
        self._assembler = ObservationAssembler(contract)
        self._changed = threading.Condition()      # guards everything below
        self._stopping = False
        self._instruction, self._seed, self._episode, self._epoch, self._not_before_ns = "", 0, 0, 0, 0
        self._framed_ns: int | None = None
        self._counts = Counter(chunks=0, refused=0)
        self._latency_s = self._overhead_s = self._age_s = 0.0
        self._reason = self._failure = ""
        self._thread = threading.Thread(target=self._work_or_report, name="inference", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; an inference under way is waited for."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=JOIN_TIMEOUT_S)

    def feed(self, add: Callable[[ObservationAssembler], object]) -> None:
        """Hand a sample to the assembler; one that it refuses is reported."""
        with self._changed:
            try:
                add(self._assembler)
            except RlcoError as error:
                self._refuse(str(error))
            complete_ns = self._assembler.complete_ns
            if complete_ns is not None and complete_ns != self._framed_ns:
                self._framed_ns = complete_ns
                self._execution.frame(complete_ns)
            self._changed.notify_all()

    def instruct(self, instruction: str) -> None:
        with self._changed:
            self._instruction = instruction
            self._changed.notify_all()

    def new_episode(self, instruction: str, seed: int, begin_ns: int) -> None:
        """What was seen before `begin_ns` belongs to another episode."""
        with self._changed:
            self._instruction, self._seed, self._not_before_ns = instruction, seed, begin_ns
            self._episode += 1
            self._changed.notify_all()

    def interrupt(self) -> None:
        """The chunk under way is void, as the arm changed hands; the next observation starts a new one."""
        with self._changed:
            self._execution.interrupt()
            self._epoch += 1
            self._changed.notify_all()

    def status(self) -> tuple[bool, str, dict[str, object]]:
        """(whether it has failed for good, what is wrong or "", values to publish)."""
        with self._changed:
            now_ns = self._clock_ns()
            values = {**self._counts, "latency_s": f"{self._latency_s:.4f}", "overhead_s": f"{self._overhead_s:.4f}",
                      "image_age_s": f"{self._age_s:.4f}", **self._execution.report(now_ns)}
            return bool(self._failure), self._failure or self._stale_input(now_ns) or self._reason, values

    # -- the thread

    def _work_or_report(self) -> None:
        try:
            self._work()
        except Exception as error:      # whatever it is, a node that goes on silently without its thread is worse
            self._failure = f"inference ended with {error!r}; restart the node"
            self._warn(f"{self._failure}\n{traceback.format_exc()}")

    def _work(self) -> None:
        episode, sent, sent_at = -1, None, 0.0
        while True:
            with self._changed:
                if self._stopping:
                    return
                if episode != self._episode:
                    episode, sent = self._episode, None
                    self._runner.new_episode(self._seed)
                    self._execution.interrupt()
                observation = self._due_observation()
                repeat_in_s = sent_at + REPEAT_AFTER_S - time.monotonic() if sent is not None and self._lockstep else None
                if observation is None and (repeat_in_s is None or repeat_in_s > 0):
                    self._changed.wait(repeat_in_s)
                    continue
                began, instruction, epoch = time.monotonic(), self._instruction, self._epoch
                continuation = START if observation is None else self._execution.begin(observation.stamp_ns)
            if observation is not None:
                steps = self._infer(observation, instruction, continuation)
                if steps is None:
                    with self._changed:
                        self._changed.wait(REPEAT_AFTER_S)      # the same observation would fail again
                    continue
                with self._changed:
                    if (episode, epoch) != (self._episode, self._epoch):
                        continue        # it goes on from a chunk that is void
                    sent = self._execution.finish(observation.stamp_ns, steps, self._clock_ns()), observation.stamp_ns
            if sent is not None and episode == self._episode:
                self._publish(*sent)
                sent_at = time.monotonic()
                if observation is not None:
                    self._overhead_s = sent_at - began - self._latency_s

    def _due_observation(self) -> Observation | None:
        """The observation for the next chunk when one is due, else None. Called with the lock held."""
        complete_ns = self._assembler.complete_ns
        if complete_ns is None or complete_ns < self._not_before_ns or not self._execution.due(complete_ns):
            return None
        if not self._instruction:
            self._refuse("no instruction: set the parameter, or let a reset event bring one")
            return None
        now_ns = complete_ns if self._lockstep else max(complete_ns, self._clock_ns())
        try:
            observation = self._assembler.observation_at(now_ns)
        except ObservationUnavailable as error:
            self._refuse(str(error))
            return None
        self._age_s = (now_ns - observation.stamp_ns) * 1e-9
        return observation

    def _infer(self, observation: Observation, instruction: str, continuation: Continuation) -> np.ndarray | None:
        started = time.monotonic()
        try:
            steps = self._runner.infer(observation, instruction, self._execution.steps, continuation)
        except RlcoError as error:
            with self._changed:
                self._refuse(str(error))
            return None
        with self._changed:
            self._counts["chunks"] += 1
            self._latency_s, self._reason = time.monotonic() - started, ""
        return steps

    def _refuse(self, reason: str) -> None:
        self._counts["refused"] += 1
        self._reason = reason
        self._warn(f"no chunk: {reason}")

    def _stale_input(self, now_ns: int) -> str:
        """Why no observation could be given now, in real time: a camera that stopped makes no chunk due any more."""
        if self._lockstep:
            return ""
        try:
            self._assembler.observation_at(max(self._assembler.complete_ns or 0, now_ns))
        except ObservationUnavailable as error:
            return str(error)
        return ""
