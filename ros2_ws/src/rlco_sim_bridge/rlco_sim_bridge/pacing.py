"""Time of the bridge node, without ROS: lock-step stamps, real-time pacing, and what was really reached.

In real time the physics comes first: whenever something happens (a command, the time of a state message) what has passed
since is simulated, so that simulated time follows the wall clock and a command acts when it arrives. Pictures are taken
only when the states are in time, so that a machine which cannot render fast enough shows fewer pictures instead of a
slower world. Only when the physics alone takes longer than the time that it simulates does time itself run slow, and the
meter says so.
"""

import math
import time
from collections import deque
from collections.abc import Callable

from rlco_common.errors import ConfigError

EPISODE_GAP_S = 1.0         # simulated time between two episodes, and before the first
MOST_CATCH_UP_S = 0.3       # what was missed beyond this is given up, not simulated
LONGEST_IMAGE_GAP_S = 1.0   # a picture is taken at least this often, in time or not
LOWEST_SHARE = 0.95         # of real time and of the wanted rate of pictures; below it the node says so
_LATE_S = 0.1               # simulated time that may be due, but not yet simulated, at the end of the meter's window
_EARLY_SHARE = 0.1          # of a state period: a timer may ring this much before its time


class LockstepClock:
    """Stamps of lock-step ticks in nanoseconds: one period apart, never going back, with a gap between episodes."""

    def __init__(self, period_ns: int):
        self._period_ns = period_ns
        self.now_ns = 0

    def new_episode(self) -> int:
        self.now_ns += round(EPISODE_GAP_S * 1e9)
        return self.now_ns

    def tick(self) -> int:
        self.now_ns += self._period_ns
        return self.now_ns


class RealTimePacer:
    """How much is to be simulated, and whether the state that is shown then comes with a picture.

    state_rate_hz: how often `picture_due` is asked. image_every: states between two pictures.
    """

    def __init__(self, state_rate_hz: float, image_every: int, physics_rate_hz: float,
                 clock: Callable[[], float] = time.monotonic):
        self._state_rate_hz = state_rate_hz
        self._physics_rate_hz = physics_rate_hz
        self._image_every = image_every
        self._longest_image_gap = max(image_every, round(LONGEST_IMAGE_GAP_S * state_rate_hz))
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Time begins now: after a reset or a pause nothing is to be caught up."""
        self._begin = self._physics_begin = self._clock()
        self._steps = self._states = self._since_image = 0

    def steps_due(self) -> int:
        """Physics steps from the last call until now; they count as simulated. What would be too much is given up."""
        missed = round((self._clock() - self._physics_begin) * self._physics_rate_hz) - self._steps
        steps = min(missed, round(MOST_CATCH_UP_S * self._physics_rate_hz))
        self._physics_begin += (missed - steps) / self._physics_rate_hz
        self._steps += steps
        return steps

    @property
    def simulated_s(self) -> float:
        """Simulated time since the last restart."""
        return self._steps / self._physics_rate_hz

    def picture_due(self) -> bool:
        """Whether to take a picture with the state that is shown now; it then counts as taken."""
        states = math.floor((self._clock() - self._begin) * self._state_rate_hz + _EARLY_SHARE)
        in_time = states - self._states <= 1
        self._since_image += states - self._states
        self._states = states
        due = self._since_image >= (self._image_every if in_time else self._longest_image_gap)
        if due:
            self._since_image = 0
        return due


class RealTimeMeter:
    """What was reached over the last `window_s`: simulated seconds, states and pictures per second of wall time."""

    def __init__(self, window_s: float = 2.0, clock: Callable[[], float] = time.monotonic):
        self._window_s = window_s
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Forget the past; what follows a pause is not averaged with it."""
        self._marks = deque([(self._clock(), 0.0, 0, 0)])

    def add(self, simulated_s: float, image: bool = False) -> None:
        """One published state, with or without a picture. simulated_s: since the last restart, in all."""
        now = self._clock()
        _, _, states, images = self._marks[-1]
        self._marks.append((now, simulated_s, states + 1, images + image))
        while now - self._marks[1][0] > self._window_s:
            self._marks.popleft()

    @property
    def factor(self) -> float:
        """Simulated seconds per second; 1 is real time. NaN before there is anything to measure, as the rates."""
        return self._rate(1)

    @property
    def state_rate_hz(self) -> float:
        return self._rate(2)

    @property
    def image_rate_hz(self) -> float:
        return self._rate(3)

    def complaint(self, wanted_image_rate_hz: float) -> str:
        """What is not reached, and what to do about it; empty when all is well, or when it is too early to tell."""
        first, last = self._marks[0], self._marks[-1]
        span_s = last[0] - first[0]
        if span_s < 0.5 * self._window_s:
            return ""
        if last[1] - first[1] + _LATE_S < LOWEST_SHARE * span_s:
            return f"slower than real time (factor {self.factor:.2f}); use lock step"
        if last[3] - first[3] + 1 < LOWEST_SHARE * wanted_image_rate_hz * span_s:      # the window may cut one off
            return (f"{self.image_rate_hz:.1f} of {wanted_image_rate_hz:g} images/s; lower camera_rate_hz or the contract's "
                    "image size")
        return ""

    def values(self) -> dict[str, str]:
        """For diagnostics."""
        return {"real_time_factor": f"{self.factor:.3f}", "state_rate_hz": f"{self.state_rate_hz:.1f}",
                "camera_rate_hz": f"{self.image_rate_hz:.1f}"}

    def _rate(self, column: int) -> float:
        first, last = self._marks[0], self._marks[-1]
        return (last[column] - first[column]) / (last[0] - first[0]) if last[0] > first[0] else float("nan")


def whole_multiple(fast: float, slow: float, fast_name: str, slow_name: str) -> int:
    """fast / slow. Raises ConfigError, by their names, unless it is a whole number."""
    count = round(fast / slow)
    if count < 1 or abs(count * slow - fast) > 1e-6:
        raise ConfigError(f"{fast_name} ({fast:g} Hz) is not a multiple of {slow_name} ({slow:g} Hz)")
    return count
