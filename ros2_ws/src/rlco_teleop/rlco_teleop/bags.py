"""Reading episode bags with rosbags: no rclpy needed.

An episode is one rosbag2 directory with an MCAP file (recording.py). Its EpisodeMetadata lies in metadata.yaml under
custom_data and in the MCAP file as a metadata record of the same name, so that it survives the loss of either.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml
from mcap.reader import make_reader
from rosbags.rosbag2 import Reader
from rosbags.rosbag2.errors import ReaderError
from rosbags.typesys import Stores, get_typestore

from rlco_common.episode import EpisodeMetadata, metadata_from_json
from rlco_common.errors import DataError

METADATA_KEY = "rlco_episode"      # key in custom_data, name of the MCAP metadata record
METADATA_FIELD = "json"            # the one field of that record
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
    text = _from_yaml(directory / "metadata.yaml") or _from_mcap(directory)
    if text is None:
        raise DataError(f"{directory}: no episode metadata in the bag; record it with the recorder node")
    return metadata_from_json(text, str(directory))


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


def _from_yaml(path: Path) -> str | None:
    if not path.is_file():
        return None
    information = yaml.safe_load(path.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
    return (information.get("custom_data") or {}).get(METADATA_KEY)


def _from_mcap(directory: Path) -> str | None:
    text = None
    for path in sorted(directory.glob("*.mcap")):
        with path.open("rb") as stream:
            for record in make_reader(stream).iter_metadata():
                if record.name == METADATA_KEY:
                    text = record.metadata[METADATA_FIELD]      # the last one is the final one
    return text
