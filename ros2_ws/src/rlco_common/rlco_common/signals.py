"""Signals that ask a command to stop.

A handler runs in the main thread between two of its instructions, also while that thread holds the lock of the
threading.Event it waits for: Event.set() in a handler then waits for itself for ever. A pipe has no such lock.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPT_SIGNALS = (signal.SIGINT, signal.SIGTERM)
TERMINAL_SIGNALS = (*INTERRUPT_SIGNALS, signal.SIGHUP)      # also the end of the terminal
INSIST_AFTER_S = 1.0        # Ctrl-C reaches a node twice, from the terminal and from its launcher


@contextmanager
def signals_handled(numbers: tuple[signal.Signals, ...], handler: Callable) -> Iterator[dict]:
    """Inside the block `handler(number, frame)` takes these signals; yields number -> the handler it had before."""
    previous: dict = {}
    try:
        for number in numbers:
            previous[number] = signal.signal(number, handler)
        yield previous
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopRequest:
    """Whether a signal came. Made by `stop_requested`."""

    def __init__(self):
        self._came = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def is_set(self) -> bool:
        return self._came

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until a signal comes, for ever or `timeout_s` seconds; whether one came."""
        select.select([self._reader], [], [], timeout_s)
        return self._came

    def _take(self, *_) -> None:
        if not self._came:
            self._came = True
            os.write(self._writer, b"\0")

    def _close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


@contextmanager
def stop_requested(numbers: tuple[signal.Signals, ...] = INTERRUPT_SIGNALS) -> Iterator[StopRequest]:
    """A request that these signals make, as often as they come, instead of what they do otherwise. Main thread only."""
    stop = StopRequest()
    try:
        with signals_handled(numbers, stop._take):
            yield stop
    finally:
        stop._close()


class InterruptHandler:
    """Handler of SIGINT: raises KeyboardInterrupt, but not while something else ends the main loop at the first one.

    An exception in the midst of foreign code may come out of it as another: rclpy makes a RuntimeError of one that meets the
    conversion of a message. So with `handled_elsewhere` set it is raised only for who insists: INSIST_AFTER_S after the first.
    """

    def __init__(self):
        self.handled_elsewhere = False
        self._first_s: float | None = None

    def __call__(self, *_) -> None:
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
        if not self.handled_elsewhere or now_s - self._first_s > INSIST_AFTER_S:
            raise KeyboardInterrupt
