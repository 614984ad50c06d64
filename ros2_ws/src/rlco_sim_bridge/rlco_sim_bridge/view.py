"""Pictures of scenes for people: reports, documentation, checking a domain before anything is trained on it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_common.observation import encode_image
from rlco_sim_bridge.domain import Domain
from rlco_sim_bridge.twin import Twin
from rlco_sim_bridge.variation import NOMINAL, Variation

GAP_PIXELS = 8
CAPTION_PIXELS = 20


def side_by_side(contract: Contract, task: str, domains: Sequence[str | Domain] = ("twin", "standin"), seed: int = 0, *,
                 variation: Variation = NOMINAL, width: int = 640, height: int = 480, shader: str = "default") -> np.ndarray:
    """uint8 RGB picture of the same initial state in several domains, from the contract's first camera, left to right.

    Shape [height, n * width + (n - 1) * 8, 3]. Raises TwinError without a renderer.
    """
    return side_by_sides(contract, task, [seed], domains, variation=variation, width=width, height=height, shader=shader)[0]


def side_by_sides(contract: Contract, task: str, seeds: Sequence[int], domains: Sequence[str | Domain] = ("twin", "standin"), *,
                  variation: Variation = NOMINAL, width: int = 640, height: int = 480,
                  shader: str = "default") -> list[np.ndarray]:
    """A picture as of side_by_side for every seed; each domain's scene is built once."""
    columns = []
    for domain in domains:
        twin = Twin(contract, task, domain, variation=variation)
        columns.append([])
        for seed in seeds:
            twin.reset(seed)
            columns[-1].append(twin.picture(width, height, shader))
        twin.close()
    return [joined(row, axis=1) for row in zip(*columns, strict=True)]


def task_grid(contract: Contract, tasks: Sequence[str], columns: Sequence[tuple[str, Variation]], seed: int = 0, *,
              width: int = 320, height: int = 240, shader: str = "default") -> np.ndarray:
    """uint8 RGB picture with a row for every task and a column for every (domain, variation), captioned.

    A cell stays white where the task has no such variation.
    """
    captions = [captioned(np.full((1, width, 3), 255, np.uint8), " ".join((domain, variation.text())).strip())[:CAPTION_PIXELS]
                for domain, variation in columns]
    rows = [joined(captions, axis=1)]
    for task in tasks:
        cells = [_cell(contract, task, domain, variation, seed, width, height, shader) for domain, variation in columns]
        rows.append(joined(cells, axis=1))
    return np.concatenate([rows[0], joined(rows[1:], axis=0)], axis=0)


def _cell(contract, task, domain, variation, seed, width, height, shader) -> np.ndarray:
    try:
        twin = Twin(contract, task, domain, variation=variation)
    except ConfigError:
        return np.full((height, width, 3), 255, np.uint8)
    twin.reset(seed)
    picture = twin.picture(width, height, shader)
    twin.close()
    return picture


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture under a line of text, 20 pixels higher."""
    strip = Image.new("RGB", (picture.shape[1], CAPTION_PIXELS), "white")
    ImageDraw.Draw(strip).text((4, 4), text, fill="black")
    return np.concatenate([np.asarray(strip), picture], axis=0)


def policy_views(twin: Twin, seeds: Sequence[int], size: int) -> np.ndarray:
    """uint8 [size, n * size, 3]: what a policy with `size` pixels sees at the start of each episode."""
    camera = next(iter(twin.contract.cameras))
    return np.hstack([encode_image(twin.reset(seed).images[camera], size) for seed in seeds])


def joined(pictures: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Pictures of one size on a white ground with a gap between them; axis 0 stacks, axis 1 lines up."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP_PIXELS
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([piece for picture in pictures for piece in (gap, picture)][1:], axis=axis)


def robot_visuals(contract: Contract, task: str, seed: int = 0, *, size: int = 64, width: int = 640,
                  height: int = 480) -> np.ndarray:
    """uint8 RGB picture: the robot's full meshes beside the light ones that twins render, above for people, below as a policy
    with `size` pixels sees them (magnified)."""
    magnified = min(width, height) // size
    columns = []
    for visuals in ("full", "lite"):
        twin = Twin(contract, task, robot_visuals=visuals)
        view = policy_views(twin, [seed], size).repeat(magnified, axis=0).repeat(magnified, axis=1)
        view = np.pad(view, ((0, 0), (0, width - view.shape[1]), (0, 0)), constant_values=255)
        people = captioned(twin.picture(width, height), f"{visuals}, {width} x {height}")
        columns.append(np.concatenate([people, captioned(view, f"{visuals}, {size} px")], axis=0))
        twin.close()
    return joined(columns, axis=1)
