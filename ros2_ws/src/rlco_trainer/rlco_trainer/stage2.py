"""Stage II: PPO in parallel twins, anchored by the supervised loss on real data (paper, IV-B, eq. 5)."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from rlco_common.contract import Contract, load_contract
from rlco_common.errors import TrainingError
from rlco_common.seeds import RL, SELECTION
from rlco_policy.checkpoint import load_policy, read_description, save_policy
from rlco_policy.interface import VLAPolicy
from rlco_trainer.batches import SftBatch, held_out_loss, sft_batch, slices
from rlco_trainer.config import StageTwoConfig, save_config
from rlco_trainer.dataset.reader import DemoSet, load_demos
from rlco_trainer.metrics import Metrics
from rlco_trainer.ppo import RlBatch, total_loss
from rlco_trainer.rollout import collate, open_pool, run_episodes
from rlco_trainer.run_state import Randomness, latest_run, load_run, save_run

STALLED_ITERATIONS = 5


class StageTwo:
    """The state of a Stage II run: policy, optimizer, random streams, data. `train_stage2` drives it."""

    def __init__(self, config: StageTwoConfig, contract: Contract):
        self.config, self.contract = config, contract
        self.randomness = Randomness(config.seed)
        self.step, self.initial_success, self.elapsed_s = 0, None, 0.0
        checkpoint = latest_run(config.out)
        if checkpoint is None:
            self.policy, state = load_policy(config.start, contract), None
        else:
            self.policy, state = load_run(checkpoint, contract)
        self.policy.to(config.device)
        self.optimizer = make_optimizer(self.policy, config)
        self.lineage = {
            "stage": 2, "seed": config.seed, "beta": config.beta, "domain": config.domain,
            "start": {"path": str(config.start), "digest": read_description(config.start)["digest"]},
        }
        self.real: DemoSet | None = None
        self.held_out: DemoSet | None = None
        if config.real:
            self._load_real()
        if state is not None:
            self._restore(state)

    def _load_real(self) -> None:
        demos = load_demos(Path(self.config.real), self.contract, self.policy.spec.image_size)
        self.lineage["real_dataset"] = {"path": str(demos.root), "content_hash": demos.content_hash}
        self.real, self.held_out = demos.split(self.config.held_out)

    def _restore(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.randomness.restore(state["random"])
        self.step = state["step"]
        self.initial_success = state["extra"]["initial_success"]
        self.elapsed_s = state["extra"]["elapsed_s"]

    def save(self) -> None:
        extra = {"initial_success": self.initial_success, "elapsed_s": self.elapsed_s}
        save_run(self.config.out, self.step, self.policy, self.optimizer, self.randomness,
                 {**self.lineage, "step": self.step}, extra)

    def measure(self, pool) -> float:
        """Deterministic success rate in the twin on seeds that are neither trained on nor evaluated on."""
        episodes = run_episodes(self.policy, pool, list(SELECTION[: self.config.measure_episodes]))
        return sum(episode.success for episode in episodes) / len(episodes)

    def collect(self, pool) -> tuple[RlBatch, dict[str, float]]:
        """One iteration's episodes, on seeds never seen before."""
        config = self.config
        first = self.step * config.episodes + config.seed * 50_000_000
        seeds = list(RL[first : first + config.episodes])
        started = time.monotonic()
        episodes = run_episodes(self.policy, pool, seeds, generator=self.randomness.torch)
        seconds = time.monotonic() - started
        rates = torch.tensor([float(episode.success) for episode in episodes])
        steps = sum(episode.steps for episode in episodes)
        metrics = {
            "rollout/success": float(rates.mean()), "rollout/return_variance": float(rates.var(unbiased=False)),
            "rollout/failure": sum(episode.failure for episode in episodes) / len(episodes),
            "rollout/episode_steps": steps / len(episodes), "rollout/steps_per_s": steps / seconds,
            "time/rollout_s": seconds,
        }
        return collate(episodes, config.ppo.gamma, config.ppo.gae_lambda), metrics

    def update(self, rollout: RlBatch) -> dict[str, float]:
        """PPO epochs over the rollout; every optimizer step adds beta times the loss of a fresh real batch."""
        config, ppo = self.config, self.config.ppo
        critic_only = self.step < config.critic_warmup
        started, rows = time.monotonic(), []
        for rl in self._minibatches(rollout):
            sft = None if critic_only or config.beta == 0 else self._real_batch()
            metrics = update_step(self.policy, self.optimizer, rl, sft, config, critic_only=critic_only)
            rows.append(metrics)
            if metrics["rl/kl"] > ppo.target_kl and not critic_only:
                break
        mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return {**mean, "rl/updates": float(len(rows)), "rl/kl_last": rows[-1]["rl/kl"],
                "time/update_s": time.monotonic() - started,
                "rl/explained_variance": explained_variance(rollout.value, rollout.returns)}

    def _minibatches(self, rollout: RlBatch) -> Iterator[RlBatch]:
        for _ in range(self.config.ppo.epochs):
            order = torch.randperm(len(rollout), generator=self.randomness.torch)
            for part in slices(len(rollout), max(1, round(len(rollout) / self.config.ppo.minibatch_size))):
                yield rollout.part(order[part])

    def _real_batch(self) -> SftBatch:
        demos = self.real.sample(self.config.sft_batch_size, self.policy.spec.horizon, self.randomness.numpy)
        return sft_batch(self.policy, demos, self.randomness.torch, augment=True)


def train_stage2(config: StageTwoConfig, *, stop_after: int | None = None, quiet: bool = False) -> Path:
    """Run Stage II, resuming from the run's newest checkpoint; write the policy to `out/policy` and return that path.

    Raises TrainingError when the start policy does not succeed measurably in the twin (paper, Fig. 5: RL cannot start
    from there; set min_initial_success=0 to try anyway) or when the return has had no variance for several iterations.
    """
    torch.set_num_threads(config.threads)
    contract = load_contract(config.contract)
    run = StageTwo(config, contract)
    save_config(config, config.out)
    last = min(config.iterations, run.step + stop_after) if stop_after else config.iterations
    label = f"stage II {config.out.name}"
    with (open_pool(contract, run.policy, config.task, config.domain, scenes=config.scenes, workers=config.workers,
                    backend=config.backend) as pool,
          Metrics(config.out, total=config.iterations, start=run.step, label=label, quiet=quiet) as metrics):
        if run.initial_success is None:
            run.initial_success = _require_initial_success(run, pool)
            metrics.log(0, {"twin/success": run.initial_success, **_monitor(run)})
        stalled = 0
        while run.step < last and not _out_of_time(run):
            started = time.monotonic()
            run.policy.set_progress(run.step / config.iterations)
            rollout, row = run.collect(pool)
            row |= run.update(rollout)
            run.step += 1
            stalled = stalled + 1 if row["rollout/return_variance"] == 0.0 else 0
            row |= _monitor(run)
            if run.step % config.measure_every == 0 or run.step == last:
                row["twin/success"] = run.measure(pool)
            metrics.log(run.step, row)
            metrics.progress(success=row["rollout/success"], kl=row["rl/kl"], real=row.get("real/held_out_loss", math.nan))
            run.elapsed_s += time.monotonic() - started
            if run.step % config.save_every == 0 or run.step == last:
                run.save()
            if stalled >= STALLED_ITERATIONS:
                raise TrainingError(f"every episode of the last {stalled} iterations had the same return "
                                    f"({row['rollout/success']:.0%} success): RL has nothing to learn from. "
                                    "Make the task's start states harder or easier, or train Stage I for longer")
        run.save()
    return save_policy(run.policy, config.out / "policy", {**run.lineage, "step": run.step})


def update_step(policy: VLAPolicy, optimizer: torch.optim.Optimizer, rl: RlBatch, sft: SftBatch | None,
                config: StageTwoConfig, *, critic_only: bool = False) -> dict[str, float]:
    """One optimizer step on L_total (eq. 5); the micro-batches add up to the whole batch's gradient."""
    optimizer.zero_grad(set_to_none=True)
    rl_parts = slices(len(rl), config.micro_batches)
    sft_parts = slices(len(sft), config.micro_batches) if sft is not None else []
    totals: dict[str, float] = {}
    for i in range(max(len(rl_parts), len(sft_parts))):
        rl_part = rl.part(rl_parts[i]) if i < len(rl_parts) else None
        sft_part = sft.part(sft_parts[i]) if i < len(sft_parts) else None
        rl_share = len(rl_part) / len(rl) if rl_part else 0.0
        sft_share = len(sft_part) / len(sft) if sft_part else 0.0
        loss, metrics = total_loss(policy, rl_part, sft_part, config.beta, config.ppo,
                                   rl_share=rl_share, sft_share=sft_share, critic_only=critic_only)
        loss.backward()
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value * (sft_share if name.startswith("sft/") else rl_share)
    if not all(math.isfinite(value) for value in totals.values()):
        raise TrainingError(f"Stage II: a loss term is not finite: {totals}; lower lr, or check the real dataset")
    groups = policy.param_groups()
    acting = [parameter for name, group in groups.items() if name != "value" for parameter in group]
    totals["rl/grad_norm"] = float(torch.nn.utils.clip_grad_norm_(acting, config.max_grad_norm))
    torch.nn.utils.clip_grad_norm_(groups["value"], config.max_grad_norm)
    if critic_only:
        for parameter in acting:
            parameter.grad = None
    optimizer.step()
    return totals


def make_optimizer(policy: VLAPolicy, config: StageTwoConfig) -> torch.optim.Optimizer:
    rates = {"policy": config.lr, "value": config.value_lr, "noise": config.noise_lr}
    return torch.optim.AdamW([{"params": group, "lr": rates[name], "name": name}
                              for name, group in policy.param_groups().items()], weight_decay=config.weight_decay)


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); 1 is a perfect critic, 0 no better than the mean."""
    variance = returns.var(unbiased=False)
    return float(1 - (returns - values).var(unbiased=False) / variance) if variance > 0 else 0.0


def _monitor(run: StageTwo) -> dict[str, float]:
    """The forgetting monitor: supervised loss on held-out real demonstrations."""
    return {} if run.held_out is None else {"real/held_out_loss": held_out_loss(run.policy, run.held_out)}


def _require_initial_success(run: StageTwo, pool) -> float:
    success = run.measure(pool)
    if success < run.config.min_initial_success:
        raise TrainingError(
            f"{run.config.start} succeeds in {success:.0%} of {run.config.measure_episodes} twin episodes, less than "
            f"min_initial_success = {run.config.min_initial_success:.0%}: RL hardly starts from there (paper, Fig. 5). "
            "Train Stage I with more simulated demonstrations, or set min_initial_success=0 to try anyway")
    return success


def _out_of_time(run: StageTwo) -> bool:
    return 0 < run.config.time_limit_s <= run.elapsed_s


