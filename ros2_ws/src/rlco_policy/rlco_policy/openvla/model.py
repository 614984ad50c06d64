"""The network of OpenVLA: `[BOS][patches][prompt][action tokens]` through Llama, with the published parameter names."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from rlco_policy.checkpointing import run
from rlco_policy.lora import linear_rows
from rlco_policy.openvla.config import OpenVlaConfig
from rlco_policy.openvla.vision import VisionBackbone, VisionTransformer

UNTRAINED_TEXT = ("model_type", "torch_dtype", "dtype", "architectures", "transformers_version", "_name_or_path")


class OpenVlaModel(nn.Module):
    """Parameters are named as in the checkpoint: vision_backbone, projector, language_model."""

    def __init__(self, config: OpenVlaConfig):
        super().__init__()
        llama = llama_config(config)
        self.vision_backbone = VisionBackbone(*config.vision, config.image_size, config.patch)
        self.projector = Projector(self.vision_backbone.width, llama.hidden_size)
        self.language_model = LlamaForCausalLM(llama)
        self.save_memory = config.gradient_checkpointing
        first = llama.vocab_size - config.vocabulary_padding - config.bins
        if first < 0:
            raise ValueError(f"a vocabulary of {llama.vocab_size} has no room for {config.bins} action tokens")
        self.action_rows = slice(first, first + config.bins)

    @property
    def llama(self):
        return self.language_model.model

    def embed(self, pixels: Tensor, prompt: Tensor, visible: Tensor) -> "Sequence":
        """pixels [B, 6, H, W], prompt ids [B, P] with BOS first, visible [B, P] -> the embedded sequence."""
        patches = self.projector(self.vision_backbone(pixels, save_memory=self.save_memory))
        words = self.llama.embed_tokens(prompt)
        seen = visible.new_ones(patches.shape[:2])
        return Sequence(torch.cat([words[:, :1], patches.to(words.dtype), words[:, 1:]], 1),
                        torch.cat([visible[:, :1], seen, visible[:, 1:]], 1))

    def hidden(self, sequence: "Sequence", tokens: Tensor | None = None, cache: DynamicCache | None = None) -> Tensor:
        """Hidden states [B, 1 + T, D] at the prompt's last position and at the ids `tokens` [B, T] after it.

        With a cache it is filled for `step`.
        """
        embeddings, visible = sequence.embeddings, sequence.visible
        if tokens is not None:
            embeddings = torch.cat([embeddings, self.llama.embed_tokens(tokens)], 1)
            visible = torch.cat([visible, visible.new_ones(tokens.shape)], 1)
        length = embeddings.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=embeddings.device).tril()
        mask = causal & visible[:, None, None, :]
        x = self._run(embeddings, mask, positions(visible), cache)
        return x[:, sequence.embeddings.shape[1] - 1:]

    def step(self, tokens: Tensor, sequence: "Sequence", cache: DynamicCache) -> Tensor:
        """Hidden state [B, D] after one more token id [B]; the cache grows by it."""
        before = cache.get_seq_length() - sequence.visible.shape[1]
        visible = torch.cat([sequence.visible, sequence.visible.new_ones(len(tokens), before + 1)], 1)
        return self._run(self.llama.embed_tokens(tokens[:, None]), visible[:, None, None, :],
                         positions(visible)[:, -1:], cache)[:, 0]

    def action_logits(self, hidden: Tensor) -> Tensor:
        """float32 logits of the action tokens alone: [..., D] -> [..., bins], in the order of the token ids."""
        return linear_rows(self.language_model.lm_head, hidden, self.action_rows).float()

    def all_logits(self, hidden: Tensor) -> Tensor:
        return self.language_model.lm_head(hidden).float()

    def _run(self, x: Tensor, mask: Tensor, position_ids: Tensor, cache: DynamicCache | None) -> Tensor:
        """Llama's layers under a boolean mask [B, 1, queries, keys]."""
        rotary = self.llama.rotary_emb(x, position_ids=position_ids)
        save_memory = self.save_memory and cache is None      # recomputing a layer would fill the cache twice
        for layer in self.llama.layers:
            x = run(layer, x, save_memory=save_memory, attention_mask=mask, position_ids=position_ids,
                    position_embeddings=rotary, past_key_values=cache, use_cache=cache is not None)
        return self.llama.norm(x)

    def unused(self, name: str) -> bool:
        """Whether a parameter is only there to be written back."""
        backbone, _, rest = name.removeprefix("vision_backbone.").partition(".")
        tower = getattr(self.vision_backbone, backbone, None) if name.startswith("vision_backbone.") else None
        return isinstance(tower, VisionTransformer) and VisionTransformer.unused(rest, len(tower.blocks))


@dataclass
class Sequence:
    """The embedded prompt. embeddings [B, N, D]; visible [B, N] bool, False where padding stands."""

    embeddings: Tensor
    visible: Tensor


class Projector(nn.Module):
    def __init__(self, vision: int, language: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(vision, 4 * vision), nn.Linear(4 * vision, language)
        self.fc3 = nn.Linear(language, language)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


def positions(visible: Tensor) -> Tensor:
    """Positions that do not count padding: int64 [B, N]."""
    return (visible.long().cumsum(1) - 1).clamp(min=0)


def llama_config(config: OpenVlaConfig) -> LlamaConfig:
    """Llama as the checkpoint's config.json describes it; what that leaves out are LlamaConfig's defaults.

    Llama-2's own configuration has another norm epsilon; the converted checkpoints have LlamaConfig's.
    """
    fields = {name: value for name, value in config.language.items() if name not in UNTRAINED_TEXT}
    llama = LlamaConfig(**fields)
    llama._attn_implementation = "sdpa"
    return llama
