"""The table of failure modes names tests that exist, and the tests that no other file is the place for."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rlco_common.contract import load_contract
from rlco_common.gate import Refusal
from rlco_common.seeds import SELECTION
from rlco_policy.runner import PolicyRunner
from rlco_trainer.dataset.build import build_dataset
from rlco_trainer.dataset.reader import read_sidecar
from rlco_trainer.dataset.schema import AGE_KEY, STAMP_KEY, lerobot_dataset_class
from rlco_trainer.faults.runner import catalogue

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = load_contract()
PAGE = (ROOT / "docs" / "failure_modes.md").read_text(encoding="utf-8")
FAILURES = 48


def benchmark(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def names_in(file):
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def rows():
    """number -> cells of the table."""
    found = {}
    for line in PAGE.splitlines():
        if match := re.match(r"\| (\d+) \|", line):
            assert int(match.group(1)) not in found, "a number twice"
            found[int(match.group(1))] = [cell.strip() for cell in line.strip("|").split("|")]
    return found


def test_every_failure_mode_has_a_row_with_tests_that_exist_or_says_that_it_is_open():
    table = rows()
    assert sorted(table) == list(range(1, FAILURES + 1))
    for number, (_, failure, seen, here, tests, drills) in table.items():
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
        assert failure and seen and here, number
        assert bool(named) != ("not covered yet" in here), number
        for file, name in named:
            assert name in names_in(file), f"{number}: {file}::{name} does not exist"
        assert set(re.findall(r"`(\w+)`", drills)) <= set(catalogue()), number


def test_every_drill_belongs_to_a_failure_mode_or_is_explained_by_its_own_promise():
    named = {drill for row in rows().values() for drill in re.findall(r"`(\w+)`", row[5])}
    assert set(catalogue()) - named <= {"kill_gate"}        # no user reported that one


# -- recording and conversion

@pytest.fixture(scope="module")
def synthetic():
    module = benchmark("dataset_build")
    return module, module.contract_with(1, 64, 64)


def test_two_bags_become_two_episodes_of_their_own_ticks(synthetic, tmp_path):
    module, contract = synthetic
    writer = module.SyntheticBag(contract, tmp_path / "bags")
    for name, seconds, seed in (("first", 2.0, 1), ("second", 3.0, 2)):
        writer.write(name, seconds, seed=seed)
    build_dataset(contract, [tmp_path / "bags"], tmp_path / "dataset", quiet=True)
    dataset = lerobot_dataset_class()("rlco/test", root=tmp_path / "dataset")
    lengths = [round(seconds * contract.control_rate_hz) for seconds in (2.0, 3.0)]
    assert dataset.num_episodes == 2
    assert np.abs(np.subtract(read_sidecar(tmp_path / "dataset")["lengths"], lengths)).max() <= 1
    stamps = np.array(dataset.hf_dataset.with_format("numpy")[STAMP_KEY][:]).ravel()
    episodes = np.array(dataset.hf_dataset.with_format("numpy")["episode_index"][:]).ravel()
    for episode in (0, 1):      # no tick of one in the other: stamps start anew, and never go back within
        assert (np.diff(stamps[episodes == episode]) > 0).all()
    assert len(stamps) == len(episodes) == sum(read_sidecar(tmp_path / "dataset")["lengths"])


def test_the_jitter_of_a_camera_survives_into_the_dataset(synthetic, tmp_path):
    from dataclasses import replace

    module, contract = synthetic
    camera = contract.cameras["camera_0"]
    rng, taken = np.random.default_rng(0), []

    def jitter(topic, time_s, message):
        if topic != camera.topic:
            return message
        stamp_ns = module.START_NS + round(time_s * 1e9) - int(rng.integers(0, 20_000_000))
        taken.append(stamp_ns)
        stamp = replace(message.header.stamp, sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        return replace(message, header=replace(message.header, stamp=stamp))

    module.SyntheticBag(contract, tmp_path / "bags", jitter).write("jitter", 3.0, seed=1)
    build_dataset(contract, [tmp_path / "bags"], tmp_path / "dataset", quiet=True)
    table = lerobot_dataset_class()("rlco/test", root=tmp_path / "dataset").hf_dataset.with_format("numpy")
    ticks, ages = np.array(table[STAMP_KEY][:]).ravel(), np.array(table[AGE_KEY][:])[:, 0]
    for tick, age in zip(ticks, ages, strict=True):     # the age leads back to the very stamp that the camera gave
        newest = max(stamp for stamp in taken if stamp <= tick)
        assert age == pytest.approx((tick - newest) * 1e-9, abs=1e-6)
    assert np.std(ages) > 1e-3


# -- gate and policy

def test_nominal_commands_never_trip_the_gate():
    """A minute of what `make bench-gate` does for an hour."""
    from rlco_sim_bridge.pool import TwinPool

    bench = benchmark("gate")
    with TwinPool(CONTRACT, "push_cube", "standin", scenes=1, workers=0, render=False) as pool:
        rollouts = list(pool.rollout_expert(SELECTION[:3], 0.1))
    for play, times in ((bench.replay_twists, 6), (bench.replay_chunks, 6), (lambda r, _: bench.replay_keys(r, 10.0), 3)):
        replay = bench.Replay(CONTRACT, np.random.default_rng(0))
        for index in range(times):
            play(replay, rollouts[index % 3])
        assert not replay.trips and replay.seconds > 5


def test_the_search_for_false_trips_finds_one():
    """An operator whose link stalls for half a second is refused, and the search says so."""
    bench = benchmark("gate")
    replay = bench.Replay(CONTRACT, np.random.default_rng(0))
    replay.begin()
    for number in range(200):
        replay.see(bench.START)
        if not 100 <= number < 150:
            replay.hold_and_twist(np.zeros(6))
        replay.step(bench.GateState.OPERATOR if number > 20 else None)
    replay.finish()
    assert replay.trips["HOLD instead of OPERATOR"] and not replay.trips[Refusal.STATE_STALE.name]


def test_a_still_scene_is_inferred_on_again_and_again(untrained):
    """The same picture and state, tick after tick: every chunk is due and computed, none is left out as nearly equal."""
    from test_policy_node import observation

    from rlco_policy.checkpoint import load_policy

    policy = load_policy(untrained["compact_flow"], CONTRACT)
    runner = PolicyRunner(policy, CONTRACT)
    chunk_ns = policy.spec.chunk * CONTRACT.control_period_ns
    chunks = []
    for number in range(5):
        seen = observation(10**12 + number * chunk_ns, seed=0)
        chunks.append(np.asarray(runner.infer(seen, "push the red cube")))
    assert len(chunks) == 5 and all((chunk == chunks[0]).all() for chunk in chunks)


# -- tests and sessions

def test_two_domains_in_use_are_never_the_same(ros_domain, module_ros_domain):
    from conftest import _reserved_domain

    with _reserved_domain() as third, _reserved_domain() as fourth:
        assert len({ros_domain, module_ros_domain, third, fourth}) == 4
    for file in (ROOT / "tests").glob("test_*.py"):
        text = file.read_text(encoding="utf-8")
        if re.search(r"\b(Processes|open_session|FaultGraph)\(", text):
            assert "ros_domain" in text or "domain_id=1" in text, f"{file.name} starts processes without a domain of its own"
