"""The report of evaluations: one self-contained HTML page, and the same as text. Every figure comes from the records."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlco_common.records import Rate, TrialRecord, mcnemar, on_common_seeds, success_rate
from rlco_trainer.film import last_frame
from rlco_trainer.lineage import Link
from rlco_trainer.metrics import read_metrics
from rlco_trainer.pages import curve_url, data_url, machine, picture_url, write_page
from rlco_trainer.paper import MODELS, REGIMES, paper_success, paper_table

COLORS = {"real_only": "#8a8f98", "sft_cotraining": "#2f6db3", "rl_co": "#c8502a"}
OTHER_COLORS = ("#4c8c5a", "#8a5aa8", "#b08a2e", "#3b8f96", "#a34f6b", "#5f6b2f")
DOMAINS = {"real": "real robot", "standin": "stand-in", "twin": "twin"}


class Condition(NamedTuple):
    """Where trials were made: a column of a table."""

    domain: str
    over_ros: bool

    def __str__(self) -> str:
        name = DOMAINS.get(self.domain, self.domain)
        return f"{name}, over ROS" if self.over_ros and self.domain != "real" else name

    @property
    def title(self) -> str:
        return str(self)[:1].upper() + str(self)[1:]


@dataclass(frozen=True)
class ReportInput:
    """What a report is made from. trials: all records. runs: name -> training run. regimes: arm -> one of the paper's.
    step_seconds: step -> seconds. pictures: caption -> uint8 [H, W, 3]. videos: caption -> MP4 file."""

    title: str
    trials: list[TrialRecord]
    runs: dict[str, Path] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)
    lineage: list[Link] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    regimes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Success of every arm under every condition, for one task and variation. paper: model -> success as text."""

    task: str
    variation: str
    conditions: list[Condition]
    rows: list["Row"]
    source: str             # which table of the paper; empty: it has no such experiment

    @property
    def title(self) -> str:
        return self.task + (f", {self.variation}" if self.variation else "")


@dataclass(frozen=True)
class Row:
    arm: str
    label: str
    color: str
    rates: dict[Condition, Rate]
    paper: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """Two arms on the initial states that both met. only_a: states that a alone solved."""

    where: str
    a: str
    b: str
    pairs: int
    only_a: int
    only_b: int
    p: float

    def __str__(self) -> str:
        return (f"{self.where}: {self.a} solves {self.only_a} states that {self.b} does not, and fails {self.only_b} that it "
                f"solves ({self.pairs} pairs, exact McNemar p = {self.p:.3g})")


def write_report(source: ReportInput, out: Path) -> str:
    """Write the page to `out`; returns the text version."""
    tables = success_tables(source.trials, source.regimes)
    write_page(
        "report.html.j2", out, title=source.title, tables=tables, models=MODELS, comparisons=comparisons(source.trials),
        domains={trial.domain for trial in source.trials}, steps=source.step_seconds,
        total_s=sum(source.step_seconds.values()), lineage=source.lineage, notes=source.notes, plots=_plots(source),
        pictures=[(caption, picture_url(image)) for caption, image in source.pictures.items()],
        videos=[_film(caption, path) for caption, path in source.videos.items()], commands=source.commands,
        count=len(source.trials), contracts=sorted({trial.contract_hash for trial in source.trials}),
    )
    return render_text(source)


def render_text(source: ReportInput) -> str:
    """The report's figures as plain text."""
    lines = [source.title, "", trials_text(source.trials)]
    if source.step_seconds:
        lines += ["", *(f"{name:<32}{seconds:7.0f} s" for name, seconds in source.step_seconds.items()),
                  f"{'total':<32}{sum(source.step_seconds.values()):7.0f} s"]
    return "\n".join([*lines, f"machine: {machine()}", *source.notes])


def trials_text(trials: list[TrialRecord]) -> str:
    """Rates with their intervals and paired comparisons, as plain text."""
    lines = []
    for table in success_tables(trials):
        lines += [f"{table.title:<20}" + "".join(f"{condition!s:>28}" for condition in table.conditions)]
        for row in table.rows:
            cells = (str(row.rates.get(condition, "-")) for condition in table.conditions)
            lines.append(f"{row.label:<20}" + "".join(f"{cell:>28}" for cell in cells))
        lines.append("")
    lines.append("success with 95 % Wilson interval")
    return "\n".join([*lines, *map(str, comparisons(trials))])


def label(arm: str) -> str:
    return REGIMES.get(arm, arm)


def success_tables(trials: list[TrialRecord], regimes: dict[str, str] | None = None) -> list[Table]:
    """One table per task and variation. regimes: see ReportInput; an arm that bears a regime's name needs none."""
    tables, arms = [], _arms(trials)
    colors = _colors(arms)
    for task, variation in sorted({(trial.task, trial.variation) for trial in trials}):
        own = [trial for trial in trials if (trial.task, trial.variation) == (task, variation)]
        rows = []
        for arm in arms:
            regime = (regimes or {}).get(arm, arm)
            rates = {condition: success_rate(group) for condition, group in _by_condition(own, arm).items()}
            paper = {model: paper_success(model, regime, task, variation) for model in MODELS}
            if rates:
                rows.append(Row(arm, label(arm), colors[arm], rates, paper))
        source = paper_table(variation) if any(any(row.paper.values()) for row in rows) else ""
        tables.append(Table(task, variation, _conditions(own), rows, source))
    return tables


def comparisons(trials: list[TrialRecord]) -> list[Comparison]:
    """Every pair of arms, wherever both were tried, on the initial states that both met."""
    found = []
    for task, variation in sorted({(trial.task, trial.variation) for trial in trials}):
        own = [trial for trial in trials if (trial.task, trial.variation) == (task, variation)]
        for condition, (b, a) in itertools.product(_conditions(own), itertools.combinations(_arms(own), 2)):
            first, second = on_common_seeds(_by_condition(own, a).get(condition, []), _by_condition(own, b).get(condition, []))
            if first:
                only_a, only_b, p = mcnemar(first, second)
                where = f"{task}{', ' + variation if variation else ''}, {condition}"
                found.append(Comparison(where, label(a), label(b), len(first), only_a, only_b, p))
    return found


def _by_condition(trials: Iterable[TrialRecord], arm: str) -> dict[Condition, list[TrialRecord]]:
    groups: dict[Condition, list[TrialRecord]] = {}
    for trial in trials:
        if trial.policy == arm:
            groups.setdefault(Condition(trial.domain, trial.over_ros), []).append(trial)
    return groups


def _conditions(trials: Iterable[TrialRecord]) -> list[Condition]:
    """Real first, then the stand-in; over ROS after in-process."""
    order = list(DOMAINS)
    return sorted({Condition(trial.domain, trial.over_ros) for trial in trials},
                  key=lambda condition: (order.index(condition.domain) if condition.domain in order else len(order), condition))


def _arms(trials: Iterable[TrialRecord]) -> list[str]:
    """The paper's regimes in their order, then the others as they come."""
    names = dict.fromkeys(trial.policy for trial in trials)
    return [arm for arm in REGIMES if arm in names] + [arm for arm in names if arm not in REGIMES]


def _colors(names: Iterable[str]) -> dict[str, str]:
    others = itertools.cycle(OTHER_COLORS)
    return {name: COLORS.get(name) or next(others) for name in names}


def _film(caption: str, path: Path) -> tuple[str, str, str]:
    """(caption, film, its last picture) as data URLs; the picture stands for the film on paper."""
    frame = last_frame(path)
    return caption, data_url(path.read_bytes(), "video/mp4"), "" if frame is None else picture_url(frame)


def _plots(source: ReportInput) -> list[tuple[str, str]]:
    """Learning curves of all runs: Stage I and Stage II, each quantity in one picture."""
    metrics = {name: read_metrics(run / "metrics.jsonl") for name, run in source.runs.items()}
    colors = _colors(metrics)
    stage1 = {name: rows for name, rows in metrics.items() if not any("rollout/success" in row for row in rows)}
    stage2 = {name: rows for name, rows in metrics.items() if name not in stage1}

    def curve(rows_of, quantity, x, y, **options):
        lines = {label(name): (_series(rows, quantity), colors[name]) for name, rows in rows_of.items()}
        return curve_url(lines, x, y, **options)

    plots = []
    if stage1:
        plots = [("Stage I: supervised loss", curve(stage1, "sft/loss", "optimizer step", "training loss", log=True)),
                 ("Stage I: loss on held-out real demonstrations",
                  curve(stage1, "real/held_out_loss", "optimizer step", "held-out real loss", log=True))]
    if stage2:
        lines = {}
        for name, rows in stage2.items():
            lines[f"{label(name)}, exploring"] = (_series(rows, "rollout/success"), colors[name] + "66")
            lines[f"{label(name)}, greedy"] = (_series(rows, "twin/success"), colors[name])
        plots += [("Stage II: success in the twin", curve_url(lines, "iteration", "success rate")),
                  ("Stage II: forgetting monitor",
                   curve(stage2, "real/held_out_loss", "iteration", "held-out real loss"))]
    return plots


def _series(rows, name):
    return [(row["step"], row[name]) for row in rows if name in row]
