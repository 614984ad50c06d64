"""The bridge node: a simulated table on the robot's own topics, in real time or in lock step with `/clock`.

Lock step: the observation of tick k is published with stamp t_k, and the simulation stands still until the target pose
with that stamp arrives (the gripper command before it). Once the episode is over it stands still until the next reset.
Real time: see pacing.py for what happens on a machine that is too slow.

Paused, no time passes and nothing is published but what `~/step` shows. The newest command is kept for when time goes on
(in lock step: the command of the present tick), so that the arm continues where it stood.
"""

import os
from dataclasses import replace

os.environ.setdefault("LP_NUM_THREADS", "1")    # small pictures: more threads of the CPU renderer only cost

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rosgraph_msgs.msg import Clock as ClockMessage
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent
from rlco_common.errors import DataError, RlcoError
from rlco_common.ros import (
    COMMAND_QOS,
    EVENT_QOS,
    STATE_QOS,
    RlcoLifecycleNode,
    declare,
    declare_contract,
    diagnostics,
    run_node,
)
from rlco_sim_bridge.bridge import SimulatedCell
from rlco_sim_bridge.environment import PHYSICS_RATE_HZ
from rlco_sim_bridge.pacing import LockstepClock, RealTimeMeter, RealTimePacer
from rlco_sim_bridge.parameters import chosen, declare_arm_input, declare_choice, declare_rates
from rlco_sim_bridge.ros import TF_CHOICES, CellTopics, Endpoints, answer, clock_msg, opening_from_msg, wait_until_heard
from rlco_sim_bridge.standard_services import StandardServices

DIAGNOSTICS_PERIOD_S = 1.0
JOIN_DELAY_S = 0.05
RESET_DEAF_S = 0.1       # real time: the gate may send its old target until it has heard of a reset


class BridgeNode(RlcoLifecycleNode):
    """Lifecycle node `sim`. Activating it starts an episode; `/sim/reset` starts the next one."""

    def __init__(self):
        super().__init__("sim")
        self._contract = declare_contract(self)
        self._lockstep = declare(self, "lockstep", False, "advance one control tick per target pose, not in real time",
                                 read_only=True)
        self._state_rate_hz, self._camera_rate_hz, image_every = declare_rates(self)
        declare(self, "jpeg_quality", 90, "quality of /compressed images, which are made while somebody subscribes",
                low=1, high=100)
        self._arm_input = declare_arm_input(self, self._contract, self._state_rate_hz, self._lockstep)
        self._tf = declare(self, "publish_tf", "all", "TF of tool and cameras; cameras: where robot_state_publisher gives "
                           "the tool's", choices=TF_CHOICES, read_only=True)
        declare_choice(self, self._contract)
        self._cell = SimulatedCell(self._contract)
        self._sim_clock = LockstepClock(self._contract.control_period_ns)
        self._pacer = RealTimePacer(self._state_rate_hz, image_every, PHYSICS_RATE_HZ)
        self._meter = RealTimeMeter()
        self._gripper: float | None = None
        self._deaf_until_ns = 0
        self._commanded = False      # lock step: the command of the present tick is there
        self.live = self.paused = self.stopped = False
        self._running_timers = []
        # In lock step a subscriber that joins late is shown the present tick, or both would wait forever.
        self._endpoints = Endpoints(self, self._on_join if self._lockstep else None)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._connect)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._start)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.live = False
        for timer in self._running_timers:
            self.destroy_timer(timer)
        self._running_timers.clear()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._endpoints.destroy()
        return super().on_cleanup(state)

    def close(self) -> None:
        """Free the simulator."""
        self._cell.close()

    def _connect(self) -> None:
        names = self._contract.topics
        advertise = self._endpoints.publisher
        self._event = advertise(String, EVENT_TOPIC, EVENT_QOS)
        self._clock_publisher = advertise(ClockMessage, "/clock", STATE_QOS) if self._lockstep else None
        self._topics = CellTopics(self._contract, advertise, self._tf)
        self._scene = advertise(String, topics.SCENE, STATE_QOS)
        self._diagnostics = advertise(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS, joins=False)
        # The gripper comes first: it is sent before the pose of its tick, and rclpy serves subscriptions in this order.
        self._endpoints.subscribe(Float64MultiArray, names.gripper_command, self._on_gripper, COMMAND_QOS)
        self._endpoints.subscribe(self._arm_input.message_type, self._arm_input.topic, self._on_target, COMMAND_QOS)
        self.offer(Trigger, "reset", lambda request, response: answer(self, response, self.new_episode))
        self.offer(Trigger, "step", lambda request, response: answer(self, response, self.step))
        self.offer(SetBool, "pause", lambda request, response: answer(self, response, lambda: self.pause(request.data)))
        self.offer(Trigger, "success", self._on_success)
        for missing in filter(None, (self._topics.frames.missing, StandardServices(self).missing)):
            self.get_logger().info(missing)

    def offer(self, service_type, name: str, callback) -> None:
        """A service `/sim/NAME`, until the node is cleaned up."""
        self._endpoints.serve(service_type, f"~/{name}", callback)

    def _start(self) -> None:
        self.paused = self.stopped = False
        self._new_episode()
        self.live = True
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        if self._lockstep:
            self._show_again = self.create_timer(JOIN_DELAY_S, self._on_joined, clock=steady, autostart=False)
            self._running_timers.append(self._show_again)
        else:
            self._running_timers.append(self.create_timer(1.0 / self._state_rate_hz, self._step_in_real_time,
                                                          clock=steady))
        self._running_timers.append(self.create_timer(DIAGNOSTICS_PERIOD_S, self._diagnose, clock=steady))

    # -- what services ask for; each raises RlcoError with the reason when it cannot be done, else returns a text

    def new_episode(self) -> str:
        """Start an episode as the parameters say; its event as JSON. Every connected node has its scene on return."""
        self._require_live()
        event = self._new_episode()
        wait_until_heard(self._scene)
        return event.to_json()

    def _new_episode(self) -> EpisodeEvent:
        event = self._cell.reset(chosen(self))
        self.get_logger().info(f"episode {event.task}/{event.domain}/{event.seed}: {event.instruction}")
        self._sim_clock.new_episode()
        event = replace(event, stamp_ns=self._stamp_ns())
        self._deaf_until_ns = event.stamp_ns + round(RESET_DEAF_S * 1e9)
        self._gripper, self._commanded = None, False
        self._event.publish(String(data=event.to_json()))
        wait_until_heard(self._event)       # or a node would take the first observation for one of the episode before
        self._restart_time()
        self._topics.frames.show_cameras(self._cell.camera_views, event.stamp_ns)
        self._show(event.stamp_ns, images=True)
        return event

    def stop(self) -> str:
        """Pause at the start of an episode."""
        text = self.new_episode()
        self.paused = self.stopped = True
        return text

    def pause(self, paused: bool) -> str:
        """Let time stand still, or go on."""
        self._require_live()
        self.paused, self.stopped = paused, False
        if not paused:
            self._restart_time()
            self._act()
        return self._cell.status_text()

    def step(self) -> str:
        """Simulate one control tick under the newest command; only while paused or in lock step."""
        self._require_live()
        self.stopped = False
        if self._lockstep:
            if self._cell.result.done:
                raise RlcoError(f"the episode is over; {topics.SIM_RESET} starts the next one")
            self._tick()
        elif self.paused:
            self._commanded = False
            self._cell.advance(self._contract.control_period_s)
            self._show(self._stamp_ns(), images=True)
        else:
            raise RlcoError("time is running; pause it first (/sim/pause)")
        return self._cell.status_text()

    def _require_live(self):
        if not self.live:
            raise RlcoError("the bridge is not active")

    def _on_success(self, request, response):
        response.success, response.message = self._cell.result.success, self._cell.status_text()
        return response

    # -- commands

    def _on_gripper(self, message: Float64MultiArray) -> None:
        try:
            self._gripper = opening_from_msg(self._contract, message)   # counts with the next pose, which has a stamp
        except DataError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)

    def _on_target(self, message) -> None:
        if not self.live:
            return
        if not (self._lockstep or self.paused):
            self._catch_up()        # a command acts from its arrival on, not from the last state on
        stamp_ns = self._arm_input.stamp_ns(message, self._stamp_ns())
        if stamp_ns != self._sim_clock.now_ns if self._lockstep else stamp_ns < self._deaf_until_ns:
            return
        try:
            target, self._ramp_s = self._arm_input.read(message)
            self._cell.command(target, self._gripper)
        except (DataError, ValueError) as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        self._commanded = True
        self._act()

    # -- time

    def _act(self) -> None:
        """Let the newest command act: in lock step for one tick, in real time from now on. Paused, it waits."""
        if self.paused or not self._commanded:
            return
        if not self._lockstep:
            self._commanded = False
            self._cell.drive(self._ramp_s)
        elif not self._cell.result.done:
            self._tick()

    def _tick(self) -> None:
        self._commanded = False
        self._cell.advance(self._contract.control_period_s)
        self._show(self._sim_clock.tick(), images=True)

    def _step_in_real_time(self) -> None:
        if self.paused:
            return
        self._catch_up()
        image = self._pacer.picture_due()
        self._show(self._stamp_ns(), image)
        self._meter.add(self._pacer.simulated_s, image)

    def _catch_up(self) -> None:
        """Real time: simulate what has passed since the last time."""
        if steps := self._pacer.steps_due():
            self._cell.pass_time(steps / PHYSICS_RATE_HZ)

    def _restart_time(self) -> None:
        self._pacer.restart()
        self._meter.restart()

    def _stamp_ns(self) -> int:
        return self._sim_clock.now_ns if self._lockstep else self.get_clock().now().nanoseconds

    # -- observations

    def _on_join(self) -> None:
        if self.live:
            self._show_again.reset()    # several subscribers that join at once are served once

    def _on_joined(self) -> None:
        self._show_again.cancel()
        self._show(self._sim_clock.now_ns, images=True)

    def _show(self, stamp_ns: int, images: bool) -> None:
        """Publish one instant under one stamp. In lock step the tool pose comes last, because the gate decides on it; in
        real time the state does not wait for the pictures, which take longest."""
        images = images and self._topics.pictures_wanted
        if self._lockstep:
            self._clock_publisher.publish(clock_msg(stamp_ns))
            self._show_images(stamp_ns, images)
        self._topics.show_state(self._cell.observe(images=False), stamp_ns)
        self._scene.publish(String(data=self._cell.scene_text(stamp_ns)))
        if not self._lockstep:
            self._show_images(stamp_ns, images)

    def _show_images(self, stamp_ns: int, images: bool) -> None:
        if images:
            self._topics.show_images(self._cell.observe(images=True), self._cell.camera_views, stamp_ns,
                                     self.get_parameter("jpeg_quality").value)

    def _diagnose(self) -> None:
        complaint = "" if self._lockstep or self.paused else self._meter.complaint(self._camera_rate_hz)
        if complaint:
            self.get_logger().warning(complaint, throttle_duration_sec=10.0)
        mode = "paused" if self.paused else "lock step" if self._lockstep else "real time"
        values = {"sim_time_s": self._sim_clock.now_ns / 1e9} if self._lockstep else self._meter.values()
        values |= {"unreached_targets": self._cell.unreached_targets, "tf": self._topics.frames.missing or self._tf}
        level = DiagnosticStatus.WARN if complaint else DiagnosticStatus.OK
        self._diagnostics.publish(diagnostics(self, "sim", level, complaint or mode, values))


def main(args=None) -> int:
    return run_node(BridgeNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
