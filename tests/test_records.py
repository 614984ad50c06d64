"""Trial records and the statistics computed from them."""

import itertools
import json
import math

import pytest

from rlco_common.errors import ConfigError, DataError
from rlco_common.records import TrialRecord, append_records, mcnemar, read_records, success_rate, wilson
from rlco_common.seeds import EVALUATION, REAL_DEMOS, RL, SELECTION, SIM_DEMOS


def trial(seed: int, success: bool, policy: str = "a") -> TrialRecord:
    return TrialRecord(policy, "push_cube", "standin", seed, "push the red cube", success, False, 9, "ckpt", "hash")


def test_wilson_against_published_values():
    # Brown, Cai and DasGupta (2001): the interval's end points solve |p - p0| = z sqrt(p0 (1 - p0) / n).
    for successes, trials in ((3, 10), (50, 100), (1, 200)):
        rate = wilson(successes, trials)
        for end in (rate.low, rate.high):
            assert abs(successes / trials - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / trials), rel=1e-6)


def test_wilson_at_the_ends():
    assert (wilson(0, 20).low, wilson(20, 20).high) == (0.0, 1.0)
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=1e-4)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 successes of 4"):
        wilson(5, 4)


def test_aggregates_come_from_the_records():
    rate = success_rate([trial(seed, seed % 4 == 0) for seed in range(100)])
    assert (rate.successes, rate.trials, rate.value) == (25, 100, 0.25)
    assert str(rate) == "25 % [18, 34] (n=100)"


def test_mcnemar_is_exact_and_needs_pairs():
    a = [trial(seed, seed < 8) for seed in range(10)]
    b = [trial(seed, seed < 2, "b") for seed in range(10)]
    assert mcnemar(a, b) == (6, 0, pytest.approx(2 * 0.5**6))
    assert mcnemar(a, a) == (0, 0, 1.0)
    with pytest.raises(DataError, match="1 trials have no partner"):
        mcnemar(a, b[:-1])


def test_records_round_trip_and_append(tmp_path):
    path = tmp_path / "sub" / "trials.jsonl"
    append_records(path, [trial(0, True)])
    append_records(path, [trial(1, False)])
    assert read_records(path) == [trial(0, True), trial(1, False)]


def test_a_cut_last_line_is_dropped_any_other_bad_line_is_named(tmp_path):
    path = tmp_path / "trials.jsonl"
    append_records(path, [trial(0, True), trial(1, True)])
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert read_records(path) == [trial(0, True)]
    path.write_text(whole.replace("{", "", 1))
    with pytest.raises(DataError, match=r"trials\.jsonl:1"):
        read_records(path)
    path.write_text(json.dumps({"policy": "a"}) + "\n")
    with pytest.raises(ConfigError, match="missing field"):
        read_records(path)


def test_seed_ranges_are_disjoint():
    ranges = sorted((EVALUATION, SELECTION, REAL_DEMOS, SIM_DEMOS, RL), key=lambda seeds: seeds.start)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(ranges))
