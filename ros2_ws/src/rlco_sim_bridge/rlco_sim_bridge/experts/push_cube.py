"""Scripted expert of push_cube: go behind the named cube from above, go down, push. Pure numpy.

It keeps no phase: every action follows from the scene state alone, so it recovers from disturbances by itself and works
the same in-process and over ROS.
"""

import numpy as np

from rlco_common.contract import Contract
from rlco_common.pose import Pose, delta_between
from rlco_sim_bridge.scene_state import SceneState

HOVER_M = 0.13             # tool height that clears the cubes, with the fingers' tips 1 cm below the tool point
PUSH_HEIGHT_M = 0.035
STANDOFF_M = 0.07          # how far behind the cube's centre a push begins
CLEAR_M = 0.05             # this far behind every cube's centre, sideways motion touches none
CONTACT_M = 0.015          # nearer to the centre, from behind, the tool cannot be: it is beside or above the cube
ALIGNED_M = 0.015
PUSHING_OFF_M = 0.03       # sideways error at which a push is given up
OVERSHOOT_M = 0.015        # aim this far beyond the goal
SETTLE_S = 0.1             # a moving tool comes to rest about this much later; without it every waypoint is overshot
DOWN = np.array([1.0, 0.0, 0.0, 0.0])


class Expert:
    """Acts on scene states. noise: standard deviation of the disturbance in normalised action units.

    Noise is drawn from `rng`: a disturbance of translation and yaw that persists over a few ticks, like a human's drift.
    `intended` is the last action before the disturbance: the better label for imitation.
    """

    def __init__(self, contract: Contract, rng: np.random.Generator, noise: float = 0.0):
        self._action = contract.action
        self._rng = rng
        self._noise = noise
        self._drift = np.zeros(6)
        self.intended = np.zeros(contract.action.dim)

    def act(self, scene: SceneState) -> np.ndarray:
        """The physical action [7] for the next control tick."""
        settled = Pose(scene.tool.position + SETTLE_S * scene.tool_velocity_m_s, scene.tool.quaternion)
        delta = delta_between(settled, Pose(_waypoint(scene), DOWN))
        delta[3:] *= 0.5
        largest = max(np.abs(delta[:3]).max() / self._action.max_translation_m, 1.0)
        delta[:3] /= largest   # keep the direction: clipping per axis would bend the path
        self.intended = self._action.clip([*delta, 0.0])
        return self._action.clip(self.intended + self._disturbance())

    def _disturbance(self) -> np.ndarray:
        if self._noise == 0.0:
            return np.zeros(7)
        scale = np.array([self._action.max_translation_m] * 3 + [0.0, 0.0, 0.3 * self._action.max_rotation_rad])
        self._drift = 0.3 * self._drift + 0.95 * self._rng.normal(0.0, self._noise, 6)
        return np.append(self._drift * scale, 0.0)


def _waypoint(scene: SceneState) -> np.ndarray:
    """[3] where the tool should go next."""
    cube, tool = scene.objects[scene.named].position, scene.tool.position
    rear = min(pose.position[0] for pose in scene.objects.values())
    start = np.array([min(cube[0] - STANDOFF_M, rear - CLEAR_M - 0.01), cube[1], PUSH_HEIGHT_M])
    behind, aside = cube[0] - tool[0], abs(cube[1] - tool[1])
    low = tool[2] < PUSH_HEIGHT_M + 0.02
    if low and behind > CONTACT_M and aside < (ALIGNED_M if behind > CLEAR_M else PUSHING_OFF_M):
        return np.array([scene.goal_m[0] + OVERSHOOT_M, cube[1], PUSH_HEIGHT_M])
    if tool[0] < rear - CLEAR_M:
        return start
    if tool[2] < HOVER_M - 0.02:
        return np.array([min(tool[0], start[0]), tool[1], HOVER_M])
    return np.array([start[0], start[1], HOVER_M])
