"""What a node that is about to move the arm has to know of the cell: arm, gate, recorder. Pure; monotonic nanoseconds."""

from collections.abc import Mapping

import numpy as np

from rlco_common.contract import Contract
from rlco_common.episode import EpisodeEvent
from rlco_common.pose import Pose, delta_between

GATE_SILENT_S = 1.0         # the gate reports five times a second
COMMAND_AGE_S = 0.5         # a gate that holds a target sends it at its rate
RECORDER_PERIODS_S = 2.0    # the recorder reports once a second
MOVED_M, MOVED_RAD = 0.01, 0.05
_SECOND = 1e9
_TAKEN = {"OPERATOR": "the operator took over", "STOPPED": "the gate was stopped",
          "FAULT": "the gate latched a fault: the arm did not follow", "POLICY": "the policy took over"}


class CellView:
    """Fed with what the topics say."""

    def __init__(self, contract: Contract):
        self._max_age_s = contract.topics.state_max_age_s
        self.joints: np.ndarray | None = None
        self.opening: float | None = None
        self.pose: Pose | None = None
        self._joints_ns = self._pose_ns = self._target_ns = self._gate_ns = 0
        self._target: Pose | None = None
        self._gate: Mapping[str, str] = {}
        self._recording, self._started_ns = "", 0

    def on_joints(self, joints: np.ndarray, opening: float, now_ns: int) -> None:
        self.joints, self.opening, self._joints_ns = joints, opening, now_ns

    def on_pose(self, pose: Pose, now_ns: int) -> None:
        self.pose, self._pose_ns = pose, now_ns

    def on_target(self, target: Pose, now_ns: int) -> None:
        """What the gate commands."""
        self._target, self._target_ns = target, now_ns

    def on_gate(self, values: Mapping[str, str], now_ns: int) -> None:
        """The gate's status."""
        self._gate, self._gate_ns = values, now_ns

    def on_event(self, event: EpisodeEvent, now_ns: int) -> None:
        if event.kind == "start":
            self._recording, self._started_ns = event.episode, now_ns
        elif event.kind in ("success", "failure", "discard"):
            self._recording = ""

    def on_recorder(self, episode: str, now_ns: int) -> None:
        """The recorder's own diagnostics: the episode that it records, empty when it does not."""
        if episode or now_ns - self._started_ns > RECORDER_PERIODS_S * _SECOND:     # not overtaken by the start's event
            self._recording = episode

    def commanded(self, now_ns: int) -> Pose | None:
        """The target that the gate sends now; None while it sends none."""
        return self._target if self._target is not None and now_ns - self._target_ns <= COMMAND_AGE_S * _SECOND else None

    def base(self, now_ns: int) -> Pose:
        """Where the next target starts: at the commanded one, or at the measured pose."""
        return self.commanded(now_ns) or self.pose

    def moved(self, base: Pose, now_ns: int) -> str:
        """Says so when the arm is held elsewhere than at `base`."""
        delta = delta_between(base, self.base(now_ns))
        if np.linalg.norm(delta[:3]) > MOVED_M or np.linalg.norm(delta[3:]) > MOVED_RAD:
            return "the arm was moved while its way was planned; try again"
        return ""

    @property
    def has_planned(self) -> bool:
        """A planned move has the arm."""
        return self._gate.get("source") == "PLANNED"

    def problem(self, now_ns: int) -> str:
        """Why no move may begin; empty when it may. The gate has the last word."""
        state = self._gate.get("state", "?")
        if silent := self._silent(now_ns):
            return silent
        if self._recording:
            return f"episode '{self._recording}' is being recorded; end it first"
        if state in ("STOPPED", "FAULT"):
            return f"the gate is {state}; re-arm it first"
        if self._gate.get("policy_enabled") == "True":
            return "the policy is in charge; take the arm from it first"
        return "the operator holds the dead-man; release it first" if self._gate.get("source") == "OPERATOR" else ""

    def interruption(self, now_ns: int) -> str:
        """Why a move must end that has the arm; empty when it may go on."""
        if silent := self._silent(now_ns):
            return silent
        if self._recording:
            return f"episode '{self._recording}' began"
        if not self.has_planned:
            return _TAKEN.get(self._gate["state"], f"the gate took the arm away (it is in state {self._gate['state']})")
        return ""

    def _silent(self, now_ns: int) -> str:
        if not self._gate_ns or now_ns - self._gate_ns > GATE_SILENT_S * _SECOND:
            return "the gate is not heard; is it running and active?"
        for name, heard_ns in (("joint states", self._joints_ns), ("tool pose", self._pose_ns)):
            if not heard_ns or now_ns - heard_ns > self._max_age_s * _SECOND:
                return f"the arm's {name} are not heard" if name.endswith("s") else f"the arm's {name} is not heard"
        return ""
