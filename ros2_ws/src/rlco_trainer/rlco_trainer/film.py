"""Films of recorded episodes, for people: the camera's own pictures at their own rate, as MP4."""

from pathlib import Path

import numpy as np

from rlco_common.contract import Contract
from rlco_trainer.dataset.build import read_streams

SMALLEST_WIDTH = 384        # smaller pictures are magnified by a whole factor
DEFAULT_FPS = 10.0


def film_of_bag(contract: Contract, bag: Path, out: Path) -> Path | None:
    """Write the first camera's pictures of an episode as an H.264 film; None when the bag holds no picture of it."""
    import imageio.v2 as imageio

    samples = read_streams(contract, bag).images[next(iter(contract.cameras))]
    if not samples.values:
        return None
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.part.mp4")
    with imageio.get_writer(staging, fps=frame_rate(samples.stamps_ns), codec="libx264", quality=7, macro_block_size=2) as film:
        for image in samples.values:
            film.append_data(magnified(image()))
    staging.replace(out)
    return out


def first_picture(contract: Contract, bag: Path) -> np.ndarray | None:
    """uint8 RGB: what the first camera saw first in an episode; None when the bag holds no picture of it."""
    samples = read_streams(contract, bag).images[next(iter(contract.cameras))]
    return samples.values[0]() if samples.values else None


def magnified(image: np.ndarray) -> np.ndarray:
    """A small picture with every pixel enlarged, until it is wide enough to look at."""
    factor = -(-SMALLEST_WIDTH // image.shape[1])
    return image if factor == 1 else np.kron(image, np.ones((factor, factor, 1), np.uint8))


def frame_rate(stamps_ns) -> float:
    """Pictures per second of a stream, from its stamps."""
    gaps = np.diff(stamps_ns)
    return float(np.clip(1e9 / np.median(gaps), 1, 60)) if len(gaps) and np.median(gaps) > 0 else DEFAULT_FPS


def last_frame(film: Path) -> np.ndarray | None:
    """uint8 RGB: how a film ends, for paper; None when it cannot be decoded."""
    import imageio.v2 as imageio

    frame = None
    try:
        with imageio.get_reader(film) as reader:
            for picture in reader:
                frame = picture
    except (OSError, ValueError, RuntimeError):
        return None
    return None if frame is None else np.asarray(frame)
