"""ROS plumbing of the operator nodes: parameters from settings, decoding of device inputs, the teleop topics."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from sensor_msgs.msg import Joy as JoyMessage
from std_msgs.msg import Bool, Float64, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from rlco_common import topics
from rlco_common.contract import Contract
from rlco_common.episode import EVENT_TOPIC, event_from_json
from rlco_common.errors import ConfigError, RlcoError
from rlco_common.ros import COMMAND_QOS, EVENT_QOS, STATE_QOS, declare, stamp_from_ns
from rlco_teleop.devices.base import Joints, Joy, Operation
from rlco_teleop.gripper_state import GripperState

# Of an input of which only the present value counts; best effort hears drivers of either reliability.
NEWEST_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def declare_settings[T](node: Node, settings: type[T]) -> T:
    """Declare one read-only parameter per field (see devices.base.setting). Raises ConfigError for values that do not fit."""
    values = {}
    for field in dataclasses.fields(settings):
        about = field.metadata
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        value = declare(node, field.name, default, about["description"], low=about["low"], high=about["high"], read_only=True)
        values[field.name] = tuple(value) if isinstance(field.default, tuple) else value
    try:
        return settings(**values)
    except ValueError as error:
        raise ConfigError(f"parameters of {node.get_name()}: {error}") from error


def joints_from_msg(message: JointState) -> Joints:
    return Joints(dict(zip(message.name, message.position, strict=False)))


def joint_point_msg(names: Sequence[str], positions: np.ndarray, duration_s: float) -> JointTrajectory:
    """One point to be reached in `duration_s` from now. Without velocities, since no trajectory may end on any but zero."""
    point = JointTrajectoryPoint(positions=[float(value) for value in positions])
    point.time_from_start.sec = int(duration_s)
    point.time_from_start.nanosec = round((duration_s - int(duration_s)) * 1e9)
    return JointTrajectory(joint_names=list(names), points=[point])


def twist_from_msg(message: Twist) -> np.ndarray:
    """[6] linear and angular."""
    linear, angular = message.linear, message.angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])


# Input kind -> message type, QoS, decoding
INPUT_KINDS = {
    "scene": (String, STATE_QOS, lambda message: message.data),
    "joy": (JoyMessage, NEWEST_QOS, lambda message: Joy(tuple(message.axes), tuple(message.buttons))),
    "twist": (Twist, NEWEST_QOS, twist_from_msg),
    "joints": (JointState, NEWEST_QOS, joints_from_msg),
}


class Endpoints:
    """Publishers, subscriptions and timers that live while a node is active."""

    def __init__(self, node: Node):
        self._node = node
        self._made = []

    def __bool__(self) -> bool:
        return bool(self._made)

    def publisher(self, message_type, topic: str, qos=COMMAND_QOS):
        return self.keep(self._node.destroy_publisher, self._node.create_publisher(message_type, topic, qos))

    def subscribe(self, message_type, topic: str, callback, qos=STATE_QOS, raw: bool = False):
        made = self._node.create_subscription(message_type, topic, callback, qos, raw=raw)
        return self.keep(self._node.destroy_subscription, made)

    def timer(self, period_s: float, callback, clock):
        return self.keep(self._node.destroy_timer, self._node.create_timer(period_s, callback, clock=clock))

    def clear(self) -> None:
        for destroy, made in self._made:
            destroy(made)
        self._made.clear()

    def keep(self, destroy: Callable, made):
        """Have `destroy(made)` called with the rest; returns `made`."""
        self._made.append((destroy, made))
        return made


class OperatorTopics:
    """The topics on which an operator reaches the gate; the same for every device.

    While the dead-man is held, every `publish` sends it with the twist. At release it is sent once as false; then silence,
    which the gate takes for released too, so that another operator's device is not disturbed.
    """

    def __init__(self, endpoints: Endpoints, contract: Contract, gripper: GripperState | None = None):
        """gripper: known to a node that `watch_gripper`s; without it, only a device's own wishes are sent."""
        self._base_frame = contract.robot.base_frame
        self._gripper_state = gripper
        self._deadman = endpoints.publisher(Bool, topics.TELEOP_DEADMAN)
        self._gripper = endpoints.publisher(Float64, topics.TELEOP_GRIPPER)
        self._twist = endpoints.publisher(TwistStamped, topics.TELEOP_TWIST)
        self._held = True
        self.release()      # a predecessor may have died with its dead-man held

    @property
    def held(self) -> bool:
        return self._held

    @property
    def readers(self) -> int:
        """How many endpoints receive the twists."""
        return self._twist.get_subscription_count()

    def publish(self, operation: Operation, stamp_ns: int) -> None:
        if not operation.held:
            self.release()
            return
        self._held = True
        self._deadman.publish(Bool(data=True))
        wish = operation.gripper
        if wish is None and self._gripper_state is not None:
            wish = self._gripper_state.first_command
        if wish is not None:
            self._gripper.publish(Float64(data=float(wish)))
        message = TwistStamped()
        message.header.stamp = stamp_from_ns(stamp_ns)
        message.header.frame_id = self._base_frame
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, operation.twist)
        self._twist.publish(message)

    def release(self) -> None:
        if self._held:
            self._held = False
            self._deadman.publish(Bool(data=False))


def watch_gripper(endpoints: Endpoints, contract: Contract) -> GripperState:
    """Keep a GripperState up to date from the arm, the gate and the resets."""
    state = GripperState(contract)

    def on_command(message: Float64MultiArray) -> None:
        if len(message.data) == 1:
            state.on_command(message.data[0])

    def on_event(message: String) -> None:
        try:
            event = event_from_json(message.data)
        except RlcoError:
            return      # the node that needs the event reports it
        if event.kind == "reset":
            state.reset()

    endpoints.subscribe(String, EVENT_TOPIC, on_event, EVENT_QOS)
    endpoints.subscribe(Float64MultiArray, contract.topics.gripper_command, on_command, COMMAND_QOS)
    endpoints.subscribe(JointState, contract.topics.joint_states, lambda message: state.on_joints(
        joints_from_msg(message).positions), NEWEST_QOS)
    return state


class ServiceCaller:
    """Calls services without waiting. `answer(response, problem)` comes later: the response, or None and what went wrong."""

    def __init__(self, node: Node, timeout_s: float):
        self._node, self._timeout_s = node, timeout_s
        self._known = {}
        self._open: list[tuple[float, object, object, Callable]] = []

    def ready(self, service_type, name: str) -> bool:
        """Whether somebody offers the service."""
        if name not in self._known:
            self._known[name] = self._node.create_client(service_type, name)
        return self._known[name].service_is_ready()

    def call(self, service_type, name: str, request, answer: Callable[[object | None, str], None]) -> None:
        if not self.ready(service_type, name):
            answer(None, f"{name} is not there; is its node running?")
            return
        client = self._known[name]
        future = client.call_async(request)
        self._open.append((time.monotonic() + self._timeout_s, future, client, answer))
        future.add_done_callback(self._done)

    def check(self) -> None:
        """Give up on what was not answered in time; to be called now and then."""
        now = time.monotonic()
        for entry in [entry for entry in self._open if entry[0] <= now]:
            _, future, client, answer = entry
            self._open.remove(entry)
            client.remove_pending_request(future)
            answer(None, f"{client.srv_name} did not answer within {self._timeout_s:g} s")

    def _done(self, future) -> None:
        for entry in [entry for entry in self._open if entry[1] is future]:
            self._open.remove(entry)
            entry[3](future.result(), "")
