"""Typed configuration of `openvla`; the defaults are those of openvla/openvla-7b."""

from dataclasses import dataclass, field
from typing import Any, Literal

from rlco_policy.augmentation import AugmentationConfig
from rlco_policy.lora import LoraConfig

EMPTY_TOKEN = 29871
"""Llama's token of a single space: the last token of every prompt that OpenVLA was trained on."""


@dataclass(frozen=True)
class VitConfig:
    """A timm vision transformer. prefix_tokens: class and register tokens in front of the patches (0 = none).

    layer_scale and attention_pool say which parameters the checkpoint has; the pool is never computed.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    prefix_tokens: int = 0
    layer_scale: bool = False
    attention_pool: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        if self.width % self.heads or self.depth < 2:
            raise ValueError(f"width {self.width} must be divisible by heads {self.heads}, and depth {self.depth} at least 2")


DINO = VitConfig(1024, 24, 16, 4096, prefix_tokens=5, layer_scale=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIGLIP = VitConfig(1152, 27, 16, 4304, attention_pool=True)


@dataclass(frozen=True)
class OpenVlaConfig:
    """OpenVLA (Kim et al. 2024).

    pretrained: folder or hub name of a checkpoint in OpenVLA's layout; empty = random weights, and then `tokenizer` must
    name a folder with a tokenizer.json. language: LlamaConfig fields, taken from the checkpoint where there is one.
    unnorm_key: action statistics of the checkpoint to normalise by; empty = the contract's limits. trains: what both
    stages train besides the value head. loss: the rows over which the supervised cross-entropy is normalised; `actions`
    are the 256 that sampling is restricted to. center_crop: evaluate on the middle 90 % of the picture, as
    checkpoints need that were trained with OpenVLA's own augmentation. value_hidden: widths of the critic (RL4VLA's).
    temperature: of sampling in RL, part of the log-probability. dtype: of the model; adapters and critic are float32.
    """

    pretrained: str = ""
    revision: str = ""
    tokenizer: str = ""
    camera: str = ""
    image_size: int = 224
    patch: int = 14
    vision: tuple[VitConfig, ...] = (DINO, SIGLIP)
    language: dict[str, Any] = field(default_factory=lambda: {"vocab_size": 32064, "pad_token_id": 32000})
    vocabulary_padding: int = 64
    empty_token: int = EMPTY_TOKEN
    max_prompt_tokens: int = 30
    chunk: int = 1
    bins: int = 256
    unnorm_key: str = ""
    trains: Literal["lora", "all"] = "lora"
    lora: LoraConfig = field(default_factory=LoraConfig)
    loss: Literal["actions", "vocabulary"] = "actions"
    temperature: float = 1.0
    value_hidden: tuple[int, int] = (512, 128)
    value_detach: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    center_crop: bool = False
    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(shift_pixels=12))

    def __post_init__(self):
        if len(self.vision) != 2:
            raise ValueError("vision: OpenVLA has two encoders")
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch {self.patch}")
        if self.temperature <= 0 or min(self.chunk, self.max_prompt_tokens) < 1 or self.bins < 2:
            raise ValueError("temperature > 0, chunk >= 1, max_prompt_tokens >= 1 and bins >= 2 are needed")
        if self.trains == "lora" and self.lora.rank == 0:
            raise ValueError("trains: lora needs lora.rank > 0; use trains: all to train every weight")
        if self.trains == "all" and self.dtype == "bfloat16":
            raise ValueError("dtype: bfloat16 with trains: all would lose an optimizer's small steps; use trains: lora, or "
                             "float32 with autocast")
        if not (self.pretrained or self.tokenizer):
            raise ValueError("give pretrained (a folder or hub name in OpenVLA's layout), or for random weights tokenizer "
                             "(a folder with a tokenizer.json)")
