"""What a task is: its bodies, its initial states, and what counts as success and failure. Pure numpy, no simulator.

A task judges numpy arrays and torch tensors alike, with any leading batch dimensions, so that one scene on a CPU and a
thousand on a GPU are judged by the same code.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from rlco_common.contract import TaskSpec
from rlco_common.errors import ConfigError
from rlco_common.pose import Pose, quaternion_from_rotation_vector, quaternion_multiply, rotation_matrix
from rlco_common.resources import shipped_file
from rlco_common.strict import from_mapping, load_yaml
from rlco_sim_bridge.variation import Variation

Vector = tuple[float, float, float]
Array = Any     # numpy array or torch tensor

TOOL_DOWN = np.array([1.0, 0.0, 0.0, 0.0])   # (x, y, z, w): fingers point down and open along the base's y axis
_PERTURBED_START_STREAM = 0x57a7


@dataclass(frozen=True)
class Part:
    """A primitive of a body, in metres. size: half extents of a box, (radius,) of a sphere, (radius, half length) of a
    cylinder about z. color: a name in the domain's `look.objects`."""

    kind: Literal["box", "sphere", "cylinder"]
    size: tuple[float, ...]
    color: str
    position: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Body:
    """A rigid body. height_m: of its origin above the table when it stands. fixed: it stays where an episode puts it."""

    parts: tuple[Part, ...]
    height_m: float
    fixed: bool = False


@dataclass(frozen=True)
class DrawerCabinet:
    """A cabinet that is fixed to the table, with one drawer that slides out along the cabinet's -x axis.

    Parts in the cabinet's frame with the drawer closed (origin: centre of the cabinet's bottom). grasp_m: the point
    behind the handle's bar, where fingers can hold it.
    """

    cabinet: tuple[Part, ...]
    drawer: tuple[Part, ...]
    grasp_m: Vector
    max_travel_m: float

    def handle(self, cabinet: Pose, travel_m: float) -> Pose:
        """Pose of the grasp point in the base frame."""
        x, y, z = self.grasp_m
        return Pose(cabinet.position + rotation_matrix(cabinet.quaternion) @ [x - travel_m, y, z], cabinet.quaternion)


@dataclass(frozen=True)
class StartSpec:
    """The tool's pose at the start of an episode: fingers down, position tool_m +- half_width_m.

    With `start=perturbed` (paper, Table II) it is off by up to perturbed_half_width_m more and turned by up to
    perturbed_yaw_rad.
    """

    tool_m: Vector
    half_width_m: Vector
    perturbed_half_width_m: Vector
    perturbed_yaw_rad: float


@dataclass(frozen=True)
class EpisodeState:
    """The initial state of one episode. objects: name -> pose of the bodies in play (and of the cabinet).

    named: what the instruction means. tool: the end effector. travel_m: how far the drawer is open. opening: of the gripper,
    0 closed to 1 open.
    """

    objects: dict[str, Pose]
    named: str
    tool: Pose
    instruction: str
    travel_m: float = 0.0
    opening: float = 1.0


@dataclass(frozen=True)
class Snapshot:
    """A moment of N scenes ([...] = any batch dimensions, also none).

    position: [..., B, 3] metres and quaternion: [..., B, 4] (x, y, z, w) of the task's bodies, in the order of
    `Task.bodies`. tool: [..., 3]. opening: [...] of the gripper, 0 closed to 1 open. travel: [...] of the drawer, metres.
    """

    position: Array
    quaternion: Array
    tool: Array
    opening: Array
    travel: Array


class Task:
    """One task with a layout (`config/tasks/*.yaml`)."""

    name: ClassVar[str]
    layout_type: ClassVar[type]
    bodies: dict[str, Body]
    drawer: DrawerCabinet | None = None

    def __init__(self, layout):
        self.layout = layout

    @classmethod
    def load(cls, layout: "str | Path | object | None" = None) -> "Task":
        """The task with a layout by the name of a shipped file, by path, or as an object; None: the task's own.

        Raises ConfigError naming file and field.
        """
        if isinstance(layout, cls.layout_type):
            return cls(layout)
        path = Path(layout or cls.name)
        if not path.suffix:
            path = shipped_file("rlco_sim_bridge", "config/tasks", str(path), "task")
        return cls(from_mapping(cls.layout_type, load_yaml(path), str(path)))

    def check(self, variation: Variation) -> None:
        """Raise ConfigError when this task has no such variation."""
        if variation.objects == "unseen":
            raise ConfigError(f"task '{self.name}' has no held-out objects; objects=unseen is for pick_place")
        if variation.start == "missed":
            raise ConfigError(f"task '{self.name}' has no grasp to miss; start=missed is for pick_place")

    def sample(self, spec: TaskSpec, seed: int, variation: Variation) -> EpisodeState:
        """The initial state of episode `seed`, the same in every domain.

        All draws come from one generator in a fixed order; a change of that order changes every episode.
        """
        raise NotImplementedError

    def goal(self, state: EpisodeState) -> np.ndarray:
        """[3] where the named object has to get to, base frame."""
        raise NotImplementedError

    def judge(self, start: Snapshot, now: Snapshot, named: Array, in_play: Array) -> tuple[Array, Array]:
        """Success and failure, both [...] bool. named, in_play: [..., B] bool masks of bodies."""
        raise NotImplementedError

    def progress(self, start: Snapshot, now: Snapshot, named: Array, goal: Array) -> Array:
        """[...] how much of the way to the goal is done: 0 at the start, 1 at the goal. For dense rewards only."""
        before = ((chosen(start.position, named) - goal) ** 2).sum(-1) ** 0.5
        left = ((chosen(now.position, named) - goal) ** 2).sum(-1) ** 0.5
        return 1.0 - left / (before + 1e-6)

    def landmarks(self, objects: dict[str, Pose], travel_m: float) -> dict[str, Pose]:
        """name -> pose of everything that a scripted expert may need, from the present poses."""
        if self.drawer is None:
            return objects
        return objects | {"handle": self.drawer.handle(objects["cabinet"], travel_m)}


def draw_start(start: StartSpec, rng: np.random.Generator, seed: int, variation: Variation) -> Pose:
    """The tool's start pose; `rng` serves the nominal part, a stream of its own the perturbation."""
    position = np.array(start.tool_m) + np.array(start.half_width_m) * rng.uniform(-1, 1, 3)
    if variation.start != "perturbed":
        return Pose(position, TOOL_DOWN)
    extra = np.random.default_rng([seed, _PERTURBED_START_STREAM])
    position = position + np.array(start.perturbed_half_width_m) * extra.uniform(-1, 1, 3)
    return Pose(position, quaternion_multiply(yaw_quaternion(start.perturbed_yaw_rad * extra.uniform(-1, 1)), TOOL_DOWN))


def yaw_quaternion(yaw_rad: float) -> np.ndarray:
    return quaternion_from_rotation_vector([0.0, 0.0, yaw_rad])


def box(half: Vector, color: str, position: Vector = (0.0, 0.0, 0.0)) -> Part:
    return Part("box", half, color, position)


def chosen(values: Array, named: Array) -> Array:
    """[..., 3] of the named body out of [..., B, 3]."""
    return (values * named[..., None]).sum(-2)
