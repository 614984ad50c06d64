"""Actions <-> the 256 action tokens."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlco_common.errors import ConfigError


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


def action_statistics(norm_stats: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    if key not in norm_stats:
        raise ConfigError(f"unnorm_key '{key}' is not in {where}; it has {', '.join(sorted(norm_stats)) or '(none)'}")
    return norm_stats[key]["action"]
