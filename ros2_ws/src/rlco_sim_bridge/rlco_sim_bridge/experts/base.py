"""What all scripted experts share: following waypoints in the contract's action space, and a disturbance like a human's drift.

A scripted expert keeps no phase: every action follows from the scene state alone, so it recovers from disturbances by
itself and works the same in-process and over ROS.
"""

from dataclasses import dataclass

import numpy as np

from rlco_common.contract import Contract
from rlco_common.pose import (
    Pose,
    delta_between,
    quaternion_from_rotation_vector,
    quaternion_multiply,
    rotation_matrix,
)
from rlco_sim_bridge.scene_state import SceneState

DOWN = np.array([1.0, 0.0, 0.0, 0.0])    # tool orientation: fingers point down and open along the base's y axis
SETTLE_S = 0.1     # a moving tool comes to rest about this much later; without it every waypoint is overshot
_TURN_GAIN = 0.5   # of the rotation that is left, per tick: its rate is not in the scene, so it cannot be anticipated
_DRIFT_KEPT, _DRIFT_NEW = 0.3, 0.95
_YAW_NOISE = 0.3   # yaw is disturbed by this share of the noise, roll and pitch not at all


@dataclass(frozen=True)
class Waypoint:
    """Where the tool should go next: pose in the base frame, and the gripper's opening on the way, 0 closed to 1 open.

    travels: it is a move through free space, and any way there will do.
    """

    position: np.ndarray
    quaternion: np.ndarray
    gripper: float
    travels: bool = False


class ScriptedExpert:
    """Acts on scene states. noise: standard deviation of the disturbance in normalised action units.

    Noise is drawn from `rng`: a disturbance of translation and yaw that persists over a few ticks, like a human's drift.
    `intended` is the last action before the disturbance: the better label for imitation. A task's expert gives `waypoint`.
    """

    def __init__(self, contract: Contract, rng: np.random.Generator, noise: float = 0.0):
        self._action = contract.action
        self._rng = rng
        self._noise = noise
        self._drift = np.zeros(6)
        self.intended = np.zeros(contract.action.dim)

    def waypoint(self, scene: SceneState) -> Waypoint:
        """Where the tool should go next."""
        raise NotImplementedError

    def act(self, scene: SceneState) -> np.ndarray:
        """The physical action [7] for the next control tick."""
        self.intended = self._towards(self.waypoint(scene), scene)
        return self._action.clip(self.intended + self._disturbance())

    def _towards(self, goal: Waypoint, scene: SceneState) -> np.ndarray:
        settled = Pose(scene.tool.position + SETTLE_S * scene.tool_velocity_m_s, scene.tool.quaternion)
        delta = delta_between(settled, Pose(goal.position, goal.quaternion))
        delta[3:] *= _TURN_GAIN
        largest = max(np.abs(delta[:3]).max() / self._action.max_translation_m, 1.0)
        delta[:3] /= largest   # keep the direction: clipping per axis would bend the path
        return self._action.clip([*delta, goal.gripper])

    def _disturbance(self) -> np.ndarray:
        if self._noise == 0.0:
            return np.zeros(7)
        scale = np.array([self._action.max_translation_m] * 3 + [0.0, 0.0, _YAW_NOISE * self._action.max_rotation_rad])
        self._drift = _DRIFT_KEPT * self._drift + _DRIFT_NEW * self._rng.normal(0.0, self._noise, 6)
        return np.append(self._drift * scale, 0.0)


def tool_yaw(tool: Pose) -> float:
    """Yaw in radians of a tool that points about straight down; 0 for DOWN."""
    x_axis = rotation_matrix(tool.quaternion)[:, 0]
    return float(np.arctan2(x_axis[1], x_axis[0]))


def down(yaw_rad: float) -> np.ndarray:
    """Quaternion of a tool that points down, turned by yaw_rad about the base's z axis from DOWN."""
    return quaternion_multiply(quaternion_from_rotation_vector([0.0, 0.0, yaw_rad]), DOWN)


def nearest_half_turn(yaw_rad: float, reference_rad: float) -> float:
    """Of yaw_rad + k pi, which are the same to a gripper with two fingers, the one nearest to reference_rad."""
    return yaw_rad - np.pi * np.round((yaw_rad - reference_rad) / np.pi)
