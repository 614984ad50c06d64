"""Normalisation by the 1 % and 99 % quantiles of the data that a published checkpoint was trained on."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlco_common.contract import ActionSpec
from rlco_common.errors import ConfigError
from rlco_policy.interface import ActionNormalizer

RANGE_FLOOR = 1e-8


class QuantileNormalizer(ActionNormalizer):
    """Normalises by the 1 % and 99 % quantiles of a checkpoint's data; dimensions outside `mask` pass through."""

    def __init__(self, action: ActionSpec, statistics: dict[str, Any], where: str):
        super().__init__(action)
        low, high = (np.asarray(statistics[name], np.float32) for name in ("q01", "q99"))
        if low.shape != (action.dim,) or high.shape != (action.dim,):
            raise ConfigError(f"{where}: action statistics of {low.shape} and {high.shape}, the contract's action has "
                              f"{action.dim} numbers")
        mask = np.asarray(statistics.get("mask", np.ones(action.dim)), bool)
        self.register_buffer("q01", torch.from_numpy(low), persistent=False)
        self.register_buffer("q99", torch.from_numpy(high), persistent=False)
        self.register_buffer("mask", torch.from_numpy(mask), persistent=False)

    def normalise(self, actions: Tensor) -> Tensor:
        actions = actions.float()
        unit = 2.0 * (actions - self.q01) / (self.q99 - self.q01 + RANGE_FLOOR) - 1.0
        unit = torch.where(self.q99 > self.q01, unit, torch.zeros_like(unit))
        return torch.where(self.mask, unit, actions)

    def denormalise(self, actions: Tensor) -> Tensor:
        actions = actions.float()
        physical = 0.5 * (actions + 1.0) * (self.q99 - self.q01) + self.q01
        physical = torch.where(self.mask, physical, actions)
        return torch.minimum(torch.maximum(physical, self.low), self.high)
