"""Fixtures that every test may use."""

import fcntl
import itertools
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["OMP_NUM_THREADS"] = "1"     # several processes share the cores; torch threads that wait for them cost most
os.environ["HF_HUB_OFFLINE"] = "1"

_counter = itertools.count()


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
