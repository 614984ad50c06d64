"""Raw camera images -> what policies store and augment."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlco_common.contract import Contract
from rlco_common.errors import DataError
from rlco_common.observation import encode_image
from rlco_policy.interface import ObsBatch


def stored_size(contract: Contract, cameras: tuple[str, ...], wanted: int) -> int:
    """The side of the pictures to ask for and keep: the model's, or less where a camera gives less (see enlarge)."""
    return min(wanted, *(min(contract.cameras[name].shape[:2]) for name in cameras))


def enlarge(images: Tensor, size: int, mode: str) -> Tensor:
    """float [B, 3, H, H] in 0..255 -> [B, 3, size, size]; unchanged where it has that size."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode=mode, antialias=True, align_corners=False).clamp(0, 255)


def policy_images(obs: ObsBatch, cameras: tuple[str, ...], size: int, device: torch.device) -> list[Tensor]:
    """uint8 [B, size, size, 3] of each camera, by the codec that live, bag and dataset paths share."""
    missing = [name for name in cameras if name not in obs.images]
    if missing:
        raise DataError(f"observation lacks camera(s) {', '.join(missing)}; it has {', '.join(obs.images)}")
    return [_encoded(obs.images[name], size, device) for name in cameras]


def _encoded(images: Tensor, size: int, device: torch.device) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(f"images must be uint8 [B, H, W, 3], got {images.dtype} {list(images.shape)}")
    if images.shape[1:3] == (size, size):
        return images.to(device)
    return torch.from_numpy(np.stack([encode_image(image, size) for image in images.cpu().numpy()])).to(device)


def require_finite(proprio: Tensor) -> Tensor:
    if not torch.isfinite(proprio).all():
        raise DataError("non-finite proprioception; refuse the observation at its source")
    return proprio
