"""push_cube: three cubes of different colours in a row; push the one that the instruction names away from the robot."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlco_common.contract import TaskSpec
from rlco_common.pose import Pose, quaternion_from_rotation_vector
from rlco_common.resources import shipped_file
from rlco_common.strict import from_mapping, load_yaml

NAME = "push_cube"
IN_PLAY = 3
TOOL_DOWN = np.array([1.0, 0.0, 0.0, 0.0])   # (x, y, z, w): fingers point down and open along the base's y axis


@dataclass(frozen=True)
class PushCubeLayout:
    """Where things start and what counts as success; see config/tasks/push_cube.yaml for the meaning of each field."""

    colors: tuple[str, ...]
    cube_size_m: float
    row_center_m: tuple[float, float]
    row_center_half_width_m: tuple[float, float]
    spacing_m: tuple[float, float]
    depth_half_width_m: float
    yaw_half_width_rad: float
    tool_start_m: tuple[float, float, float]
    tool_start_half_width_m: tuple[float, float, float]
    push_distance_m: float
    disturbed_m: float
    failure_m: float

    def __post_init__(self):
        if len(set(self.colors)) < IN_PLAY:
            raise ValueError(f"push_cube needs at least {IN_PLAY} different colours")
        if self.spacing_m[0] > self.spacing_m[1]:
            raise ValueError("spacing_m must be [smallest, largest]")
        if self.spacing_m[0] < 1.5 * self.cube_size_m:
            raise ValueError("the smallest spacing_m lets turned cubes touch; keep it above 1.5 cube_size_m")
        if not 0 < self.disturbed_m <= self.failure_m:
            raise ValueError("disturbed_m must be positive and at most failure_m")


@dataclass(frozen=True)
class PushCubeState:
    """The initial state of one episode. objects: colour -> pose, in the order of the row from -y to +y."""

    objects: dict[str, Pose]
    named: str
    tool: Pose
    instruction: str


def load_layout(source: "str | Path | PushCubeLayout" = NAME) -> PushCubeLayout:
    """A layout by the name of a shipped file, by path, or as it is. Raises ConfigError naming file and field."""
    if isinstance(source, PushCubeLayout):
        return source
    path = Path(source)
    if not path.suffix:
        path = shipped_file("rlco_sim_bridge", "config/tasks", str(source), "task")
    return from_mapping(PushCubeLayout, load_yaml(path), str(path))


def sample(layout: PushCubeLayout, task: TaskSpec, seed: int) -> PushCubeState:
    """The initial state of episode `seed`, the same in every domain.

    All draws come from one generator in a fixed order; a change of that order changes every episode.
    """
    rng = np.random.default_rng(seed)
    colors = [layout.colors[i] for i in rng.permutation(len(layout.colors))[:IN_PLAY]]
    named = colors[rng.integers(IN_PLAY)]
    wording = int(rng.integers(len(task.instructions)))
    center = np.array(layout.row_center_m) + np.array(layout.row_center_half_width_m) * rng.uniform(-1, 1, 2)
    spacing = rng.uniform(*layout.spacing_m)
    depth = layout.depth_half_width_m * rng.uniform(-1, 1, IN_PLAY)
    yaw = layout.yaw_half_width_rad * rng.uniform(-1, 1, IN_PLAY)
    tool = np.array(layout.tool_start_m) + np.array(layout.tool_start_half_width_m) * rng.uniform(-1, 1, 3)
    objects = {}
    for i, color in enumerate(colors):
        position = [center[0] + depth[i], center[1] + (i - (IN_PLAY - 1) / 2) * spacing, layout.cube_size_m / 2]
        objects[color] = Pose(position, quaternion_from_rotation_vector([0.0, 0.0, yaw[i]]))
    return PushCubeState(objects, named, Pose(tool, TOOL_DOWN), task.instruction(wording, color=named))


def goal(layout: PushCubeLayout, state: PushCubeState) -> np.ndarray:
    """[3] position at which the named cube counts as pushed."""
    return state.objects[state.named].position + np.array([layout.push_distance_m, 0.0, 0.0])


def judge(layout: PushCubeLayout, start, now, named):
    """Success and failure of push_cube, on numpy arrays or torch tensors alike.

    start, now: [..., cubes, 2] horizontal positions at the start and now; named: [..., cubes] True for the named cube.
    success: the named cube is push_distance_m farther along +x and every other cube within disturbed_m of its start.
    failure: another cube moved more than failure_m. Both [...] bool.
    """
    moved = now - start
    others = ((moved**2).sum(-1) ** 0.5) * ~named
    pushed = ((moved[..., 0] >= layout.push_distance_m) & named).any(-1)
    return pushed & (others <= layout.disturbed_m).all(-1), (others > layout.failure_m).any(-1)
