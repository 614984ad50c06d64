"""What benchmarks of the whole path share: the commands of the tutorial, and demonstrations to begin with."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from rlco_trainer.config import StageOneConfig, load_stage_config

POLICIES = ("flow", "token")    # compact_flow, which the configurations are for, and compact_token


def stage_one(task: str, policy: str) -> list[str]:
    """What Stage I is told beside a task's configuration: of compact_flow's `policy_config` the other keeps the encoder's."""
    if policy == "flow":
        return []
    shipped = load_stage_config(StageOneConfig, f"{task}_stage1", []).policy_config
    kept = {name: value for name, value in shipped.items() if name == "encoder"}
    return [f"policy=compact_{policy}", f"policy_config={json.dumps(kept)}"]


def rlco(*arguments) -> None:
    """Run an `rlco` command; ends the benchmark when it fails."""
    print(f"$ rlco {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, "-m", "rlco_trainer.cli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    heads = list(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def prepare(out: Path, task: str, real: int, sim: int) -> None:
    """Demonstrations of a task, recorded over ROS on the stand-in (`out/real`) and made in the twin (`out/sim`)."""
    if not (out / "real" / "meta" / "rlco.json").exists():
        rlco("record", task, "-n", real, "--out", out / "bags")
        rlco("dataset", "build", out / "bags", "--out", out / "real", "--ignore-audit")
    simulate(out / "sim", task, sim)


def simulate(out: Path, task: str, count: int, *options: str) -> None:
    """Demonstrations in the twin, if they are not there yet; options: further ones of `rlco demos`."""
    if not (out / "meta" / "rlco.json").exists():
        rlco("demos", task, "-n", count, "--out", out, *options)
