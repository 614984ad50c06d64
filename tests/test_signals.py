"""Stop requests: a signal at any moment is taken, also while the thread waits for it."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlco_common.signals import INSIST_AFTER_S, TERMINAL_SIGNALS, InterruptHandler, signals_handled, stop_requested

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


NODE = """
import os, signal, sys, time
from std_msgs.msg import String
from rlco_common.ros import Node, run_node

class Talker(Node):
    def __init__(self):
        super().__init__("talker")
        self.words = self.create_publisher(String, "words", 1)
        self.create_subscription(String, "words", self.hear, 1)
        self.create_timer(0.05, lambda: self.words.publish(String(data="hello")))

    def hear(self, message):
        {hear}

    def close(self):
        print("closed", flush=True)

{before}
sys.exit(run_node(Talker))
"""


def start(before="", hear="pass"):
    return subprocess.Popen([sys.executable, "-c", NODE.format(before=before, hear=hear)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_an_interrupt_while_a_message_is_converted_ends_a_node_as_any_other(ros_domain):
    """rclpy makes the message within its own code, where a KeyboardInterrupt came out as a RuntimeError."""
    node = start(before="""
made = String.__init__
def interrupted(self, **fields):
    if not fields:      # made by rclpy, not by the timer
        os.kill(os.getpid(), signal.SIGINT)
    made(self, **fields)
String.__init__ = interrupted
""")
    out, err = node.communicate(timeout=60)
    assert (node.returncode, out, err) == (0, "closed\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_callback_is_finished_before_a_node_ends(ros_domain, number):
    node = start(hear='print("heard", flush=True); time.sleep(1.0); print("finished", flush=True)')
    assert node.stdout.readline() == "heard\n"
    node.send_signal(number)
    out, err = node.communicate(timeout=60)
    assert (node.returncode, out, err) == (0, "finished\nclosed\n", "")


def test_who_insists_interrupts_a_callback_that_does_not_end(ros_domain):
    node = start(hear='print("heard", flush=True); time.sleep(1000.0)')
    assert node.stdout.readline() == "heard\n"
    node.send_signal(signal.SIGINT)
    time.sleep(INSIST_AFTER_S + 0.2)
    assert node.poll() is None
    node.send_signal(signal.SIGINT)
    out, err = node.communicate(timeout=60)
    assert (node.returncode, out, err) == (0, "closed\n", "")


def test_an_interrupt_that_nothing_else_takes_is_raised_at_once():
    with signals_handled((signal.SIGINT,), InterruptHandler()), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
