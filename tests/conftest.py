"""Fixtures that every test may use."""

import itertools
import os

import pytest

os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["OMP_NUM_THREADS"] = "1"     # several processes share the cores; torch threads that wait for them cost most
os.environ["HF_HUB_OFFLINE"] = "1"

_counter = itertools.count()


def _next_domain() -> int:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return 1 + (os.getpid() * 7 + worker * 31 + next(_counter)) % 99


@pytest.fixture
def ros_domain(monkeypatch) -> int:
    """A ROS domain id (1..99) that no other test of this run uses at the same time; also set in the environment."""
    domain = _next_domain()
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    return domain


@pytest.fixture(scope="module")
def module_ros_domain() -> int:
    """The same for a graph that all tests of a module share."""
    return _next_domain()
