"""Where two fingers from above can hold the objects of pick_place, whichever way they lie."""

from dataclasses import dataclass

import numpy as np

from rlco_common.pose import Pose, rotation_matrix
from rlco_sim_bridge.experts.base import nearest_half_turn, tool_yaw

X, Y, Z = np.eye(3)
_LEVEL = 0.5              # an axis whose z component is smaller counts as horizontal
_YAW_COST_M = 0.05        # a turn by 1 rad costs as much as this distance
_ARM_M = 0.030             # where an arm of a T or cross is held, from the middle: the fingers clear the other arms
_ARM_SLIDE_M = 0.012


@dataclass(frozen=True)
class Hold:
    """One way to hold an object, in the object's frame. axis: along which the fingers close; None: any horizontal one.

    across: the axis is instead the horizontal one perpendicular to this (a cylinder's). width_m: between the fingers.
    slide_m: fingers on both sides, this far off perpendicular to their axis, can slide to the point without hitting anything.
    """

    width_m: float
    point_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    axis: np.ndarray | None = None
    across: np.ndarray | None = None
    slide_m: float = 0.03


def _bar(point_m, axis):
    """The two ways to hold a square bar at a point: across `axis` when the object lies flat, across z when on edge."""
    return tuple(Hold(0.025, point_m, closing, slide_m=_ARM_SLIDE_M) for closing in (axis, Z))


HOLDS: dict[str, tuple[Hold, ...]] = {
    "cube": tuple(Hold(0.04, axis=axis) for axis in (X, Y, Z)),
    "ball": (Hold(0.048),),
    "cylinder": (Hold(0.04, across=Z),),
    "box": (Hold(0.03, axis=X), Hold(0.04, axis=Z)),
    "L_shape": (*_bar((-0.0125, 0.018, 0.0), X), *_bar((0.023, -0.0275, 0.0), Y)),
    "T_shape": (*_bar((-0.0125, _ARM_M, 0.0), X), *_bar((-0.0125, -_ARM_M, 0.0), X), *_bar((0.020, 0.0, 0.0), Y)),
    "cross": (*_bar((0.0, _ARM_M, 0.0), X), *_bar((0.0, -_ARM_M, 0.0), X),
              *_bar((_ARM_M, 0.0, 0.0), Y), *_bar((-_ARM_M, 0.0, 0.0), Y)),
}


@dataclass(frozen=True)
class Grasp:
    """A hold in the base frame. point: [3] between the fingers. yaw_rad: of the tool. width_m, slide_m: see Hold."""

    point: np.ndarray
    yaw_rad: float
    width_m: float
    slide_m: float = _ARM_SLIDE_M


def nearest_grasp(shape: str, pose: Pose, tool: Pose) -> Grasp:
    """The possible grasp of an object at `pose` that the tool reaches with the least travel and turning."""
    yaw, rotation = tool_yaw(tool), rotation_matrix(pose.quaternion)
    grasps = [grasp for hold in HOLDS[shape] if (grasp := _placed(hold, pose, rotation, yaw)) is not None]
    if not grasps:     # it balances on a corner: press from above along the most level axis
        grasps = [Grasp(pose.position, yaw, 0.04)]
    return min(grasps, key=lambda grasp: np.linalg.norm(grasp.point[:2] - tool.position[:2])
               + _YAW_COST_M * abs(grasp.yaw_rad - yaw))


def _placed(hold: Hold, pose: Pose, rotation, yaw: float) -> Grasp | None:
    point = pose.position + rotation @ hold.point_m
    if hold.axis is not None:
        axis = rotation @ hold.axis
        if abs(axis[2]) > _LEVEL:
            return None
    elif hold.across is not None and abs((rotation @ hold.across)[2]) < 1.0 - _LEVEL:
        axis = np.cross(Z, rotation @ hold.across)
    else:
        return Grasp(point, yaw, hold.width_m, hold.slide_m)
    # the fingers of a tool at yaw 0 close along y
    return Grasp(point, nearest_half_turn(np.arctan2(-axis[0], axis[1]), yaw), hold.width_m, hold.slide_m)
