"""The wanted initial state over the live image, so that an operator can put the objects where they were."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from rlco_common.contract import Contract
from rlco_common.errors import DataError


def blend(wanted: np.ndarray, live: np.ndarray, share: float = 0.5) -> np.ndarray:
    """`share` of the wanted picture over the live one. Both uint8 RGB; the result has the live one's size.

    Where both agree the picture is sharp; what stands elsewhere shows twice, half transparent.
    """
    fitted = fit(wanted, live.shape[1], live.shape[0]).astype(np.float32)
    return np.rint(share * fitted + (1.0 - share) * live).astype(np.uint8)


def difference(wanted: np.ndarray, live: np.ndarray) -> float:
    """Mean absolute difference of the two pictures, 0 equal to 1; uint8 RGB."""
    fitted = fit(wanted, live.shape[1], live.shape[0]).astype(np.int16)
    return float(np.abs(fitted - live).mean() / 255.0)


def fit(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture at another size."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def read_photo(contract: Contract, photo: Path) -> np.ndarray:
    """uint8 RGB picture of an initial state: a picture file, or the first image of an episode bag. Raises DataError."""
    if photo.is_dir():
        from rlco_trainer.film import first_picture

        picture = first_picture(contract, photo)
        if picture is None:
            raise DataError(f"{photo}: the bag has no image of the contract's first camera")
        return picture
    try:
        return np.asarray(Image.open(photo).convert("RGB"))
    except (FileNotFoundError, UnidentifiedImageError) as error:
        raise DataError(f"{photo}: not a picture that can be read: {error}; give a PNG, a JPEG or an episode bag") from error
