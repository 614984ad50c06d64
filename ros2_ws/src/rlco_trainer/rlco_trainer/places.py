"""Where things are: in the twin the simulator knows it, and the policy's summary of a picture learns it.

A linear head reads the place of the named object and of its goal (SceneState.places) from `policy.summary`; its loss trains
the summary too. Every decision of every episode teaches, also of those that failed: unlike success replay it reaches the
states in which the policy fails. The head lives in the trainer alone, and the policy never sees the simulator's state.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rlco_common.errors import TrainingError
from rlco_policy.interface import ModelInputs, VLAPolicy
from rlco_trainer.batches import moved, newest, rows, stacked
from rlco_trainer.config import PlacesConfig
from rlco_trainer.rollout import Episode

SCALE_M = 0.05      # errors are counted in units of this


@dataclass
class PlaceBatch:
    """inputs of N decisions and the places [N, 6] then, metres."""

    inputs: ModelInputs
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def part(self, index: slice) -> "PlaceBatch":
        return PlaceBatch(rows(self.inputs, index), self.places[index])


class Places:
    """The head, and the newest `capacity` decisions that it learns from, on the CPU.

    Raises TrainingError for a policy without `summary`, and when nothing behind it trains.
    """

    def __init__(self, policy: VLAPolicy, config: PlacesConfig, seed: int):
        self.config = config
        try:
            summary = policy.summary(policy.example_inputs())
        except NotImplementedError as error:
            raise TrainingError(f"places.weight={config.weight}: {error}; implement summary() in the policy, or set "
                                "places.weight=0") from error
        if not summary.requires_grad:
            raise TrainingError(f"places.weight={config.weight}: no weight behind the policy's summary() is trained in this "
                                "stage; train more of it (for pi05: policy_config.rl_trains=all), or set places.weight=0")
        self.head = PlaceHead(summary.shape[-1], torch.Generator().manual_seed(seed)).to(policy.device)
        self._kept: PlaceBatch | None = None

    def __len__(self) -> int:
        return len(self._kept) if self._kept is not None else 0

    def add(self, episodes: list[Episode]) -> None:
        """Keep every decision of sampled episodes; the first ones also tell the head where things are on average."""
        new = PlaceBatch(stacked([inputs for episode in episodes for inputs in episode.inputs]),
                         torch.stack([places for episode in episodes for places in episode.places]))
        if self._kept is None:
            self.head.centre.copy_(new.places.mean(0))
        parts = [new] if self._kept is None else [self._kept, new]
        capacity = self.config.capacity
        self._kept = PlaceBatch({name: newest([part.inputs[name] for part in parts], capacity) for name in new.inputs},
                                newest([part.places for part in parts], capacity))

    def sample(self, policy: VLAPolicy, rng: np.random.Generator, generator: torch.Generator) -> PlaceBatch:
        """`batch_size` decisions, augmented as demonstrations are."""
        index = torch.from_numpy(rng.integers(len(self), size=self.config.batch_size))
        inputs = moved(rows(self._kept.inputs, index), policy.device)
        return PlaceBatch(policy.augment(inputs, generator), self._kept.places[index].to(policy.device))

    def state(self) -> dict:
        """For the run's checkpoint."""
        kept = None if self._kept is None else vars(self._kept)
        return {"head": self.head.state_dict(), "kept": kept}

    def restore(self, state: dict) -> None:
        self.head.load_state_dict(state["head"])
        self._kept = None if state["kept"] is None else PlaceBatch(**state["kept"])


class PlaceHead(nn.Module):
    """[B, width] -> places [B, 6] in metres, one linear map around `centre`."""

    def __init__(self, width: int, generator: torch.Generator, outputs: int = 6):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.register_buffer("centre", torch.zeros(outputs))
        with torch.no_grad():
            self.linear.weight.copy_(width**-0.5 * torch.randn(outputs, width, generator=generator))
            self.linear.bias.zero_()

    def forward(self, summary: Tensor) -> Tensor:
        return self.centre + SCALE_M * self.linear(summary.float())


def place_loss(policy: VLAPolicy, head: PlaceHead, batch: PlaceBatch) -> tuple[Tensor, Tensor]:
    """Huber loss [N] in units of SCALE_M, with gradient to head and policy, and the distance [N] in metres between where the
    named object is and where the head sees it."""
    seen = head(policy.summary(batch.inputs))
    error = (seen - batch.places) / SCALE_M
    loss = nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none").mean(1)
    return loss, (seen - batch.places)[:, :3].detach().norm(dim=1)
