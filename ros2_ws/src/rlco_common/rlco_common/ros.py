"""ROS 2 plumbing shared by every node: environment, QoS, parameters, message conversion, node main.

The only module of this package that imports rclpy.
"""

import array
import importlib
import os
import signal
import sys
from collections.abc import Callable

import numpy as np
import rclpy
import simplejpeg
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from rlco_common.contract import Contract, contract_directory, load_contract
from rlco_common.errors import DataError, RlcoError
from rlco_common.pose import Pose
from rlco_common.signals import InterruptHandler, signals_handled

# Camera streams are reliable with a deep queue: best effort loses most large frames under load.
CAMERA_QOS = QoSProfile(depth=30, reliability=ReliabilityPolicy.RELIABLE)
STATE_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
COMMAND_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)   # a queued command must never replay late
EVENT_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
QOS = {"camera": CAMERA_QOS, "state": STATE_QOS, "command": COMMAND_QOS, "event": EVENT_QOS}     # by topic_table's names


def message_class(name: str) -> type:
    """The class of a message type such as `sensor_msgs/msg/Image`."""
    package, _, kind = name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), kind)


def prepare_environment() -> None:
    """Set what must stand before rclpy.init(): the Fast DDS profile and an ament prefix. Existing values win."""
    os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(contract_directory() / "fastdds.xml"))


def declare(node: Node, name: str, default, description: str, *, low=None, high=None, read_only=False, choices=None):
    """Declare a parameter with type, description and bounds, and return its value."""
    descriptor = ParameterDescriptor(description=description, read_only=read_only)
    if low is not None or high is not None:
        if isinstance(default, float):
            descriptor.floating_point_range = [FloatingPointRange(
                from_value=-np.inf if low is None else float(low), to_value=np.inf if high is None else float(high))]
        else:
            descriptor.integer_range = [IntegerRange(
                from_value=-(2**63) if low is None else int(low), to_value=2**63 - 1 if high is None else int(high))]
    if choices:
        descriptor.additional_constraints = f"one of: {', '.join(choices)}"
    value = node.declare_parameter(name, default, descriptor).value
    if choices:
        def check(parameters):
            for parameter in parameters:
                if parameter.name == name and parameter.value not in choices:
                    return SetParametersResult(
                        successful=False, reason=f"{name}='{parameter.value}' is not one of: {', '.join(choices)}")
            return SetParametersResult(successful=True)

        if value not in choices:
            raise RlcoError(f"parameter {name}='{value}' is not one of: {', '.join(choices)}")
        node.add_on_set_parameters_callback(check)
    return value


def declare_contract(node: Node) -> Contract:
    """Declare the `contract` parameter (name of a shipped contract, or a YAML file's path) and load it."""
    source = declare(node, "contract", "panda_tabletop", "name of a shipped contract, or path of a YAML file",
                     read_only=True)
    return load_contract(source)


class RlcoLifecycleNode(LifecycleNode):
    """Lifecycle node that brings itself to `active` when its `autostart` parameter is true.

    A transition that raises RlcoError is logged with its message and refused, instead of ending the process. `close` gives
    back what configuring took; it is called at cleanup and at the end of the process, also when nothing was configured.
    """

    def __init__(self, name: str, **kwargs):
        super().__init__(name, **kwargs)
        if declare(self, "autostart", True, "configure and activate at start", read_only=True):
            self._autostart_timer = self.create_timer(0.0, self._autostart, clock=rclpy.clock.Clock(
                clock_type=rclpy.clock.ClockType.STEADY_TIME))

    def _autostart(self):
        self._autostart_timer.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def close(self) -> None:
        """Nothing to give back."""

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return super().on_cleanup(state)

    def guarded(self, step: Callable[[], None]) -> TransitionCallbackReturn:
        """Run a transition's work; an RlcoError becomes FAILURE with its message in the log."""
        try:
            step()
        except RlcoError as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS


def run_node(factory: Callable[[], Node], args=None) -> int:
    """Node main: one SingleThreadedExecutor, clean shutdown on SIGINT and SIGTERM, named errors as one line.

    What a callback does is finished first; a SIGINT repeated after signals.INSIST_AFTER_S interrupts it.
    """
    prepare_environment()
    interrupt = InterruptHandler()
    with signals_handled((signal.SIGINT,), interrupt):
        try:
            rclpy.init(args=args)
            interrupt.handled_elsewhere = True      # rclpy's own handler ends the context, and the executor with it
            _spin(factory)
        except (KeyboardInterrupt, ExternalShutdownException):
            pass
        except RCLError:
            if rclpy.ok():
                raise       # else a signal ended the context between two checks of the executor: an ordinary shutdown
        except RlcoError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            rclpy.try_shutdown()
    return 0


def _spin(factory: Callable[[], Node]) -> None:
    node = factory()
    try:
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
    finally:
        close = getattr(node, "close", None)
        if close is not None:
            close()
        node.destroy_node()


def stamp_from_ns(nanoseconds: int) -> Time:
    return Time(sec=int(nanoseconds // 1_000_000_000), nanosec=int(nanoseconds % 1_000_000_000))


def stamp_to_ns(stamp: Time) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def pose_to_msg(pose: Pose, frame: str, stamp_ns: int) -> PoseStamped:
    message = PoseStamped()
    message.header.frame_id = frame
    message.header.stamp = stamp_from_ns(stamp_ns)
    position, orientation = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = map(float, pose.position)
    orientation.x, orientation.y, orientation.z, orientation.w = map(float, pose.quaternion)
    return message


def image_to_msg(image: np.ndarray, frame: str, stamp_ns: int, encoding: str = "rgb8") -> Image:
    """Image message of a uint8 [height, width, 3] array whose channels are in the order of `encoding`."""
    message = Image(height=image.shape[0], width=image.shape[1], encoding=encoding, step=image.shape[1] * 3)
    message.header.frame_id = frame
    message.header.stamp = stamp_from_ns(stamp_ns)
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(image))
    message.data = data
    return message


def compressed_image_msg(image: np.ndarray, frame: str, stamp_ns: int, quality: int, encoding: str = "rgb8") -> CompressedImage:
    """JPEG of a uint8 [height, width, 3] array, with the format string of image_transport's compressed plugin.

    quality: 1 to 100. The string names the encoding of the raw topic and that of the decoded JPEG under OpenCV.
    """
    message = CompressedImage(format=f"{encoding}; jpeg compressed bgr8")
    message.header.frame_id = frame
    message.header.stamp = stamp_from_ns(stamp_ns)
    data = array.array("B")
    data.frombytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality,
                                          colorspace="RGB" if encoding == "rgb8" else "BGR", colorsubsampling="420"))
    message.data = data
    return message


def joint_state_to_msg(contract: Contract, arm: np.ndarray, gripper: float, stamp_ns: int) -> JointState:
    """JointState of the arm joints (radians) and the gripper joint (its own unit, from the opening in [0, 1])."""
    message = JointState()
    message.header.stamp = stamp_from_ns(stamp_ns)
    message.name = [*contract.robot.arm_joints, contract.robot.gripper_joint]
    message.position = [*map(float, arm), contract.robot.gripper_joint_position(gripper)]
    return message


def chunk_to_msg(contract: Contract, actions: np.ndarray, stamp_ns: int) -> JointTrajectory:
    """Action chunk [n, 7] in physical units; action i is for the control tick that starts at stamp + i periods."""
    message = JointTrajectory(joint_names=list(contract.action.names))
    message.header.stamp = stamp_from_ns(stamp_ns)
    for index, action in enumerate(actions):
        start = stamp_from_ns(index * contract.control_period_ns)
        message.points.append(JointTrajectoryPoint(
            positions=[float(value) for value in action],
            time_from_start=Duration(sec=start.sec, nanosec=start.nanosec)))
    return message


def chunk_from_msg(contract: Contract, message: JointTrajectory) -> np.ndarray:
    """Actions [n, 7] of a chunk message. Raises DataError when names, shape or times are not the contract's."""
    if tuple(message.joint_names) != contract.action.names:
        raise DataError(f"action chunk names {list(message.joint_names)}, the contract {list(contract.action.names)}")
    for index, point in enumerate(message.points):
        if len(point.positions) != contract.action.dim:
            raise DataError(f"action {index} of the chunk has {len(point.positions)} values, not {contract.action.dim}")
        if stamp_to_ns(point.time_from_start) != index * contract.control_period_ns:
            raise DataError(f"action {index} of the chunk does not start {index} control periods after the first")
    return np.array([point.positions for point in message.points], dtype=np.float64)


def diagnostics(node: Node, name: str, level: bytes, message: str, values: dict) -> DiagnosticArray:
    """One-status DiagnosticArray stamped with the node's clock."""
    status = DiagnosticStatus(level=level, name=name, message=message, hardware_id=node.get_name())
    status.values = [KeyValue(key=str(key), value=str(value)) for key, value in values.items()]
    result = DiagnosticArray(status=[status])
    result.header.stamp = node.get_clock().now().to_msg()
    return result
