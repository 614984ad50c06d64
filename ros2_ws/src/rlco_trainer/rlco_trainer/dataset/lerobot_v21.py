"""Writes demonstrations as a LeRobot dataset of version 2.1, which openpi and RLinf read (ours are version 3).

Columns as in the RL-Co recipe: `image`, `state` [x, y, z, roll, pitch, yaw, gripper] and `actions` [7], the gripper as
ManiSkill commands it: -1 closed, 1 open. Angles are extrinsic x-y-z. Images are the contract's first camera, cropped to the
square that our policies see.
"""

import json
from pathlib import Path

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import DataError
from rlco_common.observation import encode_image
from rlco_trainer.dataset.png import decode_png, encode_png
from rlco_trainer.dataset.reader import read_sidecar, read_table
from rlco_trainer.dataset.schema import ACTION_KEY, STATE_KEY, image_key

EPISODES_PER_CHUNK = 1000
STATE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
ROTATION = ("r11", "r21", "r31", "r12", "r22", "r32")
STATISTICS_FRAMES = 20
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"


def write_lerobot_v21(sources: list[Path], contract: Contract, out: Path) -> dict[str, np.ndarray]:
    """Write the datasets `sources`, made under `contract`, as one into the new folder `out`.

    Returns what normalisation statistics are computed from: {"state": [frames, 7], "actions": [frames, 7]}.
    """
    (out / "meta").mkdir(parents=True)
    episodes, tasks, totals = [], {}, {"state": [], "actions": []}
    frames = 0
    for source in sources:
        instructions = [episode["instruction"] for episode in read_sidecar(source)["episodes"]]
        table = read_table(source, contract)
        index = np.asarray(table["episode_index"])
        for number, instruction in enumerate(instructions):
            rows = np.flatnonzero(index == number)
            columns = _columns(table.select(rows), contract)
            task = tasks.setdefault(instruction, len(tasks))
            _write_episode(out, len(episodes), columns, task, frames, contract)
            episodes.append({"episode_index": len(episodes), "tasks": [instruction], "length": len(rows),
                             "stats": _statistics(columns)})
            frames += len(rows)
            for name, values in totals.items():
                values.append(columns[name])
    if not episodes:
        raise DataError("no episodes to export")
    _write_meta(out, contract, episodes, tasks, frames, columns["image"].shape[1:])
    return {name: np.concatenate(values) for name, values in totals.items()}


def state_of(proprioception: np.ndarray, contract: Contract) -> np.ndarray:
    """Proprioception [N, S] -> float32 [N, 7]: position, extrinsic x-y-z angles, gripper -1..1."""
    names = list(contract.proprioception_names)
    missing = [name for name in (*STATE_NAMES[:3], *ROTATION, "gripper") if name not in names]
    if missing:
        raise DataError(f"the contract's proprioception lacks {', '.join(missing)}, which the RL-Co recipe's state needs")
    column = {name: proprioception[:, names.index(name)].astype(np.float64) for name in names}
    r11, r21, r31, r12, r22, r32 = (column[name] for name in ROTATION)
    r33 = r11 * r22 - r12 * r21
    roll, pitch, yaw = np.arctan2(r32, r33), -np.arcsin(np.clip(r31, -1, 1)), np.arctan2(r21, r11)
    parts = (column["x"], column["y"], column["z"], roll, pitch, yaw, 2 * column["gripper"] - 1)
    return np.stack(parts, 1).astype(np.float32)


def action_of(actions: np.ndarray, contract: Contract) -> np.ndarray:
    """Physical actions [N, 7] with the gripper 0..1 -> the same with the gripper -1..1, float32."""
    gripper = list(contract.action.names).index("gripper")
    out = actions.astype(np.float32).copy()
    out[:, gripper] = 2 * out[:, gripper] - 1
    return out


def _columns(rows, contract: Contract) -> dict[str, np.ndarray]:
    pictures = [decode_png(cell["bytes"]) for cell in rows[image_key(next(iter(contract.cameras)))]]
    return {
        "image": np.stack([encode_image(picture, min(picture.shape[:2])) for picture in pictures]),
        "state": state_of(np.asarray(rows[STATE_KEY], np.float32), contract),
        "actions": action_of(np.asarray(rows[ACTION_KEY], np.float32), contract),
    }


def _write_episode(out: Path, number: int, columns: dict[str, np.ndarray], task: int, first: int, contract: Contract) -> None:
    import datasets

    count, rate = len(columns["state"]), contract.control_rate_hz
    table = datasets.Dataset.from_dict({
        "image": [{"bytes": encode_png(image), "path": None} for image in columns["image"]],
        "state": columns["state"], "actions": columns["actions"], "timestamp": np.arange(count, dtype=np.float32) / rate,
        "frame_index": np.arange(count), "episode_index": np.full(count, number), "index": first + np.arange(count),
        "task_index": np.full(count, task),
    }, features=datasets.Features({
        "image": datasets.Image(),
        **{name: datasets.Sequence(datasets.Value("float32"), length=columns[name].shape[1]) for name in ("state", "actions")},
        "timestamp": datasets.Value("float32"),
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), datasets.Value("int64")),
    }))
    path = out / DATA_PATH.format(episode_chunk=number // EPISODES_PER_CHUNK, episode_index=number)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)


def _statistics(columns: dict[str, np.ndarray]) -> dict:
    """Per feature min, max, mean, std, count; of pictures per channel in [0, 1], over a few frames."""
    chosen = np.unique(np.linspace(0, len(columns["image"]) - 1, STATISTICS_FRAMES).astype(int))
    pictures = columns["image"][chosen].astype(np.float64).reshape(-1, 3) / 255
    result = {}
    for name, values in (("image", pictures), ("state", columns["state"]), ("actions", columns["actions"])):
        values = values.astype(np.float64)
        count = len(chosen) if name == "image" else len(values)
        summary = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        shape = (3, 1, 1) if name == "image" else (-1,)
        result[name] = {key: value.reshape(shape).tolist() for key, value in summary.items()} | {"count": [count]}
    return result


def _write_meta(out: Path, contract: Contract, episodes: list[dict], tasks: dict[str, int], frames: int, image_shape) -> None:
    def lines(name: str, rows) -> None:
        (out / "meta" / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    scalar = {"shape": [1], "names": None}
    info = {
        "codebase_version": "v2.1", "robot_type": contract.name, "total_episodes": len(episodes), "total_frames": frames,
        "total_tasks": len(tasks), "total_videos": 0, "total_chunks": -(-len(episodes) // EPISODES_PER_CHUNK),
        "chunks_size": EPISODES_PER_CHUNK, "fps": round(contract.control_rate_hz), "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH, "video_path": None,
        "features": {
            "image": {"dtype": "image", "shape": list(image_shape), "names": ["height", "width", "channel"]},
            "state": {"dtype": "float32", "shape": [len(STATE_NAMES)], "names": list(STATE_NAMES)},
            "actions": {"dtype": "float32", "shape": [contract.action.dim], "names": list(contract.action.names)},
            "timestamp": {"dtype": "float32", **scalar},
            **{name: {"dtype": "int64", **scalar} for name in ("frame_index", "episode_index", "index", "task_index")},
        },
    }
    (out / "meta" / "info.json").write_text(json.dumps(info, indent=4) + "\n", encoding="utf-8")
    lines("tasks.jsonl", [{"task_index": index, "task": task} for task, index in tasks.items()])
    lines("episodes.jsonl", [{key: row[key] for key in ("episode_index", "tasks", "length")} for row in episodes])
    lines("episodes_stats.jsonl", [{key: row[key] for key in ("episode_index", "stats")} for row in episodes])
