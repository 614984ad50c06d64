"""The arm adapter node: takes the gate's commands to the topics of an arm's controllers. See arm_adapter.py for the maths."""

import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.errors import ConfigError, DataError
from rlco_common.messages import pose_from_msg
from rlco_common.observation import joints_by_name
from rlco_common.ros import (
    COMMAND_QOS,
    STATE_QOS,
    RlcoLifecycleNode,
    declare,
    declare_contract,
    diagnostics,
    pose_to_msg,
    run_node,
    stamp_to_ns,
)
from rlco_teleop.arm_adapter import PoseStream, Refused, Tally, checked_target
from rlco_teleop.nodes.gripper_outputs import declare_gripper, gripper_output, require_gripper
from rlco_teleop.ros import NEWEST_QOS, Endpoints, joint_point_msg

KINDS = ("cartesian", "trajectory")
DIAGNOSTICS_PERIOD_S = 1.0


class ArmAdapterNode(RlcoLifecycleNode):
    """Lifecycle node `arm_adapter`. Between the gate and the controllers of a real arm.

    cartesian: target poses for CRISP or FZI's cartesian_controllers. trajectory: one-point joint trajectories for a
    joint_trajectory_controller. It commands only what the gate commands: nothing at activation, nothing where a target is
    refused, nothing when no target comes any more; the controller then holds its last one.
    """

    def __init__(self):
        super().__init__("arm_adapter")
        self._contract = declare_contract(self)
        self._kind = declare(self, "kind", "cartesian", "what the arm's controller takes", choices=KINDS, read_only=True)
        self._target_topic = declare(self, "target_topic", "/target_pose", "cartesian: the controller's PoseStamped topic",
                                     read_only=True)
        self._frame = declare(self, "frame", "", "cartesian: the controller's name for the contract's base frame, if it has "
                              "another; the same place and axes", read_only=True)
        self._interpolate_hz = declare(self, "interpolate_hz", 0.0, "cartesian: rate of poses between the gate's, Hz; 0: each "
                                       "target is passed on as it comes", low=0.0, high=1000.0, read_only=True)
        self._trajectory_topic = declare(self, "trajectory_topic", "/joint_trajectory_controller/joint_trajectory",
                                         "trajectory: the controller's JointTrajectory topic", read_only=True)
        self._urdf = declare(self, "urdf", "", "trajectory: path of the arm's URDF with the contract's joints and tool frame; "
                             "empty: the stand-in's Panda", read_only=True)
        self._joint_limits = {
            "speed_scale": declare(self, "speed_scale", 0.5, "trajectory: share of the URDF's joint speeds that may be used",
                                   low=0.01, high=1.0, read_only=True),
            "max_jump_rad": declare(self, "max_jump_rad", 0.3, "trajectory: a target that needs a larger change of a joint is "
                                    "refused", low=0.01, high=3.0, read_only=True),
            "max_lead_rad": declare(self, "max_lead_rad", 0.3, "trajectory: targets are refused while a joint is farther than "
                                    "this from where it was sent", low=0.01, high=3.0, read_only=True),
            "horizon_s": declare(self, "horizon_s", 0.1, "trajectory: time in which a point is to be reached, s; two periods "
                                 "of the gate", low=0.005, high=1.0, read_only=True)}
        self._timeout_s = declare(self, "timeout_s", self._contract.limits.command_timeout_s,
                                  "a target that is older than this is not passed on, s", low=0.01, high=5.0, read_only=True)
        self._gripper_settings = declare_gripper(self)
        self._tally = Tally()
        self._stream: PoseStream | None = None
        self._follower = None
        self._heard_ns: int | None = None       # the last target, refused or not
        self._endpoints = Endpoints(self)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._prepare)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._connect()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._endpoints.clear()
        return super().on_deactivate(state)

    def _prepare(self) -> None:
        require_gripper(self._gripper_settings)
        if self._kind == "trajectory":
            self._follower = self._make_follower()
        elif self._target_topic == self._contract.topics.target_pose:
            raise ConfigError(f"target_topic {self._target_topic} is the gate's own; if the controller listens there, no "
                              "adapter is needed")

    def _make_follower(self):
        from rlco_sim_bridge.experts.arm_model import ArmKinematics  # pinocchio: only where it is needed
        from rlco_sim_bridge.experts.planned import panda_urdf
        from rlco_teleop.joint_follower import JointFollower, JointLimits

        robot = self._contract.robot
        kinematics = ArmKinematics(self._urdf or panda_urdf(), tool_frame=robot.ee_frame, arm_joints=robot.arm_joints)
        return JointFollower(kinematics, JointLimits(
            timeout_s=self._timeout_s, state_max_age_s=self._contract.topics.state_max_age_s, **self._joint_limits))

    def _connect(self) -> None:
        names, steady = self._contract.topics, Clock(clock_type=ClockType.STEADY_TIME)
        self._tally, self._heard_ns = Tally(), None
        self._grip = gripper_output(self, self._endpoints, self._contract.robot, self._gripper_settings)
        self._diagnostics = self._endpoints.publisher(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        if self._kind == "trajectory":
            self._follower.forget()
            self._out = self._endpoints.publisher(JointTrajectory, self._trajectory_topic)
            self._endpoints.subscribe(JointState, names.joint_states, self._on_joints, NEWEST_QOS)
        else:
            self._out = self._endpoints.publisher(PoseStamped, self._target_topic)
            if self._interpolate_hz:
                self._stream = PoseStream(self._timeout_s)
                self._endpoints.timer(1.0 / self._interpolate_hz, self._publish_between, steady)
        self._endpoints.subscribe(Float64MultiArray, names.gripper_command, self._on_gripper, COMMAND_QOS)
        self._endpoints.subscribe(PoseStamped, names.target_pose, self._on_target, COMMAND_QOS)
        self._endpoints.timer(DIAGNOSTICS_PERIOD_S, self._diagnose, steady)

    # -- the arm

    def _on_joints(self, message: JointState) -> None:
        try:
            positions, _ = joints_by_name(self._contract, message.name, message.position)
        except DataError as error:      # another driver's joints on the same topic
            self.get_logger().debug(str(error), throttle_duration_sec=5.0)
            return
        self._follower.on_joints(positions, time.monotonic_ns())

    def _on_target(self, message: PoseStamped) -> None:
        now_ns = self._heard_ns = time.monotonic_ns()
        age_ns = self.get_clock().now().nanoseconds - stamp_to_ns(message.header.stamp)
        try:
            target = checked_target(pose_from_msg(message), message.header.frame_id, self._contract.robot.base_frame, age_ns,
                                    self._timeout_s)
            if self._follower is not None:
                self._send_joints(target, now_ns)
            elif self._stream is not None:
                self._stream.on_target(target, now_ns)
                self._tally.took()
            else:
                self._send_pose(target)
                self._tally.took()
        except Refused as refused:
            self._tally.refuse(refused)
            self.get_logger().error(str(refused), throttle_duration_sec=2.0)

    def _send_joints(self, target, now_ns: int) -> None:
        step = self._follower.follow(target, now_ns)
        self._out.publish(joint_point_msg(self._contract.robot.arm_joints, step.positions, step.duration_s))
        self._tally.took(step.limited)

    def _publish_between(self) -> None:
        pose = self._stream.sample(time.monotonic_ns())
        if pose is not None:
            self._send_pose(pose)

    def _send_pose(self, pose) -> None:
        frame = self._frame or self._contract.robot.base_frame
        self._out.publish(pose_to_msg(pose, frame, self.get_clock().now().nanoseconds))

    # -- the gripper

    def _on_gripper(self, message: Float64MultiArray) -> None:
        if len(message.data) != 1 or not 0.0 <= message.data[0] <= 1.0:
            self.get_logger().error(f"{self._contract.topics.gripper_command}: expected one opening in [0, 1], got "
                                    f"{list(message.data)}; ignored", throttle_duration_sec=5.0)
            return
        self._grip(message.data[0])

    # -- diagnostics

    def _diagnose(self) -> None:
        level, text = self._health()
        values = {"kind": self._kind, "output": self._out.topic_name, **self._tally.values()}
        if self._follower is not None and (lead := self._follower.lead_rad()) is not None:
            values["lead_rad"] = f"{lead:.3f}"
        self._diagnostics.publish(diagnostics(self, "arm_adapter", level, text, values))

    def _health(self) -> tuple[bytes, str]:
        topic = self._out.topic_name
        others = self.count_publishers(topic) - 1
        if others > 0:
            return DiagnosticStatus.ERROR, f"{others} other publisher(s) on {topic}: two would fight for the arm"
        if self._tally.reason:
            return DiagnosticStatus.ERROR, self._tally.reason
        if not self._out.get_subscription_count():
            return DiagnosticStatus.WARN, f"nobody listens on {topic}; is the controller active?"
        if self._heard_ns is None or time.monotonic_ns() - self._heard_ns > self._timeout_s * 1e9:
            return DiagnosticStatus.OK, "no target; the controller holds"
        return DiagnosticStatus.OK, "following"


def main(args=None) -> int:
    return run_node(ArmAdapterNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
