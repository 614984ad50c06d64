"""A domain: how one physical (or simulated) table looks and behaves. Data only; the twin and the stand-in are two files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from rlco_common.errors import ConfigError
from rlco_common.resources import shipped_file
from rlco_common.strict import from_mapping, load_yaml, to_mapping

Vector = tuple[float, float, float]


def _require_positive(spec, *names):
    for name in names:
        if not getattr(spec, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(spec, name)}")


@dataclass(frozen=True)
class ArmSpec:
    """Joint drives of the arm, and how faithfully the arm follows commands.

    gain: the arm executes this share of the commanded horizontal displacement and rotation from its start pose (a
    calibration error). Height is exact, as on a cell whose table height was found by touching it; otherwise an arm with a
    gain below 1 could not get down to flat objects, whatever is commanded.
    delay_s: time between a drive command and its effect, in whole physics steps.
    """

    stiffness: float
    damping: float
    force_limit: float
    gain: float = 1.0
    delay_s: float = 0.0

    def __post_init__(self):
        _require_positive(self, "stiffness", "damping", "force_limit", "gain")
        if self.delay_s < 0:
            raise ValueError("delay_s must not be negative")

    def axis_gain(self) -> np.ndarray:
        """[6] the gain of each component of a displacement (rlco_common.pose.delta_between)."""
        return np.array([self.gain, self.gain, 1.0, self.gain, self.gain, self.gain])


@dataclass(frozen=True)
class GripperSpec:
    """Drives of the two fingers."""

    stiffness: float
    damping: float
    force_limit: float

    def __post_init__(self):
        _require_positive(self, "stiffness", "damping", "force_limit")


@dataclass(frozen=True)
class ContactSpec:
    """Friction coefficient (static and dynamic) of table and objects, and the objects' density.

    rolling_damping: angular damping of objects, 1/s, in place of rolling friction. drawer_friction (N) and drawer_damping
    (N s/m) of a drawer's rails.
    """

    friction: float
    density_kg_m3: float
    rolling_damping: float
    drawer_friction: float
    drawer_damping: float

    def __post_init__(self):
        _require_positive(self, "friction", "density_kg_m3")
        if min(self.rolling_damping, self.drawer_friction, self.drawer_damping) < 0:
            raise ValueError("rolling_damping, drawer_friction and drawer_damping must not be negative")


@dataclass(frozen=True)
class DirectionalLight:
    direction: Vector
    color: Vector
    shadow: bool = False


@dataclass(frozen=True)
class LightSpec:
    ambient: Vector
    directional: tuple[DirectionalLight, ...]


@dataclass(frozen=True)
class TableLook:
    color: Vector
    texture: Literal["plain", "wood"] = "plain"


@dataclass(frozen=True)
class LookSpec:
    """Base colours, linear RGB in [0, 1]."""

    table: TableLook
    background: Vector
    robot: Vector
    tool: Vector
    objects: dict[str, Vector]


@dataclass(frozen=True)
class CameraView:
    """Where a camera is, what it looks at (base frame), and its vertical field of view.

    roll_rad: rotation about the viewing direction; positive turns the camera clockwise, as seen from behind it.
    """

    eye_m: Vector
    target_m: Vector
    fov_rad: float
    roll_rad: float = 0.0

    def __post_init__(self):
        _require_positive(self, "fov_rad")

    def rotation(self) -> np.ndarray:
        """[3, 3] whose columns are the camera's forward, left and up axes in the base frame."""
        forward = np.subtract(self.target_m, self.eye_m)
        forward = forward / np.linalg.norm(forward)
        left = np.cross([0.0, 0.0, 1.0], forward)
        left = left / np.linalg.norm(left)
        up = np.cross(forward, left)
        cosine, sine = np.cos(self.roll_rad), np.sin(self.roll_rad)
        return np.stack([forward, cosine * left + sine * up, cosine * up - sine * left], axis=1)

    def intrinsics(self, width: int, height: int) -> np.ndarray:
        """[3, 3] pinhole matrix in pixels; square pixels, principal point in the middle."""
        focal = 0.5 * height / np.tan(0.5 * self.fov_rad)
        return np.array([[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]])

    def project(self, point, width: int, height: int) -> np.ndarray:
        """Pixel [u, v] (origin at the upper left corner of the image) of a point in the base frame."""
        forward, left, up = self.rotation().T @ np.subtract(point, self.eye_m)
        u, v, w = self.intrinsics(width, height) @ [-left, -up, forward]
        return np.array([u / w, v / w])


@dataclass(frozen=True)
class Domain:
    """Everything that differs between the twin and the stand-in. Files: `config/domains/*.yaml`.

    task_cameras: task -> the cameras that stand elsewhere for that task.
    """

    name: str
    arm: ArmSpec
    gripper: GripperSpec
    contact: ContactSpec
    light: LightSpec
    look: LookSpec
    cameras: dict[str, CameraView]
    task_cameras: dict[str, dict[str, CameraView]] = field(default_factory=dict)

    def camera(self, name: str, task: str) -> CameraView:
        """Where camera `name` stands for a task. Raises ConfigError naming the cameras that the domain has."""
        views = self.cameras | self.task_cameras.get(task, {})
        if name not in views:
            raise ConfigError(f"domain '{self.name}' has no camera {name}, which the contract names; it has {', '.join(views)}")
        return views[name]

    def color(self, name: str) -> Vector:
        """Colour of an object part. Raises ConfigError naming the colours that the domain has."""
        if name not in self.look.objects:
            raise ConfigError(f"domain '{self.name}' has no colour for '{name}' under look.objects; it has "
                              f"{', '.join(self.look.objects)}")
        return self.look.objects[name]


def load_domain(source: "str | Path | Domain") -> Domain:
    """A domain by the name of a shipped file, by path, or as it is. Raises ConfigError naming file and field."""
    if isinstance(source, Domain):
        return source
    path = Path(source)
    if not path.suffix:
        path = shipped_file("rlco_sim_bridge", "config/domains", str(source), "domain")
    return from_mapping(Domain, load_yaml(path), str(path))


def comparison_table(domains: Sequence[Domain]) -> str:
    """Markdown: every number and switch in which the domains differ, one row each, in the order of the YAML."""
    flat = [dict(_flatten(to_mapping(domain))) for domain in domains]
    keys = list(dict.fromkeys(key for fields in flat for key in fields if key != "name"))
    rows = [(key, [fields.get(key, "") for fields in flat]) for key in keys]
    lines = [f"| | {' | '.join(domain.name for domain in domains)} |", "|---" * (len(domains) + 1) + "|"]
    lines += [f"| {key} | {' | '.join(map(str, values))} |" for key, values in rows if len(set(map(str, values))) > 1]
    return "\n".join(lines)


def _flatten(value, path=""):
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _flatten(entry, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        for index, entry in enumerate(value):
            yield from _flatten(entry, f"{path}[{index}]")
    else:
        yield path, value
