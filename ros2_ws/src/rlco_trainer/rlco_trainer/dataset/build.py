"""Recorded bags to a LeRobot dataset: `rlco dataset build`.

Workers read, judge and encode one bag each and leave its episodes in a spool beside the dataset; this process hands them to
LeRobot in the order of the bags. A killed build goes on from the spool.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash
from tqdm import tqdm

from rlco_common.contract import Contract
from rlco_common.errors import DataError, RlcoError
from rlco_common.strict import to_mapping
from rlco_teleop.bags import find_episodes
from rlco_trainer.dataset.episode import idle_ticks
from rlco_trainer.dataset.examine import Examined, examine_bag
from rlco_trainer.dataset.packed import PackedEpisode, pack
from rlco_trainer.dataset.segments import parts_of
from rlco_trainer.dataset.splits import SplitRule
from rlco_trainer.dataset.spool import EpisodeSpool
from rlco_trainer.dataset.streams import read_streams  # noqa: F401  (its old place)
from rlco_trainer.dataset.writer import require_absent, write_dataset

MIN_TICKS = 2       # a correction shorter than this teaches nothing
_FORMAT = 1         # of the spool; another one is not taken up
_PROCESSES_FROM_BYTES = 256 << 20       # less than this is built before worker processes have started


@dataclass(frozen=True)
class BuildOptions:
    """keep_policy: successful policy segments become episodes, too. ignore_audit: take episodes that the audit refuses for
    anything but the contract. allow_unstamped: take the time of recording for a missing stamp."""

    keep_policy: bool = False
    ignore_audit: bool = False
    allow_unstamped: bool = False


@dataclass
class BuildReport:
    """What became of every bag. kept: name -> (ticks, idle ticks dropped, refused ticks); left_out: name -> reason."""

    out: Path
    kept: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    looks: dict[str, list[str]] = field(default_factory=dict)
    episodes: dict[str, list[str]] = field(default_factory=dict)
    bag_hashes: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        ticks = sum(row[0] for row in self.kept.values())
        lines = [f"{self.out}: {sum(map(len, self.episodes.values()))} episodes of {len(self.kept)} bags, {ticks} ticks"]
        lines += [f"  {name}: {kept} ticks, {idle} idle dropped, {refused} refused"
                  for name, (kept, idle, refused) in self.kept.items() if idle or refused]
        lines += [f"  look at {name}: {text}" for name, texts in self.looks.items() for text in texts]
        lines += [f"  left out {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)


def build_dataset(contract: Contract, sources: list[Path], out: Path, *, options: BuildOptions | None = None,
                  split: SplitRule | None = None, workers: int = 0, overwrite: bool = False,
                  quiet: bool = False) -> BuildReport:
    """Build `out` from every finished episode under `sources`. Bags are only read.

    An episode that breaks the contract, that the audit refuses, was not successful or was not judged is left out and named
    in the report and in the dataset. workers: bags at a time, 0 for one per core. Raises DataError when nothing is left.
    """
    out, options = Path(out), options or BuildOptions()
    require_absent(out, overwrite)
    bags = _distinct([bag for source in sources for bag in find_episodes(source)], sources)
    recipe = {"kind": "build", "format": _FORMAT, "contract_hash": contract.hash, **to_mapping(options)}
    spool = EpisodeSpool(out.with_name(f".{out.name}.build"), recipe, contract.to_json())
    report = BuildReport(out)
    lineage = {"kind": "recorded", "bags": report.bag_hashes, "left_out": report.left_out,
               "bag_paths": {bag.name: os.path.relpath(bag, out.parent) for bag in bags}, "options": to_mapping(options)}
    with _executor(bags, workers or len(os.sched_getaffinity(0))) as pool:
        try:
            notes = tqdm(_prepared(pool, contract, bags, spool, options), total=len(bags), desc=f"build {out.name}",
                         disable=quiet, dynamic_ncols=True)
            episodes = (episode for bag, note in zip(bags, notes, strict=True)
                        for episode in spool.episodes(_noted(report, bag.name, note)))
            write_dataset(out, contract, episodes, lineage=lineage, split=split or SplitRule(), overwrite=overwrite)
        except DataError as error:
            if report.kept:
                raise
            raise DataError("no usable episode:\n" + report.text()) from error
        finally:
            pool.shutdown(cancel_futures=True)      # after an error, bags that wait need not be read
    spool.remove()
    return report


def _distinct(bags: list[Path], sources: list[Path]) -> list[Path]:
    if not bags:
        raise DataError(f"no finished episode under {', '.join(map(str, sources))}; record some with 'rlco record'")
    by_name: dict[str, Path] = {}
    for bag in bags:
        other = by_name.setdefault(bag.name, bag)
        if other.resolve() != bag.resolve():
            raise DataError(f"two bags are called {bag.name}: {other} and {bag}; give one of them, or rename it")
    return list(by_name.values())


def _executor(bags: list[Path], workers: int) -> Executor:
    """Processes for much data, because reading bags holds Python's lock for a third of its time; else threads."""
    if sum(path.stat().st_size for bag in bags for path in bag.glob("*.mcap")) < _PROCESSES_FROM_BYTES:
        return ThreadPoolExecutor(workers, "bag")
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """In a worker process: do not outlive a build that was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def _prepared(pool: Executor, contract, bags: list[Path], spool: EpisodeSpool, options) -> Iterator[dict]:
    """The notes of the bags, in order, each once its episodes are in the spool. Work on all of them begins at once."""
    held = spool.notes()
    futures = {}
    for bag in bags:
        note = held.get(bag.name)
        if note is None or note["files"] != _fingerprint(bag):
            futures[bag.name] = pool.submit(prepare_bag, contract, bag, spool, options)
    return (futures[bag.name].result() if bag.name in futures else held[bag.name] for bag in bags)


def prepare_bag(contract: Contract, directory: Path, spool: EpisodeSpool, options: BuildOptions) -> dict:
    """Put a bag's episodes into the spool; the note says which, and how they came about or why there are none."""
    note = {"files": _fingerprint(directory), "episodes": [], "left_out": "", "looks": [], "refused": 0, "idle": 0, "ticks": 0}
    try:
        examined = examine_bag(contract, directory, options.allow_unstamped)
        note["looks"] = [finding.text for finding in examined.findings if finding.level == "look"]
        _require_go(examined, options)
        note["hash"] = bag_hash(directory)
        for episode, idle in _episodes(contract, examined, options):
            spool.put(episode.metadata.episode, episode)
            note["episodes"].append(episode.metadata.episode)
            note["ticks"] += len(episode)
            note["idle"] += idle
        note["refused"] = examined.figures.refused
        if not note["episodes"]:
            raise DataError("nothing in it is a demonstration: the policy drove; --keep-policy takes its successful segments"
                            if {segment.source for segment in examined.segments} == {"policy"} else
                            "the takeovers are too short to learn from")
    except RlcoError as error:
        note |= {"left_out": str(error), "episodes": []}
    spool.note(directory.name, note)
    return note


def _require_go(examined: Examined, options: BuildOptions) -> None:
    refusals = [finding.text for finding in examined.findings if finding.level == "no-go" and (
        finding.breaks_contract or not options.ignore_audit)]
    if refusals:
        raise DataError("; ".join(refusals))


def _episodes(contract: Contract, examined: Examined, options: BuildOptions) -> Iterator[tuple[PackedEpisode, int]]:
    """(episode, idle ticks dropped) of every part of the bag that is a demonstration."""
    whole = examined.alignment.episode
    begin_ns = whole.stamps_ns[0]
    for part in parts_of(examined.segments, whole.stamps_ns, contract.control_period_ns, options.keep_policy):
        chosen = whole.select(part.keep)
        busy = ~idle_ticks(chosen.actions) if len(chosen) else part.keep[:0]
        chosen, idle = chosen.select(busy), int((~busy).sum())
        if len(chosen) < (1 if part.kind == "demonstration" else MIN_TICKS):
            continue
        record = {"kind": part.kind, "bag": examined.name, "figures": to_mapping(examined.figures), "idle": idle,
                  "looks": [finding.text for finding in examined.findings],
                  "begin_s": float(chosen.stamps_ns[0] - begin_ns) * 1e-9,
                  "end_s": float(chosen.stamps_ns[-1] - begin_ns) * 1e-9 + contract.control_period_s}
        named = replace(chosen.metadata, episode=chosen.metadata.episode + part.suffix)
        yield pack(replace(chosen, metadata=named), record), idle


def _noted(report: BuildReport, name: str, note: dict) -> list[str]:
    """Enter a bag into the report; returns the keys of its episodes."""
    if note["looks"]:
        report.looks[name] = note["looks"]
    if note["left_out"]:
        report.left_out[name] = note["left_out"]
        return []
    report.kept[name] = (note["ticks"], note["idle"], note["refused"])
    report.bag_hashes[name] = note["hash"]
    report.episodes[name] = note["episodes"]
    return note["episodes"]


def bag_hash(directory: Path) -> str:
    """XXH3-128 over the bag's MCAP files, 32 hex digits. It tells a changed bag from an unchanged one at the speed of the
    disk; it is no signature."""
    digest = xxhash.xxh3_128()
    for path in sorted(directory.glob("*.mcap")):
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _fingerprint(directory: Path) -> list:
    """What a stopped build recognises an unchanged bag by: names, sizes and times of its files."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(directory.iterdir())]
