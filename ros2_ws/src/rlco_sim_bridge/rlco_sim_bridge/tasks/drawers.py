"""open_drawer and close_drawer: a cabinet on the table with one drawer and a T-shaped handle towards the robot."""

from dataclasses import dataclass

import numpy as np

from rlco_common.pose import Pose
from rlco_sim_bridge.tasks.base import DrawerCabinet, EpisodeState, StartSpec, Task, box, draw_start, yaw_quaternion

CABINET, HANDLE = "cabinet", "handle"

DEPTH_M, WIDTH_M, HEIGHT_M = 0.26, 0.22, 0.125      # of the cabinet, along its x, y, z
WALL_M = 0.012
HANDLE_HEIGHT_M = 0.095
STEM_M = 0.04                                       # between the drawer's front and the handle's bar
BAR_HALF_M = (0.006, 0.028, 0.012)
MAX_TRAVEL_M = 0.16


@dataclass(frozen=True)
class DrawerLayout:
    """Where the cabinet stands and how far the drawer has to move; see config/tasks/{open,close}_drawer.yaml."""

    cabinet_m: tuple[float, float]
    cabinet_half_width_m: tuple[float, float]
    cabinet_yaw_half_width_rad: float
    start_travel_m: tuple[float, float]
    success_travel_m: float
    start: StartSpec

    def __post_init__(self):
        if not 0.0 <= self.start_travel_m[0] <= self.start_travel_m[1] <= MAX_TRAVEL_M:
            raise ValueError(f"start_travel_m must be [smallest, largest] within 0 and {MAX_TRAVEL_M}")
        if not 0.0 < self.success_travel_m < MAX_TRAVEL_M:
            raise ValueError(f"success_travel_m must lie between 0 and {MAX_TRAVEL_M}")


@dataclass(frozen=True)
class CloseDrawerLayout(DrawerLayout):
    """failure_travel_m: how far beyond its start the drawer may be pulled out."""

    failure_travel_m: float


class _DrawerTask(Task):
    def __init__(self, layout: DrawerLayout):
        super().__init__(layout)
        self.bodies = {}
        self.drawer = _cabinet()

    def sample(self, spec, seed, variation):
        layout, rng = self.layout, np.random.default_rng(seed)
        wording = int(rng.integers(len(spec.instructions)))
        position = np.array(layout.cabinet_m) + np.array(layout.cabinet_half_width_m) * rng.uniform(-1, 1, 2)
        yaw = layout.cabinet_yaw_half_width_rad * rng.uniform(-1, 1)
        travel = rng.uniform(*layout.start_travel_m)
        tool = draw_start(layout.start, rng, seed, variation)
        cabinet = Pose([*position, 0.0], yaw_quaternion(yaw))
        return EpisodeState({CABINET: cabinet}, HANDLE, tool, spec.instruction(wording), travel)

    def goal(self, state):
        return self.drawer.handle(state.objects[CABINET], self.layout.success_travel_m).position

    def progress(self, start, now, named, goal):
        return (now.travel - start.travel) / (self.layout.success_travel_m - start.travel)


class OpenDrawer(_DrawerTask):
    """Success: the drawer is open by more than success_travel_m (10 cm). There is no failure but the time limit."""

    name = "open_drawer"
    layout_type = DrawerLayout

    def judge(self, start, now, named, in_play):
        success = now.travel > self.layout.success_travel_m
        return success, success & ~success


class CloseDrawer(_DrawerTask):
    """Success: the drawer is open by less than success_travel_m (1.2 cm).

    Failure: it was pulled out by failure_travel_m (3 cm) beyond where it started.
    """

    name = "close_drawer"
    layout_type = CloseDrawerLayout

    def judge(self, start, now, named, in_play):
        return now.travel < self.layout.success_travel_m, now.travel - start.travel > self.layout.failure_travel_m


def _cabinet() -> DrawerCabinet:
    front, side, top = -DEPTH_M / 2, WIDTH_M / 2, HEIGHT_M
    half_wall, half_depth = WALL_M / 2, DEPTH_M / 2
    cabinet = (
        box((half_depth, side, half_wall), CABINET, (0.0, 0.0, half_wall)),
        box((half_depth, side, half_wall), CABINET, (0.0, 0.0, top - half_wall)),
        box((half_depth, half_wall, top / 2), CABINET, (0.0, side - half_wall, top / 2)),
        box((half_depth, half_wall, top / 2), CABINET, (0.0, half_wall - side, top / 2)),
        box((half_wall, side, top / 2), CABINET, (half_depth - half_wall, 0.0, top / 2)),
    )
    inner, low = side - WALL_M - 0.004, WALL_M + 0.004      # the drawer's half width and its lowest point
    plate, length = 0.006, DEPTH_M - WALL_M - 0.02
    wall_height = 0.03
    middle = front + length / 2
    bar_x = front - 2 * plate - STEM_M - BAR_HALF_M[0]
    drawer = (
        box((plate, side - 0.004, top / 2 - 0.006), "drawer", (front - plate, 0.0, top / 2)),
        box((length / 2, inner, 0.003), "drawer", (middle, 0.0, low + 0.003)),
        box((length / 2, 0.004, wall_height), "drawer", (middle, inner - 0.004, low + wall_height)),
        box((length / 2, 0.004, wall_height), "drawer", (middle, 0.004 - inner, low + wall_height)),
        box((0.004, inner, wall_height), "drawer", (front + length - 0.004, 0.0, low + wall_height)),
        box((STEM_M / 2, 0.006, 0.006), HANDLE, (front - 2 * plate - STEM_M / 2, 0.0, HANDLE_HEIGHT_M)),
        box(BAR_HALF_M, HANDLE, (bar_x, 0.0, HANDLE_HEIGHT_M)),
    )
    grasp = (front - 2 * plate - STEM_M / 2, 0.0, HANDLE_HEIGHT_M)
    return DrawerCabinet(cabinet, drawer, grasp, MAX_TRAVEL_M)
