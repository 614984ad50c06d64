"""Shadow mode: what the policy would have done, beside what the operator did, by phase of the task. Pure.

Phases come from the commanded gripper alone. `approach`: nothing was grasped yet, or it was released. `grasp`: from the tick
that closes the gripper until the fingers have settled. `carry`: closed after that. `release`: from the tick that opens it
until the fingers have settled. A task that never closes an open gripper, such as pushing, is all approach.
"""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from rlco_common.contract import ACTION_NAMES, Contract
from rlco_common.pose import Pose

PHASES = ("approach", "grasp", "carry", "release")
SETTLE_TICKS = 3            # fingers need this long after a command
OPEN = 0.5                  # a larger commanded opening is an open gripper
UNITS = ("mm",) * 3 + ("deg",) * 3 + ("opening",)
SCALES = np.array([1e3] * 3 + [180.0 / np.pi] * 3 + [1.0])
"""From the contract's units to UNITS; motions are per control tick."""
REMEMBERED_TICKS = 64


class PhaseTracker:
    """The phase of every tick of an episode, in order."""

    def __init__(self):
        self._open: bool | None = None
        self._phase, self._ticks = "approach", 0

    def step(self, opening: float) -> str:
        """The phase of the next tick, whose commanded opening in [0, 1] this is."""
        was_open, self._open = self._open, opening > OPEN
        if was_open and not self._open:
            self._phase, self._ticks = "grasp", 0
        elif was_open is False and self._open and self._phase in ("grasp", "carry"):
            self._phase, self._ticks = "release", 0
        elif self._ticks >= SETTLE_TICKS:
            self._phase = {"grasp": "carry", "release": "approach"}.get(self._phase, self._phase)
        self._ticks += 1
        return self._phase


def phases_of(openings) -> list[str]:
    """The phase of every tick of an episode from its commanded openings [T]."""
    tracker = PhaseTracker()
    return [tracker.step(float(opening)) for opening in openings]


@dataclass
class ErrorTable:
    """Absolute errors of predicted actions, and how much the operator moved, summed by phase in the contract's units."""

    error: dict[str, np.ndarray] = field(default_factory=lambda: {phase: np.zeros(7) for phase in PHASES})
    motion: dict[str, np.ndarray] = field(default_factory=lambda: {phase: np.zeros(7) for phase in PHASES})
    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))

    def add(self, phase: str, predicted: np.ndarray, done: np.ndarray) -> None:
        """One tick: the action [7] that was predicted for it, and the operator's."""
        self.error[phase] += np.abs(predicted - done)
        self.motion[phase] += np.abs(done)
        self.count[phase] += 1

    def rows(self) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
        """(phase, ticks, mean absolute error [7], mean absolute action of the operator [7]) in UNITS, phases that occur."""
        for phase in PHASES:
            if count := self.count[phase]:
                yield phase, count, SCALES * self.error[phase] / count, SCALES * self.motion[phase] / count

    def text(self) -> str:
        """The table as text, errors with the operator's own mean action behind a slash."""
        lines = ["error of the policy / mean action of the operator, per tick",
                 f"{'phase':10}{'n':>7}" + "".join(f"{f'{name}, {unit}':>17}" for name, unit in zip(ACTION_NAMES, UNITS,
                                                                                              strict=True))]
        lines += [f"{phase:10}{count:7d}" + "".join(f"{f'{error:.2f} / {motion:.2f}':>17}" for error, motion in zip(
            errors, motions, strict=True)) for phase, count, errors, motions in self.rows()]
        return "\n".join(lines)


class LiveShadow:
    """Puts predictions and commands together as they come. The operator's action of a tick is what the gate commanded in it,
    as the dataset builder sees it: from the last command before the tick to the last one before its end. Thread-safe."""

    def __init__(self, contract: Contract):
        self._contract, self._period_ns = contract, contract.control_period_ns
        self.table = ErrorTable()
        self._lock = threading.Lock()
        self._commands: deque[tuple[int, Pose, float]] = deque(maxlen=1000)
        self._held: deque[tuple[Pose, float, int]] = deque(maxlen=100)
        self._predictions: deque[tuple[int, np.ndarray]] = deque(maxlen=REMEMBERED_TICKS)     # (begin of the tick, action)
        self._last_ns = 0
        self._phases = PhaseTracker()

    def interrupt(self) -> None:
        """The operator let go, or a new episode began: nothing before goes with anything after."""
        with self._lock:
            self._commands.clear()
            self._held.clear()
            self._predictions.clear()
            self._phases, self._last_ns = PhaseTracker(), 0

    def predicted(self, actions: np.ndarray, stamp_ns: int) -> None:
        """A chunk [n, 7] of the observation at `stamp_ns`."""
        with self._lock:
            if stamp_ns <= self._last_ns:
                return      # the same one again
            self._last_ns = stamp_ns
            self._predictions.extend((stamp_ns + k * self._period_ns, action) for k, action in enumerate(actions))

    def commanded(self, target: Pose, opening: float, stamp_ns: int) -> None:
        """A target pose of the gate and the opening that goes with it. Scores every tick that it completes."""
        with self._lock:
            self._commands.append((stamp_ns, target, opening))
            while self._predictions and self._predictions[0][0] + self._period_ns <= stamp_ns:
                self._score(*self._predictions.popleft())

    def hold(self, target: Pose, opening: float, stamp_ns: int) -> None:
        """A command that the gate has not said yet whose it is: its status comes on a topic of its own, some ticks late."""
        with self._lock:
            self._held.append((target, opening, stamp_ns))

    def claim(self) -> None:
        """The held commands were the operator's."""
        with self._lock:
            held = list(self._held)
            self._held.clear()
        for command in held:
            self.commanded(*command)

    def values(self) -> dict[str, str]:
        """Figures for diagnostics: `grasp.dx_mm: 3.1` and `grasp.ticks: 12`."""
        values = {}
        with self._lock:
            rows = list(self.table.rows())
        for phase, count, errors, _ in rows:
            values[f"{phase}.ticks"] = str(count)
            values |= {f"{phase}.{name}_{unit}": f"{error:.3f}" for name, unit, error in zip(ACTION_NAMES, UNITS, errors,
                                                                                         strict=True)}
        return values

    def _score(self, begin_ns: int, predicted: np.ndarray) -> None:
        before, after = self._last_before(begin_ns), self._last_before(begin_ns + self._period_ns)
        if before is not None and after is not None and after[0] >= begin_ns:
            done = self._contract.action_between(before[1], after[1], after[2])
            self.table.add(self._phases.step(after[2]), predicted, done)

    def _last_before(self, time_ns: int):
        return next((command for command in reversed(self._commands) if command[0] < time_ns), None)
