"""Fixtures that every test may use."""

import fcntl
import itertools
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from watchdog import Watchdog

os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["OMP_NUM_THREADS"] = "1"     # several processes share the cores; torch threads that wait for them cost most
os.environ["HF_HUB_OFFLINE"] = "1"

SLOW_S = 30.0       # a test that takes longer is named at once
LONG_TIMEOUT_S = 600
GRACE_S = 900.0
NOT_RUN = "not run for lack of time"
_begun = time.monotonic()
_counter = itertools.count()


class Live:
    """Tells of failures and of slow tests when they happen: a run that is cut off has then said what went wrong."""

    def __init__(self, terminal):
        self._terminal = terminal

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self._terminal.write_line(f"\n--- {report.nodeid} failed in {report.when} after {report.duration:.0f} s\n"
                                      f"{report.longreprtext[-4000:]}\n{report.capstdout[-2000:]}")
        elif report.duration > SLOW_S:
            self._terminal.write(f"[{report.nodeid.rpartition('/')[2]} {report.when} {report.duration:.0f} s]")


def pytest_addoption(parser):
    parser.addoption("--budget", type=float, default=float(os.environ.get("RLCO_TEST_BUDGET_S", "inf")), metavar="SECONDS",
                     help=f"begin no long test after so many seconds, none at all {GRACE_S:.0f} s later; lists those")


def pytest_collection_modifyitems(items):
    """Long tests come last."""
    items.sort(key=lambda item: item.get_closest_marker("long") is not None)
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    budget = item.config.getoption("budget") + (0 if item.get_closest_marker("long") else GRACE_S)
    if time.monotonic() - _begun > budget:
        pytest.skip(f"{NOT_RUN}: the {budget:.0f} s of this run are over")


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    left_out = [report.nodeid for report in skipped if NOT_RUN in str(report.longrepr)]
    if left_out:
        terminalreporter.section(f"{len(left_out)} tests were not run")
        terminalreporter.write_line("\n".join(left_out))


def time_limit(item, config) -> float:
    """Seconds that pytest-timeout gives a test; 0 for no limit."""
    marker = item.get_closest_marker("timeout")
    if marker is None:
        return float(config.getoption("timeout") or 0)
    return float(marker.args[0] if marker.args else marker.kwargs.get("timeout", 0))


@pytest.hookimpl(trylast=True)      # the terminal is registered by then
def pytest_configure(config):
    stream = os.fdopen(os.dup(2), "w")      # the run's own stderr, also while a test's output is captured
    config.pluginmanager.register(Watchdog(lambda item: time_limit(item, config), stream))
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Live(terminal))


@contextmanager
def _reserved_domain():
    """A ROS domain id that no other test run of this machine has reserved: one graph must not hear another."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        domain = 1 + (os.getpid() * 7 + worker * 31 + next(_counter)) % 99
        with (Path(tempfile.gettempdir()) / f"rlco_ros_domain_{domain}.lock").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return


@pytest.fixture
def ros_domain(monkeypatch) -> int:
    """A ROS domain id (1..99) that no other test on this machine uses at the same time; also set in the environment."""
    with _reserved_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        yield domain


@pytest.fixture(scope="module")
def module_ros_domain() -> int:
    """The same for a graph that all tests of a module share."""
    with _reserved_domain() as domain:
        yield domain


@pytest.fixture(scope="session")
def contract():
    from rlco_common.contract import load_contract

    return load_contract()


@pytest.fixture(scope="session")
def tiny_datasets(tmp_path_factory, contract):
    """Small real datasets of the scripted expert: {"real": stand-in, "sim": twin}, 4 episodes each."""
    from rlco_trainer.dataset.simulated import write_simulated_demos

    root = tmp_path_factory.mktemp("datasets")
    for name, domain in (("real", "standin"), ("sim", "twin")):
        write_simulated_demos(contract, root / name, task="push_cube", domain=domain, count=4, noise=0.1, workers=0,
                              quiet=True)
    return {name: root / name for name in ("real", "sim")}


@pytest.fixture(scope="session")
def untrained(tmp_path_factory, contract, tiny_datasets):
    """Checkpoints of both compact policies with random weights: name -> directory."""
    from rlco_policy.checkpoint import save_policy
    from rlco_policy.registry import create_policy
    from rlco_policy.statistics import Statistics
    from rlco_trainer.dataset.reader import load_proprioception

    statistics = Statistics.from_proprioception(contract.proprioception_names, load_proprioception(tiny_datasets["sim"]))
    root = tmp_path_factory.mktemp("untrained")
    return {name: save_policy(create_policy(name, contract, statistics, seed=1), root / name)
            for name in ("compact_flow", "compact_token")}


@pytest.fixture(scope="session")
def briefly_trained(tmp_path_factory, tiny_datasets):
    """A compact_flow checkpoint after 60 steps: no skill, but motions that the gate accepts."""
    from rlco_trainer.config import StageOneConfig
    from rlco_trainer.stage1 import train_stage1

    return train_stage1(StageOneConfig(out=tmp_path_factory.mktemp("brief"), real=str(tiny_datasets["real"]),
                                       sim=str(tiny_datasets["sim"]), steps=60, batch_size=16, held_out=1), quiet=True)
