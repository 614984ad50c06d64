"""When the next step of the fixed-rate gate is due. Pure; all times are monotonic nanoseconds.

Steps lie on a grid of one period. A command that comes just after a step would wait almost a period for the next one, and so
would every later one of a device that sends at the gate's own rate. Therefore the grid is laid behind the commands of a steady
device:

- A step whose command is late waits for it, but not longer than `GRACE` of a period; the grid stays where it is.
- When the latest commands all had to wait, one step is put off to the next command, as all later ones then are. When they had
  to wait a little, and steps were put off before, steps come a little earlier instead, until that time is used up.

So steps are never more frequent than the rate over any length of time, and the limits hold as they stand. They are a little
less frequent once for a device at the gate's rate, by as much as the device is slower or faster for one that is up to 2 %
off it, never for other devices.
"""

from collections import deque

GRACE = 0.5             # of a period: how long a step waits for a late command
LATENESS = 0.1          # of a period: how long a step that is due should wait for its command, so that this finds it ready
_LATEST = 16            # commands to judge by
_STEADY = 0.15          # of a period: the waits of the middle half of them scatter by less
_SHORT = 0.03           # of a period: a wait that is good enough
_NEAR = 0.3             # of a period: a wait that is not worth putting a step off
_NUDGE = 0.02           # of a period: how much earlier a step may come
_REGULAR = (0.5, 1.5)   # periods between two commands of a device at the gate's own rate


class StepPacer:
    """The grid of one gate. `step_done` after every step, `command_arrived` at every command of the operator."""

    def __init__(self, period_ns: int, now_ns: int):
        self._period_ns = period_ns
        self._due_ns = now_ns + period_ns
        self._put_off_ns = 0                # by how much the grid lies behind the one that it was
        self._arrived_ns: int | None = None
        self._waits: deque[int] = deque(maxlen=_LATEST)

    def step_done(self, now_ns: int) -> None:
        """A step was made; the next one is a period later on the grid. Steps that were missed are not made up for."""
        self._due_ns += self._period_ns
        if self._due_ns <= now_ns:
            self._due_ns = now_ns + self._period_ns

    def command_arrived(self, now_ns: int) -> bool:
        """Whether the step that was waiting for this command is to be made now."""
        if self._arrived_ns is None or not self._is_regular(now_ns - self._arrived_ns):
            self._waits.clear()
        self._arrived_ns = now_ns
        wait_ns = self._due_ns - now_ns
        self._waits.append(wait_ns)
        if wait_ns <= 0:
            return True
        if len(self._waits) == _LATEST:
            self._adjust()
        return False

    def wait_ns(self, now_ns: int) -> int:
        """How long from now the next step has to wait at least; 0: it is to be made now."""
        late_ns = now_ns - self._due_ns
        if late_ns < 0:
            return -late_ns
        grace_ns = round(GRACE * self._period_ns)
        return grace_ns - late_ns if late_ns < grace_ns and self._expects_command() else 0

    def _expects_command(self) -> bool:
        """Whether the next command of a regular device should come soon after the present due time, if not before it."""
        if len(self._waits) < 2:
            return False
        since = (self._due_ns - self._arrived_ns) / self._period_ns
        return 1.0 - GRACE < since < _REGULAR[1]

    def _adjust(self) -> None:
        """Move the grid when a steady device's commands have to wait."""
        waits = sorted(self._waits)
        short_ns, long_ns = waits[_LATEST // 4], waits[3 * _LATEST // 4]
        if long_ns <= _SHORT * self._period_ns or long_ns - short_ns > _STEADY * self._period_ns:
            return
        nudge_ns = round(_NUDGE * self._period_ns)
        if long_ns < _NEAR * self._period_ns and self._put_off_ns >= long_ns + nudge_ns:
            self._due_ns -= nudge_ns
            self._put_off_ns -= nudge_ns
        else:
            shift_ns = round((1.0 - LATENESS) * self._period_ns) - short_ns
            self._due_ns += shift_ns
            self._put_off_ns = min(self._put_off_ns + shift_ns, self._period_ns)
            self._waits.clear()

    def _is_regular(self, interval_ns: int) -> bool:
        shortest, longest = _REGULAR
        return shortest * self._period_ns <= interval_ns <= longest * self._period_ns
