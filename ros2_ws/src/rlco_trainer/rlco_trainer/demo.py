"""`rlco demo`: the whole method on the stand-in robot, from ROS topics to a deployed policy and a report."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rlco_common.contract import load_contract
from rlco_common.errors import ConfigError, TrainingError
from rlco_common.records import read_records
from rlco_common.seeds import EVALUATION

ARMS = ("real_only", "sft_cotraining", "rl_co")
TASK = "push_cube"


@dataclass(frozen=True)
class Scale:
    """How much of everything. The settings were chosen on the SELECTION seeds, never on the EVALUATION seeds."""

    real_demos: int
    sim_demos: int
    sft_steps: int
    rl_overrides: tuple[str, ...]
    trials: int
    ros_trials: int
    workers: int = 2
    scenes: int = 16


SCALES = {
    "full": Scale(real_demos=20, sim_demos=50, sft_steps=400, rl_overrides=(), trials=100, ros_trials=4),
    "mini": Scale(real_demos=4, sim_demos=8, sft_steps=20, trials=4, ros_trials=1, workers=0, scenes=4, rl_overrides=(
        "iterations=2", "episodes=8", "scenes=4", "workers=0", "measure_episodes=4", "measure_every=1", "min_initial_success=0",
        "held_out=1", "critic_warmup=1", "sft_batch_size=16", "ppo.minibatch_size=16",
        "replay.updates=2", "replay.min_size=16")),
}


def run_demo(out: Path, scale: Scale, *, fresh: bool = False) -> Path:
    """Run every step that `out` does not hold yet; returns the report. A stopped demo goes on where it was.

    Raises ConfigError when `out` holds a demo of another scale, contract or code of steps.
    """
    demo = _Demo(Path(out), scale)
    demo.open(fresh)
    demo.step("record on the stand-in, over ROS", demo.record)
    demo.step("generate simulated demos", demo.simulate)
    demo.step("build the real dataset", demo.build)
    demo.step("train real-only and co-training", demo.stage1)
    demo.step("train RL-Co", demo.stage2)
    demo.step("evaluate the three", demo.evaluate)
    demo.step("deploy RL-Co over ROS", demo.deploy)
    demo.step("write the report", demo.report, always=True)
    return demo.out / "report.html"


class _Demo:
    def __init__(self, out: Path, scale: Scale):
        self.out, self.scale, self.contract = out, scale, load_contract()
        self.state_path = out / "demo.json"
        self.seconds: dict[str, float] = {}
        self.text = ""

    def open(self, fresh: bool) -> None:
        if fresh and self.out.exists():
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.key = hashlib.sha256(json.dumps([asdict(self.scale), self.contract.hash]).encode()).hexdigest()[:16]
        if self.state_path.is_file():
            state = json.loads(self.state_path.read_text())
            if state["key"] != self.key:
                raise ConfigError(f"{self.out} holds a demo with other settings; give --fresh to start over, or another --out")
            self.seconds = state["seconds"]

    def step(self, name: str, run: Callable[[], str], *, always: bool = False) -> None:
        """Run a step and note its time; a step that is done is skipped."""
        if name in self.seconds and not always:
            print(f"[demo] {name}: done before ({self.seconds[name]:.0f} s)", flush=True)
            return
        print(f"[demo] {name} ...", flush=True)
        started = time.monotonic()
        result = run()
        self.seconds[name] = time.monotonic() - started
        self.state_path.write_text(json.dumps({"key": self.key, "seconds": self.seconds}, indent=1))
        print(f"[demo] {name}: {self.seconds[name]:.0f} s; {result}", flush=True)

    # -- the steps

    def record(self) -> str:
        from rlco_trainer.sessions import record_episodes

        return f"{len(record_episodes(self.contract, self.out / 'bags', task=TASK, count=self.scale.real_demos))} bags"

    def simulate(self) -> str:
        from rlco_trainer.dataset.simulated import write_simulated_demos

        frames = write_simulated_demos(self.contract, self.out / "datasets" / "sim", task=TASK, domain="twin",
                                       count=self.scale.sim_demos, noise=0.1, workers=self.scale.workers, overwrite=True)
        return f"{self.scale.sim_demos} episodes, {frames} ticks"

    def build(self) -> str:
        from rlco_trainer.dataset.build import build_dataset

        return build_dataset(self.contract, [self.out / "bags"], self.out / "datasets" / "real", overwrite=True).text()

    def stage1(self) -> str:
        """Both arms at the same number of steps, side by side, one thread each."""
        common = [f"steps={self.scale.sft_steps}", f"real={self.out / 'datasets' / 'real'}"]
        if self.scale.real_demos < 6:
            common.append("held_out=1")
        arms = {"real_only": ["sim=''", "alpha=0.0"], "sft_cotraining": [f"sim={self.out / 'datasets' / 'sim'}"]}
        running = {arm: self._start_rlco("train", "stage1", "push_cube_stage1", f"out={self.out / arm}", *common, *extra)
                   for arm, extra in arms.items()}
        for arm, process in running.items():
            if process.wait() != 0:
                raise TrainingError(f"training {arm} failed; see the message above")
        return ", ".join(running)

    def stage2(self) -> str:
        process = self._start_rlco("train", "stage2", "push_cube_stage2", f"out={self.out / 'rl_co'}",
                                   f"start={self.out / 'sft_cotraining' / 'policy'}", f"real={self.out / 'datasets' / 'real'}",
                                   f"replay.demos={self.out / 'datasets' / 'sim'}", *self.scale.rl_overrides)
        if process.wait() != 0:
            raise TrainingError("Stage II failed; see the message above")
        return "rl_co"

    def evaluate(self) -> str:
        from rlco_policy.checkpoint import load_policy
        from rlco_trainer.evaluation import evaluate
        from rlco_trainer.rollout import open_pool

        seeds = EVALUATION[: self.scale.trials]
        policies = {arm: self.out / arm / "policy" for arm in ARMS}
        for domain in ("standin", "twin"):
            with open_pool(self.contract, load_policy(policies["rl_co"]), TASK, domain, scenes=self.scale.scenes,
                           workers=self.scale.workers) as pool:
                for arm, policy in policies.items():
                    evaluate(policy, arm, self.contract, task=TASK, domain=domain, seeds=seeds,
                             records=self.out / "trials.jsonl", pool=pool)
        return f"{self.scale.trials} paired initial states, two domains"

    def deploy(self) -> str:
        from rlco_trainer.sessions import deploy_episodes

        shutil.rmtree(self.out / "deploy", ignore_errors=True)
        trials = deploy_episodes(self.contract, self.out / "rl_co" / "policy", self.out / "deploy", task=TASK,
                                 seeds=EVALUATION[: self.scale.ros_trials])
        return f"{sum(trial.success for trial in trials)} of {len(trials)} episodes succeeded"

    def report(self) -> str:
        from rlco_trainer.demo_report import write_demo_report

        print(write_demo_report(self.out, self.contract, TASK, self.seconds), flush=True)
        return str(self.out / "report.html")

    @staticmethod
    def _start_rlco(*arguments: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "rlco_trainer.cli", *arguments])


def all_trials(out: Path):
    """The records of a demo: in-process ones, then those over ROS."""
    return [trial for path in (out / "trials.jsonl", out / "deploy" / "trials.jsonl") if path.exists()
            for trial in read_records(path)]
