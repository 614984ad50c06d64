"""Watches whether RL makes the policy forget the real data, and can keep it from doing so."""

import math

import torch
from torch import Tensor

from rlco_policy.interface import VLAPolicy
from rlco_trainer.batches import SftBatch
from rlco_trainer.config import BetaControl, PpoConfig
from rlco_trainer.ppo import RlBatch, total_loss
from rlco_trainer.updates import acting_weights


def gradient_cosine(policy: VLAPolicy, rl: RlBatch, sft: SftBatch, config: PpoConfig) -> float:
    """Cosine between the gradients of L_RL and L_SFT(real) on the acting weights: below 0 they pull apart."""
    acting = acting_weights(policy)
    first = _gradient(total_loss(policy, rl, None, 0.0, config)[0], acting)
    second = _gradient(total_loss(policy, None, sft, 1.0, config)[0], acting)
    norm = float(first.norm() * second.norm())
    return float(first @ second) / norm if norm > 0 else math.nan


def _gradient(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(parameter) if gradient is None else gradient).flatten()
                      for parameter, gradient in zip(parameters, gradients, strict=True)])


class BetaController:
    """beta, held constant or moved so that the held-out real loss stays in a band around its start.

    Above `high` times the start the anchor is too weak and beta grows by the factor `rate`, below `low` times it shrinks
    by it; in between it stays.
    """

    def __init__(self, beta: float, control: BetaControl | None):
        self.beta, self._control = beta, control
        self.reference: float | None = None

    def observe(self, held_out_loss: float) -> None:
        """Take in a measurement; the first one is the start that the band refers to."""
        if self._control is None or self.beta == 0:
            return
        if self.reference is None:
            self.reference = held_out_loss
        elif held_out_loss > self._control.high * self.reference:
            self.beta = min(self.beta * self._control.rate, self._control.largest)
        elif held_out_loss < self._control.low * self.reference:
            self.beta = max(self.beta / self._control.rate, self._control.smallest)

    def state(self) -> dict:
        return {"beta": self.beta, "reference": self.reference}

    def restore(self, state: dict) -> None:
        self.beta, self.reference = state["beta"], state["reference"]
