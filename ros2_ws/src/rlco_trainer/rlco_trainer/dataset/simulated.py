"""Simulated demonstrations: an expert in a twin, written as a LeRobot dataset."""

from pathlib import Path

from tqdm import tqdm

from rlco_common.contract import Contract
from rlco_common.episode import EpisodeMetadata
from rlco_common.errors import ConfigError
from rlco_common.seeds import SIM_DEMOS
from rlco_sim_bridge.demos import DemoGenerator
from rlco_sim_bridge.pool_worker import Rollout
from rlco_sim_bridge.variation import NOMINAL, Variation
from rlco_trainer.dataset.episode import episode_from_steps, idle_ticks
from rlco_trainer.dataset.packed import PackedEpisode, pack
from rlco_trainer.dataset.spool import EpisodeSpool
from rlco_trainer.dataset.writer import require_absent, write_dataset


def write_simulated_demos(contract: Contract, out: Path, *, task: str, domain: str, count: int, noise: float, workers: int,
                          expert: str = "scripted", variation: Variation = NOMINAL, skip: int = 0,
                          overwrite: bool = False, quiet: bool = False) -> int:
    """Write `count` successful expert episodes of `task` in `domain`; failures are rejected. Returns the frame count.

    expert: its kind, see rlco_sim_bridge.experts.make_expert. skip: this many seeds are left out, so that two datasets of a
    task show different scenes; without it all begin with the same.

    A stopped generation leaves its episodes beside `out`, and the same call goes on from there; the dataset is the same as
    without the stop. Raises ConfigError when `out` exists (see overwrite), when held-out objects are asked for, or when
    `skip` leaves no seeds.
    """
    if variation.objects != "seen":
        raise ConfigError("demonstrations never show the held-out objects; leave out objects=unseen")
    if not 0 <= skip < len(SIM_DEMOS):
        raise ConfigError(f"skip is {skip}; give 0 to {len(SIM_DEMOS) - 1}, there are {len(SIM_DEMOS)} seeds")
    seeds = SIM_DEMOS[skip:]
    out = Path(out)
    require_absent(out, overwrite)
    recipe = {"kind": "simulated", "task": task, "domain": str(domain), "expert": expert, "noise": noise,
              "variation": variation.text(), "first_seed": seeds.start, "contract_hash": contract.hash}
    spool = EpisodeSpool(out.with_name(f".{out.name}.demos"), recipe, contract.to_json())
    _generate(contract, spool, seeds, task, domain, count, noise, workers, expert, variation, quiet)
    kept = _seeds(spool)[:count]
    episodes = tqdm(spool.episodes(map(str, kept)), total=len(kept), desc=f"write {out.name}", disable=quiet,
                    dynamic_ncols=True)
    frames = write_dataset(out, contract, episodes, overwrite=overwrite,
                           lineage=recipe | {"rejected": kept[-1] - seeds.start + 1 - len(kept)})
    spool.remove()
    return frames


def _generate(contract, spool, seeds, task, domain, count, noise, workers, expert, variation, quiet) -> None:
    """Fill the spool up to `count` episodes. Seeds are taken in order, so what it holds is always a beginning."""
    held = _seeds(spool)
    if len(held) >= count:
        return
    seeds = range(held[-1] + 1 if held else seeds.start, seeds.stop)
    generator = DemoGenerator(contract, task, domain, seeds, count - len(held), noise=noise, workers=workers, kind=expert,
                              variation=variation)
    with tqdm(total=count, initial=len(held), desc=f"demos {task} in {domain}", disable=quiet, dynamic_ncols=True) as bar:
        for demo in generator:
            spool.put(str(demo.seed), _episode(contract, demo, task, domain, expert, variation))
            bar.set_postfix(rejected=generator.rejected)
            bar.update()


def _seeds(spool: EpisodeSpool) -> list[int]:
    return sorted(map(int, spool.keys()))


def _episode(contract: Contract, demo: Rollout, task: str, domain: str, expert: str, variation: Variation) -> PackedEpisode:
    metadata = EpisodeMetadata(
        episode=f"{task}-{domain}-{demo.seed}", task=task, instruction=demo.instruction, domain=domain,
        operator=f"{expert} expert", seed=demo.seed, contract_hash=contract.hash, contract=contract.to_json(), success=True,
        variation=variation.text())
    episode = episode_from_steps(contract, demo.observations, demo.intended, metadata)
    return pack(episode.select(~idle_ticks(episode.actions)), {"kind": "simulated"})
