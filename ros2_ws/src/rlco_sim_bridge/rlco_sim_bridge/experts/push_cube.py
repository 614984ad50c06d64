"""Scripted expert of push_cube: go behind the named cube from above, go down, push."""

import numpy as np

from rlco_sim_bridge.experts.base import DOWN, ScriptedExpert, Waypoint
from rlco_sim_bridge.scene_state import SceneState

HOVER_M = 0.13             # tool height that clears the cubes, with the fingers' tips 1 cm below the tool point
PUSH_HEIGHT_M = 0.035
STANDOFF_M = 0.07          # how far behind the cube's centre a push begins
CLEAR_M = 0.05             # this far behind every cube's centre, sideways motion touches none
CONTACT_M = 0.015          # nearer to the centre, from behind, the tool cannot be: it is beside or above the cube
ALIGNED_M = 0.015
PUSHING_OFF_M = 0.03       # sideways error at which a push is given up
OVERSHOOT_M = 0.015        # aim this far beyond the goal


class Expert(ScriptedExpert):
    """Pushes with closed fingers; ScriptedExpert says the rest."""

    def waypoint(self, scene: SceneState) -> Waypoint:
        return Waypoint(_position(scene), DOWN, 0.0)


def _position(scene: SceneState) -> np.ndarray:
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
