"""Rollouts beside the update: by which weights, the same bits after a resume, errors and the end of a run."""

import threading
import time
from functools import partial

import pytest
import torch
from policies import CONFIGS, make_policy, weights
from test_training import same_weights, stage2_config, whole_and_resumed

from rlco_common.errors import TwinError
from rlco_common.seeds import RL
from rlco_sim_bridge.pool import TwinPool
from rlco_trainer import stage2
from rlco_trainer.ahead import RolloutsAhead
from rlco_trainer.averaging import WeightAverage
from rlco_trainer.config import PlacesConfig, PpoConfig, ReplayConfig, StageTwoConfig
from rlco_trainer.metrics import read_metrics
from rlco_trainer.plan import plan_stage2
from rlco_trainer.rollout import open_pool, run_episodes
from rlco_trainer.stage2 import StageTwo, train_stage2


def overlapping(datasets, start, out, **changes):
    settings = {"overlap": True, "ema": 0.5, "critic_warmup": 0, "ppo": PpoConfig(surrogate_weight=0.0, minibatch_size=8),
                "places": PlacesConfig(weight=1.0, batch_size=8),
                "replay": ReplayConfig(updates=2, batch_size=8, min_size=1, demos=str(datasets["sim"]))}
    return stage2_config(datasets, start, out, **settings | changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_copy_acts_like_the_policy_and_shares_what_does_not_train(name):
    policy = make_policy(name, CONFIGS[name]())
    policy.set_stage("rl")
    average = WeightAverage(policy, 0.0)
    ahead = RolloutsAhead(policy, average)
    inputs = policy.example_inputs(2)

    def sampled(by):
        return by.sample(inputs, generator=torch.Generator().manual_seed(0)).actions

    assert torch.equal(sampled(ahead.policy), sampled(policy))
    for (label, mine), (_, copied) in zip(policy.named_parameters(), ahead.policy.named_parameters(), strict=True):
        assert (mine.data_ptr() == copied.data_ptr()) != mine.requires_grad, label
    before = weights(ahead.policy)
    with torch.no_grad():
        for parameter in policy.param_groups()["policy"]:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(weights(ahead.policy), before)
    assert not torch.equal(sampled(ahead.policy), sampled(policy))
    ahead.restore(None)
    assert torch.equal(sampled(ahead.policy), sampled(policy))


def test_rollouts_are_made_by_the_average_from_before_the_update_beside_them(tiny_datasets, untrained, tmp_path, contract,
                                                                             monkeypatch):
    config = overlapping(tiny_datasets, untrained["compact_flow"], tmp_path / "run")
    run, acted, averages = StageTwo(config, contract), [], []

    def spy(policy, pool, seeds, **options):
        acted.append((weights(policy), seeds, threading.current_thread().name))
        return run_episodes(policy, pool, seeds, **options)

    monkeypatch.setattr(stage2, "run_episodes", spy)
    with open_pool(contract, run.policy, "push_cube", "twin", scenes=2, workers=0) as pool:
        for step in range(3):
            with run.average.applied():
                averages.append(weights(run.policy))
            rollout, _ = run.collect(pool, more=step < 2)
            run.update(rollout)
            run.step += 1
        run.close()
    assert [seeds for _, seeds, _ in acted] == [list(RL[3 * step : 3 * step + 3]) for step in range(3)]
    assert all(name == "rollouts_ahead" for *_, name in acted)
    assert not torch.equal(averages[0], averages[1])
    for (used, *_), average in zip(acted, [averages[0], *averages[:2]], strict=True):
        assert torch.equal(used, average)


@pytest.mark.long
def test_stage2_with_overlap_resumed_equals_uninterrupted(tiny_datasets, untrained, tmp_path, contract):
    start = untrained["compact_flow"]
    whole, resumed = whole_and_resumed(lambda out: overlapping(tiny_datasets, start, out), tmp_path)
    assert same_weights(whole, resumed, contract)
    assert not same_weights(start, resumed, contract)
    rows = [[row["rollout/episode_steps"], row["replay/loss"], row["places/loss"]]
            for run in ("whole", "cut") for row in read_metrics(tmp_path / run / "metrics.jsonl")[1:]]
    assert rows[:4] == rows[4:]


@pytest.mark.long
def test_a_run_without_overlap_goes_on_with_it(tiny_datasets, untrained, tmp_path):
    start = untrained["compact_flow"]
    train_stage2(overlapping(tiny_datasets, start, tmp_path / "run", overlap=False), stop_after=2, quiet=True)
    train_stage2(overlapping(tiny_datasets, start, tmp_path / "run"), quiet=True)
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_what_ends_the_rollouts_ends_the_update_beside_them(tiny_datasets, untrained, tmp_path, contract, monkeypatch):
    """And not only after its last step."""
    config = overlapping(tiny_datasets, untrained["compact_flow"], tmp_path / "run",
                         replay=ReplayConfig(updates=10_000, batch_size=8, min_size=1, demos=str(tiny_datasets["sim"])))
    run = StageTwo(config, contract)
    with open_pool(contract, run.policy, "push_cube", "twin", scenes=2, workers=1) as pool:
        rollout, _ = run.collect(pool)
        begin_chunks = TwinPool.begin_chunks

        def killed(self, *arguments):
            for worker in self._workers:
                worker._process.kill()
            return begin_chunks(self, *arguments)

        monkeypatch.setattr(TwinPool, "begin_chunks", killed)
        run.step = 1
        run.rollouts.start(partial(run.roll_out, pool), 1)
        started = time.monotonic()
        with pytest.raises(TwinError, match="died with signal SIGKILL"):
            run.update(rollout)
        assert time.monotonic() - started < 30


def test_rollouts_that_nobody_will_use_end_with_the_chunk(tiny_datasets, untrained, tmp_path, contract, monkeypatch):
    config = overlapping(tiny_datasets, untrained["compact_flow"], tmp_path / "run", episodes=200)
    run, chunks, second = StageTwo(config, contract), [], threading.Event()
    with open_pool(contract, run.policy, "push_cube", "twin", scenes=2, workers=0) as pool:
        begin_chunks = pool.begin_chunks

        def counted(*arguments):
            chunks.append(1)
            if len(chunks) == 2:
                second.set()
            return begin_chunks(*arguments)

        monkeypatch.setattr(pool, "begin_chunks", counted)
        run.rollouts.start(partial(run.roll_out, pool), 0)
        assert second.wait(60)
        run.close()
        ended = len(chunks)
        assert not run.rollouts.under_way
        time.sleep(0.3)
        assert len(chunks) == ended < 20


@pytest.mark.parametrize(("changes", "message"), [
    ({"ppo": PpoConfig()}, r"overlap=true needs ppo.surrogate_weight=0: .*newest weights"),
    ({"ppo": PpoConfig(surrogate_weight=0.0), "backend": "gpu"}, "overlap=true needs backend=cpu"),
])
def test_overlap_is_refused_where_it_is_not_exact(changes, message):
    with pytest.raises(ValueError, match=message):
        StageTwoConfig(out="x", start="y", beta=0.0, overlap=True, **changes)


def test_the_plan_counts_the_copy(tiny_datasets, untrained, tmp_path):
    config = overlapping(tiny_datasets, untrained["compact_flow"], tmp_path / "run")
    assert "copy that acts beside the update" in plan_stage2(config, trial=False).text()
