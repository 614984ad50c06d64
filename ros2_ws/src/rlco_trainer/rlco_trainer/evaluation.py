"""The in-process evaluator: many paired trials in twins, one JSON line each."""

from contextlib import nullcontext
from pathlib import Path

from tqdm import tqdm

from rlco_common.contract import Contract
from rlco_common.errors import DataError
from rlco_common.records import TrialRecord, append_records, read_records
from rlco_policy.checkpoint import load_policy
from rlco_sim_bridge.pool import TwinPool
from rlco_sim_bridge.variation import NOMINAL, Variation
from rlco_trainer.rollout import open_pool, run_episodes

BLOCK = 64


def evaluate(checkpoint: Path, name: str, contract: Contract, *, task: str, domain: str, seeds: range | list[int],
             records: Path, variation: Variation = NOMINAL, scenes: int = 16, workers: int = 2,
             pool: TwinPool | None = None, quiet: bool = False) -> list[TrialRecord]:
    """Act greedily from every seed's initial state and append the trials to `records`; return this arm's trials.

    Trials that `records` already holds for this arm, task, domain and variation are not run again, so a killed evaluation
    goes on where it stopped. pool: twins of this task, domain and variation to use instead of opening some. Raises
    DataError when the held trials were made with another checkpoint or contract.
    """
    done = {trial.seed: trial for trial in (read_records(records) if records.exists() else [])
            if (trial.policy, trial.task, trial.domain, trial.variation, trial.over_ros)
            == (name, task, domain, variation.text(), False)}
    for trial in done.values():
        if (trial.checkpoint, trial.contract_hash) != (str(checkpoint), contract.hash):
            raise DataError(f"{records} holds trials of '{name}' made with {trial.checkpoint} (contract {trial.contract_hash});"
                            " use another name or another records file")
    missing = [seed for seed in seeds if seed not in done]
    if missing:
        policy = load_policy(checkpoint, contract)
        opened = nullcontext(pool) if pool is not None else open_pool(
            contract, policy, task, domain, scenes=min(scenes, len(missing)), workers=workers, variation=variation)
        with (opened as pool,
              tqdm(total=len(missing), desc=f"evaluate {name} on {domain}", disable=quiet, dynamic_ncols=True) as bar):
            for start in range(0, len(missing), BLOCK):
                episodes = run_episodes(policy, pool, missing[start : start + BLOCK], on_done=lambda _: bar.update())
                trials = [_trial(episode, checkpoint, name, contract, task, domain, variation) for episode in episodes]
                append_records(records, trials)
                done.update((trial.seed, trial) for trial in trials)
    return [done[seed] for seed in seeds]


def _trial(episode, checkpoint, name, contract, task, domain, variation) -> TrialRecord:
    return TrialRecord(
        policy=name, task=task, domain=domain, seed=episode.seed, instruction=episode.instruction,
        success=episode.success, failure=episode.failure, steps=episode.steps, checkpoint=str(checkpoint),
        contract_hash=contract.hash, variation=variation.text(),
    )
