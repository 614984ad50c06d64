"""Where an episode of a task starts, for what brings a real arm there."""

import numpy as np

from rlco_common.pose import Pose
from rlco_sim_bridge.experts.base import down
from rlco_sim_bridge.tasks import load_task


def start_pose(task: str) -> Pose:
    """The middle of the tool poses at which episodes of a task start in its shipped layout. ConfigError for an unknown task."""
    return Pose(np.array(load_task(task).layout.start.tool_m), down(0.0))
