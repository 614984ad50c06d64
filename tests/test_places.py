"""The policy learns where things are from the twin's own state: what the pool tells, the head, and its part in Stage II."""

import numpy as np
import pytest
import torch
from policies import CONFIGS, make_policy
from test_stage2_loss import real_batch
from test_training import same_weights, stage2_config, whole_and_resumed

from rlco_common.errors import TrainingError
from rlco_common.seeds import SELECTION
from rlco_policy.interface import VLAPolicy
from rlco_sim_bridge.pool import TwinPool
from rlco_sim_bridge.tasks import TASKS
from rlco_sim_bridge.twin import Twin
from rlco_trainer.config import PlacesConfig, ReplayConfig, StageTwoConfig
from rlco_trainer.metrics import read_metrics
from rlco_trainer.places import PlaceBatch, Places, place_loss
from rlco_trainer.rollout import Episode, open_pool, progress, run_episodes
from rlco_trainer.stage2 import train_stage2
from rlco_trainer.updates import acting_weights, replay_step

SEEDS = list(SELECTION[300:306])


@pytest.fixture(scope="module")
def episodes(contract):
    """Episodes of a policy that knows nothing, in the twin."""
    policy = make_policy("compact_flow")
    with open_pool(contract, policy, "push_cube", "twin", scenes=3, workers=0) as pool:
        return run_episodes(policy, pool, SEEDS, generator=torch.Generator().manual_seed(0), max_chunks=2)


def learner(policy, capacity=1000):
    return Places(policy, PlacesConfig(weight=1.0, capacity=capacity, batch_size=8), seed=0)


@pytest.mark.parametrize("task", TASKS)
def test_a_pool_tells_where_the_named_object_and_its_goal_are(contract, task):
    """At the start of an episode; before the first one there is nothing to tell."""
    twin = Twin(contract, task, render=False)
    with TwinPool(contract, task, scenes=2, workers=0, render=False) as pool:
        assert not pool.reset([SEEDS[0], -1]).places[1].any()
        observations = pool.reset([-1, SEEDS[1]])
        for row, seed in enumerate(SEEDS[:2]):
            twin.reset(seed)
            state = twin.scene_state()
            np.testing.assert_allclose(observations.places[row, :3], state.objects[state.named].position, atol=1e-6)
            np.testing.assert_allclose(observations.places[row, 3:], state.goal_m, atol=1e-6)
    twin.close()


def test_a_pool_tells_where_a_pushed_object_has_gone(contract):
    """After a chunk, not only at the start; the goal stays."""
    with TwinPool(contract, "push_cube", scenes=1, workers=0, render=False) as pool:
        first = pool.reset(SEEDS[:1]).places[0]
        rollout = next(iter(pool.rollout_expert(SEEDS[:1])))
        pool.reset(SEEDS[:1])
        moved = pool.step_chunks(rollout.actions[None]).observations.places[0]
        state = pool._workers[0]._group._twins[0].scene_state()
    assert rollout.success
    assert np.linalg.norm(moved[:3] - first[:3]) > 0.03
    np.testing.assert_allclose(moved[:3], state.objects[state.named].position, atol=1e-6)
    np.testing.assert_allclose(moved[3:], first[3:], atol=1e-6)
    way = Episode(SEEDS[0], "push", places=[torch.from_numpy(places) for places in (first, moved)])
    assert progress(way)[0] == 0 and progress(way)[1] > 0.5


def test_a_sampled_episode_holds_the_place_of_every_decision(episodes):
    for episode in episodes:
        assert len(episode.places) == len(episode.inputs) > 0
        assert all(place.shape == (6,) and place.dtype == torch.float32 for place in episode.places)
    starts = torch.stack([episode.places[0] for episode in episodes])
    assert (starts[:, :2].std(0) > 0.005).all(), "cubes lie in different places"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_trains_the_acting_weights_through_the_summary_and_leaves_the_critic(name):
    policy = make_policy(name, CONFIGS[name]())
    policy.set_stage("sft")
    places = learner(policy)
    inputs = policy.example_inputs(3)
    loss, distance = place_loss(policy, places.head, PlaceBatch(inputs, torch.rand(3, 6)))
    assert loss.shape == distance.shape == (3,)
    loss.mean().backward()
    groups = policy.param_groups()
    assert any(p.grad is not None and p.grad.any() for p in groups["policy"])
    assert all(p.grad is None or not p.grad.any() for p in groups["value"])
    assert places.head.linear.weight.grad.any()


def test_where_things_are_is_learned_from_pictures(episodes):
    """By heart, of six scenes: the pictures say which is which."""
    torch.manual_seed(0)
    policy = make_policy("compact_flow")
    places = learner(policy)
    places.add(episodes)
    everything = places._kept
    _, before = place_loss(policy, places.head, everything)
    optimizer = torch.optim.Adam([*policy.param_groups()["policy"], *places.head.parameters()], lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss, distance = place_loss(policy, places.head, everything)
        loss.mean().backward()
        optimizer.step()
    assert distance.mean() < 0.01 < before.mean()


def test_the_newest_decisions_are_kept_whatever_became_of_the_episode(episodes):
    policy = make_policy("compact_flow")
    count = sum(len(episode.inputs) for episode in episodes)
    assert not any(episode.success for episode in episodes)
    whole, small = learner(policy), learner(policy, capacity=3)
    for places in (whole, small):
        places.add(episodes[:4])
        places.add(episodes[4:])
    assert (len(whole), len(small)) == (count, 3)
    torch.testing.assert_close(small._kept.places, whole._kept.places[-3:], rtol=0, atol=0)
    first = torch.cat([torch.stack(episode.places) for episode in episodes[:4]])
    torch.testing.assert_close(whole.head.centre, first.mean(0))


def test_a_restored_learner_goes_on_with_the_same_bits(episodes):
    policy = make_policy("compact_flow")
    places, again = learner(policy), learner(policy)
    places.add(episodes)
    again.restore(places.state())
    batches = [each.sample(policy, np.random.default_rng(1), torch.Generator().manual_seed(1)) for each in (places, again)]
    torch.testing.assert_close(batches[0].places, batches[1].places, rtol=0, atol=0)
    losses = [place_loss(policy, each.head, batch)[0] for each, batch in zip((places, again), batches, strict=True)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    assert set(batches[0].inputs) == {"images", "words", "proprio"}
    for name in batches[0].inputs:
        assert torch.equal(batches[0].inputs[name], batches[1].inputs[name])


def with_places(tiny_datasets, start, out, **changes):
    settings = {"places": PlacesConfig(weight=1.0, batch_size=4, capacity=10), "beta": 0.1,
                "replay": ReplayConfig(updates=2, batch_size=4, min_size=1, demos=str(tiny_datasets["sim"]))} | changes
    return stage2_config(tiny_datasets, start, out, **settings)


def test_stage2_resumes_with_places_to_the_last_bit(tiny_datasets, untrained, tmp_path, contract):
    start = untrained["compact_flow"]
    whole, resumed = whole_and_resumed(lambda out: with_places(tiny_datasets, start, out), tmp_path)
    assert same_weights(whole, resumed, contract)
    without = train_stage2(with_places(tiny_datasets, start, tmp_path / "without", places=PlacesConfig()), quiet=True)
    assert not same_weights(whole, without, contract)
    errors = [row["places/error_cm"] for row in read_metrics(tmp_path / "cut" / "metrics.jsonl") if "places/error_cm" in row]
    assert len(errors) == 3 and all(0 < error < 100 for error in errors), "the first iteration warms the critic up"


def test_a_policy_without_a_summary_is_refused_by_name(tiny_datasets, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr("rlco_policy.compact.base.CompactPolicy.summary", VLAPolicy.summary)
    with pytest.raises(TrainingError, match=r"places\.weight=1\.0: CompactFlow has no summary"):
        train_stage2(with_places(tiny_datasets, untrained["compact_flow"], tmp_path / "run"), quiet=True)


def test_a_policy_whose_eyes_do_not_train_is_refused():
    policy = make_policy("pi05", CONFIGS["pi05"]())
    policy.set_stage("rl")
    with pytest.raises(TrainingError, match=r"no weight behind.*rl_trains"):
        learner(policy)


def test_a_replay_step_adds_the_weighted_gradient_of_the_places(episodes):
    """Whatever the number of micro-batches."""
    policy = make_policy("compact_flow")
    places = learner(policy)
    places.add(episodes)
    seen = places.sample(policy, np.random.default_rng(0), torch.Generator().manual_seed(0))
    worked = real_batch(policy, 6)
    learners = [*acting_weights(policy), *places.head.parameters()]

    def gradients():
        found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learners]
        for parameter in learners:
            parameter.grad = None
        return found

    policy.sft_loss(worked.inputs, worked.actions, worked.valid, draws=worked.draws).loss.backward()
    (0.7 * place_loss(policy, places.head, seen)[0].mean()).backward()
    wanted = gradients()
    for micro_batches in (1, 3):
        config = StageTwoConfig(out="x", start="y", beta=0.0, micro_batches=micro_batches, max_grad_norm=1e9,
                                replay=ReplayConfig(updates=1), places=PlacesConfig(weight=0.7))
        metrics = replay_step(policy, torch.optim.SGD(learners, lr=0.0), worked, None, config, beta=0.0,
                              places=(places.head, seen))
        assert {"places/loss", "places/error_cm"} <= metrics.keys()
        for got, expected in zip(gradients(), wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_places_without_replay_steps_are_refused():
    with pytest.raises(ValueError, match=r"places\.weight > 0 needs replay\.updates > 0"):
        StageTwoConfig(out="x", start="y", beta=0.0, places=PlacesConfig(weight=1.0))


def test_greedy_episodes_keep_no_places(contract):
    """Evaluations hold thousands of episodes; what only training needs would fill the memory."""
    policy = make_policy("compact_flow")
    with open_pool(contract, policy, "push_cube", "twin", scenes=2, workers=0) as pool:
        episodes = run_episodes(policy, pool, SEEDS[:2], max_chunks=1)
    assert [len(episode.rewards) for episode in episodes] == [1, 1]
    assert not any(episode.places or episode.inputs for episode in episodes)
