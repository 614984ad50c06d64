"""The total loss of Stage II (paper, eq. 5): every term's gradient reaches the weights, whatever the accumulation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from policies import make_policy

import rlco_trainer.ppo as ppo
from rlco_policy.interface import ObsBatch
from rlco_trainer.batches import sft_batch, sft_loss, slices
from rlco_trainer.config import PpoConfig, StageTwoConfig
from rlco_trainer.dataset.reader import DemoBatch
from rlco_trainer.ppo import RlBatch, explained_variance, generalized_advantages, joint_logprob, rl_loss, shaped, total_loss
from rlco_trainer.rollout import Episode, collate, progress
from rlco_trainer.updates import make_optimizer, update_step

POLICIES = ("compact_flow", "compact_token")
BETA = 0.7


@pytest.fixture(params=POLICIES)
def policy(request):
    return make_policy(request.param, seed=3)


def synthetic_demos(policy, size: int, seed: int = 0) -> DemoBatch:
    rng = np.random.default_rng(seed)
    side, horizon = policy.spec.image_size, policy.spec.horizon
    low, high = policy.contract.action.low, policy.contract.action.high
    return DemoBatch(
        {name: rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8) for name in policy.spec.cameras},
        rng.normal(size=(size, policy.spec.proprio_dim)).astype(np.float32),
        [f"push the {('red', 'green', 'blue')[i % 3]} cube" for i in range(size)],
        rng.uniform(low, high, (size, horizon, 7)).astype(np.float32),
        np.arange(horizon) < rng.integers(1, horizon + 1, (size, 1)),
    )


def synthetic_rollout(policy, size: int) -> RlBatch:
    demos = synthetic_demos(policy, size, seed=1)
    inputs = policy.preprocess(ObsBatch({name: torch.from_numpy(images) for name, images in demos.images.items()},
                                        torch.from_numpy(demos.proprioception), demos.instructions))
    sampled = policy.sample(inputs, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(6)
    return RlBatch(inputs, sampled.trace, joint_logprob(sampled.logprob, "chunk"), sampled.value,
                   torch.randn(size, generator=generator), torch.rand(size, generator=generator))


def real_batch(policy, size: int):
    return sft_batch(policy, synthetic_demos(policy, size), torch.Generator().manual_seed(2), augment=True)


def gradient(policy, loss) -> dict[str, torch.Tensor]:
    policy.zero_grad(set_to_none=True)
    loss.backward()
    return {name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in policy.named_parameters()}


def largest_difference(a: dict, b: dict) -> float:
    """Largest difference relative to the largest gradient entry."""
    scale = max(float(value.abs().max()) for value in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / scale


def additivity_error(policy) -> float:
    config, rl, real = PpoConfig(), synthetic_rollout(policy, 12), real_batch(policy, 10)
    total = gradient(policy, ppo.total_loss(policy, rl, real, BETA, config)[0])
    reinforcement = gradient(policy, rl_loss(policy, rl, config)[0])
    supervised = gradient(policy, sft_loss(policy, real).loss)
    assert max(float(value.abs().max()) for value in supervised.values()) > 0
    return largest_difference(total, {name: reinforcement[name] + BETA * supervised[name] for name in total})


def test_gradient_is_the_sum_of_its_terms(policy):
    assert additivity_error(policy) < 1e-5


@pytest.mark.parametrize("mutation", ["dropped", "detached", "beta forgotten"])
def test_additivity_notices_a_lost_supervised_term(policy, monkeypatch, mutation):
    """The defect of the reference release (20 weeks long the term was logged, not trained) must be caught."""
    real_sft_loss = sft_loss

    def mutated(policy, batch):
        result = real_sft_loss(policy, batch)
        result.loss = {"dropped": result.loss * 0, "detached": result.loss.detach(),
                       "beta forgotten": result.loss / BETA}[mutation]
        return result

    monkeypatch.setattr(ppo, "sft_loss", mutated)
    assert additivity_error(policy) > 1e-3


@pytest.mark.parametrize("micro_batches", [2, 3, 5])
def test_update_is_the_same_for_any_number_of_micro_batches(policy, micro_batches):
    rl, real = synthetic_rollout(policy, 13), real_batch(policy, 7)
    rl.advantage += 3.0     # of one sign: the mean is then no small rest of large terms, whose rounding would be compared
    start = {name: value.clone() for name, value in policy.state_dict().items()}

    def gradients(parts):
        policy.load_state_dict(start)
        config = StageTwoConfig(out=".", start=".", real="x", beta=BETA, micro_batches=parts, max_grad_norm=1e9, lr=0.0)
        optimizer = make_optimizer(policy, config)
        optimizer.step = lambda: None
        metrics = update_step(policy, optimizer, rl, real, config, beta=config.beta)
        return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}, metrics

    whole, whole_metrics = gradients(1)
    split, split_metrics = gradients(micro_batches)
    assert whole.keys() == split.keys()
    assert largest_difference(whole, split) < 1e-4
    for name in ("rl/surrogate", "rl/value_loss", "sft/loss"):
        assert whole_metrics[name] == pytest.approx(split_metrics[name], rel=2e-5)


def test_ratio_is_one_before_the_first_step(policy):
    rl = synthetic_rollout(policy, 16)
    loss, metrics = rl_loss(policy, rl, PpoConfig())
    assert metrics["rl/clip_fraction"] == 0.0
    assert abs(metrics["rl/kl"]) < 1e-6
    assert metrics["rl/surrogate"] == pytest.approx(-float(rl.advantage.mean()), abs=1e-4)
    assert torch.isfinite(loss)


def test_ppo_raises_the_probability_of_what_paid(policy):
    rl = synthetic_rollout(policy, 16)
    config = StageTwoConfig(out=".", start=".", beta=0.0, lr=1e-4, value_lr=0.0, noise_lr=0.0)
    optimizer = make_optimizer(policy, config)
    for _ in range(3):
        update_step(policy, optimizer, rl, None, config, beta=config.beta)
    with torch.no_grad():
        change = joint_logprob(policy.evaluate(rl.inputs, rl.trace).logprob, "chunk") - rl.logprob
    assert change[rl.advantage > 0.5].mean() > change[rl.advantage < -0.5].mean()


def test_critic_warm_up_moves_the_critic_alone(policy):
    config = StageTwoConfig(out=".", start=".", beta=0.0)
    before = {name: value.clone() for name, value in policy.named_parameters()}
    update_step(policy, make_optimizer(policy, config), synthetic_rollout(policy, 8), None, config, beta=config.beta,
                critic_only=True)
    moved = {name.split(".")[0] for name, value in policy.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"value_head"}


def test_advantages_against_the_definition():
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.2, 0.5, 0.4])
    gamma, lam = 0.9, 0.8
    deltas = [0.9 * 0.5 - 0.2, 0.9 * 0.4 - 0.5, 1.0 - 0.4]
    expected = [sum((gamma * lam) ** k * deltas[t + k] for k in range(3 - t)) for t in range(3)]
    advantages, returns = generalized_advantages(rewards, values, gamma, lam)
    assert advantages.tolist() == pytest.approx(expected)
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(expected, values.tolist(), strict=True)])


def test_shaping_takes_the_potential_of_its_start_from_every_return():
    """Whatever came between, so no other policy becomes the best one (Ng et al. 1999)."""
    rewards, potential, gamma = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.1, 0.6, 0.3]), 0.9

    def returns(rewards):
        return [sum(gamma**k * float(rewards[t + k]) for k in range(3 - t)) for t in range(3)]

    got = shaped(rewards, potential, gamma)
    assert got[0] == pytest.approx(0.9 * 0.6 - 0.1), "progress is rewarded at once"
    assert returns(got) == pytest.approx([r - float(p) for r, p in zip(returns(rewards), potential, strict=True)])


def sampled_episode(places, success: bool) -> Episode:
    count = len(places)
    return Episode(0, "push the red cube", success, steps=4 * count, inputs=[{"x": torch.zeros(1)}] * count,
                   traces=[{"y": torch.zeros(1)}] * count, logprobs=[torch.zeros(4, 7)] * count,
                   values=[torch.tensor(0.25)] * count, rewards=[0.0] * (count - 1) + [float(success)],
                   places=[torch.tensor(place) for place in places])


def test_progress_is_the_share_of_the_way_that_is_done():
    goal = (0.6, 0.1, 0.0)
    places = [(0.5, 0.1, 0.0, *goal), (0.55, 0.1, 0.0, *goal), (0.4, 0.1, 0.0, *goal), (0.6, 0.1, 0.0, *goal)]
    assert progress(sampled_episode(places, False)).tolist() == pytest.approx([0.0, 0.5, 0.0, 1.0], abs=1e-5)
    assert progress(sampled_episode([(*goal, *goal)] * 2, False)).tolist() == [1.0, 1.0], "it began at its goal"


def test_with_shaping_a_failure_that_got_somewhere_is_told_apart_step_by_step():
    goal = (0.6, 0.0, 0.0)
    moved = sampled_episode([(0.5, 0.0, 0.0, *goal), (0.58, 0.0, 0.0, *goal)], False)
    still = sampled_episode([(0.5, 0.0, 0.0, *goal)] * 2, False)
    config = PpoConfig(gamma=1.0, gae_lambda=0.0)
    plain, with_it = collate([moved, still], config), collate([moved, still], replace(config, shaping=0.5))
    assert plain.advantage[0] == plain.advantage[2]
    assert with_it.advantage[0] > with_it.advantage[2]
    assert with_it.returns.tolist() == pytest.approx([0.25 + 0.4, -0.4, 0.25, 0.0]), "one-step returns"
    with pytest.raises(ValueError, match="shaping must not be negative"):
        PpoConfig(shaping=-1.0)


def test_beta_without_real_data_is_refused():
    with pytest.raises(ValueError, match="real dataset"):
        StageTwoConfig(out=".", start=".", beta=0.1)


def test_beta_zero_adds_nothing(policy):
    rl, real = synthetic_rollout(policy, 8), real_batch(policy, 8)
    alone = gradient(policy, total_loss(policy, rl, None, 0.0, PpoConfig())[0])
    with_data = gradient(policy, total_loss(policy, rl, real, 0.0, PpoConfig())[0])
    assert largest_difference(alone, with_data) == 0.0


def test_explained_variance():
    returns = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((4,), 0.5), returns) == 0.0


@pytest.mark.parametrize(("total", "parts"), [(10, 3), (3, 5), (1, 1), (64, 4)])
def test_slices_cover_everything_once(total, parts):
    covered = [i for part in slices(total, parts) for i in range(total)[part]]
    assert covered == list(range(total))
