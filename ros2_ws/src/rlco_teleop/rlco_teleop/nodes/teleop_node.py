"""The teleop node: hosts one operator device and publishes its twist, gripper wish and dead-man switch."""

import time
from functools import partial

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import String
from std_srvs.srv import Trigger

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC, event_from_json
from rlco_common.errors import ConfigError, RlcoError
from rlco_common.ros import EVENT_QOS, STATE_QOS, RlcoLifecycleNode, declare, declare_contract, diagnostics, run_node
from rlco_teleop.devices import DEVICES, device_class
from rlco_teleop.devices.base import Device, Input
from rlco_teleop.ros import INPUT_KINDS, Endpoints, OperatorTopics, declare_settings, watch_gripper

DIAGNOSTICS_PERIOD_S = 1.0


class TeleopNode(RlcoLifecycleNode):
    """Lifecycle node `teleop`; services /operator/start and /operator/stop take and release a scripted dead-man, and
    /operator/stop releases any device's. The parameters of the chosen device are declared with its settings' names.

    Real time: asks the device at rate_hz and publishes each answer. Lock step: one dead-man, gripper and twist message
    per control tick, the twist stamped with the tick.
    """

    def __init__(self):
        super().__init__("teleop")
        self._contract = declare_contract(self)
        self._device_name = declare(self, "device", "scripted", "operator device", read_only=True, choices=list(DEVICES))
        self._lockstep = declare(self, "lockstep", False, "answer tick by tick instead of in real time", read_only=True)
        self._rate_hz = declare(self, "rate_hz", 20.0, "real time: rate of twists in Hz, a multiple of the contract's "
                                "control_rate_hz", low=1.0, high=1000.0, read_only=True)
        self._settings = declare_settings(self, device_class(self._device_name).Settings)
        self._device: Device | None = None
        self._seed = -1
        self._tick_ns: int | None = None        # lock step: a tick that is not answered yet
        self._endpoints = Endpoints(self)
        self.create_service(Trigger, topics.OPERATOR_START, self._on_start)
        self.create_service(Trigger, topics.OPERATOR_STOP, self._on_stop)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._open_device)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._gripper = None if self._lockstep else watch_gripper(self._endpoints, self._contract)
        self._operator = OperatorTopics(self._endpoints, self._contract, self._gripper)
        self._diagnostics = self._endpoints.publisher(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        self._endpoints.subscribe(String, EVENT_TOPIC, self._on_event, EVENT_QOS)
        for feed in self._device.inputs:
            message_type, qos, decode = INPUT_KINDS[feed.kind]
            self._endpoints.subscribe(message_type, feed.topic, partial(self._on_input, feed, decode), qos)
        if not self._lockstep:
            self._endpoints.timer(1.0 / self._rate_hz, self._publish_now, steady)
        self._endpoints.timer(DIAGNOSTICS_PERIOD_S, self._diagnose, steady)
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._device.end()
        self._operator.release()
        self._endpoints.clear()
        return super().on_deactivate(state)

    def close(self) -> None:
        """Free the device; called at clean-up and at the end of the process."""
        if self._device is not None:
            self._device.close()
            self._device = None

    def _open_device(self) -> None:
        kind, control_hz = device_class(self._device_name), self._contract.control_rate_hz
        if self._lockstep and not kind.works_in_lockstep:
            raise ConfigError(f"device '{self._device_name}' is a person's and works in real time only; set lockstep to false, "
                              "here and for bridge and gate")
        rate_hz = control_hz if self._lockstep else self._rate_hz
        if round(rate_hz / control_hz) < 1 or abs(round(rate_hz / control_hz) * control_hz - rate_hz) > 1e-6:
            raise ConfigError(f"rate_hz {rate_hz:g} is not a multiple of the control rate {control_hz:g} Hz")
        device = kind(self._contract, self._settings, rate_hz)
        device.open()
        self._device = device

    # -- inputs

    def _on_event(self, message: String) -> None:
        try:
            event = event_from_json(message.data)
        except RlcoError as error:
            self.get_logger().warning(str(error))
            return
        if event.kind == "reset":
            self._seed = event.seed
            if self._tick_ns is not None and self._tick_ns < event.stamp_ns:
                self._tick_ns = None        # of the scene before

    def _on_input(self, feed: Input, decode, message) -> None:
        try:
            stamp_ns = feed.receive(decode(message), time.monotonic_ns())
        except RlcoError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        if stamp_ns is not None and self._lockstep:
            self._tick_ns = stamp_ns
            self._answer_tick()

    def _on_start(self, request, response):
        reason = self._refusal()
        if reason:
            response.success, response.message = False, reason
            return response
        self._device.begin(self._seed)
        response.success, response.message = True, f"operating, seed {self._seed}"
        if self._lockstep:
            self._answer_tick()
        return response

    def _refusal(self) -> str:
        """Why the device cannot begin to operate now; "" when it can."""
        if not self._endpoints:
            return "the teleop node is not active"
        if self._lockstep and self._seed < 0:
            return f"no episode was announced on {EVENT_TOPIC} yet; reset the simulation"
        if self._lockstep and not self._operator.readers:       # the tick's only twist would be lost, and time stand still
            return f"nobody reads {topics.TELEOP_TWIST} yet; is the gate up?"
        return ""

    def _on_stop(self, request, response):
        if self._device is not None:
            self._device.end()
        if self._endpoints:
            self._operator.release()
        response.success, response.message = True, "released"
        return response

    # -- outputs

    def _publish_now(self) -> None:
        operation = self._device.operate(time.monotonic_ns(), self._gripper.opening)
        self._operator.publish(operation, self.get_clock().now().nanoseconds)

    def _answer_tick(self) -> None:
        """Lock step: operate on the open tick, once; while nobody holds the dead-man it stays open."""
        if self._tick_ns is None:
            return
        operation = self._device.operate(time.monotonic_ns(), None)
        self._operator.publish(operation, self._tick_ns)
        if operation.held:
            self._tick_ns = None

    def _diagnose(self) -> None:
        health = self._device.health(time.monotonic_ns())
        level = DiagnosticStatus.WARN if health.complaint else DiagnosticStatus.OK
        values = {"device": self._device_name, "held": self._operator.held, "readers": self._operator.readers,
                  **health.values}
        message = health.complaint or ("held" if self._operator.held else "released")
        self._diagnostics.publish(diagnostics(self, "teleop", level, message, values))


def main(args=None) -> int:
    return run_node(TeleopNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
