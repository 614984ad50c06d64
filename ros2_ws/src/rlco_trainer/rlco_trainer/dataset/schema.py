"""The columns of our LeRobot datasets, and access to the library."""

import logging
import os
from pathlib import Path

from rlco_common.contract import Contract

SIDECAR = Path("meta") / "rlco.json"
STATE_KEY = "observation.state"
ACTION_KEY = "action"
STAMP_KEY = "observation.stamp_ns"
AGE_KEY = "observation.age_s"


def image_key(camera: str) -> str:
    return f"observation.images.{camera}"


def features(contract: Contract) -> dict:
    """The LeRobot feature table of a contract. Images are lossless (PNG): policy inputs stay byte-equal."""
    table = {
        image_key(name): {"dtype": "image", "shape": camera.shape, "names": ["height", "width", "channels"]}
        for name, camera in contract.cameras.items()
    }
    proprioception = list(contract.proprioception_names)
    ages = [*contract.cameras, "state"]
    table[STATE_KEY] = {"dtype": "float32", "shape": (len(proprioception),), "names": proprioception}
    table[ACTION_KEY] = {"dtype": "float32", "shape": (contract.action.dim,), "names": list(contract.action.names)}
    table[STAMP_KEY] = {"dtype": "int64", "shape": (1,), "names": None}
    table[AGE_KEY] = {"dtype": "float32", "shape": (len(ages),), "names": ages}
    return table


def lerobot_dataset_class(online: bool = False):
    """LeRobotDataset, imported for local folders: no hub unless `online`, no progress bars, no notice about decoders."""
    if not online:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset
