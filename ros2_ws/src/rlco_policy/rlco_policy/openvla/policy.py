"""`openvla`: OpenVLA behind the common interface, with PPO on its action tokens (Liu et al. 2025, "RL4VLA")."""

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_policy.augmentation import augment_images
from rlco_policy.hub import ModelFolder, load_named, read_tokenizer
from rlco_policy.images import enlarge, policy_images, require_finite, stored_size
from rlco_policy.interface import Evaluated, ModelInputs, ObsBatch, PolicySpec, Sampled, draw, require_generator
from rlco_policy.lora import ADAPTER_NAMES, adapt
from rlco_policy.openvla.actions import ActionBins, action_statistics
from rlco_policy.openvla.config import OpenVlaConfig
from rlco_policy.openvla.model import OpenVlaModel, Sequence
from rlco_policy.openvla.text import PromptTokenizer
from rlco_policy.pretrained import PretrainedPolicy, without_weights
from rlco_policy.quantiles import QuantileNormalizer
from rlco_policy.statistics import Statistics

BOS = 1
TRAINED_CROP = 0.9      # area that OpenVLA's augmentation leaves of a picture


class OpenVla(PretrainedPolicy):
    """ModelInputs: images uint8 [B, H, W, 3], tokens int32 [B, max_prompt_tokens]. Proprioception is not read."""

    config_class = OpenVlaConfig

    def __init__(self, config: OpenVlaConfig, contract: Contract, statistics: Statistics, *, assets: Path | None = None):
        if config.pretrained and assets is None:
            base = ModelFolder.open(config.pretrained, config.revision)
            config = dataclasses.replace(config, language=base.json("config.json")["text_config"])
        else:
            base = None
        super().__init__(config, contract, statistics)
        self.base = base
        self._read_small_files(base.path if base else assets or Path(config.tokenizer))
        self.camera = config.camera or next(iter(contract.cameras))
        if self.camera not in contract.cameras:
            raise ConfigError(f"camera '{self.camera}' is not in contract '{contract.name}'; it has "
                              f"{', '.join(contract.cameras)}")
        self.spec = PolicySpec(contract.action.dim, config.chunk, config.chunk, len(statistics.names), (self.camera,),
                               stored_size(contract, (self.camera,), config.image_size), "tokens")
        self.bins = ActionBins(config.bins)
        self.model = _build(config, blank=base is not None or assets is not None)
        if config.trains == "lora":
            adapt(self.model, config.lora, lambda name: not self.model.unused(name + "."))
        self.value_head = critic(self.model.llama.config.hidden_size, config.value_hidden)
        self._train_only(self._trainable)
        if base is not None:
            self._take_from_base()
        self.eval()

    @classmethod
    def blank(cls, config: OpenVlaConfig, contract: Contract, statistics: Statistics, assets: Path) -> "OpenVla":
        return cls(config, contract, statistics, assets=assets)

    # -- inputs

    def preprocess(self, obs: ObsBatch, *, train: bool = False, generator: torch.Generator | None = None) -> ModelInputs:
        require_finite(obs.proprio)
        ids = self.tokenizer.encode(obs.instruction)
        inputs = {"images": policy_images(obs, (self.camera,), self.spec.image_size, self.device)[0],
                  "tokens": torch.from_numpy(ids).to(self.device)}
        return self.augment(inputs, require_generator(generator, "preprocess(train=True)")) if train else inputs

    def augment(self, inputs: ModelInputs, generator: torch.Generator) -> ModelInputs:
        return {**inputs, "images": augment_images(inputs["images"], self.config.augmentation, generator)}

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, 6, H, W]: normalised for the first tower, then for the second."""
        x = enlarge(images.permute(0, 3, 1, 2).float(), self.config.image_size, "bicubic")
        if self.config.center_crop:
            side = x.shape[-1]
            kept = round(side * TRAINED_CROP**0.5)
            start = (side - kept) // 2
            x = enlarge(x[..., start: start + kept, start: start + kept], side, "bicubic")
        x = x / 255
        views = [(x - x.new_tensor(tower.mean)[:, None, None]) / x.new_tensor(tower.std)[:, None, None]
                 for tower in self.config.vision]
        return torch.cat(views, 1).to(self.model.projector.fc1.weight.dtype)

    def begin(self, inputs: ModelInputs) -> Sequence:
        tokens = inputs["tokens"]
        return self.model.embed(self.pixels(inputs["images"]), tokens, tokens != self._pad)

    # -- supervised

    def sft_draws(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def sft_errors(self, inputs: ModelInputs, actions: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the action tokens, over the action rows or over the whole vocabulary (config.loss)."""
        rows = self.rows_of(actions)
        hidden = self._teacher_forced(inputs, rows)
        if self.config.loss == "actions":
            logits, labels = self.model.action_logits(hidden), rows
        else:
            logits, labels = self.model.all_logits(hidden), rows + self.model.action_rows.start
        error = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        accuracy = (logits.detach().argmax(-1) == labels).float().mean()
        return self._by_step(error), {"cross_entropy": float(error.detach().mean()), "token_accuracy": float(accuracy)}

    def rows_of(self, actions: Tensor) -> Tensor:
        """Physical actions [B, chunk, A] -> row indices int64 [B, chunk * A]."""
        return self.bins.rows_of(self.normalizer.normalise(actions)).flatten(1)

    def actions_of(self, rows: Tensor) -> Tensor:
        return self.normalizer.denormalise(self._by_step(self.bins.normalised_of(rows)))

    # -- acting and RL

    @torch.no_grad()
    def act(self, inputs: ModelInputs, *, temperature: float = 0.0, generator: torch.Generator | None = None,
            prev_chunk: Tensor | None = None, delay: int = 0, steps: int | None = None) -> Tensor:
        """Greedy tokens at temperature 0, sampled ones above. A `prev_chunk` has no effect."""
        if temperature > 0:
            require_generator(generator, "act(temperature > 0)")
        return self.actions_of(self._generate(inputs, temperature, generator)[0])[:, :steps]

    @torch.no_grad()
    def sample(self, inputs: ModelInputs, *, generator: torch.Generator) -> Sampled:
        rows, logprob, first = self._generate(inputs, self.config.temperature, generator)
        return Sampled(self.actions_of(rows), self._by_step(logprob), self._value(first), {"tokens": rows.to(torch.int16)})

    def evaluate(self, inputs: ModelInputs, trace: dict[str, Tensor]) -> Evaluated:
        """Teacher-forced scores of the stored action rows [B, chunk * A]."""
        rows = trace["tokens"].long()
        hidden = self._teacher_forced(inputs, rows)
        log_probabilities = (self.model.action_logits(hidden) / self.config.temperature).log_softmax(-1)
        logprob = log_probabilities.gather(-1, rows.unsqueeze(-1)).squeeze(-1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean(-1)
        return Evaluated(self._by_step(logprob), entropy, self._value(hidden[:, 0]))

    def value(self, inputs: ModelInputs) -> Tensor:
        with torch.no_grad():
            summary = self.summary(inputs)
        return self._value(summary)

    def summary(self, inputs: ModelInputs) -> Tensor:
        """The hidden state that predicts the first action token."""
        return self.model.hidden(self.begin(inputs))[:, 0]

    def _teacher_forced(self, inputs: ModelInputs, rows: Tensor) -> Tensor:
        """Hidden states [B, T, D] that predict the T action tokens, the earlier ones given."""
        return self.model.hidden(self.begin(inputs), rows[:, :-1] + self.model.action_rows.start)

    def _generate(self, inputs: ModelInputs, temperature: float, generator: torch.Generator | None):
        """Row indices [B, T], log-probabilities [B, T], and the hidden state [B, D] that predicts the first token."""
        sequence, cache = self.begin(inputs), DynamicCache()
        first = hidden = self.model.hidden(sequence, cache=cache)[:, 0]
        rows, logprobs = [], []
        while True:
            log_probabilities = (self.model.action_logits(hidden) / (temperature or 1.0)).log_softmax(-1)
            row = draw(log_probabilities, generator) if temperature > 0 else log_probabilities.argmax(-1)
            rows.append(row)
            logprobs.append(log_probabilities.gather(-1, row.unsqueeze(-1)).squeeze(-1))
            if len(rows) == self.spec.chunk * self.spec.action_dim:
                return torch.stack(rows, 1), torch.stack(logprobs, 1), first
            hidden = self.model.step(row + self.model.action_rows.start, sequence, cache)

    def _value(self, first: Tensor) -> Tensor:
        """The critic reads the hidden state that predicts the first action token (RL4VLA's "a0")."""
        features = first.detach() if self.config.value_detach else first
        return self.value_head(features.float()).squeeze(-1)

    def _by_step(self, per_token: Tensor) -> Tensor:
        return per_token.unflatten(1, (self.spec.chunk, self.spec.action_dim))

    # -- weights

    def _trainable(self, name: str) -> bool:
        if name.startswith("value_head."):
            return True
        if self.config.trains == "lora":
            return name.rpartition(".")[2] in ADAPTER_NAMES
        return not self.model.unused(name.removeprefix("model."))

    def _base_weights(self, base: ModelFolder, names: set[str] | None) -> set[str]:
        dtype = getattr(torch, self.config.dtype)
        wanted = None if names is None else {name.removeprefix("model.") for name in names}
        dtypes = dict.fromkeys(base.shards, dtype)
        done = load_named(self.model, base.tensors(wanted), dtypes)
        if names is None:
            lacking = {name for name, tensor in self.model.state_dict().items() if tensor.is_meta}
            if lacking:
                raise ConfigError(f"{base.path} lacks {len(lacking)} weights of the model, such as {min(lacking)}; give the "
                                  "model's sizes in the policy's config (vision, language)")
        return {f"model.{name}" for name in done}

    def _read_small_files(self, folder: Path) -> None:
        self.small_files = ModelFolder(folder).small_files()
        pad = self.config.language.get("pad_token_id")
        if pad is None:
            raise ConfigError("the language model's config names no pad_token_id")
        self._pad = int(pad)
        self.tokenizer = PromptTokenizer(read_tokenizer(folder), length=self.config.max_prompt_tokens, bos=BOS, pad=self._pad,
                                         empty=self.config.empty_token)
        if self.config.unnorm_key:
            norm_stats = ModelFolder(folder).json("config.json").get("norm_stats", {})
            statistics = action_statistics(norm_stats, self.config.unnorm_key, f"{folder / 'config.json'}")
            self.normalizer = QuantileNormalizer(self.contract.action, statistics, str(folder / "config.json"))


def _build(config: OpenVlaConfig, *, blank: bool) -> OpenVlaModel:
    """The network in its dtype; blank ones have no memory until weights are put in."""
    dtype = getattr(torch, config.dtype)
    if not blank:
        return OpenVlaModel(config).to(dtype)
    with without_weights():
        model = OpenVlaModel(config)
    return model.to(dtype)


def critic(width: int, hidden: tuple[int, int]) -> nn.Sequential:
    """RL4VLA's value head, whose first output is near zero."""
    head = nn.Sequential(nn.Linear(width, hidden[0]), nn.GELU(), nn.Linear(hidden[0], hidden[1]), nn.GELU(),
                         nn.Linear(hidden[1], 1, bias=False))
    for layer in (head[0], head[2]):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    nn.init.normal_(head[-1].weight, std=0.02)
    return head
