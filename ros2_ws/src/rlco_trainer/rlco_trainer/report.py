"""The report of a demo run: one self-contained HTML page, and the same as text. Every figure comes from the records."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlco_common.records import Rate, TrialRecord, mcnemar, success_rate
from rlco_trainer.metrics import read_metrics
from rlco_trainer.pages import curve_url, data_url, machine, picture_url, write_page

# Paper, Table I, push_cube row: success on the real robot, %.
PAPER_PUSH_CUBE = {
    "real_only": {"OpenVLA": "20.0 ± 13.3", "π0.5": "0.0 ± 0.0"},
    "sft_cotraining": {"OpenVLA": "51.7 ± 5.0", "π0.5": "10.0 ± 3.3"},
    "rl_co": {"OpenVLA": "68.3 ± 11.7", "π0.5": "18.4 ± 1.7"},
}
LABELS = {"real_only": "Real-only SFT", "sft_cotraining": "SFT co-training", "rl_co": "RL-Co"}
COLORS = {"real_only": "#8a8f98", "sft_cotraining": "#2f6db3", "rl_co": "#c8502a"}


@dataclass(frozen=True)
class ReportInput:
    """What a report is made from. trials: all records, in-process and over ROS. runs: arm -> run directory.
    step_seconds: demo step -> seconds. pictures: caption -> uint8 [H, W, 3]. videos: caption -> MP4 file."""

    title: str
    trials: list[TrialRecord]
    runs: dict[str, Path]
    step_seconds: dict[str, float]
    lineage: list[dict]
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)


def write_report(source: ReportInput, out: Path) -> str:
    """Write the page to `out`; returns the text version."""
    write_page(
        "report.html.j2", out,
        title=source.title, rows=_rows(source.trials), paper=PAPER_PUSH_CUBE, labels=LABELS, colors=COLORS,
        comparisons=_comparisons(source.trials), ros=_over_ros(source.trials), steps=source.step_seconds,
        total_s=sum(source.step_seconds.values()), lineage=source.lineage, notes=source.notes, plots=_plots(source),
        pictures=[(caption, picture_url(image)) for caption, image in source.pictures.items()],
        videos=[(caption, data_url(path.read_bytes(), "video/mp4")) for caption, path in source.videos.items()],
        commands=source.commands,
    )
    return render_text(source)


def render_text(source: ReportInput) -> str:
    """The report's figures as plain text."""
    lines = [source.title, "", f"{'':<18}{'stand-in':>28}{'twin':>28}"]
    for row in _rows(source.trials):
        cells = [str(row["rates"].get(domain, "-")) for domain in ("standin", "twin")]
        lines.append(f"{LABELS[row['arm']]:<18}{cells[0]:>28}{cells[1]:>28}")
    lines.append("success with 95 % Wilson interval; same initial states in every row")
    lines += [f"{text} (exact McNemar p = {p:.3g})" for text, p in _comparisons(source.trials)]
    ros = _over_ros(source.trials)
    if ros is not None:
        lines.append(f"RL-Co over ROS on the stand-in: {ros}")
    lines += ["", *(f"{name:<32}{seconds:7.0f} s" for name, seconds in source.step_seconds.items()),
              f"{'total':<32}{sum(source.step_seconds.values()):7.0f} s", f"machine: {machine()}", *source.notes]
    return "\n".join(lines)


def _rows(trials: list[TrialRecord]) -> list[dict]:
    rows = []
    for arm in LABELS:
        rates: dict[str, Rate] = {}
        for domain in ("standin", "twin"):
            own = _select(trials, arm, domain)
            if own:
                rates[domain] = success_rate(own)
        if rates:
            rows.append({"arm": arm, "rates": rates})
    return rows


def _select(trials, arm, domain):
    return [t for t in trials if (t.policy, t.domain, t.variation, t.over_ros) == (arm, domain, "", False)]


def _comparisons(trials: list[TrialRecord]) -> list[tuple[str, float]]:
    result = []
    for a, b in (("sft_cotraining", "real_only"), ("rl_co", "sft_cotraining"), ("rl_co", "real_only")):
        first, second = _select(trials, a, "standin"), _select(trials, b, "standin")
        if first and second:
            only_a, only_b, p = mcnemar(first, second)
            text = f"{LABELS[a]} solves {only_a} stand-in states that {LABELS[b]} does not, and fails {only_b} that it solves"
            result.append((text, p))
    return result


def _over_ros(trials: list[TrialRecord]) -> Rate | None:
    own = [trial for trial in trials if trial.over_ros]
    return success_rate(own) if own else None


def _plots(source: ReportInput) -> list[tuple[str, str]]:
    metrics = {arm: read_metrics(run / "metrics.jsonl") for arm, run in source.runs.items()}
    stage1 = {arm: rows for arm, rows in metrics.items() if arm != "rl_co"}
    rl = metrics.get("rl_co", [])
    plots = [
        ("Stage I: supervised loss", curve_url({LABELS[a]: (_series(r, "sft/loss"), COLORS[a]) for a, r in stage1.items()},
                                            "optimizer step", "training loss", log=True)),
        ("Stage I: loss on held-out real demonstrations",
         curve_url({LABELS[a]: (_series(r, "real/held_out_loss"), COLORS[a]) for a, r in stage1.items()},
                "optimizer step", "held-out real loss", log=True)),
    ]
    if rl:
        plots.append(("Stage II: success in the twin", curve_url(
            {"exploring": (_series(rl, "rollout/success"), "#d9a38f"),
             "greedy": (_series(rl, "twin/success"), COLORS["rl_co"])},
            "iteration", "success rate")))
        plots.append(("Stage II: forgetting monitor", curve_url(
            {"held-out real loss": (_series(rl, "real/held_out_loss"), COLORS["rl_co"])}, "iteration", "held-out real loss")))
    return plots


def _series(rows, name):
    return [(row["step"], row[name]) for row in rows if name in row]


def lineage_entry(kind: str, name: str, digest: str, detail: str) -> dict:
    """One link of bag -> dataset -> checkpoint -> trial."""
    return {"kind": kind, "name": name, "digest": digest, "detail": detail}


def policy_lineage(name: str, policy: Path) -> dict:
    from rlco_policy.checkpoint import read_description

    description = read_description(policy)
    lineage = description["lineage"]
    return lineage_entry("checkpoint", name, description["digest"][:16], json.dumps(lineage, sort_keys=True))
