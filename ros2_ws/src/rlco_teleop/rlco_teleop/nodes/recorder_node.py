"""The recorder node: one MCAP bag per episode, from serialised messages. A thin shell around rlco_teleop.recording."""

import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.serialization import deserialize_message
from std_msgs.msg import String
from std_srvs.srv import Trigger

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent, EpisodeMetadata, event_from_json
from rlco_common.errors import RecordingError, RlcoError
from rlco_common.ros import EVENT_QOS, STATE_QOS, RlcoLifecycleNode, declare, declare_contract, diagnostics, run_node
from rlco_teleop.bags import AUDIT_KEY
from rlco_teleop.episode_writer import repair_all, require_writable
from rlco_teleop.nodes.recorded_topics import IMAGE_CHOICES, Polled, RecordedTopics, receive_qos, wait_for_polled
from rlco_teleop.nodes.recorder_audit import RecorderAudit
from rlco_teleop.recording import STOPPED_KEY, Recording, disk_problem, require_free_space

TAKE_PERIOD_S = 0.02        # the middleware queues meanwhile; a round of the executor per message would cost far more
CHECK_PERIOD_S = 0.2
LAST_COMMAND_TIMEOUT_S = 1.0
DIAGNOSTICS_PERIOD_S = 1.0


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
        declare(self, "images", "raw", "what is recorded of the cameras; jpeg: their /compressed topic. Takes effect when "
                "the node is activated", choices=IMAGE_CHOICES)
        declare(self, "min_free_mb", 500, "refuse to start with less free disk space, MB", low=0)
        declare(self, "stop_free_mb", 200, "end a running episode, saved and not judged, with less free disk space, MB", low=0)
        declare(self, "require_streams", True, "refuse to start before every camera and state topic has delivered")
        self._queue_size = declare(self, "queue_size", 4096, "messages that may wait for the disk, at most", low=1,
                                   read_only=True)
        self._recording: Recording | None = None
        self._ended = ""        # why the last episode ended by itself
        self._reset_event: EpisodeEvent | None = None
        self._endpoints = []
        self._receivers = {}
        self._audit = RecorderAudit(self)
        for name, step in (("start", self._start), ("success", lambda: self._finish(True)),
                           ("fail", lambda: self._finish(False)), ("discard", self._discard)):
            self.create_service(Trigger, f"~/{name}", partial(self._serve, step))
        self._events = self.create_publisher(String, EVENT_TOPIC, EVENT_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._prepare_directory)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        connected = self.guarded(self._connect)
        if connected != TransitionCallbackReturn.SUCCESS:
            return connected
        for period_s, step in ((TAKE_PERIOD_S, self._take_what_arrived), (CHECK_PERIOD_S, self._watch),
                               (DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)):
            timer = self.create_timer(period_s, step, clock=Clock(clock_type=ClockType.STEADY_TIME))
            self._endpoints.append((self.destroy_timer, timer))
        return super().on_activate(state)

    def _connect(self) -> None:
        self._topics = RecordedTopics(self, self._contract, self.get_parameter("images").value)
        self._audit.activate(self._topics)
        self._intake = self._topics.intake()
        group, no_events = Polled(), SubscriptionEventCallbacks(use_default_callbacks=False)     # nobody would serve them
        for topic, (message_type, _) in self._topics.kinds.items():
            subscription = self.create_subscription(
                message_type, topic, partial(self._on_message, topic), receive_qos(topic, message_type), raw=True,
                callback_group=group, event_callbacks=no_events)
            self._receivers[topic] = subscription
            self._endpoints.append((self.destroy_subscription, subscription))

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        for destroy, endpoint in self._endpoints:
            destroy(endpoint)
        self._endpoints.clear()
        self._receivers.clear()
        return super().on_deactivate(state)

    def close(self) -> None:
        """Complete an open episode, without a judgement; called at deactivation and at the end of the process."""
        if self._recording is not None:
            if self.context.ok():
                self._take_what_arrived()
            recording = self._take()
            try:
                self.get_logger().warning(f"closed without a judgement: {self._complete(recording, recording.metadata)}")
            except RecordingError as error:
                self.get_logger().error(str(error))

    def _prepare_directory(self) -> None:
        require_writable(self._root)
        for repair in repair_all(self._root):
            self.get_logger().warning(repair.message)

    # -- messages

    def _on_message(self, topic: str, data: bytes, info: dict) -> None:
        if topic == EVENT_TOPIC:
            self._note_event(data)
        else:   # a reset must not come late
            self._take_all(EVENT_TOPIC)
        self._audit.arrived(topic, info["publication_sequence_number"])
        for record in self._intake.take(topic, data, self._received_ns(info), is_state=topic != EVENT_TOPIC):
            self._audit.took(record)
            if self._recording is not None:
                self._recording.put(record)

    def _received_ns(self, info: dict) -> int | None:
        """When the middleware received a message; None in simulated time."""
        now_ns = self._now_ns()
        return now_ns if now_ns is None else info["received_timestamp"] or now_ns

    def _now_ns(self) -> int | None:
        return None if self.get_parameter("use_sim_time").value else self.get_clock().now().nanoseconds

    def _take_what_arrived(self) -> None:
        """Handle every message that the middleware has delivered by now; called before a service acts, too, so that an
        episode's boundaries are exact."""
        for topic in self._receivers:
            self._take_all(topic)
        self._audit.check_simulated()

    def _take_all(self, topic: str) -> None:
        subscription = self._receivers[topic]
        with subscription.handle:
            while (taken := subscription.handle.take_message(subscription.msg_type, subscription.raw)) is not None:
                self._on_message(topic, *taken)

    def _note_event(self, data: bytes) -> None:
        try:
            event = event_from_json(deserialize_message(data, String).data)
        except RlcoError as error:
            self.get_logger().warning(str(error))
            return
        if event.kind == "reset":
            self._reset_event = event
            self._intake.reset(EVENT_TOPIC, data, event.stamp_ns)

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
        self._topics.require_matching_publishers()
        if self.get_parameter("require_streams").value:
            missing = self._intake.missing(self._topics.required)
            if missing:
                raise RecordingError(self._topics.explain_missing(missing))
        metadata = self._episode_metadata()
        self._recording = Recording(self._root, metadata, self._topics.streams(), self._queue_size)
        self._ended = ""
        now_ns = self._now_ns()
        self._audit.begin(self._intake.newest_stamp_ns if now_ns is None else now_ns, now_ns is not None, metadata.domain)
        for record in self._intake.preroll(now_ns):
            self._audit.took(record, preroll=True)
            self._recording.put(record)
        self._tell("start", metadata)
        return metadata.episode

    def _finish(self, success: bool) -> str:
        if self._recording is not None and self._now_ns() is None:
            self._take_last_command()
        recording = self._take()
        metadata = recording.metadata.judged(success)
        directory = self._complete(recording, metadata)
        self._tell("success" if success else "failure", metadata)
        return str(directory)

    def _take_last_command(self) -> None:
        """In lock step the last observation follows from a command, which may be slower to get here than this call."""
        names, period_ns = self._contract.topics, self._contract.control_period_ns
        deadline_s = time.monotonic() + LAST_COMMAND_TIMEOUT_S
        while self._intake.lacks_command(names.target_pose, names.ee_pose, period_ns):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return      # the scene was stepped without a command
            wait_for_polled(self._receivers[names.target_pose], self.context, left_s)
            self._take_what_arrived()

    def _complete(self, recording: Recording, metadata: EpisodeMetadata, stopped: str = "") -> Path:
        """Finish the bag, with its audit in it. stopped: why the episode ended before anybody ended it."""
        audit = self._audit.finish(self._now_ns(), recording.dropped, [stopped] if stopped else [])
        directory = recording.finish(metadata, {AUDIT_KEY: audit.to_json()} | ({STOPPED_KEY: stopped} if stopped else {}))
        if recording.dropped:
            self.get_logger().warning(f"{directory} lacks messages that the disk was too slow for: {recording.dropped}")
        return directory

    def _discard(self) -> str:
        recording = self._take()
        self._audit.drop()
        recording.discard()
        self._tell("discard", recording.metadata)
        return f"discarded {recording.metadata.episode}"

    def _take(self) -> Recording:
        if self._recording is None:
            raise RecordingError(self._ended or f"nothing is being recorded; call {topics.RECORDER_START} first")
        recording, self._recording = self._recording, None
        return recording

    # -- while an episode is recorded

    def _watch(self) -> None:
        """Warnings at once; and the end of the episode when the disk is nearly full."""
        recording = self._recording
        changed = self._audit.check(self._now_ns(), {} if recording is None else recording.dropped)
        if recording is not None:
            problem = disk_problem(self._root, self.get_parameter("stop_free_mb").value)
            if problem is not None:
                self._end_early(problem)
            elif recording.failure:
                self.get_logger().error(recording.failure, throttle_duration_sec=5.0)
        if changed:
            self._publish_diagnostics()

    def _end_early(self, reason: str) -> None:
        self._take_what_arrived()
        recording = self._take()
        try:
            directory = self._complete(recording, recording.metadata, stopped=reason)
            self._ended = f"episode ended, and saved without a judgement in {directory}: {reason}"
        except RecordingError as error:
            self._ended = str(error)
        self.get_logger().error(self._ended)
        self._publish_diagnostics()

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
                               contract_hash=self._contract.hash, contract=self._contract.to_json(),
                               variation=event.variation if event else "", **about)

    def _tell(self, kind: str, metadata: EpisodeMetadata) -> None:
        self._events.publish(String(data=EpisodeEvent(
            kind=kind, episode=metadata.episode, task=metadata.task, instruction=metadata.instruction,
            domain=metadata.domain, seed=metadata.seed, success=metadata.success).to_json()))

    def _publish_diagnostics(self) -> None:
        recording = self._recording
        if recording is None:
            level = DiagnosticStatus.ERROR if self._ended else DiagnosticStatus.OK
            message = diagnostics(self, "recorder", level, self._ended or "idle", {})
        else:
            level = DiagnosticStatus.ERROR if recording.failure else (
                DiagnosticStatus.WARN if recording.dropped else DiagnosticStatus.OK)
            message = diagnostics(self, "recorder", level, recording.failure or "recording", {
                "episode": recording.metadata.episode, "messages": recording.message_count, "backlog": recording.backlog,
                **{f"dropped {topic}": count for topic, count in recording.dropped.items()}})
        message.status.append(self._audit.status())
        self._diagnostics.publish(message)


def main(args=None) -> int:
    return run_node(RecorderNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
