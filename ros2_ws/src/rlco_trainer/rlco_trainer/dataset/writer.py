"""Writes aligned episodes as a LeRobot v3 dataset, through the lerobot library.

Beside LeRobot's own files, `meta/rlco.json` holds the contract, its hash, the per-episode metadata, the statistics for
normalisation and the lineage; `meta/rlco.json` is written last, so a dataset without it is incomplete.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError, DataError
from rlco_trainer.dataset.episode import AlignedEpisode
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


def write_dataset(
    root: Path, contract: Contract, episodes: Iterable[AlignedEpisode], *, lineage: dict, overwrite: bool = False
) -> int:
    """Write `episodes` under `root`; returns how many frames. Written beside and renamed: a kill leaves no half dataset.

    Raises ConfigError when `root` exists and `overwrite` is false, DataError when there is no episode.
    """
    root = Path(root)
    if root.exists() and not overwrite:
        raise ConfigError(f"{root} exists; choose another --out or give --overwrite")
    part = root.with_name(f".{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    dataset = lerobot_dataset_class().create(
        repo_id=f"rlco/{root.name}", fps=round(contract.control_rate_hz), features=features(contract), root=part,
        robot_type=contract.name, use_videos=False,
    )
    written: list[AlignedEpisode] = []
    for episode in episodes:
        for tick in range(len(episode)):
            frame = {image_key(name): images[tick] for name, images in episode.images.items()}
            frame |= {
                STATE_KEY: episode.proprioception[tick],
                ACTION_KEY: episode.actions[tick],
                STAMP_KEY: episode.stamps_ns[tick : tick + 1],
                AGE_KEY: episode.ages_s[tick],
                "task": episode.metadata.instruction,
            }
            dataset.add_frame(frame)
        dataset.save_episode()
        # Images are on disk now; keep only what the sidecar and the statistics need.
        written.append(replace(episode, images={}))
    if not written:
        shutil.rmtree(part, ignore_errors=True)
        raise DataError(f"{root}: no episode to write")
    dataset.finalize()
    shutil.rmtree(part / "images", ignore_errors=True)
    _write_sidecar(part, contract, written, lineage)
    if root.exists():
        shutil.rmtree(root)
    part.rename(root)
    return sum(len(episode) for episode in written)


def _write_sidecar(root: Path, contract: Contract, episodes: list[AlignedEpisode], lineage: dict) -> None:
    proprioception = np.concatenate([episode.proprioception for episode in episodes]).astype(np.float64)
    actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
    metadata = [asdict(episode.metadata) for episode in episodes]
    for entry in metadata:
        del entry["contract"]  # once for the dataset, below
    sidecar = {
        "contract": contract.to_json(),
        "contract_hash": contract.hash,
        "episodes": metadata,
        "lengths": [len(episode) for episode in episodes],
        "statistics": {STATE_KEY: _statistics(proprioception), ACTION_KEY: _statistics(actions)},
        "content_hash": hashlib.sha256(proprioception.tobytes() + actions.tobytes()).hexdigest()[:16],
        "created_unix_s": round(time.time()),
        "lineage": lineage,
    }
    (root / SIDECAR).write_text(json.dumps(sidecar, indent=1, sort_keys=True))


def _statistics(values: np.ndarray) -> dict[str, list[float]]:
    return {
        "mean": values.mean(0).tolist(), "std": values.std(0).tolist(),
        "min": values.min(0).tolist(), "max": values.max(0).tolist(),
        "q01": np.quantile(values, 0.01, axis=0).tolist(), "q99": np.quantile(values, 0.99, axis=0).tolist(),
    }
