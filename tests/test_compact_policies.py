"""What is particular to the compact policies, and policy checkpoints. What every policy promises: test_policy_contract."""

import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from policies import BATCH, CONTRACT, NAMES, actions, generator, make_policy, observations, take

from rlco_common.errors import ConfigError, ContractMismatch, DataError
from rlco_common.observation import encode_image
from rlco_policy import checkpoint
from rlco_policy.augmentation import AugmentationConfig, augment_images
from rlco_policy.checkpoint import load_policy, save_policy
from rlco_policy.compact.text import WordTokenizer
from rlco_policy.interface import ObsBatch
from rlco_policy.statistics import Statistics

POLICIES = ("compact_flow", "compact_token")


@pytest.fixture(scope="module", params=POLICIES)
def policy(request):
    """Read-only: tests that change weights make their own."""
    return make_policy(request.param)


@pytest.fixture(scope="module")
def inputs(policy):
    return policy.preprocess(observations())


def test_an_unknown_or_impossible_setting_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"unknown field.*denoise_step;"):
        make_policy("compact_flow", {"denoise_step": 4})
    with pytest.raises(ConfigError, match="noise_std"):
        make_policy("compact_flow", {"noise_std": [0.2, 0.1]})


# -- RL


def test_the_critic_does_not_move_the_policys_features_unless_it_is_told_to():
    for detach, reached in ((True, False), (False, True)):
        for name in POLICIES:
            own = make_policy(name, {"value": {"detach": detach}})
            inputs = own.preprocess(observations())
            own.evaluate(inputs, own.sample(inputs, generator=generator()).trace).value.sum().backward()
            assert (own.encoder.vision.stem.weight.grad is not None) is reached


def test_the_entropy_is_that_of_the_sampling_distribution():
    """Flow: between the entropies of the bounds. Tokens: log of the number of bins for uniform logits."""
    flow = make_policy("compact_flow", {"noise_std": [0.1, 0.2]})
    inputs = flow.preprocess(observations())
    entropy = flow.evaluate(inputs, flow.sample(inputs, generator=generator()).trace).entropy
    bound = 0.5 * np.log(2 * np.pi * np.e) + np.log([0.1, 0.2])
    assert (entropy > bound[0]).all() and (entropy < bound[1]).all()
    token = make_policy("compact_token")
    with torch.no_grad():
        token.decoder.head.weight.zero_()
        token.decoder.head.bias.zero_()
        token.decoder.log_scale.fill_(10.0)     # so wide around the plan that it is uniform
    entropy = token.evaluate(inputs, token.sample(inputs, generator=generator()).trace).entropy
    torch.testing.assert_close(entropy, torch.full((BATCH,), float(np.log(256))), atol=1e-4, rtol=0)


def test_the_exploration_noise_never_leaves_its_bounds():
    own = make_policy("compact_flow", {"noise_std": [0.08, 0.16], "noise_std_end": 0.1})
    inputs = own.preprocess(observations())
    memory = own.expert.read(own.encode(inputs))
    x, when = torch.randn(BATCH, 8, 7, generator=generator()), torch.zeros(BATCH)
    for scale, progress, high in ((1.0, 0.0, 0.16), (1e4, 0.0, 0.16), (-1e4, 0.0, 0.16), (1e4, 1.0, 0.1), (1e4, 7.0, 0.1)):
        own.set_progress(progress)
        with torch.no_grad():
            own.noise_head[-1].bias.fill_(scale)
            std = own._transition(x, when, memory)[1]
        assert (std >= 0.08 * (1 - 1e-5)).all() and (std <= high * (1 + 1e-5)).all()


def test_the_flow_chain_has_the_likelihood_of_its_gaussians():
    """Recomputed with torch.distributions, and the mean and sum options differ by the number of entries."""
    own = make_policy("compact_flow")
    inputs = own.preprocess(observations())
    sampled = own.sample(inputs, generator=generator())
    chain, steps = sampled.trace["chain"], own.config.denoise_steps
    memory = own.expert.read(own.encode(inputs))
    total = torch.distributions.Normal(0.0, 1.0).log_prob(chain[:, 0])
    for k in range(steps):
        mean, std = own._transition(chain[:, k], torch.full((BATCH,), k / steps), memory)
        total = total + torch.distributions.Normal(mean, std).log_prob(chain[:, k + 1])
    expected = total[:, : own.spec.chunk]
    torch.testing.assert_close(sampled.logprob, expected / (steps + 1), atol=1e-4, rtol=0)
    own.config = dataclasses.replace(own.config, logprob="sum")
    torch.testing.assert_close(own.evaluate(inputs, sampled.trace).logprob, expected, atol=1e-3, rtol=0)


def test_the_token_temperature_is_part_of_the_log_probability():
    own = make_policy("compact_token", {"temperature": 0.5})
    inputs = own.preprocess(observations())
    sampled = own.sample(inputs, generator=generator())
    assert (own.evaluate(inputs, sampled.trace).logprob - sampled.logprob).abs().max() < 1e-4
    own.config = dataclasses.replace(own.config, temperature=1.0)
    assert (own.evaluate(inputs, sampled.trace).logprob - sampled.logprob).abs().max() > 1e-2


def test_tokens_follow_the_plan_unless_the_transformer_says_otherwise():
    token = make_policy("compact_token")
    decoder, inputs = token.decoder, token.preprocess(observations())
    with torch.no_grad():
        decoder.plan_head.weight.mul_(0.3 / decoder.begin(token.encode(inputs)).planned.std())
    planned = decoder.begin(token.encode(inputs)).planned.view(BATCH, token.spec.chunk, -1)
    half_a_bin = 1.0 / token.config.bins
    assert (token.normalizer.normalise(token.act(inputs)) - planned.clamp(-1, 1)).abs().max() < half_a_bin + 1e-5
    with torch.no_grad():
        decoder.head.bias[0] = -1000.0      # the longest wave, a quarter over the range: as far from the plan as there is
    far = torch.where(planned > 0, 0, token.config.bins - 1).flatten(1)
    assert torch.equal(token.tokens_of(token.act(inputs)), far)


def test_the_transformer_adds_waves_of_the_distance_from_the_plan():
    """Computed by turning the weights; here from the distances themselves."""
    decoder = make_policy("compact_token").decoder
    hidden, planned = torch.randn(2, 3, 128, generator=generator()), torch.rand(2, 3, generator=generator()) - 0.5
    with torch.no_grad():
        decoder.head.weight.normal_(generator=generator())
        prior = decoder._logits(torch.zeros_like(hidden), planned, decoder.log_scale[:3])
        angle = (decoder.centres - planned.unsqueeze(-1)).unsqueeze(-1) * decoder.frequencies
        cosine, sine = decoder.head(hidden).unsqueeze(-2).chunk(2, -1)
        expected = (cosine * angle.cos() + sine * angle.sin()).sum(-1)
        torch.testing.assert_close(decoder._logits(hidden, planned, decoder.log_scale[:3]) - prior, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_the_plan_learns_by_its_own_error_alone(weight):
    token = make_policy("compact_token", {"plan_weight": weight})
    token.sft_loss(token.preprocess(observations()), actions(token), generator=generator()).loss.backward()
    gradient = token.decoder.plan_head.weight.grad
    assert (gradient is not None and gradient.abs().max() > 0) == (weight > 0)
    assert token.decoder.log_scale.grad.abs().min() > 0


# -- supervised


def test_masked_steps_do_not_matter(policy, inputs):
    valid = torch.ones(BATCH, policy.spec.horizon, dtype=torch.bool)
    valid[:, policy.spec.horizon // 2:] = False
    target, nonsense = actions(policy), actions(policy, seed=9)
    mixed = torch.where(valid.unsqueeze(-1), target, nonsense)
    draws = policy.sft_draws(BATCH, generator())
    if policy.spec.family == "tokens":      # teacher forcing shows earlier tokens only, so later nonsense stays unseen
        draws = {"shown": torch.ones_like(draws["shown"])}
        assert torch.equal(*(policy.sft_loss(inputs, a, valid, draws=draws).per_sample for a in (target, mixed)))
    out = policy.sft_loss(inputs, target, valid, draws=draws)
    full = policy.sft_loss(inputs, target, draws=draws)
    assert torch.isfinite(out.loss) and not torch.equal(out.per_sample, full.per_sample)


@pytest.mark.long
def test_it_learns_which_object_the_instruction_names():
    """Two squares per picture; the action points at the named one, and away from it in later steps of the horizon."""
    rng = np.random.default_rng(0)
    pictures = np.full((24, 64, 64, 3), 170, np.uint8)
    centre = rng.integers(8, 56, (24, 2))
    centre[:, 1] = np.where(np.abs(centre[:, 0] - centre[:, 1]) < 12, 63 - centre[:, 0], centre[:, 1])
    for picture, (red, green) in zip(pictures, centre, strict=True):
        picture[28:36, red - 4: red + 4], picture[28:36, green - 4: green + 4] = (200, 40, 40), (40, 170, 80)
    obs = ObsBatch({name: torch.from_numpy(pictures.repeat(2, 0)) for name in CONTRACT.cameras},
                   torch.full((48, len(NAMES)), 0.1), ["push the red cube", "push the green cube"] * 24)
    place = torch.from_numpy(centre.reshape(-1) / 32.0 - 1.0).float()       # -0.75 .. 0.75 of the action's range
    for name in POLICIES:
        own = make_policy(name)
        inputs = own.preprocess(obs)
        course = torch.where(torch.arange(own.spec.horizon) < own.spec.chunk - 1, 1.0, -0.5)
        target = torch.zeros(48, own.spec.horizon, 7)
        target[..., 1] = 0.05 * place[:, None] * course
        optimiser = torch.optim.AdamW(own.param_groups()["policy"], lr=2e-3)
        draws = generator()
        for _ in range(100):
            batch = torch.randint(48, (24,), generator=draws)
            optimiser.zero_grad()
            own.sft_loss(take(inputs, batch), target[batch], generator=draws).loss.backward()
            torch.nn.utils.clip_grad_norm_(own.param_groups()["policy"], 1.0)
            optimiser.step()
        error = (own.act(inputs)[..., 1] / 0.05 - place[:, None] * course[: own.spec.chunk]).abs().mean()
        blind = (place.view(24, 2).flip(1).flatten() - place).abs().mean() / 2      # always between the two squares
        assert error < 0.25 * blind, f"{name}: {error:.3f}, without language {blind:.3f}"


def test_the_instruction_changes_what_the_image_means(policy):
    obs = observations()
    red = policy.encode(policy.preprocess(dataclasses.replace(obs, instruction=["push the red cube"] * BATCH)))
    blue = policy.encode(policy.preprocess(dataclasses.replace(obs, instruction=["push the blue cube"] * BATCH)))
    image_tokens = red.tokens.shape[1] - 3      # all but text, proprioception and summary
    assert (red.tokens[:, :image_tokens] - blue.tokens[:, :image_tokens]).abs().mean() > 1e-2
    assert (red.pooled - blue.pooled).abs().mean() > 1e-2


# -- determinism and invariance


def test_padding_words_change_nothing(policy, inputs):
    words = inputs["words"][:, : int((inputs["words"] > 0).sum(1).max())]
    torch.testing.assert_close(policy.act(inputs), policy.act({**inputs, "words": words}), atol=1e-6, rtol=0)


def test_inputs_are_compact_and_batch_first(policy, inputs):
    assert inputs["images"].dtype == torch.uint8 and inputs["words"].dtype == torch.int32
    assert all(len(tensor) == BATCH for tensor in inputs.values())


# -- preprocessing and normalisation


def test_images_of_another_size_go_through_the_common_codec(policy):
    obs = observations(batch=2, size=128)
    camera = policy.spec.cameras[0]
    images = policy.preprocess(obs)["images"][:, 0]
    for image, raw in zip(images, obs.images[camera], strict=True):
        assert np.array_equal(image.numpy(), encode_image(raw.numpy(), 64))


def test_augmentation_shifts_by_whole_pixels_and_keeps_grey_grey():
    image = torch.zeros(40, 32, 32, 3, dtype=torch.uint8)
    image[:, 16, 16] = 255
    shifted = augment_images(image, AugmentationConfig(4, 0, 0, 0), generator())
    where = [tuple(index) for index in (shifted[..., 0] == 255).nonzero()[:, 1:].tolist()]
    assert len(where) == 40 and len(set(where)) > 10 and all(abs(v - 16) <= 4 for pixel in where for v in pixel)
    grey = torch.randint(60, 180, (8, 16, 16, 1), generator=generator(), dtype=torch.uint8).expand(-1, -1, -1, 3)
    jittered = augment_images(grey.contiguous(), AugmentationConfig(0, 0.2, 0.2, 0.2), generator()).int()
    assert (jittered.amax(-1) - jittered.amin(-1)).max() <= 1
    assert (jittered - grey.int()).abs().amax((1, 2, 3)).min() > 0
    assert torch.equal(augment_images(image, AugmentationConfig(0, 0, 0, 0), generator()), image)


@pytest.mark.parametrize("change", ["contrast", "saturation"])
def test_contrast_and_saturation_keep_the_brightness(change):
    images = torch.randint(80, 160, (8, 16, 16, 3), generator=generator(), dtype=torch.uint8)
    none = {"shift_pixels": 0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    jittered = augment_images(images, AugmentationConfig(**(none | {change: 0.3})), generator())
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert ((jittered.float() - images.float()) @ luma).mean((1, 2)).abs().max() < 0.5
    assert (jittered.float() - images.float()).abs().mean() > 1.0


def test_bad_observations_are_refused(policy):
    obs = observations()
    with pytest.raises(DataError, match="non-finite"):
        policy.preprocess(dataclasses.replace(obs, proprio=torch.full_like(obs.proprio, float("nan"))))
    with pytest.raises(DataError, match="lacks camera"):
        policy.preprocess(dataclasses.replace(obs, images={"side": obs.images["front_camera"]}))
    with pytest.raises(DataError, match="0 words"):
        policy.preprocess(dataclasses.replace(obs, instruction=[""] * BATCH))
    with pytest.raises(DataError, match="batch size"):
        dataclasses.replace(obs, instruction=["push the red cube"])


def test_action_normalisation_round_trips(policy):
    physical = actions(policy)
    back = policy.normalizer.denormalise(policy.normalizer.normalise(physical))
    torch.testing.assert_close(back, physical, atol=1e-6, rtol=0)
    expected = CONTRACT.action.normalise(physical.double().numpy())
    np.testing.assert_allclose(policy.normalizer.normalise(physical).numpy(), expected, atol=1e-5)


def test_tokens_round_trip_within_half_a_bin():
    own = make_policy("compact_token")
    physical = actions(own, batch=64)
    physical[0, 0], physical[0, 1] = torch.tensor(CONTRACT.action.low), torch.tensor(CONTRACT.action.high)
    tokens = own.tokens_of(physical)
    assert tokens.min() == 0 and tokens.max() == own.config.bins - 1
    error = own.normalizer.normalise(own.actions_of(tokens)) - own.normalizer.normalise(physical)
    assert error.abs().max() <= 1.0 / own.config.bins + 1e-6


def test_words_of_the_contract_are_told_apart_and_collisions_refused():
    WordTokenizer(4096, 16).require_distinct(CONTRACT)
    with pytest.raises(ConfigError, match="share an id"):
        WordTokenizer(4, 16).require_distinct(CONTRACT)
    ids = WordTokenizer(4096, 16).encode(["Push the RED cube!", "push the red cube"])
    assert np.array_equal(ids[0], ids[1])


def test_a_still_element_is_not_blown_up():
    data = np.zeros((10, len(NAMES)))
    data[:, 0] = np.linspace(-1, 1, 10)
    stats = Statistics.from_proprioception(NAMES, data)
    assert stats.std[1] == pytest.approx(1e-2) and stats.std[0] > 0.5
    with pytest.raises(DataError, match="N > 0"):
        Statistics.from_proprioception(NAMES, data[:0])


# -- checkpoints


def test_another_contract_is_refused_with_the_differing_fields(policy, tmp_path):
    save_policy(policy, tmp_path / "a")
    other = dataclasses.replace(CONTRACT, action=dataclasses.replace(CONTRACT.action, max_translation_m=0.04))
    with pytest.raises(ContractMismatch, match=r"action.max_translation_m: 0.04 -> 0.05"):
        load_policy(tmp_path / "a", other)


@pytest.mark.parametrize("field", ["statistics", "contract", "config"])
def test_an_altered_description_is_refused(policy, tmp_path, field):
    path = save_policy(policy, tmp_path / "a") / checkpoint.DESCRIPTION
    content = json.loads(path.read_text())
    if field == "statistics":
        altered = json.loads(content["statistics"])
        altered["mean"][0] += 0.001
        content["statistics"] = json.dumps(altered, sort_keys=True)
    elif field == "contract":
        content["contract"] = content["contract"].replace('"max_steps":', '"max_steps":1')
    else:
        content["config"]["chunk"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="altered after it was saved"):
        load_policy(tmp_path / "a")


def test_weights_that_do_not_fit_are_named(policy, tmp_path, monkeypatch):
    whole = policy.state_dict()
    kept = {key: value for key, value in whole.items() if key != "encoder.text.bias"}
    changed = kept | {"encoder.text.extra": torch.zeros(1)}
    monkeypatch.setattr(policy, "state_dict", lambda: changed)
    save_policy(policy, tmp_path / "a")
    with pytest.raises(DataError, match=r"missing: encoder.text.bias; unexpected: encoder.text.extra"):
        load_policy(tmp_path / "a")


def test_an_incomplete_checkpoint_is_named(policy, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_policy(tmp_path / "nowhere")
    save_policy(policy, tmp_path / "a")
    (tmp_path / "a" / checkpoint.WEIGHTS).write_bytes(b"\x10")
    with pytest.raises(DataError, match=r"model\.safetensors: unreadable weights"):
        load_policy(tmp_path / "a")


def in_child(work):
    """Run `work` in a forked process, which exits without cleaning up."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("step", ["save_file", "_digest", "_sync", "_replace", "rename 1", "rename 2", "rmtree"])
def test_a_save_that_dies_anywhere_leaves_a_whole_checkpoint(tmp_path, step, monkeypatch):
    own = make_policy("compact_flow")
    save_policy(own, tmp_path / "a", {"version": 1})

    def dies(*_, **__):
        os._exit(9)

    def work():
        if step.startswith("rename"):
            calls, rename = iter((None, dies)[::-1] if step.endswith("1") else (None, dies)), os.rename
            checkpoint.os.rename = lambda *paths: (next(calls) or rename)(*paths)
        elif step == "rmtree":
            checkpoint.shutil.rmtree = dies
        else:
            setattr(checkpoint, step, dies)
        save_policy(own, tmp_path / "a", {"version": 2})

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(work), 0)[1]) == 9
    expected = 2 if step == "rmtree" else 1
    assert checkpoint.read_description(tmp_path / "a")["lineage"]["version"] == expected
    load_policy(tmp_path / "a", CONTRACT)
    save_policy(own, tmp_path / "a", {"version": 3})        # and the next save works and tidies up
    assert checkpoint.read_description(tmp_path / "a")["lineage"]["version"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_sigkill_during_saving_keeps_a_whole_checkpoint(tmp_path):
    own = make_policy("compact_token")
    save_policy(own, tmp_path / "a", {"version": 0})

    def save_for_ever():
        for version in range(1, 10_000):
            save_policy(own, tmp_path / "a", {"version": version})

    seen = set()
    for delay_s in np.random.default_rng(0).uniform(0.05, 0.3, 8):
        child = in_child(save_for_ever)
        time.sleep(delay_s)     # the kill has to come at a random moment
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        load_policy(tmp_path / "a", CONTRACT)
        seen.add(checkpoint.read_description(tmp_path / "a")["lineage"]["version"])
    assert max(seen) > 0        # saves did happen


def test_a_new_save_replaces_the_old_one_and_is_readable_by_others(policy, tmp_path):
    for version in (1, 2):
        save_policy(policy, tmp_path / "a", {"version": version})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
