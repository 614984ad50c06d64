"""The evaluator: paired trials as a protocol says, in-process or over ROS, one JSON line each."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from rlco_common.contract import Contract, load_contract
from rlco_common.errors import DataError
from rlco_common.records import TrialRecord, append_records, read_records
from rlco_policy.checkpoint import load_policy, read_description
from rlco_policy.opening import SCHEMES
from rlco_sim_bridge.pool import TwinPool
from rlco_sim_bridge.variation import NOMINAL, Variation, variation_from_text
from rlco_trainer.protocol import Planned, Protocol, photo_hash, protocol_text, trial_order
from rlco_trainer.rollout import open_pool, run_episodes

BLOCK = 64
RECORDS = "trials.jsonl"


def run_protocol(protocol: Protocol, *, quiet: bool = False, say: Callable[[str], None] = print,
                 watch: Callable[[], None] | None = None,
                 on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[TrialRecord]:
    """Run every trial that `out/trials.jsonl` does not hold yet; returns all of the protocol's trials in their order.

    say: told what the operator of a real table has to do. watch: called while waiting, may raise to stop. on_progress:
    called with trials done and trials in all. Raises DataError when held trials were made with another checkpoint, contract
    or photograph.
    """
    contract = load_contract(protocol.contract)
    contract.task(protocol.task)
    variation = variation_from_text(protocol.variation, "variation")
    protocol.out.mkdir(parents=True, exist_ok=True)
    (protocol.out / "protocol.yaml").write_text(protocol_text(protocol), encoding="utf-8")
    records, order = protocol.out / RECORDS, trial_order(protocol)
    about = {"task": protocol.task, "domain": protocol.domain}
    if not protocol.ros:
        done = {}
        for arm, checkpoint in protocol.checkpoints.items():
            trials = evaluate(Path(checkpoint), arm, contract, **about, seeds=protocol.initial_states, records=records,
                              variation=variation, workers=protocol.workers, quiet=quiet)
            done |= {Planned(arm, trial.seed): trial for trial in trials}
            on_progress(len(done), len(order))
            if watch is not None:
                watch()
        return [done[planned] for planned in order]
    return _run_over_ros(protocol, contract, variation, order, records, quiet, say, watch, on_progress)


def _run_over_ros(protocol, contract, variation, order, records, quiet, say, watch, on_progress) -> list[TrialRecord]:
    digests = {arm: checkpoint_digest(checkpoint) for arm, checkpoint in protocol.checkpoints.items()}
    photos = {seed: photo_hash(protocol.states[seed].photo) for seed in protocol.initial_states} if protocol.real else {}
    done = {}
    for arm, checkpoint in protocol.checkpoints.items():
        held = held_trials(records, arm, checkpoint, digests[arm], contract, task=protocol.task, domain=protocol.domain,
                           variation=variation, over_ros=True, states=photos)
        done |= {Planned(arm, seed): trial for seed, trial in held.items()}
    missing = [planned for planned in order if planned not in done]

    def finish(planned: Planned, trial: TrialRecord) -> None:
        trial = replace(trial, checkpoint_digest=digests[planned.arm], state=photos.get(planned.seed, ""),
                        video=_film(protocol, contract, trial), bag=_relative(trial.bag, protocol.out))
        append_records(records, [trial])
        done[planned] = trial
        on_progress(sum(key in done for key in order), len(order))

    if missing and protocol.real:
        from rlco_trainer.real_table import run_real_trials

        run_real_trials(protocol, contract, missing, finish, say=say, watch=watch)
    elif missing:
        from rlco_trainer.sessions import run_simulated_trials

        run_simulated_trials(contract, protocol.checkpoints, missing, protocol.out / "bags", finish, task=protocol.task,
                             domain=protocol.domain, variation=variation, lockstep=protocol.lockstep,
                             asynchronous=protocol.asynchronous, blind=protocol.blind, device=protocol.device,
                             contract_source=protocol.contract, quiet=quiet, watch=watch)
    return [done[planned] for planned in order]


def _film(protocol: Protocol, contract: Contract, trial: TrialRecord) -> str:
    if not (protocol.videos and trial.bag):
        return ""
    from rlco_trainer.film import film_of_bag

    path = film_of_bag(contract, Path(trial.bag), protocol.out / "videos" / f"{Path(trial.bag).name}.mp4")
    return "" if path is None else _relative(path, protocol.out)


def _relative(path: str | Path, start: Path) -> str:
    return os.path.relpath(path, start) if path else ""


def evaluate(checkpoint: Path, name: str, contract: Contract, *, task: str, domain: str, seeds: range | list[int],
             records: Path, variation: Variation = NOMINAL, scenes: int = 16, workers: int = 2,
             pool: TwinPool | None = None, quiet: bool = False) -> list[TrialRecord]:
    """Act greedily from every seed's initial state and append the trials to `records`; return this arm's trials.

    Trials that `records` already holds for this arm, task, domain and variation are not run again, so a killed evaluation
    goes on where it stopped. pool: twins of this task, domain and variation to use instead of opening some. Raises
    DataError when the held trials were made with another checkpoint or contract.
    """
    digest = checkpoint_digest(checkpoint)
    done = held_trials(records, name, checkpoint, digest, contract, task=task, domain=domain, variation=variation,
                       over_ros=False)
    missing = [seed for seed in seeds if seed not in done]
    if missing:
        policy = load_policy(checkpoint, contract)
        opened = nullcontext(pool) if pool is not None else open_pool(
            contract, policy, task, domain, scenes=min(scenes, len(missing)), workers=workers, variation=variation)
        with (opened as pool,
              tqdm(total=len(missing), desc=f"evaluate {name} on {domain}", disable=quiet, dynamic_ncols=True) as bar):
            for start in range(0, len(missing), BLOCK):
                episodes = run_episodes(policy, pool, missing[start : start + BLOCK], on_done=lambda _: bar.update())
                trials = [TrialRecord(
                    policy=name, task=task, domain=domain, seed=episode.seed, instruction=episode.instruction,
                    success=episode.success, failure=episode.failure, steps=episode.steps, checkpoint=str(checkpoint),
                    contract_hash=contract.hash, variation=variation.text(), checkpoint_digest=digest) for episode in episodes]
                append_records(records, trials)
                done.update((trial.seed, trial) for trial in trials)
    return [done[seed] for seed in seeds]


def checkpoint_digest(checkpoint: str | Path) -> str:
    """16 hex digits of a checkpoint; empty for a policy server, which tells none."""
    return "" if str(checkpoint).startswith(SCHEMES) else read_description(checkpoint)["digest"][:16]


def held_trials(records: Path, name: str, checkpoint: str | Path, digest: str, contract: Contract, *, task: str, domain: str,
                variation: Variation, over_ros: bool, states: dict[int, str] | None = None) -> dict[int, TrialRecord]:
    """seed -> trial that `records` holds of this arm. states: seed -> hash of the photograph.

    Raises DataError when one of them was made with another checkpoint, contract or photograph: they are never mixed.
    """
    held = {trial.seed: trial for trial in (read_records(records) if records.exists() else [])
            if (trial.policy, trial.task, trial.domain, trial.variation, trial.over_ros)
            == (name, task, domain, variation.text(), over_ros)}
    for trial in held.values():
        same = (trial.checkpoint, trial.contract_hash) == (str(checkpoint), contract.hash)
        if not same or (trial.checkpoint_digest or digest) != digest:
            raise DataError(f"{records} holds trials of '{name}' made with {trial.checkpoint} {trial.checkpoint_digest} "
                            f"(contract {trial.contract_hash}), not {checkpoint} {digest} ({contract.hash}); use another "
                            "name or another records file")
        if states and trial.seed in states and trial.state != states[trial.seed]:
            raise DataError(f"{records} holds a trial of '{name}' from another photograph of state {trial.seed}; use another "
                            "directory, or add states at the end of the list only")
    return held
