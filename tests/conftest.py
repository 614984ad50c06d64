"""Fixtures that every test may use."""

import itertools
import os

import pytest

os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

_counter = itertools.count()


@pytest.fixture
def ros_domain(monkeypatch) -> int:
    """A ROS domain id (1..99) that no other test of this run uses at the same time; also set in the environment."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    domain = 1 + (os.getpid() * 7 + worker * 31 + next(_counter)) % 99
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    return domain
