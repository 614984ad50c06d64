"""The two vision transformers of OpenVLA, with timm's parameter names as they stand in its checkpoints."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlco_policy.checkpointing import run
from rlco_policy.openvla.config import VitConfig

NORM_EPS = 1e-6


class VisionBackbone(nn.Module):
    """DINOv2 and SigLIP side by side; their patch features are concatenated channel-wise."""

    def __init__(self, first: VitConfig, second: VitConfig, image_size: int, patch: int):
        super().__init__()
        self.featurizer = VisionTransformer(first, image_size, patch)
        self.fused_featurizer = VisionTransformer(second, image_size, patch)
        self.width = first.width + second.width

    def forward(self, pixels: Tensor, *, save_memory: bool = False) -> Tensor:
        """pixels [B, 6, H, W], channels 0:3 normalised for the first tower, 3:6 for the second -> [B, patches, width]."""
        first, second = pixels.split(3, dim=1)
        return torch.cat([self.featurizer(first, save_memory), self.fused_featurizer(second, save_memory)], dim=-1)


class VisionTransformer(nn.Module):
    """Patch features before the last block. The last block, the final norm and the pool only exist to be written back."""

    def __init__(self, config: VitConfig, image_size: int, patch: int):
        super().__init__()
        width, self.prefix_tokens = config.width, config.prefix_tokens
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (image_size // patch) ** 2, width))
        if config.prefix_tokens:
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
            self.reg_token = nn.Parameter(0.02 * torch.randn(1, config.prefix_tokens - 1, width))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        if config.attention_pool:
            self.attn_pool = AttentionPool(width, config.mlp)

    @staticmethod
    def unused(name: str, depth: int) -> bool:
        """Whether a parameter of this module plays no part in the features."""
        return name.startswith(("norm.", "attn_pool.", f"blocks.{depth - 1}."))

    def forward(self, pixels: Tensor, save_memory: bool = False) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + self.pos_embed
        if self.prefix_tokens:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.reg_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks[:-1]:
            x = run(block, x, save_memory=save_memory)
        return x[:, self.prefix_tokens:]


class VisionBlock(nn.Module):
    def __init__(self, config: VitConfig):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, config.mlp)
        self.ls1 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.ls2 = LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self._attend(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))        # exact GELU: the tanh form is off by up to 2.5e-3


class LayerScale(nn.Module):
    """Checkpoints say `scale_factor` where timm says `gamma`."""

    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class AttentionPool(nn.Module):
    """SigLIP's pooling head: in the checkpoint, not in the model."""

    def __init__(self, width: int, mlp: int):
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, mlp)
