"""The streams of an episode bag that alignment and audit need. Images stay in the bag until one is asked for."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from rosbags.rosbag2.errors import ReaderError

from rlco_common.contract import CameraSpec, Contract
from rlco_common.errors import DataError
from rlco_common.messages import image_from_msg, pose_from_msg
from rlco_teleop.bags import Bag, header_stamp_ns, typestore
from rlco_trainer.dataset.align import RecordedStreams, Samples, StreamQuality

SAMPLED_BYTE = 61       # every so many bytes of an image are compared with the image before; a prime, so no column pattern
_HEAD_BYTES = 12        # CDR encapsulation and header stamp: these differ even between equal images


def read_streams(contract: Contract, directory: Path) -> RecordedStreams:
    """The streams of a bag. Images decode when called, read again from the bag, which stays open as long as they live."""
    topics = contract.topics
    source = _Source(directory)
    image_topics = {name: source.image_topic(camera) for name, camera in contract.cameras.items()}
    values = {topics.joint_states: [], topics.ee_pose: [], topics.target_pose: [], topics.gripper_command: []}
    images = {topic: _ImageStream(source, contract.cameras[name], topic) for name, topic in image_topics.items()}
    for topic, msgtype, log_ns, raw in source.everything({*values, *images}):
        if topic in images:
            images[topic].add(log_ns, header_stamp_ns(msgtype, raw), raw)
        else:
            values[topic].append((log_ns, header_stamp_ns(msgtype, raw), typestore().deserialize_cdr(raw, msgtype)))
    targets, grippers = values[topics.target_pose], values[topics.gripper_command]
    if len(grippers) == len(targets):   # the gate sends both per tick; the gripper's type has no stamp of its own
        grippers = [(log, stamp, command) for (log, stamp, _), (_, _, command) in zip(targets, grippers, strict=True)]
    return RecordedStreams(
        images={name: _samples(images[topic].loaders) for name, topic in image_topics.items()},
        joint_states=_samples(values[topics.joint_states], lambda message: (list(message.name), np.asarray(message.position))),
        ee_pose=_samples(values[topics.ee_pose], pose_from_msg),
        targets=_samples(targets, pose_from_msg), gripper=_samples(grippers, lambda message: float(message.data[0])),
        quality={topic: _quality(items) for topic, items in values.items()} | {
            contract.cameras[name].topic: _quality(images[topic].loaders, _samples(images[topic].repeated))
            for name, topic in image_topics.items()},
    )


class _Source(Bag):
    """A bag that is opened once, read from front to back, then at single images, and closed with the last reference."""

    _opened = False

    def __init__(self, directory: Path):
        super().__init__(directory)
        self.__enter__()
        self._opened = True

    def __del__(self):
        if self._opened:
            self.__exit__()

    def image_topic(self, camera: CameraSpec) -> str:
        """Raw images, or compressed ones where the bag has none of these."""
        return camera.topic if self.counts.get(camera.topic) else camera.compressed_topic

    def everything(self, topics: set[str]) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, message type, log time, serialised message) in the order of recording, in one pass over the file."""
        try:
            for connection, log_ns, raw in self._reader.messages(self._connections(topics)):
                yield connection.topic, connection.msgtype, log_ns, raw
        except (ReaderError, RuntimeError) as error:    # a bad record, or chunk that does not decompress
            raise DataError(f"{self.directory}: the bag is damaged ({error}); restore it from a copy") from error

    def image(self, camera: CameraSpec, topic: str, log_ns: int, occurrence: int) -> np.ndarray:
        """The image number `occurrence` of those logged at `log_ns`, uint8 RGB. Raises DataError when it is not as the
        contract says."""
        found = self._reader.messages(self._connections({topic}), start=log_ns, stop=log_ns + 1)
        for number, (connection, _, raw) in enumerate(found):
            if number == occurrence:
                return image_from_msg(camera, typestore().deserialize_cdr(raw, connection.msgtype))
        raise DataError(f"{self.directory}: the image of {topic} at {log_ns} cannot be found again")

    def _connections(self, topics: set[str]) -> list:
        return [connection for connection in self._reader.connections if connection.topic in topics]


class _ImageStream:
    """Where a camera's images are, and which of them repeat the one before. Both as (log, stamp, value)."""

    def __init__(self, source: _Source, camera: CameraSpec, topic: str):
        self.loaders: list[tuple] = []
        self.repeated: list[tuple] = []
        self._load = partial(source.image, camera, topic)
        self._seen: Counter[int] = Counter()        # several images may have been logged at one time
        self._previous: np.ndarray | None = None

    def add(self, log_ns: int, stamp_ns: int | None, raw: bytes) -> None:
        part = np.frombuffer(raw, np.uint8, offset=_HEAD_BYTES)[::SAMPLED_BYTE].copy()
        same = self._previous is not None and np.array_equal(part, self._previous)
        self.loaders.append((log_ns, stamp_ns, partial(self._load, log_ns, self._seen[log_ns])))
        self.repeated.append((log_ns, stamp_ns, same))
        self._seen[log_ns] += 1
        self._previous = part


def _samples(items: list[tuple], value=lambda content: content) -> Samples:
    """From (log, stamp, message); a driver that leaves the stamp zero gets the time of recording."""
    return Samples.of([(stamp or log, value(message)) for log, stamp, message in items])


def _quality(items: list[tuple], repeated: Samples | None = None) -> StreamQuality:
    """From (log, stamp, value) in the order of recording. Without a header (stamp None) the time of recording counts."""
    times = np.array([stamp or log for log, stamp, _ in items], np.int64)
    gaps = np.diff(np.sort(times))
    return StreamQuality(
        count=len(items), unstamped=sum(stamp == 0 for _, stamp, _ in items), backwards=int((np.diff(times) < 0).sum()),
        largest_gap_s=float(gaps.max() * 1e-9) if len(gaps) else 0.0,
        rate_hz=float(1e9 * len(gaps) / gaps.sum()) if gaps.sum() else 0.0, repeated=repeated)
