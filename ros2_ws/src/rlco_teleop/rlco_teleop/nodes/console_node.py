"""The console node: the browser operator console as an operator's device, with what an operator needs beside it."""

import time
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import String

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC, event_from_json
from rlco_common.errors import RlcoError
from rlco_common.messages import diagnostic_values, image_from_msg, pose_from_msg
from rlco_common.ros import EVENT_QOS, STATE_QOS, RlcoLifecycleNode, declare, declare_contract, run_node
from rlco_teleop.console import protocol
from rlco_teleop.console.access import Access, addresses
from rlco_teleop.console.board import Board
from rlco_teleop.console.desk import Desk
from rlco_teleop.console.episodes import EpisodeList
from rlco_teleop.console.hub import Hub
from rlco_teleop.console.ros import Errands
from rlco_teleop.console.server import ConsoleServer
from rlco_teleop.devices.base import JogSettings
from rlco_teleop.ros import Endpoints, OperatorTopics, declare_settings, watch_gripper

STATE_PERIOD_S = 0.2
CHOICE_PERIOD_S = 3.0       # the recorder may start later, and others may set its parameters
PICTURE_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


class ConsoleNode(RlcoLifecycleNode):
    """Lifecycle node `console`. Configured it serves its pages; active it moves the arm for the page that operates.

    What pages ask for is handled here, in the node's thread; a stop works in every lifecycle state.
    """

    def __init__(self):
        super().__init__("console")
        self._contract = declare_contract(self)
        self._host = declare(self, "host", "127.0.0.1", "address to listen on; any but this machine's own needs the token",
                             read_only=True)
        self._port = declare(self, "port", 8030, "port to listen on; 0: any free one", low=0, high=65535, read_only=True)
        self._token = declare(self, "token", "", "token of addresses but this machine's own; empty: a new one", read_only=True)
        self._directory = declare(self, "output_directory", "bags", "where the recorder writes its episodes", read_only=True)
        self._rate_hz = declare(self, "rate_hz", 20.0, "rate of twists in Hz", low=5.0, high=1000.0, read_only=True)
        self._picture_hz = declare(self, "picture_rate_hz", 15.0, "most pictures a page is sent, Hz", low=0.1, high=60.0,
                                   read_only=True)
        self._quality = declare(self, "jpeg_quality", 80, "quality of the pictures", low=1, high=100, read_only=True)
        facing = declare(self, "facing_robot", True, "the pad lies as seen from opposite the robot, as by its front camera, "
                         "until an operator turns it", read_only=True)
        heartbeat_s = declare(self, "heartbeat_s", 0.3, "a page that is silent this long is released, s", low=0.1, high=1.0,
                              read_only=True)
        settings = declare_settings(self, JogSettings)
        settings.require_within(self._contract)
        self._board, self._desk = Board(), Desk(settings, heartbeat_s)
        self._about = {"heartbeat_ms": 1e3 * heartbeat_s, "facing": facing,
                       "tasks": {name: list(task.instructions) for name, task in self._contract.tasks.items()}}
        self._endpoints, self._eyes = Endpoints(self), Endpoints(self)
        self._server: ConsoleServer | None = None
        self._picture_ns: dict[str, int] = {}
        self._hub = Hub(self.create_guard_condition(self._serve).trigger)
        self._errands = Errands(self, self._hub, self._board, self._contract)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._open)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        names, steady = self._contract.topics, Clock(clock_type=ClockType.STEADY_TIME)
        self._gripper = watch_gripper(self._endpoints, self._contract)
        self._operator = OperatorTopics(self._endpoints, self._contract, self._gripper)
        self._endpoints.subscribe(String, EVENT_TOPIC, self._on_event, EVENT_QOS)
        self._endpoints.subscribe(DiagnosticArray, topics.GATE_STATUS, self._on_gate, STATE_QOS)
        self._endpoints.subscribe(DiagnosticArray, topics.DIAGNOSTICS, self._on_diagnostics, STATE_QOS)
        self._endpoints.subscribe(PoseStamped, names.ee_pose, self._on_pose, STATE_QOS)
        self._endpoints.timer(1.0 / self._rate_hz, self._operate, steady)
        self._endpoints.timer(STATE_PERIOD_S, self._show, steady)
        self._endpoints.timer(CHOICE_PERIOD_S, self._errands.read_choice, steady)
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._desk.let_go()
        self._operator.release()
        self._eyes.clear()
        self._endpoints.clear()
        return super().on_deactivate(state)

    def close(self) -> None:
        """End the web server; called at clean-up and at the end of the process."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _open(self) -> None:
        access = Access.on(self._host, self._token)
        self._server = ConsoleServer(self._hub, access, self._host, self._port, self._about, list(self._contract.cameras),
                                     EpisodeList(Path(self._directory)), self._to_jpeg)
        query = "" if access.token is None else f"?token={access.token}"
        for name in addresses(self._host):
            self.get_logger().info(f"operator console: http://{name}:{self._server.port}/{query}")

    # -- what topics say

    def _on_event(self, message: String) -> None:
        try:
            event = event_from_json(message.data)
        except RlcoError as error:
            self.get_logger().warning(str(error))
            return
        self._board.on_event(event, time.monotonic_ns())
        if event.kind in ("success", "failure", "discard"):
            self._hub.episodes_changed()

    def _on_gate(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._board.on_gate(diagnostic_values(status), time.monotonic_ns())

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._board.on_diagnostic(status.name, status.level[0], status.message,
                                      diagnostic_values(status), time.monotonic_ns())

    def _on_pose(self, message: PoseStamped) -> None:
        self._board.on_pose(pose_from_msg(message), time.monotonic_ns())

    def _on_picture(self, camera: str, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._picture_ns.get(camera, 0) >= 0.9e9 / self._picture_hz:
            self._picture_ns[camera] = now_ns
            self._hub.show_picture(camera, data)

    def _to_jpeg(self, camera: str, data: bytes) -> bytes:
        """In a thread of the server."""
        try:
            image = image_from_msg(self._contract.cameras[camera], deserialize_message(data, Image))
        except RlcoError as error:
            self._board.camera_problem = str(error)
            raise
        self._board.camera_problem = ""
        return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=self._quality, colorspace="RGB")

    # -- out

    def _operate(self) -> None:
        self._operator.publish(self._desk.operate(time.monotonic_ns()), self.get_clock().now().nanoseconds)

    def _show(self) -> None:
        self._errands.check()
        if self._hub.viewers and not self._eyes:        # nobody looks: nothing is rendered or sent for us
            for name, camera in self._contract.cameras.items():
                self._eyes.subscribe(Image, camera.topic, partial(self._on_picture, name), PICTURE_QOS, raw=True)
        elif not self._hub.viewers:
            self._eyes.clear()
        self._hub.show(self._board.snapshot(self._desk, self._gripper.opening, self._errands.simulated, time.monotonic_ns()))

    # -- what pages ask for

    def _serve(self) -> None:
        changed = False
        for request in self._hub.requests():
            before = self._desk.operator, self._desk.pressing(request.arrived_ns)
            self._desk.hear(request.client, request.address, request.arrived_ns)
            problem = self._handle(request, request.message)
            if problem:
                self._hub.tell(request.client, problem, good=False)
            changed |= before != (self._desk.operator, self._desk.pressing(request.arrived_ns))
        if changed and self._endpoints:
            self._operate()
            self._show()

    def _handle(self, request: protocol.Request, message) -> str | None:
        """Do it, or return why not."""
        client, desk = request.client, self._desk
        match message:
            case protocol.Stop():
                desk.let_go()
                if self._endpoints:
                    self._operator.release()
                self._errands.stop(client)
            case protocol.Leave():
                desk.leave(client)
            case protocol.Alive():
                pass        # every message is a sign of life
            case _ if not self._endpoints:
                return "the console node is not active"
            case protocol.Take():
                return desk.take(client, message.name, request.arrived_ns)
            case protocol.Give():
                desk.give(client)
            case protocol.Jog():
                return desk.jog(client, message, request.arrived_ns)
            case protocol.Release():
                desk.release(client)
            case _ if not desk.operates(client):
                return "take control first"
            case protocol.Rearm():
                self._errands.rearm(client)
            case protocol.Policy():
                self._errands.hand_over(client, message.enable)
            case protocol.Record():
                self._errands.record(client, message.what, desk.given_name)
            case protocol.Episode():
                return self._errands.choose(client, message.task, message.instruction)
            case protocol.NextScene():
                self._errands.next_scene(client)
        return None


def main(args=None) -> int:
    return run_node(ConsoleNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
