"""Stage II's levers beside PPO: success replay, the forgetting monitor, the controller of beta; Stage I's averages."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from policies import make_policy, weights
from test_stage2_loss import real_batch, synthetic_rollout
from test_training import same_weights, stage1_config, stage2_config, whole_and_resumed

from rlco_common.errors import DataError, TrainingError
from rlco_trainer.averaging import WeightAverage
from rlco_trainer.config import BetaControl, PpoConfig, ReplayConfig, StageOneConfig, StageTwoConfig
from rlco_trainer.dataset.reader import load_datasets, load_demos
from rlco_trainer.forgetting import BetaController, gradient_cosine
from rlco_trainer.metrics import read_metrics
from rlco_trainer.ppo import total_loss
from rlco_trainer.replay import LEAST_PRIORITY, SuccessReplay
from rlco_trainer.rollout import Episode, run_episodes
from rlco_trainer.stage1 import sft_step, train_stage1
from rlco_trainer.stage2 import StageTwo
from rlco_trainer.updates import learning_rate_factor, make_optimizer, replay_step, update_step

HORIZON, CHUNK, DIM = 8, 4, 7


@pytest.fixture
def policy():
    return make_policy("compact_flow")


def episode(policy, steps: int, value: float, success: bool = True, seed: int = 0) -> Episode:
    """A sampled episode of `steps` ticks whose action at tick t is t everywhere."""
    chunks = -(-steps // CHUNK)
    inputs = policy.example_inputs(chunks)
    actions = torch.arange(chunks * CHUNK, dtype=torch.float32)[:, None].expand(-1, DIM).unflatten(0, (chunks, CHUNK))
    return Episode(seed, "push the red cube", success, not success, steps,
                   inputs=[{name: tensor[i] for name, tensor in inputs.items()} for i in range(chunks)],
                   actions=list(actions), values=[torch.tensor(value)] * chunks)


def draw(replay, policy, size=64):
    return replay.sample(policy, size, np.random.default_rng(0), torch.Generator().manual_seed(0))


def test_replay_shows_what_was_carried_out_up_to_the_end_of_the_episode(policy):
    replay = SuccessReplay(100)
    replay.add([episode(policy, 10, value=0.0)], HORIZON)
    assert len(replay) == 3
    batch = draw(replay, policy)
    for first in (0, 4, 8):
        rows = batch.actions[:, 0, 0] == first
        assert rows.any()
        valid = batch.valid[rows][0]
        assert valid.tolist() == [first + i < 10 for i in range(HORIZON)]
        assert batch.actions[rows][0, valid, 0].tolist() == list(range(first, min(first + HORIZON, 10)))


def test_replay_keeps_successes_only_and_the_newest_of_them(policy):
    replay = SuccessReplay(4)
    replay.add([episode(policy, 8, 0.0, success=False)], HORIZON)
    assert len(replay) == 0
    replay.add([episode(policy, 8, 0.25), episode(policy, 12, 0.5)], HORIZON)
    replay.add([episode(policy, 4, 0.75)], HORIZON)
    assert replay.state()["priority"].tolist() == [0.5, 0.5, 0.5, 0.25]


def test_replay_prefers_what_the_critic_did_not_expect(policy):
    replay = SuccessReplay(100)
    replay.add([episode(policy, 4, value=1.5), episode(policy, 5, value=0.0)], HORIZON)
    unexpected = (draw(replay, policy, 4000).valid.sum(1) != 4).float().mean()
    assert unexpected == pytest.approx(2 / (2 + LEAST_PRIORITY), abs=0.02)


def test_priorities_are_about_success_also_where_the_critic_learns_shaped_rewards(policy):
    """Such a critic expects the potential less."""
    goal, shaping = (0.6, 0.0, 0.0), 0.5
    seen = replace(episode(policy, 8, value=0.3), places=[torch.tensor((x, 0.0, 0.0, *goal)) for x in (0.5, 0.55)])
    expects_less = replace(seen, values=[torch.tensor(0.3), torch.tensor(0.3 - shaping * 0.5)])
    plain, corrected = SuccessReplay(10), SuccessReplay(10)
    plain.add([seen], HORIZON)
    corrected.add([expects_less], HORIZON, shaping)
    torch.testing.assert_close(plain.state()["priority"], corrected.state()["priority"])


def test_replay_starts_with_the_demonstrations_and_successes_displace_them(policy, tiny_datasets, contract):
    demos = load_demos(tiny_datasets["sim"], contract, 64)
    replay = SuccessReplay(demos.frames)
    replay.add_demos(policy, demos)
    assert len(replay) == demos.frames
    assert (replay.state()["priority"] == 1).all()
    np.testing.assert_array_equal(replay.state()["actions"].numpy(), demos.every_frame(HORIZON).actions)
    replay.add([episode(policy, 8, value=0.5)], HORIZON)
    assert len(replay) == demos.frames
    assert replay.state()["priority"].tolist()[-3:] == [1.0, 0.5, 0.5]


@pytest.mark.parametrize("successes", [True, False])
def test_a_control_can_learn_from_the_demonstrations_alone(tiny_datasets, untrained, tmp_path, contract, policy, monkeypatch,
                                                           successes):
    replay = ReplayConfig(updates=1, batch_size=2, demos=str(tiny_datasets["sim"]), min_size=1, successes=successes)
    run = StageTwo(stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "run", replay=replay), contract)
    demos, sampled = len(run.replay), replace(episode(policy, 8, value=0.0), rewards=[0.0, 1.0])
    monkeypatch.setattr("rlco_trainer.stage2.run_episodes", lambda *_, **__: [sampled])
    monkeypatch.setattr("rlco_trainer.stage2.collate", lambda *_: None)
    run.collect(pool=None)
    assert len(run.replay) == demos + (2 if successes else 0)
    with pytest.raises(ValueError, match=r"replay\.successes=false needs replay\.demos"):
        ReplayConfig(updates=1, successes=False)
    if not successes:
        with pytest.raises(TrainingError, match=rf"hold {demos} decisions, fewer than replay\.min_size=10000"):
            StageTwo(stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "too_few",
                                   replay=replace(replay, min_size=10_000)), contract)


def test_replay_step_adds_beta_times_the_real_gradient(policy):
    """The step's gradient is that of L(worked) + beta * L(real), whatever the number of micro-batches."""
    beta, real, worked = 0.5, real_batch(policy, 6), real_batch(policy, 8)
    acting = [p for name, group in policy.param_groups().items() if name != "value" for p in group]

    def gradient(*terms):
        policy.zero_grad()
        for weight, batch in terms:
            (weight * policy.sft_loss(batch.inputs, batch.actions, batch.valid, draws=batch.draws).loss).backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in acting]

    wanted = gradient((1.0, worked), (beta, real))
    for micro_batches in (1, 3):
        config = StageTwoConfig(out="x", start="y", real="r", beta=beta, micro_batches=micro_batches, max_grad_norm=1e9)
        policy.zero_grad()
        metrics = replay_step(policy, torch.optim.SGD(acting, lr=0.0), worked, real, config, beta=beta)
        assert set(metrics) == {"replay/loss", "replay/real_loss", "replay/grad_norm"}
        for parameter, expected in zip(acting, wanted, strict=True):
            got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_warms_up_and_falls_to_its_final_fraction():
    def at(step, steps):
        return learning_rate_factor(step, warmup=10, steps=steps, final=0.1)

    assert at(0, 100) == at(0, 0) == 0.1
    assert at(9, 100) == at(10, 100) == at(500, 0) == 1.0
    assert at(55, 100) == pytest.approx(0.55)
    assert at(100, 100) == at(500, 100) == pytest.approx(0.1)


def test_the_replay_learns_ever_more_slowly(tiny_datasets, untrained, tmp_path, contract):
    """Over its own updates, not the iterations; the log says how fast."""
    replay = ReplayConfig(updates=4, batch_size=2, demos=str(tiny_datasets["sim"]), min_size=1, lr=1e-3, warmup_updates=2,
                          decay_updates=8, final_lr_fraction=0.1)
    run = StageTwo(stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "run", replay=replay, critic_warmup=0),
                   contract)
    rates = [run.replay_phase()["replay/lr"] for _ in range(3)]
    assert rates[0] > rates[1] > rates[2] == pytest.approx(1e-4)
    assert run.replay_optimizer.param_groups[0]["lr"] == rates[2]


def test_gradient_cosine_is_one_for_a_gradient_with_itself_and_minus_one_for_its_opposite(policy, monkeypatch):
    real = real_batch(policy, 6)
    for sign in (1.0, -1.0):
        def loss(policy, rl, sft, beta, config, sign=sign):
            found, metrics = total_loss(policy, None, real, 1.0, config)
            return (found if sft is not None else sign * found), metrics

        monkeypatch.setattr("rlco_trainer.forgetting.total_loss", loss)
        assert gradient_cosine(policy, synthetic_rollout(policy, 4), real, PpoConfig()) == pytest.approx(sign, abs=1e-3)


def test_gradient_cosine_leaves_the_weights_gradients_alone(policy):
    cosine = gradient_cosine(policy, synthetic_rollout(policy, 4), real_batch(policy, 6), PpoConfig())
    assert -1 <= cosine <= 1
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_beta_follows_the_held_out_loss():
    control = BetaController(0.1, BetaControl(low=1.0, high=1.2, rate=2.0, largest=0.3, smallest=0.04))
    seen = []
    for loss in (1.0, 1.1, 1.3, 1.3, 1.3, 1.1, 0.9, 0.9, 0.9, 0.9):
        control.observe(loss)
        seen.append(round(control.beta, 6))
    assert seen == [0.1, 0.1, 0.2, 0.3, 0.3, 0.3, 0.15, 0.075, 0.04, 0.04]
    constant = BetaController(0.1, None)
    constant.observe(1.0)
    constant.observe(5.0)
    assert constant.beta == 0.1


def test_beta_shrinks_where_the_training_episodes_are_learned_by_heart():
    """The held-out loss is as high as when the policy forgets; the loss on the training batches tells the two apart."""
    betas = {}
    for case, trained in (("forgets", 1.5), ("by heart", 0.7)):
        control = BetaController(0.1, BetaControl(low=1.0, high=1.2, rate=2.0))
        control.observe(1.0)
        control.observe(1.1, 1.0)
        copy = BetaController(0.1, BetaControl(low=1.0, high=1.2, rate=2.0))
        copy.restore(control.state())
        for each in (control, copy):
            each.observe(1.3, trained)
        assert copy.beta == control.beta
        betas[case] = control.beta
    assert betas == {"forgets": 0.2, "by heart": 0.05}


def test_beta_zero_stays_zero_under_control():
    control = BetaController(0.0, BetaControl())
    for loss in (1.0, 9.0):
        control.observe(loss)
    assert control.beta == 0.0


def test_a_batch_that_breaks_the_loss_is_kept_and_no_weight_moves(policy, tmp_path):
    config = StageTwoConfig(out=tmp_path, start="y", real="r", beta=0.1)
    rollout = synthetic_rollout(policy, 8)
    rollout.advantage[3] = math.nan
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with pytest.raises(TrainingError, match=r"not_finite\.pt"):
        update_step(policy, make_optimizer(policy, config), rollout, None, config, beta=0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())
    kept = torch.load(tmp_path / "not_finite.pt", weights_only=False)
    assert torch.isnan(kept["rl"]["advantage"]).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("step", ["stage I", "PPO", "replay"])
def test_a_gradient_that_is_not_finite_moves_no_weight_even_where_the_loss_is(policy, tmp_path, step):
    acting = policy.param_groups()["policy"]
    acting[0].register_hook(lambda gradient: gradient * math.inf)
    real, before = real_batch(policy, 6), weights(policy)
    config = StageTwoConfig(out=tmp_path, start="y", real="r", beta=0.1)
    with pytest.raises(TrainingError, match=r"grad_norm(.|\n)*not_finite\.pt"):
        if step == "stage I":
            sft_step(policy, torch.optim.SGD(acting, lr=0.1), real, StageOneConfig(out=tmp_path, real="r"))
        elif step == "PPO":
            update_step(policy, make_optimizer(policy, config), synthetic_rollout(policy, 8), real, config, beta=0.1)
        else:
            replay_step(policy, torch.optim.SGD(acting, lr=0.1), real, None, config, beta=0.0)
    assert torch.equal(weights(policy), before)
    kept = torch.load(tmp_path / "not_finite.pt", weights_only=False)
    name = "replay" if step == "replay" else "sft"
    assert torch.equal(kept[name]["actions"], real.actions)


@pytest.mark.long
def test_with_replay_and_control_a_resumed_run_equals_an_uninterrupted_one(tiny_datasets, untrained, tmp_path, contract,
                                                                           monkeypatch):
    def some_succeed(policy, pool, seeds, **options):
        episodes = run_episodes(policy, pool, seeds, **options)
        for found in episodes:
            found.success = found.seed % 2 == 0
        return episodes

    monkeypatch.setattr("rlco_trainer.stage2.run_episodes", some_succeed)
    start = untrained["compact_flow"]
    settings = {"replay": ReplayConfig(updates=2, batch_size=8, min_size=1), "beta_control": BetaControl(low=0.5, high=0.6),
                "cosine_every": 1, "critic_warmup": 0, "ema": 0.9}
    whole, resumed = whole_and_resumed(lambda out: stage2_config(tiny_datasets, start, out, **settings), tmp_path)
    assert same_weights(whole, resumed, contract)
    rows = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("whole", "cut")]
    assert [row["real/beta"] for row in rows[0]] == [row["real/beta"] for row in rows[1]]
    start_beta, first, *_, last = [row["real/beta"] for row in rows[0]]
    assert first > start_beta > last, "above its band beta grows, until the real batches are seen to be learned by heart"
    assert [row.get("replay/loss") for row in rows[0]] == [row.get("replay/loss") for row in rows[1]]
    assert rows[0][-1]["replay/size"] > 0


def test_stage1_average_and_patience_survive_a_resume(tiny_datasets, tmp_path, contract):
    settings = {"ema": 0.9, "patience": 2, "monitor_every": 1, "steps": 8, "lr": 1e-3}
    whole = train_stage1(stage1_config(tiny_datasets, tmp_path / "whole", **settings), quiet=True)
    config = stage1_config(tiny_datasets, tmp_path / "cut", **settings)
    train_stage1(config, stop_after=3, quiet=True)
    assert same_weights(whole, train_stage1(config, quiet=True), contract)


def test_patience_yields_the_best_weights_and_stops(tiny_datasets, tmp_path, contract):
    config = stage1_config(tiny_datasets, tmp_path / "run", patience=2, monitor_every=1, steps=40, lr=1e-2, warmup_steps=1)
    out = train_stage1(config, quiet=True)
    losses = [row["real/held_out_loss"] for row in read_metrics(config.out / "metrics.jsonl") if "real/held_out_loss" in row]
    assert len(losses) < 40
    assert losses.index(min(losses)) == len(losses) - 3
    assert same_weights(out, config.out / "best", contract)


def test_patience_without_held_out_episodes_is_refused(tiny_datasets, tmp_path):
    with pytest.raises(TrainingError, match="held_out=N"):
        train_stage1(replace(stage1_config(tiny_datasets, tmp_path / "run", patience=2), held_out=0), quiet=True)


def test_average_is_the_exponential_mean_and_gives_the_weights_back(policy):
    average = WeightAverage(policy, 0.5)
    weight = policy.param_groups()["policy"][0]
    own = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    average.update()                        # decay of the first update: (1 + 1) / (10 + 1)
    with average.applied():
        torch.testing.assert_close(weight.detach(), own + 1 - 2 / 11)
    torch.testing.assert_close(weight.detach(), own + 1)


def test_bfloat16_trains_close_to_float32(tiny_datasets, tmp_path):
    losses = []
    for precision in ("float32", "bfloat16"):
        config = stage1_config(tiny_datasets, tmp_path / precision, precision=precision, steps=3)
        train_stage1(config, quiet=True)
        losses.append([row["sft/loss"] for row in read_metrics(config.out / "metrics.jsonl") if "sft/loss" in row])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_several_datasets_are_one_set(tiny_datasets, contract):
    parts = [load_demos(tiny_datasets[name], contract, 64) for name in ("real", "sim")]
    both = load_datasets([tiny_datasets["real"], tiny_datasets["sim"]], contract, 64)
    assert both.episodes == sum(part.episodes for part in parts)
    assert [source["content_hash"] for source in both.lineage()] == [part.sources[0][1] for part in parts]
    frames = [part.every_frame(4) for part in parts]
    whole = both.every_frame(4)
    for field in ("proprioception", "actions", "valid"):
        np.testing.assert_array_equal(getattr(whole, field), np.concatenate([getattr(part, field) for part in frames]))
    assert whole.instructions == frames[0].instructions + frames[1].instructions
    with pytest.raises(DataError, match="cannot hold out"):
        both.split(both.episodes)
