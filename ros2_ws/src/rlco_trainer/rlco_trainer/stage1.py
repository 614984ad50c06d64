"""Stage I: supervised co-training on real and simulated demonstrations (paper, III-C, eq. 2 and 4)."""

import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from rlco_common.contract import Contract, load_contract
from rlco_common.errors import TrainingError
from rlco_policy.checkpoint import save_policy
from rlco_policy.interface import VLAPolicy
from rlco_policy.registry import create_policy
from rlco_policy.statistics import Statistics
from rlco_trainer.averaging import WeightAverage
from rlco_trainer.batches import SftBatch, accumulate, held_out_loss, sft_batch
from rlco_trainer.config import StageOneConfig, roots, save_config
from rlco_trainer.control import RunControl
from rlco_trainer.dataset.reader import dataset_lineage, load_datasets, load_proprioception, sample_cotraining
from rlco_trainer.denormals import flushed_denormals
from rlco_trainer.metrics import Metrics
from rlco_trainer.peers import ALONE, Peers
from rlco_trainer.resume import checkpoint_to_resume, require_same_datasets
from rlco_trainer.run_state import Randomness, load_run, save_run
from rlco_trainer.updates import adamw, learning_rate_factor, require_finite, set_learning_rate


class StageOne:
    """The state of a Stage I run: policy, optimizer, average, random streams, data. `train_stage1` drives it."""

    def __init__(self, config: StageOneConfig, contract: Contract):
        self.config, self.peers = config, Peers.join(config.device)
        self.randomness = Randomness(config.seed)
        self.step, self.best, self.since_best = 0, math.inf, 0
        checkpoint = checkpoint_to_resume(config)
        if checkpoint is None:
            self.policy, state = _new_policy(config, contract), None
        else:
            self.policy, state = load_run(checkpoint, contract)
        self.policy.to(config.device)
        self.policy.set_stage("sft")
        self.optimizer = adamw(self.policy.param_groups()["policy"], config.weight_decay, lr=config.lr)
        self.average = WeightAverage(self.policy, config.ema)
        size = self.policy.spec.image_size
        self.real = self.held_out = self.sim = None
        if config.real:
            self.real, self.held_out = load_datasets(roots(config.real), contract, size).split(config.held_out)
        if config.sim:
            self.sim = load_datasets(roots(config.sim), contract, size)
        if state is not None:
            self._restore(state)
        if config.patience and self.held_out is None:
            raise TrainingError("patience > 0 stops by the held-out real loss, but no real episode is held out; give "
                                "held_out=N with real=DATASET, or patience=0")

    @property
    def out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.since_best

    def train_step(self) -> dict[str, float]:
        """One optimizer step on a batch drawn by trajectory with probability alpha (eq. 4)."""
        config = self.config
        set_learning_rate(self.optimizer, config.lr * learning_rate_factor(
            self.step, warmup=config.warmup_steps, steps=config.steps, final=config.final_lr_fraction))
        demos, _ = sample_cotraining(self.real, self.sim, config.alpha, config.batch_size, self.policy.spec.horizon,
                                     self.randomness.numpy)
        batch = sft_batch(self.policy, demos, self.randomness.torch, augment=True)
        loss, grad_norm = sft_step(self.policy, self.optimizer, batch, config, self.peers)
        self.average.update()
        self.step += 1
        return {"sft/loss": loss, "sft/grad_norm": grad_norm, "lr": self.optimizer.param_groups[0]["lr"]}

    def monitor(self) -> dict[str, float]:
        """The held-out real loss of the averaged weights; the best ones are kept when the run may stop early."""
        with self.average.applied():
            loss = held_out_loss(self.policy, self.held_out)
            self.since_best += 1
            if loss < self.best:
                self.best, self.since_best = loss, 0
                if self.config.patience and self.peers.main:
                    self._save_policy(self.config.out / "best")
        return {"real/held_out_loss": loss}

    def save(self) -> None:
        if not self.peers.main:
            return
        extra = {"average": self.average.state(), "best": self.best, "since_best": self.since_best,
                 "datasets": self._datasets()}
        save_run(self.config.out, self.step, self.policy, self.optimizer, self.randomness, self.lineage(), extra)

    def finish(self) -> Path:
        """Write the run's result, `out/policy`: the averaged weights, of the best step when the run may stop early."""
        out = self.config.out / "policy"
        if not self.peers.main:
            return out
        best = self.config.out / "best"
        if self.config.patience and best.is_dir():
            shutil.copytree(best, out, dirs_exist_ok=True)
            return out
        with self.average.applied():
            return self._save_policy(out)

    def lineage(self) -> dict:
        return {
            "stage": 1, "seed": self.config.seed, "alpha": self.config.alpha, "step": self.step, **self._datasets(),
        }

    def _datasets(self) -> dict[str, list[dict]]:
        return dataset_lineage(real=self.real, sim=self.sim)

    def _save_policy(self, out: Path) -> Path:
        return save_policy(self.policy, out, self.lineage())

    def _restore(self, state: dict) -> None:
        require_same_datasets(state["extra"]["datasets"], self._datasets(), self.config.out)
        self.optimizer.load_state_dict(state["optimizer"])
        self.randomness.restore(state["random"])
        self.average.restore(state["extra"]["average"])
        self.step, self.best, self.since_best = state["step"], state["extra"]["best"], state["extra"]["since_best"]


def train_stage1(config: StageOneConfig, *, stop_after: int | None = None, quiet: bool = False,
                 control: RunControl | None = None) -> Path:
    """Train, resuming from the run's newest checkpoint, and write the policy to `out/policy`. Returns that path.

    stop_after: end after this many steps of this call, with a checkpoint, as a stopped run does. control: requests from
    outside, obeyed between two steps.
    """
    control = control or RunControl()
    torch.set_num_threads(config.threads)
    run = StageOne(config, load_contract(config.contract))
    if run.peers.main:
        save_config(config, config.out)
    last = min(config.steps, run.step + stop_after) if stop_after else config.steps
    label = f"stage I {config.out.name}"
    with (flushed_denormals(),
          Metrics(config.out, total=config.steps, start=run.step, label=label, quiet=quiet,
                  silent=not run.peers.main) as metrics):
        while run.step < last and not run.out_of_patience and run.peers.agree(control.go_on(run.save)):
            row, shown = run.train_step(), {}
            if run.step % config.log_every == 0 or run.step == last:
                shown = {"loss": row["sft/loss"]}
                metrics.log(run.step, row)
                control.report(run.step, config.steps, row)
            if run.held_out is not None and (run.step % config.monitor_every == 0 or run.step == last):
                metrics.log(run.step, held_out := run.monitor())
                control.report(run.step, config.steps, held_out)
            metrics.progress(**shown)
            if run.step % config.save_every == 0 or run.step == last or run.out_of_patience:
                run.save()
    return run.finish()


def sft_step(policy: VLAPolicy, optimizer: torch.optim.Optimizer, batch: SftBatch,
             config: StageOneConfig, peers: Peers = ALONE) -> tuple[float, float]:
    """One optimizer step on one batch; micro-batches and processes add up to the whole batch's gradient."""
    optimizer.zero_grad(set_to_none=True)
    weights = torch.full((len(batch),), 1 / len(batch))
    losses = accumulate(policy, batch, weights, peers.parts(len(batch), config.micro_batches), lambda: _autocast(config))
    total = sum(peers.gather([float(losses.mean())]))
    peers.sum_gradients(policy.param_groups()["policy"])
    grad_norm = float(torch.nn.utils.clip_grad_norm_(policy.param_groups()["policy"], config.max_grad_norm))
    require_finite({"sft/loss": total, "sft/grad_norm": grad_norm}, config.out, {"sft": batch}, peers)
    optimizer.step()
    return total, grad_norm


def proprioception_statistics(config: StageOneConfig, contract: Contract) -> Statistics:
    """Of all frames of the run's datasets."""
    proprioception = np.concatenate([load_proprioception(root) for root in (*roots(config.real), *roots(config.sim))])
    return Statistics.from_proprioception(contract.proprioception_names, proprioception)


def _new_policy(config: StageOneConfig, contract: Contract) -> VLAPolicy:
    return create_policy(config.policy, contract, proprioception_statistics(config, contract), config.policy_config,
                         seed=config.seed)


def _autocast(config: StageOneConfig):
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16)
