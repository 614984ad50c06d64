"""Reading episode bags with rosbags: no rclpy needed.

An episode is one rosbag2 directory with an MCAP file (recording.py). Its EpisodeMetadata lies in metadata.yaml under
custom_data and in the MCAP file as a metadata record of the same name, so that it survives the loss of either.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from mcap.reader import make_reader
from rosbags.rosbag2 import Reader
from rosbags.rosbag2.errors import ReaderError
from rosbags.typesys import Stores, get_typestore

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC, EpisodeMetadata, event_from_json, metadata_from_json
from rlco_common.errors import DataError
from rlco_common.messages import diagnostic_values
from rlco_teleop.audit_report import EpisodeAudit, audit_from_json

METADATA_KEY = "rlco_episode"      # key in custom_data, name of the MCAP metadata record
AUDIT_KEY = "rlco_audit"           # the same for the audit's scores
METADATA_FIELD = "json"            # the one field of such a record
PART_SUFFIX = ".part"              # a recording in progress, or one that was cut off


@lru_cache(maxsize=1)
def typestore():
    """The message definitions of ROS 2 Jazzy."""
    return get_typestore(Stores.ROS2_JAZZY)


@dataclass(frozen=True)
class BagMessage:
    """One message. log_ns: when it was recorded. stamp_ns: its header stamp, None when its type has no header."""

    log_ns: int
    stamp_ns: int | None
    message: object


class Bag:
    """A finished episode, opened for reading. Use as a context manager."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self._reader = Reader(self.directory)

    def __enter__(self) -> "Bag":
        try:
            self._reader.open()
        except (ReaderError, FileNotFoundError) as error:
            raise DataError(f"{self.directory}: not a readable bag: {error}") from error
        return self

    def __exit__(self, *_) -> None:
        self._reader.close()

    @property
    def topics(self) -> dict[str, str]:
        """Topic -> message type."""
        return {connection.topic: connection.msgtype for connection in self._reader.connections}

    @property
    def counts(self) -> dict[str, int]:
        """Topic -> number of messages."""
        return {connection.topic: connection.msgcount for connection in self._reader.connections}

    @property
    def start_ns(self) -> int:
        return self._reader.start_time

    @property
    def end_ns(self) -> int:
        return self._reader.end_time

    def messages(self, topic: str) -> Iterator[BagMessage]:
        """A topic's messages in the order they were recorded, decoded by rosbags (numpy fields)."""
        for msgtype, log_ns, raw in self._raw(topic):
            yield BagMessage(log_ns, header_stamp_ns(msgtype, raw), typestore().deserialize_cdr(raw, msgtype))

    def collect(self, topic: str) -> list[BagMessage]:
        """All messages of a topic; empty when the bag does not have it."""
        return list(self.messages(topic))

    def payloads(self, topic: str) -> list[bytes]:
        """The serialised messages of a topic, byte for byte as they were received."""
        return [bytes(raw) for _, _, raw in self._raw(topic)]

    def times(self, topic: str) -> list[tuple[int, int | None]]:
        """(recorded at, header stamp) of a topic's messages, nanoseconds, without decoding them."""
        return [(log_ns, header_stamp_ns(msgtype, raw)) for msgtype, log_ns, raw in self._raw(topic)]

    def _raw(self, topic):
        connections = [connection for connection in self._reader.connections if connection.topic == topic]
        if not connections:
            return
        for connection, log_ns, raw in self._reader.messages(connections=connections):
            yield connection.msgtype, log_ns, raw


def find_episodes(root: str | Path) -> list[Path]:
    """Directories of finished episodes: `root` itself or those directly below it, sorted by name."""
    root = Path(root)
    if (root / "metadata.yaml").is_file():
        return [root]
    return sorted(path.parent for path in root.glob("*/metadata.yaml") if path.parent.suffix != PART_SUFFIX)


def read_episode_metadata(directory: str | Path) -> EpisodeMetadata:
    """The metadata of an episode bag, from metadata.yaml, else from the MCAP file. Raises DataError without any."""
    directory = Path(directory)
    text = _custom_text(directory, METADATA_KEY)
    if text is None:
        raise DataError(f"{directory}: no episode metadata in the bag; record it with the recorder node")
    return metadata_from_json(text, str(directory))


def read_audit(directory: str | Path) -> EpisodeAudit | None:
    """The audit of an episode bag, from metadata.yaml, else from the MCAP file; None when the recording was cut off."""
    directory = Path(directory)
    text = _custom_text(directory, AUDIT_KEY)
    return None if text is None else audit_from_json(text, str(directory))


class Segment(NamedTuple):
    """Part of an episode in which one source drove the arm: [start_ns, end_ns), in the time of the bag's stamps."""

    start_ns: int
    end_ns: int
    source: Literal["operator", "policy"]


def drive_segments(bag: Bag) -> list[Segment]:
    """Who drove the arm, without gaps from the episode's start to its end; empty when nobody did.

    The gate's takeover and hand_back events are the boundaries; time in which nobody drives belongs to the driver before.
    Without an event it is whom the gate's status names.
    """
    changes = []
    for item in bag.messages(EVENT_TOPIC):
        event = event_from_json(item.message.data, str(bag.directory))
        if event.kind in ("takeover", "hand_back"):
            changes.append((event.stamp_ns or item.log_ns, "operator" if event.kind == "takeover" else "policy"))
    if changes:
        first = "policy" if changes[0][1] == "operator" else "operator"
    else:
        first = next(iter(_drivers(bag)), None)
        if first is None:
            return []
    starts = [(bag.start_ns, first), *sorted(changes)]
    ends = [*(start_ns for start_ns, _ in starts[1:]), bag.end_ns]
    return [Segment(start_ns, end_ns, source) for (start_ns, source), end_ns in zip(starts, ends, strict=True)]


def _drivers(bag: Bag) -> Iterator[str]:
    """Whom the gate's status names as its source, nobody left out."""
    for item in bag.messages(topics.GATE_STATUS):
        source = diagnostic_values(item.message.status[0]).get("source", "").lower()
        if source in ("operator", "policy"):
            yield source


def header_stamp_ns(msgtype: str, raw: bytes) -> int | None:
    """The header stamp in a serialised message, nanoseconds; None for a type that does not begin with a header."""
    if not _begins_with_header(msgtype):
        return None
    order = "little" if raw[1] & 1 else "big"       # CDR encapsulation, then sec (int32) and nanosec (uint32)
    seconds = int.from_bytes(raw[4:8], order, signed=True)
    return seconds * 1_000_000_000 + int.from_bytes(raw[8:12], order)


@lru_cache(maxsize=64)
def _begins_with_header(msgtype: str) -> bool:
    _, fields = typestore().fielddefs[msgtype]
    return bool(fields) and fields[0][0] == "header" and fields[0][1][1] == "std_msgs/msg/Header"


def _custom_text(directory: Path, key: str) -> str | None:
    """A text that the recorder left in a bag, from either of its two places."""
    return _from_yaml(directory / "metadata.yaml", key) or _from_mcap(directory, key)


def _from_yaml(path: Path, key: str) -> str | None:
    if not path.is_file():
        return None
    information = yaml.safe_load(path.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
    return (information.get("custom_data") or {}).get(key)


def _from_mcap(directory: Path, key: str) -> str | None:
    text = None
    for path in sorted(directory.glob("*.mcap")):
        with path.open("rb") as stream:
            for record in make_reader(stream).iter_metadata():
                if record.name == key:
                    text = record.metadata[METADATA_FIELD]      # the last one is the final one
    return text
