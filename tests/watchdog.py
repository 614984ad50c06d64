"""Ends what keeps a test from ending: pytest-timeout raises in the main thread, and waiting for a process goes on after that.

Some time after a test's own limit its processes are killed, so that it fails like any other; when that does not help, the
run ends with the traces of all threads. A run that hangs says nothing.
"""

import faulthandler
import os
import signal
import threading
from pathlib import Path

import pytest

KILL_AFTER_S = 60.0     # after the test's own limit
END_AFTER_S = 180.0


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


class Watchdog:
    """A pytest plugin. `limit(item)`: seconds that a test may take."""

    def __init__(self, limit, stream, kill_after_s: float = KILL_AFTER_S, end_after_s: float = END_AFTER_S):
        self._limit, self._stream, self._kill_after_s, self._end_after_s = limit, stream, kill_after_s, end_after_s

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        limit = self._limit(item)
        if not limit:
            return (yield)
        faulthandler.dump_traceback_later(limit + self._end_after_s, exit=True, file=self._stream)
        timer = threading.Timer(limit + self._kill_after_s, self._kill, (item.nodeid,))
        timer.daemon = True
        timer.start()
        try:
            return (yield)
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()

    def _kill(self, name: str) -> None:
        pids = descendants(os.getpid())
        print(f"\n--- {name} does not end; threads of the test run:", file=self._stream, flush=True)
        faulthandler.dump_traceback(self._stream)
        print(f"--- killing {len(pids)} processes of the test run", file=self._stream, flush=True)
        for pid in pids:
            try:
                print(pid, Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200], file=self._stream, flush=True)
                os.kill(pid, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue
