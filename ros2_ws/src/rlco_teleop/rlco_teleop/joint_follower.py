"""Joint positions that follow the gate's target poses, for a joint_trajectory_controller. Pure; monotonic nanoseconds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlco_common.pose import Pose
from rlco_sim_bridge.experts.arm_model import ArmKinematics, OutOfReach
from rlco_teleop.arm_adapter import NANOSECONDS, Refusal, Refused


@dataclass(frozen=True)
class JointLimits:
    """What a step of the joints may be. speed_scale: share of the URDF's joint speeds. max_jump_rad: a solution of the
    inverse kinematics that is farther from the last one lies on another branch. max_lead_rad: of the commanded positions over
    the measured ones; more means that the arm does not follow. horizon_s: in which a commanded point is reached."""

    speed_scale: float = 0.5
    max_jump_rad: float = 0.3
    max_lead_rad: float = 0.3
    horizon_s: float = 0.1
    timeout_s: float = 0.3
    state_max_age_s: float = 0.2

    def __post_init__(self):
        if not all(np.isfinite(value) and value > 0 for value in vars(self).values()) or self.speed_scale > 1.0:
            raise ValueError("the limits of the joints must be positive, and speed_scale at most 1")


@dataclass(frozen=True)
class JointStep:
    """positions: [n] radians, to be reached in duration_s. limited: the joints' speed kept it short of the target."""

    positions: np.ndarray
    duration_s: float
    limited: bool


class JointFollower:
    """Joint positions that follow target poses: inverse kinematics from the last command, within the joints' limits."""

    def __init__(self, kinematics: ArmKinematics, limits: JointLimits):
        self._kinematics, self._limits = kinematics, limits
        self._speed = limits.speed_scale * kinematics.max_speed
        self._measured: np.ndarray | None = None
        self._measured_ns = 0
        self._commanded: np.ndarray | None = None
        self._commanded_ns = 0

    def on_joints(self, positions: Sequence[float], now_ns: int) -> None:
        """Measured positions [n], in the order of the kinematics' joint names."""
        positions = np.asarray(positions, dtype=np.float64)
        if np.isfinite(positions).all():
            self._measured, self._measured_ns = positions, now_ns

    def forget(self) -> None:
        """The next step starts from the measured positions."""
        self._commanded = None

    def follow(self, target: Pose, now_ns: int) -> JointStep:
        """The next command towards `target`. Raises Refused; the arm then holds."""
        if self._measured is None or now_ns - self._measured_ns > self._limits.state_max_age_s * NANOSECONDS:
            raise Refused(Refusal.NO_JOINT_STATE, "the joint states are not heard; is joint_state_broadcaster active?")
        base, passed_s = self._base(now_ns)
        wish = self._solution(target, base)
        step = wish - base
        share = min(1.0, float((self._speed * passed_s / np.maximum(np.abs(step), 1e-12)).min()))
        positions = base + share * step
        self._commanded, self._commanded_ns = positions, now_ns
        return JointStep(positions, self._limits.horizon_s, share < 1.0)

    def lead_rad(self) -> float | None:
        """Largest distance of a joint from what was commanded."""
        if self._commanded is None or self._measured is None:
            return None
        return float(np.abs(self._commanded - self._measured).max())

    def _base(self, now_ns: int) -> tuple[np.ndarray, float]:
        """Where the step starts, and the time it may take: the last command while the stream runs, else the measured state."""
        passed_s = (now_ns - self._commanded_ns) / NANOSECONDS
        if self._commanded is None or passed_s > self._limits.timeout_s:
            return self._measured, self._limits.horizon_s
        if self.lead_rad() > self._limits.max_lead_rad:
            raise Refused(Refusal.JOINT_LEAD, f"a joint is {self.lead_rad():.2f} rad from where it was sent; is the controller "
                          "active, and nothing in the arm's way?")
        return self._commanded, min(passed_s, self._limits.horizon_s)

    def _solution(self, target: Pose, base: np.ndarray) -> np.ndarray:
        try:
            wish = self._kinematics.inverse(target, base)
        except OutOfReach as error:
            raise Refused(Refusal.OUT_OF_REACH, str(error)) from error
        jump = np.abs(wish - base)
        if jump.max() > self._limits.max_jump_rad:
            joint = self._kinematics.joint_names[int(jump.argmax())]
            raise Refused(Refusal.JOINT_JUMP, f"the target needs {jump.max():.2f} rad of {joint} at once (max_jump_rad "
                          f"{self._limits.max_jump_rad:g}); the arm is not where the gate thinks, or near a singularity")
        return wish
