"""What benchmarks of the whole path share: the commands of the tutorial, and demonstrations to begin with."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

POLICIES = {"flow": [], "token": ["policy=compact_token", "policy_config={}"]}
"""What Stage I is told, beside a task's configuration, to train compact_flow or compact_token."""


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
