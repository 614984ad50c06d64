"""Stage I: supervised co-training on real and simulated demonstrations (paper, III-C, eq. 2 and 4)."""

import math
from pathlib import Path

import numpy as np
import torch

from rlco_common.contract import Contract, load_contract
from rlco_common.errors import TrainingError
from rlco_policy.checkpoint import save_policy
from rlco_policy.interface import VLAPolicy
from rlco_policy.registry import create_policy
from rlco_policy.statistics import Statistics
from rlco_trainer.batches import SftBatch, held_out_loss, sft_batch, sft_loss, slices
from rlco_trainer.config import StageOneConfig, save_config
from rlco_trainer.dataset.reader import DemoSet, load_demos, load_proprioception, sample_cotraining
from rlco_trainer.metrics import Metrics
from rlco_trainer.run_state import Randomness, latest_run, load_run, save_run


def train_stage1(config: StageOneConfig, *, stop_after: int | None = None, quiet: bool = False) -> Path:
    """Train, resuming from the run's newest checkpoint, and write the policy to `out/policy`. Returns that path.

    stop_after: end after this many steps of this call, with a checkpoint, as an interrupted run would.
    """
    torch.set_num_threads(config.threads)
    contract = load_contract(config.contract)
    policy, optimizer, randomness, step = _start(config, contract)
    real, held_out, sim = _load_data(config, contract, policy)
    save_config(config, config.out)
    lineage = _lineage(config, real, sim)
    last = min(config.steps, step + stop_after) if stop_after else config.steps
    with Metrics(config.out, total=config.steps, start=step, label=f"stage I {config.out.name}", quiet=quiet) as metrics:
        while step < last:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * learning_rate_factor(config, step)
            demos, _ = sample_cotraining(real, sim, config.alpha, config.batch_size, policy.spec.horizon, randomness.numpy)
            batch = sft_batch(policy, demos, randomness.torch, augment=True)
            loss, grad_norm = sft_step(policy, optimizer, batch, config)
            step += 1
            shown = {}
            if step % config.log_every == 0 or step == last:
                shown = {"loss": loss}
                metrics.log(step, {"sft/loss": loss, "sft/grad_norm": grad_norm, "lr": optimizer.param_groups[0]["lr"]})
            if held_out is not None and (step % config.monitor_every == 0 or step == last):
                metrics.log(step, {"real/held_out_loss": held_out_loss(policy, held_out)})
            metrics.progress(**shown)
            if step % config.save_every == 0 or step == last:
                save_run(config.out, step, policy, optimizer, randomness, {**lineage, "step": step})
    return save_policy(policy, config.out / "policy", {**lineage, "step": step})


def sft_step(policy: VLAPolicy, optimizer: torch.optim.Optimizer, batch: SftBatch, config) -> tuple[float, float]:
    """One optimizer step on one batch, in `micro_batches` parts that add up to the whole batch's gradient."""
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part in slices(len(batch), config.micro_batches):
        share = (part.stop - part.start) / len(batch)
        loss = sft_loss(policy, batch.part(part)).loss * share
        loss.backward()
        total += float(loss.detach())
    if not math.isfinite(total):
        raise TrainingError(f"the supervised loss became {total}; lower lr, or check the dataset for bad values")
    grad_norm = torch.nn.utils.clip_grad_norm_(policy.param_groups()["policy"], config.max_grad_norm)
    optimizer.step()
    return total, float(grad_norm)


def learning_rate_factor(config: StageOneConfig, step: int) -> float:
    """Linear warm-up, then a cosine to `final_lr_fraction`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_lr_fraction + (1 - config.final_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def _start(config: StageOneConfig, contract: Contract):
    randomness = Randomness(config.seed)
    checkpoint = latest_run(config.out)
    if checkpoint is not None:
        policy, state = load_run(checkpoint, contract)
        randomness.restore(state["random"])
    else:
        proprioception = np.concatenate([load_proprioception(Path(root)) for root in (config.real, config.sim) if root])
        statistics = Statistics.from_proprioception(contract.proprioception_names, proprioception)
        policy = create_policy(config.policy, contract, statistics, config.policy_config, seed=config.seed)
    policy.to(config.device)
    optimizer = torch.optim.AdamW(policy.param_groups()["policy"], lr=config.lr, weight_decay=config.weight_decay)
    if checkpoint is not None:
        optimizer.load_state_dict(state["optimizer"])
    return policy, optimizer, randomness, state["step"] if checkpoint is not None else 0


def _load_data(config: StageOneConfig, contract: Contract, policy: VLAPolicy):
    real = held_out = sim = None
    if config.real:
        real, held_out = load_demos(Path(config.real), contract, policy.spec.image_size).split(config.held_out)
    if config.sim:
        sim = load_demos(Path(config.sim), contract, policy.spec.image_size)
    return real, held_out, sim


def _lineage(config: StageOneConfig, real: DemoSet | None, sim: DemoSet | None) -> dict:
    return {
        "stage": 1, "seed": config.seed, "alpha": config.alpha,
        **{f"{name}_dataset": {"path": str(demos.root), "content_hash": demos.content_hash, "episodes": demos.episodes}
           for name, demos in (("real", real), ("sim", sim)) if demos is not None},
    }
