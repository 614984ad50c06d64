"""The arm: absolute tool poses in, joint drive targets out. Inverse kinematics once per command, then a linear ramp."""

from collections import deque
from functools import lru_cache

import numpy as np
import sapien
from mani_skill.agents.robots import Panda
from sapien.pysapien_pinocchio import PinocchioModel

from rlco_common.contract import RobotSpec
from rlco_common.errors import TwinError
from rlco_common.pose import Pose, compose_delta, delta_between
from rlco_sim_bridge.domain import ArmSpec

FINGERS = 2
_FAR_RAD = 0.6                # a control tick moves no joint farther, but near a singularity a Newton step may
_START_ITERATIONS = 1000     # of the solver; a start pose may be far from the rest pose


class Kinematics:
    """Forward and inverse kinematics of a Panda URDF in its base frame.

    By SAPIEN's compiled solver. `sapien.wrapper.pinocchio_model` would take a loop in Python, 50 times slower and other in
    the last bits, on a machine where pinocchio is installed.
    """

    def __init__(self, urdf_path: str):
        with open(urdf_path, encoding="utf-8") as stream:
            text = stream.read()
        self._model = PinocchioModel(text, [0.0, 0.0, -9.81])
        joints = [*Panda.arm_joint_names, *Panda.gripper_joint_names]
        self._model.set_joint_order(joints)
        self._model.set_link_order([Panda.ee_link_name])
        self._mask = np.array([name in Panda.arm_joint_names for name in joints])

    def inverse(self, pose: Pose, near: np.ndarray, iterations: int = 100) -> np.ndarray | None:
        """[9] joint positions with the tool at `pose`, on a continuous way from `near` [9]; None when it does not get there."""
        return self._solve(pose, near, step=0.1, iterations=iterations)

    def follow(self, pose: Pose, near: np.ndarray) -> np.ndarray | None:
        """As `inverse`, in whole Newton steps: a fifth of the time and closer to `pose`, where that moves no joint far."""
        qpos = self._solve(pose, near, step=1.0, iterations=10)
        if qpos is None or np.abs(qpos - near).max() > _FAR_RAD:
            return self.inverse(pose, near)
        return qpos

    def _solve(self, pose, near, step, iterations):
        x, y, z, w = pose.quaternion.tolist()
        qpos, success, _ = self._model.compute_inverse_kinematics(
            0, sapien.Pose(pose.position, [w, x, y, z]), initial_qpos=near, active_qmask=self._mask, max_iterations=iterations,
            dt=step)
        return np.asarray(qpos, dtype=np.float64) if success else None


@lru_cache(maxsize=4)
def kinematics(urdf_path: str) -> Kinematics:
    return Kinematics(urdf_path)


def start_qpos(urdf_path: str, tool: Pose, opening_m: float = 0.04) -> np.ndarray:
    """[9] joint positions of an episode's start: tool at `tool`, elbow as in ManiSkill's rest pose, fingers at opening_m."""
    solved = kinematics(urdf_path).inverse(tool, np.array(Panda.keyframes["rest"].qpos, dtype=np.float64), _START_ITERATIONS)
    if solved is None:
        raise TwinError(f"the start pose {tool.position.round(3).tolist()} is out of the arm's reach; "
                        "change start.tool_m of the task's layout")
    solved[-FINGERS:] = opening_m
    return solved


class Arm:
    """Drives one articulation. `command`, then `advance` before every physics step.

    A target out of reach leaves the drives where they are and is counted in `unreached`.
    """

    def __init__(self, agent: Panda, robot: RobotSpec, spec: ArmSpec, physics_period_s: float):
        self._articulation = agent.robot._objs[0]
        joints = {joint.name: joint._objs[0] for joint in agent.robot.active_joints}
        joints = [joints[name] for name in (*Panda.arm_joint_names, *Panda.gripper_joint_names)]
        self._set_arm = [joint.set_drive_target for joint in joints[:-FINGERS]]
        self._set_fingers = [joint.set_drive_target for joint in joints[-FINGERS:]]
        self._limits = np.array([joint.limits[0] for joint in joints])[:-FINGERS]
        self._kinematics = kinematics(agent.urdf_path)
        self._robot = robot
        self._spec = spec
        self._delay_steps = round(spec.delay_s / physics_period_s)
        self.unreached = 0

    def reset(self, qpos: np.ndarray, tool: Pose) -> None:
        """Take the measured state after an episode's reset as the start of all ramps."""
        self.unreached = 0
        self._start_tool = tool
        self._goal = np.array(qpos, dtype=np.float64)
        self._ramp, self._ramp_step = [self._goal.tolist()], 0
        self._pending = deque(self._ramp * self._delay_steps)
        self._fingers = None
        self._drive(self._ramp[0])

    def command(self, target: Pose | np.ndarray, gripper: float, steps: int) -> None:
        """Move to `target` and gripper opening [0, 1] linearly in joint space over `steps` physics steps.

        target: tool pose in the base frame, or arm joint positions [7], which know no gain.
        """
        start, goal, steps = self._goal, self._goal.copy(), max(1, steps)
        arm = self._solved(target) if isinstance(target, Pose) else target
        if arm is None or (arm < self._limits[:, 0]).any() or (arm > self._limits[:, 1]).any():
            self.unreached += 1
        else:
            goal[:-FINGERS] = arm
        goal[-FINGERS:] = self._robot.gripper_joint_position(gripper)
        ramp = start + np.arange(1, steps + 1)[:, None] / steps * (goal - start)
        ramp[:, -FINGERS:] = goal[-FINGERS:]
        self._goal, self._ramp, self._ramp_step = goal, ramp.tolist(), 0

    def advance(self) -> None:
        """Set the drive targets of the next physics step; at the end of the ramp its last ones."""
        row = self._ramp[self._ramp_step]
        if self._ramp_step < len(self._ramp) - 1:
            self._ramp_step += 1
        if self._delay_steps:
            self._pending.append(row)
            row = self._pending.popleft()
        self._drive(row)

    def _solved(self, target: Pose) -> np.ndarray | None:
        solved = self._kinematics.follow(self._miscalibrated(target), self._articulation.get_qpos().astype(np.float64))
        return None if solved is None else solved[:-FINGERS]

    def _miscalibrated(self, target: Pose) -> Pose:
        if self._spec.gain == 1.0:
            return target
        return compose_delta(self._start_tool, self._spec.axis_gain() * delta_between(self._start_tool, target))

    def _drive(self, positions):
        for set_target, position in zip(self._set_arm, positions, strict=False):
            set_target(position)
        if positions[-FINGERS:] != self._fingers:       # they do not ramp, so mostly they have their targets already
            self._fingers = positions[-FINGERS:]
            for set_target, position in zip(self._set_fingers, self._fingers, strict=True):
                set_target(position)
