"""The recorder node: one MCAP bag per episode, from serialised messages. A thin shell around rlco_teleop.recording."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent, EpisodeMetadata, event_from_json
from rlco_common.errors import RecordingError, RlcoError
from rlco_common.ros import (
    CAMERA_QOS,
    COMMAND_QOS,
    EVENT_QOS,
    STATE_QOS,
    RlcoLifecycleNode,
    declare,
    declare_contract,
    diagnostics,
    run_node,
)
from rlco_teleop.episode_writer import Stream, repair_all
from rlco_teleop.intake import Intake
from rlco_teleop.recording import Recording, require_free_space

DIAGNOSTICS_PERIOD_S = 1.0
RECEIVE_QOS = STATE_QOS         # deep on our side, also where the publisher keeps only its newest command


class RecorderNode(RlcoLifecycleNode):
    """Lifecycle node `recorder`; services ~/start, ~/success, ~/fail, ~/discard."""

    def __init__(self):
        super().__init__("recorder")
        self._contract = declare_contract(self)
        self._root = Path(declare(self, "output_directory", "bags", "where episodes are written", read_only=True))
        declare(self, "operator", "unknown", "who demonstrates; goes into the episode's metadata")
        declare(self, "task", "", "task of the contract; used until a reset event names one")
        declare(self, "instruction", "", "the sentence for the policy; used until a reset event brings one")
        declare(self, "domain", "real", "real, standin or twin; used until a reset event names one")
        declare(self, "seed", -1, "episode seed; used until a reset event brings one", low=-1)
        declare(self, "min_free_mb", 500, "refuse to start with less free disk space, MB", low=0)
        declare(self, "require_streams", True, "refuse to start before every camera and state topic has delivered")
        self._queue_size = declare(self, "queue_size", 4096, "messages that may wait for the disk, at most", low=1,
                                   read_only=True)
        self._recording: Recording | None = None
        self._reset_event: EpisodeEvent | None = None
        self._endpoints = []
        self._receivers = {}
        self._kinds = self._topic_kinds()
        self._intake = Intake(
            {topic: self._msgtype(topic) for topic in self._kinds},
            {topic for topic, (_, qos) in self._kinds.items() if qos is COMMAND_QOS},
            self._contract.topics.gripper_command, self._contract.topics.target_pose)
        for name, step in (("start", self._start), ("success", lambda: self._finish(True)),
                           ("fail", lambda: self._finish(False)), ("discard", self._discard)):
            self.create_service(Trigger, f"~/{name}", partial(self._serve, step))
        self._events = self.create_publisher(String, EVENT_TOPIC, EVENT_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)

    def _topic_kinds(self) -> dict[str, tuple[type, QoSProfile]]:
        """Every recorded topic with its type and the QoS that this workspace publishes it with."""
        names, cameras = self._contract.topics, self._contract.cameras.values()
        return {
            EVENT_TOPIC: (String, EVENT_QOS),
            **{camera.topic: (Image, CAMERA_QOS) for camera in cameras},
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

    @property
    def _required(self) -> list[str]:
        names = self._contract.topics
        return [*(camera.topic for camera in self._contract.cameras.values()), names.joint_states, names.ee_pose]

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._prepare_directory)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        for topic, (message_type, _) in self._kinds.items():
            qos = EVENT_QOS if topic == EVENT_TOPIC else RECEIVE_QOS
            subscription = self.create_subscription(
                message_type, topic, partial(self._on_message, topic), qos, raw=True)
            self._receivers[topic] = subscription
            self._endpoints.append((self.destroy_subscription, subscription))
        timer = self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics,
                                  clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._endpoints.append((self.destroy_timer, timer))
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        for destroy, endpoint in self._endpoints:
            destroy(endpoint)
        self._endpoints.clear()
        self._receivers.clear()
        self._intake.forget()
        self.close()
        return super().on_deactivate(state)

    def close(self) -> None:
        """Complete an open episode, without a judgement; called at deactivation and at the end of the process."""
        if self._recording is not None:
            recording, self._recording = self._recording, None
            try:
                self.get_logger().warning(f"closed without a judgement: {recording.finish(recording.metadata)}")
            except RecordingError as error:
                self.get_logger().error(str(error))

    def _prepare_directory(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordingError(f"cannot create output_directory: {error}") from error
        for repair in repair_all(self._root):
            self.get_logger().warning(repair.message)

    # -- messages

    def _on_message(self, topic: str, data: bytes) -> None:
        if topic == EVENT_TOPIC:
            self._note_event(data)
        else:   # several events may wait, of which the executor serves one a round: a reset must not come late
            self._take_all(EVENT_TOPIC)
        records = self._intake.take(topic, data, self._now_ns(), is_state=topic != EVENT_TOPIC)
        if self._recording is not None:
            for record in records:
                self._recording.put(record)

    def _now_ns(self) -> int | None:
        return None if self.get_parameter("use_sim_time").value else self.get_clock().now().nanoseconds

    def _take_what_arrived(self) -> None:
        """Handle every message that DDS has delivered by now, so that an episode's boundaries are exact.

        The executor takes one message of a topic a round, and serves calls in between.
        """
        for topic in self._receivers:
            self._take_all(topic)

    def _take_all(self, topic: str) -> None:
        subscription = self._receivers[topic]
        with subscription.handle:
            while (taken := subscription.handle.take_message(subscription.msg_type, subscription.raw)) is not None:
                self._on_message(topic, taken[0])

    def _note_event(self, data: bytes) -> None:
        try:
            event = event_from_json(deserialize_message(data, String).data)
        except RlcoError as error:
            self.get_logger().warning(str(error))
            return
        if event.kind == "reset":
            self._reset_event = event
            self._intake.reset(EVENT_TOPIC, data, event.stamp_ns)

    def _msgtype(self, topic: str) -> str:
        message_type = self._kinds[topic][0]
        return f"{message_type.__module__.partition('.')[0]}/msg/{message_type.__name__}"

    # -- services

    def _serve(self, step, request, response):
        try:
            self._take_what_arrived()
            response.success, response.message = True, step()
            self.get_logger().info(response.message)
        except (RlcoError, OSError) as error:
            response.success, response.message = False, str(error)
            self.get_logger().error(response.message)
        return response

    def _start(self) -> str:
        if self._recording is not None:
            raise RecordingError(f"episode '{self._recording.metadata.episode}' is being recorded; end it first")
        if not self._endpoints:
            raise RecordingError("the recorder is not active; activate it first")
        require_free_space(self._root, self.get_parameter("min_free_mb").value)
        self._require_matching_publishers()
        if self.get_parameter("require_streams").value:
            missing = self._intake.missing(self._required)
            if missing:
                raise RecordingError(f"nothing received yet on {', '.join(missing)}; start its driver, or set "
                                     "require_streams to false to record without it")
        metadata = self._episode_metadata()
        self._recording = Recording(self._root, metadata, self._streams(), self._queue_size)
        for record in self._intake.preroll(self._now_ns()):
            self._recording.put(record)
        self._tell("start", metadata)
        return metadata.episode

    def _finish(self, success: bool) -> str:
        recording = self._take()
        metadata = recording.metadata.judged(success)
        directory = recording.finish(metadata)
        if recording.dropped:
            self.get_logger().warning(f"{directory} lacks messages that the disk was too slow for: {recording.dropped}")
        self._tell("success" if success else "failure", metadata)
        return str(directory)

    def _discard(self) -> str:
        recording = self._take()
        recording.discard()
        self._tell("discard", recording.metadata)
        return f"discarded {recording.metadata.episode}"

    def _take(self) -> Recording:
        if self._recording is None:
            raise RecordingError(f"nothing is being recorded; call {topics.RECORDER_START} first")
        recording, self._recording = self._recording, None
        return recording

    # -- what an episode is about

    def _episode_metadata(self) -> EpisodeMetadata:
        event = self._reset_event
        about = {name: getattr(event, name) if event else self.get_parameter(name).value
                 for name in ("task", "instruction", "domain", "seed")}
        if not about["task"] or not about["instruction"]:
            raise RecordingError("no reset event named task and instruction; set the parameters task and instruction")
        self._contract.task(about["task"])
        name = f"{about['task']}-{datetime.now(UTC):%Y%m%dT%H%M%S_%f}"
        return EpisodeMetadata(episode=name, operator=self.get_parameter("operator").value,
                               contract_hash=self._contract.hash, contract=self._contract.to_json(), **about)

    def _streams(self) -> list[Stream]:
        """What to record, with the QoS that the present publisher offers, else the one this workspace uses."""
        streams = []
        for topic, (_, usual) in self._kinds.items():
            offers = self.get_publishers_info_by_topic(topic)
            offered = offers[0].qos_profile if offers else usual
            streams.append(Stream(
                topic, self._msgtype(topic),
                "reliable" if offered.reliability == ReliabilityPolicy.RELIABLE else "best_effort",
                "transient_local" if offered.durability == DurabilityPolicy.TRANSIENT_LOCAL else "volatile",
                usual.depth))
        return streams

    def _require_matching_publishers(self) -> None:
        for topic in self._kinds:
            if topic == EVENT_TOPIC:
                continue
            for info in self.get_publishers_info_by_topic(topic):
                compatible, reason = qos_check_compatible(info.qos_profile, RECEIVE_QOS)
                if compatible == QoSCompatibility.ERROR:
                    raise RecordingError(f"{topic}: the publisher in '{info.node_name}' offers another QoS than the "
                                         f"recorder needs, nothing would arrive: {reason}; make it reliable")

    def _tell(self, kind: str, metadata: EpisodeMetadata) -> None:
        self._events.publish(String(data=EpisodeEvent(
            kind=kind, episode=metadata.episode, task=metadata.task, instruction=metadata.instruction,
            domain=metadata.domain, seed=metadata.seed, success=metadata.success).to_json()))

    def _publish_diagnostics(self) -> None:
        recording = self._recording
        if recording is None:
            self._diagnostics.publish(diagnostics(self, "recorder", DiagnosticStatus.OK, "idle", {}))
            return
        level = DiagnosticStatus.ERROR if recording.failure else (
            DiagnosticStatus.WARN if recording.dropped else DiagnosticStatus.OK)
        self._diagnostics.publish(diagnostics(self, "recorder", level, recording.failure or "recording", {
            "episode": recording.metadata.episode, "messages": recording.message_count, "backlog": recording.backlog,
            **{f"dropped {topic}": count for topic, count in recording.dropped.items()}}))


def main(args=None) -> int:
    return run_node(RecorderNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
