"""The report says what the records say, beside the paper, and is one page that a browser and a printer show whole."""

import base64
import json
import re

import numpy as np
import pytest
from chromium import Browser
from policies import make_policy

from rlco_common.errors import DataError
from rlco_common.records import TrialRecord, append_records, mcnemar, success_rate
from rlco_policy.checkpoint import save_policy
from rlco_trainer.cli import main
from rlco_trainer.collect import collect
from rlco_trainer.dataset.schema import SIDECAR
from rlco_trainer.lineage import ABSENT, CHANGED, SAME, trace
from rlco_trainer.paper import MODELS, REGIMES, TABLE_I, paper_success
from rlco_trainer.report import ReportInput, comparisons, success_tables, write_report

TASKS = {"pick_place", "push_cube", "open_drawer", "close_drawer"}


def trial(arm, seed, success, **more):
    values = {"task": "push_cube", "domain": "standin", "instruction": "push the red cube", "failure": False, "steps": 9,
              "checkpoint": f"runs/{arm}/policy", "contract_hash": "c0ffee", **more}
    return TrialRecord(policy=arm, seed=seed, success=success, **values)


@pytest.fixture
def trials():
    return [trial(arm, seed, seed % 10 < limit, domain=domain) for arm, limit in (("real_only", 2), ("rl_co", 7))
            for domain in ("standin", "twin") for seed in range(30)]


@pytest.fixture
def run(tmp_path):
    """A made-up training run with its dataset, as they lie on the disk after training."""
    dataset = tmp_path / "datasets" / "real"
    (dataset / SIDECAR).parent.mkdir(parents=True)
    (dataset / SIDECAR).write_text(json.dumps({"content_hash": "d00d", "episodes": [0, 1], "lineage": {
        "kind": "recorded", "bags": {"one": "b0", "two": "b1"}, "bag_paths": {"one": "../bags/one", "two": "../bags/two"}}}))
    policy = tmp_path / "rl_co" / "policy"
    save_policy(make_policy("compact_flow"), policy, {
        "stage": 2, "real_datasets": [{"path": str(dataset), "content_hash": "d00d"}],
        "start": {"path": str(tmp_path / "gone" / "policy"), "digest": "5" * 64}})
    (tmp_path / "rl_co" / "config.yaml").write_text("out: x\n")
    (tmp_path / "rl_co" / "metrics.jsonl").write_text("".join(
        json.dumps({"step": step, "rollout/success": 0.1 * step, "real/held_out_loss": 0.2}) + "\n" for step in range(5)))
    return tmp_path / "rl_co"


def test_the_paper_s_tables_are_complete_and_in_its_order():
    assert set(TABLE_I) == set(MODELS)
    assert all(set(rows) == set(REGIMES) and all(set(cells) == TASKS for cells in rows.values()) for rows in TABLE_I.values())
    assert paper_success("OpenVLA", "rl_co", "push_cube") == "68.3 ± 11.7"
    assert paper_success("π0.5", "rl_co", "pick_place", "objects=unseen") == "56.3"
    assert paper_success("OpenVLA", "rl_co", "pick_place", "objects=unseen") == ""
    assert paper_success("π0.5", "rl_co", "push_cube", "objects=unseen") == paper_success("π0.5", "mine", "push_cube") == ""


def test_tables_and_comparisons_are_those_of_the_records(trials):
    (table,) = success_tables(trials)
    assert [row.arm for row in table.rows] == ["real_only", "rl_co"] and table.source == "Table I"
    for row in table.rows:
        for condition, rate in row.rates.items():
            own = [t for t in trials if (t.policy, t.domain) == (row.arm, condition.domain)]
            assert rate == success_rate(own)
    for pair in comparisons(trials):
        domain = "twin" if "twin" in pair.where else "standin"
        a, b = ([t for t in trials if (t.policy, t.domain) == (arm, domain)] for arm in ("rl_co", "real_only"))
        assert (pair.only_a, pair.only_b, pair.p) == mcnemar(a, b)
    extra = [*trials, trial("rl_co", 99, True)]
    assert [pair.pairs for pair in comparisons(extra)] == [30, 30], "a state that one alone met compares nothing"


def test_arms_conditions_and_variations_are_never_added_up(trials):
    mixed = [*trials, trial("rl_co", 0, True, over_ros=True), trial("rl_co", 0, True, variation="objects=unseen")]
    first, second = success_tables(mixed)
    assert [len(table.conditions) for table in (first, second)] == [3, 1]
    assert next(row for row in first.rows if row.arm == "rl_co").rates[first.conditions[1]].trials == 1


def test_two_checkpoints_of_one_name_are_told_apart(tmp_path, contract, trials):
    append_records(tmp_path / "a" / "trials.jsonl", [trial("mine", 0, True, checkpoint_digest="a" * 16)])
    append_records(tmp_path / "b" / "trials.jsonl", [trial("mine", 0, False, checkpoint_digest="b" * 16)])
    found = collect([tmp_path], contract, "both")
    assert {t.policy for t in found.trials} == {"mine (aaaaaa)", "mine (bbbbbb)"}
    append_records(tmp_path / "a" / "deploy" / "trials.jsonl", [trial("one", 0, True, checkpoint_digest="c" * 16),
                                                               trial("one", 0, True, over_ros=True)])
    assert {t.policy for t in collect([tmp_path / "a" / "deploy"], contract, "one").trials} == {"one"}
    with pytest.raises(DataError, match=r"neither trials\.jsonl nor"):
        (tmp_path / "empty").mkdir()
        collect([tmp_path / "empty"], contract, "nothing")


def test_lineage_leads_back_to_the_bags_and_tells_what_has_changed(run):
    policy = str(run / "policy")
    kinds = [(link.kind, link.state) for link in trace({"rl_co": (policy, "")})]
    assert kinds == [("checkpoint", ABSENT), ("bags", "0 of 2 there"), ("dataset", SAME), ("checkpoint", SAME)]
    assert trace({"rl_co": (policy, "0" * 16)})[-1].state == CHANGED
    sidecar = run.parent / "datasets" / "real" / SIDECAR
    sidecar.write_text(sidecar.read_text().replace("d00d", "beef"))
    assert {link.state for link in trace({"rl_co": (policy, "")}) if link.kind == "dataset"} == {CHANGED}


def test_a_report_is_one_page_for_screen_and_paper(tmp_path, run, trials):
    import imageio.v2 as imageio

    film = tmp_path / "film.mp4"
    with imageio.get_writer(film, fps=10, codec="libx264", macro_block_size=2) as writer:
        for shade in range(0, 250, 50):
            writer.append_data(np.full((96, 128, 3), shade, np.uint8))
    out = tmp_path / "report.html"
    text = write_report(ReportInput(
        title="A & B", trials=trials, runs={"rl_co": run}, lineage=trace({"rl_co": (str(run / "policy"), "")}),
        videos={"a trial": film}, pictures={"a state": np.zeros((90, 120, 3), np.uint8)},
        commands=["rlco eval " + "very/long/" * 30 + "policy"]), out)
    page = out.read_text()
    rate = str(success_rate([t for t in trials if (t.policy, t.domain) == ("rl_co", "standin")]))
    assert rate in page and rate in text and "68.3 ± 11.7" in page and "A &amp; B" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs nothing beside it"
    with Browser(tmp_path) as browser:
        tab = browser.open(out.as_uri(), dark=False)
        shown = "[...document.querySelectorAll('{}')].filter(e => e.checkVisibility()).length"
        broken = "[...document.images].filter(i => i.checkVisibility() && !i.naturalWidth).length"
        wide = "document.documentElement.scrollWidth - window.innerWidth"
        tab.wait("document.querySelector('video').videoWidth > 0", "the film to be decoded")
        assert (tab.js(shown.format("video")), tab.js(shown.format("img.paper-only")), tab.js(broken)) == (1, 0, 0)
        assert tab.js(wide) <= 0
        tab.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
        assert tab.js(wide) <= 0, "a phone shows it without scrolling sideways"
        tab.call("Emulation.setDeviceMetricsOverride", width=690, height=1000, deviceScaleFactor=1, mobile=False)
        tab.call("Emulation.setEmulatedMedia", media="print")
        assert (tab.js(shown.format("video")), tab.js(shown.format("img.paper-only")), tab.js(broken)) == (0, 1, 0)
        assert tab.js(wide) <= 0, "paper cuts off what is too wide"
        paper = base64.b64decode(tab.call("Page.printToPDF", printBackground=True)["data"])
    assert paper.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", paper)) <= 5


def test_the_command_writes_the_page_and_repeats_its_figures(tmp_path, run, trials, capsys):
    append_records(tmp_path / "eval" / "trials.jsonl", trials)
    assert main(["report", str(tmp_path / "eval"), str(run), "--title", "Mine"]) == 0
    told = capsys.readouterr().out
    assert "Mine" in told and "McNemar" in told
    page = (tmp_path / "eval" / "report.html").read_text()
    assert "Stage II: forgetting monitor" in page and f"rlco report {tmp_path / 'eval'} {run}" in page
    assert "rlco eval runs/real_only/policy --task push_cube --domain twin --trials 30 --name real_only" in page
