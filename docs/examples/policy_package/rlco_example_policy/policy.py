"""`example_gaussian`: an independent Gaussian per action element; its mean comes from a small network."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from rlco_policy.augmentation import AugmentationConfig, augment_images
from rlco_policy.compact.text import WordTokenizer
from rlco_policy.images import policy_images, require_finite
from rlco_policy.interface import Evaluated, PolicySpec, Sampled, VLAPolicy, normal, require_generator


@dataclass(frozen=True)
class GaussianConfig:
    """Every field can be set from a training configuration (policy_config) and is stored in checkpoints."""

    image_size: int = 32
    chunk: int = 4
    hidden: int = 128
    vocabulary: int = 4096
    std: tuple[float, float] = (0.05, 0.3)


class GaussianPolicy(VLAPolicy):
    config_class = GaussianConfig

    def __init__(self, config, contract, statistics):
        super().__init__(config, contract, statistics)
        self.cameras = tuple(contract.cameras)
        self.spec = PolicySpec(contract.action.dim, config.chunk, config.chunk, len(statistics.names), self.cameras,
                               config.image_size, "other")
        self.tokenizer = WordTokenizer(config.vocabulary, 16)
        # Buffers follow the policy to its device; plain tensors would stay behind.
        self.register_buffer("proprio_mean", torch.from_numpy(statistics.mean.copy()), persistent=False)
        self.register_buffer("proprio_std", torch.from_numpy(statistics.std.copy()), persistent=False)
        self.words = nn.Embedding(config.vocabulary, 32, padding_idx=0)
        self.vision = nn.Sequential(nn.Conv2d(3, 16, 8, 4), nn.SiLU(), nn.Conv2d(16, 32, 3, 2), nn.SiLU(), nn.Flatten())
        width = len(self.cameras) * 32 * ((config.image_size // 4 - 1 - 3) // 2 + 1) ** 2 + 32 + len(statistics.names)
        self.trunk = nn.Sequential(nn.Linear(width, config.hidden), nn.SiLU())
        self.mean = nn.Linear(config.hidden, config.chunk * contract.action.dim)
        self.level = nn.Parameter(torch.zeros(config.chunk, contract.action.dim))
        self.critic = nn.Linear(config.hidden, 1)
        self.eval()

    # What the policy reads: compact, because rollouts keep it.

    def preprocess(self, obs, *, train=False, generator=None):
        images = policy_images(obs, self.cameras, self.config.image_size, self.device)
        proprio = (require_finite(obs.proprio).to(self.device) - self.proprio_mean) / self.proprio_std
        words = torch.from_numpy(self.tokenizer.encode(obs.instruction)).to(self.device)
        inputs = {"images": torch.stack(images, 1), "words": words, "proprio": proprio}
        return self.augment(inputs, require_generator(generator, "preprocess(train=True)")) if train else inputs

    def augment(self, inputs, generator):
        flat = augment_images(inputs["images"].flatten(0, 1), AugmentationConfig(shift_pixels=2), generator)
        return {**inputs, "images": flat.view_as(inputs["images"])}

    # Supervised: mean squared error of normalised actions.

    def sft_draws(self, batch, generator):
        return {}

    def sft_errors(self, inputs, actions, draws):
        errors = (self._mean(self._features(inputs)) - self.normalizer.normalise(actions)).square()
        return errors, {"mse": float(errors.detach().mean())}

    # Acting and reinforcement learning.

    @torch.no_grad()
    def act(self, inputs, *, temperature=0.0, generator=None, prev_chunk=None, delay=0, steps=None):
        x = self._mean(self._features(inputs))
        if temperature > 0:
            x = x + temperature * self._std() * normal(x.shape, require_generator(generator, "act"), self.device)
        return self.normalizer.denormalise(x[:, :steps])

    @torch.no_grad()
    def sample(self, inputs, *, generator):
        features = self._features(inputs)
        mean = self._mean(features)
        x = mean + self._std() * normal(mean.shape, generator, self.device)
        return Sampled(self.normalizer.denormalise(x), self._logprob(x, mean), self._value(features), {"x": x})

    def evaluate(self, inputs, trace):
        features = self._features(inputs)
        entropy = (self._std().log() + 0.5 * math.log(2 * math.pi * math.e)).mean().expand(len(features))
        return Evaluated(self._logprob(trace["x"], self._mean(features)), entropy, self._value(features))

    def value(self, inputs):
        with torch.no_grad():
            features = self._features(inputs)
        return self._value(features)

    def summary(self, inputs):
        return self._features(inputs)

    def param_groups(self):
        groups = {"policy": [], "value": list(self.critic.parameters()), "noise": [self.level]}
        for part in (self.words, self.vision, self.trunk, self.mean):
            groups["policy"] += part.parameters()
        return groups

    def _features(self, inputs):
        pictures = inputs["images"].permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0
        views = [self.vision(picture) for picture in pictures.unbind(1)]
        text = self.words(inputs["words"]).sum(1)
        return self.trunk(torch.cat([*views, text, inputs["proprio"]], -1))

    def _mean(self, features):
        return self.mean(features).float().unflatten(-1, (self.spec.chunk, self.spec.action_dim))

    def _std(self):
        low, high = self.config.std
        return low + (high - low) * torch.sigmoid(self.level)

    def _logprob(self, x, mean):
        std = self._std()
        return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)

    def _value(self, features):
        return self.critic(features.detach()).float().squeeze(-1)
