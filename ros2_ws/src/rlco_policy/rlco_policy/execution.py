"""When a policy looks, and what of its chunks is executed, so that a slow model leaves no gap. Pure.

Times are nanoseconds of the clock that stamps observations. A *step* is one action of the policy; the gate plays one action
per *control period*, and action i of a chunk belongs to the period that begins i periods after its observation.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

import numpy as np

STAMP_TOLERANCE = 0.1
"""Share of a control period by which a frame may come early and still start the next chunk (camera jitter)."""
MARGIN_NS = 30_000_000      # on top of every measured time, for threads and transport
REMEMBERED = 10             # inferences and frames that estimates are made from
EASING = 1.25               # go faster again only with this much room, or the pace would flicker


@dataclass(frozen=True)
class Continuation:
    """What an inference is told of the chunk under way: its steps from the new chunk's first one on, and how many of
    these will have been executed when the new chunk arrives."""

    previous: np.ndarray | None = None      # [n, 7] physical
    delay: int = 0


START = Continuation()
"""No chunk is under way."""


@dataclass
class _Playing:
    """A published chunk: steps [horizon, 7], one every `step_ns`."""

    stamp_ns: int
    steps: np.ndarray
    step_ns: int

    @property
    def end_ns(self) -> int:
        return self.stamp_ns + len(self.steps) * self.step_ns


class SynchronousExecution:
    """Look, execute the chunk, look again. In lock step no time passes in between, in real time the arm waits."""

    def __init__(self, chunk: int, period_ns: int):
        self.steps = chunk              # steps that the runner is asked for
        self._period_ns = period_ns
        self._last_ns: int | None = None

    def interrupt(self) -> None:
        """The running chunk is void: the next observation starts a new one."""
        self._last_ns = None

    def frame(self, stamp_ns: int) -> None:
        """A complete observation of this stamp has arrived."""

    def due(self, stamp_ns: int) -> bool:
        """Whether an observation of this stamp starts a new chunk. A clock that jumped back starts one, too."""
        if self._last_ns is None or stamp_ns < self._last_ns:
            return True
        return stamp_ns >= self._last_ns + self.steps * self._period_ns - STAMP_TOLERANCE * self._period_ns

    def begin(self, stamp_ns: int) -> Continuation:
        """An inference on the observation of this stamp begins."""
        return START

    def finish(self, stamp_ns: int, steps: np.ndarray, now_ns: int) -> np.ndarray:
        """Its result [steps, 7] is there at `now_ns`; returns the actions to publish, one per control period."""
        self._last_ns = stamp_ns
        return steps

    def report(self, now_ns: int) -> dict[str, str | int]:
        """What diagnostics tell. queue_length: control periods for which there are actions left."""
        end_ns = now_ns if self._last_ns is None else self._last_ns + self.steps * self._period_ns
        return {"execution": "synchronous", "queue_length": _queue(end_ns, now_ns, self._period_ns)}


class AsynchronousExecution:
    """The next chunk is computed while the current one runs, early enough to arrive before it ends.

    A policy that can is told of the chunk under way (real-time chunking); the chunks of others are blended into it where
    they overlap. Inferences do not overlap each other, so a chunk has to last for two of them; when it does not, actions
    are played more slowly (a whole number of periods each), because a slow arm is better than one that stops and goes.
    """

    def __init__(self, horizon: int, chunk: int, period_ns: int, *, guided: bool, latency_ns: int, max_slowdown: int = 4):
        """latency_ns: a first estimate of the time from an observation to its chunk."""
        self.steps = horizon
        self._chunk, self._period_ns, self._guided, self._max_slowdown = chunk, period_ns, guided, max_slowdown
        self._latencies_ns = deque([latency_ns], maxlen=REMEMBERED)
        self._frame_gaps_ns = deque(maxlen=REMEMBERED)
        self._frame_ns: int | None = None
        self._playing: _Playing | None = None
        self._slowdown = 1
        self._next = START
        self._gaps, self._gap_s = 0, 0.0

    def interrupt(self) -> None:
        self._playing = None

    def frame(self, stamp_ns: int) -> None:
        if self._frame_ns is not None and stamp_ns > self._frame_ns:
            self._frame_gaps_ns.append(stamp_ns - self._frame_ns)
        self._frame_ns = stamp_ns

    def due(self, stamp_ns: int) -> bool:
        playing = self._playing
        if playing is None or stamp_ns < playing.stamp_ns:
            return True
        reserve_ns = max(self._latencies_ns) + self._frame_gap_ns() + MARGIN_NS
        latest = (playing.end_ns - playing.stamp_ns - reserve_ns) // playing.step_ns      # in steps, for aligned chunks
        interval_ns = min(self._chunk, max(latest, 0)) * playing.step_ns
        return stamp_ns >= playing.stamp_ns + interval_ns - STAMP_TOLERANCE * self._period_ns

    def begin(self, stamp_ns: int) -> Continuation:
        self._choose_pace()
        playing = self._playing
        self._next = START
        if playing is not None and stamp_ns >= playing.stamp_ns and playing.step_ns == self._step_ns:
            left = playing.steps[round((stamp_ns - playing.stamp_ns) / playing.step_ns):]
            if len(left):
                self._next = Continuation(left, min(math.ceil(max(self._latencies_ns) / self._step_ns), len(left)))
        return self._next if self._guided else START

    def finish(self, stamp_ns: int, steps: np.ndarray, now_ns: int) -> np.ndarray:
        if not self._guided and self._next.previous is not None:
            steps = blended(steps, self._next)
        self._latencies_ns.append(max(now_ns - stamp_ns, 0))
        if self._playing is not None and now_ns > self._playing.end_ns:
            self._gaps, self._gap_s = self._gaps + 1, (now_ns - self._playing.end_ns) * 1e-9
        self._playing = _Playing(stamp_ns, steps, self._step_ns)
        return slowed(steps, self._slowdown)

    def report(self, now_ns: int) -> dict[str, str | int]:
        end_ns = now_ns if self._playing is None else self._playing.end_ns
        return {"execution": "asynchronous", "queue_length": _queue(end_ns, now_ns, self._period_ns), "gaps": self._gaps,
                "last_gap_s": f"{self._gap_s:.3f}", "delay_steps": self._next.delay, "slowdown": self._slowdown}

    @property
    def _step_ns(self) -> int:
        return self._slowdown * self._period_ns

    def _choose_pace(self) -> None:
        needed_ns = 2 * median(self._latencies_ns) + self._frame_gap_ns() + MARGIN_NS
        lasts_ns = self.steps * self._period_ns
        if needed_ns > self._slowdown * lasts_ns:
            self._slowdown = min(math.ceil(needed_ns / lasts_ns), self._max_slowdown)
        elif self._slowdown > 1 and EASING * needed_ns <= (self._slowdown - 1) * lasts_ns:
            self._slowdown -= 1

    def _frame_gap_ns(self) -> float:
        return median(self._frame_gaps_ns) if self._frame_gaps_ns else 0


def blended(steps: np.ndarray, continuation: Continuation) -> np.ndarray:
    """The new chunk [n, 7] after the old one: old before the delay, then ever more of the new. The gripper is not mixed,
    since half open is neither."""
    old, delay = continuation.previous[: len(steps)], continuation.delay
    result = np.array(steps)
    share = np.clip((len(old) - np.arange(len(old))) / (len(old) - delay + 1), 0.0, 1.0)[:, None]
    result[: len(old), :6] = share * old[:, :6] + (1.0 - share) * steps[: len(old), :6]
    result[:delay, 6] = old[:delay, 6]
    return result


def slowed(steps: np.ndarray, factor: int) -> np.ndarray:
    """[n, 7] -> [n * factor, 7]: every motion spread evenly over `factor` control periods."""
    return np.repeat(steps, factor, axis=0) / np.array([factor] * 6 + [1])


def _queue(end_ns: int, now_ns: int, period_ns: int) -> str:
    return f"{max(end_ns - now_ns, 0) / period_ns:.1f}"
