"""Runs a policy in many twins at once until a list of episodes is finished; serves Stage II and the evaluator."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlco_common.contract import Contract
from rlco_policy.interface import ModelInputs, ObsBatch, VLAPolicy
from rlco_sim_bridge.pool import NO_RESET
from rlco_sim_bridge.scenes import Backend, ScenePool, open_scenes
from rlco_sim_bridge.variation import NOMINAL, Variation
from rlco_trainer.batches import moved, rows, stacked
from rlco_trainer.config import PpoConfig
from rlco_trainer.ppo import RlBatch, generalized_advantages, joint_logprob, shaped


@dataclass
class Episode:
    """One finished episode. The lists have an entry per chunk; all but `rewards` stay empty when acting greedily. Tensors are
    on the CPU, whatever the policy's device.

    actions: [chunk, A] physical. logprobs: [chunk, A]. places: [6], what SceneState.places says of the moment.
    """

    seed: int
    instruction: str
    success: bool = False
    failure: bool = False
    steps: int = 0
    inputs: list[ModelInputs] = field(default_factory=list)
    traces: list[dict[str, Tensor]] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    logprobs: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


@contextmanager
def open_pool(contract: Contract, policy: VLAPolicy, task: str, domain: str, *, scenes: int, workers: int,
              variation: Variation = NOMINAL, backend: Backend = "cpu") -> Iterator[ScenePool]:
    """A pool whose images come at the policy's size. backend: see open_scenes."""
    pool = open_scenes(contract, task, domain, scenes=scenes, workers=workers, variation=variation, backend=backend,
                       image_size=policy.spec.image_size)
    try:
        yield pool
    finally:
        pool.close()


def run_episodes(policy: VLAPolicy, pool: ScenePool, seeds: list[int], *, generator: torch.Generator | None = None,
                 max_chunks: int = 0, on_done: Callable[[Episode], None] | None = None,
                 cancelled: Callable[[], bool] = lambda: False) -> list[Episode]:
    """Run every seed's episode to its end and return them in the order of `seeds`; none once `cancelled`.

    generator: sample with exploration and keep what PPO needs; None: act greedily. max_chunks: an episode that is not done
    after so many chunks ends as it is; 0 = never. cancelled: asked once per chunk. A scene that finishes takes the next seed;
    the policy looks, and a picture is rendered, once per chunk. Reward: 1 in the chunk that succeeds, else 0.
    """
    waiting = deque(seeds)
    running: dict[int, Episode] = {}
    finished: dict[int, Episode] = {}
    observations = _start_waiting(pool, range(pool.scenes), waiting, running)
    while running:
        if cancelled():
            return []
        active = sorted(running)
        actions = np.zeros((pool.scenes, policy.spec.chunk, policy.spec.action_dim))
        actions[active] = _decide(policy, observations, active, running, generator)
        outcome = pool.step_chunks(actions)
        observations = outcome.observations
        free = []
        for scene in active:
            episode = running[scene]
            episode.rewards.append(float(outcome.success[scene]))
            if outcome.done[scene] or len(episode.rewards) == max_chunks:
                episode.success, episode.failure = bool(outcome.success[scene]), bool(outcome.failure[scene])
                episode.steps = int(outcome.steps[scene])
                finished[episode.seed] = running.pop(scene)
                free.append(scene)
                if on_done is not None:
                    on_done(episode)
        if free and waiting:
            observations = _start_waiting(pool, free, waiting, running)
    return [finished[seed] for seed in seeds]


def _start_waiting(pool, free, waiting, running):
    """Start waiting seeds in the free scenes; the observations of all scenes."""
    resets = [NO_RESET] * pool.scenes
    for scene in free:
        if waiting:
            resets[scene] = waiting.popleft()
    observations = pool.reset(resets)
    running.update((scene, Episode(seed, observations.instructions[scene]))
                   for scene, seed in enumerate(resets) if seed != NO_RESET)
    return observations


@torch.no_grad()
def _decide(policy, observations, active, running, generator) -> np.ndarray:
    """The next action chunk [active, chunk, 7] of the running episodes; sampled ones are noted in them."""
    inputs = policy.preprocess(ObsBatch(
        {name: torch.from_numpy(images[active]) for name, images in observations.images.items()},
        torch.from_numpy(observations.proprioception[active]), [observations.instructions[scene] for scene in active],
    ))
    if generator is None:
        return policy.act(inputs).cpu().numpy()
    sampled = policy.sample(inputs, generator=generator)
    inputs, trace = moved(inputs, "cpu"), moved(sampled.trace, "cpu")
    actions, logprob, value = sampled.actions.cpu(), sampled.logprob.cpu(), sampled.value.cpu()
    for row, scene in enumerate(active):
        episode = running[scene]
        episode.inputs.append(rows(inputs, row))
        episode.traces.append(rows(trace, row))
        episode.actions.append(actions[row])
        episode.logprobs.append(logprob[row])
        episode.values.append(value[row])
        episode.places.append(torch.from_numpy(observations.places[scene]))
    return actions.numpy()


def rewards_of(episode: Episode, config: PpoConfig) -> Tensor:
    """[chunk] what the critic learns to expect: 1 in the chunk that succeeds, shaped where the configuration says so."""
    rewards = torch.tensor(episode.rewards)
    return shaped(rewards, config.shaping * progress(episode), config.gamma) if config.shaping else rewards


def returns_of(episode: Episode, config: PpoConfig) -> Tensor:
    """[chunk] discounted rewards from each decision to the episode's end."""
    returns, following = [], 0.0
    for reward in rewards_of(episode, config).flip(0):
        following = reward + config.gamma * following
        returns.append(following)
    return torch.stack(returns[::-1])


def progress(episode: Episode) -> Tensor:
    """[chunk] in [0, 1]: how much of the named object's way to its goal was done when each decision was made."""
    places = torch.stack(episode.places)
    left = (places[:, :3] - places[:, 3:]).norm(dim=1)
    return (1 - left / left[0].clamp(min=1e-6)).clamp(0, 1)


def collate(episodes: list[Episode], config: PpoConfig) -> RlBatch:
    """Turn sampled episodes into one RlBatch with advantages normalised over all of it (mean 0, std 1)."""
    advantages, returns = [], []
    for episode in episodes:
        pair = generalized_advantages(rewards_of(episode, config), torch.stack(episode.values), config.gamma, config.gae_lambda)
        advantages.append(pair[0])
        returns.append(pair[1])
    advantage = torch.cat(advantages)
    return RlBatch(
        inputs=stacked([inputs for episode in episodes for inputs in episode.inputs]),
        trace=stacked([trace for episode in episodes for trace in episode.traces]),
        logprob=joint_logprob(torch.stack([row for episode in episodes for row in episode.logprobs]), config.level),
        value=torch.cat([torch.stack(episode.values) for episode in episodes]),
        advantage=(advantage - advantage.mean()) / (advantage.std() + 1e-8),
        returns=torch.cat(returns),
    )
