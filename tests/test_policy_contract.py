"""What every policy promises to trainers, evaluator and node: one set of checks over all of ours and one from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from policies import CONFIGS, CONTRACT, make_policy, statistics

from rlco_common.errors import ConfigError
from rlco_policy import policy_checks
from rlco_policy.policy_checks import CHECKS, Case, check_policy
from rlco_policy.registry import policy_class, policy_names

EXAMPLE = Path(__file__).resolve().parent.parent / "docs" / "examples" / "policy_package"
OUTSIDER = "example_gaussian"


@pytest.fixture(scope="session")
def outsider(tmp_path_factory):
    """The example package of the documentation, installed as a third party installs it, into a folder on the path."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "package"
    subprocess.run(["cp", "-r", EXAMPLE, source], check=True)      # building writes into the source folder
    install = [sys.executable, "-m", "uv", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-p", sys.executable]
    subprocess.run([*install, "--target", folder, source], check=True, env={**os.environ, "UV_OFFLINE": "1"})
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


VARIANTS = {
    "openvla_all_weights": ("openvla", {"trains": "all", "chunk": 1, "temperature": 0.7, "center_crop": True}),
    "pi05_kept_prefix": ("pi05", {"keep_prefix": True}),
    "pi05_adapters": ("pi05", {"lora": {"rank": 2}, "rl_trains": "all", "state_in_prompt": False, "logprob": "sum",
                               "denoise_steps": 2}),
}


@pytest.fixture(scope="module", params=[*CONFIGS, *VARIANTS, OUTSIDER])
def case(request, tmp_path_factory):
    name, changes = VARIANTS.get(request.param, (request.param, {}))
    if name == OUTSIDER:
        request.getfixturevalue("outsider")
    config = CONFIGS.get(name, dict)(**changes)
    return Case(lambda seed: make_policy(name, config, seed=seed), tmp_path_factory.mktemp(name))


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_promise(case, check):
    check(case)


def test_all_are_registered_and_an_unknown_name_is_refused_with_the_known_ones(outsider):
    assert {*CONFIGS, OUTSIDER} <= set(policy_names())
    with pytest.raises(ConfigError, match=r"no policy named 'compact_flwo'; known: .*compact_flow"):
        make_policy("compact_flwo")


@pytest.mark.parametrize(("name", "size"), [("openvla", 140), ("pi05", 140), ("openvla", 56), ("pi05", 56)])
def test_pictures_are_kept_no_larger_than_the_camera_gives_them(name, size):
    """The public models want 224 pixels; a smaller camera's pictures are enlarged in the model, not in every buffer."""
    policy = make_policy(name, CONFIGS[name](image_size=size))
    camera = min(next(iter(CONTRACT.cameras.values())).shape[:2])
    assert policy.spec.image_size == min(size, camera)
    inputs = policy.preprocess(policy_checks.observations(policy, size=camera))
    assert inputs["images"].shape[-2] == policy.spec.image_size
    assert torch.isfinite(policy.value(inputs)).all()


# -- the checks notice what they are there for


def broken(name, **members):
    """A maker of the example policy with some of its members replaced."""
    base = policy_class(OUTSIDER)
    return lambda seed: _seeded(type(name, (base,), members), seed)


def _seeded(cls, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(cls.config_class(), CONTRACT, statistics())


def _super(member):
    return getattr(policy_class(OUTSIDER), member)


def shifted_evaluate(self, inputs, trace):
    scored = _super("evaluate")(self, inputs, trace)
    scored.logprob = scored.logprob + 0.01
    return scored


def double_sample(self, inputs, *, generator):
    sampled = _super("sample")(self, inputs, generator=generator)
    sampled.logprob = sampled.logprob.double()
    return sampled


def constant_logprob(self, x, mean):
    return torch.zeros_like(x) + 0 * mean


def unclipped_sample(self, inputs, *, generator):
    sampled = _super("sample")(self, inputs, generator=generator)
    sampled.actions = sampled.actions + 0.01
    return sampled


def forgetful_groups(self):
    groups = _super("param_groups")(self)
    groups["policy"] = groups["policy"][1:]
    return groups


def idle_groups(self):
    return _super("param_groups")(self) | {"policy": _super("param_groups")(self)["policy"] + [self.idle]}


def with_idle_parameter(self, *arguments):
    _super("__init__")(self, *arguments)
    self.idle = torch.nn.Parameter(torch.zeros(1))


def mean_of_batch_loss(self, inputs, actions, draws):
    errors, metrics = _super("sft_errors")(self, inputs, actions, draws)
    return errors * len(errors), metrics


def loss_of_all_steps(self, inputs, actions, valid=None, **keywords):
    return _super("sft_loss")(self, inputs, actions, None, **keywords)


def globally_random_act(self, inputs, **keywords):
    return _super("act")(self, inputs, **keywords) + 0.001 * torch.rand(())


def batch_dependent_features(self, inputs):
    features = _super("_features")(self, inputs)
    return features - features.mean(0)


def deaf_features(self, inputs):
    return _super("_features")(self, {**inputs, "words": torch.zeros_like(inputs["words"])})


def float_preprocess(self, obs, **keywords):
    inputs = _super("preprocess")(self, obs, **keywords)
    return {**inputs, "images": inputs["images"].float()}


def lenient_preprocess(self, obs, **keywords):
    obs.proprio = obs.proprio.nan_to_num()
    return _super("preprocess")(self, obs, **keywords)


def left_behind_value(self, features):
    return _super("_value")(self, features) + torch.zeros(len(features), device="cpu")


def leaking_value(self, inputs):
    return self.critic(self._features(inputs)).squeeze(-1)


def mean_summary(self, inputs):
    features = self._features(inputs)
    return features - features.mean(0)


def long_act(self, inputs, *, steps=None, **keywords):
    return _super("act")(self, inputs, **keywords)


def training_train(self, mode=True):
    return torch.nn.Module.train(self, mode)


@pytest.mark.parametrize(("check", "members"), [
    ("evaluation_repeats_the_sample", {"evaluate": shifted_evaluate}),
    ("log_probability_follows_the_weights", {"_logprob": constant_logprob}),
    ("log_probabilities_are_float32_and_finite", {"sample": double_sample}),
    ("actions_stay_within_the_contract", {"sample": unclipped_sample}),
    ("rl_gradients_reach_every_group", {"_value": lambda self, features: features.detach().sum(-1)}),
    ("the_critic_learns_alone", {"value": leaking_value}),
    ("a_summary_trains_the_policy_and_leaves_the_critic", {"summary": mean_summary}),
    ("a_summary_trains_the_policy_and_leaves_the_critic", {"summary": lambda self, inputs: self._features(inputs).detach()}),
    ("groups_hold_every_trainable_parameter_once", {"param_groups": forgetful_groups}),
    ("supervised_gradient_reaches_the_whole_policy_and_nothing_else",
     {"__init__": with_idle_parameter, "param_groups": idle_groups}),
    ("supervised_loss_of_a_split_batch_adds_up", {"sft_errors": mean_of_batch_loss}),
    ("masked_steps_are_left_out", {"sft_loss": loss_of_all_steps}),
    ("randomness_comes_from_the_generator_alone", {"act": globally_random_act}),
    ("train_mode_is_never_entered", {"train": training_train}),
    ("a_sample_does_not_depend_on_its_batch", {"_features": batch_dependent_features}),
    ("instruction_and_picture_matter", {"_features": deaf_features}),
    ("inputs_are_compact_and_batch_first", {"preprocess": float_preprocess}),
    ("augmentation_happens_in_training_only_and_repeats", {"augment": lambda self, inputs, generator: inputs}),
    ("bad_observations_are_refused", {"preprocess": lenient_preprocess}),
    ("act_returns_the_steps_asked_for", {"act": long_act}),
    ("every_tensor_moves_with_the_policy", {"_value": left_behind_value}),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_broken_promise_is_noticed(outsider, tmp_path, check, members):
    with pytest.raises(policy_checks.PolicyProblem):
        CHECKS[check](Case(broken("Broken", **members), tmp_path))


def test_all_checks_at_once_name_the_failing_ones(outsider, tmp_path, monkeypatch):
    """What the documentation tells a third party to run."""
    assert check_policy(lambda seed: make_policy(OUTSIDER, seed=seed), tmp_path) == {}
    monkeypatch.setattr(policy_class(OUTSIDER), "evaluate", shifted_evaluate_of(policy_class(OUTSIDER).evaluate))
    problems = check_policy(lambda seed: make_policy(OUTSIDER, seed=seed), tmp_path)
    assert list(problems) == ["evaluation_repeats_the_sample"] and "than sample()" in next(iter(problems.values()))


def shifted_evaluate_of(evaluate):
    def shifted(self, inputs, trace):
        scored = evaluate(self, inputs, trace)
        scored.logprob = scored.logprob + 0.01
        return scored

    return shifted
