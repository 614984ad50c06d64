"""Typed configuration of `pi05`; the defaults are those of lerobot/pi05_base and of the paper's runs."""

from dataclasses import dataclass, field
from typing import Literal

from rlco_policy.augmentation import AugmentationConfig
from rlco_policy.lora import LoraConfig

HEADS = 8
"""LeRobot's training pass has this number of attention heads written into it."""


@dataclass(frozen=True)
class GemmaSize:
    width: int
    depth: int
    mlp: int
    head_dim: int = 256


@dataclass(frozen=True)
class SiglipSize:
    width: int = 1152
    depth: int = 27
    mlp: int = 4304
    heads: int = 16
    patch: int = 14


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2")


@dataclass(frozen=True)
class Pi05Config:
    """pi-0.5 (Physical Intelligence 2025) with ReinFlow (Zhang et al. 2025).

    pretrained: folder or hub name of a LeRobot checkpoint (lerobot/pi05_base or a fine-tuned one); empty = random weights.
    tokenizer: folder with PaliGemma's tokenizer.json; empty = the checkpoint's own. cameras: names in the contract, in the
    order of the checkpoint's slots (base, left wrist, right wrist); empty = all of the contract. statistics: normalise
    actions and state by the contract and the dataset, or by what a fine-tuned checkpoint stores. state_in_prompt: False
    reproduces the paper's runs, whose policy sees no proprioception. trains, rl_trains: what Stage I and Stage II train;
    `expert` leaves the vision-language model as it is. keep_prefix: Stage II keeps what that model made of each decision, so
    that the update does not run it again; for rl_trains: expert, at 11 MiB a decision in bfloat16 with two pictures. lora: rank
    0 = full weights. noise_std, noise_std_end, logprob: as in CompactFlowConfig. value_detach: the critic's gradient stops at
    the vision-language features. dtype: of the vision-language model; expert and heads are float32 always.
    """

    pretrained: str = ""
    revision: str = ""
    tokenizer: str = ""
    cameras: tuple[str, ...] = ()
    image_size: int = 224
    vision: SiglipSize = field(default_factory=SiglipSize)
    language: GemmaSize = field(default_factory=lambda: GemmaSize(2048, 18, 16384))
    expert: GemmaSize = field(default_factory=lambda: GemmaSize(1024, 18, 4096))
    vocabulary: int = 257152
    action_width: int = 32
    horizon: int = 8
    chunk: int = 4
    denoise_steps: int = 4
    state_in_prompt: bool = True
    max_prompt_tokens: int = 96
    statistics: Literal["contract", "checkpoint"] = "contract"
    trains: Literal["all", "expert"] = "all"
    rl_trains: Literal["all", "expert"] = "expert"
    keep_prefix: bool = False
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=0, targets=LORA_TARGETS))
    noise_std: tuple[float, float] = (0.08, 0.16)
    noise_std_end: float | None = None
    logprob: Literal["mean", "sum"] = "mean"
    value_hidden: tuple[int, int, int] = (512, 256, 128)
    value_detach: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(shift_pixels=12))

    def __post_init__(self):
        low, high = self.noise_std
        if not 0 < low < high:
            raise ValueError(f"noise_std {self.noise_std} must be 0 < min < max")
        if self.noise_std_end is not None and not low < self.noise_std_end <= high:
            raise ValueError(f"noise_std_end {self.noise_std_end} must lie in ({low}, {high}]")
        if min(self.denoise_steps, self.horizon, self.chunk, self.max_prompt_tokens) < 1:
            raise ValueError("denoise_steps, horizon, chunk and max_prompt_tokens must be at least 1")
        if self.language.head_dim != self.expert.head_dim or self.language.depth != self.expert.depth:
            raise ValueError("language and expert share their attention: head_dim and depth must be equal")
        if not (self.pretrained or self.tokenizer):
            raise ValueError("give pretrained (a folder or hub name of a LeRobot checkpoint), or for random weights tokenizer "
                             "(a folder with PaliGemma's tokenizer.json)")
        trains_language = "all" in (self.trains, self.rl_trains) and not self.lora.rank
        if self.dtype == "bfloat16" and (trains_language or self.gradient_checkpointing):
            raise ValueError("dtype: bfloat16 is for a language model that stays as it is: an optimizer's small steps vanish "
                             "in it. Train the expert alone (trains: expert), adapters (lora), or use float32 with autocast; "
                             "gradient_checkpointing needs float32 as well")
        if self.keep_prefix and self.rl_trains != "expert":
            raise ValueError("keep_prefix needs rl_trains: expert: what a model makes of a picture changes while it trains")
        if self.statistics == "checkpoint" and not self.pretrained:
            raise ValueError("statistics: checkpoint needs pretrained")
