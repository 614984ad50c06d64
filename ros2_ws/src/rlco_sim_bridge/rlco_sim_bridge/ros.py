"""The topics of a real cell, as a simulated one speaks them: messages and bundles of endpoints."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from geometry_msgs.msg import PoseStamped, TransformStamped
from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from rlco_common.contract import CameraSpec, Contract
from rlco_common.errors import DataError, RlcoError
from rlco_common.messages import pose_from_msg
from rlco_common.observation import Observation
from rlco_common.pose import Pose
from rlco_common.ros import (
    CAMERA_QOS,
    STATE_QOS,
    compressed_image_msg,
    image_to_msg,
    joint_state_to_msg,
    pose_to_msg,
    stamp_from_ns,
    stamp_to_ns,
)
from rlco_sim_bridge.domain import CameraView
from rlco_sim_bridge.frames import optical_pose

TF_STATIC_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TF_CHOICES = ("all", "cameras", "none")
ACKNOWLEDGE_LIMIT = Duration(seconds=2)     # a node that died without a word must not hold the others up for longer


def clock_msg(now_ns: int) -> Clock:
    return Clock(clock=stamp_from_ns(now_ns))


def wait_until_heard(*publishers) -> None:
    """Block until every matched reliable subscriber has what was published, for ACKNOWLEDGE_LIMIT at the longest."""
    for publisher in publishers:
        publisher.wait_for_all_acked(ACKNOWLEDGE_LIMIT)


def camera_info_msg(camera: CameraSpec, intrinsics: np.ndarray, stamp_ns: int) -> CameraInfo:
    """CameraInfo of an undistorted pinhole camera with `intrinsics` [3, 3] in pixels."""
    message = CameraInfo(width=camera.width, height=camera.height, distortion_model="plumb_bob", d=[0.0] * 5)
    message.header.frame_id = camera.frame
    message.header.stamp = stamp_from_ns(stamp_ns)
    message.k = intrinsics.ravel().tolist()
    message.r = np.eye(3).ravel().tolist()
    message.p = np.hstack([intrinsics, np.zeros((3, 1))]).ravel().tolist()
    return message


def transform_msg(pose: Pose, parent: str, child: str, stamp_ns: int) -> TransformStamped:
    """The transform of frame `child`, whose origin and axes are at `pose` in frame `parent`."""
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp = stamp_from_ns(stamp_ns)
    translation, rotation = message.transform.translation, message.transform.rotation
    translation.x, translation.y, translation.z = map(float, pose.position)
    rotation.x, rotation.y, rotation.z, rotation.w = map(float, pose.quaternion)
    return message


def target_from_msg(contract: Contract, message: PoseStamped) -> Pose:
    """The commanded tool pose. Raises DataError when it is in another frame than the robot's base."""
    if message.header.frame_id != contract.robot.base_frame:
        raise DataError(f"{contract.topics.target_pose} is in frame '{message.header.frame_id}', not "
                        f"'{contract.robot.base_frame}'; ignored")
    return pose_from_msg(message)


class PoseInput:
    """Target poses, as a Cartesian controller takes them. Every arm input has a message type, a topic, and these methods."""

    message_type = PoseStamped

    def __init__(self, contract: Contract, ramp_s: float):
        """ramp_s: in which the arm goes to a target."""
        self.topic = contract.topics.target_pose
        self._contract, self._ramp_s = contract, ramp_s

    def stamp_ns(self, message: PoseStamped, now_ns: int) -> int:
        """When the command was given."""
        return stamp_to_ns(message.header.stamp)

    def read(self, message: PoseStamped) -> tuple[Pose, float]:
        """The commanded target, and the time in which to get there. Raises DataError."""
        return target_from_msg(self._contract, message), self._ramp_s


class TrajectoryInput:
    """Joint trajectories of one point, as a joint_trajectory_controller takes them: joints by name, in any order."""

    message_type = JointTrajectory

    def __init__(self, contract: Contract, topic: str):
        self.topic = topic
        self._joints = contract.robot.arm_joints

    def stamp_ns(self, message: JointTrajectory, now_ns: int) -> int:
        return stamp_to_ns(message.header.stamp) or now_ns      # without a stamp a trajectory begins now

    def read(self, message: JointTrajectory) -> tuple[np.ndarray, float]:
        if len(message.points) != 1 or sorted(message.joint_names) != sorted(self._joints) or len(
                message.points[0].positions) != len(self._joints):
            raise DataError(f"{self.topic}: expected one point with the joints {', '.join(self._joints)}; ignored")
        point = message.points[0]
        positions = dict(zip(message.joint_names, point.positions, strict=True))
        duration_s = point.time_from_start.sec + point.time_from_start.nanosec / 1e9
        return np.array([positions[name] for name in self._joints]), duration_s


def opening_from_msg(contract: Contract, message: Float64MultiArray) -> float:
    """The commanded gripper opening. Raises DataError when the message does not hold exactly one."""
    if len(message.data) != 1:
        raise DataError(f"{contract.topics.gripper_command}: expected one opening, got {len(message.data)} numbers; ignored")
    return message.data[0]


def answer(node, response, action: Callable[[], str]):
    """A std_srvs response (Trigger, SetBool): the text that `action` returns, or the RlcoError that says why not."""
    try:
        response.message, response.success = action(), True
    except RlcoError as error:
        response.message, response.success = str(error), False
        node.get_logger().error(response.message)
    return response


class Endpoints:
    """Publishers, subscriptions and services of a node that are destroyed together.

    on_join: called when somebody subscribes to one of the publishers that are made with `joins`.
    """

    def __init__(self, node, on_join: Callable[[], None] | None = None):
        self._node = node
        self._on_join = on_join
        self._destroys = []

    def publisher(self, message_type, topic: str, qos: QoSProfile, joins: bool = True):
        events = PublisherEventCallbacks(matched=self._matched) if self._on_join and joins else None
        publisher = self._node.create_publisher(message_type, topic, qos, event_callbacks=events)
        self._destroys.append(partial(self._node.destroy_publisher, publisher))
        return publisher

    def subscribe(self, message_type, topic: str, callback: Callable, qos: QoSProfile) -> None:
        subscription = self._node.create_subscription(message_type, topic, callback, qos)
        self._destroys.append(partial(self._node.destroy_subscription, subscription))

    def serve(self, service_type, name: str, callback: Callable) -> None:
        service = self._node.create_service(service_type, name, callback)
        self._destroys.append(partial(self._node.destroy_service, service))

    def destroy(self) -> None:
        while self._destroys:
            self._destroys.pop(0)()

    def _matched(self, info) -> None:
        if info.current_count_change > 0:
            self._on_join()


class Frames:
    """`/tf` of the tool and `/tf_static` of the cameras. tf2_msgs comes with a ROS installation and is not on PyPI, so
    without it nothing is published and `missing` says why.

    show: what to publish, of TF_CHOICES; `cameras` where robot_state_publisher gives the tool's frame.
    """

    def __init__(self, contract: Contract, advertise: Callable, show: str):
        self.missing = ""
        self._contract = contract
        self._dynamic = self._static = None
        self._shown = None
        if show == "none":
            return
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError as error:
            self.missing = f"no TF: {error}; install tf2_msgs (it is part of every ROS installation)"
            return
        self._message_type = TFMessage
        self._static = advertise(TFMessage, "/tf_static", TF_STATIC_QOS)
        self._dynamic = advertise(TFMessage, "/tf", STATE_QOS) if show == "all" else None

    def show_tool(self, pose: Pose, stamp_ns: int) -> None:
        """The end effector in the base frame."""
        if self._dynamic is not None:
            robot = self._contract.robot
            self._dynamic.publish(self._message_type(
                transforms=[transform_msg(pose, robot.base_frame, robot.ee_frame, stamp_ns)]))

    def show_cameras(self, views: Mapping[str, CameraView], stamp_ns: int) -> None:
        """The optical frames of the contract's cameras in the base frame; sent again only when one has moved."""
        if self._static is None or views == self._shown:
            return
        self._shown = dict(views)
        self._static.publish(self._message_type(transforms=[
            transform_msg(optical_pose(view), self._contract.robot.base_frame, self._contract.cameras[name].frame, stamp_ns)
            for name, view in views.items()]))


class CellTopics:
    """The publishers of cameras, joint states and tool pose. advertise: (message type, topic, QoS) -> publisher."""

    def __init__(self, contract: Contract, advertise: Callable, tf: str = "all"):
        self._contract = contract
        self._cameras = {
            name: (advertise(CameraInfo, camera.info_topic, CAMERA_QOS), advertise(Image, camera.topic, CAMERA_QOS),
                   advertise(CompressedImage, f"{camera.topic}/compressed", CAMERA_QOS))
            for name, camera in contract.cameras.items()
        }
        self._joint_states = advertise(JointState, contract.topics.joint_states, STATE_QOS)
        self.frames = Frames(contract, advertise, tf)
        self._ee_pose = advertise(PoseStamped, contract.topics.ee_pose, STATE_QOS)

    @property
    def pictures_wanted(self) -> bool:
        """Whether anybody subscribes to a camera; if not, nothing needs to be rendered."""
        return any(publisher.get_subscription_count() for camera in self._cameras.values() for publisher in camera)

    def show_images(self, observation: Observation, views: Mapping[str, CameraView], stamp_ns: int,
                    jpeg_quality: int) -> None:
        """Publish pictures with their camera_info. views: where each camera is in this episode."""
        for name, image in observation.images.items():
            camera = self._contract.cameras[name]
            info, raw, compressed = self._cameras[name]
            info.publish(camera_info_msg(camera, views[name].intrinsics(camera.width, camera.height), stamp_ns))
            raw.publish(image_to_msg(image, camera.frame, stamp_ns))
            if compressed.get_subscription_count():
                compressed.publish(compressed_image_msg(image, camera.frame, stamp_ns, jpeg_quality))

    def show_state(self, observation: Observation, stamp_ns: int) -> None:
        """Publish joint states, then the tool's frame, then its pose, on which the gate decides."""
        self._joint_states.publish(
            joint_state_to_msg(self._contract, observation.joint_positions, observation.gripper, stamp_ns))
        self.frames.show_tool(observation.ee_pose, stamp_ns)
        self._ee_pose.publish(pose_to_msg(observation.ee_pose, self._contract.robot.base_frame, stamp_ns))
