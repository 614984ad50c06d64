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

    real, sim: datasets; an empty string leaves that source out. alpha: probability that a trajectory is simulated.
    held_out: real episodes kept out of training for the held-out loss; -1 takes those that the dataset itself holds out.
    policy_config: fields of the policy's config.
    """

    out: Path
    real: str = ""
    sim: str = ""
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


@dataclass(frozen=True)
class PpoConfig:
    """PPO (Schulman et al. 2017) on action chunks. gamma and gae_lambda are per chunk, as in the reference release."""

    gamma: float = 0.99
    gae_lambda: float = 0.95
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


@dataclass(frozen=True)
class StageTwoConfig:
    """RL in the twin, anchored to real data (paper, IV-B, eq. 5): L_total = L_RL + beta * L_SFT(D_real).

    start: checkpoint of Stage I. beta multiplies the loss over the real action dimensions; the reference release
    averages over 32 padded ones, so its 0.2 is about 0.044 here. sft_batch_size: real samples per optimizer step,
    whatever the number of micro-batches. episodes: complete episodes per iteration, spread over `scenes` twins; those run
    in `workers` processes, or with backend=gpu in one batch on a CUDA device. held_out: as in Stage I.
    """

    out: Path
    start: Path
    real: str = ""
    beta: float = 0.05
    task: str = "push_cube"
    domain: str = "twin"
    contract: str = "panda_tabletop"
    iterations: int = 40
    episodes: int = 128
    scenes: int = 32
    workers: int = 2
    backend: Literal["cpu", "gpu"] = "cpu"
    sft_batch_size: int = 64
    micro_batches: int = 1
    lr: float = 1e-4
    value_lr: float = 1e-3
    noise_lr: float = 1e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    critic_warmup: int = 2
    ppo: PpoConfig = field(default_factory=PpoConfig)
    held_out: int = -1
    measure_episodes: int = 64
    measure_every: int = 10
    min_initial_success: float = 0.05
    save_every: int = 10
    time_limit_s: float = 0.0
    seed: int = 0
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self):
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}")
        if self.beta > 0 and not self.real:
            raise ValueError("beta > 0 needs the real dataset: give real=DATASET, or beta=0 for RL alone")
        if min(self.iterations, self.episodes, self.scenes, self.micro_batches, self.sft_batch_size) < 1:
            raise ValueError("iterations, episodes, scenes, micro_batches and sft_batch_size must be at least 1")


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
