"""Typed configuration of the compact policies; load with rlco_common.strict.from_mapping."""

from dataclasses import dataclass, field
from typing import Literal

from rlco_policy.augmentation import AugmentationConfig


@dataclass(frozen=True)
class EncoderConfig:
    """What turns images, instruction and proprioception into prefix tokens.

    cameras: names in the contract; empty = all of it. channels: of the feature maps at strides 4 and 8. keypoints:
    language-conditioned spatial-softmax points per camera. vocabulary: hash buckets of words, checked for collisions
    among the contract's instructions.
    """

    cameras: tuple[str, ...] = ()
    image_size: int = 64
    channels: tuple[int, int] = (32, 64)
    keypoints: int = 32
    width: int = 128
    heads: int = 4
    layers: int = 0
    vocabulary: int = 4096
    word_width: int = 64
    max_words: int = 16
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self):
        if self.image_size % 16 or self.image_size < 32:
            raise ValueError(f"image_size {self.image_size} must be a multiple of 16, at least 32")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and divisible by heads {self.heads}")


@dataclass(frozen=True)
class ValueConfig:
    """The critic. detach: its gradient stops at the policy's features."""

    hidden: int = 256
    detach: bool = True


@dataclass(frozen=True)
class CompactFlowConfig:
    """Flow matching with ReinFlow exploration.

    draws: noise and time draws per image in the supervised loss. plan_weight: see CompactPolicy.plan_error. noise_std:
    bounds of the learned exploration noise. noise_correlation: of that noise between the steps of a chunk; independent
    noise (0) averages out within a chunk, correlated noise tries another place. noise_std_end: upper bound at the end of
    RL, reached linearly; None = constant. logprob: how the K + 1 entries of the denoising chain are joined; `sum` is the
    chain's likelihood, `mean` (RLinf's choice) a tempered, stabler ratio.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    horizon: int = 8
    chunk: int = 4
    layers: int = 2
    denoise_steps: int = 4
    draws: int = 2
    plan_weight: float = 10.0
    noise_std: tuple[float, float] = (0.08, 0.16)
    noise_std_end: float | None = None
    noise_correlation: float = 0.0
    logprob: Literal["mean", "sum"] = "mean"

    def __post_init__(self):
        low, high = self.noise_std
        if not 0 < low < high:
            raise ValueError(f"noise_std {self.noise_std} must be 0 < min < max")
        if not 0 <= self.noise_correlation < 1:
            raise ValueError(f"noise_correlation {self.noise_correlation} must lie in [0, 1)")
        if self.noise_std_end is not None and not low < self.noise_std_end <= high:
            raise ValueError(f"noise_std_end {self.noise_std_end} must lie in ({low}, {high}]")
        if min(self.denoise_steps, self.draws, self.layers) < 1:
            raise ValueError("denoise_steps, draws and layers must be at least 1")


@dataclass(frozen=True)
class CompactTokenConfig:
    """Autoregressive tokens, one of `bins` per action dimension.

    temperature: of sampling in RL; it is part of the log-probability. At 1 a sampled chunk is one that the policy thinks
    possible as a whole, so it tries another place; colder, all chunks stay near the plan. label_std_bins: standard deviation
    of the soft labels over neighbouring bins in the supervised loss, 0 = hard labels; what a policy that has learned them
    shakes by from token to token. token_dropout: largest share of the previous tokens that the supervised loss hides from
    the decoder. token_weight: of the tokens' cross-entropy, which would else outweigh what teaches the picture's summary
    where things are. plan_weight: see CompactPolicy.plan_error.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    chunk: int = 4
    layers: int = 2
    bins: int = 256
    temperature: float = 1.0
    label_std_bins: float = 2.0
    token_dropout: float = 1.0
    token_weight: float = 0.2
    plan_weight: float = 10.0

    def __post_init__(self):
        if self.bins < 2 or self.temperature <= 0 or self.label_std_bins < 0 or self.layers < 1:
            raise ValueError("bins >= 2, temperature > 0, label_std_bins >= 0 and layers >= 1 are needed")
        if self.token_weight <= 0:
            raise ValueError(f"token_weight {self.token_weight} must be above 0")
        if not 0 <= self.token_dropout <= 1:
            raise ValueError(f"token_dropout {self.token_dropout} must lie in [0, 1]")
