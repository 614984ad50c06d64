"""The planner of ways to the start where MoveIt is not installed: pinocchio, coal and OMPL."""

from collections.abc import Sequence

import numpy as np

from rlco_common.contract import Contract
from rlco_common.pose import Pose
from rlco_sim_bridge.experts.planned import panda_urdf
from rlco_sim_bridge.experts.planner import ArmPlanner, Box
from rlco_teleop.start_way import Block

_TILT_RAD = 0.5         # a tool that points down stays so on its way, within this


class OwnPlanner:
    """A start_way.Planner. urdf: of the arm, with an SRDF beside it; empty: the stand-in's Panda.

    margin_m: what the arm keeps from the blocks. Raises ConfigError for unreadable files and missing libraries.
    """

    def __init__(self, contract: Contract, urdf: str, blocks: Sequence[Block], margin_m: float, time_limit_s: float):
        robot = contract.robot
        self._planner = ArmPlanner(
            urdf or panda_urdf(), [Box(block.name, block.pose, block.half_size_m) for block in blocks],
            tool_frame=robot.ee_frame, arm_joints=robot.arm_joints, finger_opening_m=robot.gripper_open, margin_m=margin_m)
        self._time_limit_s = time_limit_s

    def joints_at(self, pose: Pose, near: np.ndarray) -> np.ndarray:
        return self._planner.inverse(pose, near)

    def touching(self, joints: np.ndarray) -> frozenset[str]:
        return frozenset(f"{a} would touch {b}" for a, b in self._planner.contacts(joints))

    def plan(self, joints: np.ndarray, goal: Pose) -> list[Pose]:
        upright = self._planner.tilt_rad(joints) < _TILT_RAD
        path = self._planner.plan(joints, goal, time_limit_s=self._time_limit_s, max_tilt_rad=_TILT_RAD if upright else None)
        return self._planner.tool_path(path)
