"""From trials back to what they were made of: checkpoint, its Stage I, datasets, bags; with the hash of each link and whether
what lies there now is still that."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlco_common.errors import DataError
from rlco_common.records import TrialRecord
from rlco_policy.checkpoint import read_description
from rlco_policy.opening import SCHEMES
from rlco_trainer.dataset.reader import read_sidecar
from rlco_trainer.dataset.schema import SIDECAR

MOST_BAGS = 4       # a page names so many of a dataset's bags and counts the rest
SAME, CHANGED, ABSENT, THERE = "as used", "changed since", "not here", "there"


@dataclass(frozen=True)
class Link:
    """One link of bag -> dataset -> checkpoint -> trials. detail: what it was made from and how. state: SAME (its noted hash
    is the one that was used), CHANGED (it is another one), ABSENT, or THERE (no hash was compared). command: what makes it
    again, empty when it does not tell."""

    kind: str
    name: str
    digest: str
    detail: str
    state: str = SAME
    command: str = ""


def trace(checkpoints: Mapping[str, tuple[str, str]]) -> list[Link]:
    """Links of every checkpoint and all that it was made from, sources first, each once.

    checkpoints: name -> (directory, digest that was evaluated, at least its beginning; empty: unknown).
    """
    links: dict[tuple[str, str], Link] = {}
    for name, (path, digest) in checkpoints.items():
        _trace_checkpoint(name, path, digest, links)
    return list(links.values())


def trial_links(trials: Iterable[TrialRecord]) -> list[Link]:
    """The last links: every policy's trials and the checkpoint that they were made with."""
    groups: dict[tuple[str, str, str], int] = {}
    for trial in trials:
        key = (trial.policy, trial.checkpoint, trial.checkpoint_digest)
        groups[key] = groups.get(key, 0) + 1
    return [Link("trials", name, "", f"{count} trials of checkpoint {digest or checkpoint}", "")
            for (name, checkpoint, digest), count in groups.items()]


def run_directories(checkpoints: Mapping[str, str]) -> dict[str, Path]:
    """name -> directory of the training run, for those that have metrics; a Stage I that Stage II started from comes as
    `NAME, Stage I` unless it is one of the checkpoints itself."""
    runs: dict[str, Path] = {}
    own = {Path(path).resolve() for path in checkpoints.values()}
    for name, path in checkpoints.items():
        description = _description(path)
        start = ((description or {}).get("lineage", {}).get("start") or {}).get("path", "")
        if start and Path(start).resolve() not in own and (Path(start).parent / "metrics.jsonl").is_file():
            runs.setdefault(f"{name}, Stage I", Path(start).parent)
        if (Path(path).parent / "metrics.jsonl").is_file():
            runs[name] = Path(path).parent
    return runs


def regime_of(path: str) -> str:
    """The paper's regime that a checkpoint's lineage amounts to: real_only, sft_cotraining or rl_co; empty when unclear."""
    lineage = (_description(path) or {}).get("lineage", {})
    if lineage.get("stage") == 2:
        return "rl_co"
    if lineage.get("stage") == 1:
        sources = {kind for kind, _, _ in _datasets(lineage)}
        return {frozenset({"real"}): "real_only", frozenset({"real", "sim"}): "sft_cotraining"}.get(frozenset(sources), "")
    return ""


def _trace_checkpoint(name: str, path: str, digest: str, links: dict) -> None:
    key = ("checkpoint", str(path))
    if key in links:
        return
    if str(path).startswith(SCHEMES):
        links[key] = Link("checkpoint", name, "", f"served at {path}", ABSENT)
        return
    description = _description(path)
    if description is None:
        links[key] = Link("checkpoint", name, digest[:16], str(path), ABSENT)
        return
    lineage, sources = description["lineage"], []
    start = lineage.get("start")
    if start:
        _trace_checkpoint(start["path"], start["path"], start["digest"], links)
        sources.append(f"start {start['digest'][:16]}")
    for kind, dataset, content in _datasets(lineage):
        _trace_dataset(dataset, content, links)
        sources.append(f"{kind} {content}")
    settings = [f"{key} {value}" for key, value in lineage.items() if isinstance(value, (int, float, str)) and key != "stage"]
    made = f"Stage {lineage['stage']}" if "stage" in lineage else "no training noted"
    same = description["digest"].startswith(digest) if digest else True
    links[key] = Link("checkpoint", name, description["digest"][:16],
                      "; ".join([f"{description['policy']}, {made}", *sources, *settings]), SAME if same else CHANGED,
                      _training_command(Path(path).parent, lineage.get("stage")))


def _trace_dataset(path: str, content: str, links: dict) -> None:
    key = ("dataset", str(path))
    if key in links:
        return
    if not (Path(path) / SIDECAR).is_file():
        links[key] = Link("dataset", str(path), content, "", ABSENT)
        return
    sidecar = read_sidecar(Path(path))
    lineage = sidecar["lineage"]
    bags = lineage.get("bags", {})
    if bags:
        links[("bags", str(path))] = _bags_link(Path(path), bags, lineage.get("bag_paths", {}))
    episodes = len(sidecar["episodes"])
    made = f"from {len(bags)} bags" if bags else ", ".join(f"{key} {value}" for key, value in lineage.items()
                                                          if key != "contract_hash" and value != "")
    state = SAME if sidecar["content_hash"] == content else CHANGED
    links[key] = Link("dataset", str(path), sidecar["content_hash"], f"{episodes} episodes, {made}", state,
                      _dataset_command(Path(path), lineage, episodes))


def _bags_link(dataset: Path, bags: dict[str, str], paths: dict[str, str]) -> Link:
    named = [f"{bag} {digest}" for bag, digest in list(bags.items())[:MOST_BAGS]]
    rest = [f"and {len(bags) - MOST_BAGS} more in {dataset / SIDECAR}"] if len(bags) > MOST_BAGS else []
    there = sum((dataset.parent / relative).is_dir() for relative in paths.values())
    state = THERE if there == len(bags) else f"{there} of {len(bags)} there" if paths else ""
    return Link("bags", f"{len(bags)} of {dataset.name}", "", "; ".join(named + rest), state)


def _datasets(lineage: dict) -> Iterable[tuple[str, str, str]]:
    """(real or sim, path, content hash) of every dataset in a checkpoint's lineage."""
    for key, value in lineage.items():
        kind, _, noun = key.partition("_")
        if noun.startswith("dataset"):
            for entry in value if isinstance(value, list) else [value]:
                yield kind, entry["path"], entry["content_hash"]


def _description(path: str) -> dict | None:
    if str(path).startswith(SCHEMES):
        return None
    try:
        return read_description(path)
    except DataError:
        return None


def _training_command(run: Path, stage: int | None) -> str:
    return f"rlco train stage{stage} {shlex.quote(str(run / 'config.yaml'))}" if (run / "config.yaml").is_file() else ""


def _dataset_command(path: Path, lineage: dict, episodes: int) -> str:
    out = shlex.quote(str(path))
    if lineage.get("bag_paths"):
        folders = sorted({str(Path(path.parent, relative).parent) for relative in lineage["bag_paths"].values()})
        return f"rlco dataset build {' '.join(map(shlex.quote, folders))} --out {out}"
    if lineage.get("kind") == "simulated" and "task" in lineage:
        variation = f" --variation {lineage['variation']}" if lineage.get("variation") else ""
        return (f"rlco demos {lineage['task']} -n {episodes} --domain {lineage['domain']} --noise {lineage['noise']} "
                f"--expert {lineage['expert']}{variation} --out {out}")
    return ""
