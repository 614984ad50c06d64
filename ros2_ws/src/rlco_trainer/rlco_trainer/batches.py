"""Moves demonstration batches into a policy's inputs, and splits work into micro-batches."""

import itertools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from rlco_policy.interface import ModelInputs, ObsBatch, SftOut, VLAPolicy
from rlco_trainer.dataset.reader import DemoBatch, DemoSet


@dataclass
class SftBatch:
    """A supervised batch with its random draws fixed: every way of splitting it gives the same loss and gradient."""

    inputs: ModelInputs
    actions: Tensor
    valid: Tensor
    draws: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.actions)

    def part(self, index: slice) -> "SftBatch":
        return SftBatch(rows(self.inputs, index), self.actions[index], self.valid[index], rows(self.draws, index))


def joined(batches: list[SftBatch]) -> SftBatch:
    """One batch of several, in order."""
    first = batches[0]
    return SftBatch({name: torch.cat([batch.inputs[name] for batch in batches]) for name in first.inputs},
                    torch.cat([batch.actions for batch in batches]), torch.cat([batch.valid for batch in batches]),
                    {name: torch.cat([batch.draws[name] for batch in batches]) for name in first.draws})


def rows(tensors: dict[str, Tensor], index) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in tensors.items()}


def moved(tensors: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """The same on a device; a tensor that is there already is not copied."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def stacked(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of single samples that have the same names."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def newest(parts: list[Tensor], capacity: int) -> Tensor:
    """The last `capacity` rows of all parts, in order; what falls out of the oldest ones is not copied first."""
    skip, kept = max(0, sum(len(part) for part in parts) - capacity), []
    for part in parts:
        kept.append(part[min(skip, len(part)):])
        skip -= min(skip, len(part))
    return torch.cat(kept)


def sft_batch(policy: VLAPolicy, demos: DemoBatch, generator: torch.Generator, *, augment: bool) -> SftBatch:
    """Preprocess a demonstration batch, augmented for training or plain for monitoring."""
    obs = ObsBatch(
        {name: torch.from_numpy(images) for name, images in demos.images.items()},
        torch.from_numpy(demos.proprioception), demos.instructions,
    )
    inputs = policy.preprocess(obs, train=augment, generator=generator)
    actions = torch.from_numpy(demos.actions).to(policy.device)
    valid = torch.from_numpy(demos.valid).to(policy.device)
    return SftBatch(inputs, actions, valid, policy.sft_draws(len(actions), generator))


def sft_loss(policy: VLAPolicy, batch: SftBatch, weights: Tensor | None = None) -> SftOut:
    return policy.sft_loss(batch.inputs, batch.actions, batch.valid, draws=batch.draws, weights=weights)


def accumulate(policy: VLAPolicy, batch: SftBatch, weights: Tensor, parts: Iterable[slice],
               context: Callable[[], AbstractContextManager] = nullcontext) -> Tensor:
    """Add the gradient of the supervised loss, its samples weighted by `weights` [B], one part of the batch after the other.

    context: entered around each forward pass. Returns the samples' losses [B], 0 for those in no part.
    """
    losses = torch.zeros(len(batch))
    for part in parts:
        with context():
            out = sft_loss(policy, batch.part(part), weights[part])
        out.loss.backward()
        losses[part] = out.per_sample.float().cpu()
    return losses


def slices(total: int, parts: int) -> list[slice]:
    """`parts` contiguous slices (fewer when total is smaller) that cover range(total), sizes differing by one at most."""
    parts = min(parts, total)
    edges = [total * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


@torch.no_grad()
def held_out_loss(policy: VLAPolicy, demos: DemoSet, *, limit: int = 512, seed: int = 0) -> float:
    """Supervised loss on every frame (at most `limit`, evenly spread) of held-out demonstrations, with fixed draws."""
    frames = demos.every_frame(policy.spec.horizon)
    batch = sft_batch(policy, frames, torch.Generator().manual_seed(seed), augment=False)
    step = max(1, -(-len(batch) // limit))
    batch = batch.part(slice(0, None, step))
    total = sum(float(sft_loss(policy, batch.part(part)).loss) * (part.stop - part.start)
                for part in slices(len(batch), -(-len(batch) // 128)))
    return total / len(batch)
