"""One bag, read and judged: what `rlco dataset build` takes it for and what `rlco dataset audit` shows of it."""

from dataclasses import dataclass, field
from pathlib import Path

from rlco_common.contract import Contract, contract_from_json, require_same_contract
from rlco_common.episode import EpisodeMetadata
from rlco_common.errors import DataError, RlcoError
from rlco_teleop.bags import Bag, Segment, drive_segments, read_audit, read_episode_metadata
from rlco_trainer.dataset.align import Alignment, RecordedStreams, align
from rlco_trainer.dataset.figures import EpisodeFigures, Finding, figures_of_bag, findings
from rlco_trainer.dataset.streams import read_streams


@dataclass(frozen=True)
class Examined:
    """A bag. The fields after `name` are None where the bag could not be read that far; findings say why."""

    name: str
    metadata: EpisodeMetadata | None = None
    streams: RecordedStreams | None = None
    alignment: Alignment | None = None
    figures: EpisodeFigures | None = None
    segments: list[Segment] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def go(self) -> bool:
        return not any(finding.level == "no-go" for finding in self.findings)


def examine_bag(contract: Contract, directory: Path, allow_unstamped: bool = False) -> Examined:
    """Read, align and judge a bag; never raises a named error, which becomes a no-go finding instead."""
    metadata = streams = None
    try:
        metadata = read_episode_metadata(directory)
        _require_usable(contract, metadata, directory)
        streams = read_streams(contract, directory)
        alignment = align(contract, streams, metadata, decode=False)
        audit = read_audit(directory)
        with Bag(directory) as bag:
            segments = drive_segments(bag)
    except (RlcoError, OSError) as error:
        return Examined(directory.name, metadata, streams, findings=[Finding("no-go", str(error), True)])
    figures = figures_of_bag(contract, streams, alignment, None if audit is None else tuple(audit.reasons))
    return Examined(directory.name, metadata, streams, alignment, figures, segments,
                    findings(contract, metadata, figures, allow_unstamped))


def _require_usable(contract: Contract, metadata: EpisodeMetadata, directory: Path) -> None:
    theirs = contract_from_json(metadata.contract, str(directory))
    require_same_contract(contract, theirs, f"bag {directory.name}")
    if metadata.success is None:
        raise DataError("not judged: the recording was cut off" + (" and repaired" if metadata.repaired else ""))
    if not metadata.success:
        raise DataError("the episode was marked as failed")
