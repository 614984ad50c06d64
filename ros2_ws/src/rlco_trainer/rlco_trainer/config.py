"""Typed configuration of the two training stages: one YAML per experiment, overridden on the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from rlco_common.resources import shipped_file
from rlco_common.strict import apply_overrides, from_mapping, load_yaml, to_mapping


@dataclass(frozen=True)
class StageOneConfig:
    """Supervised co-training (paper, III-C, eq. 4).

    real, sim: a dataset or several ([a, b]: their trajectories are drawn alike); an empty string leaves that source out.
    alpha: probability that a trajectory is simulated. held_out: real episodes kept out of training for the held-out loss;
    -1 takes those that the dataset itself holds out. policy_config: fields of the policy's config. precision: of the
    forward and backward pass; weights and optimizer stay float32. ema: decay of the averaged weights that the run yields;
    0 = the last weights. patience: stop after this many looks at the held-out loss (one every monitor_every steps)
    without a new best, and yield the best weights; 0 = never.
    """

    out: Path
    real: str | tuple[str, ...] = ""
    sim: str | tuple[str, ...] = ""
    alpha: float = 0.5
    policy: str = "compact_flow"
    policy_config: dict[str, Any] = field(default_factory=dict)
    contract: str = "panda_tabletop"
    steps: int = 1000
    batch_size: int = 64
    micro_batches: int = 1
    lr: float = 1e-3
    warmup_steps: int = 50
    final_lr_fraction: float = 0.05
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    ema: float = 0.0
    patience: int = 0
    held_out: int = -1
    log_every: int = 25
    monitor_every: int = 100
    save_every: int = 500
    seed: int = 0
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self):
        if not (self.real or self.sim):
            raise ValueError("give at least one dataset: real or sim")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if min(self.steps, self.batch_size, self.micro_batches) < 1:
            raise ValueError("steps, batch_size and micro_batches must be at least 1")
        if not 0 <= self.ema < 1 or self.patience < 0:
            raise ValueError("ema must be in [0, 1) and patience not negative")


@dataclass(frozen=True)
class PpoConfig:
    """PPO (Schulman et al. 2017) on action chunks. gamma and gae_lambda are per chunk, as in the reference release.

    surrogate_weight: of the clipped surrogate; 0 trains the critic alone. level: what the ratio is taken over, the chunk
    (the reference's choice) or each action of it. target_kl: an iteration's surrogate steps end above it. shaping: weight of
    the potential in the reward, how much of the named object's way to its goal is done (ppo.shaped); 0 = success alone.
    """

    surrogate_weight: float = 1.0
    level: Literal["chunk", "action"] = "chunk"
    gamma: float = 0.99
    gae_lambda: float = 0.95
    shaping: float = 0.0
    clip: float = 0.2
    value_clip: float = 0.2
    huber_delta: float = 1.0
    value_weight: float = 1.0
    entropy_weight: float = 0.0
    epochs: int = 2
    minibatch_size: int = 256
    target_kl: float = 0.05

    def __post_init__(self):
        if not (0 < self.gamma <= 1 and 0 <= self.gae_lambda <= 1):
            raise ValueError("gamma must be in (0, 1], gae_lambda in [0, 1]")
        if self.shaping < 0:
            raise ValueError(f"ppo.shaping must not be negative, got {self.shaping}")


@dataclass(frozen=True)
class ReplayConfig:
    """Success replay, see rlco_trainer.replay. updates: its optimizer steps per iteration, each on batch_size decisions
    out of the newest `capacity` and on beta times a real batch; 0 = off. They begin once `min_size` decisions are there.
    demos: simulated demonstrations (a dataset or several) that the replay starts with; the run's own successes displace
    them. successes: whether these are added; without them the demonstrations alone teach, as a control. lr: reached after
    warmup_updates; from there a cosine brings it down to final_lr_fraction of it, which it has after decay_updates
    (0 = it stays).
    """

    updates: int = 0
    batch_size: int = 64
    capacity: int = 8192
    min_size: int = 512
    demos: str | tuple[str, ...] = ""
    successes: bool = True
    lr: float = 3e-4
    warmup_updates: int = 100
    decay_updates: int = 0
    final_lr_fraction: float = 0.1

    def __post_init__(self):
        if self.updates < 0 or min(self.batch_size, self.capacity, self.min_size) < 1:
            raise ValueError("updates must not be negative; batch_size, capacity and min_size must be at least 1")
        if self.updates and not (self.successes or self.demos):
            raise ValueError("replay.successes=false needs replay.demos: there is nothing else to learn from")


@dataclass(frozen=True)
class PlacesConfig:
    """Teaches the policy's summary where things are in the twin, see rlco_trainer.places. weight: of that loss in every
    replay step; 0 = off. batch_size: decisions per step, out of the newest `capacity` of all episodes, failed ones too.
    """

    weight: float = 0.0
    batch_size: int = 64
    capacity: int = 16384

    def __post_init__(self):
        if self.weight < 0 or min(self.batch_size, self.capacity) < 1:
            raise ValueError("weight must not be negative, batch_size and capacity must be at least 1")


@dataclass(frozen=True)
class BetaControl:
    """Moves beta to keep the held-out real loss between low and high times its start, see rlco_trainer.forgetting."""

    low: float = 1.0
    high: float = 1.2
    rate: float = 1.25
    smallest: float = 1e-3
    largest: float = 10.0

    def __post_init__(self):
        if not 0 < self.low < self.high or self.rate <= 1 or not 0 < self.smallest <= self.largest:
            raise ValueError("0 < low < high, rate > 1 and 0 < smallest <= largest are needed")


@dataclass(frozen=True)
class StageTwoConfig:
    """RL in the twin, anchored to real data (paper, IV-B, eq. 5): L_total = L_RL + beta * L_SFT(D_real).

    start: checkpoint of Stage I. policy_config: fields of its policy's config to replace, such as the exploration noise.
    beta multiplies the loss over the real action dimensions; the reference release averages over 32 padded ones, so its
    0.2 is about 0.044 here. sft_batch_size: real samples per optimizer step, whatever the number of micro-batches.
    episodes: complete episodes per iteration, spread over `scenes` twins; those run in `workers` processes, or with
    backend=gpu in one batch on a CUDA device. max_chunks: a rollout that has not succeeded after this many chunks ends as
    it is, 0 = at the task's max_steps; measured success always has all of them. held_out, ema: as in Stage I; what is
    measured and yielded is the average; rollouts are made with the weights themselves, with the average only where no PPO
    step needs its own samples (ppo.surrogate_weight=0). overlap: the next iteration's rollouts are made beside this one's
    update, by the average of before it; for ppo.surrogate_weight=0 alone. measure_episodes: greedy episodes of a measured
    success rate, every measure_every iterations; the run ends when one reaches target_success, after time_limit_s of
    training, or after `iterations` (0 switches the first two off); it fails after stall_iterations in each of which all
    decisions had the same return, 0 = never. cosine_every: how often (in iterations) the cosine
    between the RL and the real gradient is measured, 0 = never.
    """

    out: Path
    start: Path
    policy_config: dict[str, Any] = field(default_factory=dict)
    real: str | tuple[str, ...] = ""
    beta: float = 0.05
    beta_control: BetaControl | None = None
    task: str = "push_cube"
    domain: str = "twin"
    contract: str = "panda_tabletop"
    iterations: int = 40
    episodes: int = 128
    scenes: int = 32
    workers: int = 2
    backend: Literal["cpu", "gpu"] = "cpu"
    max_chunks: int = 0
    overlap: bool = False
    sft_batch_size: int = 64
    micro_batches: int = 1
    lr: float = 1e-4
    value_lr: float = 1e-3
    noise_lr: float = 1e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    critic_warmup: int = 2
    ppo: PpoConfig = field(default_factory=PpoConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    places: PlacesConfig = field(default_factory=PlacesConfig)
    ema: float = 0.0
    held_out: int = -1
    cosine_every: int = 0
    measure_episodes: int = 64
    measure_every: int = 10
    min_initial_success: float = 0.05
    target_success: float = 0.0
    stall_iterations: int = 5
    save_every: int = 10
    time_limit_s: float = 0.0
    seed: int = 0
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self):
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.beta > 0 and not self.real:
            raise ValueError("beta > 0 needs the real dataset: give real=DATASET, or beta=0 for RL alone")
        if self.places.weight and not self.replay.updates:
            raise ValueError("places.weight > 0 needs replay.updates > 0: places are learned in the replay's steps")
        if self.overlap and self.ppo.surrogate_weight:
            raise ValueError("overlap=true needs ppo.surrogate_weight=0: the clipped surrogate learns from samples of the "
                             "newest weights, and rollouts beside an update are made by older ones")
        if self.overlap and self.backend != "cpu":
            raise ValueError("overlap=true needs backend=cpu: on a GPU rollouts and updates share the device")
        if not 0 <= self.target_success <= 1:
            raise ValueError(f"target_success must lie in [0, 1], got {self.target_success}")
        if min(self.iterations, self.episodes, self.scenes, self.micro_batches, self.sft_batch_size) < 1:
            raise ValueError("iterations, episodes, scenes, micro_batches and sft_batch_size must be at least 1")


def roots(datasets: str | tuple[str, ...]) -> list[Path]:
    """The directories that a configuration's `real` or `sim` names."""
    names = (datasets,) if isinstance(datasets, str) else datasets
    return [Path(name) for name in names if name]


def load_stage_config(cls, source: str, overrides: list[str]):
    """Read a stage's YAML (a path, or the name of a shipped one such as 'push_cube_stage1') with key=value overrides."""
    path = Path(source)
    if not path.suffix:
        path = shipped_file("rlco_trainer", "config", source, "configuration")
    return from_mapping(cls, apply_overrides(load_yaml(path), overrides), str(path))


def save_config(config, directory: Path) -> None:
    """Write the resolved configuration beside the run's results."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(to_mapping(config), sort_keys=False), encoding="utf-8")
