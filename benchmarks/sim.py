"""Stock ManiSkill and our twins side by side in one run: control steps per second with the images that a policy needs.

    make bench-sim                                    # all tasks at 64 and 128 px, under five minutes on two idle cores
    python benchmarks/sim.py --quick                  # one task, one size, under a minute
    python benchmarks/sim.py --soak 30                # only: 30 minutes of rollouts, does memory grow?

Stock: the registered environment of the same task with the robot's full visual meshes, `obs_mode="rgb"` at the size that is
measured, ManiSkill's own "minimal" shader, a picture at each step, and the CPU vectorisation that its documentation recommends:
gymnasium's AsyncVectorEnv over CPUGymWrapper. Ours: a TwinPool that renders the contract's camera once per chunk of 4 actions
and encodes it to that size; also shown with a picture after every action. PickCube-v1 is ManiSkill's own task as it comes
(5 physics steps per control step; ours and stock take 20). Every side has two processes, the same random small actions, and one
thread per process; repetitions take turns, and a ratio compares neighbours in time. The ratio by processor time holds on a
machine that is busy with other things, too.
"""

import os

os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1")   # before anything starts threads; worker processes inherit it

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image

from rlco_common.contract import load_contract
from rlco_sim_bridge.pool import TwinPool
from rlco_sim_bridge.tasks import TASKS

PROCESSES = 2
SCENES = 16             # of a pool, over all processes
CHUNK = 4
ACTION_SHARE = 0.3      # of the contract's limits
MIB = 2**20


class Stock:
    """ManiSkill as its documentation recommends it for a CPU; `step` renders at each control step."""

    def __init__(self, make):
        self._env = gym.vector.AsyncVectorEnv([make] * PROCESSES, context="spawn")
        self._env.reset(seed=0)
        self.pids = [process.pid for process in self._env.processes]
        self._space = self._env.action_space

    def run(self, seconds: float, rng) -> int:
        """Control steps in at least `seconds`."""
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds or not steps:
            middle, half = (self._space.high + self._space.low) / 2, (self._space.high - self._space.low) / 2
            self._env.step((middle + ACTION_SHARE * half * rng.uniform(-1, 1, middle.shape)).astype(np.float32))
            steps += PROCESSES
        return steps

    def close(self):
        self._env.close()


class Ours:
    """A TwinPool; `chunk` actions are carried out for each picture."""

    def __init__(self, contract, task, size, chunk=CHUNK, pool=None):
        self.pool = pool or TwinPool(contract, task, "twin", scenes=SCENES, workers=PROCESSES, image_size=size)
        self._chunk, self._action, self._seed = chunk, contract.action, 0
        self.pool.reset(range(SCENES))
        self.pids = self.pool.worker_pids

    def run(self, seconds: float, rng) -> int:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds or not steps:
            steps += int(self._step(rng).executed.sum())
        return steps

    def _step(self, rng):
        middle, half = (self._action.high + self._action.low) / 2, (self._action.high - self._action.low) / 2
        actions = middle + ACTION_SHARE * half * rng.uniform(-1, 1, (SCENES, self._chunk, len(middle)))
        self._seed += SCENES
        return self.pool.step_chunks(actions, range(self._seed, self._seed + SCENES))

    def close(self):
        self.pool.close()


def stock_environment(name: str, size: int, options: dict):
    """Runs in a process of its own."""
    import torch
    from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper

    import rlco_sim_bridge.environment  # noqa: F401  registers our tasks

    torch.set_num_threads(1)
    camera = {"width": size, "height": size, "shader_pack": "minimal"}
    return CPUGymWrapper(gym.make(name, num_envs=1, obs_mode="rgb", sim_backend="physx_cpu", render_backend="cpu",
                                  sensor_configs=camera, **options))


class MakeStock:
    """Picklable factory of a stock environment."""

    def __init__(self, name, size, **options):
        self._arguments = (name, size, options)

    def __call__(self):
        return stock_environment(*self._arguments)


def memory_mib(pid: int) -> tuple[float, float, float]:
    """(RSS, PSS, anonymous) of a process. PSS counts shared pages in parts, so it changes with other processes; anonymous
    memory is what the process has allocated itself."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0]) * 1024 / MIB
    return fields["Rss"], fields["Pss"], fields["Anonymous"]


def cpu_seconds(pids) -> float:
    """Processor time that the processes and this one have used."""
    used = sum(os.times()[:2])
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def measured(pids, work) -> tuple:
    """(what `work` returns, seconds, processor seconds of the processes and this one)."""
    started, used = time.perf_counter(), cpu_seconds(pids)
    result = work()
    return result, time.perf_counter() - started, cpu_seconds(pids) - used


def in_turns(sides: dict, repetitions: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """side -> {"per_s": control steps per second, "per_cpu_s": per second of processor time}, the sides taking turns."""
    rng, speeds = np.random.default_rng(0), {name: {"per_s": [], "per_cpu_s": []} for name in sides}
    for side in sides.values():
        side.run(0.2 * seconds, rng)
    for _ in range(repetitions):
        for name, side in sides.items():
            steps, took, used = measured(side.pids, lambda side=side: side.run(seconds, rng))
            speeds[name]["per_s"].append(steps / took)
            speeds[name]["per_cpu_s"].append(steps / used)
    return speeds


def spread(values) -> str:
    return f"{min(values):.1f} / {statistics.median(values):.1f} / {max(values):.1f}"


HEADER = """
                  |    stock, steps/s    |    ours, steps/s      | ours over stock,   | by pro- | ours, a | PSS, MiB
                  |                      |  a picture a chunk    | by time            | cessor  | picture | a process
task           px |   min / median / max |   min / median / max  |  min / med. / max  | time    | a step  | stock ours
------------------|----------------------|-----------------------|--------------------|---------|---------|-----------"""


def print_row(label, size, speeds, memory):
    by_cpu, every = statistics.median(ratios(speeds, "per_cpu_s")), statistics.median(speeds["every"]["per_s"])
    used = [max(pss for _, pss, _ in memory[side]) for side in ("stock", "ours")]
    print(f"{label:13s} {size:4d}| {spread(speeds['stock']['per_s']):>20s} | {spread(speeds['ours']['per_s']):>21s} | "
          f"{spread(ratios(speeds, 'per_s')):>18s} | {by_cpu:7.1f} | {every:7.1f} | {used[0]:5.0f} {used[1]:5.0f}", flush=True)


def ratios(speeds: dict, unit: str) -> list[float]:
    """Ours over stock, repetition by repetition."""
    return [ours / stock for ours, stock in zip(speeds["ours"][unit], speeds["stock"][unit], strict=True)]


def stock_name(task: str) -> str:
    """Under which our environment of a task is registered."""
    return "Rlco" + "".join(part.title() for part in task.split("_")) + "-v1"


def compare(contract, task: str, size: int, stock: MakeStock, label: str, options) -> dict:
    """One row of the table, printed at once."""
    with ExitStack() as stack:
        def closing(side):
            stack.callback(side.close)
            return side

        ours = closing(Ours(contract, task, size))
        sides = {"stock": closing(Stock(stock)), "ours": ours, "every": Ours(contract, task, size, chunk=1, pool=ours.pool)}
        speeds = in_turns(sides, options.repetitions, options.seconds)
        memory = {name: [memory_mib(pid) for pid in sides[name].pids] for name in ("stock", "ours")}
    print_row(label, size, speeds, memory)
    return {"label": label, "size": size, "speeds": speeds, "memory_mib": memory}


def further_scene_mib(task: str, scenes: int = 12) -> float:
    """PSS that one more scene in the same process costs. Runs in a process of its own."""
    from rlco_sim_bridge.twin import Twin

    twins, used = [], []
    for _ in range(1 + scenes):
        twins.append(Twin(load_contract(), task))
        twins[-1].reset(0)
        used.append(memory_mib(os.getpid())[1])
    return (used[-1] - used[0]) / scenes


def soak(contract, tasks: list[str], minutes: float) -> dict:
    """Rollouts of all tasks for so long; the anonymous memory of all workers over time and its slope."""
    rng, samples, steps = np.random.default_rng(0), [], 0
    with ExitStack() as stack:
        pools = [stack.enter_context(TwinPool(contract, task, "twin", scenes=4, workers=1, image_size=64)) for task in tasks]
        for pool in pools:
            pool.reset(range(4))
        start = time.monotonic()
        middle, half = (contract.action.high + contract.action.low) / 2, (contract.action.high - contract.action.low) / 2
        while (passed := time.monotonic() - start) < 60 * minutes:
            for pool in pools:
                actions = middle + half * rng.uniform(-1, 1, (4, CHUNK, contract.action.dim))
                steps += int(pool.step_chunks(actions, rng.integers(0, 2**31, 4)).executed.sum())
            if not samples or passed - samples[-1][0] > min(10.0, 6 * minutes):
                samples.append((passed, sum(memory_mib(pid)[2] for pool in pools for pid in pool.worker_pids)))
                print(f"{passed / 60:6.1f} min  {samples[-1][1]:8.1f} MiB in {len(pools)} workers  {steps} steps", flush=True)
    late = np.array([sample for sample in samples if sample[0] > 20 * minutes])      # the first third is warm-up
    slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] * 3600 if len(late) > 2 else float("nan")
    print(f"{steps} control steps in {minutes:g} min; after the first third {late[0, 1]:.1f} -> {late[-1, 1]:.1f} MiB, "
          f"growth {slope:+.1f} MiB per hour in all {len(tasks)} workers")
    return {"minutes": minutes, "steps": steps, "samples": samples, "growth_mib_per_hour": slope}


def side_by_side(contract, options) -> dict:
    """The table."""
    print(f"{os.cpu_count()} cores, {PROCESSES} processes a side, {options.repetitions} repetitions of {options.seconds:g} s "
          f"in turns{HEADER}", flush=True)
    figures = {"rows": [compare(contract, task, size, MakeStock(stock_name(task), size, robot_visuals="full"), task, options)
                        for size in options.sizes for task in options.tasks]}
    for unit, words in (("per_s", "time"), ("per_cpu_s", "processor time")):
        medians = figures[f"median_ratios_{unit}"] = [statistics.median(ratios(row["speeds"], unit)) for row in figures["rows"]]
        print(f"  median ratios by {words}: {min(medians):.1f} to {max(medians):.1f}", flush=True)
    if not options.quick:
        print("ManiSkill's own task against our pick_place:", flush=True)
        figures["rows"] += [compare(contract, "pick_place", size, MakeStock("PickCube-v1", size), "PickCube-v1", options)
                            for size in options.sizes]
        with multiprocessing.get_context("spawn").Pool(1) as process:
            figures["further_scene_mib"] = process.apply(further_scene_mib, (options.tasks[0],))
        print(f"a further scene in one of our processes: {figures['further_scene_mib']:.1f} MiB PSS; in stock it is a process")
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="push_cube at 64 px only, without PickCube-v1")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128], help="pixels of the policy's square image")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each repetition of each side")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="rollouts for so long instead; reports growth of memory")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the full against the light robot instead")
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.sizes, options.repetitions = ["push_cube"], [64], 3
    contract = load_contract()
    if options.figure:
        from rlco_sim_bridge.view import robot_visuals

        Image.fromarray(robot_visuals(contract, "open_drawer")).save(options.figure)
        return 0
    figures = soak(contract, options.tasks, options.soak) if options.soak else side_by_side(contract, options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
