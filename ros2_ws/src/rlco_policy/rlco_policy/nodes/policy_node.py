"""The policy node: observations in, action chunks out. A thin shell around rlco_policy.runner.

Inference runs on its own thread, on the newest observation, never inside a callback. Lock step: exactly at the ticks
0, chunk, 2 * chunk, ... of an episode. Real time: whenever a chunk is used up and a new image has arrived.
"""

import threading
import time
import traceback

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.assembler import ObservationAssembler, ObservationUnavailable
from rlco_common.episode import EVENT_TOPIC, event_from_json
from rlco_common.errors import RlcoError
from rlco_common.messages import image_from_msg, pose_from_msg
from rlco_common.ros import (
    CAMERA_QOS,
    COMMAND_QOS,
    EVENT_QOS,
    STATE_QOS,
    RlcoLifecycleNode,
    chunk_to_msg,
    declare,
    declare_contract,
    diagnostics,
    run_node,
    stamp_to_ns,
)
from rlco_policy.checkpoint import load_policy
from rlco_policy.runner import PolicyRunner

DIAGNOSTICS_PERIOD_S = 1.0
REPEAT_AFTER_S = 1.0      # lock step: the gate drops chunks at a takeover; without a new one both would wait for ever


class PolicyNode(RlcoLifecycleNode):
    """Lifecycle node `policy`: configuring loads and warms up, activating runs."""

    def __init__(self):
        super().__init__("policy")
        self._contract = declare_contract(self)
        declare(self, "checkpoint", "", "directory of the policy checkpoint", read_only=True)
        declare(self, "instruction", "", "sentence for the policy until a reset event brings one; may be changed any time")
        self._lockstep = declare(self, "lockstep", False, "act once per tick of /clock, not in real time", read_only=True)
        temperature = declare(self, "temperature", 0.0, "randomness of the actions; 0 is deterministic", low=0.0, high=2.0,
                              read_only=True)
        self._threads = declare(self, "threads", 1, "CPU threads of the model", low=1, read_only=True)
        self._temperature = temperature
        self._assembler = ObservationAssembler(self._contract)
        self._changed = threading.Condition()      # guards the assembler, the episode and the counters
        self._stopping = False
        self._worker: threading.Thread | None = None
        self._endpoints = []
        self._instruction, self._seed, self._episode, self._not_before_ns = "", 0, 0, 0
        self._counts = {"chunks": 0, "refused": 0}
        self._latency_s = self._age_s = 0.0
        self._reason, self._failure = "", ""
        self.add_on_set_parameters_callback(self._on_parameters)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._load)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._chunks = self.create_publisher(JointTrajectory, topics.ACTION_CHUNK, COMMAND_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        self._endpoints += [(self.destroy_publisher, self._chunks), (self.destroy_publisher, self._diagnostics)]
        names = self._contract.topics
        self._listen(String, EVENT_TOPIC, self._on_event, EVENT_QOS)
        for name, camera in self._contract.cameras.items():
            self._listen(Image, camera.topic, lambda message, name=name: self._on_image(name, message), CAMERA_QOS)
        self._listen(JointState, names.joint_states, self._on_joint_states, STATE_QOS)
        self._listen(PoseStamped, names.ee_pose, self._on_ee_pose, STATE_QOS)
        timer = self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics,
                                  clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._endpoints.append((self.destroy_timer, timer))
        self._stopping, self._failure = False, ""
        self._worker = threading.Thread(target=self._work_or_report, name="inference", daemon=True)
        self._worker.start()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        for destroy, endpoint in self._endpoints:
            destroy(endpoint)
        self._endpoints.clear()
        self._assembler.clear()
        return super().on_deactivate(state)

    def close(self) -> None:
        """End the inference thread."""
        if self._worker is not None:
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
            self._worker.join(timeout=10.0)
            self._worker = None

    def _load(self) -> None:
        checkpoint = self.get_parameter("checkpoint").value
        if not checkpoint:
            raise RlcoError("parameter checkpoint is empty; give the directory of a policy, such as runs/demo/rl_co/policy")
        torch.set_num_threads(self._threads)
        self._runner = PolicyRunner(load_policy(checkpoint, self._contract), self._contract, self._temperature)
        self._runner.warm_up()
        self._instruction = self.get_parameter("instruction").value
        self.get_logger().info(f"loaded {checkpoint}")

    def _listen(self, message_type, topic, callback, qos) -> None:
        self._endpoints.append((self.destroy_subscription, self.create_subscription(message_type, topic, callback, qos)))

    # -- messages: store and wake the worker

    def _on_parameters(self, parameters) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == "instruction":
                with self._changed:
                    self._instruction = parameter.value
                    self._changed.notify_all()
        return SetParametersResult(successful=True)

    def _on_event(self, message: String) -> None:
        try:
            event = event_from_json(message.data)
        except RlcoError as error:
            self.get_logger().warning(str(error))
            return
        if event.kind != "reset":
            return
        with self._changed:
            self._instruction, self._seed = event.instruction, event.seed
            self._episode += 1
            self._not_before_ns = event.stamp_ns    # what was seen earlier belongs to another episode
            self._changed.notify_all()

    def _on_image(self, name: str, message: Image) -> None:
        self._add(lambda: self._assembler.add_image(
            name, image_from_msg(self._contract.cameras[name], message), stamp_to_ns(message.header.stamp)))

    def _on_joint_states(self, message: JointState) -> None:
        self._add(lambda: self._assembler.add_joint_state(message.name, message.position, stamp_to_ns(message.header.stamp)))

    def _on_ee_pose(self, message: PoseStamped) -> None:
        self._add(lambda: self._assembler.add_ee_pose(pose_from_msg(message), stamp_to_ns(message.header.stamp)))

    def _add(self, add) -> None:
        with self._changed:
            try:
                add()
            except RlcoError as error:
                self._refuse(str(error))
            self._changed.notify_all()

    # -- inference thread

    def _work_or_report(self) -> None:
        try:
            self._work()
        except Exception as error:      # whatever it is, a node that goes on silently without its thread is worse
            self._failure = f"inference ended with {error!r}; restart the node"
            self.get_logger().fatal(f"{self._failure}\n{traceback.format_exc()}")

    def _work(self) -> None:
        episode, sent, sent_at = -1, None, 0.0
        while True:
            with self._changed:
                if self._stopping:
                    return
                if episode != self._episode:
                    episode, sent = self._episode, None
                    self._runner.new_episode(self._seed)
                observation = self._due_observation()
                repeat_in_s = sent_at + REPEAT_AFTER_S - time.monotonic() if sent is not None and self._lockstep else None
                if observation is None and (repeat_in_s is None or repeat_in_s > 0):
                    self._changed.wait(repeat_in_s)
                    continue
                instruction = self._instruction
            if observation is not None:
                chunk = self._infer(observation, instruction)
                if chunk is None:
                    with self._changed:
                        self._changed.wait(REPEAT_AFTER_S)      # the same observation would fail again
                    continue
                sent = chunk
            if sent is not None and episode == self._episode:
                self._chunks.publish(sent)
                sent_at = time.monotonic()

    def _due_observation(self):
        """The observation for the next chunk when one is due, else None. Called with the lock held."""
        complete_ns = self._assembler.complete_ns
        if complete_ns is None or complete_ns < self._not_before_ns or not self._runner.due(complete_ns):
            return None
        if not self._instruction:
            self._refuse("no instruction: set the parameter, or let a reset event bring one")
            return None
        now_ns = complete_ns if self._lockstep else max(complete_ns, self.get_clock().now().nanoseconds)
        try:
            observation = self._assembler.observation_at(now_ns)
        except ObservationUnavailable as error:
            self._refuse(str(error))
            return None
        self._age_s = (now_ns - observation.stamp_ns) * 1e-9
        return observation

    def _infer(self, observation, instruction: str):
        started = time.monotonic()
        try:
            actions = self._runner.infer(observation, instruction)
        except RlcoError as error:
            with self._changed:
                self._refuse(str(error))
            return None
        with self._changed:
            self._counts["chunks"] += 1
            self._latency_s, self._reason = time.monotonic() - started, ""
        return chunk_to_msg(self._contract, actions, observation.stamp_ns)

    def _refuse(self, reason: str) -> None:
        self._counts["refused"] += 1
        self._reason = reason
        self.get_logger().warning(f"no chunk: {reason}", throttle_duration_sec=5.0)

    def _publish_diagnostics(self) -> None:
        with self._changed:
            values = {**self._counts, "latency_s": f"{self._latency_s:.4f}", "image_age_s": f"{self._age_s:.4f}"}
            reason = self._failure or self._stale_input() or self._reason
        level = DiagnosticStatus.ERROR if self._failure else DiagnosticStatus.WARN if reason else DiagnosticStatus.OK
        self._diagnostics.publish(diagnostics(self, "policy", level, reason or "running", values))

    def _stale_input(self) -> str:
        """Why no observation could be given now, in real time: a camera that stopped makes no chunk due any more."""
        if self._lockstep:
            return ""
        try:
            self._assembler.observation_at(max(self._assembler.complete_ns or 0, self.get_clock().now().nanoseconds))
        except ObservationUnavailable as error:
            return str(error)
        return ""


def main(args=None) -> int:
    return run_node(PolicyNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
