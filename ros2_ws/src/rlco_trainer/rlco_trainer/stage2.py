"""Stage II: PPO in parallel twins, anchored by the supervised loss on real data (paper, IV-B, eq. 5)."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path

import torch

from rlco_common.contract import Contract, load_contract
from rlco_common.errors import TrainingError
from rlco_common.seeds import RL, SELECTION
from rlco_policy.checkpoint import load_policy, read_description, save_policy
from rlco_policy.interface import VLAPolicy
from rlco_trainer.ahead import RolloutsAhead, RolloutsInTurns
from rlco_trainer.averaging import WeightAverage
from rlco_trainer.batches import SftBatch, held_out_loss, sft_batch, slices
from rlco_trainer.config import StageTwoConfig, roots, save_config
from rlco_trainer.control import RunControl
from rlco_trainer.dataset.reader import DemoSet, dataset_lineage, load_datasets
from rlco_trainer.denormals import flushed_denormals
from rlco_trainer.forgetting import BetaController, gradient_cosine
from rlco_trainer.memory import resident_bytes
from rlco_trainer.metrics import Metrics
from rlco_trainer.peers import Peers
from rlco_trainer.places import Places
from rlco_trainer.ppo import RlBatch, explained_variance
from rlco_trainer.replay import SuccessReplay
from rlco_trainer.resume import checkpoint_to_resume, require_same_datasets
from rlco_trainer.rollout import Episode, collate, open_pool, returns_of, run_episodes
from rlco_trainer.run_state import Randomness, load_run, save_run
from rlco_trainer.updates import (
    acting_weights,
    adamw,
    learning_rate_factor,
    make_optimizer,
    means,
    replay_step,
    set_learning_rate,
    update_step,
)

SEEDS_PER_RUN = 50_000_000      # runs with different seeds see different episodes
SHOWN = {"success": "rollout/success", "kl": "rl/kl", "places_cm": "places/error_cm", "real": "real/held_out_loss"}
"""Label of the progress line -> metric."""


class StageTwo:
    """The state of a Stage II run: policy, optimizers, random streams, data. `train_stage2` drives it."""

    def __init__(self, config: StageTwoConfig, contract: Contract):
        self.config, self.contract, self.peers = config, contract, Peers.join(config.device)
        self.randomness = Randomness(config.seed)
        self.step, self.success, self.elapsed_s, self.replay_updates, self.stalled = 0, None, 0.0, 0, 0
        checkpoint = checkpoint_to_resume(config)
        if checkpoint is None:
            self.start_digest = read_description(config.start)["digest"]
            self.policy, state = load_policy(config.start, contract, config.policy_config), None
        else:
            self.policy, state = load_run(checkpoint, contract)
        self.policy.to(config.device)
        self.policy.set_stage("rl")
        self.optimizer = make_optimizer(self.policy, config)
        self.replay = SuccessReplay(config.replay.capacity)
        self.places = Places(self.policy, config.places, config.seed) if config.places.weight else None
        places_head = self.places.head.parameters() if self.places is not None else ()
        self.replay_optimizer = adamw([*acting_weights(self.policy), *places_head], config.weight_decay, lr=config.replay.lr)
        self.average = WeightAverage(self.policy, config.ema)
        self.rollouts = (RolloutsAhead(self.policy, self.average) if config.overlap else
                         RolloutsInTurns(self.policy, self._rollout_weights))
        self.anchor = BetaController(config.beta, config.beta_control)
        self.real: DemoSet | None = None
        self.held_out: DemoSet | None = None
        if config.real:
            demos = load_datasets(roots(config.real), contract, self.policy.spec.image_size)
            self.real, self.held_out = demos.split(config.held_out)
        if config.beta_control and self.held_out is None:
            raise TrainingError("beta_control follows the held-out real loss, but no real episode is held out; give "
                                "held_out=N with real=DATASET, or leave beta_control out")
        self.demos: DemoSet | None = None
        if config.replay.demos:
            self.demos = load_datasets(roots(config.replay.demos), contract, self.policy.spec.image_size)
        if state is not None:
            self._restore(state)
        elif self.demos is not None:
            self.replay.add_demos(self.policy, self.demos)
        if config.replay.updates and not config.replay.successes and len(self.replay) < config.replay.min_size:
            raise TrainingError(f"replay.successes=false: the demonstrations hold {len(self.replay)} decisions, fewer than "
                                f"replay.min_size={config.replay.min_size}, so no replay step would ever be made; lower it")

    @property
    def lineage(self) -> dict:
        config = self.config
        return {
            "stage": 2, "seed": config.seed, "beta": config.beta, "domain": config.domain, "step": self.step,
            "start": {"path": str(config.start), "digest": self.start_digest}, **self._datasets(),
        }

    def _datasets(self) -> dict[str, list[dict]]:
        return dataset_lineage(real=self.real, sim=self.demos)

    def _restore(self, state: dict) -> None:
        extra = state["extra"]
        require_same_datasets(extra["datasets"], self._datasets(), self.config.out)
        self.optimizer.load_state_dict(state["optimizer"])
        self.randomness.restore(state["random"])
        self.replay_optimizer.load_state_dict(extra["replay_optimizer"])
        self.replay_updates = extra["replay_updates"]
        self.replay.restore(extra["replay"])
        if self.places is not None:
            self.places.restore(extra["places"])
        self.anchor.restore(extra["anchor"])
        self.average.restore(extra["average"])
        self.rollouts.restore(extra.get("ahead"))
        self.step, self.success, self.elapsed_s = state["step"], extra["success"], extra["elapsed_s"]
        self.stalled, self.start_digest = extra["stalled"], extra["start_digest"]

    def save(self) -> None:
        if not self.peers.main:
            return
        extra = {"success": self.success, "elapsed_s": self.elapsed_s, "stalled": self.stalled,
                 "start_digest": self.start_digest, "datasets": self._datasets(), "anchor": self.anchor.state(),
                 "replay": self.replay.state(), "replay_optimizer": self.replay_optimizer.state_dict(),
                 "replay_updates": self.replay_updates, "average": self.average.state(),
                 "ahead": self.rollouts.state()}
        if self.places is not None:
            extra["places"] = self.places.state()
        save_run(self.config.out, self.step, self.policy, self.optimizer, self.randomness, self.lineage, extra)

    def finish(self) -> Path:
        """Write the run's result, `out/policy`: the averaged weights."""
        out = self.config.out / "policy"
        if not self.peers.main:
            return out
        with self.average.applied():
            return save_policy(self.policy, out, self.lineage)

    def measure(self, pool) -> float:
        """Deterministic success rate in the twin on seeds that are neither trained on nor evaluated on."""
        self.rollouts.wait()
        with self.average.applied():
            episodes = run_episodes(self.policy, pool, self.peers.share(list(SELECTION[: self.config.measure_episodes])))
        successes = self.peers.gather([episode.success for episode in episodes])
        return sum(successes) / len(successes)

    def collect(self, pool, *, more: bool = False) -> tuple[RlBatch, dict[str, float]]:
        """One iteration's episodes, on seeds never seen before, each process its share; successes go to the replay.

        more: another iteration follows; with `overlap` its episodes are begun.
        """
        config, started = self.config, time.monotonic()
        mine, took = self.rollouts.next(partial(self.roll_out, pool), self.step, more=more)
        episodes = self.peers.gather(mine)
        seconds = time.monotonic() - started
        if config.replay.updates and config.replay.successes:
            self.replay.add(episodes, self.policy.spec.horizon, config.ppo.shaping)
        if self.places is not None:
            self.places.add(episodes)
        returns = torch.cat([returns_of(episode, config.ppo) for episode in episodes])
        steps = sum(episode.steps for episode in episodes)
        metrics = {
            "rollout/success": sum(episode.success for episode in episodes) / len(episodes),
            "rollout/return_variance": float(returns.var(unbiased=False)),
            "rollout/failure": sum(episode.failure for episode in episodes) / len(episodes),
            "rollout/episode_steps": steps / len(episodes), "rollout/steps_per_s": steps / took,
            "rollout/steps": float(steps), "time/rollout_s": seconds,
        }
        return collate(episodes, config.ppo), metrics

    def roll_out(self, pool, policy: VLAPolicy, step: int, cancelled: Callable[[], bool]) -> list[Episode]:
        """This process's share of iteration `step`'s episodes; reads nothing that an update changes but `policy`."""
        config = self.config
        first = step * config.episodes + config.seed * SEEDS_PER_RUN
        seeds = self.peers.share([RL[(first + i) % len(RL)] for i in range(config.episodes)])
        generator = torch.Generator().manual_seed(hash((config.seed, step, self.peers.rank)) % 2**63)
        policy.set_progress(step / config.iterations)
        return run_episodes(policy, pool, seeds, generator=generator, max_chunks=config.max_chunks, cancelled=cancelled)

    def close(self) -> None:
        """End rollouts that nobody will use."""
        self.rollouts.cancel()

    def _rollout_weights(self) -> AbstractContextManager:
        """The weights that act in rollouts: PPO needs its own samples; replay alone takes what succeeds more often."""
        return self.average.applied() if self.config.ppo.surrogate_weight == 0 else nullcontext()

    def update(self, rollout: RlBatch) -> dict[str, float]:
        """PPO epochs over the rollout, then the success replay."""
        started = time.monotonic()
        metrics = self.ppo_phase(rollout) | self.replay_phase()
        return {**metrics, "time/update_s": time.monotonic() - started,
                "rl/explained_variance": explained_variance(rollout.value, rollout.returns)}

    def ppo_phase(self, rollout: RlBatch) -> dict[str, float]:
        """Every optimizer step adds beta times the loss of a fresh real batch. Past target_kl only the critic learns."""
        config, rows, far = self.config, [], False
        warming_up = self.step < config.critic_warmup
        for i, rl in enumerate(self._minibatches(rollout)):
            critic_only = warming_up or far or config.ppo.surrogate_weight == 0
            sft = None if critic_only or self.anchor.beta == 0 else self._real_batch()
            cosine = {}
            if i == 0 and sft is not None and config.cosine_every and self.step % config.cosine_every == 0:
                cosine = {"rl/sft_gradient_cosine": gradient_cosine(self.policy, rl, sft, config.ppo,
                                                                    micro_batches=config.micro_batches, peers=self.peers)}
            row = update_step(self.policy, self.optimizer, rl, sft, config, beta=self.anchor.beta,
                              critic_only=critic_only, peers=self.peers)
            self.average.update()
            rows.append(row | cosine)
            far = far or row.get("rl/kl", 0.0) > config.ppo.target_kl
        acted = [row for row in rows if "rl/kl" in row]
        return {**means(rows), "rl/updates": float(len(acted)), **({"rl/kl_last": acted[-1]["rl/kl"]} if acted else {})}

    def replay_phase(self) -> dict[str, float]:
        """Supervised steps on what worked in the twin, anchored to the real data as the PPO steps are."""
        config, replay = self.config, self.config.replay
        if not replay.updates or len(self.replay) < replay.min_size or self.step < config.critic_warmup:
            return {}
        rows = []
        for _ in range(replay.updates):
            self.rollouts.check()
            rate = replay.lr * learning_rate_factor(self.replay_updates, warmup=replay.warmup_updates,
                                                    steps=replay.decay_updates, final=replay.final_lr_fraction)
            set_learning_rate(self.replay_optimizer, rate)
            self.replay_updates += 1
            worked = self.replay.sample(self.policy, replay.batch_size, self.randomness.numpy, self.randomness.torch)
            real = self._real_batch() if self.anchor.beta else None
            places = None
            if self.places is not None:
                places = self.places.head, self.places.sample(self.policy, self.randomness.numpy, self.randomness.torch)
            rows.append(replay_step(self.policy, self.replay_optimizer, worked, real, config, beta=self.anchor.beta,
                                    peers=self.peers, places=places))
            self.average.update()
        return {**means(rows), "replay/size": float(len(self.replay)), "replay/lr": rate}

    def _minibatches(self, rollout: RlBatch) -> Iterator[RlBatch]:
        for _ in range(self.config.ppo.epochs):
            order = torch.randperm(len(rollout), generator=self.randomness.torch)
            for part in slices(len(rollout), max(1, round(len(rollout) / self.config.ppo.minibatch_size))):
                yield rollout.part(order[part]).to(self.policy.device)

    def _real_batch(self) -> SftBatch:
        demos = self.real.sample(self.config.sft_batch_size, self.policy.spec.horizon, self.randomness.numpy)
        return sft_batch(self.policy, demos, self.randomness.torch, augment=True)

    def monitor(self, trained_loss: float | None = None) -> dict[str, float]:
        """The forgetting monitor: supervised loss on held-out real demonstrations, and the beta that follows it.

        trained_loss: the same loss on the real batches of the last update.
        """
        if self.held_out is None:
            return {}
        with self.average.applied():
            loss = held_out_loss(self.policy, self.held_out)
        self.anchor.observe(loss, trained_loss)
        return {"real/held_out_loss": loss, "real/beta": self.anchor.beta}


def train_stage2(config: StageTwoConfig, *, stop_after: int | None = None, quiet: bool = False,
                 control: RunControl | None = None) -> Path:
    """Run Stage II, resuming from the run's newest checkpoint; write the policy to `out/policy` and return that path.

    stop_after: end after this many iterations of this call, with a checkpoint. control: requests from outside, obeyed
    between two iterations.

    Raises TrainingError when the start policy does not succeed measurably in the twin (paper, Fig. 5: RL cannot start
    from there; set min_initial_success=0 to try anyway) or when the return has had no variance for several iterations.
    """
    control = control or RunControl()
    torch.set_num_threads(config.threads)
    contract = load_contract(config.contract)
    run = StageTwo(config, contract)
    if run.peers.main:
        save_config(config, config.out)
    last = min(config.iterations, run.step + stop_after) if stop_after else config.iterations
    label = f"stage II {config.out.name}"
    with (flushed_denormals(),
          open_pool(contract, run.policy, config.task, config.domain, scenes=config.scenes, workers=config.workers,
                    backend=config.backend) as pool,
          Metrics(config.out, total=config.iterations, start=run.step, label=label, quiet=quiet,
                  silent=not run.peers.main) as metrics,
          closing(run)):
        if run.success is None:
            run.success = _require_initial_success(run, pool)
            metrics.log(0, {"twin/success": run.success, **run.monitor()})
        while run.step < last and run.peers.agree(not _done(run) and control.go_on(run.save)):
            started = time.monotonic()
            rollout, row = run.collect(pool, more=run.step + 1 < last)
            row |= run.update(rollout)
            run.step += 1
            run.stalled = run.stalled + 1 if row["rollout/return_variance"] == 0.0 else 0
            row |= run.monitor(row.get("replay/real_loss", row.get("sft/loss")))
            row["memory/resident_mib"] = resident_bytes(pool.worker_pids) / 2**20
            if run.step % config.measure_every == 0 or run.step == last:
                row["twin/success"] = run.success = run.measure(pool)
            metrics.log(run.step, row)
            control.report(run.step, config.iterations, row)
            metrics.progress(**{label: row[name] for label, name in SHOWN.items() if name in row})
            run.elapsed_s += time.monotonic() - started
            if run.step % config.save_every == 0 or run.step == last:
                run.save()
        run.save()
        _require_variance(run)
    return run.finish()


def _require_initial_success(run: StageTwo, pool) -> float:
    success = run.measure(pool)
    if success < run.config.min_initial_success:
        raise TrainingError(
            f"{run.config.start} succeeds in {success:.0%} of {run.config.measure_episodes} twin episodes, less than "
            f"min_initial_success = {run.config.min_initial_success:.0%}: RL hardly starts from there (paper, Fig. 5). "
            "Train Stage I with more simulated demonstrations, or set min_initial_success=0 to try anyway")
    return success


def _done(run: StageTwo) -> bool:
    config = run.config
    return (0 < config.time_limit_s <= run.elapsed_s or 0 < config.target_success <= run.success
            or 0 < config.stall_iterations <= run.stalled)


def _require_variance(run: StageTwo) -> None:
    if 0 < run.config.stall_iterations <= run.stalled:
        raise TrainingError(
            f"in the last {run.stalled} iterations every decision had the same return: RL has nothing to learn from. The run "
            "is saved. Make the task's start states harder or easier, train Stage I for longer, reward the way to the goal "
            "(ppo.shaping), or go on all the same with stall_iterations=0")
