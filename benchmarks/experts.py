"""How well the experts do: a markdown table of success with 95 % Wilson intervals, per task, domain, variation and noise.

    .venv/bin/python benchmarks/experts.py                              the scripted experts, n = 200 per row
    .venv/bin/python benchmarks/experts.py --kind planned --tasks pick_place --domains twin --seeds 100

Episodes are those of rlco_common.seeds.SELECTION: never trained on, never used in an evaluation.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rlco_common.contract import load_contract
from rlco_common.records import wilson
from rlco_common.seeds import SELECTION
from rlco_sim_bridge.experts import KINDS
from rlco_sim_bridge.pool import TwinPool
from rlco_sim_bridge.tasks import TASKS
from rlco_sim_bridge.variation import variation_from_text

COLUMNS = ("task", "domain", "variation", "noise", "success", "95 % interval", "n", "failed", "out of time", "mean ticks",
           "s per episode and core")


def measure(pool, noise, kind, seeds, workers) -> list[str]:
    """The cells that depend on the outcome of the episodes `seeds`."""
    begun = time.monotonic()
    rollouts = list(pool.rollout_expert(seeds, noise, kind))
    seconds = (time.monotonic() - begun) * workers / len(seeds)
    ticks = [len(rollout.actions) for rollout in rollouts if rollout.success]
    rate = wilson(len(ticks), len(rollouts))
    failed = sum(rollout.failure for rollout in rollouts)
    mean = f"{sum(ticks) / len(ticks):.1f}" if ticks else "-"
    return [f"{100 * rate.value:.1f} %", f"{100 * rate.low:.1f}-{100 * rate.high:.1f} %", str(rate.trials), str(failed),
            str(rate.trials - len(ticks) - failed), mean, f"{seconds:.2f}"]


def variations_of(task: str, texts: list[str]) -> list[str]:
    """Only pick_place has objects that are held out."""
    return [text for text in texts if task == "pick_place" or "objects=unseen" not in text]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--domains", nargs="+", default=["twin", "standin"], help="names or YAML files")
    parser.add_argument("--variations", nargs="+", default=["", "objects=unseen", "start=perturbed"])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.1, 0.3], help="standard deviation, of the largest action")
    parser.add_argument("--seeds", type=int, default=200, help="episodes per row")
    parser.add_argument("--kind", choices=KINDS, default="scripted")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    contract, seeds = load_contract(), list(SELECTION[:options.seeds])
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for task in options.tasks:
        for domain in options.domains:
            for text in variations_of(task, options.variations):
                with TwinPool(contract, task, domain, options.workers, options.workers, render=False,
                              variation=variation_from_text(text)) as pool:
                    for noise in options.noise:
                        cells = measure(pool, noise, options.kind, seeds, options.workers)
                        print("| " + " | ".join([task, domain, text or "none", str(noise), *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
