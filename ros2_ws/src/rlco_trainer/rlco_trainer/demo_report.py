"""Collects what a demo made into its report: records, pictures, films, lineage."""

from pathlib import Path

import numpy as np

from rlco_common.contract import Contract
from rlco_common.seeds import EVALUATION
from rlco_teleop.bags import find_episodes, read_episode_metadata
from rlco_trainer.dataset.build import read_streams
from rlco_trainer.dataset.reader import read_sidecar
from rlco_trainer.demo import ARMS, all_trials
from rlco_trainer.report import ReportInput, lineage_entry, policy_lineage, write_report

FILM_SCALE = 3
FILM_FPS = 10


def write_demo_report(out: Path, contract: Contract, task: str, step_seconds: dict[str, float]) -> str:
    """Write `out/report.html` and `out/report.txt`; returns the text."""
    source = ReportInput(
        title="RL-Co on the stand-in robot: push the named cube",
        trials=all_trials(out), runs={arm: out / arm for arm in ARMS}, step_seconds=step_seconds, lineage=_lineage(out),
        pictures=_pictures(contract, task), videos=_films(contract, out), commands=_commands(out, task),
        notes=["Settings were chosen on other initial states than the evaluated ones."],
    )
    text = write_report(source, out / "report.html")
    (out / "report.txt").write_text(text + "\n", encoding="utf-8")
    return text


def _pictures(contract: Contract, task: str) -> dict[str, np.ndarray]:
    """The same initial state in both domains, large for people, and as the policy gets it."""
    from rlco_sim_bridge.view import side_by_side

    return {f"Initial state {seed}: twin (left) and stand-in (right)": side_by_side(contract, task, seed=seed)
            for seed in EVALUATION[:2]}


def _films(contract: Contract, out: Path) -> dict[str, Path]:
    """The robot camera's own pictures of every deployed episode, from the bags."""
    import imageio.v2 as imageio

    films = {}
    for bag in find_episodes(out / "deploy"):
        metadata = read_episode_metadata(bag)
        camera = next(iter(contract.cameras))
        samples = read_streams(contract, bag).images[camera]
        path = out / "deploy" / f"{bag.name}.mp4"
        with imageio.get_writer(path, fps=_rate(samples.stamps_ns), codec="libx264", quality=7, macro_block_size=2) as film:
            for image in samples.values:
                film.append_data(np.kron(image(), np.ones((FILM_SCALE, FILM_SCALE, 1), np.uint8)))
        films[f"{metadata.instruction} (initial state {metadata.seed}): {'success' if metadata.success else 'failed'}"] = path
    return films


def _rate(stamps_ns: list[int]) -> float:
    """Pictures per second of a stream, from its stamps."""
    gaps = np.diff(stamps_ns)
    return float(np.clip(1e9 / np.median(gaps), 1, 60)) if len(gaps) and np.median(gaps) > 0 else FILM_FPS


def _lineage(out: Path) -> list[dict]:
    links = []
    for name in ("real", "sim"):
        sidecar = read_sidecar(out / "datasets" / name)
        lineage = sidecar["lineage"]
        made_from = ", ".join(f"{bag} {digest}" for bag, digest in lineage.get("bags", {}).items()) or str(lineage)
        links.append(lineage_entry("dataset", name, sidecar["content_hash"], made_from))
    return links + [policy_lineage(arm, out / arm / "policy") for arm in ARMS]


def _commands(out: Path, task: str) -> list[str]:
    return [
        f"rlco record {task} -n 20 --out {out}/bags",
        f"rlco demos {task} -n 60 --out {out}/datasets/sim",
        f"rlco dataset build {out}/bags --out {out}/datasets/real",
        f"rlco train stage1 push_cube_stage1 out={out}/sft_cotraining real={out}/datasets/real sim={out}/datasets/sim",
        f"rlco train stage2 push_cube_stage2 out={out}/rl_co start={out}/sft_cotraining/policy real={out}/datasets/real",
        f"rlco eval {out}/rl_co/policy --domain standin --trials 100 --records {out}/trials.jsonl",
        f"rlco deploy {out}/rl_co/policy --trials 4 --out {out}/deploy",
    ]
