"""Supervision: a died process is noticed with its last words; stopping reaches only what was started."""

import sys
import time

import pytest
from commands import gone
from rclpy.node import Node
from rclpy.parameter import Parameter

from rlco_common.errors import ProcessError, RlcoError
from rlco_common.processes import Processes, parameter_text
from rlco_common.ros_client import RosClient, Timeout

STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def wait_for(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)


def test_a_died_process_is_an_error_that_quotes_its_log(tmp_path):
    with Processes(tmp_path, domain_id=1) as processes:
        child = processes.start("doomed", [sys.executable, "-c", "print('my last words'); raise SystemExit(3)"])
        child.process.wait(timeout=10)
        with pytest.raises(ProcessError, match=r"(?s)'doomed'.*exit status 3.*my last words"):
            processes.check()


def test_a_process_that_ignores_signals_is_killed(tmp_path):
    processes = Processes(tmp_path, domain_id=1)
    child = processes.start("stubborn", [sys.executable, "-c", STUBBORN], sigterm_timeout_s=0.2, sigkill_timeout_s=0.2)
    wait_for(lambda: "ready" in child.tail())
    processes.stop_all()
    assert child.process.returncode == -9


FINISHES = """
import signal, sys, time
def finish(*_):
    time.sleep(1.0)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGINT, finish)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_process_that_was_given_more_time_keeps_it_beside_one_that_is_killed(tmp_path):
    processes = Processes(tmp_path, domain_id=1)
    patient = processes.start("patient", [sys.executable, "-c", FINISHES], sigterm_timeout_s=60.0)
    stubborn = processes.start("stubborn", [sys.executable, "-c", STUBBORN], sigterm_timeout_s=0.2, sigkill_timeout_s=0.2)
    wait_for(lambda: "ready" in patient.tail() and "ready" in stubborn.tail())
    started = time.monotonic()
    processes.stop_all()
    assert time.monotonic() - started < 30.0
    assert (stubborn.process.returncode, patient.process.returncode) == (-9, 0)
    assert patient.tail().endswith("saved")


def test_children_end_with_the_thread_that_started_them(tmp_path):
    script = (
        "import sys; from rlco_common.processes import Processes\n"
        f"p = Processes({str(tmp_path)!r}, 1)\n"
        "c = p.start('orphan', [sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(c.pid, flush=True); import os; os._exit(0)\n"
    )
    parent = Processes(tmp_path / "parent", domain_id=1)
    child = parent.start("parent", [sys.executable, "-c", script])
    child.process.wait(timeout=10)
    orphan = int(child.tail())
    wait_for(lambda: gone(orphan))


@pytest.mark.parametrize("value", [True, 3, 2.0, 0.05, "push_cube", "0.3", "true", ["a", "b"], [1.5, 2.5]])
def test_parameter_values_keep_their_type_on_the_command_line(value, ros_domain):
    with RosClient("typed", ros_domain) as client:
        node = Node("probe", context=client.node.context, cli_args=["--ros-args", "-p", f"x:={parameter_text(value)}"],
                    automatically_declare_parameters_from_overrides=True)
        stored = node.get_parameter("x").value
        node.destroy_node()
    assert Parameter("x", value=list(stored) if isinstance(value, list) else stored).value == value
    assert isinstance(value, list) or type(stored) is type(value)


def test_waiting_ends_with_a_named_error(ros_domain):
    with RosClient("waiter", ros_domain) as client, pytest.raises(Timeout, match="service /nobody"):
        client.trigger("/nobody", timeout_s=0.3)


def test_waiting_ends_when_a_watched_process_dies(tmp_path, ros_domain):
    with Processes(tmp_path, ros_domain) as processes, RosClient("waiter", ros_domain, processes.check) as client:
        processes.start("short", [sys.executable, "-c", "print('bye')"])
        start = time.monotonic()
        with pytest.raises(RlcoError, match="bye"):
            client.trigger("/nobody", timeout_s=20.0)
        assert time.monotonic() - start < 10.0
