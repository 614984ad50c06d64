"""Watches whether RL makes the policy forget the real data, and can keep it from doing so."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlco_policy.interface import VLAPolicy
from rlco_trainer.batches import SftBatch
from rlco_trainer.config import BetaControl, PpoConfig
from rlco_trainer.peers import ALONE, Peers
from rlco_trainer.ppo import RlBatch, total_loss
from rlco_trainer.updates import acting_weights


def gradient_cosine(policy: VLAPolicy, rl: RlBatch, sft: SftBatch, config: PpoConfig, *, micro_batches: int = 1,
                    peers: Peers = ALONE) -> float:
    """Cosine between the gradients of L_RL and L_SFT(real) on the acting weights: below 0 they pull apart.

    Micro-batches and processes add up to the whole batches' gradients, as in update_step. Leaves no gradient behind.
    """
    acting = acting_weights(policy)

    def gradient(batch: RlBatch | SftBatch, loss_of: Callable[[RlBatch | SftBatch], Tensor]) -> list[Tensor]:
        policy.zero_grad(set_to_none=True)
        for index in peers.parts(len(batch), micro_batches):
            part = batch.part(index)
            (len(part) / len(batch) * loss_of(part)).backward()
        peers.sum_gradients(acting)
        found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in acting]
        policy.zero_grad(set_to_none=True)
        return found

    first = gradient(rl, lambda part: total_loss(policy, part, None, 0.0, config)[0])
    second = gradient(sft, lambda part: total_loss(policy, None, part, 1.0, config)[0])
    norm = math.sqrt(_product(first, first) * _product(second, second))
    return _product(first, second) / norm if norm > 0 else math.nan


def _product(first: list[Tensor], second: list[Tensor]) -> float:
    return sum(float((a * b).sum()) for a, b in zip(first, second, strict=True))


class BetaController:
    """beta, held constant or moved so that the held-out real loss stays in a band around its start.

    Above `high` times the start the policy forgets, and beta grows by the factor `rate`; below `low` times it shrinks by
    it; in between it stays. A held-out loss that is too high while the loss on the real training batches has fallen is not
    forgotten but learned by heart: more of the same few episodes would make it worse, so beta shrinks then, too.
    """

    def __init__(self, beta: float, control: BetaControl | None):
        self.beta, self._control = beta, control
        self.reference: float | None = None
        self._trained_reference: float | None = None

    def observe(self, held_out_loss: float, trained_loss: float | None = None) -> None:
        """Take in a measurement, and the mean loss on the real batches that were trained on since the last one, if any.

        The first of each is the start that later ones are compared with.
        """
        if self._control is None or self.beta == 0:
            return
        if self._trained_reference is None:
            self._trained_reference = trained_loss
        if self.reference is None:
            self.reference = held_out_loss
            return
        low, high = (factor * self.reference for factor in (self._control.low, self._control.high))
        by_heart = trained_loss is not None and trained_loss < self._trained_reference
        if held_out_loss > high and not by_heart:
            self.beta = min(self.beta * self._control.rate, self._control.largest)
        elif not low <= held_out_loss <= high:
            self.beta = max(self.beta / self._control.rate, self._control.smallest)

    def state(self) -> dict:
        return {"beta": self.beta, "reference": self.reference, "trained_reference": self._trained_reference}

    def restore(self, state: dict) -> None:
        self.beta, self.reference, self._trained_reference = state["beta"], state["reference"], state["trained_reference"]
