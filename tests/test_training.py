"""Training runs: resume is bit-exact, refusals come early, evaluation is paired and resumable."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from policies import weights

from rlco_common.errors import DataError, TrainingError
from rlco_common.records import TrialRecord, append_records, read_records
from rlco_policy.checkpoint import load_policy, read_description
from rlco_trainer import stage2
from rlco_trainer.batches import held_out_loss
from rlco_trainer.config import PpoConfig, ReplayConfig, StageOneConfig, StageTwoConfig
from rlco_trainer.dataset.reader import load_demos
from rlco_trainer.evaluation import evaluate
from rlco_trainer.memory import resident_bytes
from rlco_trainer.metrics import read_metrics
from rlco_trainer.rollout import open_pool, run_episodes
from rlco_trainer.run_state import latest_run
from rlco_trainer.stage1 import train_stage1
from rlco_trainer.stage2 import StageTwo, train_stage2

POLICIES = ("compact_flow", "compact_token")


def stage1_config(datasets, out, policy="compact_flow", **changes):
    return StageOneConfig(out=out, real=str(datasets["real"]), sim=str(datasets["sim"]), policy=policy, held_out=1,
                          **{"steps": 6, "batch_size": 8, "save_every": 3, "monitor_every": 3, "log_every": 1} | changes)


def stage2_config(datasets, start, out, **changes):
    settings = {"iterations": 4, "episodes": 3, "scenes": 2, "workers": 0, "measure_episodes": 2, "measure_every": 2,
                "min_initial_success": 0.0, "held_out": 1, "sft_batch_size": 8, "critic_warmup": 1, "save_every": 2,
                "ppo": PpoConfig(minibatch_size=8)} | changes
    return StageTwoConfig(out=out, start=start, real=str(datasets["real"]), **settings)


def same_weights(a, b, contract) -> bool:
    first, second = load_policy(a, contract).state_dict(), load_policy(b, contract).state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def whole_and_resumed(config_of, tmp_path):
    """Policies of a Stage II run, `whole`, and of the same run stopped after two iterations and resumed, `cut`."""
    whole = train_stage2(config_of(tmp_path / "whole"), quiet=True)
    config = config_of(tmp_path / "cut")
    train_stage2(config, stop_after=2, quiet=True)
    return whole, train_stage2(config, quiet=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_stage1_resumed_equals_uninterrupted(tiny_datasets, tmp_path, contract, policy):
    whole = train_stage1(stage1_config(tiny_datasets, tmp_path / "whole", policy), quiet=True)
    config = stage1_config(tiny_datasets, tmp_path / "cut", policy)
    halfway = train_stage1(config, stop_after=3, quiet=True)
    assert not same_weights(whole, halfway, contract)
    resumed = train_stage1(config, quiet=True)
    assert same_weights(whole, resumed, contract)
    losses = [[row["sft/loss"] for row in read_metrics(tmp_path / run / "metrics.jsonl") if "sft/loss" in row]
              for run in ("whole", "cut")]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


def test_stage2_resumed_equals_uninterrupted(tiny_datasets, untrained, tmp_path, contract):
    start = untrained["compact_flow"]
    whole, resumed = whole_and_resumed(lambda out: stage2_config(tiny_datasets, start, out), tmp_path)
    assert same_weights(whole, resumed, contract)
    assert not same_weights(start, resumed, contract)
    rows = read_metrics(tmp_path / "cut" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all("real/held_out_loss" in row for row in rows)
    description = read_description(resumed)["lineage"]
    assert (description["stage"], description["step"]) == (2, 4)
    assert description["start"]["digest"] == read_description(start)["digest"]


def test_a_cut_checkpoint_is_ignored_on_resume(tiny_datasets, tmp_path):
    config = stage1_config(tiny_datasets, tmp_path / "run")
    train_stage1(config, stop_after=3, quiet=True)
    whole = latest_run(config.out)
    (config.out / "checkpoints" / ".00000006.part").mkdir()     # a kill in the middle of the next save
    assert latest_run(config.out) == whole
    train_stage1(config, quiet=True)
    assert latest_run(config.out).name == "00000006"


def test_stage1_learns_its_data(tiny_datasets, tmp_path, contract):
    config = stage1_config(tiny_datasets, tmp_path / "run", steps=60, batch_size=16, save_every=60, monitor_every=60)
    train_stage1(config, quiet=True)
    losses = [row["sft/loss"] for row in read_metrics(config.out / "metrics.jsonl") if "sft/loss" in row]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_held_out_loss_is_a_fixed_yardstick(tiny_datasets, untrained, contract):
    policy = load_policy(untrained["compact_flow"], contract)
    demos = load_demos(tiny_datasets["real"], contract, 64)
    assert held_out_loss(policy, demos) == held_out_loss(policy, demos)
    with torch.no_grad():
        for parameter in policy.param_groups()["policy"]:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert held_out_loss(policy, demos) != held_out_loss(load_policy(untrained["compact_flow"], contract), demos)


def test_stage2_refuses_a_policy_that_never_succeeds(tiny_datasets, untrained, tmp_path):
    config = stage2_config(tiny_datasets, untrained["compact_token"], tmp_path / "run", min_initial_success=0.05)
    with pytest.raises(TrainingError, match=r"0% of 2 twin episodes(.|\n)*Fig. 5"):
        train_stage2(config, quiet=True)


@pytest.mark.long
def test_stage2_stops_when_there_is_nothing_to_learn(tiny_datasets, untrained, tmp_path):
    config = stage2_config(tiny_datasets, untrained["compact_token"], tmp_path / "run", iterations=20, beta=0.0,
                           measure_every=100)
    with pytest.raises(TrainingError, match="the same return"):
        train_stage2(config, quiet=True)
    assert len(read_metrics(config.out / "metrics.jsonl")) <= 8


@pytest.mark.parametrize("surrogate_weight", [0.0, 1.0])
def test_the_average_acts_in_rollouts_only_where_ppo_does_not_learn_from_them(tiny_datasets, untrained, tmp_path, contract,
                                                                              monkeypatch, surrogate_weight):
    config = stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "run", ema=0.5,
                           ppo=PpoConfig(minibatch_size=8, surrogate_weight=surrogate_weight))
    run, acted = StageTwo(config, contract), []

    def spy(policy, *arguments, **options):
        acted.append(weights(policy))
        return run_episodes(policy, *arguments, **options)

    monkeypatch.setattr(stage2, "run_episodes", spy)
    average = weights(run.policy)
    for parameter in run.policy.parameters():
        parameter.data.add_(0.01)
    own = weights(run.policy)
    with open_pool(contract, run.policy, "push_cube", "twin", scenes=2, workers=0) as pool:
        run.collect(pool)
    assert torch.equal(acted[0], own if surrogate_weight else average)
    assert torch.equal(weights(run.policy), own)


def test_stage2_ends_when_it_has_reached_its_target(tiny_datasets, untrained, tmp_path, monkeypatch):
    measured = iter([0.2, 0.6, 0.85, 0.9])
    monkeypatch.setattr(StageTwo, "measure", lambda run, pool: next(measured))
    config = stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "run", iterations=8, measure_every=1, workers=0,
                           critic_warmup=8, target_success=0.8)
    for _ in range(2):      # given again, the command has nothing left to do
        assert train_stage2(config, quiet=True) == tmp_path / "run" / "policy"
        rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
        assert [row["twin/success"] for row in rows] == [0.2, 0.6, 0.85]
    with pytest.raises(ValueError, match=r"target_success must lie in \[0, 1\], got 85"):
        replace(config, target_success=85)


@pytest.mark.long
def test_memory_stays_where_it_is(tiny_datasets, untrained, tmp_path, contract):
    """Rollout, update and saving: after 8 iterations, which fill the replay, 24 more add next to nothing."""
    replay = ReplayConfig(updates=1, batch_size=2, capacity=50, demos=str(tiny_datasets["sim"]), min_size=1)
    run = StageTwo(stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "run", max_chunks=1, replay=replay,
                                 critic_warmup=0, episodes=2, sft_batch_size=2, ppo=PpoConfig(epochs=1)), contract)
    with open_pool(contract, run.policy, "push_cube", "twin", scenes=2, workers=0) as pool:
        for _ in range(32):
            rollout, _ = run.collect(pool)
            run.update(rollout)
            run.step += 1
            if run.step in (4, 8, 32):
                run.save()
            if run.step == 8:
                filled = resident_bytes()
    assert resident_bytes() - filled < 12 * 2**20


@pytest.mark.long
def test_episodes_come_back_in_seed_order_for_any_number_of_scenes(untrained, contract):
    policy = load_policy(untrained["compact_flow"], contract)
    outcomes, order = [], [14, 11, 13, 12, 15, 10]
    for scenes, workers in ((1, 0), (3, 0), (4, 2), (8, 2)):
        with open_pool(contract, policy, "push_cube", "twin", scenes=scenes, workers=workers) as pool:
            episodes = run_episodes(policy, pool, order)
        outcomes.append([(e.seed, e.instruction, e.success, e.failure, e.steps) for e in episodes])
    assert [row[0] for row in outcomes[0]] == order
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.long
def test_sampled_rollouts_in_two_groups_repeat_bit_by_bit(untrained, contract):
    policy, found, done = load_policy(untrained["compact_flow"], contract), [], []
    with open_pool(contract, policy, "push_cube", "twin", scenes=4, workers=2) as pool:
        assert len(pool.groups) == 2
        for _ in range(2):
            episodes = run_episodes(policy, pool, list(range(21, 32)), generator=torch.Generator().manual_seed(1), max_chunks=3,
                                    on_done=lambda episode: done.append(episode.seed))
            assert run_episodes(policy, pool, [1, 2], cancelled=lambda: True) == []
            found.append(torch.cat([torch.cat(episode.actions) for episode in episodes]))
    assert torch.equal(*found)
    assert [episode.seed for episode in episodes] == list(range(21, 32)) and sorted(done) == sorted(2 * list(range(21, 32)))
    for episode in episodes:
        chunks = len(episode.rewards)
        assert 1 <= chunks <= 3 and 4 * (chunks - 1) < episode.steps <= 4 * chunks
        for name in ("inputs", "traces", "actions", "logprobs", "values", "places"):
            assert len(getattr(episode, name)) == chunks


def test_evaluation_resumes_and_never_mixes_checkpoints(untrained, contract, tmp_path):
    records = tmp_path / "trials.jsonl"
    checkpoint = untrained["compact_flow"]
    arguments = {"task": "push_cube", "domain": "twin", "records": records, "scenes": 2, "workers": 0, "quiet": True}
    evaluate(checkpoint, "arm", contract, seeds=[0], **arguments)
    first = read_records(records)
    trials = evaluate(checkpoint, "arm", contract, seeds=[0, 1], **arguments)
    assert [trial.seed for trial in trials] == [0, 1]
    assert trials[0] == first[0]
    assert len(read_records(records)) == 2
    append_records(records, [TrialRecord(**{**vars(trials[0]), "seed": 2, "checkpoint": "another"})])
    with pytest.raises(DataError, match="made with another"):
        evaluate(checkpoint, "arm", contract, seeds=[2], **arguments)
