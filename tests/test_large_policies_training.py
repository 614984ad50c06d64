"""The large policies go through both stages of the same trainer as the compact ones, in sizes of seconds."""

import dataclasses

import pytest
import torch
from policies import BATCH, CONFIGS, actions, generator, make_policy, observations

from rlco_policy.checkpoint import load_policy
from rlco_trainer.config import PpoConfig, StageOneConfig, StageTwoConfig
from rlco_trainer.metrics import read_metrics
from rlco_trainer.stage1 import train_stage1
from rlco_trainer.stage2 import train_stage2

LARGE = ("openvla", "pi05")


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_both_stages_run_and_resume(name, tiny_datasets, tmp_path, contract):
    config = CONFIGS[name]()
    shared = {"real": str(tiny_datasets["real"]), "held_out": 1}
    first = StageOneConfig(out=tmp_path / "stage1", sim=str(tiny_datasets["sim"]), policy=name, policy_config=config, steps=4,
                           batch_size=4, micro_batches=2, save_every=2, monitor_every=4, log_every=1, warmup_steps=1, **shared)
    start = train_stage1(first, quiet=True)
    untouched = train_stage1(dataclasses.replace(first, out=tmp_path / "cut"), stop_after=2, quiet=True)
    assert not same(start, untouched, contract)
    assert same(start, train_stage1(dataclasses.replace(first, out=tmp_path / "cut"), quiet=True), contract)
    losses = [row["sft/loss"] for row in read_metrics(tmp_path / "stage1" / "metrics.jsonl") if "sft/loss" in row]
    assert len(losses) == 4
    second = StageTwoConfig(out=tmp_path / "stage2", start=start, iterations=1,
                            policy_config={"keep_prefix": True} if name == "pi05" else {}, episodes=2, scenes=2, workers=0,
                            critic_warmup=0, measure_episodes=2, measure_every=5, min_initial_success=0.0, sft_batch_size=4,
                            micro_batches=2, ppo=PpoConfig(minibatch_size=8), **shared)
    trained = train_stage2(second, quiet=True)
    row = read_metrics(tmp_path / "stage2" / "metrics.jsonl")[-1]
    assert row["rl/updates"] >= 1 and row["sft/loss"] > 0 and row["rl/grad_norm"] > 0 and "real/held_out_loss" in row
    assert row["rl/kl"] < 0.1
    assert not same(start, trained, contract)


@pytest.mark.parametrize("name", LARGE)
def test_the_supervised_loss_learns_and_a_rewarded_sample_becomes_likelier(name):
    own = make_policy(name, CONFIGS[name]())
    inputs, target, draws = own.preprocess(observations(size=56)), actions(own), own.sft_draws(BATCH, generator())
    optimizer = torch.optim.AdamW(own.param_groups()["policy"], lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(own.sft_loss(inputs, target, draws=draws).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    own.set_stage("rl")
    sampled = own.sample(inputs, generator=generator())
    before = sampled.logprob.sum((1, 2))
    optimizer = torch.optim.SGD(own.param_groups()["policy"], lr=1e-4)
    advantage = torch.tensor([1.0, -1.0] * (BATCH // 2))
    optimizer.zero_grad()
    (-advantage * own.evaluate(inputs, sampled.trace).logprob.sum((1, 2))).mean().backward()
    optimizer.step()
    gain = own.evaluate(inputs, sampled.trace).logprob.sum((1, 2)) - before
    assert (advantage * gain).sum() > 0


def same(a, b, contract) -> bool:
    first, second = load_policy(a, contract).state_dict(), load_policy(b, contract).state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)
