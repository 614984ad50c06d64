"""The parameters of the node that brings the arm to the start. Pure."""

from dataclasses import dataclass

import numpy as np

from rlco_common.pose import Pose
from rlco_sim_bridge.experts.base import down
from rlco_sim_bridge.experts.starts import start_pose
from rlco_teleop.devices.base import setting
from rlco_teleop.start_move import MoveSettings


@dataclass(frozen=True)
class StartSettings:
    """Each field is declared as a parameter."""

    task: str = setting("", "start where episodes of this task start; empty: at start_position_m")
    start_position_m: tuple[float, ...] = setting((0.46, 0.0, 0.2), "tool position of the start, x y z in the base frame, m")
    start_yaw_rad: float = setting(0.0, "turn of the tool at the start about the vertical; fingers point down, rad", -3.2, 3.2)
    open_gripper: bool = setting(True, "open the gripper before the arm moves; false: leave it as it is")
    linear_speed_m_s: float = setting(0.12, "speed along the way, m/s; the gate has a limit of its own", 0.01, 0.5)
    angular_speed_rad_s: float = setting(0.6, "speed of turning along the way, rad/s", 0.05, 3.0)
    lift_m: float = setting(0.05, "straight up at least this far before anything else, m", 0.0, 0.3)
    table_height_m: float = setting(0.0, "top of the table in the base frame, m", -0.5, 0.5)
    clear_height_m: float = setting(0.12, "what stands on the table inside the workspace is not higher than this, m; the arm "
                                    "passes above it", -0.5, 1.0)
    blocks_file: str = setting("", "YAML file of boxes that stand in the cell")
    margin_m: float = setting(0.01, "planner own: distance that the arm keeps from table and boxes, m", 0.0, 0.1)
    urdf: str = setting("", "planner own: path of the arm's URDF, with an SRDF of the same name; empty: the stand-in's Panda")
    moveit_group: str = setting("fr3_arm", "planner moveit: planning group of the arm")
    planning_time_s: float = setting(5.0, "planner own: give up after this time, s", 0.1, 60.0)
    position_tolerance_m: float = setting(0.004, "the measured pose is this near at the end, m", 0.0005, 0.1)
    rotation_tolerance_rad: float = setting(0.04, "and this near in rotation, rad", 0.001, 1.0)
    max_correction_m: float = setting(0.04, "the target is shifted by at most this to get there, m; ten times as many rad",
                                      0.0, 0.2)

    def __post_init__(self):
        if len(self.start_position_m) != 3:
            raise ValueError("start_position_m needs three numbers")

    @property
    def goal(self) -> Pose:
        """The start. Raises ConfigError for an unknown task."""
        if self.task:
            return start_pose(self.task)
        return Pose(np.array(self.start_position_m), down(self.start_yaw_rad))

    @property
    def move(self) -> MoveSettings:
        names = MoveSettings.__dataclass_fields__
        return MoveSettings(**{name: getattr(self, name) for name in names})
