"""Memory and time of a training run, before it begins: `rlco train stage1|stage2 CONFIG --plan`.

Memory is added up from what the configuration says; nothing large is allocated for it. Time is measured: a few steps, or one
small iteration in the twin, of the run itself, made in a temporary folder on this machine and scaled up.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from rlco_common.contract import Contract, load_contract
from rlco_common.errors import TrainingError
from rlco_common.strict import from_mapping
from rlco_policy.checkpoint import blank_policy
from rlco_policy.footprint import GIB, footprint
from rlco_policy.hub import ModelFolder
from rlco_policy.interface import VLAPolicy
from rlco_policy.registry import policy_class
from rlco_sim_bridge.pool_worker import PROCESS_BYTES, SCENE_BYTES
from rlco_trainer.config import StageOneConfig, StageTwoConfig, roots
from rlco_trainer.dataset.reader import load_proprioception
from rlco_trainer.denormals import flushed_denormals
from rlco_trainer.memory import available_bytes, resident_bytes
from rlco_trainer.rollout import open_pool
from rlco_trainer.stage1 import StageOne, proprioception_statistics
from rlco_trainer.stage2 import StageTwo

TRIAL_STEPS = 3
HOST = "host memory"


@dataclass(frozen=True)
class Part:
    """Something that takes memory. place: HOST or a torch device. advice: what makes it smaller."""

    name: str
    bytes: float
    place: str = HOST
    advice: str = ""


@dataclass(frozen=True)
class Plan:
    """parts: what takes memory. available: bytes by place. seconds: None where no trial was made."""

    parts: tuple[Part, ...]
    available: dict[str, int]
    notes: tuple[str, ...] = ()
    seconds: float | None = None

    def needed(self, place: str) -> float:
        return sum(part.bytes for part in self.parts if part.place == place)

    def require_fit(self) -> None:
        """Raises TrainingError, with the largest part and how to make it smaller, when a place is too small."""
        for place, available in self.available.items():
            if self.needed(place) > available:
                largest = max((part for part in self.parts if part.place == place), key=lambda part: part.bytes)
                raise TrainingError(
                    f"the run does not fit: about {self.needed(place) / GIB:.1f} GiB of {place} are needed, "
                    f"{available / GIB:.1f} GiB are available; the largest part is '{largest.name}' with "
                    f"{largest.bytes / GIB:.1f} GiB. {largest.advice}")

    def text(self) -> str:
        """For the terminal."""
        lines = []
        for place, available in self.available.items():
            lines += [f"  {_size(part.bytes)}  {part.name}" for part in self.parts if part.place == place]
            lines.append(f"  {_size(self.needed(place))}  of {place} in all; {_size(available).strip()} are available")
        if self.seconds is not None:
            lines.append(f"  about {self.seconds / 60:.1f} min on this machine as busy as it is now")
        return "\n".join([*lines, *self.notes])


def plan_stage1(config: StageOneConfig, *, trial: bool = True) -> Plan:
    """Plan of a Stage I run. Raises TrainingError when it does not fit."""
    contract = load_contract(config.contract)
    cls = policy_class(config.policy)
    settings = from_mapping(cls.config_class, config.policy_config, f"policy '{config.policy}'")
    policy = cls.blank(settings, contract, proprioception_statistics(config, contract), _assets(settings))
    batch = -(-config.batch_size // config.micro_batches)
    plan = _plan(policy, "sft", config, [
        *_training_parts(policy, "sft", config, batch),
        *_dataset_parts(policy, {"real": config.real, "sim": config.sim}),
    ])
    plan.require_fit()
    if not trial:
        return plan
    with _trial(config) as out:
        run = StageOne(dataclasses.replace(config, out=out), contract)
        run.train_step()
        seconds = _seconds(lambda: [run.train_step() for _ in range(TRIAL_STEPS)]) / TRIAL_STEPS * config.steps
        if run.held_out is not None:
            seconds += _seconds(run.monitor) * config.steps / config.monitor_every
    return dataclasses.replace(plan, seconds=seconds)


def plan_stage2(config: StageTwoConfig, *, trial: bool = True) -> Plan:
    """Plan of a Stage II run. Raises TrainingError when it does not fit."""
    contract = load_contract(config.contract)
    policy = blank_policy(config.start, config.policy_config)
    chunks = config.max_chunks or -(-contract.task(config.task).max_steps // policy.spec.chunk)
    parts = _training_parts(policy, "rl", config, -(-_largest_batch(config, chunks) // config.micro_batches))
    parts += _dataset_parts(policy, {"real": config.real, "replay.demos": config.replay.demos})
    weights, decision = footprint(policy, "rl"), _bytes_of(policy.example_inputs())
    # sampled chunks exist twice while they are put together; the chunk or chain of a trace is small beside the images
    parts.append(Part("rollout", 2 * config.episodes * chunks * (decision + policy.trace_bytes()),
                      advice="Fewer episodes per iteration."))
    if config.replay.updates:
        parts.append(Part("success replay", 2 * config.replay.capacity * decision, advice="Lower replay.capacity."))
        parts.append(Part("AdamW's moments of the replay", weights.optimizer, _place(config),
                          "Train fewer weights, or set replay.updates=0."))
    if config.places.weight:
        parts.append(Part("places", 2 * config.places.capacity * decision, advice="Lower places.capacity."))
    if config.overlap:
        parts.append(Part("copy that acts beside the update", weights.gradients, _place(config), "Set overlap=false."))
    if config.backend == "cpu":
        processes = max(1, config.workers)
        parts.append(Part(f"simulators, {config.scenes} scenes in {processes} processes",
                          processes * PROCESS_BYTES + config.scenes * SCENE_BYTES, advice="Fewer workers or scenes."))
    plan = _plan(policy, "rl", config, parts)
    if config.backend == "gpu":
        plan = dataclasses.replace(plan, notes=(*plan.notes, "  the scenes on the GPU are not included"))
    plan.require_fit()
    if not trial:
        return plan
    seconds, replayed = _try_iteration(config, contract)
    notes = () if replayed else ("  the time leaves out the success replay: nothing succeeded in the trial",)
    return dataclasses.replace(plan, seconds=seconds, notes=plan.notes + notes)


def _largest_batch(config: StageTwoConfig, chunks: int) -> int:
    """Samples whose activations are kept at once; the real batch goes along with PPO's and with the replay's."""
    real = config.sft_batch_size if config.beta else 0
    ppo = min(config.ppo.minibatch_size, config.episodes * chunks)
    replay = max(config.replay.batch_size + real, config.places.batch_size if config.places.weight else 0)
    return max(ppo + real, replay if config.replay.updates else 0)


def _try_iteration(config: StageTwoConfig, contract: Contract) -> tuple[float, bool]:
    """(seconds of the whole run, whether success replay is in them), from one iteration with an episode in each scene."""
    episodes = min(config.episodes, config.scenes)
    factor = config.episodes / episodes
    with _trial(config) as out:
        small = dataclasses.replace(config, out=out, episodes=episodes, measure_episodes=episodes, critic_warmup=0,
                                    replay=dataclasses.replace(config.replay, min_size=1))
        run = StageTwo(small, contract)
        with open_pool(contract, run.policy, config.task, config.domain, scenes=config.scenes, workers=config.workers,
                       backend=config.backend) as pool:
            rollout, _ = run.collect(pool)                  # the first pictures of a process cost more
            by_episode = _seconds(lambda: run.collect(pool)) + _seconds(lambda: run.ppo_phase(rollout))
            fixed = _seconds(run.replay_phase) + _seconds(run.monitor)
            measured = _seconds(lambda: run.measure(pool)) * config.measure_episodes / episodes
    episodes_s = factor * by_episode
    iteration = episodes_s + fixed
    if config.overlap:
        processor = config.workers * episodes_s + config.threads * fixed
        iteration = max(episodes_s, fixed, processor / os.cpu_count())
    whole = config.iterations * (iteration + measured / config.measure_every) + measured
    if config.time_limit_s:
        whole = min(whole, config.time_limit_s + measured)
    return whole, not config.replay.updates or len(run.replay) > 0


def _size(count: float) -> str:
    return f"{count / GIB:6.1f} GiB" if count >= GIB else f"{count / 2**20:6.1f} MiB"


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


@contextmanager
def _trial(config) -> Iterator[Path]:
    torch.set_num_threads(config.threads)
    with flushed_denormals(), tempfile.TemporaryDirectory(prefix="rlco_plan_") as out:
        yield Path(out)


def _plan(policy: VLAPolicy, stage: str, config, parts: list[Part]) -> Plan:
    """Adds what this process takes already, and what there is."""
    held = resident_bytes()
    parts.append(Part("interpreter and libraries", held))
    available = {HOST: available_bytes() + held}
    if _place(config) != HOST:
        available[_place(config)] = torch.cuda.mem_get_info(config.device)[0]
    it = footprint(policy, stage)
    notes = [f"  {it.parameters / 1e6:,.1f} M parameters, {it.trainable / 1e6:,.1f} M of them trained"]
    if _empty(policy):
        notes.append("  activations are not included: they are measured with the weights in place, see docs/policies.md")
    return Plan(tuple(parts), available, tuple(notes))


def _training_parts(policy: VLAPolicy, stage: str, config, batch: int) -> list[Part]:
    it, place = footprint(policy, stage), _place(config)
    smaller = "Train fewer weights (LoRA, trains: expert), use bfloat16, or a device with more memory."
    parts = [Part("weights", it.weights, place, smaller),
             Part("gradients and AdamW's moments", it.gradients + it.optimizer, place, smaller)]
    if config.ema:
        parts.append(Part("averaged weights", it.gradients, place, smaller))
    if not _empty(policy):
        parts.append(Part(f"activations of {batch} samples", batch * activation_bytes(policy, stage), place,
                          "Raise micro_batches."))
    return parts


def activation_bytes(policy: VLAPolicy, stage: str) -> float:
    """Bytes that one more sample of a batch keeps for the backward pass, counted on two small batches."""
    def kept(batch: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)         # so that no address is used again while we count
            return tensor

        held: list = []
        inputs, generator = policy.example_inputs(batch), torch.Generator().manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if stage == "rl":
                policy.evaluate(inputs, policy.sample(inputs, generator=generator).trace)
            else:
                policy.sft_loss(inputs, torch.zeros(batch, policy.spec.horizon, policy.spec.action_dim), generator=generator)
        return sum(sizes.values())

    return (kept(4) - kept(2)) / 2


def _dataset_parts(policy: VLAPolicy, named: dict[str, str | tuple[str, ...]]) -> list[Part]:
    """Datasets are held in memory, their images at the policy's size."""
    picture = 3 * policy.spec.image_size**2 * len(policy.contract.cameras)
    frames = {name: sum(len(load_proprioception(root)) for root in roots(found)) for name, found in named.items() if found}
    return [Part(f"dataset {name}", count * picture, advice="Use fewer episodes.") for name, count in frames.items()]


def _assets(settings) -> Path:
    """The folder with the small files (tokenizer) of a policy with a base model; unused by the others."""
    if getattr(settings, "pretrained", ""):
        return ModelFolder.open(settings.pretrained, getattr(settings, "revision", "")).path
    return Path(getattr(settings, "tokenizer", ""))


def _empty(policy: VLAPolicy) -> bool:
    return any(parameter.is_meta for parameter in policy.parameters())


def _bytes_of(inputs: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in inputs.values())


def _place(config) -> str:
    return HOST if torch.device(config.device).type == "cpu" else config.device

