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


def policy_image(obs: ObsBatch, camera: str, size: int, device: torch.device) -> Tensor:
    """uint8 [B, size, size, 3] of one camera, by the codec that live, bag and dataset paths share."""
    if camera not in obs.images:
        raise DataError(f"observation lacks camera(s) {camera}; it has {', '.join(obs.images)}")
    images = obs.images[camera]
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(f"images must be uint8 [B, H, W, 3], got {images.dtype} {list(images.shape)}")
    if images.shape[1:3] == (size, size):
        return images.to(device)
    return torch.from_numpy(np.stack([encode_image(image, size) for image in images.cpu().numpy()])).to(device)


def finite_proprioception(obs: ObsBatch) -> Tensor:
    if not torch.isfinite(obs.proprio).all():
        raise DataError("non-finite proprioception; refuse the observation at its source")
    return obs.proprio
