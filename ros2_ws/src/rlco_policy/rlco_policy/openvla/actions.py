"""Actions <-> the 256 action tokens, and the statistics that checkpoints normalise by."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlco_common.contract import ActionSpec
from rlco_common.errors import ConfigError
from rlco_policy.interface import ActionNormalizer

RANGE_FLOOR = 1e-8


class ActionBins:
    """Normalised actions in [-1, 1] <-> indices into the action rows of the vocabulary.

    `bins` edges over [-1, 1] make bins - 1 intervals; the token id is vocabulary - digitize(a), so that a row index falls
    as the action rises: row bins - 1 is -1, row 0 is +1. Rows 0 and 1 decode to the same centre.
    """

    def __init__(self, bins: int):
        edges = np.linspace(-1.0, 1.0, bins)
        self.bins = bins
        self._edges = torch.from_numpy(edges)
        self._centres = torch.from_numpy((edges[:-1] + edges[1:]) / 2)

    def rows_of(self, normalised: Tensor) -> Tensor:
        """[...] -> int64 row indices; values beyond [-1, 1] take the outermost."""
        clipped = normalised.double().clamp(-1.0, 1.0)
        return self.bins - torch.bucketize(clipped, self._edges.to(clipped.device), right=True)

    def normalised_of(self, rows: Tensor) -> Tensor:
        """int64 row indices -> float32 centres in [-1, 1]."""
        index = (self.bins - 1 - rows).clamp(0, self.bins - 2)
        return self._centres.to(rows.device)[index].float()


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


def action_statistics(norm_stats: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    if key not in norm_stats:
        raise ConfigError(f"unnorm_key '{key}' is not in {where}; it has {', '.join(sorted(norm_stats)) or '(none)'}")
    return norm_stats[key]["action"]
