"""What both compact policies share: preprocessing and the encoder."""

import torch
from torch import Tensor, nn

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_policy.augmentation import augment_images
from rlco_policy.compact.encoder import Encoder, Prefix
from rlco_policy.compact.text import WordTokenizer
from rlco_policy.images import policy_images, require_finite
from rlco_policy.interface import ModelInputs, ObsBatch, VLAPolicy, require_generator
from rlco_policy.statistics import Statistics


class CompactPolicy(VLAPolicy):
    """ModelInputs: images uint8 [B, cameras, H, W, 3], words int32 [B, max_words], proprio float32 [B, S]."""

    def __init__(self, config, contract: Contract, statistics: Statistics):
        super().__init__(config, contract, statistics)
        encoder = config.encoder
        self.cameras = encoder.cameras or tuple(contract.cameras)
        unknown = [name for name in self.cameras if name not in contract.cameras]
        if unknown:
            raise ConfigError(f"encoder.cameras: {', '.join(unknown)} not in contract '{contract.name}'; "
                              f"it has {', '.join(contract.cameras)}")
        self.tokenizer = WordTokenizer(encoder.vocabulary, encoder.max_words)
        self.tokenizer.require_distinct(contract)
        self.register_buffer("proprio_mean", torch.from_numpy(statistics.mean.copy()), persistent=False)
        self.register_buffer("proprio_std", torch.from_numpy(statistics.std.copy()), persistent=False)
        self.encoder = Encoder(encoder, len(self.cameras), len(statistics.names))

    def preprocess(self, obs: ObsBatch, *, train: bool = False,
                   generator: torch.Generator | None = None) -> ModelInputs:
        images = torch.stack(policy_images(obs, self.cameras, self.config.encoder.image_size, self.device), dim=1)
        proprio = require_finite((obs.proprio.to(self.device, torch.float32) - self.proprio_mean) / self.proprio_std)
        words = torch.from_numpy(self.tokenizer.encode(obs.instruction)).to(self.device)
        inputs = {"images": images, "words": words, "proprio": proprio}
        return self.augment(inputs, require_generator(generator, "preprocess(train=True)")) if train else inputs

    def augment(self, inputs: ModelInputs, generator: torch.Generator) -> ModelInputs:
        flat = augment_images(inputs["images"].flatten(0, 1), self.config.encoder.augmentation, generator)
        return {**inputs, "images": flat.view_as(inputs["images"])}

    def encode(self, inputs: ModelInputs) -> Prefix:
        return self.encoder(inputs["images"], inputs["words"], inputs["proprio"])

    def summary(self, inputs: ModelInputs) -> Tensor:
        return self.encode(inputs).pooled

    def plan_error(self, planned: Tensor, target: Tensor) -> Tensor:
        """Squared error [B, T, A] of the normalised actions that a linear head reads from the plan.

        The head's own supervised loss learns which object the instruction names only after thousands of steps, because
        few samples depend on it and the loss is noisy; this term, `plan_weight` times added to it, needs hundreds.
        """
        return (planned.reshape(target.shape) - target).square()

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {"policy": []}
        for name, parameter in self.named_parameters():
            role = {"value_head": "value", "noise_head": "noise"}.get(name.split(".")[0], "policy")
            groups.setdefault(role, []).append(parameter)
        return groups
