"""Motion-planning expert of pick_place: the scripted expert's decisions, with collision-free paths wherever it travels.

Moves in contact (down to the object, up with it, down into the container) are straight and the scripted expert's own;
everything between them follows a path of ArmPlanner around the table, the container and the object, or with the object in hand.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_common.pose import (
    Pose,
    quaternion_conjugate,
    quaternion_multiply,
    rotation_angle,
    rotation_matrix,
)
from rlco_sim_bridge.experts import pick_place
from rlco_sim_bridge.experts.base import SETTLE_S, Waypoint
from rlco_sim_bridge.experts.planner import ArmPlanner, Box, PlanningError, StartInCollision
from rlco_sim_bridge.scene_state import SceneState
from rlco_sim_bridge.tasks import load_task
from rlco_sim_bridge.tasks.base import Body, Part

FINGER_TRAVEL_M = 0.04
TABLE = Box("table", Pose([0.3, 0.0, -0.05], [0.0, 0.0, 0.0, 1.0]), (0.7, 0.8, 0.05))
MARGIN_M = 0.004           # the fingers of an aligned hand pass a cylinder's top at 7 mm
MAX_TILT_RAD = 0.4
TIME_LIMIT_S = 5.0
STRAYED_M = 0.03           # from its path: plan again
MOVED_M = 0.015            # the goal, or the object in the hand, since the path was planned: plan again
MOVED_RAD = 0.3
AHEAD_RAD = 0.3
CUT_M = 0.010              # a shortcut may pass the path's points at this distance
UP_M = 0.04


class Expert(pick_place.Expert):
    """Plans from the measured joint positions, and again after a disturbance.

    Where it touches something already it goes straight up, and where there is no path it does what the scripted expert would
    do in that tick. plans, refusals: how often it got a path or did not. The container is that of the task's shipped layout.
    Raises ConfigError when the planning libraries or the robot's description are not installed.
    """

    lift_m = 0.05

    def __init__(self, contract: Contract, rng: np.random.Generator, noise: float = 0.0):
        super().__init__(contract, rng, noise)
        self._planner = ArmPlanner(panda_urdf(), margin_m=MARGIN_M)
        self._path: list[Pose] = []
        self._at = 0
        self._key: tuple[bool, Pose, Pose] | None = None
        self.plans = self.refusals = 0

    def waypoint(self, scene: SceneState) -> Waypoint:
        direct = super().waypoint(scene)
        if not direct.travels:
            self._path = []
            return direct
        if self._strayed(scene) or self._outdated(scene, direct):
            try:
                self._plan(scene, direct)
            except PlanningError as refusal:
                self.refusals += 1
                self._path = []
                if isinstance(refusal, StartInCollision):
                    return Waypoint(scene.tool.position + np.array([0.0, 0.0, UP_M]), scene.tool.quaternion, direct.gripper)
                return direct
        return self._next(scene, direct)

    def _plan(self, scene: SceneState, goal: Waypoint) -> None:
        """Set the path from where the arm is to `goal`."""
        held = goal.gripper < 1.0
        thing = _bounding_box(scene.named, _bodies()[scene.named], scene.objects[scene.named])
        obstacles = [TABLE, *container_boxes(scene)]
        self._planner.set_obstacles(obstacles if held else [*obstacles, thing])
        self._planner.hold(Box(thing.name, _relative(scene.tool, thing.pose), thing.half_size_m) if held else None,
                           scene.gripper * FINGER_TRAVEL_M)
        pose = Pose(goal.position, goal.quaternion)
        joints = self._planner.plan(scene.joint_positions, pose, seed=self.plans, time_limit_s=TIME_LIMIT_S,
                                    max_tilt_rad=MAX_TILT_RAD)
        self._path, self._at = self._planner.tool_path(joints), 0
        self._key = held, pose, _relative(scene.tool, scene.objects[scene.named])
        self.plans += 1

    def _strayed(self, scene: SceneState) -> bool:
        if not self._path:
            return True
        away = [np.linalg.norm(pose.position - scene.tool.position) for pose in self._path]
        return min(away) > STRAYED_M

    def _outdated(self, scene: SceneState, goal: Waypoint) -> bool:
        """The goal is another one than that of the path, or what is held has slipped."""
        held, pose, in_hand = self._key
        if held != (goal.gripper < 1.0) or _differs(pose, Pose(goal.position, goal.quaternion)):
            return True
        return held and _differs(in_hand, _relative(scene.tool, scene.objects[scene.named]))

    def _next(self, scene: SceneState, goal: Waypoint) -> Waypoint:
        """The farthest point of the path that one tick can reach; it never goes back along the path."""
        tool = scene.tool.position + SETTLE_S * scene.tool_velocity_m_s
        ahead = self._path[self._at:]
        self._at += int(np.argmin([np.linalg.norm(pose.position - tool) for pose in ahead[:10]]))
        reach = self._at
        for index in range(self._at, len(self._path)):
            pose = self._path[index]
            if (np.abs(pose.position - tool).max() > self._action.max_translation_m
                    or rotation_angle(pose, scene.tool) > AHEAD_RAD or self._cuts(tool, index)):
                break
            reach = index
        if reach == len(self._path) - 1:
            return goal
        pose = self._path[max(reach, min(self._at + 1, len(self._path) - 1))]
        return Waypoint(pose.position, pose.quaternion, goal.gripper)

    def _cuts(self, tool: np.ndarray, index: int) -> bool:
        """Straight from `tool` to the path's point `index` misses a point between by more than CUT_M."""
        way = self._path[index].position - tool
        between = np.array([pose.position for pose in self._path[self._at:index]]).reshape(-1, 3) - tool
        share = np.clip(between @ way / max(way @ way, 1e-9), 0.0, 1.0)
        return bool((np.linalg.norm(between - share[:, None] * way, axis=1) > CUT_M).any())


def panda_urdf() -> Path:
    """ManiSkill's Panda, found without importing ManiSkill. Raises ConfigError when it is not installed."""
    spec = find_spec("mani_skill")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the planned expert needs the robot's description, which comes with mani_skill; "
                          "`pip install mani_skill==3.0.1`, or use the scripted expert")
    return Path(spec.submodule_search_locations[0]) / "assets" / "robots" / "panda" / "panda_v2.urdf"


def _relative(frame: Pose, pose: Pose) -> Pose:
    """`pose` in `frame`."""
    turned = quaternion_conjugate(frame.quaternion)
    return Pose(rotation_matrix(turned) @ (pose.position - frame.position), quaternion_multiply(turned, pose.quaternion))


def _differs(a: Pose, b: Pose) -> bool:
    return bool(np.linalg.norm(a.position - b.position) > MOVED_M or rotation_angle(a, b) > MOVED_RAD)


def _half_size(part: Part) -> np.ndarray:
    """[3] half extents of a primitive's bounding box."""
    if part.kind == "sphere":
        return np.full(3, part.size[0])
    if part.kind == "cylinder":
        return np.array([part.size[0], part.size[0], part.size[1]])
    return np.array(part.size)


@cache
def _bodies() -> dict[str, Body]:
    return load_task("pick_place").bodies


def container_boxes(scene: SceneState) -> list[Box]:
    """Floor and walls of the container, base frame."""
    name = pick_place.CONTAINER
    pose, body = scene.objects[name], _bodies()[name]
    return [Box(f"{name} {i}", Pose(pose.position + rotation_matrix(pose.quaternion) @ part.position, pose.quaternion),
                tuple(_half_size(part))) for i, part in enumerate(body.parts)]


def _bounding_box(name: str, body: Body, pose: Pose) -> Box:
    """One box around all parts of a body at `pose`."""
    low = np.min([np.array(part.position) - _half_size(part) for part in body.parts], axis=0)
    high = np.max([np.array(part.position) + _half_size(part) for part in body.parts], axis=0)
    centre = pose.position + rotation_matrix(pose.quaternion) @ ((low + high) / 2)
    return Box(name, Pose(centre, pose.quaternion), tuple((high - low) / 2))
