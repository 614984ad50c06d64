"""The gate node: the only publisher on the arm's command topics. A thin shell around rlco_common.gate."""

import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Bool, Float64, Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent, event_from_json
from rlco_common.errors import DataError, RlcoError
from rlco_common.gate import Command, GateState, Refusal, Source
from rlco_common.gate_drives import LockstepGate, RealTimeGate
from rlco_common.gate_pacing import StepPacer
from rlco_common.messages import pose_from_msg
from rlco_common.ros import (
    COMMAND_QOS,
    EVENT_QOS,
    STATE_QOS,
    RlcoLifecycleNode,
    chunk_from_msg,
    declare,
    declare_contract,
    diagnostics,
    pose_to_msg,
    run_node,
    stamp_to_ns,
)
from rlco_teleop.nodes.planned_moves import PlannedMoves, declare_planned_speeds

STATUS_PERIOD_S = 0.2
DIAGNOSTICS_PERIOD_S = 1.0
LEVELS = {GateState.STOPPED: DiagnosticStatus.WARN, GateState.FAULT: DiagnosticStatus.ERROR}


class GateNode(RlcoLifecycleNode):
    """Lifecycle node `gate`. Inactive it commands nothing, but it takes a stop in every lifecycle state."""

    def __init__(self):
        super().__init__("gate")
        self._contract = declare_contract(self)
        self._lockstep = declare(self, "lockstep", False, "decide tick by tick with a simulator, not in real time",
                                 read_only=True)
        self._rate_hz = declare(self, "rate_hz", 20.0, "real time: rate of target poses in Hz, a multiple of the "
                                "contract's control_rate_hz", low=1.0, high=1000.0, read_only=True)
        planned_speeds = declare_planned_speeds(self)
        self._gate = (LockstepGate(self._contract) if self._lockstep else
                      RealTimeGate(self._contract, self._rate_hz, planned_speeds))
        self._live = False
        self._reported = None
        self._driver = Source.NOBODY        # who moved the arm last in this episode
        self._running_timers = []
        self._endpoints = []
        self.create_service(Trigger, "~/stop", self._on_stop)
        self.create_service(Trigger, "~/rearm", self._on_rearm)
        self.create_service(SetBool, "~/enable_policy", self._on_enable_policy)
        self._planned = PlannedMoves(self, self._gate, self._contract, self._answer, lambda: self._live)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._connect)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._live = True
        clock = Clock(clock_type=ClockType.STEADY_TIME)     # ROS time may stand still; the watchdog must not
        if not self._lockstep:
            self._pacer = StepPacer(round(1e9 / self._rate_hz), time.monotonic_ns())
            self._step_timer = self.create_timer(1.0 / self._rate_hz, self._step_when_due, clock=clock)
            self._running_timers.append(self._step_timer)
        self._running_timers.append(self.create_timer(STATUS_PERIOD_S, self._publish_status, clock=clock))
        self._running_timers.append(self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=clock))
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._live = False
        for timer in self._running_timers:
            self.destroy_timer(timer)
        self._running_timers.clear()
        self._gate.reset()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        for destroy, endpoint in self._endpoints:
            destroy(endpoint)
        self._endpoints.clear()
        return super().on_cleanup(state)

    def _connect(self) -> None:
        names = self._contract.topics
        # The event comes first: rclpy serves ready subscriptions in this order, and a reset precedes its first state.
        self._subscribe(String, EVENT_TOPIC, self._on_event, EVENT_QOS)
        self._subscribe(Bool, topics.TELEOP_DEADMAN, self._on_deadman, COMMAND_QOS)
        self._subscribe(Float64, topics.TELEOP_GRIPPER, self._on_gripper, COMMAND_QOS)
        self._subscribe(TwistStamped, topics.TELEOP_TWIST, self._on_twist, COMMAND_QOS)
        self._subscribe(JointTrajectory, topics.ACTION_CHUNK, self._on_chunk, COMMAND_QOS)
        self._subscribe(PoseStamped, names.ee_pose, self._on_ee_pose, STATE_QOS)
        self._planned.connect(self._subscribe)
        self._gripper = self._advertise(Float64MultiArray, names.gripper_command, COMMAND_QOS)
        self._target = self._advertise(PoseStamped, names.target_pose, COMMAND_QOS)
        self._status = self._advertise(DiagnosticArray, topics.GATE_STATUS, STATE_QOS)
        self._diagnostics = self._advertise(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        self._events = self._advertise(String, EVENT_TOPIC, EVENT_QOS)

    def _subscribe(self, message_type, topic, callback, qos) -> None:
        subscription = self.create_subscription(message_type, topic, callback, qos)
        self._endpoints.append((self.destroy_subscription, subscription))

    def _advertise(self, message_type, topic, qos):
        publisher = self.create_publisher(message_type, topic, qos)
        self._endpoints.append((self.destroy_publisher, publisher))
        return publisher

    # -- inputs

    def _in_base_frame(self, topic: str, header) -> bool:
        """Whether a message speaks of the base frame; an empty frame is taken for it. Else it is refused and named."""
        if header.frame_id in ("", self._contract.robot.base_frame):
            return True
        self._gate.refuse(Refusal.WRONG_FRAME)
        self.get_logger().error(f"{topic} is in frame '{header.frame_id}', the contract says "
                                f"'{self._contract.robot.base_frame}'", throttle_duration_sec=5.0)
        return False

    def _on_ee_pose(self, message: PoseStamped) -> None:
        if self._in_base_frame(self._contract.topics.ee_pose, message.header):
            self._gate.on_state(pose_from_msg(message), stamp_to_ns(message.header.stamp), time.monotonic_ns())
            self._decide()

    def _on_deadman(self, message: Bool) -> None:
        self._gate.on_deadman(message.data, time.monotonic_ns())
        self._decide()

    def _on_gripper(self, message: Float64) -> None:
        self._gate.on_gripper(message.data, time.monotonic_ns())
        self._decide()

    def _on_twist(self, message: TwistStamped) -> None:
        if not self._in_base_frame(topics.TELEOP_TWIST, message.header):
            return      # a velocity along other axes must not be taken for one along the base's
        linear, angular = message.twist.linear, message.twist.angular
        values = [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]
        self._gate.on_twist(values, *self._dated(message.header.stamp))
        self._decide()
        if self._live and not self._lockstep:
            if self._pacer.command_arrived(time.monotonic_ns()):
                self._step()
            self._await_step()

    def _on_chunk(self, message: JointTrajectory) -> None:
        try:
            actions = chunk_from_msg(self._contract, message)
        except DataError as error:
            self._gate.refuse(Refusal.BAD_SHAPE)
            self.get_logger().warning(str(error), throttle_duration_sec=5.0)
            return
        self._gate.on_chunk(actions, *self._dated(message.header.stamp))
        self._decide()

    def _on_event(self, message: String) -> None:
        try:
            event = event_from_json(message.data)
        except RlcoError as error:
            self.get_logger().warning(str(error))
            return
        if event.kind == "reset":
            self._gate.reset(event.stamp_ns)
            self._driver = Source.NOBODY
            self._report_change()

    def _dated(self, stamp) -> tuple[int, int, int]:
        """(stamp, how old the node's clock says it is, monotonic now), all nanoseconds."""
        stamp_ns = stamp_to_ns(stamp)
        return stamp_ns, self.get_clock().now().nanoseconds - stamp_ns, time.monotonic_ns()

    # -- services

    def _on_stop(self, request, response):
        self._gate.stop()
        if self._live and not self._lockstep:
            self._publish(self._gate.held_command)
        self._report_change()
        self.get_logger().warning("stopped")
        response.success, response.message = True, f"stopped; {topics.GATE_REARM} clears it"
        return response

    def _on_rearm(self, request, response):
        return self._answer(response, self._gate.rearm(time.monotonic_ns()), "re-armed")

    def _on_enable_policy(self, request, response):
        if not self._live:
            return self._answer(response, "the gate is not active", "")
        reason = self._gate.enable_policy(request.data, time.monotonic_ns())
        self._answer(response, reason, "the policy is in charge" if request.data else "the policy is not in charge")
        self._decide()
        return response

    def _answer(self, response, reason: str | None, done: str):
        response.success, response.message = reason is None, reason or done
        self.get_logger().info(response.message)
        self._report_change()
        return response

    # -- commands and status

    def _step_when_due(self) -> None:
        if not self._pacer.wait_ns(time.monotonic_ns()):
            self._step()
        self._await_step()

    def _await_step(self) -> None:
        self._step_timer.timer_period_ns = max(1, self._pacer.wait_ns(time.monotonic_ns()))
        self._step_timer.reset()

    def _step(self) -> None:
        now_ns = time.monotonic_ns()
        self._pacer.step_done(now_ns)
        command = self._gate.step(now_ns)
        self._report_driver()
        self._publish(command)
        self._report_change()

    def _decide(self) -> None:
        if self._lockstep and self._live:
            command = self._gate.decide(time.monotonic_ns())
            self._report_driver()
            self._publish(command)
            self._report_change()

    def _publish(self, command: Command | None) -> None:
        if command is None:
            return
        if command.gripper is not None:     # before the pose: a simulator in lock step starts at the pose
            self._gripper.publish(Float64MultiArray(data=[command.gripper]))
        stamp_ns = self.get_clock().now().nanoseconds if command.stamp_ns is None else command.stamp_ns
        self._target.publish(pose_to_msg(command.target, self._contract.robot.base_frame, stamp_ns))

    def _report_driver(self) -> None:
        """Tell when the operator takes over from the policy, and when the policy has the arm again."""
        source = self._gate.source
        if source in (Source.NOBODY, Source.PLANNED, self._driver):
            return
        if self._driver is not Source.NOBODY:
            kind = "takeover" if source is Source.OPERATOR else "hand_back"
            stamp_ns = self._gate.engaged_tick_ns if self._lockstep else self.get_clock().now().nanoseconds
            self._events.publish(String(data=EpisodeEvent(kind, stamp_ns=stamp_ns).to_json()))
        self._driver = source

    def _report_change(self) -> None:
        if self._live and self._snapshot() != self._reported:
            self._publish_status()

    def _snapshot(self):
        return self._gate.state, self._gate.source, self._gate.policy_enabled, self._gate.episode_start_ns

    def _publish_status(self) -> None:
        self._reported = self._snapshot()
        self._status.publish(self._status_message())

    def _publish_diagnostics(self) -> None:
        self._diagnostics.publish(self._status_message())

    def _status_message(self) -> DiagnosticArray:
        gate = self._gate
        values = {"state": gate.state.name, "source": gate.source.name, "policy_enabled": gate.policy_enabled,
                  "episode_start_ns": gate.episode_start_ns}
        if (lead := gate.lead()) is not None:
            values |= {"lead_m": f"{lead[0]:.4f}", "lead_rad": f"{lead[1]:.4f}"}
        values |= {cause.name: count for cause, count in gate.counts.items()}
        level = LEVELS.get(gate.state, DiagnosticStatus.OK)
        return diagnostics(self, "gate", level, gate.state.name, values)


def main(args=None) -> int:
    return run_node(GateNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
