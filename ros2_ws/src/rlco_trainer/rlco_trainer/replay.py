"""Success replay: what worked in the twin is imitated again (self-imitation learning, Oh et al. 2018)."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from rlco_policy.interface import ModelInputs, VLAPolicy
from rlco_trainer.batches import SftBatch, moved, newest, rows, sft_batch, stacked
from rlco_trainer.dataset.reader import DemoSet
from rlco_trainer.rollout import Episode, progress

LEAST_PRIORITY = 0.05


@dataclass
class _Chunks:
    """N decisions of successful episodes. actions [N, horizon, A] physical, as carried out; valid [N, horizon] bool;
    priority [N]: how much better the episode went than the critic had expected."""

    inputs: ModelInputs
    actions: Tensor
    valid: Tensor
    priority: Tensor

    def __len__(self) -> int:
        return len(self.actions)


class SuccessReplay:
    """The newest `capacity` decisions of successful episodes, on the CPU, drawn by how little the critic expected the success.

    A success from a state in which the critic expected failure teaches the most: its priority is max(1 - value,
    LEAST_PRIORITY), the positive part of the advantage of self-imitation learning.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._chunks: _Chunks | None = None

    def __len__(self) -> int:
        return len(self._chunks) if self._chunks is not None else 0

    def add_demos(self, policy: VLAPolicy, demos: DemoSet) -> None:
        """Keep every frame of (simulated) demonstrations, at full priority."""
        batch = sft_batch(policy, demos.every_frame(policy.spec.horizon), torch.Generator(), augment=False)
        self._keep([_Chunks(moved(batch.inputs, "cpu"), batch.actions.cpu(), batch.valid.cpu(), torch.ones(len(batch)))])

    def add(self, episodes: list[Episode], horizon: int, shaping: float = 0.0) -> None:
        """Keep the successful ones among sampled episodes. shaping: as the critic's rewards have it."""
        self._keep([_chunks_of(episode, horizon, shaping) for episode in episodes if episode.success])

    def _keep(self, parts: list[_Chunks]) -> None:
        if not parts:
            return
        if self._chunks is not None:
            parts.insert(0, self._chunks)
        self._chunks = _newest(parts, self.capacity)

    def sample(self, policy: VLAPolicy, size: int, rng: np.random.Generator, generator: torch.Generator) -> SftBatch:
        """A supervised batch, augmented as demonstrations are."""
        priority = self._chunks.priority.double().numpy()
        index = torch.from_numpy(rng.choice(len(self), size, p=priority / priority.sum()))
        device = policy.device
        inputs = policy.augment(moved(rows(self._chunks.inputs, index), device), generator)
        return SftBatch(inputs, self._chunks.actions[index].to(device), self._chunks.valid[index].to(device),
                        policy.sft_draws(size, generator))

    def state(self) -> dict | None:
        """For the run's checkpoint."""
        return None if self._chunks is None else {field.name: getattr(self._chunks, field.name) for field in fields(_Chunks)}

    def restore(self, state: dict | None) -> None:
        self._chunks = None if state is None else _Chunks(**state)


def _chunks_of(episode: Episode, horizon: int, shaping: float) -> _Chunks:
    """Decision t is shown what was carried out from then on, up to `horizon` ticks or the episode's end.

    A critic of shaped rewards expects the potential less (ppo.shaped), which is given back: priorities are about success.
    """
    chunk = len(episode.actions[0])
    ticks = torch.cat(episode.actions)[: episode.steps]
    step = chunk * torch.arange(len(episode.actions))[:, None] + torch.arange(horizon)
    values = torch.stack(episode.values) + (shaping * progress(episode) if shaping else 0.0)
    return _Chunks(
        stacked(episode.inputs),
        ticks[step.clamp(max=episode.steps - 1)], step < episode.steps, (1 - values).clamp(min=LEAST_PRIORITY),
    )


def _newest(parts: list[_Chunks], capacity: int) -> _Chunks:
    """The last `capacity` decisions of all parts."""
    return _Chunks({name: newest([part.inputs[name] for part in parts], capacity) for name in parts[0].inputs},
                   *(newest([getattr(part, name) for part in parts], capacity) for name in ("actions", "valid", "priority")))
