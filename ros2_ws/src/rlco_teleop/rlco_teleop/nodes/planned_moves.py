"""The gate's door for planned moves (to the start, between episodes): one service, two topics, their own speed limit."""

import time
from collections.abc import Callable

from geometry_msgs.msg import PoseStamped
from std_msgs.msg import Float64
from std_srvs.srv import SetBool

from rlco_common import topics
from rlco_common.contract import Contract
from rlco_common.gate import Gate, Refusal
from rlco_common.messages import pose_from_msg
from rlco_common.ros import COMMAND_QOS, declare, stamp_to_ns


def declare_planned_speeds(node) -> tuple[float, float]:
    """(m/s, rad/s) that no planned move exceeds."""
    return (declare(node, "planned_linear_speed_m_s", 0.15, "real time: planned moves are no faster, m/s", low=0.01, high=0.5,
                    read_only=True),
            declare(node, "planned_angular_speed_rad_s", 0.8, "real time: planned moves turn no faster, rad/s", low=0.05,
                    high=3.0, read_only=True))


class PlannedMoves:
    """`/gate/allow_planned`, and what comes on /planned/... while it is allowed.

    answer: (response, reason or None, text) -> response. live: whether the gate is active.
    """

    def __init__(self, node, gate: Gate, contract: Contract, answer: Callable, live: Callable[[], bool]):
        self._node, self._gate, self._contract, self._answer, self._live = node, gate, contract, answer, live
        self._opening: float | None = None
        node.create_service(SetBool, "~/allow_planned", self._on_allow)

    def connect(self, subscribe: Callable) -> None:
        """subscribe: (message type, topic, callback, QoS)."""
        subscribe(Float64, topics.PLANNED_GRIPPER, self._on_gripper, COMMAND_QOS)
        subscribe(PoseStamped, topics.PLANNED_TARGET, self._on_target, COMMAND_QOS)

    def _on_allow(self, request, response):
        if request.data and not self._live():
            return self._answer(response, "the gate is not active", "")
        self._opening = None
        reason = self._gate.allow_planned(request.data, time.monotonic_ns())
        return self._answer(response, reason, "a planned move has the arm" if request.data else "no planned move has the arm")

    def _on_gripper(self, message: Float64) -> None:
        if not 0.0 <= message.data <= 1.0:
            self._gate.refuse(Refusal.NOT_FINITE)
            return
        self._opening = message.data

    def _on_target(self, message: PoseStamped) -> None:
        if message.header.frame_id != self._contract.robot.base_frame:
            self._gate.refuse(Refusal.BAD_SHAPE)
            return
        age_ns = self._node.get_clock().now().nanoseconds - stamp_to_ns(message.header.stamp)
        self._gate.on_planned(pose_from_msg(message), self._opening, time.monotonic_ns() - max(0, age_ns))
