"""Pictures of scenes for people: reports, documentation, checking a domain before anything is trained on it."""

from collections.abc import Sequence

import numpy as np

from rlco_common.contract import Contract
from rlco_common.observation import encode_image
from rlco_sim_bridge.domain import Domain
from rlco_sim_bridge.twin import Twin

GAP_PIXELS = 8


def side_by_side(contract: Contract, task: str = "push_cube", domains: Sequence[str | Domain] = ("twin", "standin"),
                 seed: int = 0, *, width: int = 640, height: int = 480, shader: str = "default",
                 layout="push_cube") -> np.ndarray:
    """uint8 RGB picture of the same initial state in several domains, from the contract's first camera, left to right.

    Shape [height, n * width + (n - 1) * 8, 3]. Raises TwinError without a renderer.
    """
    pictures = []
    for domain in domains:
        twin = Twin(contract, task, domain, layout=layout)
        twin.reset(seed)
        pictures += [twin.picture(width, height, shader), np.full((height, GAP_PIXELS, 3), 255, np.uint8)]
        twin.close()
    return np.hstack(pictures[:-1])


def policy_views(twin: Twin, seeds: Sequence[int], size: int) -> np.ndarray:
    """uint8 [size, n * size, 3]: what a policy with `size` pixels sees at the start of each episode."""
    camera = next(iter(twin.contract.cameras))
    return np.hstack([encode_image(twin.reset(seed).images[camera], size) for seed in seeds])
