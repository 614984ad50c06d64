"""LeRobot's PI05Pytorch in any size, with the features that reinforcement learning reads."""

from dataclasses import dataclass

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PaliGemmaWithExpertModel, PI05Pytorch
from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma, PiGemmaForCausalLM
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor, nn
from transformers import DynamicCache, GemmaConfig, PaliGemmaConfig, SiglipVisionConfig

from rlco_policy.pi05.config import HEADS, GemmaSize, Pi05Config

BACKBONE = "paligemma_with_expert."
EMBEDDING = BACKBONE + "paligemma.model.language_model.embed_tokens.weight"
LANGUAGE_HEAD = BACKBONE + "paligemma.lm_head.weight"
EXPERT_HEAD = BACKBONE + "gemma_expert.lm_head.weight"


def lerobot_config(config: Pi05Config, cameras: tuple[str, ...], state_dim: int, action_dim: int) -> PI05Config:
    """The policy as LeRobot describes it."""
    size = config.image_size
    visual = {f"{OBS_IMAGES}.{name}": PolicyFeature(FeatureType.VISUAL, (3, size, size)) for name in cameras}
    return PI05Config(
        dtype=config.dtype, chunk_size=config.horizon, n_action_steps=config.chunk, num_inference_steps=config.denoise_steps,
        max_action_dim=config.action_width, image_resolution=(size, size), tokenizer_max_length=config.max_prompt_tokens,
        input_features=visual | {OBS_STATE: PolicyFeature(FeatureType.STATE, (state_dim,))},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))}, device="cpu", push_to_hub=False,
    )


def build_pi05(config: Pi05Config, lerobot: PI05Config) -> PI05Pytorch:
    """LeRobot's model with the sizes of `config`; at the default sizes it has LeRobot's parameters, name for name.

    LeRobot's constructor knows two sizes and no small one, so its parts are put together here. Its two output heads over
    the vocabulary take no part in pi-0.5 and are left out.
    """
    model = PI05Pytorch.__new__(PI05Pytorch)
    nn.Module.__init__(model)
    model.config, model.rtc_processor, model.gradient_checkpointing_enabled = lerobot, None, False
    model.paligemma_with_expert = _backbone(config)
    width = config.expert.width
    model.action_in_proj, model.action_out_proj = nn.Linear(config.action_width, width), nn.Linear(width, config.action_width)
    model.time_mlp_in, model.time_mlp_out = nn.Linear(width, width), nn.Linear(width, width)
    if config.gradient_checkpointing:
        _enable_checkpointing(model)
    return model


def _backbone(config: Pi05Config) -> PaliGemmaWithExpertModel:
    backbone = PaliGemmaWithExpertModel.__new__(PaliGemmaWithExpertModel)
    nn.Module.__init__(backbone)
    backbone.freeze_vision_encoder = backbone.train_expert_only = False
    vision = SiglipVisionConfig(
        hidden_size=config.vision.width, intermediate_size=config.vision.mlp, num_hidden_layers=config.vision.depth,
        num_attention_heads=config.vision.heads, patch_size=config.vision.patch, image_size=config.image_size,
        projection_dim=config.language.width, projector_hidden_act="gelu_fast", vision_use_head=False)
    paligemma = PaliGemmaConfig(vision_config=vision, text_config=_gemma(config, config.language, adaptive=False),
                                image_token_index=config.vocabulary, projection_dim=config.language.width)
    backbone.paligemma = PaliGemmaForConditionalGenerationWithPiGemma(config=paligemma)
    backbone.gemma_expert = PiGemmaForCausalLM(config=_gemma(config, config.expert, adaptive=True))
    backbone.gemma_expert.model.embed_tokens = None
    backbone.paligemma.lm_head = backbone.gemma_expert.lm_head = None
    for part in (backbone.paligemma.model.language_model, backbone.gemma_expert.model):
        part.config._attn_implementation = "eager"      # what LeRobot samples with
    backbone.to_bfloat16_for_selected_params(config.dtype)
    backbone.gemma_expert.float()       # trained weights: an optimizer's small steps vanish in bfloat16
    return backbone


def _gemma(config: Pi05Config, size: GemmaSize, *, adaptive: bool) -> GemmaConfig:
    return GemmaConfig(
        hidden_size=size.width, num_hidden_layers=size.depth, intermediate_size=size.mlp, num_attention_heads=HEADS,
        num_key_value_heads=1, head_dim=size.head_dim, vocab_size=config.vocabulary, hidden_activation="gelu_pytorch_tanh",
        dtype="float32", use_adarms=adaptive, adarms_cond_dim=size.width if adaptive else None)


def _enable_checkpointing(model: PI05Pytorch) -> None:
    """LeRobot recomputes activations in train mode only; the modules whose flag it asks hold no dropout."""
    model.gradient_checkpointing_enable()
    model.training = model.paligemma_with_expert.training = True


def randomise_modulation(model: PI05Pytorch) -> None:
    """Let the time reach the expert: from scratch its modulation is zero, which is meant for pretrained weights only."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.dense.weight"):
            nn.init.normal_(parameter, std=0.02)


def unused(name: str, depth: int) -> bool:
    """Whether a parameter of the model has no effect on actions: the prefix's last layer beyond its keys and values."""
    text = BACKBONE + "paligemma.model.language_model."
    last = f"{text}layers.{depth - 1}."
    return name.startswith(f"{text}norm.") or (
        name.startswith(last) and not name.startswith((f"{last}input_layernorm", f"{last}self_attn.k_", f"{last}self_attn.v_")))


@dataclass
class Prefix:
    """Images and prompt after the vision-language model.

    features [B, D]: float32 mean of its output over what is not padding. visible [B, N]. keys_values: [B, 1, N, head_dim] each,
    per layer.
    """

    features: Tensor
    visible: Tensor
    keys_values: list[tuple[Tensor, Tensor]]

    def repeat(self, times: int) -> "Prefix":
        """Each sample `times` times in a row, for several denoising steps of one observation in a single pass."""
        return Prefix(*(tensor.repeat_interleave(times, 0) for tensor in (self.features, self.visible)),
                      [(keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0))
                       for keys, values in self.keys_values])

    def packed(self) -> dict[str, Tensor]:
        """As tensors with the batch first, for a trace. keys and values: [B, layers, 1, N, head_dim]."""
        keys, values = zip(*self.keys_values, strict=True)
        return {"prefix_features": self.features, "prefix_visible": self.visible, "prefix_keys": torch.stack(keys, 1),
                "prefix_values": torch.stack(values, 1)}

    @classmethod
    def unpacked(cls, trace: dict[str, Tensor]) -> "Prefix":
        """Of a trace that holds a packed one."""
        return cls(trace["prefix_features"], trace["prefix_visible"],
                   list(zip(trace["prefix_keys"].unbind(1), trace["prefix_values"].unbind(1), strict=True)))


def _visible_mean(output: Tensor, visible: Tensor) -> Tensor:
    weight = visible.unsqueeze(-1).float()
    return (output.float() * weight).sum(1) / weight.sum(1)


def run_prefix(model: PI05Pytorch, images: list[Tensor], tokens: Tensor, visible: Tensor) -> Prefix:
    """images: [B, 3, H, W] in [-1, 1] per camera; tokens and visible [B, T]."""
    seen = [visible.new_ones(len(tokens)) for _ in images]
    embeddings, pad, blocks = model.embed_prefix(images, seen, tokens, visible)
    (output, _), cache = model.paligemma_with_expert.forward(
        attention_mask=prepare_attention_masks_4d(make_att_2d_masks(pad, blocks)), position_ids=pad.long().cumsum(1) - 1,
        past_key_values=None, inputs_embeds=[embeddings, None], use_cache=True)
    return Prefix(_visible_mean(output, pad), pad, [(keys, values) for keys, values, _ in cache])


def run_expert(model: PI05Pytorch, prefix: Prefix, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity [B, H, action_width] and features [B, H, width], float32, of noisy actions at times [B] (1 = noise).

    LeRobot's denoise_step, which keeps the features to itself.
    """
    embeddings, pad, blocks, condition = model.embed_suffix(x, time)
    to_prefix = prefix.visible[:, None, :].expand(-1, x.shape[1], -1)
    mask = torch.cat([to_prefix, make_att_2d_masks(pad, blocks)], dim=2)
    position_ids = prefix.visible.sum(-1, keepdim=True) + pad.long().cumsum(1) - 1
    (_, output), _ = model.paligemma_with_expert.forward(
        attention_mask=prepare_attention_masks_4d(mask), position_ids=position_ids,
        past_key_values=DynamicCache(tuple(prefix.keys_values)), inputs_embeds=[None, embeddings], use_cache=False,
        adarms_cond=[None, condition])
    features = output[:, -x.shape[1]:].float()
    return model.action_out_proj(features), features


def base_name(name: str) -> str | None:
    """A weight's name in a published file -> in PI05Pytorch; None for what pi-0.5 does not use.

    Published files have a `model.` prefix (LeRobot) or none (openpi), heads of RLinf's, and the embedding only as the
    language head that it is tied to.
    """
    name = name.removeprefix("model.")
    if name == LANGUAGE_HEAD:
        return EMBEDDING
    if name == EXPERT_HEAD or name.startswith(("value_head.", "noise_head.", "state_proj.")):
        return None
    return name.replace("action_time_mlp_", "time_mlp_")
