"""The privileged state of a scene: what scripted experts and training in the twin see and policies never do."""

import json
from dataclasses import dataclass

import numpy as np

from rlco_common.errors import DataError
from rlco_common.pose import Pose, pose_from_array


@dataclass(frozen=True)
class SceneState:
    """One instant of a scene. Poses in the robot's base frame.

    objects: name -> pose of everything in play: cubes by colour; the shape and `container`; `cabinet` and `handle`.
    named: the one that the instruction means. goal_m: [3] where it has to get to. tool: measured end-effector pose.
    tool_velocity_m_s: [3] its linear velocity. gripper: measured opening. joint_positions: [arm joints] radians.
    """

    stamp_ns: int
    task: str
    named: str
    goal_m: np.ndarray
    objects: dict[str, Pose]
    tool: Pose
    tool_velocity_m_s: np.ndarray
    gripper: float
    joint_positions: np.ndarray

    def places(self) -> np.ndarray:
        """float32 [6], PLACE_NAMES: where the named object (or handle) is and where it has to get to."""
        return np.concatenate([self.objects[self.named].position, self.goal_m]).astype(np.float32)

    def to_json(self) -> str:
        return json.dumps({
            "stamp_ns": self.stamp_ns, "task": self.task, "named": self.named, "goal_m": list(map(float, self.goal_m)),
            "objects": {name: pose.as_array().tolist() for name, pose in self.objects.items()},
            "tool": self.tool.as_array().tolist(), "tool_velocity_m_s": list(map(float, self.tool_velocity_m_s)),
            "gripper": self.gripper, "joint_positions": list(map(float, self.joint_positions)),
        }, sort_keys=True)


PLACE_NAMES = ("named_x", "named_y", "named_z", "goal_x", "goal_y", "goal_z")
"""What `SceneState.places` holds, metres in the robot's base frame."""


def scene_state_from_json(text: str, where: str = "/sim/scene") -> SceneState:
    """Inverse of SceneState.to_json. Raises DataError on anything else."""
    try:
        data = json.loads(text)
        return SceneState(
            stamp_ns=int(data["stamp_ns"]), task=data["task"], named=data["named"], goal_m=np.array(data["goal_m"]),
            objects={name: pose_from_array(values) for name, values in data["objects"].items()},
            tool=pose_from_array(data["tool"]), tool_velocity_m_s=np.array(data["tool_velocity_m_s"]),
            gripper=float(data["gripper"]), joint_positions=np.array(data["joint_positions"]),
        )
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: not a scene state: {error!r}") from error


@dataclass(frozen=True)
class StepResult:
    """Where an episode stands after a command.

    success, failure: the task's conditions; the one that is met first stays. steps: control ticks begun since the reset.
    done: success, failure, or the task's max_steps are used up.
    """

    success: bool
    failure: bool
    steps: int
    done: bool
