"""A test that cannot end by itself: it fails and the run goes on, or the run ends with the traces of all threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_tree

CONFTEST = """
import os
from watchdog import Watchdog
def pytest_configure(config):
    config.pluginmanager.register(Watchdog(lambda item: 1.0, os.fdopen(os.dup(2), "w"), kill_after_s=1.0, end_after_s=8.0))
"""
WAITS_FOR_A_PROCESS = """
import subprocess, sys
def test_waits():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]):
        raise ValueError("gone wrong")
def test_after():
    pass
"""
WAITS_FOR_ITSELF = """
import threading
def test_waits():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
def test_after():
    pass
"""


@pytest.fixture
def run(tmp_path):
    def run(source: str) -> subprocess.CompletedProcess:
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "test_it.py").write_text(source)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        return run_tree([sys.executable, "-m", "pytest", "-p", "no:timeout", "-p", "no:cacheprovider", "--rootdir",
                         str(tmp_path), str(tmp_path)], timeout=60, env=environment)

    return run


def test_processes_that_a_test_waits_for_are_killed_and_the_run_goes_on(run):
    ended = run(WAITS_FOR_A_PROCESS)
    assert "1 failed, 1 passed" in ended.stdout
    assert "gone wrong" in ended.stdout
    assert "test_waits does not end" in ended.stderr
    assert "time.sleep(300)" in ended.stderr, "the process it waited for is named"


def test_a_run_that_cannot_go_on_ends_with_its_traces(run):
    ended = run(WAITS_FOR_ITSELF)
    assert ended.returncode != 0
    assert "passed" not in ended.stdout
    assert "in test_waits" in ended.stderr
