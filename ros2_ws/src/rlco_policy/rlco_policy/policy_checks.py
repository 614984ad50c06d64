"""What trainers, evaluator and node rely on, as checks that run over any policy; the tests run them over ours.

For a policy of your own:  check_policy(lambda seed: create_policy("mine", contract, statistics, config, seed=seed), folder)
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlco_common.errors import DataError
from rlco_common.observation import encode_image
from rlco_policy.checkpoint import load_policy, save_policy
from rlco_policy.interface import ModelInputs, ObsBatch, VLAPolicy

BATCH = 6
LOGPROB_TOLERANCE = 1e-4
LARGEST_FLOATS = 256        # per sample and tensor: pictures belong into a rollout buffer as uint8


class PolicyProblem(AssertionError):
    """A policy breaks a promise of the interface."""


@dataclass
class Case:
    """The policy under test. make: a new one from a seed. folder: an empty one for checkpoints."""

    make: Callable[[int], VLAPolicy]
    folder: Path

    @cached_property
    def policy(self) -> VLAPolicy:
        """Read-only, with every trainable weight moved off its start: adapters and heads start at zero."""
        return moved(self.make(0))

    @cached_property
    def inputs(self) -> ModelInputs:
        return self.policy.preprocess(observations(self.policy))

    def copy(self) -> VLAPolicy:
        """One whose weights and gradients a check may change."""
        return copy.deepcopy(self.policy)


def check_policy(make: Callable[[int], VLAPolicy], folder: Path) -> dict[str, str]:
    """Run every check; name -> complaint of those that fail."""
    case, problems = Case(make, folder), {}
    for name, check in CHECKS.items():
        try:
            check(case)
        except AssertionError as problem:
            problems[name] = str(problem)
    return problems


# -- reinforcement learning


def evaluation_repeats_the_sample(case: Case) -> None:
    """Same weights, same log-probabilities and values: the ratio of PPO's first step is 1. Also in any row order."""
    policy, inputs = case.policy, case.inputs
    sampled = policy.sample(inputs, generator=generator())
    _shape(sampled.logprob, (BATCH, policy.spec.chunk, policy.spec.action_dim), "sample().logprob")
    _shape(sampled.value, (BATCH,), "sample().value")
    _shape(sampled.actions, (BATCH, policy.spec.chunk, policy.spec.action_dim), "sample().actions")
    for order in (torch.arange(BATCH), torch.tensor([4, 1, 3])):
        scored = policy.evaluate(rows(inputs, order), rows(sampled.trace, order))
        _shape(scored.entropy, (len(order),), "evaluate().entropy")
        _near(scored.logprob, sampled.logprob[order], LOGPROB_TOLERANCE, "evaluate() scores a sample differently than sample()")
        _near(scored.value, sampled.value[order], LOGPROB_TOLERANCE, "evaluate() gives another value than sample()")
        ratio = (scored.logprob - sampled.logprob[order]).sum((1, 2)).exp()
        _near(ratio, torch.ones_like(ratio), 1e-2, "the ratio before the first step is not 1")
    _near(policy.value(inputs).detach(), sampled.value, LOGPROB_TOLERANCE, "value() differs from sample().value")


def log_probability_follows_the_weights(case: Case) -> None:
    trace = case.policy.sample(case.inputs, generator=generator()).trace
    before = case.policy.evaluate(case.inputs, trace).logprob
    after = moved(case.copy(), seed=9).evaluate(case.inputs, trace).logprob
    _require((after - before).abs().max() > 1e-3, "other weights give the same log-probability")


def log_probabilities_are_float32_and_finite(case: Case) -> None:
    sampled = case.policy.sample(case.inputs, generator=generator())
    for name, tensor in (("logprob", sampled.logprob), ("value", sampled.value)):
        _require(tensor.dtype == torch.float32, f"{name} is {tensor.dtype}; PPO's ratio needs float32")
        _require(torch.isfinite(tensor).all(), f"{name} is not finite")


def actions_stay_within_the_contract(case: Case) -> None:
    action = case.policy.contract.action
    for seed in range(5):
        values = case.policy.sample(case.inputs, generator=generator(seed)).actions.double().numpy()
        inside = (values >= action.low - 1e-7) & (values <= action.high + 1e-7)
        _require(inside.all(), "a sampled action is out of the contract's limits")


def rl_gradients_reach_every_group(case: Case) -> None:
    own = case.copy()
    own.set_stage("rl")
    scored = own.evaluate(case.inputs, own.sample(case.inputs, generator=generator()).trace)
    (scored.logprob.sum() + scored.entropy.sum() + scored.value.sum()).backward()
    for group, parameters in own.param_groups().items():
        _require(_reached(parameters), f"no gradient reaches the group '{group}'")
        finite = all(torch.isfinite(p.grad).all() for p in parameters if p.grad is not None)
        _require(finite, f"a gradient of '{group}' is not finite")


def the_critic_learns_alone(case: Case) -> None:
    own = case.copy()
    own.set_stage("rl")
    own.value(case.inputs).sum().backward()
    groups = own.param_groups()
    _require(_reached(groups["value"]), "no gradient of value() reaches the critic")
    others = [p for name, group in groups.items() if name != "value" for p in group]
    _require(not _reached(others), "value() has a gradient beyond the group 'value'")


def a_summary_trains_the_policy_and_leaves_the_critic(case: Case) -> None:
    """Of policies that have one."""
    own = case.copy()
    own.set_stage("sft")
    try:
        summary = own.summary(case.inputs)
    except NotImplementedError:
        return
    _require(summary.ndim == 2 and len(summary) == BATCH, f"summary() has shape {list(summary.shape)}, not [{BATCH}, D]")
    _near(own.summary(rows(case.inputs, slice(0, 1))), summary[:1], 1e-4, "summary() depends on the rest of the batch")
    _require(summary.requires_grad, "summary() has no gradient")
    summary.float().square().sum().backward()
    groups = own.param_groups()
    _require(_reached(groups["policy"]), "no gradient of summary() reaches the policy")
    _require(not _reached(groups["value"]), "summary() has a gradient to the critic")


def groups_hold_every_trainable_parameter_once(case: Case) -> None:
    own = case.copy()
    for stage in ("rl", "sft"):
        own.set_stage(stage)
        groups = own.param_groups()
        _require({"policy", "value"} <= groups.keys() <= {"policy", "value", "noise"}, f"groups are named {sorted(groups)}")
        members = [id(parameter) for group in groups.values() for parameter in group]
        trainable = [id(parameter) for parameter in own.parameters() if parameter.requires_grad]
        _require(len(members) == len(set(members)), "a parameter is in two groups")
        _require(set(members) == set(trainable), f"stage {stage}: param_groups() and requires_grad disagree")


# -- supervised


def supervised_gradient_reaches_the_whole_policy_and_nothing_else(case: Case) -> None:
    own = case.copy()
    own.set_stage("sft")
    own.sft_loss(case.inputs, targets(own), generator=generator()).loss.backward()
    trained = {id(parameter) for parameter in own.param_groups()["policy"]}
    for name, parameter in own.named_parameters():
        if id(parameter) in trained:
            _require(_reached([parameter]), f"the supervised loss does not train {name}")
        else:
            _require(not _reached([parameter]), f"the supervised loss trains {name}, which is not in the group 'policy'")


def supervised_loss_of_a_split_batch_adds_up(case: Case) -> None:
    own = case.copy()
    own.set_stage("sft")
    target, draws = targets(own), own.sft_draws(BATCH, generator())
    whole = own.sft_loss(case.inputs, target, draws=draws)
    _shape(whole.per_sample, (BATCH,), "sft_loss().per_sample")
    _require(not whole.per_sample.requires_grad, "per_sample carries a gradient")
    weights = torch.arange(BATCH) / BATCH
    weighted = own.sft_loss(case.inputs, target, draws=draws, weights=weights).loss.detach()
    _near(weighted, (whole.per_sample * weights.to(whole.per_sample)).sum(), 1e-4, "weights do not weigh the samples")
    whole.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in own.named_parameters() if parameter.grad is not None}
    own.zero_grad(set_to_none=True)
    for part in (slice(0, 1), slice(1, 4), slice(4, BATCH)):
        share = len(range(BATCH)[part]) / BATCH
        (own.sft_loss(rows(case.inputs, part), target[part], draws=rows(draws, part)).loss * share).backward()
    for name, parameter in own.named_parameters():
        if name in gradients:
            scale = float(gradients[name].abs().max())
            _near(parameter.grad, gradients[name], 1e-5 + 1e-3 * scale, f"micro-batches add up to another gradient of {name}")


def masked_steps_are_left_out(case: Case) -> None:
    policy = case.policy
    if policy.spec.horizon == 1:
        return
    valid = torch.ones(BATCH, policy.spec.horizon, dtype=torch.bool)
    valid[:, policy.spec.horizon // 2:] = False
    draws = policy.sft_draws(BATCH, generator())
    errors, _ = policy.sft_errors(case.inputs, targets(policy), draws)
    _shape(errors, (BATCH, policy.spec.horizon, policy.spec.action_dim), "sft_errors()")
    masked = policy.sft_loss(case.inputs, targets(policy), valid, draws=draws)
    _near(masked.per_sample, errors[:, : policy.spec.horizon // 2].mean((1, 2)), 1e-5, "the loss counts invalid steps")


# -- determinism and invariance


def randomness_comes_from_the_generator_alone(case: Case) -> None:
    policy, inputs = case.policy, case.inputs
    before = torch.get_rng_state()
    _equal(policy.act(inputs), policy.act(inputs), "act() at temperature 0 is not deterministic")
    hot = [policy.act(inputs, temperature=1.0, generator=generator(seed)) for seed in (3, 3, 4)]
    _equal(hot[0], hot[1], "act() with equal generators differs")
    _require(not torch.equal(hot[0], hot[2]), "act() ignores its generator")
    drawn = [policy.sample(inputs, generator=generator(5)) for _ in range(2)]
    _equal(drawn[0].actions, drawn[1].actions, "sample() with equal generators differs")
    _equal(drawn[0].logprob, drawn[1].logprob, "sample() with equal generators differs")
    losses = [policy.sft_loss(inputs, targets(policy), generator=generator(6)).loss for _ in range(2)]
    _equal(*losses, "sft_loss() with equal generators differs")
    case.make(1)
    _equal(before, torch.get_rng_state(), "the global random state was used")
    try:
        policy.act(inputs, temperature=1.0)
    except ValueError:
        return
    raise PolicyProblem("act(temperature=1) without a generator is not refused with a ValueError")


def weights_depend_on_the_seed_alone(case: Case) -> None:
    first, again, other = (case.make(seed).state_dict() for seed in (7, 7, 8))
    _require(all(torch.equal(first[key], again[key]) for key in first), "equal seeds give different weights")
    _require(any(not torch.equal(first[key], other[key]) for key in first), "the seed has no effect")


def train_mode_is_never_entered(case: Case) -> None:
    _require(not any(module.training for module in case.copy().train().modules()), "a module is in train mode")


def a_sample_does_not_depend_on_its_batch(case: Case) -> None:
    """Also with instructions of different lengths: padding must be masked."""
    policy, inputs = case.policy, case.inputs
    singles = [slice(i, i + 1) for i in range(BATCH)]
    alone = torch.cat([policy.act(rows(inputs, one)) for one in singles])
    _near(policy.act(inputs), alone, 1e-5, "act() depends on the rest of the batch")
    trace = policy.sample(inputs, generator=generator()).trace
    parts = torch.cat([policy.evaluate(rows(inputs, one), rows(trace, one)).logprob for one in singles])
    _near(policy.evaluate(inputs, trace).logprob, parts, LOGPROB_TOLERANCE, "evaluate() depends on the rest of the batch")
    obs = observations(policy)
    first = ObsBatch({name: image[:1] for name, image in obs.images.items()}, obs.proprio[:1], obs.instruction[:1])
    for name, tensor in policy.preprocess(first).items():
        _equal(tensor, inputs[name][:1], f"preprocess() gives another '{name}' alone than in a batch")


def instruction_and_picture_matter(case: Case) -> None:
    policy, obs = case.policy, observations(case.policy)

    def sampled(inputs):    # anew, with the same draws: a trace may hold what the policy made of its observation
        found = policy.sample(inputs, generator=generator())
        return torch.cat([found.actions.flatten(), found.logprob.flatten()])

    before = sampled(case.inputs)
    changes = {"instruction": {"instruction": obs.instruction[1:] + obs.instruction[:1]},
               "picture": {"images": {name: image // 4 for name, image in obs.images.items()}}}
    for what, change in changes.items():
        after = sampled(policy.preprocess(dataclasses.replace(obs, **change)))
        _require((after - before).abs().max() > 0, f"the {what} has no effect")


# -- inputs


def inputs_are_compact_and_batch_first(case: Case) -> None:
    for name, tensor in case.inputs.items():
        _require(len(tensor) == BATCH, f"input '{name}' is not batch first")
        if tensor.is_floating_point():
            _require(tensor[0].numel() <= LARGEST_FLOATS, f"input '{name}' holds {tensor[0].numel()} floats a sample; keep "
                     "pictures uint8 and convert them in the model")
    _require(len(case.policy.act(case.policy.example_inputs(2))) == 2, "example_inputs() does not fit act()")


def images_of_another_size_go_through_the_common_codec(case: Case) -> None:
    policy = case.policy
    size = policy.spec.image_size
    obs = observations(policy, size=2 * size)
    encoded = {name: torch.from_numpy(np.stack([encode_image(image.numpy(), size) for image in images]))
               for name, images in obs.images.items()}
    ours, expected = policy.preprocess(obs), policy.preprocess(dataclasses.replace(obs, images=encoded))
    for name, tensor in expected.items():
        _equal(ours[name], tensor, f"input '{name}' of a larger picture is not what the common codec gives")


def augmentation_happens_in_training_only_and_repeats(case: Case) -> None:
    policy, obs = case.policy, observations(case.policy)
    for name, tensor in policy.preprocess(obs).items():
        _equal(tensor, case.inputs[name], f"preprocess() is not deterministic in '{name}'")
    first, again, other = (policy.preprocess(obs, train=True, generator=generator(seed)) for seed in (1, 1, 2))
    _require(any(not torch.equal(first[name], other[name]) for name in first), "training has no augmentation")
    for name, tensor in first.items():
        _equal(tensor, again[name], f"augmentation of '{name}' does not repeat with its generator")
        _require((tensor.dtype, tensor.shape) == (case.inputs[name].dtype, case.inputs[name].shape),
                 f"augmentation changes the type of '{name}'")
    late = policy.augment(case.inputs, generator(1))
    for name, tensor in first.items():
        _equal(tensor, late[name], f"augment(preprocess(obs)) gives another '{name}' than preprocess(obs, train=True)")


def bad_observations_are_refused(case: Case) -> None:
    policy, obs = case.policy, observations(case.policy)
    bad = {"non-finite proprioception": dataclasses.replace(obs, proprio=torch.full_like(obs.proprio, float("nan"))),
           "a missing camera": dataclasses.replace(obs, images={"elsewhere": next(iter(obs.images.values()))}),
           "an empty instruction": dataclasses.replace(obs, instruction=[""] * BATCH)}
    for what, batch in bad.items():
        try:
            policy.preprocess(batch)
        except DataError:
            continue
        raise PolicyProblem(f"{what} is not refused with a DataError")


def action_normalisation_round_trips(case: Case) -> None:
    physical = targets(case.policy)
    back = case.policy.normalizer.denormalise(case.policy.normalizer.normalise(physical))
    _near(back, physical, 1e-6, "actions do not survive normalisation")


# -- acting


def act_returns_the_steps_asked_for(case: Case) -> None:
    policy, spec = case.policy, case.policy.spec
    whole = policy.act(case.inputs, steps=spec.horizon)
    _shape(whole, (BATCH, spec.horizon, spec.action_dim), "act(steps=horizon)")
    _equal(policy.act(case.inputs), whole[:, : spec.chunk], "act() is not the first `chunk` steps of the horizon")
    _equal(policy.act(case.inputs, steps=1), whole[:, :1], "act(steps=1) is not the first step of the horizon")


def a_chunk_under_way_is_continued(case: Case) -> None:
    """Policies with real-time chunking come close to the settled steps of the chunk under way."""
    policy = case.policy
    if not policy.real_time_chunking:
        return
    steps = policy.spec.horizon
    old = policy.act(case.inputs, temperature=1.0, generator=generator(4), steps=steps)[:, steps // 2:]
    free, bound = policy.act(case.inputs, steps=steps), policy.act(case.inputs, prev_chunk=old, delay=2, steps=steps)
    distance = [(policy.normalizer.normalise(new) - policy.normalizer.normalise(old[:, :2])).abs().mean()
                for new in (free[:, :2], bound[:, :2])]
    _require(distance[1] < 0.5 * distance[0], "act(prev_chunk, delay) does not continue the chunk under way")


# -- checkpoints, devices, precision


def a_saved_policy_comes_back_bit_for_bit(case: Case) -> None:
    policy = case.policy
    saved = save_policy(policy, case.folder / "saved", {"steps": 3})
    loaded = load_policy(saved, policy.contract)
    _require(type(loaded) is type(policy) and loaded.config == policy.config and loaded.spec == policy.spec,
             "class, config or spec changed on the way")
    _require(loaded.statistics.hash == policy.statistics.hash, "the statistics changed on the way")
    state = loaded.state_dict()
    _require(state.keys() == policy.state_dict().keys(), "the state has other names after loading")
    for name, tensor in policy.state_dict().items():
        _equal(state[name], tensor, f"{name} changed on the way")
    inputs = loaded.preprocess(observations(policy))
    _equal(loaded.act(inputs), policy.act(case.inputs), "the loaded policy acts differently")


def every_tensor_moves_with_the_policy(case: Case) -> None:
    """On the meta device a tensor that was left behind, or is made on the CPU, cannot be combined with the others."""
    own, meta = case.copy().to("meta"), torch.device("meta")
    trace = {name: tensor.to(meta) for name, tensor in case.policy.sample(case.inputs, generator=generator()).trace.items()}
    inputs = {name: tensor.to(meta) for name, tensor in case.inputs.items()}
    _require(own.device == meta, "policy.device does not follow policy.to()")
    try:
        scored = own.evaluate(inputs, trace)
        own.normalizer.denormalise(own.normalizer.normalise(targets(case.policy).to(meta)))
    except (RuntimeError, NotImplementedError) as error:
        raise PolicyProblem(f"a tensor does not move with the policy: {error}") from error
    _require(scored.logprob.device == scored.value.device == meta, "a result is on another device than the policy")


def mixed_precision_keeps_float32_log_probabilities(case: Case) -> None:
    policy = case.policy
    trace = policy.sample(case.inputs, generator=generator()).trace
    exact = policy.evaluate(case.inputs, trace).logprob
    with torch.autocast("cpu", torch.bfloat16):
        rough = policy.evaluate(case.inputs, trace).logprob
    _require(rough.dtype == torch.float32, f"under autocast the log-probability is {rough.dtype}")
    _require((rough - exact).abs().mean() < 0.1, "under autocast the log-probability is far off")


CHECKS: dict[str, Callable[[Case], None]] = {check.__name__: check for check in (
    evaluation_repeats_the_sample, log_probability_follows_the_weights, log_probabilities_are_float32_and_finite,
    actions_stay_within_the_contract, rl_gradients_reach_every_group, the_critic_learns_alone,
    a_summary_trains_the_policy_and_leaves_the_critic, groups_hold_every_trainable_parameter_once,
    supervised_gradient_reaches_the_whole_policy_and_nothing_else, supervised_loss_of_a_split_batch_adds_up,
    masked_steps_are_left_out, randomness_comes_from_the_generator_alone, weights_depend_on_the_seed_alone,
    train_mode_is_never_entered, a_sample_does_not_depend_on_its_batch, instruction_and_picture_matter,
    inputs_are_compact_and_batch_first, images_of_another_size_go_through_the_common_codec,
    augmentation_happens_in_training_only_and_repeats, bad_observations_are_refused, action_normalisation_round_trips,
    act_returns_the_steps_asked_for, a_chunk_under_way_is_continued, a_saved_policy_comes_back_bit_for_bit,
    every_tensor_moves_with_the_policy, mixed_precision_keeps_float32_log_probabilities,
)}


# -- material


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(policy: VLAPolicy, *, size: int | None = None, seed: int = 0) -> ObsBatch:
    """Random pictures and proprioception around the statistics' mean, instructions of different lengths."""
    rng = np.random.default_rng(seed)
    size = size or policy.spec.image_size
    texts = sorted({task.instruction(i, **{slot: values[i % len(values)] for slot, values in task.slots.items()})
                    for task in policy.contract.tasks.values() for i in range(3)})
    statistics = policy.statistics
    return ObsBatch(
        images={name: torch.from_numpy(rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8))
                for name in policy.contract.cameras},
        proprio=torch.from_numpy((statistics.mean + statistics.std * rng.normal(size=(BATCH, len(statistics.names))))
                                 .astype(np.float32)),
        instruction=[texts[i % len(texts)] for i in range(BATCH)],
    )


def targets(policy: VLAPolicy, seed: int = 0) -> Tensor:
    """Random actions [BATCH, horizon, A] within the contract's limits."""
    action = policy.contract.action
    unit = np.random.default_rng(seed).random((BATCH, policy.spec.horizon, policy.spec.action_dim))
    return torch.from_numpy((action.low + unit * (action.high - action.low)).astype(np.float32))


@torch.no_grad()
def moved(policy: VLAPolicy, seed: int = 3) -> VLAPolicy:
    """The policy with its trainable weights moved a little."""
    draws = generator(seed)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draws).to(parameter))
    return policy


def rows(tensors: dict[str, Tensor], index) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in tensors.items()}


def _require(holds, message: str) -> None:
    if not holds:
        raise PolicyProblem(message)


def _reached(parameters: Iterable[Tensor]) -> bool:
    """Whether a gradient has come to any of them."""
    return any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters)


def _shape(tensor: Tensor, shape: tuple[int, ...], what: str) -> None:
    _require(tuple(tensor.shape) == shape, f"{what} has shape {list(tensor.shape)} instead of {list(shape)}")


def _near(a: Tensor, b: Tensor, tolerance: float, message: str) -> None:
    difference = float((a.detach().float() - b.detach().float()).abs().max())
    _require(difference <= tolerance, f"{message} (by up to {difference:.2g})")


def _equal(a: Tensor, b: Tensor, message: str) -> None:
    _require(torch.equal(a, b), message)
