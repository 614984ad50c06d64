"""`compact_flow`: flow matching with ReinFlow exploration noise (Zhang et al. 2025).

Time runs from 0 (noise) to 1 (action). A chain x_0 ~ N(0, I), x_{k+1} = x_k + v(x_k, k / K) / K + sigma_k * eps has the
likelihood N(x_0; 0, I) * prod_k N(x_{k+1}; mu_k, sigma_k^2), which PPO needs. Without the noise it is the ODE that is
deployed. Sampling and evaluation use the same time grid k / K.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlco_common.contract import Contract
from rlco_policy.compact.base import CompactPolicy
from rlco_policy.compact.config import CompactFlowConfig
from rlco_policy.compact.encoder import Prefix
from rlco_policy.compact.layers import Block, KeyValue, TimeEmbedding, value_head
from rlco_policy.guidance import ChunkGuidance
from rlco_policy.interface import (
    Evaluated,
    ModelInputs,
    PolicySpec,
    Sampled,
    normal,
    require_generator,
    uniform,
)
from rlco_policy.reinflow import HALF_LOG_2PI, exploration_std, join_entries, start_entries, transition_entries
from rlco_policy.statistics import Statistics


class CompactFlow(CompactPolicy):
    config_class = CompactFlowConfig
    real_time_chunking = True

    def __init__(self, config: CompactFlowConfig, contract: Contract, statistics: Statistics):
        super().__init__(config, contract, statistics)
        width, dim = config.encoder.width, contract.action.dim
        self.spec = PolicySpec(dim, config.horizon, config.chunk, len(statistics.names), self.cameras,
                               config.encoder.image_size, "flow")
        self.expert = ActionExpert(width, config.encoder.heads, config.layers, config.horizon, dim)
        self.plan_head = nn.Linear(width, dim)
        self.noise_head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))
        self.value_head = value_head(2 * width, config.value.hidden)
        self._std_max = config.noise_std[1]
        self.eval()

    def set_progress(self, fraction: float) -> None:
        start, end = self.config.noise_std[1], self.config.noise_std_end
        self._std_max = start if end is None else start + (end - start) * min(max(fraction, 0.0), 1.0)

    def sft_draws(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """noise [B, draws, horizon, A] and time [B, draws] in [0, 1), one time from each of `draws` equal strata."""
        draws = self.config.draws
        noise = normal((batch, draws, self.spec.horizon, self.spec.action_dim), generator, self.device)
        stratum = torch.arange(draws, device=self.device)
        return {"noise": noise, "time": (stratum + uniform((batch, draws), generator, self.device)) / draws}

    def sft_errors(self, inputs: ModelInputs, actions: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Flow matching: MSE between v(x_t, t) and a - eps on x_t = (1 - t) eps + t a, averaged over the draws."""
        count = self.config.draws
        target = self.normalizer.normalise(actions).repeat_interleave(count, 0)
        noise, time = draws["noise"].flatten(0, 1), draws["time"].flatten()
        mixed = torch.lerp(noise, target, time[:, None, None])
        memory = self.expert.read(self.encode(inputs))
        velocity, _ = self.expert(mixed, time, memory.repeat(count))
        flow = (velocity - (target - noise)).square().unflatten(0, (-1, count)).mean(1)
        plan = self.plan_error(self.plan_head(memory.plan), target[::count])
        metrics = {"flow_mse": float(flow.detach().mean()), "plan_mse": float(plan.detach().mean())}
        return flow + self.config.plan_weight * plan, metrics

    @torch.no_grad()
    def act(self, inputs: ModelInputs, *, temperature: float = 0.0, generator: torch.Generator | None = None,
            prev_chunk: Tensor | None = None, delay: int = 0, steps: int | None = None) -> Tensor:
        """Euler steps of the ODE from `temperature` times standard normal noise; from zero at temperature 0."""
        memory = self.expert.read(self.encode(inputs))
        shape = (len(inputs["proprio"]), self.spec.horizon, self.spec.action_dim)
        if temperature > 0:
            x = temperature * normal(shape, require_generator(generator, "act(temperature > 0)"), self.device)
        else:
            x = torch.zeros(shape, device=self.device)
        euler_steps = self.config.denoise_steps
        guidance = None if prev_chunk is None else ChunkGuidance(
            self.normalizer.normalise(prev_chunk.to(self.device)), delay, self.spec.horizon, euler_steps)
        for k in range(euler_steps):
            velocity, _ = self.expert(x, self._grid_time(k, len(x)), memory)
            if guidance is not None:
                velocity = guidance.correct(velocity, x, k / euler_steps)
            x = x + velocity / euler_steps
        return self.normalizer.denormalise(x[:, : steps or self.spec.chunk])

    @torch.no_grad()
    def sample(self, inputs: ModelInputs, *, generator: torch.Generator) -> Sampled:
        prefix = self.encode(inputs)
        memory = self.expert.read(prefix)
        x = normal((len(inputs["proprio"]), self.spec.horizon, self.spec.action_dim), generator, self.device)
        chain, entries = [x], [start_entries(x)]
        for k in range(self.config.denoise_steps):
            mean, std = self._transition(x, self._grid_time(k, len(x)), memory)
            x = mean + std * self._exploration(x.shape, generator)
            chain.append(x)
            entries.append(transition_entries(x, mean, std, self.config.noise_correlation))
        return Sampled(
            actions=self.normalizer.denormalise(x[:, : self.spec.chunk]),
            logprob=self._join(torch.stack(entries, 1)),
            value=self._value(prefix),
            trace={"chain": torch.stack(chain, 1)},
        )

    def evaluate(self, inputs: ModelInputs, trace: dict[str, Tensor]) -> Evaluated:
        """All K transitions of the stored chain [B, K + 1, horizon, A] in one pass of the expert."""
        chain, steps = trace["chain"], self.config.denoise_steps
        batch = len(chain)
        prefix = self.encode(inputs)
        time = torch.arange(steps, device=self.device).repeat(batch) / steps
        mean, std = self._transition(chain[:, :-1].flatten(0, 1), time, self.expert.read(prefix).repeat(steps))
        mean, std = mean.unflatten(0, (batch, steps)), std.unflatten(0, (batch, steps))
        entries = torch.cat([start_entries(chain[:, :1]),
                             transition_entries(chain[:, 1:], mean, std, self.config.noise_correlation)], 1)
        executed_std = std[:, :, : self.spec.chunk]
        entropy = (executed_std.log() + HALF_LOG_2PI + 0.5).mean((1, 2, 3))
        return Evaluated(self._join(entries), entropy, self._value(prefix))

    def value(self, inputs: ModelInputs) -> Tensor:
        with torch.no_grad():
            prefix = self.encode(inputs)
        return self._value(prefix)

    def _transition(self, x: Tensor, time: Tensor, memory: "ExpertMemory") -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_{k+1} given x_k, each [B, horizon, A]."""
        velocity, features = self.expert(x, time, memory)
        std = exploration_std(self.noise_head(features), self.config.noise_std[0], self._std_max)
        return x + velocity / self.config.denoise_steps, std

    def _exploration(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Standard normal [B, horizon, A] whose entries at different action steps have correlation noise_correlation."""
        noise, share = normal(shape, generator, self.device), self.config.noise_correlation
        if share == 0:
            return noise
        common = normal((shape[0], 1, shape[2]), generator, self.device)
        return math.sqrt(share) * common + math.sqrt(1 - share) * noise

    def _join(self, entries: Tensor) -> Tensor:
        return join_entries(entries, self.spec.chunk, self.config.logprob)

    def _value(self, prefix: Prefix) -> Tensor:
        features = torch.cat([prefix.tokens.mean(1), prefix.pooled], -1)
        return self.value_head(features.detach() if self.config.value.detach else features).squeeze(-1)

    def _grid_time(self, k: int, batch: int) -> Tensor:
        return torch.full((batch,), k / self.config.denoise_steps, device=self.device)


class ActionExpert(nn.Module):
    """adaRMS transformer over the action steps; it reads the prefix, the prefix never sees it."""

    def __init__(self, width: int, heads: int, layers: int, horizon: int, action_dim: int):
        super().__init__()
        self.time = TimeEmbedding(width)
        self.project_in = nn.Linear(action_dim, width)
        self.horizon = horizon
        self.plan = nn.Linear(width, horizon * width)
        self.blocks = nn.ModuleList(Block(width, heads, memory=True, condition_width=width) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.project_out = nn.Linear(width, action_dim)

    def read(self, prefix: Prefix) -> "ExpertMemory":
        """What the expert needs of the prefix; computed once per observation."""
        plan = self.plan(F.silu(prefix.pooled)).unflatten(-1, (self.horizon, -1))
        return ExpertMemory([block.memory(prefix.tokens) for block in self.blocks], prefix.pooled, plan)

    def forward(self, x: Tensor, time: Tensor, memory: "ExpertMemory") -> tuple[Tensor, Tensor]:
        """x [B, horizon, A] at time [B] -> velocity [B, horizon, A] and features [B, horizon, width]."""
        condition = F.silu(self.time(time) + memory.pooled)
        tokens = self.project_in(x) + memory.plan
        for block, pair in zip(self.blocks, memory.keys_values, strict=True):
            tokens = block(tokens, pair, condition=condition)
        features = self.norm(tokens)
        return self.project_out(features), features


@dataclass
class ExpertMemory:
    """The prefix as the expert sees it."""

    keys_values: list[KeyValue]
    pooled: Tensor          # [B, width]
    plan: Tensor            # [B, horizon, width], one linear map of the summary per action step

    def repeat(self, times: int) -> "ExpertMemory":
        """Each sample `times` times in a row, for several denoising times of one observation in a single pass."""
        def interleave(tensor):
            return tensor.repeat_interleave(times, 0)

        pairs = [(interleave(keys), interleave(values)) for keys, values in self.keys_values]
        return ExpertMemory(pairs, interleave(self.pooled), interleave(self.plan))
