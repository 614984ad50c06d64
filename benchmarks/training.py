"""Stage II and plain training loops in one run on one machine: control steps per second, updates included.

    make bench-train                                        # all sides in turns, where the time goes; about six minutes
    python benchmarks/training.py --race 20 --target 0.8    # instead: train each side for up to 20 minutes

All sides learn push_cube from 64 px pictures of the twin with two simulating processes:

  ours       Stage II as the shipped configuration has it: TwinPool, a picture per chunk of 4 actions, rollouts beside the
             update.
  plain      the same Stage II (policy, replay, real batches) on stock ManiSkill environments: one scene a process, full robot,
             a picture at each control step, rollouts and updates in turns.
  maniskill  PPO as ManiSkill's RGB baseline sets it up (Gaussian policy on a NatureCNN, one action per picture, dense reward,
             4 epochs of 32 minibatches), on the same stock environments in gymnasium's AsyncVectorEnv, two threads for the
             updates. It starts from nothing: a recipe without demonstrations.

A control step is one action that a scene carried out. Evaluations and start-up are not in the throughput.
"""

import os

os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1")   # before anything starts threads; worker processes inherit it

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from sim import PROCESSES, MakeStock, measured, spread, stock_name
from torch import nn

from rlco_common.contract import Contract, load_contract
from rlco_common.observation import Observation, encode_image, encode_proprioception
from rlco_common.pose import Pose
from rlco_common.seeds import RL, SELECTION
from rlco_sim_bridge.pool import ChunkBatch, ObservationBatch, TwinPool
from rlco_sim_bridge.pool_worker import NO_RESET
from rlco_trainer.config import StageOneConfig, StageTwoConfig, load_stage_config
from rlco_trainer.dataset.simulated import write_simulated_demos
from rlco_trainer.denormals import flushed_denormals
from rlco_trainer.stage1 import train_stage1
from rlco_trainer.stage2 import StageTwo

TASK, SIZE = "push_cube", 64
SIDES = ["ours", "plain", "maniskill"]
DEMOS = {"real": ("standin", 25), "sim": ("twin", 45)}
MEASURED = 100          # SELECTION episodes of a measured success rate
PLAIN_EPISODES = 24     # of an iteration of the plain loop, so that its turn does not take minutes


class Stopwatch:
    """Seconds spent inside the functions that it wraps, by label."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def wrap(self, label: str, function):
        def timed(*arguments, **options):
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - started
        return timed


class TimedPool:
    """A pool whose waiting times a stopwatch takes."""

    def __init__(self, pool, watch: Stopwatch):
        self.scenes, self.groups, self.drain = pool.scenes, pool.groups, pool.drain
        self.reset = watch.wrap("reset", pool.reset)
        self.begin_chunks, self.end_chunks = pool.begin_chunks, watch.wrap("waiting for the simulators", pool.end_chunks)


class Ours:
    """Stage II; a turn is an iteration."""

    def __init__(self, config: StageTwoConfig, contract: Contract, pool):
        self.run, self.watch = StageTwo(config, contract), Stopwatch()
        self._pool = TimedPool(pool, self.watch)
        self.pids = pool.worker_pids
        self.threads = config.threads
        self.turn = self.watch.wrap("turn", self.turn)
        actor = self.run.rollouts.policy
        actor.sample = self.watch.wrap("policy", actor.sample)
        for name, label in (("ppo_phase", "critic"), ("replay_phase", "replay update")):
            setattr(self.run, name, self.watch.wrap(label, getattr(self.run, name)))

    def turn(self) -> int:
        """Control steps of one iteration. Rollouts begun in it are waited for: the next side has the machine to itself."""
        rollout, metrics = self.run.collect(self._pool, more=True)
        self.run.update(rollout)
        self.run.step += 1
        self.run.rollouts.wait()
        return int(metrics["rollout/steps"])

    def shares(self) -> dict[str, float]:
        """Share of the turns' time that each part was under way; they add up to more than 1 where parts run beside others."""
        seconds = dict(self.watch.seconds)
        whole = seconds.pop("turn")
        return {label: spent / whole for label, spent in seconds.items()}

    def success(self, pool) -> float:
        return self.run.measure(pool)

    def close(self):
        self.run.close()


class StockPool:
    """What TwinPool does, done the plain way: a stock environment in each process, a picture at each control step."""

    def __init__(self, contract: Contract):
        self.scenes, self.groups = PROCESSES, [list(range(PROCESSES))]
        context = multiprocessing.get_context("spawn")
        self._pipes, theirs = zip(*(context.Pipe() for _ in range(PROCESSES)), strict=True)
        self._processes = [context.Process(target=serve_stock, args=(pipe,), daemon=True) for pipe in theirs]
        for process in self._processes:
            process.start()
        self.worker_pids = [process.pid for process in self._processes]
        self._seen: list = [None] * PROCESSES
        self._ended = np.zeros((PROCESSES, 4), dtype=np.int64)   # success, failure, done, steps
        self._ended[:, 2] = 1

    def reset(self, seeds) -> ObservationBatch:
        started = [scene for scene, seed in enumerate(seeds) if seed != NO_RESET]
        for scene in started:
            self._pipes[scene].send(("reset", int(seeds[scene])))
        for scene in started:
            self._seen[scene], self._ended[scene] = self._pipes[scene].recv(), 0
        return self._observations()

    def begin_chunks(self, scenes, actions: np.ndarray, reset_seeds, ending) -> None:
        """Of all scenes, carried out here and now."""
        executed = np.zeros(PROCESSES, dtype=np.int64)
        for tick in range(actions.shape[1]):
            acting = [scene for scene in range(PROCESSES) if not self._ended[scene, 2]]
            for scene in acting:
                self._pipes[scene].send(("step", actions[scene, tick]))
            for scene in acting:
                self._seen[scene], outcome = self._pipes[scene].recv()
                self._ended[scene] = (*outcome, self._ended[scene, 3] + 1)
                executed[scene] += 1
        self._ended[:, 2] |= np.array(ending)
        success, failure, done, steps = self._ended.T.copy()
        observations = self.reset([seed if ended else NO_RESET for seed, ended in zip(reset_seeds, done, strict=True)])
        self._outcome = ChunkBatch(observations, success > 0, failure > 0, done > 0, steps, executed)

    def end_chunks(self) -> ChunkBatch:
        return self._outcome

    def drain(self):
        """Nothing is ever under way."""

    def _observations(self) -> ObservationBatch:
        blank = next(seen for seen in self._seen if seen is not None)
        images, proprioception, instructions, places = zip(*(seen or blank for seen in self._seen), strict=True)
        return ObservationBatch({name: np.stack([each[name] for each in images]) for name in blank[0]},
                                np.stack(proprioception), list(instructions), np.stack(places))

    def close(self):
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5.0)
            process.kill()


def serve_stock(pipe):
    """Main of a process of StockPool."""
    environment, contract = MakeStock(stock_name(TASK), SIZE, robot_visuals="full")(), load_contract()
    base = environment.unwrapped

    def seen(observation):
        pose, qpos = base.agent.tcp.pose, base.agent.robot.get_qpos()[0].numpy()
        images = {name: np.asarray(camera["rgb"]) for name, camera in observation["sensor_data"].items()}
        now = Observation(images, Pose(pose.p[0].numpy(), pose.q[0, [1, 2, 3, 0]].numpy()),
                          contract.robot.gripper_opening(qpos[7]), qpos[:7], 0)
        return ({name: encode_image(image, SIZE) for name, image in images.items()}, encode_proprioception(contract, now),
                base.sample(int(base._episode_seed[0])).instruction, base.places()[0].numpy())

    while True:
        try:
            command, argument = pipe.recv()
        except EOFError:
            return
        if command == "reset":
            pipe.send(seen(environment.reset(seed=argument)[0]))
        else:
            observation, _, terminated, truncated, info = environment.step(argument.astype(np.float32))
            pipe.send((seen(observation), (bool(info["success"]), bool(info["fail"]), bool(terminated or truncated))))


class Named(gym.ObservationWrapper):
    """Says which cube is meant, as numbers: the baseline does not read instructions."""

    def __init__(self, env):
        super().__init__(env)
        extra = env.observation_space["extra"]
        named = gym.spaces.Box(0.0, 1.0, (len(env.unwrapped.bodies),), np.float32)
        self.observation_space = gym.spaces.Dict({**env.observation_space, "extra": gym.spaces.Dict({**extra, "named": named})})

    def observation(self, observation):
        named = self.unwrapped.named[0].numpy().astype(np.float32)
        return {**observation, "extra": {**observation["extra"], "named": named}}


def named_stock():
    return Named(MakeStock(stock_name(TASK), SIZE, robot_visuals="full")())


class GaussianActor(nn.Module):
    """The baseline's network: NatureCNN features of the picture, a linear layer for the state, two heads of 512 units."""

    def __init__(self, state_dim: int, action_dim: int):
        super().__init__()

        def layer(inputs, outputs, gain=2**0.5):
            linear = nn.Linear(inputs, outputs)
            nn.init.orthogonal_(linear.weight, gain)
            nn.init.zeros_(linear.bias)
            return linear

        self.picture = nn.Sequential(nn.Conv2d(3, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
                                     nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(256), nn.ReLU())
        self.state = nn.Linear(state_dim, 256)
        self.mean = nn.Sequential(layer(512, 512), nn.ReLU(), layer(512, action_dim, 0.01 * 2**0.5))
        self.critic = nn.Sequential(layer(512, 512), nn.ReLU(), layer(512, 1))
        self.log_std = nn.Parameter(torch.full((action_dim,), -0.5))

    def forward(self, picture, state):
        """(action distribution, value [B]) of uint8 [B, H, W, 3] and float32 [B, S]."""
        features = torch.cat([self.picture(picture.permute(0, 3, 1, 2).float() / 255), self.state(state)], 1)
        return torch.distributions.Normal(self.mean(features), self.log_std.exp()), self.critic(features)[:, 0]


class ManiSkillPpo:
    """PPO with the numbers of ManiSkill's ppo_rgb.py; a turn is a rollout of `steps` in each environment and its update."""

    lr, gamma, lam, clip, value_weight, target_kl, epochs, minibatches, steps = 3e-4, 0.8, 0.9, 0.2, 0.5, 0.2, 4, 32, 256
    threads = PROCESSES

    def __init__(self, contract: Contract):
        torch.manual_seed(0)
        self._envs = gym.vector.AsyncVectorEnv([named_stock] * PROCESSES, context="spawn",
                                               autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
        self.pids = [process.pid for process in self._envs.processes]
        action = contract.action
        self._middle, self._half = (action.high + action.low) / 2, (action.high - action.low) / 2
        self._camera = next(iter(contract.cameras))
        observations, _ = self._envs.reset(seed=list(RL[:PROCESSES]))
        self._now = self._tensors(observations)
        self.actor = GaussianActor(self._now[1].shape[1], action.dim)
        self.actor(*self._now)                              # the lazy layer takes its shape
        self._optimizer = torch.optim.Adam(self.actor.parameters(), lr=self.lr, eps=1e-5)

    def _tensors(self, observations):
        agent, extra = observations["agent"], observations["extra"]
        state = np.concatenate([agent["qpos"], agent["qvel"], extra["tool_pose"], extra["named"]], axis=-1)
        return (torch.from_numpy(observations["sensor_data"][self._camera]["rgb"].copy()),
                torch.from_numpy(state.astype(np.float32)))

    def physical(self, actions: torch.Tensor) -> np.ndarray:
        """Normalised [..., A] -> physical, within the limits."""
        return self._middle + self._half * actions.clamp(-1, 1).numpy()

    def turn(self) -> int:
        shape = self.steps, PROCESSES
        pictures, states, actions = [], [], []
        logprob, value, reward, ended, after = (torch.zeros(shape) for _ in range(5))
        with torch.no_grad():
            for t in range(self.steps):
                distribution, value[t] = self.actor(*self._now)
                action = distribution.sample()
                logprob[t] = distribution.log_prob(action).sum(1)
                for store, item in zip((pictures, states, actions), (*self._now, action), strict=True):
                    store.append(item)
                observations, rewards, terminated, truncated, infos = self._envs.step(self.physical(action).astype(np.float32))
                self._now = self._tensors(observations)
                reward[t], ended[t] = torch.from_numpy(rewards).float(), torch.from_numpy(terminated | truncated).float()
                for env in np.flatnonzero(terminated | truncated):     # as the baseline does, also after a termination
                    last = self._tensors({key: _first(part) for key, part in infos["final_obs"][env].items()})
                    after[t, env] = self.actor(*last)[1][0]
            following, gain, advantage = self.actor(*self._now)[1], torch.zeros(PROCESSES), torch.zeros(shape)
            for t in reversed(range(self.steps)):
                goes_on = 1 - ended[t]
                error = reward[t] + self.gamma * (goes_on * following + after[t]) - value[t]
                gain = error + self.gamma * self.lam * goes_on * gain
                advantage[t], following = gain, value[t]
        flat = [torch.cat(items) for items in (pictures, states, actions)] + [
            part.reshape(-1) for part in (logprob, advantage, advantage + value)]
        self._update(*flat)
        return self.steps * PROCESSES

    def _update(self, pictures, states, actions, logprob, advantage, returns):
        for _ in range(self.epochs):
            for part in torch.randperm(len(actions)).chunk(self.minibatches):
                distribution, value = self.actor(pictures[part], states[part])
                log_ratio = distribution.log_prob(actions[part]).sum(1) - logprob[part]
                ratio = log_ratio.exp()
                if float((ratio.detach() - 1 - log_ratio.detach()).mean()) > self.target_kl:
                    return
                scaled = (advantage[part] - advantage[part].mean()) / (advantage[part].std() + 1e-8)
                surrogate = torch.max(-scaled * ratio, -scaled * ratio.clamp(1 - self.clip, 1 + self.clip)).mean()
                loss = surrogate + self.value_weight * 0.5 * (value - returns[part]).square().mean()
                self._optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.actor.parameters(), 0.5)
                self._optimizer.step()

    @torch.no_grad()
    def success(self, pool) -> float:
        """Of the mean action, measured in its own environments on the seeds that the other sides are measured on; on the first
        20 alone if none of these succeeds."""
        successes = 0
        for first in range(0, MEASURED, PROCESSES):
            if first == 20 and not successes:
                return 0.0
            self._now = self._tensors(self._envs.reset(seed=list(SELECTION[first : first + PROCESSES]))[0])
            open_ones = np.ones(PROCESSES, dtype=bool)
            while open_ones.any():
                action = self.actor(*self._now)[0].mean
                observations, _, terminated, truncated, infos = self._envs.step(self.physical(action).astype(np.float32))
                self._now = self._tensors(observations)
                over = open_ones & (terminated | truncated)
                successes += int((infos["final_info"]["success"] & over).sum()) if over.any() else 0
                open_ones &= ~over
        return successes / MEASURED

    def close(self):
        self._envs.close()


def _first(part):
    return {key: _first(item) for key, item in part.items()} if isinstance(part, dict) else np.asarray(part)[None]


def prepare(root: Path, contract: Contract) -> Path:
    """Demonstrations of the scripted expert and a Stage I policy, in `root`; the policy."""
    for name, (domain, count) in DEMOS.items():
        if not (root / name).exists():
            write_simulated_demos(contract, root / name, task=TASK, domain=domain, count=count, noise=0.1, workers=PROCESSES)
    return train_stage1(load_stage_config(StageOneConfig, f"{TASK}_stage1", [
        f"out={root / 'stage1'}", f"real={root / 'real'}", f"sim={root / 'sim'}"]))


def open_sides(root: Path, contract: Contract, stack: ExitStack) -> tuple[dict, TwinPool]:
    """(side by name, the pool in which success is measured)."""
    shipped = [f"start={root / 'stage1' / 'policy'}", f"real={root / 'real'}", f"replay.demos={root / 'sim'}",
               "iterations=100000", f"measure_episodes={MEASURED}"]

    def closing(side):
        stack.callback(side.close)
        return side

    def config(name, *more):
        return load_stage_config(StageTwoConfig, f"{TASK}_stage2", [*shipped, f"out={root / name}", *more])

    settings = config("ours")
    stack.enter_context(flushed_denormals())
    pool = closing(TwinPool(contract, TASK, settings.domain, scenes=settings.scenes, workers=PROCESSES, image_size=SIZE))
    return {
        "ours": closing(Ours(settings, contract, pool)),
        "plain": Ours(config("plain", f"episodes={PLAIN_EPISODES}", "overlap=false"), contract, closing(StockPool(contract))),
        "maniskill": closing(ManiSkillPpo(contract)),
    }, pool


def throughput(sides: dict, turns: int) -> dict:
    """Control steps per second and per second of processor time, the sides taking turns; prints the table."""
    speeds = {name: {"per_s": [], "per_cpu_s": []} for name in sides}
    for side in sides.values():
        torch.set_num_threads(side.threads)
        side.turn()             # warm-up: also the iteration in which only the critic learns
        if isinstance(side, Ours):
            side.watch.seconds.clear()
    for turn in range(turns):
        for name, side in sides.items():
            torch.set_num_threads(side.threads)
            steps, took, used = measured(side.pids, side.turn)
            speeds[name]["per_s"].append(steps / took)
            speeds[name]["per_cpu_s"].append(steps / used)
            print(f"turn {turn + 1}/{turns} {name:10s} {speeds[name]['per_s'][-1]:7.1f} steps/s", flush=True)
    print(f"\n{'side':10s} | control steps/s (min / median / max) | ours is faster by time | by processor time")
    for name, speed in speeds.items():
        ratios = [statistics.median(ours / other for ours, other in zip(speeds["ours"][unit], speed[unit], strict=True))
                  for unit in ("per_s", "per_cpu_s")]
        print(f"{name:10s} | {spread(speed['per_s']):>36s} | {ratios[0]:21.1f}x | {ratios[1]:16.1f}x")
    return speeds


def race(sides: dict, pool, minutes: float, target: float) -> dict:
    """Train each side until it reaches the target or its time is over: (training seconds, processor seconds, steps, success) as
    they went. Processor time is what can be compared on a machine with other work."""
    curves = {}
    for name, side in sides.items():
        torch.set_num_threads(side.threads)
        spent, used, steps, curve = 0.0, 0.0, 0, [(0.0, 0.0, 0, side.success(pool))]
        while spent < 60 * minutes and curve[-1][-1] < target:
            totals = zip((steps, spent, used), measured(side.pids, side.turn), strict=True)
            steps, spent, used = (total + more for total, more in totals)
            if spent - curve[-1][0] > max(min(60.0, 6 * minutes), spent / 5):       # a slow side is measured less often
                curve.append((spent, used, steps, side.success(pool)))
                print(f"{name:10s} {spent:6.0f} s ({used:6.0f} s of processors) {steps:8d} steps  success {curve[-1][-1]:.0%}",
                      flush=True)
        curves[name] = curve
    return curves


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--race", type=float, metavar="MINUTES", help="instead: train each side for so long, compare success")
    parser.add_argument("--target", type=float, default=0.8, help="success at which a side of the race is done")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--work", type=Path, help="keep demonstrations and Stage I policy here; use those that are there")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    contract, figures = load_contract(), {"cores": os.cpu_count(), "load": os.getloadavg()}
    with ExitStack() as stack:
        root = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlco_bench_")))
        started, used = time.perf_counter(), sum(os.times()[:4])
        prepare(root, contract)
        print(f"demonstrations and Stage I of ours: {time.perf_counter() - started:.0f} s "
              f"({sum(os.times()[:4]) - used:.0f} s of processors)", flush=True)
        sides, pool = open_sides(root, contract, stack)
        sides = {name: side for name, side in sides.items() if name in options.sides}
        if options.race:
            figures["race"] = race(sides, pool, options.race, options.target)
        else:
            figures["speeds"] = throughput(sides, options.turns)
            figures["shares"] = {name: side.shares() for name, side in sides.items() if isinstance(side, Ours)}
            for name, shares in figures["shares"].items():
                parts = ", ".join(f"{label} {share:.0%}" for label, share in sorted(shares.items(), key=lambda item: -item[1]))
                print(f"where the time of {name} goes: {parts}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
