"""The policy node: observations in, action chunks out. A thin shell around rlco_policy.worker.

Inference runs on the worker's thread, on the newest observation, never inside a callback. Lock step: exactly at the ticks
0, chunk, 2 * chunk, ... of an episode. Real time: early enough that the next chunk arrives before the current one ends
(`asynchronous`), or whenever a chunk is used up. In shadow mode nothing of it reaches the gate; the chunks are compared with
what the operator does.
"""

import sys
from collections.abc import Callable

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC, event_from_json
from rlco_common.errors import RlcoError
from rlco_common.gate import Source
from rlco_common.messages import diagnostic_values, image_from_msg, pose_from_msg
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
from rlco_policy.opening import choose_execution, open_runner
from rlco_policy.shadow import LiveShadow
from rlco_policy.worker import InferenceWorker, Runner

DIAGNOSTICS_PERIOD_S = 1.0
SWITCH_INTERVAL_S = 0.0005      # Python's 5 ms would let a due chunk wait that long behind callbacks


class PolicyNode(RlcoLifecycleNode):
    """Lifecycle node `policy`: configuring loads and warms up, activating runs."""

    def __init__(self, open_runner: Callable[..., Runner] = open_runner):
        super().__init__("policy")
        self._contract = declare_contract(self)
        declare(self, "checkpoint", "", "directory of the policy checkpoint, or address of a policy server, ws://host:port",
                read_only=True)
        declare(self, "instruction", "", "sentence for the policy until a reset event brings one; may be changed any time")
        self._lockstep = declare(self, "lockstep", False, "act once per tick of /clock, not in real time", read_only=True)
        asynchronous = declare(self, "asynchronous", True, "real time: compute the next chunk while the current one runs; "
                               "false: the arm waits for it", read_only=True)
        shadow = declare(self, "shadow", False, "move nothing; compare the actions with the operator's, by phase, on "
                         f"{topics.DIAGNOSTICS}", read_only=True)
        self._shadow = LiveShadow(self._contract) if shadow else None
        self._asynchronous = asynchronous and not self._lockstep and not shadow
        self._max_slowdown = declare(self, "max_slowdown", 4, "with a model too slow for its horizon, play every action up "
                                     "to this many control periods long rather than stop and go", low=1, high=20,
                                     read_only=True)
        self._options = {
            "temperature": declare(self, "temperature", 0.0, "randomness of the actions; 0 is deterministic", low=0.0,
                                   high=2.0, read_only=True),
            "threads": declare(self, "threads", 1, "CPU threads of the model", low=1, read_only=True),
            "device": declare(self, "device", "cpu", "where the model runs", choices=("cpu", "cuda"), read_only=True),
            "timeout_s": declare(self, "remote_timeout_s", 2.0, "time within which a policy server has to answer, s", low=0.05,
                                 high=60.0, read_only=True),
        }
        self._open_runner = open_runner
        self._runner: Runner | None = None
        self._worker: InferenceWorker | None = None
        self._endpoints = []
        self._source = ""       # who is in charge, as the gate says
        self._opening: float | None = None
        self.add_on_set_parameters_callback(self._on_parameters)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._load)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        chunk_topic = topics.ACTION_CHUNK if self._shadow is None else topics.SHADOW_CHUNK
        self._chunks = self._advertise(JointTrajectory, chunk_topic, COMMAND_QOS)
        self._diagnostics = self._advertise(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        execution = choose_execution(self._runner, self._contract, asynchronous=self._asynchronous,
                                     max_slowdown=self._max_slowdown)
        self._worker = InferenceWorker(
            self._contract, self._runner, execution, lockstep=self._lockstep, publish=self._publish,
            clock_ns=lambda: self.get_clock().now().nanoseconds,
            warn=lambda text: self.get_logger().warning(text, throttle_duration_sec=5.0))
        self._worker.instruct(self.get_parameter("instruction").value)
        names = self._contract.topics
        self._listen(String, EVENT_TOPIC, self._on_event, EVENT_QOS)
        for name, camera in self._contract.cameras.items():
            self._listen(Image, camera.topic, lambda message, name=name: self._on_image(name, message), CAMERA_QOS)
        self._listen(JointState, names.joint_states, self._on_joint_states, STATE_QOS)
        self._listen(PoseStamped, names.ee_pose, self._on_ee_pose, STATE_QOS)
        if self._asynchronous or self._shadow is not None:
            self._listen(DiagnosticArray, topics.GATE_STATUS, self._on_gate_status, STATE_QOS)
        if self._shadow is not None:
            self._listen(Float64MultiArray, names.gripper_command, self._on_gripper_command, STATE_QOS)
            self._listen(PoseStamped, names.target_pose, self._on_target_pose, STATE_QOS)
        timer = self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics,
                                  clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._endpoints.append((self.destroy_timer, timer))
        self._worker.start()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_worker()
        for destroy, endpoint in self._endpoints:
            destroy(endpoint)
        self._endpoints.clear()
        return super().on_deactivate(state)

    def close(self) -> None:
        """End the inference thread and let go of the policy."""
        self._stop_worker()
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _load(self) -> None:
        checkpoint = self.get_parameter("checkpoint").value
        self._runner = self._open_runner(checkpoint, self._contract, **self._options)
        self.get_logger().info(f"loaded {checkpoint}; an inference takes {self._runner.latency_s * 1e3:.0f} ms")

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _listen(self, message_type, topic, callback, qos) -> None:
        self._endpoints.append((self.destroy_subscription, self.create_subscription(message_type, topic, callback, qos)))

    def _advertise(self, message_type, topic, qos):
        publisher = self.create_publisher(message_type, topic, qos)
        self._endpoints.append((self.destroy_publisher, publisher))
        return publisher

    # -- messages: hand them to the worker

    def _on_parameters(self, parameters) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == "instruction" and self._worker is not None:
                self._worker.instruct(parameter.value)
        return SetParametersResult(successful=True)

    def _on_event(self, message: String) -> None:
        try:
            event = event_from_json(message.data)
        except RlcoError as error:
            self.get_logger().warning(str(error))
            return
        if event.kind == "reset":
            self._worker.new_episode(event.instruction, event.seed, event.stamp_ns)
            if self._shadow is not None:
                self._shadow.interrupt()

    def _on_image(self, name: str, message: Image) -> None:
        self._worker.feed(lambda assembler: assembler.add_image(
            name, image_from_msg(self._contract.cameras[name], message), stamp_to_ns(message.header.stamp)))

    def _on_joint_states(self, message: JointState) -> None:
        self._worker.feed(lambda assembler: assembler.add_joint_state(
            message.name, message.position, stamp_to_ns(message.header.stamp)))

    def _on_ee_pose(self, message: PoseStamped) -> None:
        self._worker.feed(lambda assembler: assembler.add_ee_pose(
            pose_from_msg(message), stamp_to_ns(message.header.stamp)))

    def _on_gate_status(self, message: DiagnosticArray) -> None:
        source = diagnostic_values(message.status[0]).get("source", "")
        if source == self._source:
            return
        self._source = source
        if self._shadow is None:
            self._worker.interrupt()        # or a chunk from before a takeover would be continued after it
        elif source == Source.OPERATOR.name:
            self._shadow.claim()
        else:
            self._shadow.interrupt()

    def _on_gripper_command(self, message: Float64MultiArray) -> None:
        self._opening = message.data[0]     # comes before the target that it goes with

    def _on_target_pose(self, message: PoseStamped) -> None:
        if self._opening is None:
            return
        command = pose_from_msg(message), self._opening, stamp_to_ns(message.header.stamp)
        if self._source == Source.OPERATOR.name:
            self._shadow.commanded(*command)
        elif self._source in ("", Source.NOBODY.name):
            self._shadow.hold(*command)

    # -- what goes out

    def _publish(self, actions: np.ndarray, stamp_ns: int) -> None:
        if self._shadow is not None:
            self._shadow.predicted(actions, stamp_ns)
        self._chunks.publish(chunk_to_msg(self._contract, actions, stamp_ns))

    def _publish_diagnostics(self) -> None:
        failed, problem, values = self._worker.status()
        level = DiagnosticStatus.ERROR if failed else DiagnosticStatus.WARN if problem else DiagnosticStatus.OK
        running = "running" if self._shadow is None else "in the shadow of the operator"
        self._diagnostics.publish(diagnostics(self, "policy", level, problem or running, values))
        if self._shadow is not None:
            self._diagnostics.publish(diagnostics(self, "shadow", DiagnosticStatus.OK, "mean error of the policy by phase",
                                                  self._shadow.values()))


def main(args=None) -> int:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return run_node(PolicyNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
