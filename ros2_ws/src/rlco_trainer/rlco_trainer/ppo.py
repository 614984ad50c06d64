"""PPO on action chunks, and the total loss of Stage II (paper, IV-B, eq. 5)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlco_policy.interface import ModelInputs, VLAPolicy
from rlco_trainer.batches import SftBatch, moved, rows, sft_loss
from rlco_trainer.config import PpoConfig


@dataclass
class RlBatch:
    """Chunk samples of finished episodes, on the CPU until `to` moves a minibatch. value, advantage, returns: [N]; logprob:
    [N, 1] of the chunk or [N, chunk] of its actions, see joint_logprob."""

    inputs: ModelInputs
    trace: dict[str, Tensor]
    logprob: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor

    def __len__(self) -> int:
        return len(self.logprob)

    def part(self, index) -> "RlBatch":
        return RlBatch(rows(self.inputs, index), rows(self.trace, index), self.logprob[index], self.value[index],
                       self.advantage[index], self.returns[index])

    def to(self, device: torch.device | str) -> "RlBatch":
        """The same on a device."""
        return RlBatch(moved(self.inputs, device), moved(self.trace, device), self.logprob.to(device), self.value.to(device),
                       self.advantage.to(device), self.returns.to(device))


def generalized_advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages, returns) [T] of one finished episode; nothing follows its last step (Schulman et al. 2016)."""
    advantages = torch.zeros_like(values)
    following = next_value = 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_value - values[t]
        following = delta + gamma * lam * following
        advantages[t] = following
        next_value = values[t]
    return advantages, advantages + values


def shaped(rewards: Tensor, potential: Tensor, gamma: float) -> Tensor:
    """Rewards [T] of one finished episode plus gamma * potential after the step - potential [T] before it, 0 at the end.

    Potential-based shaping (Ng et al. 1999) leaves the best policy what it is: every return falls by the potential of the
    state it starts from, whatever is done there. It only tells earlier which actions led on.
    """
    return rewards + gamma * torch.cat([potential[1:], potential.new_zeros(1)]) - potential


def joint_logprob(logprob: Tensor, level: Literal["chunk", "action"]) -> Tensor:
    """[B, chunk, A] -> log-probability [B, 1] of the chunk, or [B, chunk] of each action in it."""
    return logprob.sum((1, 2)).unsqueeze(1) if level == "chunk" else logprob.sum(2)


def rl_loss(policy: VLAPolicy, batch: RlBatch, config: PpoConfig, *, critic_only: bool = False) -> tuple[Tensor, dict]:
    """Clipped PPO surrogate, clipped Huber value loss and entropy bonus, each a mean over the batch's samples.

    critic_only: the value loss alone, whose gradient reaches the critic's own parameters and nothing else.
    """
    if critic_only:
        value_loss = clipped_value_loss(policy.value(batch.inputs), batch, config)
        return config.value_weight * value_loss, {"rl/value_loss": float(value_loss.detach())}
    scored = policy.evaluate(batch.inputs, batch.trace)
    log_ratio = joint_logprob(scored.logprob, config.level) - batch.logprob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    advantage = batch.advantage.unsqueeze(1)
    surrogate = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    value_loss = clipped_value_loss(scored.value, batch, config)
    loss = (config.value_weight * value_loss + config.surrogate_weight * surrogate
            - config.entropy_weight * scored.entropy.mean())
    with torch.no_grad():
        metrics = {
            "rl/surrogate": float(surrogate), "rl/value_loss": float(value_loss),
            "rl/entropy": float(scored.entropy.mean()),
            "rl/kl": float((ratio - 1 - log_ratio).mean()),
            "rl/clip_fraction": float(((ratio - 1).abs() > config.clip).float().mean()),
        }
    return loss, metrics


def clipped_value_loss(value: Tensor, batch: RlBatch, config: PpoConfig) -> Tensor:
    """Huber loss of the value [N], or of the value held near its old one where that is larger; a mean."""
    near = batch.value + (value - batch.value).clamp(-config.value_clip, config.value_clip)
    return torch.maximum(
        torch.nn.functional.huber_loss(value, batch.returns, reduction="none", delta=config.huber_delta),
        torch.nn.functional.huber_loss(near, batch.returns, reduction="none", delta=config.huber_delta),
    ).mean()


def total_loss(policy: VLAPolicy, rl: RlBatch | None, sft: SftBatch | None, beta: float, config: PpoConfig, *,
               rl_share: float = 1.0, sft_share: float = 1.0, critic_only: bool = False) -> tuple[Tensor, dict]:
    """L_total = L_RL + beta * L_SFT(real) (eq. 5); the shares weigh a micro-batch within its whole batch."""
    total, metrics = torch.zeros((), device=policy.device), {}
    if rl is not None:
        loss, metrics = rl_loss(policy, rl, config, critic_only=critic_only)
        total = total + rl_share * loss
    if sft is not None and beta > 0 and not critic_only:
        supervised = sft_loss(policy, sft).loss
        total = total + beta * sft_share * supervised
        metrics["sft/loss"] = float(supervised.detach())
    return total, metrics


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); 1 is a perfect critic, 0 no better than the mean."""
    variance = returns.var(unbiased=False)
    return float(1 - (returns - values).var(unbiased=False) / variance) if variance > 0 else 0.0
