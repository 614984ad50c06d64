"""The teleop node: hosts one operator device and publishes its twist, gripper wish and dead-man switch."""


from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Bool, Float64, String
from std_srvs.srv import Trigger

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC, event_from_json
from rlco_common.errors import ConfigError, RlcoError
from rlco_common.ros import (
    COMMAND_QOS,
    EVENT_QOS,
    STATE_QOS,
    RlcoLifecycleNode,
    declare,
    declare_contract,
    run_node,
    stamp_from_ns,
    stamp_to_ns,
)
from rlco_teleop.devices import DEVICES, make_device
from rlco_teleop.devices.base import Device, DeviceSettings, Operation


class TeleopNode(RlcoLifecycleNode):
    """Lifecycle node `teleop`; services /operator/start and /operator/stop take and release a scripted dead-man.

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
        self._noise = declare(self, "noise", 0.0, "scripted operator: disturbance of its hand, in normalised action units",
                              low=0.0, high=1.0, read_only=True)
        self._device: Device | None = None
        self._seed = -1
        self._tick_ns: int | None = None        # lock step: a tick that is not answered yet
        self._held = False
        self._endpoints = []
        self.create_service(Trigger, topics.OPERATOR_START, self._on_start)
        self.create_service(Trigger, topics.OPERATOR_STOP, self._on_stop)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._open_device)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._deadman = self._advertise(Bool, topics.TELEOP_DEADMAN)
        self._gripper = self._advertise(Float64, topics.TELEOP_GRIPPER)
        self._twist = self._advertise(TwistStamped, topics.TELEOP_TWIST)
        self._subscribe(String, EVENT_TOPIC, self._on_event, EVENT_QOS)
        if self._device.wants_scene:
            self._subscribe(String, topics.SCENE, self._on_scene, STATE_QOS)
        elif self._lockstep:
            self._subscribe(PoseStamped, self._contract.topics.ee_pose, self._on_ee_pose, STATE_QOS)
        if not self._lockstep:
            timer = self.create_timer(1.0 / self._rate_hz, self._publish_now,
                                      clock=Clock(clock_type=ClockType.STEADY_TIME))
            self._endpoints.append((self.destroy_timer, timer))
        self._deadman.publish(Bool(data=False))     # a predecessor may have died with its dead-man held
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._device.end()
        self._deadman.publish(Bool(data=False))
        for destroy, endpoint in self._endpoints:
            destroy(endpoint)
        self._endpoints.clear()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return super().on_cleanup(state)

    def close(self) -> None:
        if self._device is not None:
            self._device.close()
            self._device = None

    def _open_device(self) -> None:
        asks = 1 if self._lockstep else round(self._rate_hz / self._contract.control_rate_hz)
        if not self._lockstep and abs(asks * self._contract.control_rate_hz - self._rate_hz) > 1e-6:
            raise ConfigError(f"rate_hz {self._rate_hz:g} is not a multiple of the control rate "
                              f"{self._contract.control_rate_hz:g} Hz")
        self._device = make_device(self._device_name, self._contract, DeviceSettings(asks, self._noise))

    def _advertise(self, message_type, topic):
        publisher = self.create_publisher(message_type, topic, COMMAND_QOS)
        self._endpoints.append((self.destroy_publisher, publisher))
        return publisher

    def _subscribe(self, message_type, topic, callback, qos) -> None:
        subscription = self.create_subscription(message_type, topic, callback, qos)
        self._endpoints.append((self.destroy_subscription, subscription))

    # -- inputs

    def _on_event(self, message: String) -> None:
        try:
            event = event_from_json(message.data)
        except RlcoError as error:
            self.get_logger().warning(str(error))
            return
        if event.kind == "reset":
            self._seed = event.seed

    def _on_scene(self, message: String) -> None:
        try:
            stamp_ns = self._device.on_scene(message.data)
        except RlcoError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        if stamp_ns is not None:
            self._open_tick(stamp_ns)

    def _on_ee_pose(self, message: PoseStamped) -> None:
        self._open_tick(stamp_to_ns(message.header.stamp))

    def _on_start(self, request, response):
        if not self._endpoints:
            response.success, response.message = False, "the teleop node is not active"
            return response
        self._device.begin(self._seed)
        response.success, response.message = True, f"operating, seed {self._seed}"
        if self._lockstep:
            self._answer_tick()
        return response

    def _on_stop(self, request, response):
        if self._device is not None:
            self._device.end()
        if self._endpoints:
            self._release()
        response.success, response.message = True, "released"
        return response

    # -- outputs

    def _publish_now(self) -> None:
        self._publish(self._device.operate(), self.get_clock().now().nanoseconds)

    def _open_tick(self, stamp_ns: int) -> None:
        if self._lockstep:
            self._tick_ns = stamp_ns
            self._answer_tick()

    def _answer_tick(self) -> None:
        """Lock step: operate on the open tick, once; while nobody holds the dead-man it stays open."""
        if self._tick_ns is None:
            return
        operation = self._device.operate()
        if operation.held:
            self._publish(operation, self._tick_ns)
            self._tick_ns = None
        elif self._held:
            self._release()

    def _publish(self, operation: Operation, stamp_ns: int) -> None:
        self._held = operation.held
        self._deadman.publish(Bool(data=operation.held))
        if not operation.held:
            return
        self._gripper.publish(Float64(data=operation.gripper))
        message = TwistStamped()
        message.header.stamp = stamp_from_ns(stamp_ns)
        message.header.frame_id = self._contract.robot.base_frame
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, operation.twist)
        self._twist.publish(message)

    def _release(self) -> None:
        self._held = False
        self._deadman.publish(Bool(data=False))


def main(args=None) -> int:
    return run_node(TeleopNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
