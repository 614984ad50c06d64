"""Time of the bridge node, without ROS: lock-step stamps, real-time pacing, and what was really reached.

In real time the physics comes first. A step that comes late simulates what was missed, so that simulated time follows the
wall clock; pictures are taken only in steps that come in time, so that a machine which cannot render fast enough shows
fewer pictures instead of a slower world. Only when the physics alone takes longer than the time that it simulates does
time itself run slow, and the meter says so.
"""

import math
import time
from collections import deque
from collections.abc import Callable

from rlco_common.errors import ConfigError

EPISODE_GAP_S = 1.0         # simulated time between two episodes, and before the first
MOST_CATCH_UP_S = 0.5       # what was missed beyond this is given up, not simulated later
LONGEST_IMAGE_GAP_S = 1.0   # a picture is taken at least this often, in time or not
LOWEST_SHARE = 0.95         # of real time and of the wanted rate of pictures; below it the node says so
_LATE_S = 0.1                # of the simulated time that may be due, but not yet simulated, at the end of the meter's window
_EARLY_SHARE = 0.1          # of a step: a timer may ring this much before its time


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
    """How many steps are due, and whether the last of them shall show a picture.

    rate_hz: steps per second. image_every: steps between two pictures.
    """

    def __init__(self, rate_hz: float, image_every: int, clock: Callable[[], float] = time.monotonic):
        self._rate_hz = rate_hz
        self._image_every = image_every
        self._most_steps = max(1, round(MOST_CATCH_UP_S * rate_hz))
        self._longest_image_gap = max(image_every, round(LONGEST_IMAGE_GAP_S * rate_hz))
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Time begins now: after a reset or a pause nothing is to be caught up."""
        self._origin = self._clock()
        self._done = 0
        self._since_image = 0

    def due(self) -> tuple[int, bool]:
        """(steps to simulate now, whether to take a picture after them). The steps count as simulated."""
        elapsed = (self._clock() - self._origin) * self._rate_hz + _EARLY_SHARE
        missed = math.floor(elapsed) - self._done
        steps = min(max(missed, 0), self._most_steps)
        if missed > steps > 0:
            self._origin += (missed - steps) / self._rate_hz
        self._done += steps
        self._since_image += steps
        image = steps > 0 and ((self._since_image >= self._image_every and steps == 1)
                               or self._since_image >= self._longest_image_gap)
        if image:
            self._since_image = 0
        return steps, image


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
        """One published state, after so much simulated time, with or without a picture."""
        now = self._clock()
        _, simulated, states, images = self._marks[-1]
        self._marks.append((now, simulated + simulated_s, states + 1, images + image))
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
