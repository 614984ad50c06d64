"""The move along a planned way: opens the gripper if it is to, goes no faster than the gate follows, and ends at the goal.

Pure. The arm may be soft or not calibrated: when it has come to rest beside the goal, the target is corrected by what is left.
All times are monotonic nanoseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np

from rlco_common.pose import Pose, compose_delta, delta_between

NANOSECONDS = 1_000_000_000
OPEN_ENOUGH = 0.9
OPENING_S = 2.0         # a gripper without feedback, or that something keeps from opening, is waited for this long
RAMP_S = 0.3            # from rest to full speed, and back
SLOWEST = 0.05          # of the full speed
FOLLOW_M = 0.02         # a gate that is farther behind is waited for ...
FOLLOW_S = 2.0          # ... this long
SETTLE_S = 0.6          # for the arm to come to rest before what is left is measured
ROUNDS = 6


class Phase(Enum):
    OPENING = "opening the gripper"
    MOVING = "on the way"
    SETTLING = "settling"
    DONE = "at the start"
    FAILED = "failed"


@dataclass(frozen=True)
class MoveSettings:
    """Speeds of the way, and how near the measured pose has to be to the goal at the end. max_correction_m: of the target."""

    linear_speed_m_s: float
    angular_speed_rad_s: float
    position_tolerance_m: float
    rotation_tolerance_rad: float
    max_correction_m: float
    open_gripper: bool


@dataclass(frozen=True)
class Wish:
    """What the gate is asked for: tool pose, and gripper opening or None."""

    target: Pose
    opening: float | None


class StartMove:
    """Asked for a wish at a steady rate, until `phase` is DONE or FAILED; `reason` then says more."""

    def __init__(self, way: Sequence[Pose], settings: MoveSettings, now_ns: int):
        """way: at least the pose where the arm is held, and the goal."""
        self._settings = settings
        self._way = list(way)
        self._ends_s = np.cumsum([0.0, *(self._duration_s(a, b) for a, b in pairwise(way))])
        self._done_s = 0.0          # of the way's time at full speed
        self._moving_s = 0.0
        self._last_ns = self._phase_ns = self._followed_ns = now_ns
        self._correction = np.zeros(6)
        self._rounds = 0
        self.phase = Phase.OPENING if settings.open_gripper else Phase.MOVING
        self.reason = ""

    @property
    def over(self) -> bool:
        return self.phase in (Phase.DONE, Phase.FAILED)

    @property
    def progress(self) -> float:
        """Share of the way, 0 to 1."""
        return 1.0 if self._ends_s[-1] == 0.0 else float(self._done_s / self._ends_s[-1])

    def step(self, now_ns: int, measured: Pose, opening: float | None, commanded: Pose | None) -> Wish:
        """measured: of the arm. opening: of the gripper, measured. commanded: the gate's present target."""
        passed_s = (now_ns - self._last_ns) / NANOSECONDS
        self._last_ns = now_ns
        if self.phase is Phase.OPENING and self._is_open(opening, now_ns):
            self._enter(Phase.MOVING, now_ns)
        elif self.phase is Phase.MOVING:
            self._go_on(passed_s, now_ns, commanded)
        elif self.phase is Phase.SETTLING:
            self._settle(now_ns, measured)
        return Wish(self._target(), 1.0 if self._settings.open_gripper else None)

    def fail(self, reason: str) -> None:
        """End it."""
        self.phase, self.reason = Phase.FAILED, reason

    def _enter(self, phase: Phase, now_ns: int) -> None:
        self.phase = phase
        self._phase_ns = self._followed_ns = now_ns

    def _is_open(self, opening, now_ns) -> bool:
        return (opening is not None and opening >= OPEN_ENOUGH) or now_ns - self._phase_ns > OPENING_S * NANOSECONDS

    def _go_on(self, passed_s, now_ns, commanded) -> None:
        if commanded is not None and np.linalg.norm(commanded.position - self._target().position) > FOLLOW_M:
            if now_ns - self._followed_ns > FOLLOW_S * NANOSECONDS:
                self.fail("the gate does not follow the way: at the edge of the workspace, or slowed down")
            return
        self._followed_ns = now_ns
        left_s = self._ends_s[-1] - self._done_s
        self._moving_s += passed_s
        speed = min(1.0, max(SLOWEST, min(self._moving_s, left_s) / RAMP_S))
        self._done_s = min(self._done_s + speed * passed_s, float(self._ends_s[-1]))
        if self._done_s == self._ends_s[-1]:
            self._enter(Phase.SETTLING, now_ns)

    def _settle(self, now_ns, measured) -> None:
        if now_ns - self._phase_ns < SETTLE_S * NANOSECONDS:
            return
        left = delta_between(measured, self._way[-1])
        away_m, away_rad = np.linalg.norm(left[:3]), np.linalg.norm(left[3:])
        if away_m <= self._settings.position_tolerance_m and away_rad <= self._settings.rotation_tolerance_rad:
            self.phase, self.reason = Phase.DONE, f"at the start, {1000 * away_m:.1f} mm and {away_rad:.3f} rad off"
            return
        self._rounds += 1
        if self._rounds > ROUNDS:
            self.fail(f"the arm came to rest {1000 * away_m:.1f} mm and {away_rad:.3f} rad beside the start")
            return
        self._correction = self._correction + left
        bound = self._settings.max_correction_m
        share = min(1.0, bound / max(float(np.linalg.norm(self._correction[:3])), 1e-12),
                    10.0 * bound / max(float(np.linalg.norm(self._correction[3:])), 1e-12))
        self._correction = share * self._correction
        self._enter(Phase.SETTLING, now_ns)

    def _target(self) -> Pose:
        if self._done_s >= self._ends_s[-1]:
            return compose_delta(self._way[-1], self._correction)
        index = int(np.searchsorted(self._ends_s, self._done_s, side="right")) - 1
        start, end = self._way[index], self._way[index + 1]
        share = (self._done_s - self._ends_s[index]) / (self._ends_s[index + 1] - self._ends_s[index])
        return compose_delta(start, share * delta_between(start, end))

    def _duration_s(self, a: Pose, b: Pose) -> float:
        delta = delta_between(a, b)
        return max(float(np.linalg.norm(delta[:3])) / self._settings.linear_speed_m_s,
                   float(np.linalg.norm(delta[3:])) / self._settings.angular_speed_rad_s)
