"""Recorded bags to a LeRobot dataset: `rlco dataset build`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rlco_common.contract import Contract, contract_from_json, require_same_contract
from rlco_common.episode import EpisodeMetadata
from rlco_common.errors import DataError, RlcoError
from rlco_common.messages import image_from_msg, pose_from_msg
from rlco_teleop.bags import Bag, find_episodes, read_episode_metadata
from rlco_trainer.dataset.align import RecordedStreams, Samples, align
from rlco_trainer.dataset.episode import AlignedEpisode, idle_ticks
from rlco_trainer.dataset.reader import read_sidecar
from rlco_trainer.dataset.writer import write_dataset

LIMIT_TOLERANCE = 1e-3      # float32 rounding of a commanded action at the contract's limit


@dataclass
class BuildReport:
    """What became of every bag. kept: name -> (ticks, idle ticks dropped, refused ticks); left_out: name -> reason."""

    out: Path
    kept: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    bag_hashes: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        ticks = sum(row[0] for row in self.kept.values())
        lines = [f"{self.out}: {len(self.kept)} episodes, {ticks} ticks"]
        lines += [f"  {name}: {kept} ticks, {idle} idle dropped, {refused} refused"
                  for name, (kept, idle, refused) in self.kept.items() if idle or refused]
        lines += [f"  left out {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)


def build_dataset(contract: Contract, sources: list[Path], out: Path, *, overwrite: bool = False,
                  quiet: bool = False) -> BuildReport:
    """Build `out` from every finished episode under `sources`. Bags are only read.

    An episode that breaks the contract, was not successful or was not judged is left out and named in the report. Raises
    DataError when nothing is left.
    """
    bags = [bag for source in sources for bag in find_episodes(source)]
    if not bags:
        raise DataError(f"no finished episode under {', '.join(map(str, sources))}; record some with 'rlco record'")
    report = BuildReport(Path(out))
    episodes = _aligned(contract, tqdm(bags, desc=f"build {Path(out).name}", disable=quiet, dynamic_ncols=True), report)
    first = next(episodes, None)
    if first is None:
        raise DataError("no usable episode:\n" + report.text())

    def remaining() -> Iterator[AlignedEpisode]:
        yield first
        yield from episodes

    lineage = {"kind": "recorded", "bags": report.bag_hashes, "left_out": report.left_out}
    write_dataset(report.out, contract, remaining(), lineage=lineage, overwrite=overwrite)
    return report


def _aligned(contract: Contract, bags, report: BuildReport) -> Iterator[AlignedEpisode]:
    for directory in bags:
        try:
            metadata = read_episode_metadata(directory)
            _require_usable(contract, metadata, directory)
            aligned = align(contract, read_streams(contract, directory), metadata)
            _require_in_limits(contract, aligned.episode)
            idle = idle_ticks(aligned.episode.actions)
            episode = aligned.episode.select(~idle)
            if not len(episode):
                raise DataError("every tick is idle")
        except RlcoError as error:
            report.left_out[directory.name] = str(error)
            continue
        report.kept[directory.name] = (len(episode), int(idle.sum()), len(aligned.refused))
        report.bag_hashes[directory.name] = bag_hash(directory)
        yield episode


def read_streams(contract: Contract, directory: Path) -> RecordedStreams:
    """The streams of a bag that alignment needs; images decode lazily."""
    topics = contract.topics
    with Bag(directory) as bag:
        targets = [(_stamp(item), pose_from_msg(item.message)) for item in bag.messages(topics.target_pose)]
        grippers = [(item.log_ns, float(item.message.data[0])) for item in bag.messages(topics.gripper_command)]
        if len(grippers) == len(targets):   # the gate sends both per tick; the gripper's type has no stamp of its own
            grippers = [(stamp, opening) for (stamp, _), (_, opening) in zip(targets, grippers, strict=True)]
        return RecordedStreams(
            images={name: Samples.of([(_stamp(item), partial(image_from_msg, camera, item.message))
                                      for item in bag.messages(camera.topic)]) for name, camera in contract.cameras.items()},
            joint_states=Samples.of([(_stamp(item), (list(item.message.name), np.asarray(item.message.position)))
                                     for item in bag.messages(topics.joint_states)]),
            ee_pose=Samples.of([(_stamp(item), pose_from_msg(item.message)) for item in bag.messages(topics.ee_pose)]),
            targets=Samples.of(targets), gripper=Samples.of(grippers),
        )


def bag_hash(directory: Path) -> str:
    """First 16 hex digits of the SHA-256 over the bag's MCAP files."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.mcap")):
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def describe_dataset(root: Path) -> str:
    """A page of text about a dataset: episodes, ticks, instructions, contract, lineage."""
    sidecar = read_sidecar(root)
    episodes, lengths = sidecar["episodes"], np.array(sidecar["lengths"])
    instructions: dict[str, int] = {}
    for episode in episodes:
        instructions[episode["instruction"]] = instructions.get(episode["instruction"], 0) + 1
    contract = contract_from_json(sidecar["contract"], str(root))
    lines = [
        f"{root}: {len(episodes)} episodes, {lengths.sum()} ticks ({lengths.min()} to {lengths.max()} an episode)",
        f"contract {contract.name} {sidecar['contract_hash']}, content {sidecar['content_hash']}",
        f"domains {', '.join(sorted({episode['domain'] for episode in episodes}))}; "
        f"operators {', '.join(sorted({episode['operator'] for episode in episodes}))}",
        *(f"  {count:4d} x {text}" for text, count in sorted(instructions.items())),
        *(f"  left out {name}: {reason}" for name, reason in sidecar["lineage"].get("left_out", {}).items()),
    ]
    return "\n".join(lines)


def _require_usable(contract: Contract, metadata: EpisodeMetadata, directory: Path) -> None:
    theirs = contract_from_json(metadata.contract, str(directory))
    require_same_contract(contract, theirs, f"bag {directory.name}")
    if metadata.success is None:
        raise DataError("not judged: the recording was cut off" + (" and repaired" if metadata.repaired else ""))
    if not metadata.success:
        raise DataError("the episode was marked as failed")


def _require_in_limits(contract: Contract, episode: AlignedEpisode) -> None:
    worst = np.abs(contract.action.normalise(episode.actions.astype(np.float64))).max(axis=0)
    over = [name for name, value in zip(contract.action.names, worst, strict=True) if value > 1 + LIMIT_TOLERANCE]
    if over:
        raise DataError(f"commanded {', '.join(over)} beyond the contract's limit per tick (up to {worst.max():.2f} times); "
                        "was the gate bypassed?")


def _stamp(item) -> int:
    """The header stamp; a driver that leaves it zero gets the time of recording."""
    return item.stamp_ns or item.log_ns
