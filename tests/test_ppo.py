"""PPO's terms against numbers worked out by hand, and what an iteration does past target_kl (Schulman et al. 2017)."""

import math
from dataclasses import replace

import pytest
import torch
from policies import make_policy
from test_stage2_loss import POLICIES, gradient, synthetic_rollout
from test_training import stage2_config

from rlco_trainer import stage2
from rlco_trainer.config import PpoConfig
from rlco_trainer.ppo import RlBatch, clipped_value_loss, joint_logprob, rl_loss
from rlco_trainer.stage2 import StageTwo
from rlco_trainer.updates import acting_weights, make_optimizer, update_step

SURROGATE_ALONE = PpoConfig(clip=0.2, value_weight=0.0)


@pytest.fixture(params=POLICIES)
def policy(request):
    return make_policy(request.param, seed=3)


def with_ratios(policy, ratios, advantages, level="chunk") -> RlBatch:
    """Samples of the policy whose old log-probability makes the present ratio what is asked: [N], or [N, chunk] by action."""
    rl = synthetic_rollout(policy, len(advantages))
    with torch.no_grad():
        now = joint_logprob(policy.evaluate(rl.inputs, rl.trace).logprob, level)
    rl.logprob = now - torch.tensor(ratios).reshape(now.shape).log()
    rl.advantage = torch.tensor(advantages)
    return rl


@pytest.mark.parametrize(("ratio", "advantage", "expected", "learns"), [
    (0.5, 2.0, -1.0, True), (1.1, 2.0, -2.2, True), (1.5, 2.0, -2.4, False),        # -min(ratio, 1.2) * 2
    (0.5, -2.0, 1.6, False), (1.1, -2.0, 2.2, True), (1.5, -2.0, 3.0, True),        # max(ratio, 0.8) * 2
])
def test_a_ratio_counts_up_to_the_clip_on_the_side_that_pays(policy, ratio, advantage, expected, learns):
    loss, metrics = rl_loss(policy, with_ratios(policy, [ratio], [advantage]), SURROGATE_ALONE)
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    assert metrics["rl/surrogate"] == loss.item()
    assert any(value.any() for value in gradient(policy, loss).values()) == learns


def test_the_surrogate_is_a_mean_and_has_its_weight(policy):
    rl = with_ratios(policy, [1.5, 0.5, 1.0, 2.0], [2.0, -2.0, 1.0, -1.0])      # -2.4 + 1.6 - 1 + 2 over 4
    assert rl_loss(policy, rl, SURROGATE_ALONE)[0].item() == pytest.approx(0.05, abs=1e-3)
    assert rl_loss(policy, rl, replace(SURROGATE_ALONE, surrogate_weight=4.0))[0].item() == pytest.approx(0.2, abs=4e-3)


def test_divergence_and_clip_fraction_are_of_the_ratios(policy):
    metrics = rl_loss(policy, with_ratios(policy, [1.0, 2.0, 0.9, 0.5], [1.0] * 4), SURROGATE_ALONE)[1]
    assert metrics["rl/kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in (1.0, 2.0, 0.9, 0.5)) / 4, rel=1e-3)
    assert metrics["rl/clip_fraction"] == 0.5


def test_the_ratio_is_of_the_chunk_or_of_each_action_in_it(policy):
    logprob = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    assert joint_logprob(logprob, "chunk").tolist() == [[21.0]]
    assert joint_logprob(logprob, "action").tolist() == [[6.0, 15.0]]
    ratios = [[1.5, 0.5, 1.0, 1.1], [1.5, 0.5, 1.0, 0.9]]
    rl = with_ratios(policy, ratios, [1.0, -2.0], level="action")
    by_action = rl_loss(policy, rl, replace(SURROGATE_ALONE, level="action"))[0]
    # 1.2 + 0.5 + 1.0 + 1.1, and -2 times 1.5 + 0.8 + 1.0 + 0.9, over eight actions
    assert by_action.item() == pytest.approx(-(3.8 - 8.4) / 8, rel=1e-3)
    rl.logprob = rl.logprob.sum(1, keepdim=True)
    # the products 0.825, and 0.675 held at 0.8, over two chunks
    assert rl_loss(policy, rl, SURROGATE_ALONE)[0].item() == pytest.approx(-(0.825 - 1.6) / 2, rel=1e-3)


VALUES = [
    # old, new, return, delta, loss
    (0.0, 0.1, 1.0, 1.0, 0.405),        # within the clip: 0.9^2 / 2
    (0.0, 0.5, 1.0, 1.0, 0.32),         # nearer than the clip allows, from below: held at 0.2
    (1.0, 0.5, 0.0, 1.0, 0.32),         # from above: held at 0.8
    (0.0, -0.5, 1.0, 1.0, 1.0),         # farther off: its own error counts, 1.5 - 1/2
    (1.0, 1.5, 0.0, 1.0, 1.0),
    (0.0, 0.0, 3.0, 1.0, 2.5),          # Huber: 3 - 1/2; a square would give 4.5
    (0.0, 0.0, 3.0, 0.5, 1.375),        # 0.5 * (3 - 0.25)
]


@pytest.mark.parametrize(("old", "new", "returned", "delta", "expected"), VALUES)
def test_a_value_is_held_near_its_old_one_and_far_errors_count_linearly(old, new, returned, delta, expected):
    batch = RlBatch({}, {}, *torch.tensor([[0.0], [old], [0.0], [returned]]))
    config = PpoConfig(value_clip=0.2, huber_delta=delta)
    assert clipped_value_loss(torch.tensor([new]), batch, config).item() == pytest.approx(expected)


def test_the_value_loss_is_a_mean_and_has_its_weight(policy):
    rows = [row for row in VALUES if row[3] == 1.0]
    rl = synthetic_rollout(policy, len(rows))
    with torch.no_grad():
        now = policy.value(rl.inputs)
    old, new, returned = torch.tensor([row[:3] for row in rows]).unbind(1)
    rl.value, rl.returns = now + old - new, now + returned - new
    expected = 0.3 * sum(row[4] for row in rows) / len(rows)
    config = PpoConfig(value_clip=0.2, value_weight=0.3, surrogate_weight=0.0)
    for critic_only in (False, True):
        loss, metrics = rl_loss(policy, rl, config, critic_only=critic_only)
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        assert metrics["rl/value_loss"] == pytest.approx(expected / 0.3, rel=1e-4)


def test_the_entropy_bonus_has_its_weight_and_raises_the_entropy(policy, tmp_path):
    rl = synthetic_rollout(policy, 8)
    entropy = float(policy.evaluate(rl.inputs, rl.trace).entropy.detach().mean())
    bonus_alone = PpoConfig(surrogate_weight=0.0, value_weight=0.0, entropy_weight=0.3)
    assert rl_loss(policy, rl, bonus_alone)[0].item() == pytest.approx(-0.3 * entropy)
    config = stage2_config({"real": "unused"}, "unused", tmp_path, ppo=bonus_alone, noise_lr=1e-2)
    optimizer = make_optimizer(policy, config)
    rows = [update_step(policy, optimizer, rl, None, config, beta=0.0) for _ in range(4)]
    assert rows[-1]["rl/entropy"] > entropy


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("target_kl", "policy_steps"), [(1e-3, 2), (1e9, 4)])
def test_past_target_kl_only_the_critic_learns(tiny_datasets, untrained, tmp_path, contract, monkeypatch, name, target_kl,
                                               policy_steps):
    """The step that finds the divergence is the iteration's last that moves the policy; the real term ends with it."""
    config = stage2_config(tiny_datasets, untrained[name], tmp_path / "run", critic_warmup=0, beta=0.1,
                           ppo=PpoConfig(epochs=2, minibatch_size=4, target_kl=target_kl))
    run = StageTwo(config, contract)
    moved = []

    def watched(policy, *arguments, **options):
        before = [[p.detach().clone() for p in group] for group in (acting_weights(policy), policy.param_groups()["value"])]
        row = update_step(policy, *arguments, **options)
        after = (acting_weights(policy), policy.param_groups()["value"])
        moved.append(tuple(any(not torch.equal(a, b) for a, b in zip(*pair, strict=True))
                           for pair in zip(before, after, strict=True)))
        return row

    monkeypatch.setattr(stage2, "update_step", watched)
    metrics = run.ppo_phase(synthetic_rollout(run.policy, 8))
    assert moved == [(True, True)] * policy_steps + [(False, True)] * (4 - policy_steps)
    assert metrics["rl/updates"] == policy_steps
    assert metrics["rl/kl_last"] > 1e-3
