"""What the recorder subscribes to, and what the publishers of these topics offer."""

import math

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.callback_groups import CallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.contract import CameraSpec, Contract
from rlco_common.episode import EVENT_TOPIC
from rlco_common.errors import RecordingError
from rlco_common.ros import CAMERA_QOS, COMMAND_QOS, EVENT_QOS, STATE_QOS
from rlco_teleop.audit_report import Finding
from rlco_teleop.episode_writer import Stream
from rlco_teleop.intake import Intake
from rlco_teleop.stream_meter import StreamSpec

IMAGE_CHOICES = ("raw", "jpeg")
RECEIVE_DEPTH = 1000            # deep on our side, also where the publisher keeps only its newest command
RECEIVE_QOS = QoSProfile(depth=RECEIVE_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
IMAGE_RECEIVE_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)       # seconds of images


def receive_qos(topic: str, message_type: type) -> QoSProfile:
    """The QoS that the recorder requests."""
    if topic == EVENT_TOPIC:
        return EVENT_QOS
    return IMAGE_RECEIVE_QOS if message_type in (Image, CompressedImage) else RECEIVE_QOS


class Polled(CallbackGroup):
    """Of subscriptions that no executor serves: their owner takes the messages when it wants to."""

    def can_execute(self, entity) -> bool:
        return False

    def beginning_execution(self, entity) -> bool:
        return False

    def ending_execution(self, entity) -> None:
        raise AssertionError("nothing of this group is ever executed")


def wait_for_polled(subscription, context, timeout_s: float) -> None:
    """Wait until a polled subscription has a message to take, or the time is over."""
    wait_set = rclpy_implementation.WaitSet(1, 0, 0, 0, 0, 0, context.handle)
    wait_set.clear_entities()
    wait_set.add_subscription(subscription.handle)
    wait_set.wait(round(timeout_s * 1e9))


class RecordedTopics:
    """Every topic of an episode. images: whether those of the cameras are raw or jpeg."""

    def __init__(self, node: Node, contract: Contract, images: str):
        self._node = node
        self._contract = contract
        self._jpeg = images == "jpeg"
        names, cameras = contract.topics, contract.cameras.values()
        self.kinds: dict[str, tuple[type, QoSProfile]] = {     # with the QoS that this workspace publishes it with
            EVENT_TOPIC: (String, EVENT_QOS),
            **{self._images_of(camera): (CompressedImage if self._jpeg else Image, CAMERA_QOS) for camera in cameras},
            **{camera.info_topic: (CameraInfo, CAMERA_QOS) for camera in cameras},
            names.joint_states: (JointState, STATE_QOS),
            names.ee_pose: (PoseStamped, STATE_QOS),
            names.gripper_command: (Float64MultiArray, COMMAND_QOS),    # before the pose, as the gate sends them
            names.target_pose: (PoseStamped, COMMAND_QOS),
            topics.TELEOP_TWIST: (TwistStamped, COMMAND_QOS),
            topics.TELEOP_DEADMAN: (Bool, COMMAND_QOS),
            topics.ACTION_CHUNK: (JointTrajectory, COMMAND_QOS),
            topics.GATE_STATUS: (DiagnosticArray, STATE_QOS),
        }

    def intake(self) -> Intake:
        commands = {topic for topic, (_, qos) in self.kinds.items() if qos is COMMAND_QOS}
        names = self._contract.topics
        return Intake({topic: self._msgtype(topic) for topic in self.kinds}, commands, names.gripper_command,
                      names.target_pose)

    @property
    def required(self) -> list[str]:
        """The topics without which an episode is of no use."""
        names = self._contract.topics
        return [*map(self._images_of, self._contract.cameras.values()), names.joint_states, names.ee_pose]

    def specs(self, rates_hz: dict[str, float]) -> list[StreamSpec]:
        """The streams to audit. rates_hz: expected rates by topic, where they are not to be learned."""
        names = self._contract.topics
        specs = [StreamSpec(self._images_of(camera), "camera", camera.max_age_s)
                 for camera in self._contract.cameras.values()]
        specs += [StreamSpec(topic, "state", names.state_max_age_s) for topic in (names.joint_states, names.ee_pose)]
        unknown = [topic for topic in rates_hz if topic not in {spec.topic for spec in specs}]
        if unknown:
            raise RecordingError(f"expected_rates names {', '.join(unknown)}; "
                                 f"the periodic streams are {', '.join(spec.topic for spec in specs)}")
        specs = [StreamSpec(spec.topic, spec.kind, spec.max_age_s, rates_hz.get(spec.topic)) for spec in specs]
        return specs + [StreamSpec(topic, "command", math.inf) for topic in (names.target_pose, topics.TELEOP_TWIST)]

    def streams(self) -> list[Stream]:
        """What goes into the bag, with the QoS that the present publisher offers, else the one this workspace uses."""
        streams = []
        for topic, (_, usual) in self.kinds.items():
            offers = self._node.get_publishers_info_by_topic(topic)
            offered = offers[0].qos_profile if offers else usual
            streams.append(Stream(
                topic, self._msgtype(topic),
                "reliable" if offered.reliability == ReliabilityPolicy.RELIABLE else "best_effort",
                "transient_local" if offered.durability == DurabilityPolicy.TRANSIENT_LOCAL else "volatile",
                usual.depth))
        return streams

    def publisher_counts(self) -> dict[str, int]:
        return {topic: self._node.count_publishers(topic) for topic in self.kinds}

    def unheard(self) -> dict[str, list[str]]:
        """Topic -> the publishers whose QoS keeps us from hearing them, each as `node: reason`."""
        unheard = {}
        for topic in self.kinds:
            if topic == EVENT_TOPIC:
                continue
            for info in self._node.get_publishers_info_by_topic(topic):
                compatible, reason = qos_check_compatible(info.qos_profile, RECEIVE_QOS)
                if compatible == QoSCompatibility.ERROR:
                    unheard.setdefault(topic, []).append(f"{info.node_name}: {reason}")
        return unheard

    def findings(self) -> list[Finding]:
        """What is wrong in the graph at present: publishers that are not heard, more than one on a stream."""
        findings = [Finding(topic, "qos", len(publishers), 0) for topic, publishers in self.unheard().items()]
        counts = self.publisher_counts()
        return findings + [Finding(topic, "publishers", counts[topic], 1) for topic in self.required if counts[topic] > 1]

    def require_matching_publishers(self) -> None:
        for topic, publishers in self.unheard().items():
            raise RecordingError(f"{topic}: a publisher offers another QoS than the recorder needs, nothing would arrive "
                                 f"({'; '.join(publishers)}); make it reliable")

    def explain_missing(self, missing: list[str]) -> str:
        """Why an episode cannot start, and what to do: a driver is not there, or offers its images in the other form."""
        reasons = []
        for camera in self._contract.cameras.values():
            wanted, other = self._images_of(camera), self._images_of(camera, not self._jpeg)
            if wanted in missing and not self._node.count_publishers(wanted) and self._node.count_publishers(other):
                reasons.append(f"the camera offers only {other}: set images to {IMAGE_CHOICES[not self._jpeg]}")
        reasons.append("start its driver, or set require_streams to false to record without it")
        return f"nothing received yet on {', '.join(missing)}; {'; '.join(reasons)}"

    def _images_of(self, camera: CameraSpec, jpeg: bool | None = None) -> str:
        return camera.compressed_topic if (self._jpeg if jpeg is None else jpeg) else camera.topic

    def _msgtype(self, topic: str) -> str:
        message_type = self.kinds[topic][0]
        return f"{message_type.__module__.partition('.')[0]}/msg/{message_type.__name__}"
