"""Images, instruction and proprioception -> prefix tokens. Language modulates the image features.

Chosen by how fast it learns on one CPU thread: the position-specific summary (a flattened coarse map) localises objects
far sooner than pooled or attended tokens do, and FiLM together with word-generated attention binds the named object.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlco_policy.compact.config import EncoderConfig
from rlco_policy.compact.layers import Block

SHARPNESS = 8.0
"""Factor on the keypoints' attention scores: maps that are peaked from the start find objects sooner."""


@dataclass
class Prefix:
    tokens: Tensor      # [B, N, width]
    pooled: Tensor      # [B, width] summary that conditions the heads


class Encoder(nn.Module):
    """Prefix: per camera a grid of image tokens, then one token each of text, proprioception and the summary."""

    def __init__(self, config: EncoderConfig, cameras: int, proprio_dim: int):
        super().__init__()
        width = config.width
        self.words = nn.Embedding(config.vocabulary, config.word_width, padding_idx=0)
        nn.init.normal_(self.words.weight, std=2.0)     # large: a word must change the attention from the start
        self.text = nn.Linear(config.word_width, width)
        self.vision = VisionTower(config)
        self.camera_embedding = nn.Parameter(0.02 * torch.randn(cameras, 1, width))
        self.proprio = nn.Sequential(nn.Linear(proprio_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.summary = nn.Sequential(nn.Linear(cameras * self.vision.summary_width + 2 * width, 2 * width), nn.SiLU(),
                                     nn.Linear(2 * width, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, images: Tensor, words: Tensor, proprio: Tensor) -> Prefix:
        """images uint8 [B, cameras, H, W, 3]; words int32 [B, T] padded with 0; proprio [B, S] normalised."""
        # A sum keeps one word's share of the sentence large, where a mean would shrink the word that names the object.
        text = self.text((self.words(words) * (words > 0).unsqueeze(-1)).sum(1))
        state = self.proprio(proprio)
        views = [self.vision(images[:, i], text) for i in range(images.shape[1])]
        pooled = self.summary(torch.cat([*(summary for _, summary in views), text, state], dim=-1))
        grids = [grid + self.camera_embedding[i] for i, (grid, _) in enumerate(views)]
        tokens = torch.cat([*grids, torch.stack([text, state, pooled], dim=1)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return Prefix(self.norm(tokens), pooled)


class VisionTower(nn.Module):
    """Strided convolutions with FiLM by the instruction; a grid of tokens and a summary that knows positions.

    Feature maps are at strides 4 (keypoints: where exactly), 8 (flattened into the summary: where roughly) and 16 (grid
    tokens: what). A flattened map of stride 16 left small objects unlocalised: with it the policy learned the mean path.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        fine, coarse = config.channels
        width, side = config.width, config.image_size // 16
        self.stem = nn.Conv2d(3, fine, 8, stride=4, padding=2)
        self.mix = nn.Conv2d(fine, fine, 3, padding=1)
        self.film_fine = FiLM(fine, width)
        self.down = nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
        self.film_coarse = FiLM(coarse, width)
        self.last = nn.Conv2d(coarse, coarse, 3, stride=2, padding=1)
        self.token = nn.Linear(coarse, width)
        self.position = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.keypoints = Keypoints(fine, config.keypoints, width, config.image_size // 4)
        self.summary_width = coarse * (2 * side) ** 2 + 2 * config.keypoints
        self.to(memory_format=torch.channels_last)      # about a third faster on a CPU

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, 3], text [B, width] -> tokens [B, (H/16)(W/16), width], summary [B, summary_width]."""
        x = image.permute(0, 3, 1, 2).float().sub_(127.5).div_(64.0)
        x = F.relu(self.stem(x))
        fine = x + F.relu(self.film_fine(self.mix(x), text))
        coarse = F.relu(self.film_coarse(self.down(fine), text))
        grid = F.relu(self.last(coarse)).flatten(2).transpose(1, 2)
        summary = torch.cat([coarse.flatten(1), self.keypoints(fine, text).flatten(1)], dim=-1)
        return self.token(grid) + self.position, summary


class FiLM(nn.Module):
    """Scale and shift per channel from the instruction (Perez et al. 2018). x [B, C, H, W], condition [B, D]."""

    def __init__(self, channels: int, condition: int):
        super().__init__()
        self.modulation = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, x, 1 + scale)


class Keypoints(nn.Module):
    """Where in the picture: `points` attention maps whose queries come from the instruction (spatial softmax)."""

    def __init__(self, channels: int, points: int, condition: int, side: int):
        super().__init__()
        self.points, self.scale = points, SHARPNESS * channels**-0.5
        self.query = nn.Linear(condition, points * channels)
        line = torch.linspace(-1, 1, side)
        y, x = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("grid", torch.stack([x.flatten(), y.flatten()], dim=-1), persistent=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[B, C, side, side] and [B, D] -> expected coordinates [B, points, 2] in [-1, 1]."""
        query = self.query(condition).unflatten(-1, (self.points, -1))
        return (query @ x.flatten(2) * self.scale).softmax(-1) @ self.grid
