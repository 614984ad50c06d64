"""pi-0.5: equal to LeRobot's own loss and sampling, its checkpoints read and written, an exact chain likelihood."""

import dataclasses
import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from policies import BATCH, CONTRACT, actions, generator, make_policy, observations, take
from safetensors.torch import load_file, save_file
from tiny_models import pi05_config

from rlco_common.errors import ConfigError, DataError
from rlco_policy.checkpoint import WEIGHTS, load_policy, save_policy
from rlco_policy.hub import SINGLE
from rlco_policy.pi05.config import Pi05Config
from rlco_policy.pi05.export import write_lerobot
from rlco_policy.pi05.model import EMBEDDING, EXPERT_HEAD, LANGUAGE_HEAD, build_pi05, lerobot_config, run_expert


@pytest.fixture(scope="module")
def policy():
    return make_policy("pi05", pi05_config())


@pytest.fixture(scope="module")
def inputs(policy):
    return policy.preprocess(observations(size=56))


@contextmanager
def lerobot_in_small(policy):
    """LeRobot's policy class builds its model in the sizes of ours (its own constructor knows the real ones only)."""
    def build(config, rtc_processor=None):
        model = build_pi05(policy.config, config)
        backbone = model.paligemma_with_expert
        backbone.paligemma.lm_head = torch.nn.Linear(policy.config.language.width, policy.config.vocabulary, bias=False)
        backbone.gemma_expert.lm_head = torch.nn.Linear(policy.config.expert.width, policy.config.vocabulary, bias=False)
        return model

    original = modeling_pi05.PI05Pytorch
    modeling_pi05.PI05Pytorch = build
    try:
        yield
    finally:
        modeling_pi05.PI05Pytorch = original


@pytest.fixture(scope="module")
def exported(policy, tmp_path_factory):
    return write_lerobot(policy, tmp_path_factory.mktemp("exported") / "checkpoint")


@pytest.fixture(scope="module")
def lerobot(policy, exported):
    """LeRobot's own PI05Policy, loaded from what we wrote."""
    with lerobot_in_small(policy):
        return PI05Policy.from_pretrained(str(exported), strict=True)


def lerobot_batch(policy, inputs, obs):
    tokens = inputs["tokens"]
    return {f"observation.images.{name}": obs.images[name].permute(0, 3, 1, 2).float() / 255 for name in policy.cameras} | {
        OBS_LANGUAGE_TOKENS: tokens, OBS_LANGUAGE_ATTENTION_MASK: tokens > 0}


# -- LeRobot


def test_the_default_model_has_lerobots_parameters_name_for_name():
    with torch.device("meta"):
        ours = build_pi05(Pi05Config(tokenizer="unused"), PI05Config(device="cpu"))
        theirs = modeling_pi05.PI05Pytorch(PI05Config(device="cpu"))
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    heads = {LANGUAGE_HEAD, EXPERT_HEAD}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: shape for name, shape in shapes.items() if name not in heads}
    assert sum(tensor.numel() for tensor in ours.state_dict().values()) == pytest.approx(3.353e9, rel=1e-3)


def test_the_loss_is_lerobots(policy, inputs, lerobot, monkeypatch):
    draws = policy.sft_draws(BATCH, generator())
    monkeypatch.setattr(lerobot.model, "sample_noise", lambda *_: draws["noise"])
    monkeypatch.setattr(lerobot.model, "sample_time", lambda *_: draws["time"])
    target = actions(policy)
    batch = lerobot_batch(policy, inputs, observations(size=56)) | {ACTION: policy.normalizer.normalise(target)}
    theirs, _ = lerobot.forward(batch, reduction="none")
    torch.testing.assert_close(policy.sft_loss(inputs, target, draws=draws).per_sample, theirs, atol=1e-5, rtol=0)


def test_the_deployed_action_is_lerobots(policy, inputs, lerobot):
    """From the same noise; and slots of the base model that have no camera change nothing."""
    noise = torch.randn((BATCH, 8, 32), generator=generator(3))
    batch = lerobot_batch(policy, inputs, observations(size=56))
    ours = policy.act(inputs, temperature=1.0, generator=generator(3), steps=8)
    normalised = lerobot.predict_action_chunk(batch, noise=noise)
    torch.testing.assert_close(policy.normalizer.denormalise(normalised), ours, atol=1e-5, rtol=0)
    images, seen = lerobot._preprocess_images(batch)
    empty = torch.full_like(images[0], -1.0)
    padded = lerobot.model.sample_actions([*images, empty], [*seen, torch.zeros(BATCH, dtype=torch.bool)], inputs["tokens"],
                                          inputs["tokens"] > 0, noise=noise)
    torch.testing.assert_close(padded[..., :7], normalised, atol=1e-5, rtol=0)


def test_the_chain_without_noise_is_lerobots_velocity(policy, inputs, lerobot):
    """The mean of a transition, at each time of the grid, against LeRobot's denoise_step; the cached prefix is exact."""
    x, padding = torch.randn((BATCH, 8, 7), generator=generator(1)), torch.randn((BATCH, 8, 25), generator=generator(2))
    prefix = policy.prefix(inputs)
    for k in range(4):
        time = torch.full((BATCH,), 1 - k / 4)
        mean, _ = policy._transition(x, padding, time, prefix)
        noisy = torch.cat([x, time[0] * padding], -1)
        cache = modeling_pi05.clone_past_key_values([(*pair, None) for pair in prefix.keys_values])
        velocity = lerobot.model.denoise_step(prefix.visible, cache, noisy, time)
        torch.testing.assert_close(mean, x - velocity[..., :7] / 4, atol=1e-5, rtol=0)


def test_lerobots_processors_give_the_inputs_and_actions_of_ours(policy, inputs, lerobot, exported):
    before, after = make_pre_post_processors(lerobot.config, pretrained_path=str(exported), preprocessor_overrides={
        "tokenizer_processor": {"tokenizer_name": str(exported / "tokenizer")}})
    obs = observations(size=56)
    batch = before({"observation.state": obs.proprio[2], "task": obs.instruction[2],
                    "observation.images.front_camera": obs.images["front_camera"][2].permute(2, 0, 1).float() / 255})
    assert torch.equal(batch[OBS_LANGUAGE_TOKENS][0], inputs["tokens"][2].long())
    noise = torch.randn((1, 8, 32), generator=generator(3))
    theirs = after(lerobot.predict_action_chunk(batch, noise=noise)[0])
    ours = policy.act(take(inputs, slice(2, 3)), temperature=1.0, generator=generator(3), steps=8)[0]
    low, high = torch.tensor(CONTRACT.action.low).float(), torch.tensor(CONTRACT.action.high).float()
    torch.testing.assert_close(theirs.minimum(high).maximum(low), ours, atol=1e-5, rtol=0)


# -- checkpoints


@pytest.mark.parametrize("layout", ["lerobot", "openpi", "published"])
def test_a_checkpoint_of_any_public_layout_loads(policy, inputs, exported, tmp_path, layout):
    """With or without the `model.` prefix; the published file holds the embedding only as the head tied to it."""
    weights = load_file(exported / SINGLE)
    if layout != "lerobot":
        del weights[f"model.{EMBEDDING}"]
    if layout == "openpi":
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    save_file(weights, tmp_path / SINGLE)
    loaded = make_policy("pi05", pi05_config(pretrained=str(tmp_path)), seed=5)
    assert all(torch.equal(tensor, loaded.model.state_dict()[name]) for name, tensor in policy.model.state_dict().items())
    assert torch.equal(loaded.act(inputs), policy.act(inputs))


def test_a_written_checkpoint_is_the_read_one_key_for_key(exported, tmp_path):
    again = make_policy("pi05", pi05_config(pretrained=str(exported)), seed=5)
    before, after = (load_file(folder / SINGLE) for folder in (exported, write_lerobot(again, tmp_path / "again")))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_another_model_is_refused_by_name(exported, tmp_path):
    weights = load_file(exported / SINGLE)
    save_file({name: tensor for name, tensor in weights.items() if "time_mlp_in" not in name}, tmp_path / SINGLE)
    with pytest.raises(DataError, match=r"lacks 2 weights of pi-0.5, such as time_mlp_in.bias"):
        make_policy("pi05", pi05_config(pretrained=str(tmp_path)))
    save_file({**weights, "model.wrong": torch.zeros(1)}, tmp_path / SINGLE)
    with pytest.raises(DataError, match=r"wrong \[1\] does not exist"):
        make_policy("pi05", pi05_config(pretrained=str(tmp_path)))


CONSTANT = 3
"""A dimension of state and action that never moved in the data of the fine-tuned checkpoints here."""


def fine_tuned(exported, folder, modes=None, relative=False, drop=()):
    """A LeRobot checkpoint with the statistics of other data, normalised by `modes`, as LeRobot would have written it."""
    shutil.copytree(exported, folder)
    for name in ("config.json", "policy_preprocessor.json", "policy_postprocessor.json"):
        content = json.loads((folder / name).read_text())
        mapping = content["normalization_mapping"] if "steps" not in content else next(
            step["config"]["norm_map"] for step in content["steps"] if "normalizer" in step["registry_name"])
        mapping.update(modes or {})
        for step in content.get("steps", ()):
            if step["registry_name"] == "relative_actions_processor":
                step["config"]["enabled"] = relative
        (folder / name).write_text(json.dumps(content))
    stored = {}
    for feature, size in ((ACTION, 7), ("observation.state", 10)):
        data = 0.02 * torch.randn((500, size), generator=generator(size)) + 0.01
        data[:, CONSTANT] = 0.3
        names = {"mean": data.mean(0), "std": data.std(0), "min": data.amin(0), "max": data.amax(0)}
        names |= {f"q{q:02d}": data.quantile(q / 100, 0) for q in (1, 10, 90, 99)}
        names["std"][CONSTANT], names["mean"][CONSTANT] = 0.0, 0.3
        stored |= {f"{feature}.{name}": value for name, value in names.items() if name not in drop}
    for path in folder.glob("policy_*normalizer*.safetensors"):
        save_file(stored, path)
    return folder


@pytest.mark.parametrize("mode", ["QUANTILES", "MEAN_STD", "MIN_MAX", "QUANTILE10", "IDENTITY"])
def test_a_fine_tuned_checkpoint_is_normalised_as_lerobot_does(exported, lerobot, tmp_path, mode):
    """State by its tokens and actions both ways, in every mode, with a dimension that never moved."""
    folder = fine_tuned(exported, tmp_path / "tuned", {"STATE": mode, "ACTION": mode})
    own = make_policy("pi05", pi05_config(pretrained=str(folder), statistics="checkpoint"))
    before, after = make_pre_post_processors(lerobot.config, pretrained_path=str(folder), preprocessor_overrides={
        "tokenizer_processor": {"tokenizer_name": str(exported / "tokenizer")}})
    obs, target = observations(size=56), 0.02 * torch.randn((BATCH, 7), generator=generator(3))
    obs.proprio[::2, CONSTANT] = target[:, CONSTANT] = 0.3
    tokens = own.preprocess(obs)["tokens"]
    for i in range(BATCH):
        theirs = before({"observation.state": obs.proprio[i], "task": obs.instruction[i], ACTION: target[i],
                         "observation.images.front_camera": obs.images["front_camera"][i].permute(2, 0, 1).float() / 255})
        assert torch.equal(theirs[OBS_LANGUAGE_TOKENS][0], tokens[i].long())
        torch.testing.assert_close(own.normalizer.normalise(target[i]), theirs[ACTION][0], atol=1e-5, rtol=0)
    unit = torch.randn((BATCH, 7), generator=generator(4))
    low, high = torch.tensor(CONTRACT.action.low).float(), torch.tensor(CONTRACT.action.high).float()
    torch.testing.assert_close(own.normalizer.denormalise(unit), after(unit).maximum(low).minimum(high), atol=1e-6, rtol=0)
    assert own.normalizer.normalise(target + 1).abs().max() < 1e3, "motion where there was none is no target of millions"


def test_the_normalisation_of_a_fine_tuned_checkpoint_is_kept_and_written_back(exported, tmp_path):
    folder = fine_tuned(exported, tmp_path / "tuned", {"STATE": "MEAN_STD", "ACTION": "MIN_MAX"})
    own = make_policy("pi05", pi05_config(pretrained=str(folder), statistics="checkpoint"))
    loaded = load_policy(save_policy(own, tmp_path / "a", whole=True))
    again = make_policy("pi05", pi05_config(pretrained=str(write_lerobot(loaded, tmp_path / "b")), statistics="checkpoint"))
    obs, target = observations(size=56), actions(own)
    for other in (loaded, again):
        assert torch.equal(other.preprocess(obs)["tokens"], own.preprocess(obs)["tokens"])
        assert torch.equal(other.normalizer.normalise(target), own.normalizer.normalise(target))
    with pytest.raises(ConfigError, match="needs pretrained"):
        make_policy("pi05", pi05_config(statistics="checkpoint"))


def test_what_a_checkpoint_does_and_we_do_not_is_refused_by_name(exported, tmp_path):
    def refused(match, name, **changes):
        folder = fine_tuned(exported, tmp_path / name, **changes)
        with pytest.raises((DataError, ConfigError), match=match):
            make_policy("pi05", pi05_config(pretrained=str(folder), statistics="checkpoint"))
        return folder

    refused(r"lacks action.std, which MEAN_STD needs", "short", modes={"ACTION": "MEAN_STD"}, drop=("std",))
    refused(r"relative to the state \(use_relative_actions\)", "relative", relative=True)
    refused(r"pictures are normalised by MEAN_STD", "pictures", modes={"VISUAL": "MEAN_STD"})
    folder = refused(r"normalised by LOGARITHM; known are MEAN_STD", "other", modes={"STATE": "LOGARITHM"})
    config = json.loads((folder / "config.json").read_text())
    config["normalization_mapping"]["STATE"] = "QUANTILES"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"correct the one that is wrong"):
        make_policy("pi05", pi05_config(pretrained=str(folder), statistics="checkpoint"))
    (folder / "policy_preprocessor.json").unlink()
    with pytest.raises(DataError, match=r"stores no normalisation .* use statistics: contract"):
        make_policy("pi05", pi05_config(pretrained=str(folder), statistics="checkpoint"))


def test_a_checkpoint_leaves_the_frozen_model_to_its_base_and_stands_alone_when_little_is_frozen(exported, tmp_path, inputs):
    for trains, expected in (("all", False), ("expert", True)):
        own = make_policy("pi05", pi05_config(pretrained=str(exported), trains=trains,
                                              vocabulary=300, lora={"rank": 4} if expected else {"rank": 0}))
        saved = save_policy(own, tmp_path / trains)
        assert (f"model.{EMBEDDING}" not in load_file(saved / WEIGHTS)) is expected
        assert torch.equal(load_policy(saved).act(inputs), own.act(inputs))


def test_a_checkpoint_loads_in_the_precision_that_is_asked_for(policy, inputs, tmp_path):
    """Each weight in the model's own, whatever the file holds: bfloat16 after a Stage I in float32, and back."""
    changes = {"dtype": "bfloat16", "trains": "expert"}
    wanted = {name: tensor.dtype for name, tensor in make_policy("pi05", pi05_config(**changes)).state_dict().items()}
    half = load_policy(save_policy(policy, tmp_path / "float32"), config_changes=changes)
    assert {name: tensor.dtype for name, tensor in half.state_dict().items()} == wanted
    assert set(wanted.values()) == {torch.float32, torch.bfloat16}
    torch.testing.assert_close(half.act(inputs), policy.act(inputs), atol=1e-2, rtol=0)
    back = load_policy(save_policy(half, tmp_path / "bfloat16"), config_changes={"dtype": "float32"})
    assert {tensor.dtype for tensor in back.state_dict().values()} == {torch.float32}


# -- stages and parts


def test_stage_two_trains_the_expert_and_the_heads_and_stage_one_everything(inputs):
    own = make_policy("pi05", pi05_config())
    everything = {id(parameter) for parameter in own.param_groups()["policy"]}
    own.set_stage("rl")
    expert = own.param_groups()
    assert set(expert) == {"policy", "value", "noise"} and len(expert["policy"]) < len(everything)
    trained = {name for name, parameter in own.named_parameters() if parameter.requires_grad and name.startswith("model.")}
    assert all("gemma_expert" in name or name.split(".")[1] in ("action_in_proj", "action_out_proj", "time_mlp_in",
                                                                "time_mlp_out") for name in trained)
    frozen = {name: parameter.clone() for name, parameter in own.named_parameters() if not parameter.requires_grad}
    optimizer = torch.optim.AdamW([parameter for group in expert.values() for parameter in group], lr=1e-2)
    scored = own.evaluate(inputs, own.sample(inputs, generator=generator()).trace)
    (scored.logprob.sum() + scored.value.sum()).backward()
    optimizer.step()
    assert all(torch.equal(dict(own.named_parameters())[name], before) for name, before in frozen.items())
    own.set_stage("sft")
    assert {id(parameter) for parameter in own.param_groups()["policy"]} == everything


def test_adapters_train_in_the_place_of_the_weights(inputs):
    own = make_policy("pi05", pi05_config(lora={"rank": 2}))
    plain = make_policy("pi05", pi05_config())
    assert {tuple(p.shape) for p in own.param_groups()["policy"]} != {tuple(p.shape) for p in plain.param_groups()["policy"]}
    names = [name for name, parameter in own.named_parameters() if parameter.requires_grad and "with_expert" in name]
    assert names and all(name.endswith(("lora_a", "lora_b")) for name in names)
    own.sft_loss(inputs, actions(own), generator=generator()).loss.backward()
    assert all(p.grad.any() for name, p in own.named_parameters() if p.requires_grad and name.endswith("lora_b"))


def test_gradient_checkpointing_changes_memory_and_not_gradients(inputs):
    gradients = []
    for flag in (False, True):
        own = make_policy("pi05", pi05_config(gradient_checkpointing=flag))
        own.sft_loss(inputs, actions(own), generator=generator()).loss.backward()
        gradients.append([parameter.grad for parameter in own.param_groups()["policy"]])
        sampled = own.sample(inputs, generator=generator())
        assert (own.evaluate(inputs, sampled.trace).logprob - sampled.logprob).abs().max() < 1e-4
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


# -- prompt and proprioception


def test_proprioception_enters_through_the_prompt_alone(policy):
    obs = observations(size=56)
    moved = dataclasses.replace(obs, proprio=obs.proprio + 0.2)
    assert not torch.equal(policy.preprocess(obs)["tokens"], policy.preprocess(moved)["tokens"])
    blind = make_policy("pi05", pi05_config(state_in_prompt=False))
    assert torch.equal(blind.preprocess(obs)["tokens"], blind.preprocess(moved)["tokens"])
    assert policy.prompt.prompts(["Push_the cube "], torch.tensor([[-1.5, -1.0, 0.0, 0.999, 2.0]])) == [
        "Task: Push the cube, State: -1 0 128 255 255;\nAction: "]


def test_a_prompt_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="max_prompt_tokens is 20"):
        make_policy("pi05", pi05_config(max_prompt_tokens=20)).preprocess(observations(size=56))


def test_the_critic_does_not_read_padding(policy, inputs):
    """The reference release averages over the padded text as well."""
    longer = {**inputs, "tokens": torch.nn.functional.pad(inputs["tokens"], (0, 30))}
    torch.testing.assert_close(policy.value(longer), policy.value(inputs), atol=1e-5, rtol=0)
    torch.testing.assert_close(policy.act(longer), policy.act(inputs), atol=1e-5, rtol=0)


# -- the chain


def test_the_chain_has_the_likelihood_of_its_gaussians(policy, inputs):
    sampled = policy.sample(inputs, generator=generator())
    chain, padding, steps = sampled.trace["chain"], sampled.trace["padding"], policy.config.denoise_steps
    prefix = policy.prefix(inputs)
    total = torch.distributions.Normal(0.0, 1.0).log_prob(chain[:, 0])
    for k in range(steps):
        mean, std = policy._transition(chain[:, k], padding, torch.full((BATCH,), 1 - k / steps), prefix)
        assert (std >= 0.08 * (1 - 1e-5)).all() and (std <= 0.16 * (1 + 1e-5)).all()
        total = total + torch.distributions.Normal(mean, std).log_prob(chain[:, k + 1])
    expected = total[:, : policy.spec.chunk]
    torch.testing.assert_close(sampled.logprob, expected / (steps + 1), atol=1e-4, rtol=0)
    summed = make_policy("pi05", pi05_config(logprob="sum"))
    torch.testing.assert_close(summed.evaluate(inputs, sampled.trace).logprob, expected, atol=1e-3, rtol=0)


def test_a_kept_prefix_spares_the_update_the_language_model_and_changes_nothing(inputs, monkeypatch):
    keeps = make_policy("pi05", pi05_config(keep_prefix=True))
    keeps.set_stage("rl")
    sampled = keeps.sample(inputs, generator=generator())
    chain = {name: sampled.trace[name] for name in ("chain", "padding")}
    again = keeps.evaluate(inputs, chain)
    kept = {name: tensor for name, tensor in sampled.trace.items() if name not in chain}
    largest = sum(tensor[0].nbytes for name, tensor in kept.items() if name in ("prefix_keys", "prefix_values"))
    assert keeps.trace_bytes() == largest
    assert sum(tensor[0].nbytes for tensor in kept.values()) < 1.1 * largest
    monkeypatch.setattr(keeps.model.paligemma_with_expert.paligemma, "forward", None)
    monkeypatch.setattr(keeps, "prefix", None)
    scored = keeps.evaluate(inputs, sampled.trace)
    for name in ("logprob", "entropy", "value"):
        assert torch.equal(getattr(scored, name), getattr(again, name))
    torch.testing.assert_close(scored.logprob, sampled.logprob, atol=1e-5, rtol=0)
    assert scored.logprob.requires_grad
    with pytest.raises(ConfigError, match="keep_prefix needs rl_trains: expert"):
        make_policy("pi05", pi05_config(keep_prefix=True, rl_trains="all"))


def test_the_noise_bound_follows_progress(inputs):
    own = make_policy("pi05", pi05_config(noise_std_end=0.1))
    own.set_progress(1.0)
    with torch.no_grad():
        own.noise_head[-1].bias.fill_(1e4)
    trace = own.sample(inputs, generator=generator()).trace
    _, std = own._transition(trace["chain"][:, 0], trace["padding"], torch.ones(BATCH), own.prefix(inputs))
    torch.testing.assert_close(std, torch.full_like(std, 0.1))


def test_training_times_are_those_of_pi05(policy):
    time = policy.sft_draws(20_000, generator())["time"]
    assert time.min() >= 0.001 and time.max() <= 1.0
    assert float(time.mean()) == pytest.approx(0.001 + 0.999 * 0.6, abs=0.01)      # the mean of Beta(1.5, 1)


# -- real-time chunking


def test_a_new_chunk_goes_on_where_the_old_one_stands(policy, inputs):
    free = policy.act(inputs, steps=8)
    old = policy.act(inputs, temperature=1.0, generator=generator(4), steps=8)
    guided = policy.act(inputs, prev_chunk=old[:, 4:], delay=2, steps=8)
    normalised = [policy.normalizer.normalise(chunk) for chunk in (free, old[:, 4:], guided)]
    before, after = ((chunk[:, :2] - normalised[1][:, :2]).abs().mean() for chunk in (normalised[0], normalised[2]))
    assert after < 0.2 * before
    assert guided.shape == (BATCH, 8, 7) and policy.act(inputs, prev_chunk=old[:, 4:], delay=2).shape == (BATCH, 4, 7)


# -- precision


def test_bfloat16_gives_float32_log_probabilities_near_the_exact_ones(inputs, policy):
    half = make_policy("pi05", pi05_config(dtype="bfloat16", trains="expert"))
    half.model.load_state_dict({name: tensor.to(half.model.state_dict()[name].dtype)
                                for name, tensor in policy.model.state_dict().items()})
    for head in ("noise_head", "value_head"):
        getattr(half, head).load_state_dict(getattr(policy, head).state_dict())
    trace = policy.sample(inputs, generator=generator()).trace
    exact, rough = policy.evaluate(inputs, trace).logprob, half.evaluate(inputs, trace).logprob
    assert rough.dtype == torch.float32 and (rough - exact).abs().mean() < 0.05
    draws = policy.sft_draws(BATCH, generator())
    losses = [own.sft_loss(inputs, actions(own), draws=draws) for own in (policy, half)]
    torch.testing.assert_close(losses[1].per_sample, losses[0].per_sample, atol=0, rtol=0.02)
    half.sft_loss(inputs, actions(half), draws=draws).loss.backward()
    assert all(parameter.dtype == torch.float32 for group in half.param_groups().values() for parameter in group)
    sampled = half.sample(inputs, generator=generator())
    ratio = (half.evaluate(inputs, sampled.trace).logprob - sampled.logprob).sum((1, 2)).exp()
    torch.testing.assert_close(ratio, torch.ones(BATCH), atol=0.05, rtol=0)


def test_training_bfloat16_weights_is_refused():
    with pytest.raises(ConfigError, match="small steps vanish"):
        make_policy("pi05", pi05_config(dtype="bfloat16"))


def test_prefix_and_expert_apart_are_lerobots_joint_pass(policy, inputs):
    target, draws = policy.normalizer.normalise(actions(policy)), policy.sft_draws(BATCH, generator())
    mixed = torch.lerp(policy._pad(target), draws["noise"], draws["time"][:, None, None])
    velocity, _ = run_expert(policy.model, policy.prefix(inputs), mixed, draws["time"])
    errors = (velocity - (draws["noise"] - policy._pad(target))).square()[..., :7]
    torch.testing.assert_close(errors, policy.sft_errors(inputs, actions(policy), draws)[0], atol=1e-5, rtol=0)


def test_the_lerobot_description_names_what_the_policy_has(policy):
    config = lerobot_config(policy.config, policy.cameras, 10, 7)
    assert (config.chunk_size, config.n_action_steps, config.num_inference_steps, config.max_action_dim) == (8, 4, 4, 32)
