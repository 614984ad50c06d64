"""The contract of a robot cell: one YAML, loaded strictly, hashed, compared with a readable diff."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rlco_common.errors import ConfigError, ContractMismatch
from rlco_common.pose import Pose, compose_delta, delta_between
from rlco_common.resources import share_directory, shipped_file
from rlco_common.strict import from_mapping, load_yaml, to_mapping

DEFAULT_CONTRACT = "panda_tabletop"
PROPRIOCEPTION_PARTS = ("ee_position", "ee_rotation", "gripper", "joint_positions")
ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")


@dataclass(frozen=True)
class RobotSpec:
    """Frames and joints. Gripper positions are those of `gripper_joint`, in its own unit."""

    base_frame: str
    ee_frame: str
    arm_joints: tuple[str, ...]
    gripper_joint: str
    gripper_closed: float
    gripper_open: float

    def __post_init__(self):
        if self.gripper_closed == self.gripper_open:
            raise ValueError("gripper_closed and gripper_open are equal; the opening cannot be computed")
        if len(set(self.arm_joints)) != len(self.arm_joints):
            raise ValueError("arm_joints repeats a name")

    def gripper_opening(self, joint_position: float) -> float:
        """Opening in [0, 1] (0 closed, 1 open) of a gripper joint position."""
        span = self.gripper_open - self.gripper_closed
        return min(max(float(joint_position - self.gripper_closed) / span, 0.0), 1.0)

    def gripper_joint_position(self, opening: float) -> float:
        """Joint position of an opening in [0, 1]; the inverse of gripper_opening."""
        return self.gripper_closed + min(max(float(opening), 0.0), 1.0) * (self.gripper_open - self.gripper_closed)


@dataclass(frozen=True)
class CameraSpec:
    """One camera stream. `max_age_s`: an older image is refused."""

    topic: str
    frame: str
    width: int
    height: int
    encoding: str
    max_age_s: float

    def __post_init__(self):
        if self.encoding not in ("rgb8", "bgr8"):
            raise ValueError(f"encoding '{self.encoding}' is not supported; use rgb8 or bgr8")
        if min(self.width, self.height) < 1 or self.max_age_s <= 0:
            raise ValueError("width, height and max_age_s must be positive")

    @property
    def info_topic(self) -> str:
        return self.topic.rsplit("/", 1)[0] + "/camera_info"

    @property
    def compressed_topic(self) -> str:
        """Where image_transport's compressed plugin publishes the same images as JPEG."""
        return f"{self.topic}/compressed"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.height, self.width, 3)


@dataclass(frozen=True)
class TopicSpec:
    """Topics of the arm, and how old a state sample may be (seconds)."""

    joint_states: str
    ee_pose: str
    target_pose: str
    gripper_command: str
    state_max_age_s: float


@dataclass(frozen=True)
class ObservationSpec:
    proprioception: tuple[str, ...]

    def __post_init__(self):
        unknown = [part for part in self.proprioception if part not in PROPRIOCEPTION_PARTS]
        if unknown or not self.proprioception:
            raise ValueError(f"proprioception {unknown} unknown; choose from {', '.join(PROPRIOCEPTION_PARTS)}")


@dataclass(frozen=True)
class ActionSpec:
    """7-D action `[dx, dy, dz, droll, dpitch, dyaw, gripper]` per control tick (paper, V-A)."""

    names: tuple[str, ...]
    max_translation_m: float
    max_rotation_rad: float

    def __post_init__(self):
        if self.names != ACTION_NAMES:
            raise ValueError(f"action names must be {list(ACTION_NAMES)}")
        if self.max_translation_m <= 0 or self.max_rotation_rad <= 0:
            raise ValueError("max_translation_m and max_rotation_rad must be positive")

    @property
    def dim(self) -> int:
        return len(self.names)

    @cached_property
    def low(self) -> np.ndarray:
        """[7] float64 lower bounds in physical units."""
        return np.array([-self.max_translation_m] * 3 + [-self.max_rotation_rad] * 3 + [0.0])

    @cached_property
    def high(self) -> np.ndarray:
        """[7] float64 upper bounds in physical units."""
        return np.array([self.max_translation_m] * 3 + [self.max_rotation_rad] * 3 + [1.0])

    def normalise(self, action: np.ndarray) -> np.ndarray:
        """Physical action(s) [..., 7] to [-1, 1]. Values beyond the limits map beyond 1; they are not clipped."""
        return 2.0 * (np.asarray(action) - self.low) / (self.high - self.low) - 1.0

    def denormalise(self, action: np.ndarray) -> np.ndarray:
        """Inverse of normalise."""
        return self.low + 0.5 * (np.asarray(action) + 1.0) * (self.high - self.low)

    def clip(self, action: np.ndarray) -> np.ndarray:
        """Action(s) [..., 7] clipped to the per-tick limits; a non-finite value raises ValueError."""
        action = np.asarray(action, dtype=np.float64)
        if not np.isfinite(action).all():
            raise ValueError(f"non-finite action {action.tolist()}")
        return np.minimum(np.maximum(action, self.low), self.high)      # a third of the time of np.clip


@dataclass(frozen=True)
class LimitSpec:
    """What the gate enforces on the commanded target pose (SI units, base frame)."""

    workspace_min_m: tuple[float, float, float]
    workspace_max_m: tuple[float, float, float]
    max_linear_speed_m_s: float
    max_angular_speed_rad_s: float
    max_linear_acceleration_m_s2: float
    max_angular_acceleration_rad_s2: float
    max_target_lead_m: float
    max_target_lead_rad: float
    command_timeout_s: float

    def __post_init__(self):
        if not all(low < high for low, high in zip(self.workspace_min_m, self.workspace_max_m, strict=True)):
            raise ValueError("workspace_min_m must be below workspace_max_m on every axis")
        for name, value in vars(self).items():
            if isinstance(value, float) and not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and positive, got {value}")

    @cached_property
    def _corners(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.workspace_min_m), np.array(self.workspace_max_m)

    def clip_position(self, position: np.ndarray) -> np.ndarray:
        """Position(s) [..., 3], clipped to the workspace box."""
        low, high = self._corners
        return np.minimum(np.maximum(position, low), high)


@dataclass(frozen=True)
class TaskSpec:
    """Instruction templates, the values of their slots, and the episode length in control ticks."""

    instructions: tuple[str, ...]
    slots: dict[str, tuple[str, ...]]
    max_steps: int

    def __post_init__(self):
        if not self.instructions or self.max_steps < 1:
            raise ValueError("a task needs at least one instruction and max_steps >= 1")
        for template in self.instructions:
            try:
                template.format(**{name: values[0] for name, values in self.slots.items()})
            except (KeyError, IndexError) as error:
                raise ValueError(f"instruction '{template}' uses a slot that is not defined: {error}") from error

    def instruction(self, index: int, **slots: str) -> str:
        """The wording number `index` (modulo their number) with its slots filled."""
        return self.instructions[index % len(self.instructions)].format(**slots)


@dataclass(frozen=True)
class Contract:
    """Everything that bags, datasets, twins, policies and the gate must agree on. See config/panda_tabletop.yaml."""

    name: str
    robot: RobotSpec
    control_rate_hz: float
    cameras: dict[str, CameraSpec]
    topics: TopicSpec
    observation: ObservationSpec
    action: ActionSpec
    limits: LimitSpec
    tasks: dict[str, TaskSpec]

    def __post_init__(self):
        if self.control_rate_hz <= 0 or not self.cameras or not self.tasks:
            raise ValueError("control_rate_hz must be positive, and at least one camera and one task given")

    @property
    def control_period_s(self) -> float:
        return 1.0 / self.control_rate_hz

    @property
    def control_period_ns(self) -> int:
        return round(1e9 / self.control_rate_hz)

    @property
    def proprioception_names(self) -> tuple[str, ...]:
        """A name for every element of the proprioception vector."""
        names = {
            "ee_position": ("x", "y", "z"),
            "ee_rotation": ("r11", "r21", "r31", "r12", "r22", "r32"),
            "gripper": ("gripper",),
            "joint_positions": self.robot.arm_joints,
        }
        return tuple(name for part in self.observation.proprioception for name in names[part])

    def task(self, name: str) -> TaskSpec:
        if name not in self.tasks:
            raise ConfigError(f"contract '{self.name}' has no task '{name}'; it has {', '.join(self.tasks)}")
        return self.tasks[name]

    def compose_target(self, target: Pose, action: np.ndarray) -> Pose:
        """The next target pose: the action's delta applied to the previous target, kept inside the workspace."""
        moved = compose_delta(target, action[:6])
        return Pose(self.limits.clip_position(moved.position), moved.quaternion)

    def action_between(self, target: Pose, next_target: Pose, gripper: float) -> np.ndarray:
        """The action [7] that leads from one commanded target to the next; the inverse of compose_target."""
        return np.concatenate([delta_between(target, next_target), [gripper]])

    def to_json(self) -> str:
        """Canonical JSON: the text that is hashed, and that travels in bags, datasets and checkpoints."""
        return json.dumps(to_mapping(self), sort_keys=True, separators=(",", ":"))

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of to_json()."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def contract_directory() -> Path:
    """Where the shipped contracts live: the ament share directory, or the source tree beside this file."""
    return share_directory("rlco_common")


def load_contract(source: str | Path = DEFAULT_CONTRACT) -> Contract:
    """Load a contract from a file path or by the name of a shipped one. Raises ConfigError naming the field."""
    path = Path(source)
    if not path.suffix:
        path = shipped_file("rlco_common", "config", str(source), "contract")
    return from_mapping(Contract, load_yaml(path), str(path))


def contract_from_json(text: str, where: str) -> Contract:
    """The contract that travelled with an artefact; `where` names the artefact in errors."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: the stored contract is not valid JSON: {error}") from error
    return from_mapping(Contract, data, where)


def contract_diff(ours: Contract, theirs: Contract) -> list[str]:
    """One line for every field that differs, as `path: ours -> theirs`."""
    return list(_diff("", to_mapping(ours), to_mapping(theirs)))


def require_same_contract(ours: Contract, theirs: Contract, what: str) -> None:
    """Raise ContractMismatch with the differing fields unless both contracts have the same hash."""
    if ours.hash == theirs.hash:
        return
    lines = "\n  ".join(contract_diff(ours, theirs))
    raise ContractMismatch(
        f"{what} was made under contract '{theirs.name}' {theirs.hash}, this run uses '{ours.name}' {ours.hash}.\n"
        f"Differing fields (this run -> {what}):\n  {lines}\n"
        "Use the contract it was made with, or rebuild it under the present one."
    )


def _diff(path, ours, theirs):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(set(ours) | set(theirs)):
            yield from _diff(f"{path}.{key}".lstrip("."), ours.get(key, "(absent)"), theirs.get(key, "(absent)"))
    elif ours != theirs:
        yield f"{path}: {ours} -> {theirs}"
