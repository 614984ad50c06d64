"""An episode as it is kept on disk: images as PNG, and a digest of everything that a policy could learn from it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlco_common.episode import EpisodeMetadata
from rlco_trainer.dataset.episode import AlignedEpisode
from rlco_trainer.dataset.png import encode_png

DIGEST_DIGITS = 16


@dataclass(frozen=True)
class PackedEpisode:
    """T control ticks; the arrays are those of AlignedEpisode.

    images: camera -> T PNG files as bytes. record: JSON values that the dataset's sidecar keeps beside the metadata (where
    the episode comes from, its audit). digest: hex digits over pixels, arrays and instruction; equal data, equal digest,
    whatever wrote the PNG files.
    """

    images: dict[str, list[bytes]]
    proprioception: np.ndarray
    actions: np.ndarray
    stamps_ns: np.ndarray
    ages_s: np.ndarray
    metadata: EpisodeMetadata
    digest: str
    record: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def group(self) -> str:
        """Episodes of one group come from one recording and are never spread over training and held-out set."""
        return self.record.get("bag", self.metadata.episode)

    def without_images(self) -> "PackedEpisode":
        return replace(self, images={})


def pack(episode: AlignedEpisode, record: dict[str, Any] | None = None) -> PackedEpisode:
    """Encode an aligned episode; its images are taken one after the other."""
    files, pixels = {}, {}
    for camera, images in episode.images.items():
        files[camera], pixels[camera] = [], []
        for image in images:
            files[camera].append(encode_png(image))
            pixels[camera].append(pixel_digest(image))
    return PackedEpisode(
        files, episode.proprioception, episode.actions, episode.stamps_ns, episode.ages_s, episode.metadata,
        digest_of(pixels, (episode.proprioception, episode.actions, episode.stamps_ns, episode.ages_s),
                  episode.metadata.instruction), dict(record or {}))


def pixel_digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image)).digest()


def digest_of(pixels: dict[str, Iterable[bytes]], arrays: Iterable[np.ndarray], instruction: str) -> str:
    """The digest of an episode. pixels: camera -> pixel_digest of every image; arrays in the order of PackedEpisode."""
    whole = hashlib.sha256(instruction.encode())
    for camera in sorted(pixels):
        whole.update(camera.encode())
        for digest in pixels[camera]:
            whole.update(digest)
    for array in arrays:
        whole.update(np.ascontiguousarray(array))
    return whole.hexdigest()[:DIGEST_DIGITS]


def content_hash(contract_hash: str, digests: Iterable[str]) -> str:
    """The hash of a dataset: its contract and its episodes, in order."""
    return hashlib.sha256("\n".join((contract_hash, *digests)).encode()).hexdigest()[:DIGEST_DIGITS]
