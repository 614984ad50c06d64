"""Collects what a report needs from the folders of runs: records, films, pictures, learning curves, lineage, commands."""

import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import DataError
from rlco_common.records import TrialRecord, read_records
from rlco_trainer.film import film_of_bag, first_picture
from rlco_trainer.lineage import CHANGED, regime_of, run_directories, trace, trial_links
from rlco_trainer.metrics import read_metrics
from rlco_trainer.protocol import load_protocol
from rlco_trainer.report import ReportInput, label

RECORDS = "trials.jsonl"
MOST_FILMS = 6
MOST_PICTURES = 4
LARGEST_FILM_BYTES = 2_000_000


def collect(sources: list[Path], contract: Contract, title: str) -> ReportInput:
    """What the folders (or records files) hold, and what lineage leads to from there. Raises DataError when there is neither
    a trial nor a training run."""
    files = records_files(sources)
    trials = separated([trial for path in files for trial in read_records(path)])
    checkpoints = {trial.policy: (trial.checkpoint, trial.checkpoint_digest) for trial in trials}
    runs = run_directories({name: path for name, (path, _) in checkpoints.items()}) | _runs_below(sources, checkpoints)
    if not trials and not runs:
        raise DataError(f"{', '.join(map(str, sources))}: neither {RECORDS} nor a training run's metrics.jsonl below")
    known = set(map(str, (Path(path).parent for path, _ in checkpoints.values())))
    checkpoints |= {name: (str(run / "policy"), "") for name, run in runs.items()
                    if str(run) not in known and (run / "policy").is_dir()}
    lineage = [*trace(checkpoints), *trial_links(trials)]
    notes = [f"{link.kind} {link.name} is not what was used: its hash has changed since." for link in lineage
             if link.state == CHANGED]
    films, left_out = films_of(files, contract)
    if left_out:
        notes.append(f"{left_out} more recorded trials are not shown as films.")
    return ReportInput(
        title=title, trials=trials, runs=runs, lineage=lineage, notes=notes, pictures=pictures_of(files, contract),
        videos=films, commands=_commands(lineage, files, sources),
        regimes={name: regime for name, (path, _) in checkpoints.items() if (regime := regime_of(path))})


def records_files(sources: Iterable[Path]) -> list[Path]:
    """The records in or below the sources, each once. Raises DataError for a source that does not exist."""
    found = {}
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
        for path in [source] if source.is_file() else sorted(source.rglob(RECORDS)):
            found[path.resolve()] = path
    return list(found.values())


def separated(trials: list[TrialRecord]) -> list[TrialRecord]:
    """The trials, with checkpoints that bear one name told apart by their hash or path: they are never added up."""
    known = {trial.checkpoint: trial.checkpoint_digest for trial in trials if trial.checkpoint_digest}
    made_with: dict[str, set[str]] = {}
    for trial in trials:    # a record without a hash is of the checkpoint that lies at its path
        digest = trial.checkpoint_digest or known.get(trial.checkpoint, trial.checkpoint)
        made_with.setdefault(trial.policy, set()).add(digest)
    return [trial if len(made_with[trial.policy]) == 1
            else replace(trial, policy=f"{trial.policy} ({trial.checkpoint_digest[:6] or trial.checkpoint})")
            for trial in trials]


def recorded_trials(files: Iterable[Path]) -> list[tuple[TrialRecord, Path]]:
    """(trial, its bag) of every trial whose bag is there."""
    return [(trial, path.parent / trial.bag) for path in files for trial in read_records(path)
            if trial.bag and (path.parent / trial.bag / "metadata.yaml").is_file()]


def caption_of(trial: TrialRecord) -> str:
    outcome = "success" if trial.success else "failed"
    return f"{label(trial.policy)}: {trial.instruction} (initial state {trial.seed}): {outcome}"


def films_of(files: Iterable[Path], contract: Contract) -> tuple[dict[str, Path], int]:
    """caption -> film of a trial, and how many trials have none here. Films that are missing are made beside the bags.

    Of every arm as many, in turn, up to MOST_FILMS.
    """
    by_arm: dict[str, list] = {}
    total = 0
    for path in files:
        for trial, bag in recorded_trials([path]):
            total += 1
            by_arm.setdefault(trial.policy, []).append((trial, bag, path.parent / trial.video if trial.video else None))
    films: dict[str, Path] = {}
    for turn in range(max(map(len, by_arm.values()), default=0)):
        for trials in by_arm.values():
            if turn < len(trials) and len(films) < MOST_FILMS:
                trial, bag, film = trials[turn]
                if film is None or not film.is_file():
                    film = film_of_bag(contract, bag, bag.with_suffix(".mp4"))
                if film is not None and film.stat().st_size <= LARGEST_FILM_BYTES:
                    films[caption_of(trial)] = film
    return films, total - len(films)


def pictures_of(files: Iterable[Path], contract: Contract) -> dict[str, np.ndarray]:
    """caption -> first picture of an initial state that was recorded, each state once."""
    pictures: dict[str, np.ndarray] = {}
    seen = set()
    for trial, bag in recorded_trials(files):
        state = (trial.task, trial.domain, trial.variation, trial.seed)
        if state in seen or len(pictures) == MOST_PICTURES:
            continue
        seen.add(state)
        picture = first_picture(contract, bag)
        if picture is not None:
            pictures[f"Initial state {trial.seed}: {trial.instruction}"] = picture
    return pictures


def _runs_below(sources: Iterable[Path], checkpoints) -> dict[str, Path]:
    """Training runs in the sources themselves that no trial leads to."""
    known = {Path(path).parent.resolve() for path, _ in checkpoints.values()}
    runs = {}
    for source in sources:
        for path in sorted(source.rglob("metrics.jsonl")) if source.is_dir() else []:
            if path.parent.resolve() not in known and read_metrics(path):
                runs[path.parent.name if path.parent.name not in runs else str(path.parent)] = path.parent
    return runs


def _commands(lineage, files: Iterable[Path], sources: Iterable[Path]) -> list[str]:
    """What makes it all again, in order."""
    commands = [link.command for link in lineage if link.command]
    for path in files:
        commands += _evaluation_commands(path)
    return [*dict.fromkeys(commands), f"rlco report {' '.join(shlex.quote(str(source)) for source in sources)}"]


def _evaluation_commands(path: Path) -> list[str]:
    protocol = path.parent / "protocol.yaml"
    if protocol.is_file():
        load_protocol(protocol)     # or the command would not run
        return [f"rlco eval {shlex.quote(str(protocol))}"]
    groups: dict[tuple, int] = {}
    for trial in read_records(path):
        key = (trial.checkpoint, trial.policy, trial.task, trial.domain, trial.variation, trial.over_ros)
        groups[key] = max(groups.get(key, 0), trial.seed + 1)
    commands = []
    for (checkpoint, name, task, domain, variation, over_ros), count in groups.items():
        varied = f" --variation {variation}" if variation else ""
        common = f"{shlex.quote(checkpoint)} --task {task} --domain {domain}{varied} --trials {count}"
        commands.append(f"rlco deploy {common} --out {path.parent}" if over_ros
                        else f"rlco eval {common} --name {name} --records {path}")
    return commands
