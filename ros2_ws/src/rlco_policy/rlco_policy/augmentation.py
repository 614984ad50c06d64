"""Image augmentation for supervised training: batched, on uint8, from a torch.Generator."""

from dataclasses import dataclass

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class AugmentationConfig:
    """`shift_pixels`: largest shift per axis, edges replicated. The others: largest relative change, 0 = off."""

    shift_pixels: int = 4
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self):
        if self.shift_pixels < 0 or not all(0 <= v < 1 for v in (self.brightness, self.contrast, self.saturation)):
            raise ValueError("shift_pixels must be >= 0, brightness, contrast and saturation in [0, 1)")


def augment_images(images: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Shifted and colour-jittered copy of uint8 [B, H, W, 3]; each image gets its own draw."""
    if config.shift_pixels:
        images = random_shift(images, config.shift_pixels, generator)
    if config.brightness or config.contrast or config.saturation:
        images = colour_jitter(images, config, generator)
    return images


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image [H, W, 3] moved by a whole number of pixels in [-pixels, pixels] per axis, edges replicated."""
    batch, height, width, _ = images.shape
    offset = torch.randint(-pixels, pixels + 1, (2, batch, 1), generator=generator, device=generator.device)
    offset = offset.to(images.device)
    rows = (torch.arange(height, device=images.device) + offset[0]).clamp_(0, height - 1)
    columns = (torch.arange(width, device=images.device) + offset[1]).clamp_(0, width - 1)
    index = torch.arange(batch, device=images.device)[:, None, None]
    return images[index, rows[:, :, None], columns[:, None, :]]


def colour_jitter(images: Tensor, config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation factors drawn uniformly from 1 +- the configured change, per image.

    The three are linear in the pixel, so they are folded into one 3x3 matrix and one offset per image.
    """
    batch, device = len(images), images.device
    spread = torch.tensor([config.brightness, config.contrast, config.saturation])[:, None]
    draw = torch.rand((3, batch), generator=generator, device=generator.device).cpu()
    brightness, contrast, saturation = (1 + spread * (2 * draw - 1)).to(device)[:, :, None, None]
    luma = torch.tensor(_LUMA, device=device).view(1, 3, 1).expand(batch, 3, 3)
    matrix = brightness * contrast * (saturation * torch.eye(3, device=device) + (1 - saturation) * luma)
    pixels = images.view(batch, -1, 3).float()
    mean = (pixels.mean(1, keepdim=True) @ luma) * brightness
    out = torch.baddbmm((1 - contrast) * mean, pixels, matrix)
    return out.round_().clamp_(0, 255).to(torch.uint8).view_as(images)
