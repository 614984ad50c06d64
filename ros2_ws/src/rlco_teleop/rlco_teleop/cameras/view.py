"""From the picture that a camera takes to the one that the contract wants, and its calibration. Pure."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlco_common.errors import ConfigError
from rlco_common.strict import load_yaml

_MATRICES = {"camera_matrix": (3, 3), "rectification_matrix": (3, 3), "projection_matrix": (3, 4)}


@dataclass(frozen=True)
class Calibration:
    """Of a camera at one picture size, as in sensor_msgs/CameraInfo. k, r: [3, 3]; p: [3, 4]; pixels."""

    width: int
    height: int
    distortion_model: str
    d: tuple[float, ...]
    k: np.ndarray
    r: np.ndarray
    p: np.ndarray


@dataclass(frozen=True)
class Crop:
    """The largest middle part of a picture with the wanted proportions, shrunk to the wanted size."""

    left: int
    top: int
    width: int
    height: int
    out_width: int
    out_height: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The part of an image [height, width, 3], not yet shrunk."""
        return image[self.top:self.top + self.height, self.left:self.left + self.width]

    def calibration(self, whole: Calibration) -> Calibration:
        """The calibration of the result. Raises ConfigError when `whole` is for another picture size than this crop's."""
        sx, sy = self.out_width / self.width, self.out_height / self.height
        # Pixel centres are at whole numbers: u' = (u - left + 1/2) * s - 1/2.
        change = np.array([[sx, 0.0, (0.5 - self.left) * sx - 0.5], [0.0, sy, (0.5 - self.top) * sy - 0.5], [0.0, 0.0, 1.0]])
        return replace(whole, width=self.out_width, height=self.out_height, k=change @ whole.k, p=change @ whole.p)


def crop_for(width: int, height: int, out_width: int, out_height: int) -> Crop:
    """Raises ConfigError for a picture that is smaller than wanted: nothing is invented."""
    if width < out_width or height < out_height:
        raise ConfigError(f"the camera gives {width}x{height}, the contract wants {out_width}x{out_height}; choose a larger "
                          "capture size (width, height), or a smaller one in the contract")
    part_width = min(width, round(height * out_width / out_height))
    part_height = min(height, round(width * out_height / out_width))
    return Crop((width - part_width) // 2, (height - part_height) // 2, part_width, part_height, out_width, out_height)


def load_calibration(path: str | Path) -> Calibration:
    """A calibration YAML as camera_calibration and image_common write it. Raises ConfigError naming the field."""
    data = load_yaml(path)
    try:
        matrices = {name: _matrix(data[name], shape, name) for name, shape in _MATRICES.items()}
        d = tuple(float(value) for value in data["distortion_coefficients"]["data"])
        return Calibration(int(data["image_width"]), int(data["image_height"]), str(data["distortion_model"]), d,
                           matrices["camera_matrix"], matrices["rectification_matrix"], matrices["projection_matrix"])
    except KeyError as error:
        raise ConfigError(f"{path}: {error} is missing; this is not a camera_info calibration") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _matrix(data, shape, name) -> np.ndarray:
    values = np.array(data["data"], dtype=np.float64)
    if (data.get("rows", shape[0]), data.get("cols", shape[1])) != shape or values.size != shape[0] * shape[1]:
        raise ValueError(f"{name} has to be {shape[0]} x {shape[1]}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} is not finite")
    return values.reshape(shape)
