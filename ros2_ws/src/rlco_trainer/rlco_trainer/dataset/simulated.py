"""Simulated demonstrations: the scripted expert in the twin, written as a LeRobot dataset."""

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from rlco_common.contract import Contract
from rlco_common.episode import EpisodeMetadata
from rlco_common.seeds import SIM_DEMOS
from rlco_sim_bridge.demos import DemoGenerator
from rlco_trainer.dataset.episode import AlignedEpisode, episode_from_steps, idle_ticks
from rlco_trainer.dataset.writer import write_dataset


def write_simulated_demos(contract: Contract, out: Path, *, task: str, domain: str, count: int, noise: float, workers: int,
                          overwrite: bool = False, quiet: bool = False) -> int:
    """Write `count` successful expert episodes of `task` in `domain`; failures are rejected. Returns the frame count."""
    lineage = {"kind": "simulated", "expert": "scripted", "noise": noise, "first_seed": SIM_DEMOS.start}
    episodes = _episodes(contract, task, domain, count, noise, workers, quiet)
    return write_dataset(out, contract, episodes, lineage=lineage, overwrite=overwrite)


def _episodes(contract, task, domain, count, noise, workers, quiet) -> Iterator[AlignedEpisode]:
    with tqdm(total=count, desc=f"demos {task} in {domain}", disable=quiet, dynamic_ncols=True) as bar:
        for demo in DemoGenerator(contract, task, domain, SIM_DEMOS, count, noise=noise, workers=workers):
            metadata = EpisodeMetadata(
                episode=f"{task}-{domain}-{demo.seed}", task=task, instruction=demo.instruction, domain=domain,
                operator="scripted expert", seed=demo.seed, contract_hash=contract.hash, contract=contract.to_json(),
                success=True,
            )
            episode = episode_from_steps(contract, demo.observations, demo.intended, metadata)
            bar.update()
            yield episode.select(~idle_ticks(episode.actions))
