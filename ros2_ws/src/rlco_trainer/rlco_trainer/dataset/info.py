"""What a dataset says of itself, and whether that is still true: `rlco dataset info [--verify]`."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlco_common.contract import contract_from_json
from rlco_common.errors import RlcoError
from rlco_trainer.dataset.build import bag_hash
from rlco_trainer.dataset.edit import packed_episodes, read_editable_sidecar
from rlco_trainer.dataset.packed import PackedEpisode, content_hash, digest_of, pixel_digest
from rlco_trainer.dataset.png import decode_png
from rlco_trainer.dataset.reader import read_sidecar
from rlco_trainer.dataset.schema import ACTION_KEY, STATE_KEY
from rlco_trainer.dataset.writer import statistics


def describe_dataset(root: Path) -> str:
    """A page of text: episodes, instructions, split, contract, audit, lineage."""
    sidecar = read_sidecar(root)
    episodes, lengths = sidecar["episodes"], np.array(sidecar["lengths"])
    contract = contract_from_json(sidecar["contract"], str(root))
    lines = [
        f"{root}: {len(episodes)} episodes, {lengths.sum()} ticks ({lengths.min()} to {lengths.max()} an episode)",
        f"contract {contract.name} {sidecar['contract_hash']}, content {sidecar['content_hash']}",
        f"domains {_values(episodes, 'domain')}; operators {_values(episodes, 'operator')}; tasks {_values(episodes, 'task')}",
        f"split {_counted(episodes, 'split')}; kinds {_counted(episodes, 'kind')}",
        *(f"  {count:4d} x {text}" for text, count in sorted(Counter(e["instruction"] for e in episodes).items())),
        *_audit_lines(episodes), "lineage", *_lineage_lines(sidecar["lineage"], "  "),
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Verification:
    """changed: what is not as recorded. absent: bags that cannot be checked any more."""

    episodes: int
    bags: int
    changed: list[str]
    absent: list[str]

    def text(self) -> str:
        lines = [f"verified {self.episodes} episodes and {self.bags} bags: "
                 + ("nothing changed" if not self.changed else f"{len(self.changed)} changed")]
        return "\n".join([*lines, *(f"  changed: {text}" for text in self.changed),
                          *(f"  not there: {text}" for text in self.absent)])


def verify_dataset(root: Path) -> Verification:
    """Compute every hash again, of the bags that are still where they were and of the dataset's own content."""
    root = Path(root)
    sidecar = read_editable_sidecar(root)
    changed, absent, checked = [], [], 0
    if contract_from_json(sidecar["contract"], str(root)).hash != sidecar["contract_hash"]:
        changed.append("the contract in the sidecar")
    for name, digest, path in _bags(sidecar["lineage"], root.absolute().parent):
        if not path.is_dir():
            absent.append(f"bag {name} ({path})")
            continue
        checked += 1
        if bag_hash(path) != digest:
            changed.append(f"bag {name} ({path})")
    try:
        changed += _changed_content(sidecar, packed_episodes(root))
    except RlcoError as error:
        changed.append(str(error))
    return Verification(len(sidecar["episodes"]), checked, changed, absent)


def _changed_content(sidecar: dict, episodes: Iterable[PackedEpisode]) -> Iterator[str]:
    digests, states, actions = [], [], []
    for episode in episodes:
        digests.append(recomputed_digest(episode))
        states.append(episode.proprioception)
        actions.append(episode.actions)
        if digests[-1] != episode.digest:
            yield f"episode {episode.metadata.episode}"
    if content_hash(sidecar["contract_hash"], digests) != sidecar["content_hash"]:
        yield "the content as a whole"
    for key, values in ((STATE_KEY, states), (ACTION_KEY, actions)):
        if statistics(np.concatenate(values).astype(np.float64)) != sidecar["statistics"][key]:
            yield f"the statistics of {key}"


def recomputed_digest(episode: PackedEpisode) -> str:
    """The digest of what the episode holds now."""
    pixels = {camera: [pixel_digest(decode_png(data)) for data in files] for camera, files in episode.images.items()}
    return digest_of(pixels, (episode.proprioception, episode.actions, episode.stamps_ns, episode.ages_s),
                     episode.metadata.instruction)


def _bags(lineage: dict, directory: Path) -> Iterator[tuple[str, str, Path]]:
    """(name, hash, where it was) of every bag that the dataset comes from, through merges and splits."""
    for name, digest in lineage.get("bags", {}).items():
        yield name, digest, directory / lineage.get("bag_paths", {}).get(name, name)
    for source in lineage.get("sources", ()):
        yield from _bags(source["lineage"], directory)


def _audit_lines(episodes: list[dict]) -> Iterator[str]:
    audited = [entry for entry in episodes if "figures" in entry]
    if not audited:
        return
    figures = [entry["figures"] for entry in audited]
    idle = np.average([f["idle_share"] for f in figures], weights=[f["ticks"] for f in figures])
    refused, looks = sum(f["refused"] for f in figures), sum(bool(entry["looks"]) for entry in audited)
    yield f"audit of {len(audited)} episodes: {idle:.0%} of the ticks were idle, {refused} refused; {looks} to look at"
    for text, count in Counter(text for entry in audited for text in entry["looks"]).most_common(5):
        yield f"  {count:4d} x {text}"


def _lineage_lines(lineage: dict, indent: str) -> Iterator[str]:
    if "bags" in lineage:
        yield f"{indent}{lineage['kind']} from {len(lineage['bags'])} bags"
        yield from (f"{indent}  {name} {digest}" for name, digest in lineage["bags"].items())
        yield from (f"{indent}  left out {name}: {reason}" for name, reason in lineage.get("left_out", {}).items())
    elif "sources" in lineage:
        yield f"{indent}{lineage['kind']}" + (f": {lineage['which']}" if "which" in lineage else "")
        for source in lineage["sources"]:
            yield f"{indent}  {source['name']} {source['content_hash']}"
            yield from _lineage_lines(source["lineage"], indent + "    ")
    else:
        yield indent + ", ".join(f"{key} {value}" for key, value in lineage.items() if value != "")


def _values(episodes: list[dict], key: str) -> str:
    return ", ".join(sorted({str(entry[key]) for entry in episodes}))


def _counted(episodes: list[dict], key: str) -> str:
    return ", ".join(f"{value} {count}" for value, count in sorted(Counter(
        str(entry.get(key, "not recorded")) for entry in episodes).items()))
