"""push_cube: three cubes of different colours in a row; push the one that the instruction names away from the robot."""

from dataclasses import dataclass

import numpy as np

from rlco_common.pose import Pose
from rlco_sim_bridge.tasks.base import Body, EpisodeState, StartSpec, Task, box, draw_start, yaw_quaternion

IN_PLAY = 3


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
    start: StartSpec
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


class PushCube(Task):
    """Success: the named cube is push_distance_m (7 cm) farther along +x, every other within disturbed_m (2 cm) of its start.

    Failure: another cube moved more than failure_m (5 cm). Both measured horizontally. Objects are keyed by colour, in the
    order of the row from -y to +y.
    """

    name = "push_cube"
    layout_type = PushCubeLayout

    def __init__(self, layout: PushCubeLayout):
        super().__init__(layout)
        half = layout.cube_size_m / 2
        self.bodies = {color: Body((box((half, half, half), color),), half) for color in layout.colors}

    def sample(self, spec, seed, variation):
        layout, rng = self.layout, np.random.default_rng(seed)
        colors = [layout.colors[i] for i in rng.permutation(len(layout.colors))[:IN_PLAY]]
        named = colors[rng.integers(IN_PLAY)]
        wording = int(rng.integers(len(spec.instructions)))
        center = np.array(layout.row_center_m) + np.array(layout.row_center_half_width_m) * rng.uniform(-1, 1, 2)
        spacing = rng.uniform(*layout.spacing_m)
        depth = layout.depth_half_width_m * rng.uniform(-1, 1, IN_PLAY)
        yaw = layout.yaw_half_width_rad * rng.uniform(-1, 1, IN_PLAY)
        tool = draw_start(layout.start, rng, seed, variation)
        objects = {}
        for i, color in enumerate(colors):
            position = [center[0] + depth[i], center[1] + (i - (IN_PLAY - 1) / 2) * spacing, layout.cube_size_m / 2]
            objects[color] = Pose(position, yaw_quaternion(yaw[i]))
        return EpisodeState(objects, named, tool, spec.instruction(wording, color=named))

    def goal(self, state):
        return state.objects[state.named].position + np.array([self.layout.push_distance_m, 0.0, 0.0])

    def judge(self, start, now, named, in_play):
        moved = (now.position - start.position)[..., :2]
        others = ((moved**2).sum(-1) ** 0.5) * (in_play & ~named)
        pushed = ((moved[..., 0] >= self.layout.push_distance_m) & named).any(-1)
        return pushed & (others <= self.layout.disturbed_m).all(-1), (others > self.layout.failure_m).any(-1)
