"""Optimizer steps: those of Stage II, PPO plus beta times the real loss (paper, eq. 5) and success replay, and what Stage I
shares with them."""

import math
from pathlib import Path

import torch

from rlco_common.errors import TrainingError
from rlco_policy.interface import VLAPolicy
from rlco_trainer.batches import SftBatch, accumulate, joined
from rlco_trainer.config import StageTwoConfig
from rlco_trainer.peers import ALONE, Peers
from rlco_trainer.places import PlaceBatch, PlaceHead, place_loss
from rlco_trainer.ppo import RlBatch, total_loss


def make_optimizer(policy: VLAPolicy, config: StageTwoConfig) -> torch.optim.Optimizer:
    rates = {"policy": config.lr, "value": config.value_lr, "noise": config.noise_lr}
    return adamw([{"params": group, "lr": rates[name], "name": name} for name, group in policy.param_groups().items()],
                 config.weight_decay)


def adamw(groups: list, weight_decay: float, **options) -> torch.optim.AdamW:
    """AdamW in one kernel per group, which is several times as fast as one per tensor.

    The kernel takes for granted that a gradient lies in memory as its parameter does (autograd sees to that).
    """
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True, **options)


def learning_rate_factor(step: int, *, warmup: int, steps: int, final: float) -> float:
    """Of the optimizer step after `step` others: linear warm-up, then a cosine down to `final`, reached after `steps` and
    kept. steps=0: no decay."""
    if step < warmup:
        return (step + 1) / warmup
    if not steps:
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def acting_weights(policy: VLAPolicy) -> list[torch.nn.Parameter]:
    """Every trainable weight but the critic's."""
    return [parameter for name, group in policy.param_groups().items() if name != "value" for parameter in group]


def update_step(policy: VLAPolicy, optimizer: torch.optim.Optimizer, rl: RlBatch, sft: SftBatch | None,
                config: StageTwoConfig, *, beta: float, critic_only: bool = False,
                peers: Peers = ALONE) -> dict[str, float]:
    """One optimizer step on L_total (eq. 5); micro-batches and processes add up to the whole batch's gradient."""
    optimizer.zero_grad(set_to_none=True)
    rl_parts = peers.parts(len(rl), config.micro_batches)
    sft_parts = peers.parts(len(sft), config.micro_batches) if sft is not None else []
    totals: dict[str, float] = {}
    for i in range(max(len(rl_parts), len(sft_parts))):
        rl_part = rl.part(rl_parts[i]) if i < len(rl_parts) else None
        sft_part = sft.part(sft_parts[i]) if i < len(sft_parts) else None
        rl_share = len(rl_part) / len(rl) if rl_part else 0.0
        sft_share = len(sft_part) / len(sft) if sft_part else 0.0
        loss, metrics = total_loss(policy, rl_part, sft_part, beta, config.ppo,
                                   rl_share=rl_share, sft_share=sft_share, critic_only=critic_only)
        loss.backward()
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value * (sft_share if name.startswith("sft/") else rl_share)
    totals = peers.sum_values(totals)
    acting, critic = acting_weights(policy), policy.param_groups()["value"]
    peers.sum_gradients(critic if critic_only else [*acting, *critic])
    totals["rl/value_grad_norm"] = float(torch.nn.utils.clip_grad_norm_(critic, config.max_grad_norm))
    if not critic_only:
        totals["rl/grad_norm"] = float(torch.nn.utils.clip_grad_norm_(acting, config.max_grad_norm))
    require_finite(totals, config.out, {"rl": rl, "sft": sft}, peers)
    optimizer.step()
    return totals


def replay_step(policy: VLAPolicy, optimizer: torch.optim.Optimizer, worked: SftBatch, real: SftBatch | None,
                config: StageTwoConfig, *, beta: float, peers: Peers = ALONE,
                places: tuple[PlaceHead, PlaceBatch] | None = None) -> dict[str, float]:
    """One optimizer step on L_SFT(what worked in the twin) + beta * L_SFT(real), in one pass, and on where things are; split up
    as in update_step."""
    optimizer.zero_grad(set_to_none=True)
    sources = {"replay/loss": (worked, 1.0)} | ({"replay/real_loss": (real, beta)} if real is not None else {})
    batch = joined([source for source, _ in sources.values()])
    weights = torch.cat([torch.full((len(source),), factor / len(source)) for source, factor in sources.values()])
    losses = accumulate(policy, batch, weights, peers.parts(len(batch), config.micro_batches))
    parts = losses.split([len(source) for source, _ in sources.values()])
    found = {name: float(part.mean()) for name, part in zip(sources, parts, strict=True)}
    acting = acting_weights(policy)
    learners = acting
    if places is not None:
        head, seen = places
        found |= _place_gradients(policy, head, seen, config, peers)
        learners = [*acting, *head.parameters()]
    totals = peers.sum_values(found)
    peers.sum_gradients(learners)
    totals["replay/grad_norm"] = float(torch.nn.utils.clip_grad_norm_(acting, config.max_grad_norm))
    require_finite(totals, config.out, {"replay": worked, "sft": real, "places": seen if places is not None else None}, peers)
    optimizer.step()
    return totals


def _place_gradients(policy: VLAPolicy, head: PlaceHead, seen: PlaceBatch, config: StageTwoConfig,
                     peers: Peers) -> dict[str, float]:
    """Add the gradient of this process's part of places.weight times the mean place loss; its share of the metrics."""
    found = {"places/loss": 0.0, "places/error_cm": 0.0}
    for index in peers.parts(len(seen), config.micro_batches):
        loss, distance = place_loss(policy, head, seen.part(index))
        (config.places.weight * loss.sum() / len(seen)).backward()
        found["places/loss"] += float(loss.detach().sum()) / len(seen)
        found["places/error_cm"] += 100 * float(distance.sum()) / len(seen)
    return found


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every value over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def require_finite(totals: dict[str, float], out: Path, batches: dict, peers: Peers = ALONE) -> None:
    """Raise TrainingError, with the batch kept in `out/not_finite.pt`, when a loss or a gradient's norm is not finite.

    Called before the optimizer's step, so no weight has moved then.
    """
    if all(math.isfinite(value) for value in totals.values()):
        return
    dump = out / "not_finite.pt"
    if peers.main:
        out.mkdir(parents=True, exist_ok=True)
        torch.save({name: vars(batch) for name, batch in batches.items() if batch is not None} | {"terms": totals}, dump)
    raise TrainingError(f"a loss or gradient is not finite: {totals}; the batch is in {dump}. Lower lr, or check the dataset "
                        "for bad values")
