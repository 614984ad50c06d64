"""Collision-free arm motion: OMPL's RRT-Connect over an ArmModel, shortened, deterministic in its seed."""

import time
import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from rlco_common.errors import ConfigError
from rlco_common.pose import Pose
from rlco_sim_bridge.experts.arm_model import ArmModel, Box, OutOfReach, PlanningError

try:
    from ompl import base, geometric, util
except ImportError as error:
    raise ConfigError(f"motion planning needs OMPL: {error}. Install it with `pip install ompl==2.0.1`, or run "
                      "scripts/setup.sh") from error

__all__ = ["ArmPlanner", "Box", "GoalInCollision", "NoPathInTime", "OutOfReach", "PlanningError", "StartInCollision"]

RESOLUTION_RAD = 0.01      # between two checked states no link moves farther than about the model's default margin
STEP_RAD = 0.05            # between two states of a returned path
_RESTARTS = 12
_SHORTCUTS = 60
_NO_LIMIT_RAD = 4.0


class StartInCollision(PlanningError):
    """The arm touches something where it is."""


class GoalInCollision(PlanningError):
    """The goal can be reached by touching something only."""


class NoPathInTime(PlanningError):
    """The planner found no path before its time was up."""


class ArmPlanner(ArmModel):
    """Plans motions of an arm among boxes; see ArmModel for the arguments, frames and units.

    The planner may be asked again and again; set_obstacles and hold change what is in the way. One plan at a time per
    process: OMPL draws its randomness from one generator, which every plan seeds anew.
    """

    def __init__(self, urdf: str | Path, obstacles: Sequence[Box] = (), **model):
        super().__init__(urdf, obstacles, **model)
        space = base.RealVectorStateSpace(len(self.joint_names))
        bounds = base.RealVectorBounds(len(self.joint_names))
        for joint, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            bounds.setLow(joint, float(low))
            bounds.setHigh(joint, float(high))
        space.setBounds(bounds)
        space.setLongestValidSegmentFraction(RESOLUTION_RAD / space.getMaximumExtent())
        self._space = base.SpaceInformation(space)
        is_valid = weakref.WeakMethod(self._is_valid)      # OMPL's objects are not seen by the garbage collector
        self._space.setStateValidityChecker(lambda state: is_valid()(state))
        self._space.setup()
        self._max_tilt_rad = _NO_LIMIT_RAD

    def plan(self, start_qpos, goal: Pose | np.ndarray, *, seed: int = 0, time_limit_s: float = 2.0,
             max_tilt_rad: float | None = None) -> np.ndarray:
        """A collision-free path [N, n] of joint positions from start_qpos [n], at most STEP_RAD apart, both ends included.

        goal: tool pose, or joint positions [n]. max_tilt_rad: the tool's z axis stays within this angle of straight down.
        The same arguments give the same path unless the time runs out. Raises StartInCollision, GoalInCollision,
        OutOfReach, NoPathInTime, or PlanningError for a start outside the joint limits.
        """
        deadline = time.monotonic() + time_limit_s
        self._max_tilt_rad = _NO_LIMIT_RAD if max_tilt_rad is None else max_tilt_rad
        start = self._checked_start(start_qpos)
        end = self._goal_near(goal, start, seed)
        return self._dense(self._waypoints(start, end, seed, deadline, time_limit_s))

    def tool_path(self, path) -> list[Pose]:
        """The tool's poses along a joint path [N, n]."""
        return [self.forward(qpos) for qpos in path]

    def _is_valid(self, state) -> bool:
        qpos = np.array(state[0:len(self.joint_names)])
        return self._is_upright(qpos) and self.is_free(qpos)

    def _is_upright(self, qpos) -> bool:
        return self._max_tilt_rad == _NO_LIMIT_RAD or self.tilt_rad(qpos) <= self._max_tilt_rad

    def _checked_start(self, qpos) -> np.ndarray:
        qpos = np.asarray(qpos, dtype=np.float64)
        if not (qpos.shape == self.lower.shape and self.within_limits(qpos)):
            raise PlanningError(f"the start {qpos.round(3).tolist()} is not {len(self.joint_names)} joint positions within "
                                "the limits; move the arm inside them first")
        if pair := self.touching(qpos):
            raise StartInCollision(f"at the start {pair[0]} touches {pair[1]} (margin {self._margin_m} m); move the arm "
                                   "away from it, or correct the obstacle")
        if not self._is_upright(qpos):
            raise PlanningError(f"at the start the tool tilts more than max_tilt_rad = {self._max_tilt_rad:.2f}")
        return np.clip(qpos, self.lower, self.upper)

    def _goal_near(self, goal, start, seed) -> np.ndarray:
        """Free joint positions [n] at the goal: the nearest to the start of those that were found."""
        if not isinstance(goal, Pose):
            goal = np.asarray(goal, dtype=np.float64)
            if not (goal.shape == start.shape and self.within_limits(goal)):
                raise OutOfReach(f"the goal {goal.round(3).tolist()} is not {len(start)} joint positions within the limits")
            found = [np.clip(goal, self.lower, self.upper)]
        else:
            found = self._solutions(goal, start, seed)
        free = [qpos for qpos in found if self.is_free(qpos) and self._is_upright(qpos)]
        if free:
            return min(free, key=lambda qpos: np.abs(qpos - start).max())
        pair = self.touching(found[0])
        if pair is None:
            raise OutOfReach(f"at the goal the tool tilts more than max_tilt_rad = {self._max_tilt_rad:.2f}")
        raise GoalInCollision(f"at the goal {pair[0]} touches {pair[1]} (margin {self._margin_m} m); choose another goal, or "
                              "correct the obstacle")

    def _solutions(self, pose, start, seed) -> list[np.ndarray]:
        """Joint positions with the tool at `pose`, from the start and, if that one will not do, from random ones."""
        rng = np.random.default_rng(seed)
        found, error = [], None
        for near in [start, *rng.uniform(self.lower, self.upper, (_RESTARTS, len(start)))]:
            try:
                found.append(self.inverse(pose, near))
            except OutOfReach as failed:
                error = error or failed
            if len(found) == 1 and near is start and self.is_free(found[0]):
                break
        if not found:
            raise error
        return found

    def _waypoints(self, start, end, seed, deadline, time_limit_s) -> np.ndarray:
        space = self._space
        first, last = self._state(start), self._state(end)
        if space.checkMotion(first, last):
            return np.array([start, end])
        _seed_ompl(seed)
        problem = base.ProblemDefinition(space)
        problem.setStartAndGoalStates(first, last)
        search = geometric.RRTConnect(space)
        search.setProblemDefinition(problem)
        search.setup()
        search.solve(base.PlannerTerminationCondition(lambda: time.monotonic() > deadline))
        if not problem.hasExactSolution():
            raise NoPathInTime(f"no path found in {time_limit_s} s; allow more time, or choose a goal with more room around it")
        path = problem.getSolutionPath()
        simplifier = geometric.PathSimplifier(space)     # counts, not times: the same path on a slow machine
        for _ in range(3):
            simplifier.reduceVertices(path, _SHORTCUTS, _SHORTCUTS)
            simplifier.partialShortcutPath(path, _SHORTCUTS, _SHORTCUTS)
            simplifier.collapseCloseVertices(path)
        return np.array([state[0:len(start)] for state in path.getStates()])

    def _state(self, qpos):
        state = self._space.allocState()
        state[0:len(qpos)] = [float(value) for value in qpos]
        return state

    @staticmethod
    def _dense(waypoints) -> np.ndarray:
        parts = [waypoints[:1]]
        for a, b in pairwise(waypoints):
            steps = max(1, int(np.ceil(np.abs(b - a).max() / STEP_RAD)))
            parts.append(a + (b - a) * np.linspace(0.0, 1.0, steps + 1)[1:, None])
        return np.concatenate(parts)


def _seed_ompl(seed: int) -> None:
    """Make the random generators that OMPL creates from now on repeatable. It warns on a second seeding; it still seeds."""
    util.setLogLevel(util.LogLevel.LOG_NONE)
    util.RNG.setSeed(int(seed) % 2**31 + 1)
