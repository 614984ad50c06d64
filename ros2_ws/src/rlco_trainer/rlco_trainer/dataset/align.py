"""Causal alignment of a recorded episode on the control tick.

At tick t the observation holds, of every stream, the newest sample with a stamp not after t. The action of the tick is
what was *commanded* in [t, t + period): the change of the target pose from the last command before t to the last command
before t + period, and the gripper command then. Measured states never become actions.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rlco_common.assembler import ObservationAssembler, ObservationUnavailable
from rlco_common.contract import Contract
from rlco_common.episode import EpisodeMetadata
from rlco_common.errors import DataError
from rlco_common.observation import encode_proprioception
from rlco_common.pose import Pose
from rlco_trainer.dataset.episode import AlignedEpisode, LazyImages


@dataclass(frozen=True)
class Samples:
    """One stream in stamp order: stamps_ns (ascending) and as many values."""

    stamps_ns: list[int]
    values: list

    @classmethod
    def of(cls, pairs: list[tuple[int, object]]) -> "Samples":
        """From (stamp, value) pairs in any order; equal stamps keep their order."""
        ordered = sorted(pairs, key=lambda pair: pair[0])
        return cls([stamp for stamp, _ in ordered], [value for _, value in ordered])

    def last_before(self, time_ns: int):
        """The newest value with a stamp strictly before `time_ns`, or None."""
        index = bisect_left(self.stamps_ns, time_ns)
        return self.values[index - 1] if index else None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class StreamQuality:
    """What the order of recording shows and sorted samples hide. unstamped: messages whose header stamp is zero; backwards:
    stamps older than the one before. repeated: of a camera, for every image whether it equals the one before."""

    count: int
    unstamped: int
    backwards: int
    largest_gap_s: float
    rate_hz: float
    repeated: Samples | None = None


@dataclass(frozen=True)
class RecordedStreams:
    """What alignment needs of an episode. images: per camera, functions that give decoded RGB when called.
    joint_states: (names, positions). ee_pose, targets: Pose. gripper: commanded opening. quality: by topic, for the audit."""

    images: dict[str, Samples]
    joint_states: Samples
    ee_pose: Samples
    targets: Samples
    gripper: Samples
    quality: Mapping[str, StreamQuality] = field(default_factory=dict)


@dataclass(frozen=True)
class Alignment:
    """An aligned episode and what was left out: refused ticks with the reason of each."""

    episode: AlignedEpisode
    refused: list[tuple[int, str]]

    @property
    def ticks_ns(self) -> list[int]:
        """Stamps of all ticks of the recording, refused ones included."""
        return sorted([*self.episode.stamps_ns.tolist(), *(tick for tick, _ in self.refused)])


def align(contract: Contract, streams: RecordedStreams, metadata: EpisodeMetadata, *, decode: bool = True) -> Alignment:
    """Align one episode. The grid starts at the first image at which every stream has begun.

    Ticks on which a stream is missing or older than its max age are refused, never filled. Raises DataError when a whole
    stream is absent or no tick is left. decode: False leaves the images to be decoded one by one (LazyImages).
    """
    _require_streams(contract, streams)
    feed = _Feed(contract, streams)
    observations, actions, stamps, ages, refused = [], [], [], [], []
    for tick in _grid(contract, streams):
        try:
            observation = feed.observation_at(tick)
        except ObservationUnavailable as error:
            refused.append((tick, str(error)))
            continue
        observations.append(observation)
        actions.append(_action(contract, streams, feed.start_pose, tick))
        stamps.append(tick)
        ages.append(feed.assembler.ages_s(tick))
    if not observations:
        reason = refused[0][1] if refused else "it is shorter than one control period"
        raise DataError(f"{metadata.episode}: no usable tick; {reason}")
    images = {name: LazyImages([observation.images[name] for observation in observations]) for name in contract.cameras}
    episode = AlignedEpisode(
        images={name: np.stack(list(loaders)) for name, loaders in images.items()} if decode else images,
        proprioception=np.stack([encode_proprioception(contract, observation) for observation in observations]),
        actions=np.stack(actions).astype(np.float32), stamps_ns=np.array(stamps, np.int64), ages_s=np.stack(ages),
        metadata=metadata,
    )
    return Alignment(episode, refused)


class _Feed:
    """Hands the recorded samples to an ObservationAssembler in the order of their stamps, never past the asked tick."""

    def __init__(self, contract: Contract, streams: RecordedStreams):
        self.assembler = ObservationAssembler(contract)
        self.start_pose: Pose = streams.ee_pose.values[0]
        calls = [(stamp, self.assembler.add_image, (name, image)) for name, samples in streams.images.items()
                 for stamp, image in zip(samples.stamps_ns, samples.values, strict=True)]
        calls += [(stamp, self.assembler.add_joint_state, pair)
                  for stamp, pair in zip(streams.joint_states.stamps_ns, streams.joint_states.values, strict=True)]
        calls += [(stamp, self.assembler.add_ee_pose, (pose,))
                  for stamp, pose in zip(streams.ee_pose.stamps_ns, streams.ee_pose.values, strict=True)]
        self._calls = sorted(calls, key=lambda call: call[0])
        self._next = 0

    def observation_at(self, tick_ns: int):
        while self._next < len(self._calls) and self._calls[self._next][0] <= tick_ns:
            stamp, add, arguments = self._calls[self._next]
            add(*arguments, stamp)
            self._next += 1
        return self.assembler.observation_at(tick_ns)


def _grid(contract: Contract, streams: RecordedStreams) -> range:
    """Ticks from the first image with all streams begun, as long as a command falls into the tick."""
    begun = max(samples.stamps_ns[0] for samples in (streams.joint_states, streams.ee_pose, *streams.images.values()))
    first_camera = next(iter(streams.images.values()))
    starts = [stamp for stamp in first_camera.stamps_ns if stamp >= begun]
    start = starts[0] if starts else begun
    return range(start, streams.targets.stamps_ns[-1] + 1, contract.control_period_ns)


def _action(contract: Contract, streams: RecordedStreams, start_pose: Pose, tick_ns: int) -> np.ndarray:
    """The commanded action of the tick; before the first command the target is the measured pose at the start."""
    end_ns = tick_ns + contract.control_period_ns
    before = streams.targets.last_before(tick_ns) or start_pose
    after = streams.targets.last_before(end_ns) or before
    gripper = streams.gripper.last_before(end_ns)
    return contract.action_between(before, after, gripper if gripper is not None else streams.gripper.values[0])


def _require_streams(contract: Contract, streams: RecordedStreams) -> None:
    topics = contract.topics
    named = {contract.cameras[name].topic: samples for name, samples in streams.images.items()}
    named |= {topics.joint_states: streams.joint_states, topics.ee_pose: streams.ee_pose,
              topics.target_pose: streams.targets, topics.gripper_command: streams.gripper}
    absent = [topic for topic, samples in named.items() if not len(samples)]
    if absent:
        raise DataError(f"no message on {', '.join(absent)}; nothing is filled in for a missing stream")
