"""Loads LeRobot datasets into memory and draws training batches from them, one trajectory at a time (paper, eq. 2)."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlco_common.contract import Contract, contract_from_json, require_same_contract
from rlco_common.errors import DataError
from rlco_common.observation import encode_image
from rlco_trainer.dataset.png import decode_png
from rlco_trainer.dataset.schema import ACTION_KEY, SIDECAR, STATE_KEY, image_key, lerobot_dataset_class
from rlco_trainer.dataset.splits import HELD_OUT, SplitRule

OWN_SPLIT = -1


@dataclass(frozen=True)
class DemoBatch:
    """images: camera -> uint8 [B, size, size, 3]; proprioception: float32 [B, S]; instructions: B strings;
    actions: float32 [B, horizon, 7] physical units; valid: bool [B, horizon], false past the episode's end."""

    images: dict[str, np.ndarray]
    proprioception: np.ndarray
    instructions: list[str]
    actions: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class DemoSet:
    """Demonstrations in memory; images already at the policy's size. Episode e is the frames starts[e]:ends[e].

    sources: (directory, content hash) of the datasets they come from. held_out: the datasets' own split, bool per episode.
    order: numbers by which more would be held out, lowest first.
    """

    sources: tuple[tuple[str, str], ...]
    images: dict[str, np.ndarray]
    proprioception: np.ndarray
    actions: np.ndarray
    instructions: list[str]
    starts: np.ndarray
    ends: np.ndarray
    held_out: np.ndarray
    order: np.ndarray

    @property
    def episodes(self) -> int:
        return len(self.starts)

    @property
    def frames(self) -> int:
        return len(self.actions)

    def lineage(self) -> list[dict]:
        """The datasets of this set, for a checkpoint's lineage."""
        return [{"path": path, "content_hash": content_hash} for path, content_hash in self.sources]

    def subset(self, episodes: np.ndarray) -> "DemoSet":
        """The set restricted to the episodes with these indices; frames are shared, not copied."""
        return DemoSet(
            self.sources, self.images, self.proprioception, self.actions,
            [self.instructions[e] for e in episodes], self.starts[episodes], self.ends[episodes], self.held_out[episodes],
            self.order[episodes],
        )

    def split(self, held_out: int = OWN_SPLIT) -> tuple["DemoSet", "DemoSet | None"]:
        """(training set, held-out set or None), by episode.

        held_out: OWN_SPLIT takes the split that the dataset records, 0 holds nothing out, and another number that many
        episodes, of which the dataset's own come first. Raises DataError when nothing would be left to train on.
        """
        chosen = self.held_out
        if held_out >= 0:
            if held_out >= self.episodes:
                names = ", ".join(path for path, _ in self.sources)
                raise DataError(f"{names}: cannot hold out {held_out} of {self.episodes} episodes")
            chosen = np.zeros(self.episodes, bool)
            chosen[np.lexsort((self.order, ~self.held_out))[:held_out]] = True
        indices = np.arange(self.episodes)
        return self.subset(indices[~chosen]), self.subset(indices[chosen]) if chosen.any() else None

    def sample(self, size: int, horizon: int, rng: np.random.Generator) -> DemoBatch:
        """`size` samples: a trajectory drawn uniformly, then a time step drawn uniformly in it (paper, eq. 2)."""
        episodes = rng.integers(self.episodes, size=size)
        lengths = self.ends[episodes] - self.starts[episodes]
        frames = self.starts[episodes] + (rng.random(size) * lengths).astype(np.int64)
        return self.batch(episodes, frames, horizon)

    def every_frame(self, horizon: int) -> DemoBatch:
        """All frames of the set, in order."""
        episodes = np.repeat(np.arange(self.episodes), self.ends - self.starts)
        frames = np.concatenate([np.arange(start, end) for start, end in zip(self.starts, self.ends, strict=True)])
        return self.batch(episodes, frames, horizon)

    def batch(self, episodes: np.ndarray, frames: np.ndarray, horizon: int) -> DemoBatch:
        steps = frames[:, None] + np.arange(horizon)
        valid = steps < self.ends[episodes][:, None]
        return DemoBatch(
            {name: images[frames] for name, images in self.images.items()},
            self.proprioception[frames],
            [self.instructions[episode] for episode in episodes],
            self.actions[np.minimum(steps, self.ends[episodes][:, None] - 1)],
            valid,
        )


def read_sidecar(root: Path) -> dict:
    """The dataset's rlco.json. Raises DataError when the dataset is missing or incomplete."""
    path = Path(root) / SIDECAR
    if not path.is_file():
        raise DataError(f"{root}: not a finished dataset ({SIDECAR} is missing); build it with 'rlco dataset build'")
    return json.loads(path.read_text())


def concatenate(batches: list[DemoBatch]) -> DemoBatch:
    """One batch of several, in order."""
    return DemoBatch(
        {name: np.concatenate([batch.images[name] for batch in batches]) for name in batches[0].images},
        np.concatenate([batch.proprioception for batch in batches]),
        [text for batch in batches for text in batch.instructions],
        np.concatenate([batch.actions for batch in batches]),
        np.concatenate([batch.valid for batch in batches]),
    )


def sample_cotraining(real: DemoSet | None, sim: DemoSet | None, alpha: float, size: int, horizon: int,
                      rng: np.random.Generator) -> tuple[DemoBatch, int]:
    """A Stage I batch: each sample's trajectory comes from `sim` with probability alpha, else from `real` (eq. 4).

    Returns the batch (simulated samples first) and how many are simulated. A missing set leaves the other one alone.
    """
    from_sim = int(rng.binomial(size, alpha)) if real and sim else (size if sim else 0)
    parts = []
    if from_sim:
        parts.append(sim.sample(from_sim, horizon, rng))
    if from_sim < size:
        parts.append(real.sample(size - from_sim, horizon, rng))
    return concatenate(parts), from_sim


def load_demos(root: Path, contract: Contract, image_size: int) -> DemoSet:
    """Load a LeRobot dataset built by this project, with images encoded at `image_size`.

    Raises DataError when it is incomplete and ContractMismatch, with the differing fields, under another contract.
    """
    root = Path(root)
    sidecar = read_sidecar(root)
    require_same_contract(contract, contract_from_json(sidecar["contract"], str(root)), f"dataset {root}")
    table = read_table(root, contract)
    images = {camera: np.stack([encode_image(decode_png(cell["bytes"]), image_size) for cell in table[image_key(camera)]])
              for camera in contract.cameras}
    episode_index = np.asarray(table["episode_index"])
    starts = np.flatnonzero(np.diff(episode_index, prepend=-1))
    return DemoSet(
        ((str(root), sidecar["content_hash"]),), images,
        np.asarray(table[STATE_KEY], np.float32), np.asarray(table[ACTION_KEY], np.float32),
        [episode["instruction"] for episode in sidecar["episodes"]], starts, np.append(starts[1:], len(episode_index)),
        np.array([episode.get("split") == HELD_OUT for episode in sidecar["episodes"]]), _holding_out_order(sidecar),
    )


def dataset_lineage(**sets: DemoSet | None) -> dict[str, list[dict]]:
    """`<name>_datasets` -> DemoSet.lineage of the sets that are there."""
    return {f"{name}_datasets": demos.lineage() for name, demos in sets.items() if demos is not None}


def load_datasets(roots: list[Path], contract: Contract, image_size: int) -> DemoSet:
    """All demonstrations of one or more datasets as one set; see load_demos."""
    sets = [load_demos(root, contract, image_size) for root in roots]
    if len(sets) == 1:
        return sets[0]
    offsets = np.cumsum([0] + [demos.frames for demos in sets[:-1]])
    shifted = list(zip(sets, offsets, strict=True))
    return DemoSet(
        tuple(source for demos in sets for source in demos.sources),
        {name: np.concatenate([demos.images[name] for demos in sets]) for name in sets[0].images},
        np.concatenate([demos.proprioception for demos in sets]), np.concatenate([demos.actions for demos in sets]),
        [text for demos in sets for text in demos.instructions],
        np.concatenate([demos.starts + offset for demos, offset in shifted]),
        np.concatenate([demos.ends + offset for demos, offset in shifted]),
        np.concatenate([demos.held_out for demos in sets]), np.concatenate([demos.order for demos in sets]),
    )


def _holding_out_order(sidecar: dict) -> np.ndarray:
    rule = SplitRule(**sidecar.get("split", {}))
    return np.array([rule.score(episode.get("bag", episode["episode"])) for episode in sidecar["episodes"]])


def load_proprioception(root: Path) -> np.ndarray:
    """All proprioception vectors of a dataset, float32 [frames, S], without decoding its images."""
    read_sidecar(root)
    return np.asarray(_table(root).select_columns([STATE_KEY])[STATE_KEY], np.float32)


def read_table(root: Path, contract: Contract):
    """The frames of a dataset as a Hugging Face dataset of plain values; images as {"bytes": PNG file}."""
    from datasets import Image

    table = _table(root)
    for camera in contract.cameras:
        table = table.cast_column(image_key(camera), Image(decode=False))
    return table


def _table(root: Path):
    return lerobot_dataset_class()(repo_id=f"rlco/{root.name}", root=root).hf_dataset.with_format(None)
