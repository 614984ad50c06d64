"""Exponential moving average of a policy's trainable weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from rlco_policy.interface import VLAPolicy


class WeightAverage:
    """Keeps `decay * average + (1 - decay) * weights` of everything that trains; decay 0 = the weights themselves.

    The decay is warmed up as (1 + n) / (10 + n) over the n updates, so that a short run's average is not its start.
    """

    def __init__(self, policy: VLAPolicy, decay: float):
        self.decay, self.updates = decay, 0
        self._weights = [parameter for group in policy.param_groups().values() for parameter in group]
        self._average = [weight.detach().clone() for weight in self._weights] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for average, weight in zip(self._average, self._weights, strict=bool(self.decay)):
            average.lerp_(weight, 1 - decay)

    @torch.no_grad()
    def copy_to(self, weights: list[Tensor]) -> None:
        """Write the average into the weights of another copy of the policy, given in the order of its param_groups."""
        for weight, average in zip(weights, self._average or self._weights, strict=True):
            weight.copy_(average)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The policy holds the average inside the block and its own weights again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(self._average, self._weights, strict=bool(self.decay)):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def state(self) -> dict:
        return {"updates": self.updates, "average": list(self._average)}

    def restore(self, state: dict[str, int | list[Tensor]]) -> None:
        self.updates = state["updates"]
        for average, saved in zip(self._average, state["average"], strict=True):
            average.copy_(saved)
