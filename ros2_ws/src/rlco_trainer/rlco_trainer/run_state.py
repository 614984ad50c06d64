"""Checkpoints of training runs: policy, optimizer, random generators and step, replaced as a whole.

N steps, a resume, and N more steps give the same bits as 2N steps. A kill during a save leaves the previous checkpoint.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import torch

from rlco_common.errors import TrainingError
from rlco_policy.checkpoint import load_policy, save_policy
from rlco_policy.interface import VLAPolicy

KEPT = 2
FORMAT = 2      # of trainer.pt; another one is refused


class Randomness:
    """The random streams of a run: `numpy` picks samples, `torch` drives policies."""

    def __init__(self, seed: int):
        self.numpy = np.random.default_rng([seed, 0])
        self.torch = torch.Generator().manual_seed(seed * 7919 + 1)

    def state(self) -> dict:
        return {"numpy": self.numpy.bit_generator.state, "torch": self.torch.get_state()}

    def restore(self, state: dict) -> None:
        self.numpy.bit_generator.state = state["numpy"]
        self.torch.set_state(state["torch"])


def save_run(directory: Path, step: int, policy: VLAPolicy, optimizer: torch.optim.Optimizer,
             randomness: Randomness, lineage: dict, extra: dict | None = None) -> Path:
    """Write `directory/checkpoints/<step>` and drop all but the newest ones. A step that is there already stays as it is."""
    root = directory / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    part, final = root / f".{step:08d}.part", root / f"{step:08d}"
    if final.exists():
        return final
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    save_policy(policy, part / "policy", lineage)
    state = {"format": FORMAT, "step": step, "optimizer": optimizer.state_dict(), "random": randomness.state(),
             "extra": extra or {}}
    with (part / "trainer.pt").open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, final)
    for old in _checkpoints(root)[:-KEPT]:
        shutil.rmtree(old)
    return final


def latest_run(directory: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = _checkpoints(directory / "checkpoints")
    return found[-1] if found else None


def load_run(checkpoint: Path, contract) -> tuple[VLAPolicy, dict]:
    """(policy, trainer state with step, optimizer, random, extra) of a run's checkpoint, on the CPU."""
    try:
        state = torch.load(checkpoint / "trainer.pt", weights_only=False, map_location="cpu")
    except (OSError, RuntimeError, EOFError) as error:
        raise TrainingError(f"{checkpoint}/trainer.pt is unreadable ({error}); remove {checkpoint} to resume from the one "
                            "before") from error
    if state.get("format") != FORMAT:
        raise TrainingError(f"{checkpoint} was written by another version of this trainer, so it cannot be resumed; its "
                            "policy can be used. Give another out= for a new run")
    return load_policy(checkpoint / "policy", contract), state


def _checkpoints(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name.isdigit())
