"""One episode on the control tick, the form shared by bags, twins and datasets."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from rlco_common.contract import Contract
from rlco_common.episode import EpisodeMetadata
from rlco_common.observation import Observation, encode_proprioception

# A command that moves the target by less than this and leaves the gripper alone is idle (FACTS: openvla#139, openpi#605).
IDLE_TRANSLATION_M = 5e-4
IDLE_ROTATION_RAD = 5e-3
IDLE_GRIPPER = 0.02
GRIPPER_SETTLE_TICKS = 3    # fingers need this long after a command; standing still meanwhile is part of a grasp


class LazyImages(Sequence):
    """T images that decode when asked for, so that an episode need not fit into memory. A mask [T] selects, as on an array."""

    def __init__(self, loaders: Sequence[Callable[[], np.ndarray]]):
        self._loaders = loaders

    def __len__(self) -> int:
        return len(self._loaders)

    def __getitem__(self, index):
        """uint8 [height, width, 3] for an integer, LazyImages for a boolean mask."""
        if np.ndim(index) == 1:
            return LazyImages(list(compress(self._loaders, index)))
        return self._loaders[index]()

    def __iter__(self) -> Iterator[np.ndarray]:
        return (load() for load in self._loaders)


@dataclass(frozen=True)
class AlignedEpisode:
    """T control ticks of one episode.

    images: camera -> uint8 [T, height, width, 3] RGB at the camera's own size, or LazyImages. proprioception: float32
    [T, S]. actions: float32 [T, 7], physical units, from commanded targets. stamps_ns: int64 [T], stamp of the tick.
    ages_s: float32 [T, cameras + 1], how much older than the tick each image (contract order) and the state are.
    """

    images: dict[str, np.ndarray | LazyImages]
    proprioception: np.ndarray
    actions: np.ndarray
    stamps_ns: np.ndarray
    ages_s: np.ndarray
    metadata: EpisodeMetadata

    def __len__(self) -> int:
        return len(self.actions)

    def select(self, keep: np.ndarray) -> "AlignedEpisode":
        """The ticks where the boolean mask `keep` [T] is true."""
        return AlignedEpisode(
            {name: images[keep] for name, images in self.images.items()},
            self.proprioception[keep], self.actions[keep], self.stamps_ns[keep], self.ages_s[keep], self.metadata,
        )


def idle_ticks(actions: np.ndarray) -> np.ndarray:
    """Boolean [T]: the command does not move the target, and the gripper's has been the same for some ticks."""
    still = (np.linalg.norm(actions[:, :3], axis=1) < IDLE_TRANSLATION_M) & (
        np.linalg.norm(actions[:, 3:6], axis=1) < IDLE_ROTATION_RAD
    )
    changed = np.abs(np.diff(actions[:, 6], prepend=actions[:1, 6])) >= IDLE_GRIPPER
    settling = np.convolve(changed, np.ones(GRIPPER_SETTLE_TICKS), "full")[: len(changed)] > 0
    return still & ~settling


def episode_from_steps(
    contract: Contract, observations: list[Observation], actions: list[np.ndarray], metadata: EpisodeMetadata
) -> AlignedEpisode:
    """An episode from per-tick observations and the actions taken on them (a twin, or aligned bag samples at age 0)."""
    return AlignedEpisode(
        images={name: np.stack([observation.images[name] for observation in observations]) for name in contract.cameras},
        proprioception=np.stack([encode_proprioception(contract, observation) for observation in observations]),
        actions=np.stack(actions).astype(np.float32),
        stamps_ns=np.array([observation.stamp_ns for observation in observations], np.int64),
        ages_s=np.zeros((len(observations), len(contract.cameras) + 1), np.float32),
        metadata=metadata,
    )
