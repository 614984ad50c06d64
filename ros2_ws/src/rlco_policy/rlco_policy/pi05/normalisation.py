"""Normalisation as a fine-tuned LeRobot checkpoint stores it: what its processors do, and with which numbers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors.torch import load_file
from torch import Tensor, nn

from rlco_common.contract import ActionSpec
from rlco_common.errors import ConfigError, DataError
from rlco_policy.hub import ModelFolder
from rlco_policy.interface import ActionNormalizer

PIPELINE, CONFIG = "policy_preprocessor.json", "config.json"
STATISTICS_ALONE = "normalizer_statistics.safetensors"
KINDS = {ACTION: "ACTION", OBS_STATE: "STATE"}
READS = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90"),
         "IDENTITY": ()}
"""LeRobot's mode -> the statistics that it uses."""
EPS = 1e-8
INSTEAD = "or use statistics: contract and train on your own data"


class Scale(nn.Module):
    """unit = gain * (x - origin) / width - offset: LeRobot's normalisation in any of its modes, which bring a range to [-1, 1]
    or a mean and deviation to 0 and 1. A range of no width is taken to be 1e-8 wide, as in LeRobot."""

    def __init__(self, mode: str, first: Tensor, second: Tensor):
        super().__init__()
        ranged = mode not in ("MEAN_STD", "IDENTITY")
        self.gain, self.offset = (2.0, 1.0) if ranged else (1.0, 0.0)
        width = second - first if ranged else second
        self.register_buffer("origin", first, persistent=False)
        self.register_buffer("constant", width == 0, persistent=False)
        width = width + EPS if mode == "MEAN_STD" else torch.where(self.constant, torch.full_like(width, EPS), width)
        self.register_buffer("width", width, persistent=False)

    def unit(self, x: Tensor) -> Tensor:
        return self.gain * (x - self.origin) / self.width - self.offset

    def physical(self, unit: Tensor) -> Tensor:
        return (unit + self.offset) / self.gain * self.width + self.origin


class StoredNormalizer(ActionNormalizer):
    """Actions by a checkpoint's scale, clipped to the contract's limits on the way back.

    A dimension that never moved in the checkpoint's data counts as its constant whatever it does here: over LeRobot's 1e-8
    any motion would be a target of millions.
    """

    def __init__(self, action: ActionSpec, scale: Scale):
        super().__init__(action)
        self.scale = scale

    def normalise(self, actions: Tensor) -> Tensor:
        return self.scale.unit(torch.where(self.scale.constant, self.scale.origin, actions.float()))

    def denormalise(self, actions: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(self.scale.physical(actions.float()), self.low), self.high)


@dataclass(frozen=True)
class StoredNormalisation:
    """modes: LeRobot's, of ACTION, STATE and VISUAL. statistics: feature -> name -> tensor. files: what a copy needs."""

    path: Path
    modes: dict[str, str]
    statistics: dict[str, dict[str, Tensor]]
    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path) -> "StoredNormalisation":
        """What LeRobot's pipeline in a folder does; statistics alone, without a pipeline, are quantiles.

        Raises DataError where there is none, or where it does what is not done here.
        """
        if (folder / STATISTICS_ALONE).is_file():
            names, modes = [STATISTICS_ALONE], {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}
        else:
            state_file, modes = _pipeline(folder)
            names = [state_file, PIPELINE]
        path = folder / names[0]
        if not path.is_file():
            raise DataError(f"{path}: no such file, though {PIPELINE} names it: fetch the whole checkpoint, {INSTEAD}")
        statistics: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(path).items():
            feature, _, name = key.rpartition(".")
            statistics.setdefault(feature, {})[name] = tensor.float()
        return cls(path, modes, statistics, {name: (folder / name).read_bytes() for name in names})

    def scale(self, feature: str, size: int) -> Scale:
        """Of `action` or `observation.state`, which has `size` numbers in the contract."""
        mode = self.modes.get(KINDS[feature], "IDENTITY")
        if mode not in READS:
            raise DataError(f"{self.path}: {feature} is normalised by {mode}; known are {', '.join(READS)}: convert it, "
                            f"{INSTEAD}")
        if mode == "IDENTITY":
            return Scale(mode, torch.zeros(size), torch.ones(size))
        stored = self.statistics.get(feature, {})
        missing = [f"{feature}.{name}" for name in READS[mode] if name not in stored]
        if missing:
            raise DataError(f"{self.path} lacks {' and '.join(missing)}, which {mode} needs: add them, {INSTEAD}")
        first, second = (stored[name] for name in READS[mode])
        if first.shape != (size,) or second.shape != (size,):
            raise ConfigError(f"{self.path}: statistics of {feature} are {first.numel()} numbers, the contract has {size}: "
                              f"take a checkpoint of this robot, {INSTEAD}")
        return Scale(mode, first, second)


def _pipeline(folder: Path) -> tuple[str, dict[str, str]]:
    """The file of the normaliser's statistics, and its modes. LeRobot acts by its pipeline and trains on by config.json."""
    files, path = ModelFolder(folder), folder / PIPELINE
    if not path.is_file():
        raise DataError(f"{folder} stores no normalisation ({PIPELINE}): take a fine-tuned checkpoint, {INSTEAD}")
    steps = {step.get("registry_name"): step for step in files.json(PIPELINE)["steps"]}
    normaliser = steps.get("normalizer_processor", {})
    if "state_file" not in normaliser:
        raise DataError(f"{path}: its normaliser has no statistics: take a fine-tuned checkpoint, {INSTEAD}")
    modes = normaliser["config"]["norm_map"]
    config = files.json(CONFIG) if (folder / CONFIG).is_file() else {}
    told = config.get("normalization_mapping", modes)
    differing = [kind for kind in KINDS.values() if told.get(kind, "IDENTITY") != modes.get(kind, "IDENTITY")]
    if differing:
        raise DataError(f"{folder / CONFIG}: normalization_mapping has {told} and {PIPELINE} beside it {modes}: correct the "
                        "one that is wrong")
    if config.get("use_relative_actions") or steps.get("relative_actions_processor", {}).get("config", {}).get("enabled"):
        raise DataError(f"{path}: the checkpoint's actions are relative to the state (use_relative_actions), the contract's "
                        f"are not: fine-tune it without, {INSTEAD}")
    if modes.get("VISUAL", "IDENTITY") != "IDENTITY":
        raise DataError(f"{path}: pictures are normalised by {modes['VISUAL']}, which is not done here: fine-tune it with "
                        f"IDENTITY, {INSTEAD}")
    return normaliser["state_file"], modes
