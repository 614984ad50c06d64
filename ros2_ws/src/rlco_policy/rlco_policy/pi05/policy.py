"""`pi05`: LeRobot's pi-0.5 behind the common interface, with PPO on its denoising chain (ReinFlow, Zhang et al. 2025).

Time runs from 1 (noise) to 0 (action), as in LeRobot. A chain x_0 ~ N(0, I), x_{k+1} = x_k - v(x_k, 1 - k / K) / K +
sigma_k * eps has a likelihood, which PPO needs; without the noise it is the ODE that is deployed.
"""

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError, DataError
from rlco_policy.augmentation import augment_images
from rlco_policy.guidance import ChunkGuidance
from rlco_policy.hub import ModelFolder, load_named, read_tokenizer
from rlco_policy.images import enlarge, policy_images, require_finite, stored_size
from rlco_policy.interface import (
    Evaluated,
    ModelInputs,
    ObsBatch,
    PolicySpec,
    Sampled,
    normal,
    require_generator,
    uniform,
)
from rlco_policy.lora import ADAPTER_NAMES, adapt
from rlco_policy.pi05.config import Pi05Config
from rlco_policy.pi05.model import (
    BACKBONE,
    EMBEDDING,
    Prefix,
    base_name,
    build_pi05,
    lerobot_config,
    randomise_modulation,
    run_expert,
    run_prefix,
    unused,
)
from rlco_policy.pi05.normalisation import Scale, StoredNormalisation, StoredNormalizer
from rlco_policy.pi05.text import PAD, StatePrompt
from rlco_policy.pretrained import PretrainedPolicy, without_weights
from rlco_policy.reinflow import HALF_LOG_2PI, exploration_std, join_entries, start_entries, transition_entries
from rlco_policy.statistics import Statistics

NORMAL_Q99 = 2.326      # 99 % quantile of the standard normal
TIME_ALPHA, TIME_OFFSET = 1.5, 0.001        # pi-0.5 trains at times 0.001 + 0.999 Beta(1.5, 1)
NOISE_HIDDEN = (128, 64)
EXPERT_PARTS = (f"{BACKBONE}gemma_expert.", "action_in_proj.", "action_out_proj.", "time_mlp_in.", "time_mlp_out.")


class Pi05(PretrainedPolicy):
    """ModelInputs: images uint8 [B, cameras, H, W, 3], tokens int32 [B, max_prompt_tokens] with the state in them."""

    config_class = Pi05Config
    real_time_chunking = True

    def __init__(self, config: Pi05Config, contract: Contract, statistics: Statistics, *, assets: Path | None = None):
        super().__init__(config, contract, statistics)
        self.base = ModelFolder.open(config.pretrained, config.revision) if config.pretrained and assets is None else None
        self.cameras = config.cameras or tuple(contract.cameras)
        unknown = [name for name in self.cameras if name not in contract.cameras]
        if unknown:
            raise ConfigError(f"cameras: {', '.join(unknown)} not in contract '{contract.name}'; it has "
                              f"{', '.join(contract.cameras)}")
        self.spec = PolicySpec(contract.action.dim, config.horizon, config.chunk, len(statistics.names), self.cameras,
                               stored_size(contract, self.cameras, config.image_size), "flow")
        self._read_assets(assets or Path(config.tokenizer or self.base.path), assets or (self.base and self.base.path))
        blank = self.base is not None or assets is not None
        lerobot = lerobot_config(config, self.cameras, self.spec.proprio_dim, self.spec.action_dim)
        with without_weights() if blank else nullcontext():
            self.model = build_pi05(config, lerobot)
        if not blank:
            randomise_modulation(self.model)
        adapt(self.model.paligemma_with_expert, config.lora,
              lambda name: not unused(f"{BACKBONE}{name}.", config.language.depth))
        self.noise_head = _mlp((config.expert.width, *NOISE_HIDDEN, self.spec.action_dim), nn.Tanh)
        self.value_head = _mlp((config.language.width, *config.value_hidden, 1), nn.ReLU)
        nn.init.normal_(self.value_head[-1].weight, std=0.02)
        self._std_max = config.noise_std[1]
        self.set_stage("sft")
        if self.base is not None:
            self._take_from_base()
        self.eval()

    @classmethod
    def blank(cls, config: Pi05Config, contract: Contract, statistics: Statistics, assets: Path) -> "Pi05":
        return cls(config, contract, statistics, assets=assets)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.gradient_checkpointing:      # a flag that LeRobot asks; see pi05/model.py
            self.model.training = self.model.paligemma_with_expert.training = True
        return self

    def set_stage(self, stage: Literal["sft", "rl"]) -> None:
        part = self.config.trains if stage == "sft" else self.config.rl_trains
        self._train_only(lambda name: self._trainable(name, part))

    def set_progress(self, fraction: float) -> None:
        start, end = self.config.noise_std[1], self.config.noise_std_end
        self._std_max = start if end is None else start + (end - start) * min(max(fraction, 0.0), 1.0)

    # -- inputs

    def preprocess(self, obs: ObsBatch, *, train: bool = False, generator: torch.Generator | None = None) -> ModelInputs:
        state = self.state_scale.unit(require_finite(obs.proprio).to(self.device, torch.float32))
        images = policy_images(obs, self.cameras, self.spec.image_size, self.device)
        tokens = torch.from_numpy(self.prompt.encode(obs.instruction, state)).to(self.device)
        inputs = {"images": torch.stack(images, 1), "tokens": tokens}
        return self.augment(inputs, require_generator(generator, "preprocess(train=True)")) if train else inputs

    def augment(self, inputs: ModelInputs, generator: torch.Generator) -> ModelInputs:
        flat = augment_images(inputs["images"].flatten(0, 1), self.config.augmentation, generator)
        return {**inputs, "images": flat.view_as(inputs["images"])}

    def prefix(self, inputs: ModelInputs) -> Prefix:
        tokens = inputs["tokens"]
        return run_prefix(self.model, self._views(inputs), tokens, tokens != PAD)

    def _views(self, inputs: ModelInputs) -> list[Tensor]:
        """Per camera [B, 3, H, W] in [-1, 1]. Slots of the base without a camera are left out: they would be masked."""
        size = self.config.image_size
        return [enlarge(images.permute(0, 3, 1, 2).float(), size, "bilinear") / 127.5 - 1.0
                for images in inputs["images"].unbind(1)]

    # -- supervised

    def sft_draws(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """noise [B, horizon, action_width] and time [B], 0.001 + 0.999 Beta(1.5, 1) by the inverse of its distribution."""
        noise = normal((batch, self.config.horizon, self.config.action_width), generator, self.device)
        share = uniform((batch,), generator, self.device) ** (1 / TIME_ALPHA)
        return {"noise": noise, "time": TIME_OFFSET + (1 - TIME_OFFSET) * share}

    def sft_errors(self, inputs: ModelInputs, actions: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """LeRobot's flow-matching loss, per element of the real action dimensions (openpi's mean is over all 32)."""
        noise, time = draws["noise"], draws["time"]
        target = self._pad(self.normalizer.normalise(actions))
        if self.config.dtype == "float32":
            tokens, views = inputs["tokens"], self._views(inputs)
            seen = [torch.ones(len(tokens), dtype=torch.bool, device=tokens.device) for _ in views]
            errors = self.model.forward(views, seen, tokens, tokens != PAD, target, noise, time)
        else:       # LeRobot's joint pass takes one precision; prefix first, then expert, is the same computation
            mixed = torch.lerp(target, noise, time[:, None, None])
            velocity, _ = run_expert(self.model, self.prefix(inputs), mixed, time)
            errors = (velocity - (noise - target)).square()
        errors = errors[..., : self.spec.action_dim]
        return errors, {"flow_mse": float(errors.detach().mean())}

    # -- acting

    @torch.no_grad()
    def act(self, inputs: ModelInputs, *, temperature: float = 0.0, generator: torch.Generator | None = None,
            prev_chunk: Tensor | None = None, delay: int = 0, steps: int | None = None) -> Tensor:
        """Euler steps of the ODE from `temperature` times standard normal noise; from zero at temperature 0."""
        shape = (len(inputs["tokens"]), self.config.horizon, self.config.action_width)
        if temperature > 0:
            x = temperature * normal(shape, require_generator(generator, "act(temperature > 0)"), self.device)
        else:
            x = torch.zeros(shape, device=self.device)
        count, dim = self.config.denoise_steps, self.spec.action_dim
        guidance = None if prev_chunk is None else ChunkGuidance(
            self.normalizer.normalise(prev_chunk.to(self.device)), delay, self.spec.horizon, count)
        prefix = self.prefix(inputs)
        for k in range(count):
            velocity, _ = run_expert(self.model, prefix, x, self._grid_time(k, len(x)))
            if guidance is not None:        # it counts time the other way round
                velocity[..., :dim] = -guidance.correct(-velocity[..., :dim], x[..., :dim], k / count)
            x = x - velocity / count
        return self.normalizer.denormalise(x[:, : steps or self.spec.chunk, :dim])

    # -- RL

    @torch.no_grad()
    def sample(self, inputs: ModelInputs, *, generator: torch.Generator) -> Sampled:
        prefix = self.prefix(inputs)
        dim = self.spec.action_dim
        x = normal((len(inputs["tokens"]), self.config.horizon, self.config.action_width), generator, self.device)
        x, padding = x[..., :dim], x[..., dim:]
        chain, entries = [x], [start_entries(x)]
        for k in range(self.config.denoise_steps):
            mean, std = self._transition(x, padding, self._grid_time(k, len(x)), prefix)
            x = mean + std * normal(x.shape, generator, self.device)
            chain.append(x)
            entries.append(transition_entries(x, mean, std))
        return Sampled(
            actions=self.normalizer.denormalise(x[:, : self.spec.chunk]),
            logprob=self._join(torch.stack(entries, 1)),
            value=self._value(prefix),
            trace={"chain": torch.stack(chain, 1), "padding": padding} | (prefix.packed() if self.config.keep_prefix else {}),
        )

    def evaluate(self, inputs: ModelInputs, trace: dict[str, Tensor]) -> Evaluated:
        """All K transitions of the stored chain [B, K + 1, horizon, A] in one pass of the expert, after the prefix that the
        trace holds, or one pass of the vision-language model."""
        chain, steps = trace["chain"], self.config.denoise_steps
        batch = len(chain)
        prefix = Prefix.unpacked(trace) if "prefix_keys" in trace else self.prefix(inputs)
        time = 1.0 - torch.arange(steps, device=self.device).repeat(batch) / steps
        mean, std = self._transition(chain[:, :-1].flatten(0, 1), trace["padding"].repeat_interleave(steps, 0), time,
                                     prefix.repeat(steps))
        mean, std = mean.unflatten(0, (batch, steps)), std.unflatten(0, (batch, steps))
        entries = torch.cat([start_entries(chain[:, :1]), transition_entries(chain[:, 1:], mean, std)], 1)
        entropy = (std[:, :, : self.spec.chunk].log() + HALF_LOG_2PI + 0.5).mean((1, 2, 3))
        return Evaluated(self._join(entries), entropy, self._value(prefix))

    def trace_bytes(self) -> int:
        if not self.config.keep_prefix:
            return 0
        tokens = self.config.max_prompt_tokens + len(self.cameras) * (self.config.image_size // self.config.vision.patch) ** 2
        per_token = 2 * self.config.language.depth * self.config.language.head_dim
        return tokens * per_token * torch.finfo(getattr(torch, self.config.dtype)).bits // 8

    def value(self, inputs: ModelInputs) -> Tensor:
        with torch.no_grad():
            prefix = self.prefix(inputs)
        return self._value(prefix)

    def summary(self, inputs: ModelInputs) -> Tensor:
        """Mean over the prefix; without gradient where only the action expert trains."""
        return self.prefix(inputs).features

    def _transition(self, x: Tensor, padding: Tensor, time: Tensor, prefix: Prefix) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_{k+1} given x_k, each [B, horizon, A].

        The padded dimensions were trained towards zero, so at time t they are t times their first noise: they follow that
        line, without exploration, and the likelihood of the real dimensions is exact.
        """
        x_full = torch.cat([x, time[:, None, None] * padding], -1)
        velocity, features = run_expert(self.model, prefix, x_full, time)
        mean = x - velocity[..., : self.spec.action_dim] / self.config.denoise_steps
        return mean, exploration_std(self.noise_head(features), self.config.noise_std[0], self._std_max)

    def _join(self, entries: Tensor) -> Tensor:
        return join_entries(entries, self.spec.chunk, self.config.logprob)

    def _value(self, prefix: Prefix) -> Tensor:
        features = prefix.features
        return self.value_head(features.detach() if self.config.value_detach else features).squeeze(-1)

    def _grid_time(self, k: int, batch: int) -> Tensor:
        return torch.full((batch,), 1.0 - k / self.config.denoise_steps, device=self.device)

    def _pad(self, actions: Tensor) -> Tensor:
        return nn.functional.pad(actions, (0, self.config.action_width - actions.shape[-1]))

    # -- weights and files

    def _trainable(self, name: str, part: Literal["all", "expert"]) -> bool:
        if not name.startswith("model."):
            return True         # the heads
        name = name.removeprefix("model.")
        if unused(name, self.config.language.depth) or (part == "expert" and not name.startswith(EXPERT_PARTS)):
            return False
        return not self.config.lora.rank or not name.startswith(BACKBONE) or name.rpartition(".")[2] in ADAPTER_NAMES

    def _base_weights(self, base: ModelFolder, names: set[str] | None) -> set[str]:
        here = {stored: base_name(stored) for stored in base.shards}
        tied = [stored for stored, name in here.items() if name == EMBEDDING]
        if len(tied) > 1:       # the embedding itself rather than the head tied to it
            here |= {stored: None for stored in tied if stored.endswith("lm_head.weight")}
        own = self.model.state_dict()
        wanted = {stored: name for stored, name in here.items()
                  if name is not None and (names is None or f"model.{name}" in names)}
        dtypes = {name: own[name].dtype for name in wanted.values() if name in own} | dict.fromkeys(
            set(wanted.values()) - own.keys(), torch.float32)
        done = load_named(self.model, ((wanted[stored], tensor) for stored, tensor in base.tensors(wanted)), dtypes)
        if names is None:
            lacking = {name for name, tensor in self.model.state_dict().items() if tensor.is_meta}
            if lacking:
                raise DataError(f"{base.path} lacks {len(lacking)} weights of pi-0.5, such as {min(lacking)}; is it a "
                                "checkpoint of another model?")
        return {f"model.{name}" for name in done}

    def _read_assets(self, tokenizer: Path, statistics: Path | None) -> None:
        """Tokenizer and normalisation, from a saved policy's assets, the base model or the folder in the config."""
        self.prompt = StatePrompt(read_tokenizer(tokenizer), self.config.max_prompt_tokens, self.config.state_in_prompt)
        self.small_files = {"tokenizer.json": (tokenizer / "tokenizer.json").read_bytes()}
        self.stored: StoredNormalisation | None = None
        if self.config.statistics == "checkpoint":
            self.stored = StoredNormalisation.read(statistics)
            self.small_files |= self.stored.files
            self.state_scale = self.stored.scale(OBS_STATE, self.spec.proprio_dim)
            self.normalizer = StoredNormalizer(self.contract.action, self.stored.scale(ACTION, self.spec.action_dim))
            return
        self.state_scale = Scale("QUANTILES", *self.state_quantiles())

    def state_quantiles(self) -> tuple[Tensor, Tensor]:
        """1 % and 99 % of the dataset's proprioception, were it normal."""
        mean, std = torch.from_numpy(self.statistics.mean), torch.from_numpy(self.statistics.std)
        return mean - NORMAL_Q99 * std, mean + NORMAL_Q99 * std


def _mlp(widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])
