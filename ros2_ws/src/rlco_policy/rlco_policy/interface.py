"""The interface between policies and everything that trains, evaluates or deploys them.

Actions at this interface are in the contract's physical units, `[B, steps, 7]`; every policy normalises inside. A
policy stays in eval mode in rollout and update alike, computes log-probabilities in float32, and draws every random number
from the `torch.Generator` it is given.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rlco_common.contract import ActionSpec, Contract
from rlco_common.errors import DataError
from rlco_policy.statistics import Statistics

ModelInputs = dict[str, Tensor]
"""What a policy reads, batch first and compact (uint8 images, token ids, normalised proprioception): store this."""


@dataclass(frozen=True)
class PolicySpec:
    """Shapes that trainers and nodes need. `horizon` steps are predicted, the first `chunk` of them executed."""

    action_dim: int
    horizon: int
    chunk: int
    proprio_dim: int
    cameras: tuple[str, ...]
    image_size: int
    family: Literal["tokens", "flow", "other"]

    def __post_init__(self):
        if not 1 <= self.chunk <= self.horizon:
            raise ValueError(f"chunk {self.chunk} must lie in 1..horizon ({self.horizon})")


@dataclass
class ObsBatch:
    """Raw observations. Images of another size than the policy's go through rlco_common's `encode_image`."""

    images: dict[str, Tensor]       # camera name -> uint8 [B, H, W, 3] RGB
    proprio: Tensor                 # float32 [B, S], physical units, rlco_common's encode_proprioception
    instruction: list[str]          # [B]

    def __post_init__(self):
        sizes = {len(self.proprio), len(self.instruction), *(len(image) for image in self.images.values())}
        if len(sizes) != 1:
            raise DataError(f"images, proprio and instruction disagree about the batch size: {sorted(sizes)}")


@dataclass
class Sampled:
    """A stochastic action chunk for RL, without gradient."""

    actions: Tensor                 # [B, chunk, A] physical units, within the contract's limits
    logprob: Tensor                 # [B, chunk, A] float32, one number per action element
    value: Tensor                   # [B]
    trace: dict[str, Tensor]        # batch first; what `evaluate` needs to score this very sample again


@dataclass
class Evaluated:
    """A stored sample scored again, with gradient."""

    logprob: Tensor                 # [B, chunk, A]; equals Sampled.logprob while the weights are the same
    entropy: Tensor                 # [B] nats per action element
    value: Tensor                   # [B]


@dataclass
class SftOut:
    loss: Tensor                    # scalar: (weighted) mean of per_sample, with gradient
    per_sample: Tensor              # [B] mean over a sample's valid action elements, detached
    metrics: dict[str, float] = field(default_factory=dict)


class ActionNormalizer(nn.Module):
    """Physical actions <-> [-1, 1] by the limits of the contract."""

    def __init__(self, action: ActionSpec):
        super().__init__()
        self.register_buffer("low", torch.tensor(action.low, dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.tensor(action.high, dtype=torch.float32), persistent=False)

    def normalise(self, actions: Tensor) -> Tensor:
        """[..., A] physical -> [-1, 1]; values beyond the limits map beyond 1."""
        return 2.0 * (actions.float() - self.low) / (self.high - self.low) - 1.0

    def denormalise(self, actions: Tensor) -> Tensor:
        """[..., A] normalised -> physical, clipped to the limits."""
        physical = self.low + 0.5 * (actions.float() + 1.0) * (self.high - self.low)
        return torch.minimum(torch.maximum(physical, self.low), self.high)


class VLAPolicy(nn.Module, ABC):
    """A vision-language-action policy. Built by `registry.create_policy` or loaded by `checkpoint.load_policy`."""

    config_class: ClassVar[type]
    real_time_chunking: ClassVar[bool] = False      # act() continues a `prev_chunk`
    spec: PolicySpec

    def __init__(self, config: Any, contract: Contract, statistics: Statistics):
        super().__init__()
        statistics.require_names(contract.proprioception_names)
        self.config, self.contract, self.statistics = config, contract, statistics
        self.normalizer = ActionNormalizer(contract.action)

    def train(self, mode: bool = True):
        """Policies stay in eval mode: a dropout that differs between rollout and update would corrupt the PPO ratio."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return self.normalizer.low.device

    @abstractmethod
    def preprocess(self, obs: ObsBatch, *, train: bool = False,
                   generator: torch.Generator | None = None) -> ModelInputs:
        """Resize, tokenise, normalise. With `train`, augmented as well: `augment(preprocess(obs), generator)`."""

    @abstractmethod
    def augment(self, inputs: ModelInputs, generator: torch.Generator) -> ModelInputs:
        """Randomly augmented copy for supervised training; same dtypes and shapes. Never used in RL or deployment."""

    def sft_loss(self, inputs: ModelInputs, actions: Tensor, valid: Tensor | None = None, *,
                 generator: torch.Generator | None = None, draws: dict[str, Tensor] | None = None,
                 weights: Tensor | None = None) -> SftOut:
        """Supervised loss (paper, eq. 1). actions [B, horizon, A] physical; valid [B, horizon] bool, None = all.

        `draws` are the loss's random numbers (see sft_draws); without them they are drawn from `generator`. The loss
        is the mean over samples of each sample's mean, so a batch may be split and its parts added by their sizes;
        with `weights` [B] it is the sum of the samples' means times their weights.
        """
        if draws is None:
            draws = self.sft_draws(len(actions), require_generator(generator, "sft_loss"))
        errors, metrics = self.sft_errors(inputs, actions, draws)
        weight = torch.ones_like(errors) if valid is None else valid.to(errors).unsqueeze(-1).expand_as(errors)
        per_sample = (errors * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
        loss = per_sample.mean() if weights is None else (per_sample * weights.to(per_sample)).sum()
        return SftOut(loss, per_sample.detach(), metrics)

    @abstractmethod
    def sft_draws(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Every random number that the supervised loss of `batch` samples needs, batch first; may be empty."""

    @abstractmethod
    def sft_errors(self, inputs: ModelInputs, actions: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Per-element supervised errors [B, horizon, A] with gradient, and metrics."""

    @abstractmethod
    def act(self, inputs: ModelInputs, *, temperature: float = 0.0, generator: torch.Generator | None = None,
            prev_chunk: Tensor | None = None, delay: int = 0, steps: int | None = None) -> Tensor:
        """Deployment: [B, steps, A] physical, no gradient. Deterministic at temperature 0; above, give a generator.

        steps: how many of the predicted steps to return, 1..horizon; None: `chunk`. prev_chunk [B, n, A] physical: what
        is left of the chunk under way, from this chunk's first step on; its first `delay` steps will have been executed
        when this chunk arrives. Only policies with `real_time_chunking` are given one (see guidance.py).
        """

    @abstractmethod
    def sample(self, inputs: ModelInputs, *, generator: torch.Generator) -> Sampled:
        """RL rollout: a stochastic chunk with log-probability and value, no gradient."""

    @abstractmethod
    def evaluate(self, inputs: ModelInputs, trace: dict[str, Tensor]) -> Evaluated:
        """PPO update: log-probability, entropy and value of a stored sample under the present weights."""

    def trace_bytes(self) -> int:
        """Bytes of a sample's trace beyond its chunk or chain, where they count: for who plans a rollout's memory."""
        return 0

    @abstractmethod
    def value(self, inputs: ModelInputs) -> Tensor:
        """[B] state value, with gradient to the "value" parameters alone: the rest is read as it is."""

    def summary(self, inputs: ModelInputs) -> Tensor:
        """[B, D] what the policy's heads know of the observation, with gradient; Stage II may teach it where things are.

        Policies without one cannot be trained with `places`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no summary() of an observation")

    @abstractmethod
    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters (requires_grad) by role: "policy", "value", for flow policies "noise"; each exactly once."""

    def set_stage(self, stage: Literal["sft", "rl"]) -> None:
        """Told before an optimizer is made: a large policy may train fewer of its parameters in RL."""

    def set_progress(self, fraction: float) -> None:
        """Tell the share of RL training that is done, in [0, 1]; schedules (exploration noise) follow it."""

    # -- checkpoints: overridden by policies with a public base model (see pretrained.py)

    @classmethod
    def blank(cls, config: Any, contract: Contract, statistics: Statistics, assets: Path) -> "VLAPolicy":
        """A policy whose weights are about to be loaded; `assets` is the folder that save_assets wrote."""
        return cls(config, contract, statistics)

    def save_assets(self, directory: Path) -> None:
        """Write what the policy needs beside weights and config (a tokenizer) into an empty folder."""

    def left_to_base(self) -> frozenset[str]:
        """Names of the state that checkpoints leave out, because the base model holds them unchanged."""
        return frozenset()

    def base_reference(self) -> dict[str, Any] | None:
        """Plain data that finds the base model again; None without one."""
        return None

    def load_base(self, names: Iterable[str], reference: dict[str, Any]) -> None:
        """Load what a checkpoint left out from the base model of `reference`. Raises DataError when that has changed."""
        raise NotImplementedError(f"{type(self).__name__} has no base model")

    def example_inputs(self, batch: int = 1) -> ModelInputs:
        """Valid inputs of neutral content, for warm-up and tests."""
        size, first_task = self.spec.image_size, next(iter(self.contract.tasks.values()))
        instruction = first_task.instruction(0, **{name: values[0] for name, values in first_task.slots.items()})
        return self.preprocess(ObsBatch(
            images={camera: torch.full((batch, size, size, 3), 128, dtype=torch.uint8) for camera in self.spec.cameras},
            proprio=torch.from_numpy(np.repeat(self.statistics.mean[None], batch, 0)),
            instruction=[instruction] * batch,
        ))


def require_generator(generator: torch.Generator | None, what: str) -> torch.Generator:
    if generator is None:
        raise ValueError(f"{what} draws random numbers: pass generator=torch.Generator()")
    return generator


def normal(shape, generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal float32, drawn on the generator's device: a CPU generator gives the same numbers everywhere."""
    return torch.randn(shape, generator=generator, device=generator.device).to(device)


def uniform(shape, generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform float32 in [0, 1); see normal."""
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


def draw(log_probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One category for each distribution [..., C] -> int64 [...], drawn on the generator's device; see normal."""
    probabilities = log_probabilities.exp().to(generator.device)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1).to(log_probabilities.device)
