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
from rlco_sim_bridge.pool import ChunkBatch, ObservationBatch
from rlco_sim_bridge.pool_worker import NO_RESET
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
    the policy looks, and a picture is rendered, once per chunk. While one group of the pool's scenes steps, the policy decides
    for the other; who decides when does not depend on how long that takes. Reward: 1 in the chunk that succeeds, else 0.
    """
    run = _Episodes(pool, seeds, max_chunks)
    under_way: deque[_Group] = deque()
    try:
        while run.left or under_way:
            for group in run.groups:
                if cancelled():
                    return []
                if group in under_way:
                    for episode in run.take(under_way.popleft(), pool.end_chunks()):
                        if on_done is not None:
                            on_done(episode)
                if run.begin(group, policy, generator):
                    under_way.append(group)
    finally:
        pool.drain()
    return [run.finished[seed] for seed in seeds]


@dataclass(eq=False)
class _Group:
    """Scenes that step together. observations: of `scenes`, in their order; next_seeds: what they start when they are done."""

    scenes: list[int]
    observations: ObservationBatch
    next_seeds: list[int] = field(default_factory=list)


class _Episodes:
    """Which episode runs in which scene, and which ones wait."""

    def __init__(self, pool: ScenePool, seeds: list[int], max_chunks: int):
        self._pool, self._max_chunks = pool, max_chunks
        self.finished: dict[int, Episode] = {}
        self._waiting, self._rank = deque(seeds), {seed: rank for rank, seed in enumerate(seeds)}
        first = [self._waiting.popleft() if self._waiting else NO_RESET for _ in range(pool.scenes)]
        seen = pool.reset(first)
        self._running = {scene: Episode(seed, seen.instructions[scene]) for scene, seed in enumerate(first) if seed != NO_RESET}
        used = [[scene for scene in group if scene in self._running] for group in pool.groups]
        self.groups = [_Group(scenes, seen.of(scenes)) for scenes in used if scenes]

    @property
    def left(self) -> bool:
        """Whether an episode runs or waits."""
        return bool(self._running or self._waiting)

    def begin(self, group: _Group, policy: VLAPolicy, generator: torch.Generator | None) -> bool:
        """Decide for the group's running episodes and begin their chunks. False: it has nothing to do."""
        acting = [row for row, scene in enumerate(group.scenes) if scene in self._running]
        if not acting and not self._waiting:
            return False
        actions = np.zeros((len(group.scenes), policy.spec.chunk, policy.spec.action_dim))
        if acting:
            episodes = [self._running[group.scenes[row]] for row in acting]
            actions[acting] = _decide(policy, group.observations.of(acting), episodes, generator)
        # scenes that have nothing to do come first when the seeds run out
        group.next_seeds = [NO_RESET] * len(group.scenes)
        for row in sorted(range(len(group.scenes)), key=lambda row: group.scenes[row] in self._running):
            if self._waiting:
                group.next_seeds[row] = self._waiting.popleft()
        chunks = [len(self._running[scene].rewards) + 1 if scene in self._running else 0 for scene in group.scenes]
        ending = [0 < self._max_chunks == count for count in chunks]
        self._pool.begin_chunks(group.scenes, actions, group.next_seeds, ending)
        return True

    def take(self, group: _Group, outcome: ChunkBatch) -> list[Episode]:
        """Note the group's outcome and start the next episodes; those that ended."""
        ended, unused = [], []
        group.observations = outcome.observations
        for row, (scene, seed) in enumerate(zip(group.scenes, group.next_seeds, strict=True)):
            episode = self._running.get(scene)
            if episode is not None:
                episode.rewards.append(float(outcome.success[row]))
                if outcome.done[row]:
                    episode.success, episode.failure = bool(outcome.success[row]), bool(outcome.failure[row])
                    episode.steps = int(outcome.steps[row])
                    self.finished[episode.seed] = self._running.pop(scene)
                    ended.append(episode)
            if seed == NO_RESET:
                continue
            if outcome.done[row]:
                self._running[scene] = Episode(seed, outcome.observations.instructions[row])
            else:
                unused.append(seed)
        self._waiting.extendleft(sorted(unused, key=self._rank.get, reverse=True))
        return ended


@torch.no_grad()
def _decide(policy, observations: ObservationBatch, episodes: list[Episode], generator) -> np.ndarray:
    """The next action chunk [n, chunk, 7] of n episodes; sampled ones are noted in them."""
    inputs = policy.preprocess(ObsBatch(
        {name: torch.from_numpy(images) for name, images in observations.images.items()},
        torch.from_numpy(observations.proprioception), observations.instructions))
    if generator is None:
        return policy.act(inputs).cpu().numpy()
    sampled = policy.sample(inputs, generator=generator)
    inputs, trace = moved(inputs, "cpu"), moved(sampled.trace, "cpu")
    actions, logprob, value = sampled.actions.cpu(), sampled.logprob.cpu(), sampled.value.cpu()
    for row, episode in enumerate(episodes):
        episode.inputs.append(rows(inputs, row))
        episode.traces.append(rows(trace, row))
        episode.actions.append(actions[row])
        episode.logprobs.append(logprob[row])
        episode.values.append(value[row])
        episode.places.append(torch.from_numpy(observations.places[row]))
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
