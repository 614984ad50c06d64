"""The whole demo, small: every step runs for real, and the report says what the records say."""

import json
import re

import pytest
from commands import rlco

from rlco_common.records import read_records, success_rate
from rlco_policy.checkpoint import read_description
from rlco_teleop.bags import find_episodes, read_episode_metadata
from rlco_trainer.dataset.reader import read_sidecar
from rlco_trainer.metrics import read_metrics

pytestmark = [pytest.mark.long, pytest.mark.timeout(700)]     # the first test pays for the whole demo
ARMS = ("real_only", "sft_cotraining", "rl_co")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(directory, terminal output) of a mini demo, run as a user runs it."""
    out = tmp_path_factory.mktemp("demo") / "mini"
    result = rlco("demo", "--scale", "mini", "--out", out, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return out, result.stdout


def test_every_step_left_its_artefact(demo, contract):
    out, _ = demo
    bags = find_episodes(out / "bags")
    assert len(bags) == 4
    metadata = [read_episode_metadata(bag) for bag in bags]
    assert all(m.success and m.domain == "standin" and m.contract_hash == contract.hash for m in metadata)
    assert set(read_sidecar(out / "datasets" / "real")["lineage"]["bags"]) == {bag.name for bag in bags}
    assert len(read_sidecar(out / "datasets" / "sim")["episodes"]) == 8
    assert [read_description(out / arm / "policy")["lineage"]["stage"] for arm in ARMS] == [1, 1, 2]
    assert len(find_episodes(out / "deploy")) == 1


def test_lineage_links_policy_datasets_and_bags(demo):
    out, _ = demo
    rl, sft = (read_description(out / arm / "policy") for arm in ("rl_co", "sft_cotraining"))
    assert rl["lineage"]["start"]["digest"] == sft["digest"]
    real = read_sidecar(out / "datasets" / "real")["content_hash"]
    for policy in (rl, sft):
        assert [source["content_hash"] for source in policy["lineage"]["real_datasets"]] == [real]


def test_stage_two_trained_with_every_term(demo):
    out, _ = demo
    rows = read_metrics(out / "rl_co" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all("real/held_out_loss" in row for row in rows)
    assert {"replay/loss", "replay/real_loss", "places/loss", "rl/value_loss"} <= rows[2].keys()     # 1 warms the critic up


def test_trials_are_paired_and_the_report_repeats_them(demo):
    out, text = demo
    trials = read_records(out / "trials.jsonl")
    for domain in ("standin", "twin"):
        seeds = {arm: [t.seed for t in trials if (t.policy, t.domain) == (arm, domain)] for arm in ARMS}
        assert seeds["real_only"] == seeds["sft_cotraining"] == seeds["rl_co"] == [0, 1, 2, 3]
    page = (out / "report.html").read_text()
    for arm in ARMS:
        rate = str(success_rate([t for t in trials if (t.policy, t.domain) == (arm, "standin")]))
        assert rate in page
        assert rate in text
    assert (out / "report.txt").read_text().strip() in text
    (over_ros,) = read_records(out / "deploy" / "trials.jsonl")
    assert over_ros.over_ros


def test_the_page_is_self_contained(demo):
    out, _ = demo
    page = (out / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == 1
    assert page.count("data:image/png;base64,") == 2 + 1, "two initial states, and the film's last picture for paper"
    assert page.count("data:image/svg+xml;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "real robot" in page
    assert "stand-in" in page


def test_a_finished_demo_is_not_run_again(demo):
    out, _ = demo
    before = json.loads((out / "demo.json").read_text())["seconds"]
    result = rlco("demo", "--scale", "mini", "--out", out, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("done before") == 7
    after = json.loads((out / "demo.json").read_text())["seconds"]
    assert {k: v for k, v in after.items() if "report" not in k} == {k: v for k, v in before.items() if "report" not in k}


def test_other_settings_in_the_same_place_are_refused(demo):
    out, _ = demo
    result = rlco("demo", "--out", out, timeout=120)
    assert result.returncode == 1
    assert "--fresh" in result.stderr
