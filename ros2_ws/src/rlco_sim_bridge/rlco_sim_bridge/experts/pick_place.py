"""Scripted expert of pick_place: over the object, down, close, carry it over the container, let go."""

import numpy as np

from rlco_sim_bridge.experts.base import ScriptedExpert, Waypoint, down, tool_yaw
from rlco_sim_bridge.experts.grasps import Grasp, nearest_grasp
from rlco_sim_bridge.scene_state import SceneState

CONTAINER = "container"
HAND_OPENING_M = 0.08
LOWEST_M = 0.016           # of the tool point; the fingertips are 1 cm below it
HOVER_M = 0.047            # of the tool above the grasp, so that the fingertips clear an object of twice that grasp's height
FINGER_HALF_WIDTH_M = 0.009
REACHED_M = 0.012          # so near to the grasp's height the fingers may close
TURNED_RAD = 0.25
CARRY_M = 0.115            # of the tool, with anything the fingers hold, over the container's walls
RELEASE_M = 0.065          # of the tool over the container
HELD_M = 0.02              # a held object has slipped by less than this, along each axis of the tool
IN_THE_AIR_M = 0.065       # no object's middle is that high while it stands or lies, on another one's edge or not
OVER_M = 0.035             # the object is over the container if it is this near to its middle, along x and y


class Expert(ScriptedExpert):
    """Takes the nearest of the grasps that the object offers as it lies; ScriptedExpert says the rest."""

    lift_m = 0.075         # height of the tool from which on it carries the object sideways

    def waypoint(self, scene: SceneState) -> Waypoint:
        grasp = nearest_grasp(scene.named, scene.objects[scene.named], scene.tool)
        return _carry(scene, self.lift_m) if holds(scene, grasp) else _approach(scene, grasp)


def holds(scene: SceneState, grasp: Grasp) -> bool:
    """The fingers have closed on the object, or it is in the air with them: wedged between open fingers, for instance."""
    closed = scene.gripper * HAND_OPENING_M < grasp.width_m + 0.008
    if closed and (np.abs(_miss(scene, grasp)) < HELD_M).all():
        return True
    held = scene.objects[scene.named].position
    return held[2] > IN_THE_AIR_M and bool(np.linalg.norm(held - scene.tool.position) < 2 * HELD_M)


def _miss(scene: SceneState, grasp: Grasp) -> np.ndarray:
    """[3] from the tool to the grasp: across the fingers' width, along their closing axis, up."""
    x, y, z = grasp.point - scene.tool.position
    yaw = tool_yaw(scene.tool)
    return np.array([np.cos(yaw) * x + np.sin(yaw) * y, np.cos(yaw) * y - np.sin(yaw) * x, z])


def _approach(scene: SceneState, grasp: Grasp) -> Waypoint:
    tool = scene.tool
    target = np.array([*grasp.point[:2], max(grasp.point[2], LOWEST_M)])
    across, along, _ = np.abs(_miss(scene, grasp))
    room = HAND_OPENING_M / 2 - grasp.width_m / 2
    turned = abs(grasp.yaw_rad - tool_yaw(tool)) < TURNED_RAD
    astride = turned and along < room - 0.004 and across < grasp.slide_m
    height = tool.position[2] - target[2]
    if astride:
        closes = across < FINGER_HALF_WIDTH_M + 0.003 and height < REACHED_M
        return Waypoint(target, down(grasp.yaw_rad), 0.0 if closes else 1.0)
    hover = np.array([*target[:2], target[2] + HOVER_M])
    if height < HOVER_M - 0.015 and np.hypot(across, along) < 0.10:      # up first: sideways it would hit the object
        return Waypoint(np.array([*tool.position[:2], hover[2]]), down(grasp.yaw_rad), 1.0)
    return Waypoint(hover, down(grasp.yaw_rad), 1.0, travels=True)


def _carry(scene: SceneState, lift_m: float) -> Waypoint:
    tool, held = scene.tool, scene.objects[scene.named]
    still = down(tool_yaw(tool))
    way = scene.objects[CONTAINER].position[:2] - held.position[:2]
    over = tool.position[:2] + way
    if np.abs(way).max() < OVER_M:
        released = tool.position[2] < RELEASE_M + 0.02
        return Waypoint(np.array([*over, RELEASE_M]), still, 1.0 if released else 0.0)
    if tool.position[2] < lift_m:
        return Waypoint(np.array([*(tool.position[:2] + 0.3 * way), CARRY_M]), still, 0.0)
    return Waypoint(np.array([*over, CARRY_M]), still, 0.0, travels=True)
