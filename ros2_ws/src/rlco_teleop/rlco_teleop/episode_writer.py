"""Writes one episode as a rosbag2 directory with an MCAP file; repairs what a killed writer left behind. Pure.

While it is written, an episode is `<name>.part/`; finishing it renames the directory, atomically. The MCAP file begins
with the episode's metadata and is locked by its writer, so that a repair can tell a cut recording from a running one.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml
from mcap.exceptions import EndOfFile
from mcap.opcode import Opcode
from mcap.records import Channel, Message, Metadata, Schema
from mcap.stream_reader import CRCValidationError, StreamReader
from mcap.writer import CompressionType, Writer

from rlco_common.episode import EpisodeMetadata, metadata_from_json
from rlco_common.errors import RecordingError, RlcoError
from rlco_teleop.bags import METADATA_FIELD, METADATA_KEY, PART_SUFFIX, typestore

BROKEN_SUFFIX = ".broken"          # a cut recording that does not even say what it is
REPAIR_SUFFIX = ".repair"
CHUNK_BYTES = 1 << 20
_MAGIC_BYTES = 8
_RECORD_HEAD_BYTES = 9             # opcode, length (uint64)
_FOREVER = {"sec": 9223372036, "nsec": 854775807}


@dataclass(frozen=True)
class Stream:
    """A topic to record, and the QoS that its publisher offers (so that replaying matches)."""

    topic: str
    msgtype: str
    reliability: Literal["reliable", "best_effort"] = "reliable"
    durability: Literal["volatile", "transient_local"] = "volatile"
    depth: int = 10

    def offered_qos(self) -> list[dict]:
        """offered_qos_profiles of rosbag2's metadata, version 9."""
        return [{
            "history": "keep_last", "depth": self.depth, "reliability": self.reliability, "durability": self.durability,
            "deadline": _FOREVER, "lifespan": _FOREVER, "liveliness": "automatic",
            "liveliness_lease_duration": _FOREVER, "avoid_ros_namespace_conventions": False,
        }]


class EpisodeWriter:
    """One episode on disk, synchronously. `write` any number of times, then `finish` or `discard`, once.

    Raises RecordingError when the episode exists already, and lets OSError through when the disk does not take a write.
    """

    def __init__(self, root: Path, metadata: EpisodeMetadata, streams: Iterable[Stream], suffix: str = PART_SUFFIX):
        self.final_directory = root / metadata.episode
        self.directory = root / f"{metadata.episode}{suffix}"
        if self.final_directory.exists() or self.directory.exists():
            raise RecordingError(f"episode '{metadata.episode}' exists already in {root}; choose another name")
        self.directory.mkdir(parents=True)
        self._file = self.directory / f"{metadata.episode}.mcap"
        try:
            self._begin(metadata, streams)
        except OSError:     # nothing is in it yet
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def _begin(self, metadata: EpisodeMetadata, streams: Iterable[Stream]) -> None:
        self._stream = self._file.open("wb")
        fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._writer = Writer(self._stream, chunk_size=CHUNK_BYTES, compression=CompressionType.LZ4)
        self._writer.start(profile="ros2", library="rlco")
        self._writer.add_metadata(METADATA_KEY, {METADATA_FIELD: metadata.to_json()})
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, tuple[int, Stream]] = {}
        self._counts: dict[str, int] = {}
        self._first_ns, self._last_ns = None, None
        for stream in streams:
            self.add_stream(stream)
        self._writer.flush()

    def add_stream(self, stream: Stream) -> None:
        if stream.msgtype not in self._schemas:
            text, _ = typestore().generate_msgdef(stream.msgtype, ros_version=2)
            self._schemas[stream.msgtype] = self._writer.register_schema(stream.msgtype, "ros2msg", text.encode())
        profiles = _to_yaml(stream.offered_qos())
        channel = self._writer.register_channel(
            stream.topic, "cdr", self._schemas[stream.msgtype], {"offered_qos_profiles": profiles})
        self._channels[stream.topic] = (channel, stream)
        self._counts[stream.topic] = 0

    def write(self, topic: str, log_ns: int, publish_ns: int, data: bytes) -> None:
        """Append one serialised message. On disk after the next flush, or when a chunk is full."""
        channel, _ = self._channels[topic]
        self._writer.add_message(channel, log_ns, data, publish_ns, sequence=self._counts[topic])
        self._counts[topic] += 1
        self._first_ns = log_ns if self._first_ns is None else min(self._first_ns, log_ns)
        self._last_ns = log_ns if self._last_ns is None else max(self._last_ns, log_ns)

    def flush(self) -> None:
        """Hand everything to the operating system: from here on a killed process does not lose it."""
        self._writer.flush()

    @property
    def topics(self) -> list[str]:
        return list(self._channels)

    @property
    def message_count(self) -> int:
        return sum(self._counts.values())

    @property
    def bytes_written(self) -> int:
        return self._stream.tell()

    def finish(self, metadata: EpisodeMetadata, custom_data: dict[str, str] | None = None) -> Path:
        """Complete the bag with its final metadata, and give it its name. Returns its directory.

        custom_data: more texts by key; like the metadata each goes into metadata.yaml and into a record of the MCAP file.
        """
        custom = {METADATA_KEY: metadata.to_json(), **(custom_data or {})}
        information = self._information(custom)
        self._writer.flush()
        for key, text in custom.items():
            self._writer.add_metadata(key, {METADATA_FIELD: text})
        self._writer.add_metadata("rosbag2", {"serialized_metadata": _to_yaml(information)})
        self._writer.finish()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        with (self.directory / "metadata.yaml").open("w", encoding="utf-8") as stream:
            stream.write(_to_yaml({"rosbag2_bagfile_information": information}))
            stream.flush()
            os.fsync(stream.fileno())
        self.directory.rename(self.final_directory)
        _sync_directory(self.final_directory.parent)
        self._stream.close()        # last: the lock goes with it
        return self.final_directory

    def discard(self) -> None:
        """Remove the episode."""
        self.abandon()
        shutil.rmtree(self.directory)

    def abandon(self) -> None:
        """Stop writing and leave the part as it is, for a repair."""
        with suppress(OSError):     # what the disk refuses now it refused before, and that was reported
            self._stream.close()

    def _information(self, custom: dict[str, str]) -> dict:
        """rosbag2_bagfile_information, version 9."""
        start = {"nanoseconds_since_epoch": self._first_ns or 0}
        duration = {"nanoseconds": (self._last_ns or 0) - (self._first_ns or 0)}
        file = {"path": self._file.name, "starting_time": start, "duration": duration,
                "message_count": self.message_count}
        return {
            "version": 9, "storage_identifier": "mcap", "relative_file_paths": [self._file.name],
            "duration": dict(duration), "starting_time": dict(start), "message_count": self.message_count,
            "topics_with_message_count": [
                {"topic_metadata": {
                    "name": stream.topic, "type": stream.msgtype, "serialization_format": "cdr",
                    "offered_qos_profiles": stream.offered_qos(),
                    "type_description_hash": typestore().hash_rihs01(stream.msgtype)},
                 "message_count": self._counts[stream.topic]}
                for _, stream in self._channels.values()
            ],
            "compression_format": "", "compression_mode": "", "files": [file], "custom_data": custom,
            "ros_distro": "jazzy",
        }


def require_writable(root: Path) -> None:
    """Create the directory of the episodes if need be. Raises RecordingError when nothing can be written there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise RecordingError(
            f"cannot write in output_directory {root}: {error}; mount it writable, or choose another") from error


@dataclass(frozen=True)
class Repair:
    """What became of a cut recording: directory of the whole bag (None: nothing to save), and a line to tell."""

    directory: Path | None
    message: str


def repair_all(root: Path) -> list[Repair]:
    """Make whole bags of all cut recordings below `root`; recordings that are still being written are left alone."""
    for leftover in root.glob(f"*{REPAIR_SUFFIX}"):         # a repair that was itself cut off
        shutil.rmtree(leftover)
    repairs = []
    for part in sorted(root.glob(f"*{PART_SUFFIX}")):
        with _locked(part) as owned:
            if owned:
                repairs.append(_try_repair(root, part))
    return repairs


def _try_repair(root: Path, part: Path) -> Repair:
    """A repair that fails, on a full disk for example, harms nothing: it is tried again at the next start."""
    name = part.name.removesuffix(PART_SUFFIX)
    if (root / name).exists():      # an earlier repair was cut off between its last two steps
        shutil.rmtree(part)
        return Repair(root / name, f"{part.name}: was repaired already; removed")
    try:
        return _repair(root, part)
    except (OSError, RlcoError) as error:
        shutil.rmtree(root / f"{name}{REPAIR_SUFFIX}", ignore_errors=True)
        return Repair(None, f"{part.name}: cannot be repaired, left as it is: {error}")


def _repair(root: Path, part: Path) -> Repair:
    name = part.name.removesuffix(PART_SUFFIX)
    file = part / f"{name}.mcap"
    length, complete = intact_length(file) if file.is_file() else (0, False)
    metadata, writer, custom = None, None, {}
    for record, context in _records(file, length):
        if isinstance(record, Metadata) and record.name == METADATA_KEY:
            metadata = metadata_from_json(record.metadata[METADATA_FIELD], str(file))
            writer = writer or EpisodeWriter(root, metadata, (), REPAIR_SUFFIX)
        elif isinstance(record, Metadata) and METADATA_FIELD in record.metadata:
            custom[record.name] = record.metadata[METADATA_FIELD]
        elif isinstance(record, Message) and writer is not None:
            _copy_message(writer, record, context)
    if writer is None:
        part.rename(part.with_suffix(BROKEN_SUFFIX))
        return Repair(None, f"{part.name}: cut before it said what it is; renamed to {name}{BROKEN_SUFFIX}")
    if writer.message_count == 0:
        writer.discard()
        shutil.rmtree(part)
        return Repair(None, f"{part.name}: cut before its first message; removed")
    final = metadata if complete else replace(metadata, success=None, repaired=True)
    count = writer.message_count
    directory = writer.finish(final, custom)
    shutil.rmtree(part)
    return Repair(directory, f"{part.name}: repaired, {count} messages saved")


def _copy_message(writer: EpisodeWriter, record: Message, channel: tuple[Channel, str]) -> None:
    described, msgtype = channel
    if described.topic not in writer.topics:
        profile = yaml.safe_load(described.metadata["offered_qos_profiles"])[0]
        writer.add_stream(Stream(described.topic, msgtype, profile["reliability"], profile["durability"],
                                 profile["depth"]))
    writer.write(described.topic, record.log_time, record.publish_time, record.data)


def intact_length(file: Path) -> tuple[int, bool]:
    """(bytes up to the end of the last whole top-level record, True when the file was written to its very end)."""
    size = file.stat().st_size
    position = _MAGIC_BYTES
    with file.open("rb") as stream:
        while position + _RECORD_HEAD_BYTES <= size:
            stream.seek(position)
            head = stream.read(_RECORD_HEAD_BYTES)
            end = position + _RECORD_HEAD_BYTES + int.from_bytes(head[1:], "little")
            if end > size:
                break
            if head[0] == Opcode.FOOTER:
                complete = end + _MAGIC_BYTES <= size
                return (end + _MAGIC_BYTES if complete else position), complete
            position = end
    return min(position, size), False


def _records(file: Path, length: int):
    """Records within the first `length` bytes, each with (channel, message type) when it is a message."""
    if length <= _MAGIC_BYTES:
        return
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    with file.open("rb") as stream, suppress(EndOfFile, CRCValidationError):    # the end of the prefix, or bad bytes
        for record in StreamReader(_Prefix(stream, length), validate_crcs=True).records:
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel):
                channels[record.id] = record
            channel = channels.get(record.channel_id) if isinstance(record, Message) else None
            yield record, None if channel is None else (channel, schemas[channel.schema_id].name)


class _Prefix:
    """A binary stream that ends early."""

    def __init__(self, stream, length: int):
        self._stream, self._left = stream, length

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        data = self._stream.read(size)
        self._left -= len(data)
        return data


@contextmanager
def _locked(part: Path):
    """Yield True while holding the lock of a part's file; False when its writer is alive."""
    files = list(part.glob("*.mcap"))
    if not files:
        yield True
        return
    with files[0].open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _to_yaml(data) -> str:
    """With libyaml where PyYAML has it: the pure Python one takes longer to end an episode than all the rest."""
    return yaml.dump(data, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
