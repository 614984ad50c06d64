"""What a Stage II run sets and RLinf's recipe has no place for: an export names it, so that nothing is lost in silence."""

import math
from operator import attrgetter
from typing import Any, NamedTuple

from rlco_policy.pi05.config import Pi05Config
from rlco_trainer.config import StageTwoConfig, roots
from rlco_trainer.dataset.reader import read_sidecar
from rlco_trainer.dataset.splits import HELD_OUT

RECIPE_GPUS = 8
RECIPE_SFT_BATCH = 16       # real samples with every micro-batch, over all GPUs
POLICY = "policy_config."


class Difference(NamedTuple):
    """recipe: the value that RLinf has, or a function that reads it from the written configuration. instead: what it does,
    {} being that value."""

    setting: str
    recipe: Any
    instead: str


def _episodes(written: dict[str, Any]) -> int:
    return written["env"]["train"]["total_num_envs"] * written["env"]["train"]["rollout_epoch"]


def _real_samples(written: dict[str, Any]) -> int:
    actor = written["actor"]
    return RECIPE_SFT_BATCH * actor["global_batch_size"] // (actor["micro_batch_size"] * RECIPE_GPUS)


DIFFERENCES = tuple(Difference(*row) for row in (
    ("policy_config.noise_std_end", None, "the noise keeps its bounds"),
    ("policy_config.logprob", "mean", "the likelihood is the mean over the chain"),
    ("policy_config.value_hidden", (512, 256, 128), "the critic's layers are {}"),
    ("policy_config.lora.rank", 0, "adapters are merged, and whole weights train"),
    ("policy_config.gradient_checkpointing", False, "pi-0.5 has none there"),
    ("policy_config.augmentation", None, "real pictures are augmented by openpi: crops, turns, colours"),
    ("ppo.surrogate_weight", 1.0, "PPO's surrogate trains the policy with weight {}"),
    ("ppo.value_weight", 1.0, "the value loss has weight {}"),
    ("ppo.shaping", 0.0, "the environment that you register gives the reward"),
    ("ppo.target_kl", math.inf, "no divergence ends the policy's steps"),
    ("ppo.minibatch_size", lambda written: written["actor"]["global_batch_size"], "{} samples, which its GPUs divide"),
    ("replay.updates", 0, "no success replay"),
    ("places.weight", 0.0, "no learning of where things are"),
    ("beta_control", None, "beta stays as it is"),
    ("domain", "twin", "episodes run in the environment that you register"),
    ("episodes", _episodes, "{} episodes an iteration"),
    ("max_chunks", 0, "an episode has all of its time"),
    ("overlap", False, "rollouts and updates take turns"),
    ("sft_batch_size", _real_samples, "{} real samples an optimizer step"),
    ("noise_lr", lambda written: written["actor"]["optim"]["lr"], "the noise head learns at lr, {}"),
    ("ema", 0.0, "the last weights are the result"),
    ("measure_episodes", lambda written: written["env"]["eval"]["total_num_envs"], "{} episodes are measured"),
    ("target_success", 0.0, "the run ends after its iterations"),
    ("time_limit_s", 0.0, "the run ends after its iterations"),
    ("cosine_every", 0, "the cosine is not measured"),
))


def not_carried_over(config: StageTwoConfig, policy: Pi05Config, written: dict[str, Any]) -> list[str]:
    """One line for every setting of a run that RLinf does otherwise. policy: with the run's policy_config in it. written: the
    exported configuration."""
    lines = []
    for setting, recipe, instead in DIFFERENCES:
        source = policy if setting.startswith(POLICY) else config
        value = attrgetter(setting.removeprefix(POLICY))(source)
        there = recipe(written) if callable(recipe) else recipe
        if value != there:
            shown = f"={value}" if isinstance(value, (bool, int, float, str, tuple)) else ""
            lines.append(f"{setting}{shown}: {instead.format(there)}")
    held_out = _held_out(config)
    if held_out:
        lines.append(f"held_out={config.held_out}: RLinf trains on all real episodes, the {held_out} held out here among them")
    return lines


def _held_out(config: StageTwoConfig) -> int:
    if config.held_out >= 0:
        return config.held_out
    return sum(episode.get("split") == HELD_OUT for root in roots(config.real) for episode in read_sidecar(root)["episodes"])
