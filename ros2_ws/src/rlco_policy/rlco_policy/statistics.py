"""Normalisation statistics of proprioception: computed once from a dataset, then part of the policy for ever."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlco_common.errors import DataError

STD_FLOOR = 1e-2
"""Smallest divisor, in the element's own unit: an element that hardly moves in the data must not be blown up live."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per proprioception element (physical units), and what they were computed from."""

    names: tuple[str, ...]
    mean: np.ndarray        # float32 [S]
    std: np.ndarray         # float32 [S], not below STD_FLOOR
    samples: int

    def __post_init__(self):
        for field in ("mean", "std"):
            array = np.asarray(getattr(self, field), dtype=np.float32)
            if array.shape != (len(self.names),) or not np.isfinite(array).all():
                raise DataError(f"statistics: {field} must be {len(self.names)} finite numbers, is {array.tolist()}")
            object.__setattr__(self, field, array)
        if (self.std <= 0).any():
            raise DataError("statistics: every std must be positive")

    @classmethod
    def from_proprioception(cls, names: tuple[str, ...], proprioception: np.ndarray) -> "Statistics":
        """Statistics of proprioception vectors [N, S] in physical units."""
        data = np.asarray(proprioception, dtype=np.float64)
        if data.ndim != 2 or data.shape[1] != len(names) or len(data) == 0:
            raise DataError(f"statistics need proprioception [N, {len(names)}] with N > 0, got shape {data.shape}")
        return cls(tuple(names), data.mean(0), np.maximum(data.std(0), STD_FLOOR), len(data))

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of to_json()."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def require_names(self, names: tuple[str, ...]) -> None:
        if tuple(self.names) != tuple(names):
            raise DataError(f"statistics are of {list(self.names)}, the contract's proprioception is {list(names)}; "
                            "rebuild the dataset under this contract")

    def to_json(self) -> str:
        """Canonical JSON; floats are float32 printed exactly, so the round trip is bit-exact."""
        return json.dumps({"names": list(self.names), "mean": [float(v) for v in self.mean],
                           "std": [float(v) for v in self.std], "samples": self.samples}, sort_keys=True)


def statistics_from_json(text: str, where: str) -> Statistics:
    try:
        data = json.loads(text)
        return Statistics(tuple(data["names"]), data["mean"], data["std"], int(data["samples"]))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: unreadable normalisation statistics: {error!r}") from error
