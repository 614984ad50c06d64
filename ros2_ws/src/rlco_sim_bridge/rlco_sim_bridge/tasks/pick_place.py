"""pick_place: grasp the object that the instruction names and put it into the container."""

from dataclasses import dataclass

import numpy as np

from rlco_common.errors import ConfigError
from rlco_common.pose import Pose, quaternion_multiply
from rlco_sim_bridge.tasks.base import (
    TOOL_DOWN,
    Body,
    EpisodeState,
    StartSpec,
    Task,
    box,
    chosen,
    draw_start,
    yaw_quaternion,
)
from rlco_sim_bridge.tasks.shapes import SHAPES

CONTAINER = "container"
_MISSED_START_STREAM = 0x3155


@dataclass(frozen=True)
class ContainerSpec:
    """A square tray. size_m: outer side and height, wall_m: thickness of walls and floor."""

    side_m: float
    height_m: float
    wall_m: float

    @property
    def inner_half_m(self) -> float:
        return self.side_m / 2 - self.wall_m


@dataclass(frozen=True)
class Region:
    """A rectangle on the table, base frame: from min_m to max_m, x and y."""

    min_m: tuple[float, float]
    max_m: tuple[float, float]

    def __post_init__(self):
        if not all(low < high for low, high in zip(self.min_m, self.max_m, strict=True)):
            raise ValueError("min_m must be below max_m")

    def draw(self, rng) -> np.ndarray:
        return rng.uniform(self.min_m, self.max_m)


@dataclass(frozen=True)
class MissedSpec:
    """What a missed grasp leaves: the object pushed aside, the hand closed and empty on the way from it to the container.

    half_width_m: off that way, along x and y. height_m: lowest and highest of the tool; closed fingers at the lowest clear
    every object. half_width_rad: yaw. pushed_half_width_m: of the object, along x and y.
    """

    half_width_m: float
    height_m: tuple[float, float]
    half_width_rad: float
    pushed_half_width_m: float

    def draw(self, seed: int, object_m: np.ndarray, container_m: np.ndarray) -> tuple[np.ndarray, Pose]:
        """The object's place [2] and the tool's pose in episode `seed`. object_m, container_m: [2] on the table."""
        rng = np.random.default_rng([seed, _MISSED_START_STREAM])
        share, height, yaw = rng.random(), rng.uniform(*self.height_m), self.half_width_rad * rng.uniform(-1, 1)
        pushed_m = object_m + self.pushed_half_width_m * rng.uniform(-1, 1, 2)
        tool_m = pushed_m + share * (container_m - pushed_m) + self.half_width_m * rng.uniform(-1, 1, 2)
        return pushed_m, Pose([*tool_m, height], quaternion_multiply(yaw_quaternion(yaw), TOOL_DOWN))


@dataclass(frozen=True)
class PickPlaceLayout:
    """Where things start and what counts as success; see config/tasks/pick_place.yaml for the meaning of each field."""

    shapes: tuple[str, ...]
    unseen_shapes: tuple[str, ...]
    object_region: Region
    container_region: Region
    container_yaw_half_width_rad: float
    container: ContainerSpec
    start: StartSpec
    placed_below_m: float
    released_opening: float
    reach: Region
    missed: MissedSpec | None = None

    def __post_init__(self):
        unknown = sorted({*self.shapes, *self.unseen_shapes} - SHAPES.keys())
        if unknown:
            raise ValueError(f"no shape {', '.join(unknown)}; there are {', '.join(SHAPES)}")
        if not self.shapes or set(self.shapes) & set(self.unseen_shapes):
            raise ValueError("shapes must not be empty, and a shape cannot be both seen and unseen")


class PickPlace(Task):
    """Success: the named object's centre is inside the container's walls, lower than placed_below_m (6 cm) above the table,
    and the gripper is open by at least released_opening (0.8 of its 8 cm).

    Failure: the object has left `reach` (horizontally) or fell off the table (2 cm below its top). The container is fixed
    to the table. Objects are keyed by shape; the instruction says the shape with a space for the underscore.
    """

    name = "pick_place"
    layout_type = PickPlaceLayout

    def __init__(self, layout: PickPlaceLayout):
        super().__init__(layout)
        self.bodies = {CONTAINER: _tray(layout.container)} | {
            name: SHAPES[name] for name in (*layout.shapes, *layout.unseen_shapes)}
        self._container = list(self.bodies).index(CONTAINER)

    def check(self, variation):
        if variation.objects == "unseen" and not self.layout.unseen_shapes:
            raise ConfigError("this layout of pick_place has no unseen_shapes; objects=unseen needs at least one")
        if variation.start == "missed" and self.layout.missed is None:
            raise ConfigError("this layout of pick_place has no 'missed', which start=missed needs; see the shipped layout")

    def sample(self, spec, seed, variation):
        layout, rng = self.layout, np.random.default_rng(seed)
        # one number picks the shape from either list, so that objects=unseen changes nothing else of the episode
        which, wording = rng.random(), int(rng.integers(len(spec.instructions)))
        shapes = layout.shapes if variation.objects == "seen" else layout.unseen_shapes
        shape = shapes[int(which * len(shapes))]
        position, yaw = layout.object_region.draw(rng), rng.uniform(-np.pi, np.pi)
        container_position = layout.container_region.draw(rng)
        container_yaw = layout.container_yaw_half_width_rad * rng.uniform(-1, 1)
        tool = draw_start(layout.start, rng, seed, variation)
        missed = variation.start == "missed"
        if missed:
            position, tool = layout.missed.draw(seed, position, container_position)
        objects = {CONTAINER: Pose([*container_position, 0.0], yaw_quaternion(container_yaw)),
                   shape: Pose([*position, SHAPES[shape].height_m], yaw_quaternion(yaw))}
        return EpisodeState(objects, shape, tool, spec.instruction(wording, object=shape.replace("_", " ")),
                            opening=0.0 if missed else 1.0)

    def goal(self, state):
        return state.objects[CONTAINER].position + np.array([0.0, 0.0, self.layout.container.height_m / 2])

    def judge(self, start, now, named, in_play):
        layout = self.layout
        place = chosen(now.position, named)
        offset = place - now.position[..., self._container, :]
        z, w = now.quaternion[..., self._container, 2], now.quaternion[..., self._container, 3]
        cosine, sine = 1.0 - 2.0 * z * z, 2.0 * z * w
        along = cosine * offset[..., 0] + sine * offset[..., 1]
        across = cosine * offset[..., 1] - sine * offset[..., 0]
        inside = (abs(along) < layout.container.inner_half_m) & (abs(across) < layout.container.inner_half_m)
        success = inside & (place[..., 2] < layout.placed_below_m) & (now.opening >= layout.released_opening)
        (x_min, y_min), (x_max, y_max) = layout.reach.min_m, layout.reach.max_m
        x, y = place[..., 0], place[..., 1]
        return success, (x < x_min) | (x > x_max) | (y < y_min) | (y > y_max) | (place[..., 2] < -0.02)


def _tray(spec: ContainerSpec) -> Body:
    half, wall, height = spec.side_m / 2, spec.wall_m / 2, spec.height_m / 2
    return Body((
        box((half, half, wall), CONTAINER, (0.0, 0.0, wall)),
        box((wall, half, height), CONTAINER, (half - wall, 0.0, height)),
        box((wall, half, height), CONTAINER, (wall - half, 0.0, height)),
        box((half - 2 * wall, wall, height), CONTAINER, (0.0, half - wall, height)),
        box((half - 2 * wall, wall, height), CONTAINER, (0.0, wall - half, height)),
    ), 0.0, fixed=True)
