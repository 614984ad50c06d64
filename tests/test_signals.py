"""Stop requests: a signal at any moment is taken, also while the thread waits for it."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlco_common.signals import TERMINAL_SIGNALS, stop_requested

SIGNALS = 3000
SENDER = """
import os, random, sys, time
for _ in range(int(sys.argv[2])):
    time.sleep(random.random() * 0.001)
    os.kill(int(sys.argv[1]), 15)
"""


def test_a_wait_sees_the_signal_and_ends_by_time_without_one():
    with stop_requested() as stop:
        assert not stop.is_set()
        assert not stop.wait(0.01)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        begun = time.monotonic()
        assert stop.wait(30.0)
        assert time.monotonic() - begun < 10.0
        assert stop.is_set() and stop.wait() and stop.wait(0.0)


@pytest.mark.parametrize("number", TERMINAL_SIGNALS)
def test_each_signal_counts_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_requested(TERMINAL_SIGNALS) as stop:
        for _ in range(3):
            signal.raise_signal(number)
        assert stop.wait(0.0)
    assert signal.getsignal(number) is before


def test_signals_at_every_moment_of_a_wait_do_not_block_it():
    """With a threading.Event the handler meets the lock of its own thread's wait, here within a few hundred signals."""
    random.seed(1)
    with stop_requested():
        sender = subprocess.Popen([sys.executable, "-c", SENDER, str(os.getpid()), str(SIGNALS)])
        try:
            waits = 0
            while sender.poll() is None:
                with stop_requested() as stop:
                    stop.wait(0.002)
                    waits += 1
        finally:
            sender.kill()
            sender.wait()
    assert sender.returncode == 0
    assert waits > 100
