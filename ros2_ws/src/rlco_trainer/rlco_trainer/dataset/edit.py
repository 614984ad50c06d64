"""Datasets to datasets: merge several into one, split one in two. Pictures and numbers are copied as they are."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from rlco_common.contract import Contract, contract_from_json, require_same_contract
from rlco_common.episode import EpisodeMetadata
from rlco_common.errors import ConfigError, DataError
from rlco_trainer.dataset.packed import PackedEpisode
from rlco_trainer.dataset.reader import read_sidecar, read_table
from rlco_trainer.dataset.schema import ACTION_KEY, AGE_KEY, STAMP_KEY, STATE_KEY, image_key
from rlco_trainer.dataset.splits import SplitRule
from rlco_trainer.dataset.writer import SIDECAR_FORMAT, require_absent, write_dataset

_METADATA = {field.name for field in fields(EpisodeMetadata)}


@dataclass(frozen=True)
class Filter:
    """Which episodes of a dataset; a field left empty asks for nothing. instruction: a part of it, in any case.

    seeds: first and last seed. episodes: names of episodes or of the bags that they come from.
    """

    split: str = ""
    task: str = ""
    instruction: str = ""
    kind: str = ""
    domain: str = ""
    operator: str = ""
    seeds: tuple[int, int] | None = None
    episodes: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.text():
            raise ConfigError("say which episodes: --split, --task, --instruction, --kind, --domain, --operator, --seeds or "
                              "--episode")

    def text(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items() if value)

    def matches(self, entry: dict) -> bool:
        """entry: one of the sidecar's episodes."""
        exact = ("split", "task", "kind", "domain", "operator")
        return (all(not getattr(self, name) or entry.get(name) == getattr(self, name) for name in exact)
                and self.instruction.lower() in entry["instruction"].lower()
                and (self.seeds is None or self.seeds[0] <= entry["seed"] <= self.seeds[1])
                and (not self.episodes or entry["episode"] in self.episodes or entry.get("bag") in self.episodes))


def read_editable_sidecar(root: Path) -> dict:
    """The sidecar, when it has what an edit must keep. Raises DataError for a dataset made before digests were recorded."""
    sidecar = read_sidecar(root)
    if sidecar.get("format") != SIDECAR_FORMAT:
        raise DataError(f"{root}: made by an earlier version of this software, without digests; build it again")
    return sidecar


def packed_episodes(root: Path, chosen: Callable[[dict], bool] = lambda entry: True) -> Iterator[PackedEpisode]:
    """The episodes of a dataset whose sidecar entry is chosen, one at a time, PNG files untouched."""
    sidecar = read_editable_sidecar(root)
    contract = contract_from_json(sidecar["contract"], str(root))
    table = read_table(root, contract)
    ends = np.cumsum(sidecar["lengths"])
    if ends[-1] != len(table):
        raise DataError(f"{root}: {len(table)} frames, the sidecar says {ends[-1]}; it was changed by another tool")
    for entry, length, end in zip(sidecar["episodes"], sidecar["lengths"], ends, strict=True):
        if chosen(entry):
            yield _packed(contract, sidecar["contract"], entry, table[int(end - length):int(end)])


def _packed(contract: Contract, contract_text: str, entry: dict, rows: dict) -> PackedEpisode:
    metadata = EpisodeMetadata(**{name: value for name, value in entry.items() if name in _METADATA}, contract=contract_text)
    return PackedEpisode(
        {camera: [cell["bytes"] for cell in rows[image_key(camera)]] for camera in contract.cameras},
        np.asarray(rows[STATE_KEY], np.float32), np.asarray(rows[ACTION_KEY], np.float32),
        np.asarray(rows[STAMP_KEY], np.int64).reshape(-1), np.asarray(rows[AGE_KEY], np.float32), metadata, entry["digest"],
        {name: value for name, value in entry.items() if name not in _METADATA | {"digest"}},
    )


def merge_datasets(roots: list[Path], out: Path, *, overwrite: bool = False) -> int:
    """One dataset of several of one contract; returns its frames. Episodes keep their order, their split and their origin.

    Raises ContractMismatch with the differing fields, and DataError naming an episode that is in two of them.
    """
    out = Path(out)
    require_absent(out, overwrite)
    sidecars = [read_editable_sidecar(root) for root in roots]
    contract = contract_from_json(sidecars[0]["contract"], str(roots[0]))
    seen: dict[str, Path] = {}
    for root, sidecar in zip(roots, sidecars, strict=True):
        require_same_contract(contract, contract_from_json(sidecar["contract"], str(root)), f"dataset {root}")
        for entry in sidecar["episodes"]:
            for name in (entry["episode"], f"the content {entry['digest']} of {entry['episode']}"):
                other = seen.setdefault(name, root)
                if other is not root:
                    raise DataError(f"{name} is in both {other} and {root}; split one of them first")
    lineage = {"kind": "merged", "sources": [source_of(root, sidecar, out) for root, sidecar in
                                             zip(roots, sidecars, strict=True)]}
    episodes = (episode for root in roots for episode in packed_episodes(root))
    return write_dataset(out, contract, episodes, lineage=lineage, split=SplitRule(**sidecars[0]["split"]),
                         overwrite=overwrite)


def split_dataset(root: Path, chosen: Filter, out: Path, rest: Path | None = None, *,
                  overwrite: bool = False) -> tuple[int, int]:
    """Write the chosen episodes to `out` and, if wanted, the others to `rest`; returns how many episodes went where.

    Episodes keep their split. Raises DataError when either would be empty.
    """
    sidecar = read_editable_sidecar(root)
    contract = contract_from_json(sidecar["contract"], str(root))
    matching = sum(map(chosen.matches, sidecar["episodes"]))
    others = len(sidecar["episodes"]) - matching
    if not matching or (rest is not None and not others):
        raise DataError(f"{root}: {matching} of {len(sidecar['episodes'])} episodes are {chosen.text()}")
    targets = [(out, chosen.matches, chosen.text())]
    if rest is not None:
        targets.append((rest, lambda entry: not chosen.matches(entry), f"not ({chosen.text()})"))
    for target, _, _ in targets:
        require_absent(Path(target), overwrite)
    for target, matches, text in targets:
        lineage = {"kind": "split", "which": text, "sources": [source_of(root, sidecar, target)]}
        write_dataset(Path(target), contract, packed_episodes(root, matches), lineage=lineage,
                      split=SplitRule(**sidecar["split"]), overwrite=overwrite)
    return matching, others


def source_of(root: Path, sidecar: dict, out: Path) -> dict:
    """A dataset as an ancestor of `out`: its name, its hash and its own lineage, with paths as seen from there."""
    return {"name": Path(root).name, "content_hash": sidecar["content_hash"],
            "lineage": _relocated(sidecar["lineage"], Path(root).absolute().parent, Path(out).absolute().parent)}


def _relocated(lineage: dict, here: Path, there: Path) -> dict:
    moved = dict(lineage)
    if "bag_paths" in lineage:
        moved["bag_paths"] = {name: os.path.relpath(here / path, there) for name, path in lineage["bag_paths"].items()}
    if "sources" in lineage:
        moved["sources"] = [source | {"lineage": _relocated(source["lineage"], here, there)} for source in lineage["sources"]]
    return moved
