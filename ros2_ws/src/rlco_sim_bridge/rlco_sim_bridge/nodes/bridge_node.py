"""The bridge node: a simulated table on the robot's own topics, in real time or in lock step with `/clock`.

Lock step: the observation of tick k is published with stamp t_k, and the simulation stands still until the target pose
with that stamp arrives (the gripper command before it). Once the episode is over it stands still until the next reset.
"""

import os
from dataclasses import replace

os.environ.setdefault("LP_NUM_THREADS", "1")    # small pictures: more threads of the CPU renderer only cost

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import Trigger

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC
from rlco_common.errors import RlcoError
from rlco_common.messages import pose_from_msg
from rlco_common.ros import (
    CAMERA_QOS,
    COMMAND_QOS,
    EVENT_QOS,
    STATE_QOS,
    RlcoLifecycleNode,
    declare,
    declare_contract,
    diagnostics,
    image_to_msg,
    joint_state_to_msg,
    pose_to_msg,
    run_node,
    stamp_to_ns,
)
from rlco_sim_bridge.bridge import LockstepClock, RealTimeMeter, SimulatedCell
from rlco_sim_bridge.environment import PHYSICS_RATE_HZ
from rlco_sim_bridge.ros import camera_info_msg, clock_msg

DIAGNOSTICS_PERIOD_S = 1.0
JOIN_DELAY_S = 0.05
RESET_DEAF_S = 0.1       # real time: the gate may send its old target until it has heard of a reset
LOWEST_FACTOR = 0.95     # simulated seconds per second; below it the node says that real time does not hold


class BridgeNode(RlcoLifecycleNode):
    """Lifecycle node `sim`. Activating it starts an episode; `/sim/reset` starts the next one."""

    def __init__(self):
        super().__init__("sim")
        self._contract = declare_contract(self)
        self._lockstep = declare(self, "lockstep", False, "advance one control tick per target pose, not in real time",
                                 read_only=True)
        self._state_rate_hz = declare(self, "state_rate_hz", 20.0, "real time: rate of joint states and tool pose in Hz; "
                                      f"{PHYSICS_RATE_HZ} must be a multiple of it", low=1.0, high=100.0, read_only=True)
        camera_rate_hz = declare(self, "camera_rate_hz", 10.0, "real time: rate of images in Hz; state_rate_hz must be a "
                                 "multiple of it", low=0.1, high=100.0, read_only=True)
        declare(self, "task", "push_cube", "task of the next episode")
        declare(self, "domain", "twin", "domain of the next episode: twin, standin, or a domain file's path")
        declare(self, "seed", 0, "seed of the next episode's initial state and instruction", low=0)
        self._image_every = _multiple(self._state_rate_hz, camera_rate_hz, "state_rate_hz", "camera_rate_hz")
        _multiple(PHYSICS_RATE_HZ, self._state_rate_hz, "the physics rate", "state_rate_hz")
        self._cell = SimulatedCell(self._contract)
        self._gripper: float | None = None
        self._deaf_until_ns = 0
        self._sim_clock = LockstepClock(self._contract.control_period_ns)
        self._meter = RealTimeMeter()
        self._live = False
        self._running_timers = []
        self._endpoints = []

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._connect)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._start)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._live = False
        for timer in self._running_timers:
            self.destroy_timer(timer)
        self._running_timers.clear()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        for destroy, endpoint in self._endpoints:
            destroy(endpoint)
        self._endpoints.clear()
        self._cell.close()
        return super().on_cleanup(state)

    def close(self) -> None:
        """Free the simulator when the process ends."""
        self._cell.close()

    def _connect(self) -> None:
        names = self._contract.topics
        self._event = self._advertise(String, EVENT_TOPIC, EVENT_QOS)
        self._clock_publisher = self._advertise(ClockMessage, "/clock", STATE_QOS) if self._lockstep else None
        self._cameras = {
            name: (self._advertise(Image, camera.topic, CAMERA_QOS),
                   self._advertise(CameraInfo, camera.info_topic, CAMERA_QOS))
            for name, camera in self._contract.cameras.items()
        }
        self._joint_states = self._advertise(JointState, names.joint_states, STATE_QOS)
        self._ee_pose = self._advertise(PoseStamped, names.ee_pose, STATE_QOS)
        self._scene = self._advertise(String, topics.SCENE, STATE_QOS)
        self._diagnostics = self._advertise(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS, joins=False)
        # The gripper comes first: it is sent before the pose of its tick, and rclpy serves subscriptions in this order.
        for message_type, topic, callback in ((Float64MultiArray, names.gripper_command, self._on_gripper),
                                              (PoseStamped, names.target_pose, self._on_target)):
            subscription = self.create_subscription(message_type, topic, callback, COMMAND_QOS)
            self._endpoints.append((self.destroy_subscription, subscription))
        for name, callback in (("~/reset", self._on_reset), ("~/success", self._on_success)):
            self._endpoints.append((self.destroy_service, self.create_service(Trigger, name, callback)))

    def _advertise(self, message_type, topic, qos, joins=True):
        """A publisher; in lock step a subscriber that joins late is shown the present tick, or both would wait forever."""
        events = PublisherEventCallbacks(matched=self._on_matched) if self._lockstep and joins else None
        publisher = self.create_publisher(message_type, topic, qos, event_callbacks=events)
        self._endpoints.append((self.destroy_publisher, publisher))
        return publisher

    def _start(self) -> None:
        self._new_episode()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        if self._lockstep:
            self._show_again = self.create_timer(JOIN_DELAY_S, self._on_joined, clock=steady)
            self._show_again.cancel()
            self._running_timers.append(self._show_again)
        else:
            self._ticks = 0
            self._meter = RealTimeMeter()
            self._running_timers.append(self.create_timer(1.0 / self._state_rate_hz, self._step_in_real_time,
                                                          clock=steady))
        self._running_timers.append(self.create_timer(DIAGNOSTICS_PERIOD_S, self._diagnose, clock=steady))
        self._live = True

    # -- episodes

    def _new_episode(self) -> None:
        event = self._cell.reset(*(self.get_parameter(name).value for name in ("task", "domain", "seed")))
        self.get_logger().info(f"episode {event.task}/{event.domain}/{event.seed}: {event.instruction}")
        self._sim_clock.new_episode()
        stamp_ns = self._sim_clock.now_ns if self._lockstep else self._now_ns()
        self._deaf_until_ns = stamp_ns + round(RESET_DEAF_S * 1e9)
        self._gripper = None
        self._event.publish(String(data=replace(event, stamp_ns=stamp_ns).to_json()))
        self._show(stamp_ns, images=True)

    def _on_reset(self, request, response):
        if not self._live:
            response.message = "the bridge is not active"
            return response
        try:
            self._new_episode()
        except RlcoError as error:
            response.message = str(error)
            self.get_logger().error(response.message)
            return response
        response.success, response.message = True, self._cell.status_text()
        return response

    def _on_success(self, request, response):
        response.success, response.message = self._cell.result.success, self._cell.status_text()
        return response

    # -- commands

    def _on_gripper(self, message: Float64MultiArray) -> None:
        if len(message.data) != 1:
            self.get_logger().error(f"{self._contract.topics.gripper_command}: expected one opening, got "
                                    f"{len(message.data)} numbers", throttle_duration_sec=5.0)
            return
        self._gripper = message.data[0]     # counts with the pose that follows it, which has a stamp

    def _on_target(self, message: PoseStamped) -> None:
        if message.header.frame_id != self._contract.robot.base_frame:
            self.get_logger().error(f"{self._contract.topics.target_pose} is in frame '{message.header.frame_id}', not "
                                    f"'{self._contract.robot.base_frame}'; ignored", throttle_duration_sec=5.0)
            return
        stamp_ns = stamp_to_ns(message.header.stamp)
        if stamp_ns != self._sim_clock.now_ns if self._lockstep else stamp_ns < self._deaf_until_ns:
            return
        taken = self._take(target=pose_from_msg(message), gripper=self._gripper)
        if taken and self._lockstep and not self._cell.result.done:
            self._cell.advance(self._contract.control_period_s)
            self._show(self._sim_clock.tick(), images=True)

    def _take(self, **command) -> bool:
        if not self._live:
            return False
        try:
            self._cell.command(**command)
        except ValueError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return False
        return True

    # -- observations

    def _step_in_real_time(self) -> None:
        self._cell.advance(1.0 / self._state_rate_hz)
        self._meter.add(1.0 / self._state_rate_hz)
        self._ticks += 1
        self._show(self._now_ns(), images=self._ticks % self._image_every == 0)

    def _on_matched(self, info) -> None:
        if self._live and info.current_count_change > 0:
            self._show_again.reset()    # several subscribers that join at once are served once

    def _on_joined(self) -> None:
        self._show_again.cancel()
        self._show(self._sim_clock.now_ns, images=True)

    def _show(self, stamp_ns: int, images: bool) -> None:
        """Publish one instant. All messages bear the same stamp; the tool pose, on which the gate decides, comes last."""
        if self._lockstep:
            self._clock_publisher.publish(clock_msg(stamp_ns))
        observation = self._cell.observe(images)
        for name, image in observation.images.items():
            camera = self._contract.cameras[name]
            pixels, info = self._cameras[name]
            info.publish(camera_info_msg(camera, self._cell.camera_intrinsics(name), stamp_ns))
            pixels.publish(image_to_msg(image, camera.frame, stamp_ns))
        self._joint_states.publish(
            joint_state_to_msg(self._contract, observation.joint_positions, observation.gripper, stamp_ns))
        self._ee_pose.publish(pose_to_msg(observation.ee_pose, self._contract.robot.base_frame, stamp_ns))
        self._scene.publish(String(data=self._cell.scene_text(stamp_ns)))

    def _diagnose(self) -> None:
        level, message, values = DiagnosticStatus.OK, "lock step", {"sim_time_s": self._sim_clock.now_ns / 1e9}
        if not self._lockstep:
            factor = self._meter.factor
            values = {"real_time_factor": f"{factor:.3f}", "state_rate_hz": f"{factor * self._state_rate_hz:.1f}"}
            message = "real time"
            if factor < LOWEST_FACTOR:
                level, message = DiagnosticStatus.WARN, f"slower than real time (factor {factor:.2f})"
                self.get_logger().warning(f"{message}; lower camera_rate_hz, or use lock step", throttle_duration_sec=10.0)
        values |= {"unreached_targets": self._cell.unreached_targets}
        self._diagnostics.publish(diagnostics(self, "sim", level, message, values))

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds


def _multiple(fast: float, slow: float, fast_name: str, slow_name: str) -> int:
    count = round(fast / slow)
    if count < 1 or abs(count * slow - fast) > 1e-6:
        raise RlcoError(f"{fast_name} ({fast:g} Hz) is not a multiple of {slow_name} ({slow:g} Hz)")
    return count


def main(args=None) -> int:
    return run_node(BridgeNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
