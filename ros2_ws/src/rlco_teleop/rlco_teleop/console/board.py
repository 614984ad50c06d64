"""What the console shows: the newest word of gate, recorder and arm, as plain data for the page. Pure."""

from collections.abc import Mapping

from rlco_common.episode import EpisodeEvent
from rlco_common.pose import Pose
from rlco_teleop.console.desk import Desk
from rlco_teleop.devices.switch import NANOSECONDS

GATE_SILENT_S = 1.0         # the gate reports five times a second
RECORDER_SILENT_S = 3.0     # the recorder once
CAUSE_S = 4.0               # a refusal or limit is shown this long after it last counted
ARM_SILENT_S = 1.0
AUDIT_STATUS = "recorder: audit"

GATE_HINTS = {
    "IDLE": "ready; nothing is commanded yet",
    "OPERATOR": "an operator moves the arm",
    "POLICY": "the policy moves the arm",
    "PLANNED": "the arm goes its planned way to the start",
    "HOLD": "the arm holds its place",
    "STOPPED": "stopped; release everything, then re-arm",
    "FAULT": "the arm did not follow its target; look at it, then re-arm",
}
CAUSE_HINTS = {
    "NOT_FINITE": "a command was not a number", "BAD_SHAPE": "a command had the wrong shape",
    "UNSTAMPED": "a command had no time stamp", "WRONG_FRAME": "a message is not in the robot's base frame",
    "COMMAND_STALE": "commands came too late",
    "STATE_INVALID": "the arm's reported pose cannot be", "STATE_STALE": "the arm's pose is not heard",
    "SPEED": "slowed down: speed limit", "ACCELERATION": "slowed down: acceleration limit",
    "ACTION_DELTA": "slowed down: limit per control tick", "WORKSPACE": "held at the edge of the workspace",
    "TARGET_LEAD": "the target was too far ahead of the arm",
}


class Board:
    """Fed with what topics say; `snapshot` is what a page needs to draw itself. All times are monotonic nanoseconds."""

    def __init__(self):
        self._gate: Mapping[str, str] = {}
        self._gate_ns: int | None = None
        self._counts: dict[str, int] = {}
        self._causes: dict[str, int] = {}       # cause -> when it last counted
        self._others: dict[str, tuple[int, int, str, Mapping[str, str]]] = {}
        self._reset: EpisodeEvent | None = None
        self._chosen = ("", "")
        self._recording = ""        # name of the episode
        self._started_ns = 0
        self._pose: Pose | None = None
        self._pose_ns = 0
        self.camera_problem = ""

    def on_gate(self, values: Mapping[str, str], now_ns: int) -> None:
        """The gate's status: state, source, and a count per cause."""
        counts = {key: int(value) for key, value in values.items() if key.isupper() and value.isdigit()}
        first = self._gate_ns is None
        for cause, count in counts.items():
            if not first and count > self._counts.get(cause, 0):
                self._causes[cause] = now_ns
        self._gate, self._gate_ns, self._counts = values, now_ns, counts

    def on_diagnostic(self, name: str, level: int, message: str, values: Mapping[str, str], now_ns: int) -> None:
        """A status of /diagnostics. level: 0 all is well, 1 warning, 2 error."""
        if name == "recorder":
            self._record(values.get("episode", ""), now_ns)
        self._others[name] = (now_ns, level, message, values)

    def on_event(self, event: EpisodeEvent, now_ns: int) -> None:
        if event.kind == "reset":
            self._reset = event
        elif event.kind == "start":
            self._record(event.episode, now_ns)
        elif event.kind in ("success", "failure", "discard"):
            self._record("", now_ns)

    def on_pose(self, pose: Pose, now_ns: int) -> None:
        self._pose, self._pose_ns = pose, now_ns

    def on_choice(self, task: str, instruction: str) -> None:
        """What the recorder's parameters say where no reset event does."""
        self._chosen = (task, instruction)

    @property
    def next_seed(self) -> int:
        """Seed of the scene after the present one."""
        return 0 if self._reset is None else max(self._reset.seed, 0) + 1

    @property
    def chosen_by_simulator(self) -> bool:
        """Whether task and instruction come with a reset event, which the recorder prefers to its parameters."""
        return self._reset is not None and bool(self._reset.task)

    def snapshot(self, desk: Desk, opening: float | None, simulated: bool, now_ns: int) -> dict:
        """The page's state. opening: of the gripper. simulated: a simulator's reset service is there."""
        return {
            "do": "state", "now_ms": now_ns / 1e6,
            "gate": self._gate_part(now_ns),
            "recorder": self._recorder_part(now_ns),
            "episode": self._episode_part(simulated),
            "arm": self._arm_part(opening, now_ns),
            "control": {"operator": desk.operator, "name": desk.operator_name, "pressing": desk.pressing(now_ns)},
            "troubles": self._troubles(now_ns),
            "camera_problem": self.camera_problem,
        }

    def _gate_part(self, now_ns: int) -> dict:
        if self._gate_ns is None or now_ns - self._gate_ns > GATE_SILENT_S * NANOSECONDS:
            return {"state": "SILENT", "source": "", "policy_enabled": False, "causes": [],
                    "hint": "the gate is not heard; nothing here can move or stop the arm"}
        state = self._gate.get("state", "?")
        recent = sorted((cause for cause, at in self._causes.items() if now_ns - at <= CAUSE_S * NANOSECONDS),
                        key=lambda cause: -self._causes[cause])
        return {"state": state, "source": self._gate.get("source", ""), "hint": GATE_HINTS.get(state, ""),
                "policy_enabled": self._gate.get("policy_enabled") == "True",
                "causes": [{"name": cause, "text": CAUSE_HINTS.get(cause, cause.lower().replace("_", " ")),
                            "count": self._counts.get(cause, 0)} for cause in recent]}

    def _recorder_part(self, now_ns: int) -> dict:
        status = self._fresh("recorder", now_ns)
        if status is None:
            return {"there": False, "recording": "", "seconds": 0, "message": "the recorder is not heard", "level": 1,
                    "warnings": [], "verdict": "", "reasons": []}
        _, level, message, values = status
        recording = self._recording
        audit = self._fresh(AUDIT_STATUS, now_ns)
        about = audit[3] if audit else {}
        seconds = (now_ns - self._started_ns) / NANOSECONDS if recording else 0
        return {"there": True, "recording": recording, "seconds": round(seconds), "message": message, "level": level,
                "messages": values.get("messages", ""),
                "warnings": [text for key, text in about.items() if not key.startswith("last ")] if recording else [],
                "verdict": about.get("last verdict", ""),
                "reasons": [text for key, text in about.items() if key.startswith("last reason")]}

    def _episode_part(self, simulated: bool) -> dict:
        task, instruction = self._chosen
        if self.chosen_by_simulator:
            task, instruction = self._reset.task, self._reset.instruction
        return {"task": task, "instruction": instruction, "fixed": self.chosen_by_simulator,
                "seed": -1 if self._reset is None else self._reset.seed,
                "domain": "" if self._reset is None else self._reset.domain, "simulated": simulated}

    def _arm_part(self, opening: float | None, now_ns: int) -> dict:
        heard = self._pose is not None and now_ns - self._pose_ns <= ARM_SILENT_S * NANOSECONDS
        position = [round(float(value), 4) for value in self._pose.position] if heard else None
        return {"position_m": position, "opening": None if opening is None else round(opening, 2)}

    def _troubles(self, now_ns: int) -> list[dict]:
        """Warnings of every other node."""
        return [{"name": name, "level": level, "message": message}
                for name, (at, level, message, _) in sorted(self._others.items())
                if level and name not in ("recorder", AUDIT_STATUS, "gate")
                and now_ns - at <= RECORDER_SILENT_S * NANOSECONDS]

    def _record(self, episode: str, now_ns: int) -> None:
        if episode != self._recording:
            self._recording, self._started_ns = episode, now_ns

    def _fresh(self, name: str, now_ns: int):
        status = self._others.get(name)
        return status if status and now_ns - status[0] <= RECORDER_SILENT_S * NANOSECONDS else None
