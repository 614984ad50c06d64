"""A leader arm: `sensor_msgs/JointState`, by joint name, through its own forward kinematics.

Clutched: only motion while the dead-man is held counts, relative to where leader and follower were when it was taken, so
that engaging never moves the follower. The dead-man is a button of a `sensor_msgs/Joy` (a foot pedal, or on the handle).
"""

from dataclasses import dataclass

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError, DataError
from rlco_common.pose import Pose, compose_delta, delta_between, quaternion_from_rotation_vector, rotation_matrix
from rlco_teleop.devices.base import Device, Health, Input, JogSettings, Joints, Joy, Operation, released, setting
from rlco_teleop.devices.leader_offset import LeaderOffset
from rlco_teleop.devices.switch import NANOSECONDS, DeadMan, GripperWish
from rlco_teleop.urdf_chain import UrdfChain

_CATCH_UP_S = 0.25      # a leader that is faster than the follower may be this far ahead; more is not caught up


@dataclass(frozen=True)
class LeaderSettings(JogSettings):
    """The leader arm and how its motion becomes the follower's."""

    linear_speed_m_s: float = setting(0.25, "the follower is never asked to move faster along a base axis, m/s", 0.001, 1.0)
    angular_speed_rad_s: float = setting(1.5, "the follower is never asked to turn faster about a base axis, rad/s", 0.001, 5.0)
    urdf: str = setting("", "path of the leader's URDF")
    tip_link: str = setting("", "link of the URDF that the hand holds; empty: its only leaf")
    base_link: str = setting("", "link of the URDF that stands on the table; empty: its root")
    topic: str = setting("/leader/joint_states", "sensor_msgs/JointState of the leader")
    deadman_topic: str = setting("/leader/joy", "sensor_msgs/Joy with the dead-man button")
    button_deadman: int = setting(0, "button of deadman_topic to hold while the arm may move", 0, 63)
    timeout_s: float = setting(0.3, "a leader or button that is silent this long is released, s", 0.05, 1.0)
    scale: float = setting(1.0, "metres of the follower per metre of the leader; rotations are one to one", 0.05, 10.0)
    base_yaw_rad: float = setting(0.0, "direction of the leader's x axis in the follower's base frame, about z", -3.2, 3.2)
    gripper_joint: str = setting("", "joint of topic that works the gripper; empty: none")
    gripper_closed: float = setting(0.0, "position of gripper_joint when closed, in its unit")
    gripper_open: float = setting(1.0, "position of gripper_joint when open, in its unit")
    joint_prefix: str = setting("", "what the leader's joint names have before the follower's; for the offset report")
    offset_warning_rad: float = setting(0.05, "a constant leader/follower offset above this is reported, rad", 0.001, 3.2)

    def __post_init__(self):
        if self.gripper_joint and self.gripper_closed == self.gripper_open:
            raise ValueError("gripper_closed and gripper_open are equal; the opening cannot be computed")


class Leader(Device):
    """Device `leader`. Gripper: taken over once the leader's opening has met the follower's, so that it never snaps."""

    Settings = LeaderSettings

    def __init__(self, contract: Contract, settings: LeaderSettings, rate_hz: float):
        settings.require_within(contract)
        if not settings.urdf:
            raise ConfigError("the leader device needs the parameter urdf, the path of the leader arm's URDF")
        self._settings = settings
        self._period_s = 1.0 / rate_hz
        self._follower_topic = contract.topics.joint_states
        self._chain = UrdfChain(settings.urdf, settings.tip_link, settings.base_link)
        self._yaw = quaternion_from_rotation_vector(np.array([0.0, 0.0, settings.base_yaw_rad]))
        self._deadman = DeadMan(settings.timeout_s)
        self._timeout_ns = round(settings.timeout_s * NANOSECONDS)
        self._offset = LeaderOffset(settings.joint_prefix)
        self._pose: Pose | None = None          # of the leader
        self._heard_ns = 0
        self._behind: Pose | None = None        # the leader's pose that the follower has been sent to; None: not engaged
        self._opening: float | None = None      # of the leader's gripper
        self._wish = GripperWish()
        self._met_side: float | None = None

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (Input("joints", self._settings.topic, self._on_leader),
                Input("joy", self._settings.deadman_topic, self._on_button),
                Input("joints", self._follower_topic, self._on_follower))

    def end(self) -> None:
        self._deadman.release()

    def operate(self, now_ns: int, opening: float | None) -> Operation:
        if self._silent(now_ns):
            self._deadman.release()
        if not self._deadman.held(now_ns):
            self._behind, self._met_side = None, None
            self._wish.clear()
            return released()
        if self._behind is None:
            self._behind = self._pose
        self._follow_gripper(opening)
        return Operation(True, self._step(), self._wish.value)

    def health(self, now_ns: int) -> Health:
        offsets = self._offset.constant(self._settings.offset_warning_rad)
        values = {f"offset {name}": f"{value:.3f}" for name, value in offsets.items()}
        if self._silent(now_ns):
            return Health(f"nothing from the leader arm on {self._settings.topic}", values)
        if self._deadman.silent(now_ns):
            return Health(f"nothing on {self._settings.deadman_topic}, which has the dead-man button", values)
        if offsets:
            listed = ", ".join(f"{name} {value:+.3f} rad" for name, value in offsets.items())
            return Health(f"constant offset of the leader from the follower: {listed}; calibrate the leader", values)
        return Health("", values)

    def _step(self) -> np.ndarray:
        """Twist [6] that brings the follower where the leader is, as far as one period allows."""
        missing = self._ahead()
        twist = np.clip(missing / self._period_s, -self._settings.speeds, self._settings.speeds)
        self._behind = compose_delta(self._behind, twist * self._period_s)
        excess = self._ahead()
        bound = self._settings.speeds * _CATCH_UP_S
        self._behind = compose_delta(self._behind, excess - np.clip(excess, -bound, bound))
        return twist

    def _ahead(self) -> np.ndarray:
        """How far the leader is ahead [6], in the follower's metres and base axes."""
        return delta_between(self._behind, self._pose)

    def _follow_gripper(self, opening: float | None) -> None:
        """Adopt the leader's opening from the moment when it meets, or passes, the follower's."""
        if self._opening is None or opening is None:
            return
        side = self._opening - opening
        met = abs(side) < 0.05 or (self._met_side is not None and side * self._met_side < 0.0)
        self._met_side = side
        if self._wish.value is not None or met:
            self._wish.value = self._opening

    def _silent(self, now_ns: int) -> bool:
        return self._pose is None or now_ns - self._heard_ns > self._timeout_ns

    def _on_leader(self, joints: Joints, now_ns: int) -> None:
        settings = self._settings
        try:
            self._pose = self._read_pose(joints)
            if settings.gripper_joint:
                if settings.gripper_joint not in joints.positions:
                    raise DataError(f"{settings.topic} has no gripper joint '{settings.gripper_joint}'")
                span = settings.gripper_open - settings.gripper_closed
                share = (joints.positions[settings.gripper_joint] - settings.gripper_closed) / span
                self._opening = float(np.clip(share, 0.0, 1.0))
        except DataError:
            self._deadman.release()
            raise
        self._heard_ns = now_ns
        self._offset.on_leader(joints.positions, now_ns)

    def _read_pose(self, joints: Joints) -> Pose:
        """The leader's tip, scaled and turned into the follower's base axes."""
        if not np.isfinite(list(joints.positions.values())).all():
            raise DataError(f"{self._settings.topic}: a joint position is not finite")
        try:
            tip = self._chain.forward(joints.positions)
        except DataError as error:
            raise DataError(f"{self._settings.topic}: {error}") from error
        turned = compose_delta(Pose(np.zeros(3), tip.quaternion), np.array([0, 0, 0, 0, 0, self._settings.base_yaw_rad]))
        return Pose(self._settings.scale * (rotation_matrix(self._yaw) @ tip.position), turned.quaternion)

    def _on_button(self, joy: Joy, now_ns: int) -> None:
        self._deadman.hear(joy.pressed(self._settings.button_deadman), now_ns)

    def _on_follower(self, joints: Joints, now_ns: int) -> None:
        self._offset.on_follower(joints.positions)
