"""Does Stage II learn? From Stage I policies of middling skill to a target success in the twin, for several seeds.

    make bench-learning                                                         # 12 runs of up to an hour; can be resumed
    python benchmarks/learning.py --tasks push_cube --policies flow --seeds 1   # one run
    python benchmarks/learning.py ... --name ppo_alone --set replay.updates=0 places.weight=0   # an ablation, same start

Every run starts from its own Stage I policy, uses the shipped configuration of its task, with SETTINGS, and ends when the
measured success (greedy, 200 SELECTION states) reaches the target, or by time. Start and end are then compared on 200
EVALUATION states that no run has seen, in the twin and on the stand-in, which training never touches. A run has one
simulating process and one thread, so that two fit on two cores: minutes are those of about one core.
"""

import os

os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1")

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline import POLICIES, markdown, prepare, rlco, simulate, stage_one

from rlco_common.records import read_records, success_rate
from rlco_trainer.metrics import read_metrics

DEMOS = {"push_cube": 45, "pick_place": 600}    # of the twin: few enough that Stage I leaves RL something to do
MISSED = {"pick_place": 600}                    # of them in addition, beginning after a missed grasp
REAL = 25
# Of Stage II, beside the task's configuration; see docs/explanation/stage2_learning.md
SETTINGS = {("pick_place", "token"): ["policy_config.temperature=0.5"]}
FRESH = 200         # EVALUATION states, and SELECTION states of each measurement
EVERY = 10          # iterations between two measurements


@dataclass(frozen=True)
class Run:
    """A Stage II run of one task, policy and seed; `name` tells ablations apart."""

    out: Path
    task: str
    policy: str
    seed: int
    name: str

    @property
    def cell(self) -> Path:
        return self.data / f"{self.policy}_{self.seed}"

    @property
    def data(self) -> Path:
        return self.out / self.task

    def carry_out(self, minutes: float, target: float, settings: list[str]) -> None:
        """Whatever of demonstrations, Stage I, Stage II and evaluation is not there yet."""
        prepare(self.data, self.task, REAL, DEMOS[self.task])
        real, sft = self.data / "real", self.cell / "sft"
        sims = [self.data / "sim"]
        if self.task in MISSED:
            sims.append(self.data / "missed")
            simulate(sims[1], self.task, MISSED[self.task], "--variation", "start=missed", "--skip", "20000")
        sim = f"[{','.join(map(str, sims))}]"
        if not (sft / "policy").exists():
            rlco("train", "stage1", f"{self.task}_stage1", f"out={sft}", f"real={real}", f"sim={sim}", f"seed={self.seed}",
                 *stage_one(self.task, self.policy))
        if not (self.cell / self.name / "policy").exists():
            rlco("train", "stage2", f"{self.task}_stage2", f"out={self.cell / self.name}", f"start={sft / 'policy'}",
                 f"real={real}", f"replay.demos={sim}", f"seed={self.seed}", "workers=1", "threads=1", "iterations=2000",
                 f"time_limit_s={60 * minutes}", f"target_success={target}", f"measure_episodes={FRESH}",
                 f"measure_every={EVERY}", *SETTINGS.get((self.task, self.policy), []), *settings)
        for stage in ("sft", self.name):
            for domain in ("twin", "standin"):
                rlco("eval", self.cell / stage / "policy", "--name", stage, "--task", self.task, "--domain", domain,
                     "--trials", FRESH, "--records", self.cell / "trials.jsonl")

    def figures(self) -> dict:
        rows = read_metrics(self.cell / self.name / "metrics.jsonl")
        curve = success_curve(rows)
        held_out = [row["real/held_out_loss"] for row in rows if "real/held_out_loss" in row]
        trials = read_records(self.cell / "trials.jsonl")
        rates = {f"{stage} {domain}": str(success_rate(t for t in trials if (t.policy, t.domain) == (key, domain)))
                 for key, stage in (("sft", "start"), (self.name, "end")) for domain in ("twin", "standin")}
        return {"task": self.task, "policy": f"compact_{self.policy}", "seed": self.seed, "run": self.name,
                "iterations": rows[-1]["step"], "minutes": curve[-1][0], "curve": curve,
                "held_out": (held_out[0], held_out[-1]) if held_out else None,
                "rates": rates}


def success_curve(rows: list[dict]) -> list[tuple[float, float]]:
    """(minutes of rollouts and updates, measured success), from the start."""
    minutes, points = 0.0, []
    for row in rows:
        minutes += (row.get("time/rollout_s", 0.0) + row.get("time/update_s", 0.0)) / 60
        if "twin/success" in row:
            points.append((minutes, row["twin/success"]))
    return points


def table(figures: list[dict]) -> str:
    labels = ("start twin", "end twin", "start standin", "end standin")
    heads = ("task", "policy", "seed", "run", "iterations", "minutes", *labels, "held-out real loss")
    return markdown(heads, ([
        row["task"], f"`{row['policy']}`", str(row["seed"]), row["run"], str(row["iterations"]), f"{row['minutes']:.0f}",
        *(row["rates"][label] for label in labels),
        "{:.2f} -> {:.2f}".format(*row["held_out"]) if row["held_out"] else "-",
    ] for row in figures))


def plot(figures: list[dict], target: float, path: Path) -> None:
    """Measured success over minutes: a panel per task, a colour per policy and variant, a line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in figures))
    kinds = list(dict.fromkeys((row["policy"], row["run"]) for row in figures))
    figure, panels = plt.subplots(1, len(tasks), figsize=(5.2 * len(tasks), 3.4), layout="constrained", squeeze=False,
                                  sharey=True)
    for task, axes in zip(tasks, panels[0], strict=True):
        labelled = set()
        for row in (row for row in figures if row["task"] == task):
            kind = row["policy"], row["run"]
            axes.plot(*zip(*row["curve"], strict=True), marker="o", markersize=3, linewidth=1.4,
                      color=f"C{kinds.index(kind)}", label=None if kind in labelled else ", ".join(kind))
            labelled.add(kind)
        axes.axhline(target, color="0.6", linewidth=0.8, linestyle="--")
        axes.set(title=task, xlabel="minutes of Stage II, about one core", ylim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    panels[0][0].set_ylabel(f"greedy success in the twin (n = {FRESH})")
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_learning"))
    parser.add_argument("--tasks", nargs="+", choices=list(DEMOS), default=list(DEMOS))
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=POLICIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=60.0, help="of Stage II, at most")
    parser.add_argument("--target", type=float, default=0.9, help="measured success that ends a run")
    parser.add_argument("--name", default="rl_co", help="of the Stage II runs, to tell ablations apart")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to Stage II's configuration")
    options = parser.parse_args()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    figures = []
    for task in options.tasks:
        for policy in options.policies:
            for seed in options.seeds:
                run = Run(options.out, task, policy, seed, options.name)
                run.carry_out(options.minutes, options.target, options.set)
                figures.append(run.figures())
                print(table(figures[-1:]), flush=True)
    print(f"\n{table(figures)}\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    (options.out / f"{options.name}.json").write_text(json.dumps(figures, indent=1))
    plot(figures, options.target, options.out / f"{options.name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
