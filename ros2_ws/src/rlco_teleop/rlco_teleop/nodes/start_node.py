"""The start node: brings the arm back to the start pose between episodes, through the gate.

It plans (start_way.py) in a thread of its own, asks the gate for the arm, and sends targets (start_move.py). The gate keeps
every limit, and takes the arm away for an operator's dead-man, a stop, or when the targets stop.
"""

import threading
import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.task import Future
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, String
from std_srvs.srv import SetBool, Trigger

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC, event_from_json
from rlco_common.errors import DataError, RlcoError
from rlco_common.messages import diagnostic_values, pose_from_msg
from rlco_common.observation import joints_by_name
from rlco_common.ros import (
    COMMAND_QOS,
    EVENT_QOS,
    STATE_QOS,
    RlcoLifecycleNode,
    declare,
    declare_contract,
    diagnostics,
    pose_to_msg,
    run_node,
)
from rlco_teleop.cell_view import CellView
from rlco_teleop.ros import NEWEST_QOS, Endpoints, ServiceCaller, declare_settings
from rlco_teleop.start_move import Phase, StartMove
from rlco_teleop.start_settings import StartSettings
from rlco_teleop.start_way import cell_blocks, lift, plan_way

PLANNERS = ("own", "moveit")
RATE_HZ = 20.0
STATUS_PERIOD_S = 0.5
ANSWER_S = 2.0
ALLOW_PLANNED = topics.GATE_ALLOW_PLANNED.lstrip("/")       # of the gate in this node's namespace


class StartNode(RlcoLifecycleNode):
    """Lifecycle node `start`. `~/go_to_start` answers when the arm is there, or with the reason why not; `~/cancel` ends it."""

    def __init__(self):
        super().__init__("start")
        self._contract = declare_contract(self)
        self._planner_name = declare(self, "planner", "own", "motion planner: own (pinocchio, coal, OMPL), or moveit",
                                     choices=PLANNERS, read_only=True)
        self._settings = declare_settings(self, StartSettings)
        self._planner = self._thread = self._ending = self._move = self._plan = None
        self._stage, self._last = "idle", ""
        self._view = CellView(self._contract)
        self._endpoints = Endpoints(self)
        self._caller = ServiceCaller(self, ANSWER_S)
        # Its answer comes at the end of the move; meanwhile the other callbacks, and a second call, must be served.
        self.create_service(Trigger, "~/go_to_start", self._on_go, callback_group=ReentrantCallbackGroup())
        self.create_service(Trigger, "~/cancel", self._on_cancel)

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._make_planner)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        names, ends, steady = self._contract.topics, self._endpoints, Clock(clock_type=ClockType.STEADY_TIME)
        self._view = CellView(self._contract)
        self._target = ends.publisher(PoseStamped, topics.PLANNED_TARGET)
        self._gripper = ends.publisher(Float64, topics.PLANNED_GRIPPER)
        self._status = ends.publisher(DiagnosticArray, topics.START_STATUS, STATE_QOS)
        self._diagnostics = ends.publisher(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        ends.subscribe(String, EVENT_TOPIC, self._on_event, EVENT_QOS)
        ends.subscribe(DiagnosticArray, topics.GATE_STATUS, self._on_gate, STATE_QOS)
        ends.subscribe(DiagnosticArray, topics.DIAGNOSTICS, self._on_diagnostics, STATE_QOS)
        ends.subscribe(JointState, names.joint_states, self._on_joints, NEWEST_QOS)
        ends.subscribe(PoseStamped, names.ee_pose, lambda message: self._view.on_pose(pose_from_msg(message),
                                                                                    time.monotonic_ns()), NEWEST_QOS)
        ends.subscribe(PoseStamped, names.target_pose, lambda message: self._view.on_target(pose_from_msg(message),
                                                                                          time.monotonic_ns()), COMMAND_QOS)
        self._caller.ready(SetBool, ALLOW_PLANNED)      # looks for it from now on
        ends.timer(1.0 / RATE_HZ, self._tick, steady)
        ends.timer(STATUS_PERIOD_S, self._report, steady)
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        self._endpoints.clear()
        return super().on_deactivate(state)

    def close(self) -> None:
        if self._stage != "idle":
            self._end(False, "the start node was deactivated")

    def _make_planner(self) -> None:
        settings = self._settings
        blocks = cell_blocks(self._contract, settings.table_height_m, settings.clear_height_m, settings.blocks_file)
        self.get_logger().info(f"the start is at {settings.goal.position.tolist()} m")      # also checks the task's name
        if self._planner_name == "moveit":
            from rlco_teleop.moveit_planner import MoveItPlanner

            self._planner = MoveItPlanner(self._contract, settings.moveit_group, blocks)
        else:
            from rlco_teleop.start_planner import OwnPlanner

            self._planner = OwnPlanner(self._contract, settings.urdf, blocks, settings.margin_m, settings.planning_time_s)

    # -- what the cell says

    def _on_event(self, message: String) -> None:
        try:
            self._view.on_event(event_from_json(message.data), time.monotonic_ns())
        except RlcoError as error:
            self.get_logger().warning(str(error))

    def _on_gate(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._view.on_gate(diagnostic_values(status), time.monotonic_ns())

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "recorder":
                self._view.on_recorder(diagnostic_values(status).get("episode", ""), time.monotonic_ns())

    def _on_joints(self, message: JointState) -> None:
        try:
            joints, opening = joints_by_name(self._contract, message.name, message.position)
        except DataError:
            return      # another driver's joints; when the arm's own stay away, the view says so
        self._view.on_joints(joints, opening, time.monotonic_ns())

    # -- services

    async def _on_go(self, request, response):
        reason = self._refusal()
        if reason:
            self.get_logger().warning(f"go to start refused: {reason}")
            response.success, response.message = False, reason
            return response
        self._ending = Future(executor=self.executor)
        self._start_planning()
        response.success, response.message = await self._ending
        return response

    def _refusal(self) -> str:
        if not self._endpoints:
            return "the start node is not active"
        if self._stage != "idle":
            return f"already {self._stage}; {topics.START_CANCEL} ends that"
        if self._thread is not None and self._thread.is_alive():
            return "the plan of before is not given up yet; try again in a moment"
        return self._view.problem(time.monotonic_ns())

    def _on_cancel(self, request, response):
        response.success = self._stage != "idle"
        response.message = f"cancelled while {self._stage}" if response.success else "nothing to cancel"
        if response.success:
            self._end(False, "cancelled")
        return response

    # -- planning and moving

    def _start_planning(self) -> None:
        self._stage, self._move, self._engaged = "planning", None, False
        self._plan = plan = {}
        joints, base, goal = self._view.joints, self._view.base(time.monotonic_ns()), self._settings.goal

        up = lift(self._settings.lift_m, self._settings.clear_height_m)

        def work():
            try:
                plan["way"] = plan_way(self._planner, joints, base, goal, up, self._contract.limits)
            except RlcoError as error:
                plan["problem"] = str(error)

        self._thread = threading.Thread(target=work, name="planning", daemon=True)
        self._thread.start()

    def _tick(self) -> None:
        self._caller.check()
        if self._stage == "planning" and not self._thread.is_alive():
            self._take_plan()
        elif self._move is not None:
            self._go_on()

    def _take_plan(self) -> None:
        now_ns = time.monotonic_ns()
        problem = self._plan.get("problem", "" if "way" in self._plan else "the planner failed; see the log")
        problem = problem or self._view.problem(now_ns) or self._view.moved(self._plan["way"][0], now_ns)
        if problem:
            self._end(False, problem)
            return
        self._stage = "asking the gate"
        ending = self._ending
        self._caller.call(SetBool, ALLOW_PLANNED, SetBool.Request(data=True),
                          lambda response, trouble: self._on_allowed(ending, response, trouble))

    def _on_allowed(self, ending, response, trouble: str) -> None:
        if ending is not self._ending:
            return      # cancelled meanwhile; that has given the arm back
        if response is None or not response.success:
            self._end(False, trouble or f"the gate refused: {response.message}")
            return
        self._allowed_ns = time.monotonic_ns()
        self._move = StartMove(self._plan["way"], self._settings.move, self._allowed_ns)
        self._go_on()

    def _go_on(self) -> None:
        now_ns, move, view = time.monotonic_ns(), self._move, self._view
        self._engaged = self._engaged or view.has_planned
        late = not self._engaged and now_ns - self._allowed_ns > ANSWER_S * 1e9
        problem = view.interruption(now_ns) if self._engaged else "the gate did not give the arm" if late else ""
        if problem:
            move.fail(problem)
        wish = move.step(now_ns, view.pose, view.opening, view.commanded(now_ns)) if not move.over else None
        if move.over:
            self._end(move.phase is Phase.DONE, move.reason)
            return
        if self._stage != move.phase.value:
            self._stage = move.phase.value
            self._report()
        if wish.opening is not None:
            self._gripper.publish(Float64(data=wish.opening))
        self._target.publish(pose_to_msg(wish.target, self._contract.robot.base_frame, self.get_clock().now().nanoseconds))

    def _end(self, success: bool, reason: str) -> None:
        """Give the arm back, and answer who called."""
        self._caller.call(SetBool, ALLOW_PLANNED, SetBool.Request(data=False), lambda response, trouble: None)
        self._stage, self._last, self._move = "idle", reason, None
        if success:
            self.get_logger().info(reason)
        else:
            self.get_logger().warning(f"did not go to the start: {reason}")
        ending, self._ending = self._ending, None
        ending.set_result((success, reason))
        self._report()

    def _report(self) -> None:
        values = {"stage": self._stage, "last": self._last, "progress": f"{self._move.progress:.2f}" if self._move else ""}
        message = diagnostics(self, "start", DiagnosticStatus.OK, self._stage, values)
        self._status.publish(message)
        self._diagnostics.publish(message)


def main(args=None) -> int:
    return run_node(StartNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
