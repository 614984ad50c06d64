"""Requests to a running training loop: pause, checkpoint, stop. From signal handlers, services or other threads."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlco_common.signals import INTERRUPT_SIGNALS, signals_handled

PAUSE_PERIOD_S = 0.5        # a request that a signal makes in the last instant before waiting wakes nobody


@dataclass(frozen=True)
class Progress:
    """Where a run is: step of total, and the newest value of every metric."""

    step: int
    total: int
    metrics: dict[str, float]


class RunControl:
    """What a loop asks between its steps. Requests come from any thread; a loop without any pays a lock a step.

    on_progress: called in the loop's thread after every logged row.
    """

    def __init__(self, on_progress: Callable[[Progress], None] | None = None):
        self._on_progress = on_progress
        self._changed = threading.Condition()
        self._paused = self._stopped = False
        self._checkpoints: list[threading.Event] = []
        self._metrics: dict[str, float] = {}

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        """End the run after the step under way, with a checkpoint; it can be resumed."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def pause(self, paused: bool) -> None:
        """Hold the run after the step under way, or let it go on."""
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    def checkpoint(self) -> threading.Event:
        """Ask for a checkpoint after the step under way, also while paused; the event is set once it is written."""
        done = threading.Event()
        with self._changed:
            self._checkpoints.append(done)
            self._changed.notify_all()
        return done

    def go_on(self, save: Callable[[], None]) -> bool:
        """Between two steps: carry out what was asked for. False: the run ends here, and `save` has been called."""
        while True:
            with self._changed:
                wanted, self._checkpoints = self._checkpoints, []
                stopped = self._stopped
                if not wanted and not stopped and not self._paused:
                    return True
                if not wanted and not stopped:
                    self._changed.wait(PAUSE_PERIOD_S)
                    continue
            save()
            for done in wanted:
                done.set()
            if stopped:
                return False

    def report(self, step: int, total: int, row: dict[str, float]) -> None:
        self._metrics |= row
        if self._on_progress is not None:
            self._on_progress(Progress(step, total, dict(self._metrics)))


@contextlib.contextmanager
def stopped_by_signals(control: RunControl) -> Iterator[RunControl]:
    """SIGINT and SIGTERM stop the run cleanly inside the block; a second one ends the process as usual."""
    def request(number, frame):
        signal.signal(number, previous[number])
        control.stop()

    with signals_handled(INTERRUPT_SIGNALS, request) as previous:
        yield control
