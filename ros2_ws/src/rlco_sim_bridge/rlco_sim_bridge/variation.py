"""What is varied beside the seed, for studies of generalization (paper, Table II) and for domain randomisation."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from rlco_common.errors import ConfigError
from rlco_common.strict import from_mapping
from rlco_sim_bridge.domain import CameraView, DirectionalLight, LightSpec

# At strength 1; every value is drawn uniformly from [-this, this] times the strength, anew in each episode.
CAMERA_SHIFT_M = 0.05
CAMERA_TARGET_SHIFT_M = 0.03
CAMERA_FOV_RAD = 0.04
LIGHT_LEVEL = 0.4           # relative, of the ambient and of each directional light
LIGHT_TINT = 0.15           # relative, of each colour channel
LIGHT_DIRECTION = 0.3       # added to each component of a light's unit direction

_CAMERA_STREAM, _LIGHT_STREAM = 0xca3e, 0x1197


@dataclass(frozen=True)
class Variation:
    """objects=unseen: objects that are held out of every demonstration. start=perturbed: another start of the robot.
    start=missed: it starts as it is after a missed grasp.

    camera, light: strength of random changes of camera pose and lighting, 0 none to 1 strong; see the constants above.
    """

    objects: Literal["seen", "unseen"] = "seen"
    start: Literal["nominal", "perturbed", "missed"] = "nominal"
    camera: float = 0.0
    light: float = 0.0

    def __post_init__(self):
        for name in ("camera", "light"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a strength in [0, 1], got {getattr(self, name)}")

    def text(self) -> str:
        """The switches that differ from the default, as `objects=unseen,camera=0.5`; empty for none."""
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self)
                        if getattr(self, field.name) != field.default)

    def camera_view(self, view: CameraView, seed: int) -> CameraView:
        """The camera of episode `seed`."""
        if self.camera == 0.0:
            return view
        draw = self.camera * np.random.default_rng([seed, _CAMERA_STREAM]).uniform(-1, 1, 7)
        return replace(view, eye_m=tuple(view.eye_m + CAMERA_SHIFT_M * draw[:3]),
                       target_m=tuple(view.target_m + CAMERA_TARGET_SHIFT_M * draw[3:6]),
                       fov_rad=view.fov_rad + CAMERA_FOV_RAD * draw[6])

    def lights(self, light: LightSpec, seed: int) -> LightSpec:
        """The lights of episode `seed`."""
        if self.light == 0.0:
            return light
        rng = np.random.default_rng([seed, _LIGHT_STREAM])

        def tinted(color):
            level = 1.0 + LIGHT_LEVEL * self.light * rng.uniform(-1, 1)
            return tuple(np.clip(np.array(color) * level * (1.0 + LIGHT_TINT * self.light * rng.uniform(-1, 1, 3)), 0.0, None))

        def turned(direction):
            unit = np.array(direction) / np.linalg.norm(direction)
            return tuple(unit + LIGHT_DIRECTION * self.light * rng.uniform(-1, 1, 3))

        return LightSpec(tinted(light.ambient), tuple(
            DirectionalLight(turned(lamp.direction), tinted(lamp.color), lamp.shadow) for lamp in light.directional))


NOMINAL = Variation()


def variation_from_text(text: str, where: str = "variation") -> Variation:
    """Inverse of Variation.text. Raises ConfigError naming the switch."""
    switches = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals:
            raise ConfigError(f"{where}: '{entry}' is not name=value; for example objects=unseen,start=perturbed,camera=0.5")
        switches[name] = value
    return from_mapping(Variation, switches, where)
