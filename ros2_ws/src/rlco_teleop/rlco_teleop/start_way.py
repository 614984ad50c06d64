"""The way to the start pose: straight up from the table, then a planned way to the goal. Pure; poses in the base frame.

The planner knows what is told: the table, one block for everything that may stand on it, and the boxes of a file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rlco_common.contract import Contract, LimitSpec
from rlco_common.errors import RlcoError
from rlco_common.pose import Pose, quaternion_from_rotation_vector
from rlco_common.strict import from_mapping, load_yaml

STANDING = "what stands on the table"
LIFT_STEP_M = 0.005
CLEARANCE_M = 0.03      # of the tool above what stands on the table: fingertips are below the tool
TABLE_THICKNESS_M = 0.1
_TABLE_CENTRE_M, _TABLE_HALF_M = (0.3, 0.0), (0.7, 0.8)
_OUTSIDE_M = 1e-3       # of the workspace: rounding, no more


class StartError(RlcoError):
    """The arm cannot go to the start, or did not get there."""


@dataclass(frozen=True)
class Block:
    """A solid box that stands in the cell: its centre, half its sides, and its turn about the vertical."""

    name: str
    centre_m: tuple[float, float, float]
    half_size_m: tuple[float, float, float]
    yaw_rad: float = 0.0

    def __post_init__(self):
        if not min(self.half_size_m) > 0:
            raise ValueError(f"block '{self.name}' needs positive half sizes")

    @property
    def pose(self) -> Pose:
        return Pose(np.array(self.centre_m), quaternion_from_rotation_vector([0.0, 0.0, self.yaw_rad]))


@dataclass(frozen=True)
class _BlockFile:
    blocks: tuple[Block, ...]


def cell_blocks(contract: Contract, table_height_m: float, clear_height_m: float, file: str = "") -> list[Block]:
    """The table, everything that may stand on it up to clear_height_m inside the workspace, and the blocks of a YAML file.

    Raises ConfigError for a file that is not a list of `blocks`.
    """
    low, high = np.array(contract.limits.workspace_min_m), np.array(contract.limits.workspace_max_m)
    blocks = [Block("table", (*_TABLE_CENTRE_M, table_height_m - TABLE_THICKNESS_M / 2),
                    (*_TABLE_HALF_M, TABLE_THICKNESS_M / 2))]
    if clear_height_m > table_height_m:
        middle, half = (low + high) / 2, (high - low) / 2
        height = (clear_height_m - table_height_m) / 2
        blocks.append(Block(STANDING, (*middle[:2], table_height_m + height), (*half[:2], height)))
    if file:
        blocks += from_mapping(_BlockFile, load_yaml(Path(file)), file).blocks
    return blocks


class Planner(Protocol):
    """What a motion planner has to offer. Each method raises RlcoError with the reason."""

    def joints_at(self, pose: Pose, near: np.ndarray) -> np.ndarray:
        """Joint positions [n] with the tool at `pose`, near the given ones."""

    def touching(self, joints: np.ndarray) -> frozenset[str]:
        """What touches what at these joint positions, in words."""

    def plan(self, joints: np.ndarray, goal: Pose) -> list[Pose]:
        """The tool's poses along a collision-free way from these joint positions to `goal`."""


@dataclass(frozen=True)
class Lift:
    """How far straight up before anything moves sideways: at least by_m, and until the tool is above to_m."""

    by_m: float
    to_m: float


def lift(lift_m: float, clear_height_m: float) -> Lift:
    """clear_height_m: of what stands on the table."""
    return Lift(lift_m, clear_height_m + CLEARANCE_M)


def plan_way(planner: Planner, joints: np.ndarray, base: Pose, goal: Pose, up: Lift, limits: LimitSpec) -> list[Pose]:
    """Tool poses from `base` (the target that the arm holds now) straight up, and on to `goal`.

    joints: measured [n]. Raises StartError or the planner's error when there is no such way.
    """
    start, joints = _lifted(planner, joints, base, up, limits.workspace_max_m[2])
    way = planner.plan(joints, goal)
    for pose in way[1:]:
        if np.abs(pose.position - limits.clip_position(pose.position)).max() > _OUTSIDE_M:
            raise StartError(f"the way found leaves the workspace at {pose.position.round(3).tolist()} m, where the gate would "
                             "stop it; drive the arm nearer to the start, and try again")
    return start + way[1:]


def _lifted(planner, joints, base, up, top_m):
    """(poses straight up, joint positions at the last one). What touches at first may only be left, never joined by more."""
    poses, allowed = [base], None
    joints = planner.joints_at(base, joints)
    while True:
        touching = planner.touching(joints)
        if allowed is not None and touching - allowed:
            raise StartError(f"straight up from here {min(touching - allowed)}; drive the arm to a freer place, and try again")
        allowed = touching
        z, lifted_m = poses[-1].position[2], poses[-1].position[2] - base.position[2]
        at_top = z >= top_m - 1e-9
        if not touching and (at_top or (lifted_m >= up.by_m - 1e-9 and z >= up.to_m - 1e-9)):
            return poses, joints
        if at_top:
            raise StartError(f"straight above, at the top of the workspace, {min(touching)}; drive the arm to a freer "
                             "place, and try again")
        height = min(lifted_m + LIFT_STEP_M, top_m - base.position[2])
        poses.append(Pose(base.position + np.array([0.0, 0.0, height]), base.quaternion))
        joints = planner.joints_at(poses[-1], joints)
