"""A recording in progress: messages go into a bounded queue, a thread writes them, the caller never waits. Pure.

Every FLUSH_PERIOD_S what arrived is handed to the operating system, so that a killed process loses less than a second.
A message that finds the queue full is dropped and counted by topic; a write that fails ends the recording and is told
to whoever asks for its end.
"""

import queue
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlco_common.episode import EpisodeMetadata
from rlco_common.errors import RecordingError
from rlco_teleop.episode_writer import EpisodeWriter, Stream

FLUSH_PERIOD_S = 0.5
DROPPED_KEY = "rlco_dropped"       # custom_data: dropped messages by topic, only when there are any
STOPPED_KEY = "rlco_stopped"       # custom_data: why the recorder itself ended the episode
_QUEUE_BYTES = 256 << 20


@dataclass(frozen=True)
class Recorded:
    """A serialised message on its way to disk. log_ns: node clock at arrival. publish_ns: header stamp, else log_ns.

    stamp_ns: the header stamp as it is, 0 when nobody set it, None for a type without a header.
    """

    topic: str
    log_ns: int
    publish_ns: int
    data: bytes
    stamp_ns: int | None = None


_END = Recorded("", 0, 0, b"")      # the last thing in a queue


class Recording:
    """One episode being recorded. `put` from one thread; then `finish`, `discard` or `abandon`, once."""

    def __init__(self, root: Path, metadata: EpisodeMetadata, streams: Iterable[Stream], queue_size: int = 4096):
        self.metadata = metadata
        self.dropped: Counter[str] = Counter()
        self._writer = EpisodeWriter(root, metadata, streams)
        self._queue: queue.Queue[Recorded] = queue.Queue(queue_size)
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._write_all, name="recording", daemon=True)
        self._thread.start()

    def put(self, message: Recorded) -> None:
        """Queue a message, or drop and count it when the disk has fallen too far behind."""
        with self._lock:
            fits = self._queued_bytes + len(message.data) <= _QUEUE_BYTES and not self._queue.full()
            if fits:
                self._queued_bytes += len(message.data)
                self._queue.put_nowait(message)
            else:
                self.dropped[message.topic] += 1

    @property
    def failure(self) -> str | None:
        """What went wrong with the disk, naming the topics concerned; None while all is well."""
        return self._failure

    @property
    def message_count(self) -> int:
        return self._writer.message_count

    @property
    def backlog(self) -> int:
        return self._queue.qsize()

    def finish(self, metadata: EpisodeMetadata, custom: Mapping[str, str] | None = None) -> Path:
        """Write out what is queued and complete the bag. Raises RecordingError when any of it could not be written.

        custom: texts that go into the bag beside the metadata, by key.
        """
        self._join()
        if self._failure is None:
            custom = dict(custom or {})
            if self.dropped:
                custom[DROPPED_KEY] = ", ".join(f"{topic} {count}" for topic, count in self.dropped.items())
            try:
                return self._writer.finish(metadata, custom)
            except OSError as error:
                self._fail(self._writer.topics, error)
        self._writer.abandon()
        raise RecordingError(
            f"{self._failure}; the part that was written is {self._writer.directory}. Free disk space and restart the "
            "recorder: it repairs what can be saved")

    def discard(self) -> None:
        self._join()
        self._writer.discard()

    def _join(self) -> None:
        self._queue.put(_END)
        self._thread.join()

    def _write_all(self) -> None:
        flushed_s, unflushed = time.monotonic(), set()
        while True:
            wait_s = max(0.0, flushed_s + FLUSH_PERIOD_S - time.monotonic()) if unflushed else None
            try:
                message = self._queue.get(timeout=wait_s)
            except queue.Empty:
                message = None      # time to flush
            if message is _END:
                return
            try:
                if message is not None:
                    unflushed.add(message.topic)
                    self._write(message)
                if unflushed and time.monotonic() >= flushed_s + FLUSH_PERIOD_S:
                    self._writer.flush()
                    unflushed.clear()
                    flushed_s = time.monotonic()
            except Exception as error:      # whatever it is, the recording is not whole: finish() says so
                self._fail(unflushed, error)

    def _write(self, message: Recorded) -> None:
        with self._lock:
            self._queued_bytes -= len(message.data)
        if self._failure is None:
            self._writer.write(message.topic, message.log_ns, message.publish_ns, message.data)

    def _fail(self, topics: Iterable[str], error: Exception) -> None:
        self._failure = self._failure or (
            f"episode '{self.metadata.episode}': writing {', '.join(sorted(topics))} failed: {error}")


def free_megabytes(root: Path) -> int:
    """Free space on the disk of `root`, MB."""
    return shutil.disk_usage(root).free // 1_000_000


def disk_problem(root: Path, least_mb: int) -> str | None:
    """Why a running episode has to end before the disk of `root` is full, or because it is gone; None while all is well."""
    try:
        free_mb = free_megabytes(root)
    except OSError as error:
        return f"the disk cannot be reached any more: {error}"
    if free_mb >= least_mb:
        return None
    return (f"only {free_mb} MB are free in {root}, {least_mb} MB are kept (parameter stop_free_mb); "
            "free some space or record elsewhere")


def require_free_space(root: Path, minimum_mb: int) -> None:
    """Raise RecordingError unless the disk of `root` has that many megabytes free."""
    free_mb = free_megabytes(root)
    if free_mb < minimum_mb:
        raise RecordingError(
            f"only {free_mb} MB are free in {root}, {minimum_mb} MB are required (parameter min_free_mb); "
            "free some space or record elsewhere")
