"""Scripted experts of open_drawer and close_drawer.

Both look at the handle's frame: x points into the cabinet, the origin is on the stem, midway between bar and drawer front.
"""

import numpy as np

from rlco_common.pose import Pose, rotation_matrix
from rlco_sim_bridge.experts.base import ScriptedExpert, Waypoint, down, nearest_half_turn, tool_yaw
from rlco_sim_bridge.scene_state import SceneState

HOVER_M = 0.06             # above the handle: fingertips, 1 cm below the tool point, clear the bar
LOW_M = 0.015              # so near to the handle's height the fingers hook

GAP_M = 0.010              # fingers go down if they are this near to the middle between bar and front
STRADDLE_M = 0.025         # and the stem this near to the middle between the open fingers
HOOKED_GAP_M = 0.028       # a finger within this of the middle is still behind the bar
HOOKED_OPENING = 0.5       # fingers as close together as this do not slip off the bar's ends
PULL_M = 0.10              # aim this far ahead of the handle

BAR_FRONT_M = -0.032       # where a push presses
FINGER_M = 0.010           # half a finger's width
STANDOFF_M = 0.035         # before a push, from the bar's front
BAR_HALF_WIDTH_M = 0.028
OVERSHOOT_M = 0.02


class OpenExpert(ScriptedExpert):
    """From above with open fingers astride the stem, down, close, and pull the bar along."""

    def waypoint(self, scene: SceneState) -> Waypoint:
        handle, tool = scene.objects[scene.named], scene.tool
        along, aside, above = _in_frame(handle, tool.position)
        turned = _aligned(handle, tool)
        if above < LOW_M and abs(along) < HOOKED_GAP_M and abs(aside) < STRADDLE_M:
            pulls = scene.gripper < HOOKED_OPENING
            return _at(handle, turned, [-PULL_M if pulls else 0.0, 0.0, 0.0], 0.0)
        if abs(along) < GAP_M and abs(aside) < STRADDLE_M:
            return _at(handle, turned, [0.0, 0.0, 0.0], 1.0)
        if above < HOVER_M - 0.02 and abs(along) < 0.08 and abs(aside) < 0.10:    # up, before it hits the bar sideways
            return _at(handle, turned, [along, aside, HOVER_M], 1.0)
        return _at(handle, turned, [0.0, 0.0, HOVER_M], 1.0)


class CloseExpert(ScriptedExpert):
    """With closed fingers to the front of the bar, and push."""

    def waypoint(self, scene: SceneState) -> Waypoint:
        handle, tool = scene.objects[scene.named], scene.tool
        along, aside, above = _in_frame(handle, tool.position)
        turned = _aligned(handle, tool)
        in_front = BAR_FRONT_M - FINGER_M - along
        if in_front > -0.008 and abs(aside) < BAR_HALF_WIDTH_M and abs(above) < LOW_M:
            left = _in_frame(handle, scene.goal_m)[0]
            return _at(handle, turned, [left + OVERSHOOT_M + BAR_FRONT_M - FINGER_M, 0.0, 0.0], 0.0)
        if in_front > 0.5 * STANDOFF_M or above > HOVER_M - 0.02:
            height = 0.0 if in_front > 0.0 else HOVER_M
            return _at(handle, turned, [BAR_FRONT_M - FINGER_M - STANDOFF_M, 0.0, height], 0.0)
        return _at(handle, turned, [min(along, BAR_FRONT_M - FINGER_M), aside, HOVER_M], 0.0)


def _in_frame(handle: Pose, point) -> np.ndarray:
    """[3] a point of the base frame in the handle's frame."""
    return rotation_matrix(handle.quaternion).T @ (point - handle.position)


def _at(handle: Pose, quaternion, point, gripper) -> Waypoint:
    """A waypoint at a point of the handle's frame."""
    return Waypoint(handle.position + rotation_matrix(handle.quaternion) @ point, quaternion, gripper)


def _aligned(handle: Pose, tool: Pose) -> np.ndarray:
    """Fingers down, opening along the handle's bar."""
    x_axis = rotation_matrix(handle.quaternion)[:, 0]
    return down(nearest_half_turn(np.arctan2(x_axis[1], x_axis[0]), tool_yaw(tool)))
