"""Which episodes a dataset holds out: decided once, by name, and recorded in the dataset."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rlco_common.errors import ConfigError

Split = Literal["train", "held_out"]
TRAIN: Split = "train"
HELD_OUT: Split = "held_out"


@dataclass(frozen=True)
class SplitRule:
    """Hold out this share of the recordings, chosen by a hash of their name and `seed`.

    Whether a recording is held out depends on nothing but its own name and the seed: it stays so when the dataset grows,
    and no checkpoint was trained on what a later one is measured by. The share is therefore met on average only; from two
    recordings on, at least one is held out and at least one is not.
    """

    fraction: float = 0.1
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"the held-out share must be at least 0 and below 1, got {self.fraction}")

    def score(self, group: str) -> float:
        """A fixed number in [0, 1) of a recording; the lowest ones are held out first."""
        digest = hashlib.sha256(f"{self.seed}/{group}".encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64

    def splits(self, groups: Sequence[str]) -> list[Split]:
        """train or held_out for every episode; groups names the recording that each comes from."""
        scores = {group: self.score(group) for group in groups}
        ranked = sorted(scores, key=lambda group: (scores[group], group))
        chosen = {group for group in ranked if scores[group] < self.fraction}
        if self.fraction and len(ranked) > 1:
            chosen = (chosen or {ranked[0]}) - ({ranked[-1]} if len(chosen) == len(ranked) else set())
        return [HELD_OUT if group in chosen else TRAIN for group in groups]

    def to_json(self) -> dict:
        return asdict(self)


NO_SPLIT = SplitRule(fraction=0.0)
