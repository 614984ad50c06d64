"""Writes packed episodes as a LeRobot v3 dataset, through the lerobot library.

Beside LeRobot's own files, `meta/rlco.json` (the sidecar) holds the contract, its hash, per-episode metadata with digest,
split and origin, the statistics for normalisation and the lineage. It is written last: a dataset without it is incomplete.
"""

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError, DataError
from rlco_trainer.dataset.packed import PackedEpisode, content_hash
from rlco_trainer.dataset.schema import (
    ACTION_KEY,
    AGE_KEY,
    SIDECAR,
    STAMP_KEY,
    STATE_KEY,
    features,
    image_key,
    lerobot_dataset_class,
)
from rlco_trainer.dataset.splits import NO_SPLIT, SplitRule

SIDECAR_FORMAT = 2
_STAGED = "staged"      # PNG files of the episode that is being written


def require_absent(root: Path, overwrite: bool) -> None:
    """Raise ConfigError when `root` exists and is not to be replaced."""
    if root.exists() and not overwrite:
        raise ConfigError(f"{root} exists; choose another --out or give --overwrite")


def write_dataset(root: Path, contract: Contract, episodes: Iterable[PackedEpisode], *, lineage: dict,
                  split: SplitRule = NO_SPLIT, overwrite: bool = False) -> int:
    """Write `episodes` under `root`; returns how many frames. Written beside and renamed: a kill leaves no half dataset.

    split: which episodes are held out; an episode whose record already says so keeps its part. `lineage` is read after the
    last episode. Raises ConfigError when `root` exists and `overwrite` is false, DataError when there is no episode.
    """
    root = Path(root)
    require_absent(root, overwrite)
    part = root.with_name(f".{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    dataset = lerobot_dataset_class().create(
        repo_id=f"rlco/{root.name}", fps=round(contract.control_rate_hz), features=features(contract), root=part,
        robot_type=contract.name, use_videos=False,
    )
    written: list[PackedEpisode] = []
    for episode in episodes:
        _save(dataset, part / _STAGED, len(written), episode)
        written.append(episode.without_images())
    if not written:
        shutil.rmtree(part, ignore_errors=True)
        raise DataError(f"{root}: no episode to write")
    dataset.finalize()
    (part / SIDECAR).write_text(json.dumps(_sidecar(contract, written, lineage, split), indent=1, sort_keys=True))
    if root.exists():
        shutil.rmtree(root)
    part.rename(root)
    return sum(len(episode) for episode in written)


def _save(dataset, staged: Path, index: int, episode: PackedEpisode) -> None:
    """Hand an episode to LeRobot as it is; its own add_frame would encode every image again."""
    count = len(episode)
    staged.mkdir()
    buffer = {
        "size": count, "task": [episode.metadata.instruction] * count, "episode_index": index,
        "frame_index": np.arange(count), "timestamp": np.arange(count) / dataset.fps, "index": [], "task_index": [],
        STATE_KEY: episode.proprioception, ACTION_KEY: episode.actions, STAMP_KEY: episode.stamps_ns[:, None],
        AGE_KEY: episode.ages_s,
    }
    for camera, files in episode.images.items():
        paths = [staged / f"{camera}-{tick:06d}.png" for tick in range(count)]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        buffer[image_key(camera)] = [str(path) for path in paths]
    dataset.save_episode(buffer)
    shutil.rmtree(staged)


def _sidecar(contract: Contract, episodes: list[PackedEpisode], lineage: dict, split: SplitRule) -> dict:
    proprioception = np.concatenate([episode.proprioception for episode in episodes]).astype(np.float64)
    actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
    return {
        "format": SIDECAR_FORMAT,
        "contract": contract.to_json(),
        "contract_hash": contract.hash,
        "episodes": [_entry(episode, part) for episode, part in
                     zip(episodes, split.splits([episode.group for episode in episodes]), strict=True)],
        "lengths": [len(episode) for episode in episodes],
        "split": split.to_json(),
        "statistics": {STATE_KEY: statistics(proprioception), ACTION_KEY: statistics(actions)},
        "content_hash": content_hash(contract.hash, [episode.digest for episode in episodes]),
        "created_unix_s": round(time.time()),
        "lineage": lineage,
    }


def _entry(episode: PackedEpisode, split: str) -> dict:
    metadata = asdict(episode.metadata)
    del metadata["contract"]    # once for the dataset
    return metadata | {"split": split, "digest": episode.digest} | episode.record


def statistics(values: np.ndarray) -> dict[str, list[float]]:
    """Of every column of [T, n]: mean, std, min, max and the 1 % and 99 % quantiles."""
    return {
        "mean": values.mean(0).tolist(), "std": values.std(0).tolist(),
        "min": values.min(0).tolist(), "max": values.max(0).tolist(),
        "q01": np.quantile(values, 0.01, axis=0).tolist(), "q99": np.quantile(values, 0.99, axis=0).tolist(),
    }
