"""Makes the report of a demo: what its folder holds, and beside it the same scene in both domains."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from rlco_common.contract import Contract
from rlco_common.seeds import EVALUATION
from rlco_trainer.collect import collect
from rlco_trainer.report import write_report


def write_demo_report(out: Path, contract: Contract, task: str, step_seconds: dict[str, float]) -> str:
    """Write `out/report.html` and `out/report.txt`; returns the text."""
    found = collect([out], contract, "RL-Co on the stand-in robot: push the named cube")
    source = replace(found, step_seconds=step_seconds, pictures=_pictures(contract, task), notes=[
        "Settings were chosen on other initial states than the evaluated ones.", "One training seed per regime.", *found.notes])
    text = write_report(source, out / "report.html")
    (out / "report.txt").write_text(text + "\n", encoding="utf-8")
    return text


def _pictures(contract: Contract, task: str) -> dict[str, np.ndarray]:
    """The same initial state in both domains, large for people."""
    from rlco_sim_bridge.view import side_by_sides

    seeds = EVALUATION[:2]
    return {f"Initial state {seed}: twin (left) and stand-in (right)": picture
            for seed, picture in zip(seeds, side_by_sides(contract, task, seeds), strict=True)}
