"""Runs a policy in many twins at once until a list of episodes is finished; serves Stage II and the evaluator."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlco_common.contract import Contract
from rlco_policy.interface import ModelInputs, ObsBatch, VLAPolicy
from rlco_trainer.batches import rows

if TYPE_CHECKING:
    from rlco_sim_bridge.pool import TwinPool


@dataclass
class Episode:
    """One finished episode. The lists have an entry per chunk; all but `rewards` stay empty when acting greedily."""

    seed: int
    instruction: str
    success: bool = False
    failure: bool = False
    steps: int = 0
    inputs: list[ModelInputs] = field(default_factory=list)
    traces: list[dict[str, Tensor]] = field(default_factory=list)
    logprobs: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


@contextmanager
def open_pool(contract: Contract, policy: VLAPolicy, task: str, domain: str, *, scenes: int, workers: int) -> Iterator["TwinPool"]:
    """A pool whose images come at the policy's size."""
    from rlco_sim_bridge.pool import TwinPool

    pool = TwinPool(contract, task, domain, scenes=scenes, workers=workers, image_size=policy.spec.image_size)
    try:
        yield pool
    finally:
        pool.close()


def run_episodes(policy: VLAPolicy, pool: "TwinPool", seeds: list[int], *, generator: torch.Generator | None = None,
                 on_done: Callable[[Episode], None] | None = None) -> list[Episode]:
    """Run every seed's episode to its end and return them in the order of `seeds`.

    generator: sample with exploration and keep what PPO needs; None: act greedily. A scene that finishes takes the next
    seed; the policy looks, and a picture is rendered, once per chunk. Reward: 1 in the chunk that succeeds, else 0.
    """
    waiting = list(reversed(seeds))
    scenes = min(pool.scenes, len(seeds))
    first = [waiting.pop() for _ in range(scenes)]
    batch = pool.reset(first + [None] * (pool.scenes - scenes))
    running = {scene: Episode(seed, batch.instructions[scene]) for scene, seed in enumerate(first)}
    finished: dict[int, Episode] = {}
    while running:
        active = sorted(running)
        actions = np.zeros((pool.scenes, policy.spec.chunk, policy.spec.action_dim))
        actions[active] = _decide(policy, batch, active, running, generator)
        following = [waiting[-1 - i] if i < len(waiting) else None for i in range(len(active))]
        reset_seeds: list[int | None] = [None] * pool.scenes
        for scene, seed in zip(active, following, strict=True):
            reset_seeds[scene] = seed
        batch = pool.step_chunks(actions, reset_seeds=reset_seeds, active=active)
        for scene in active:
            episode = running[scene]
            episode.rewards.append(float(batch.success[scene]))
            if batch.done[scene]:
                _finish(episode, batch, scene)
                finished[episode.seed] = running.pop(scene)
                if on_done is not None:
                    on_done(episode)
        _start_next(running, active, waiting, reset_seeds, batch)
    return [finished[seed] for seed in seeds]


def collate(episodes: list[Episode], gamma: float, lam: float):
    """Turn sampled episodes into one RlBatch with advantages normalised over all of it (mean 0, std 1)."""
    from rlco_trainer.ppo import RlBatch, chunk_logprob, generalized_advantages

    advantages, returns = [], []
    for episode in episodes:
        pair = generalized_advantages(torch.tensor(episode.rewards), torch.stack(episode.values), gamma, lam)
        advantages.append(pair[0])
        returns.append(pair[1])
    advantage = torch.cat(advantages)
    names = episodes[0].inputs[0], episodes[0].traces[0]
    chunks = [(inputs, trace) for episode in episodes for inputs, trace in zip(episode.inputs, episode.traces, strict=True)]
    return RlBatch(
        inputs={name: torch.stack([inputs[name] for inputs, _ in chunks]) for name in names[0]},
        trace={name: torch.stack([trace[name] for _, trace in chunks]) for name in names[1]},
        logprob=chunk_logprob(torch.stack([row for episode in episodes for row in episode.logprobs])),
        value=torch.cat([torch.stack(episode.values) for episode in episodes]),
        advantage=(advantage - advantage.mean()) / (advantage.std() + 1e-8),
        returns=torch.cat(returns),
    )
