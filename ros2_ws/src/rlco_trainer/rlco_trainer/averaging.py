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
        self._weights = trained_weights(policy)
        self._average = [weight.detach().clone() for weight in self._weights] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for average, weight in zip(self._average, self._weights, strict=bool(self.decay)):
            average.lerp_(weight, 1 - decay)

    @property
    def values(self) -> list[Tensor]:
        """The average as it is now, in the order of trained_weights."""
        return self._average or self._weights

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
        overwrite(self._average, state["average"])


def trained_weights(policy: VLAPolicy) -> list[torch.nn.Parameter]:
    """Everything that trains, group by group."""
    return [parameter for group in policy.param_groups().values() for parameter in group]


@torch.no_grad()
def overwrite(tensors: list[Tensor], values: list[Tensor]) -> None:
    """Copy each value into the tensor in its place."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
