"""What stands between the gate's commands and an arm's controllers: checks, denser poses, gripper positions. Pure.

Nothing here starts a motion: without a target there is no output, and where a target is refused or none comes any more, the
caller sends nothing, so that the controller holds what it was told last. All times are monotonic nanoseconds.
"""

from collections import Counter
from enum import Enum

from rlco_common.contract import RobotSpec
from rlco_common.pose import Pose, compose_delta, delta_between

NANOSECONDS = 1_000_000_000
_SAME_OPENING = 0.02        # of the full opening: a smaller change is no reason for a new gripper goal


class Refusal(Enum):
    """Why a target was not passed on."""

    NOT_FINITE = "not_finite"
    WRONG_FRAME = "wrong_frame"
    STALE = "stale"
    NO_JOINT_STATE = "no_joint_state"
    OUT_OF_REACH = "out_of_reach"
    JOINT_JUMP = "joint_jump"
    JOINT_LEAD = "joint_lead"


class Refused(Exception):
    """A target is not passed on; `refusal` and the message say why."""

    def __init__(self, refusal: Refusal, message: str):
        super().__init__(message)
        self.refusal = refusal


class PoseStream:
    """Poses between the targets, for a controller that would follow each target with a jerk.

    The way to a new target takes as long as the time between the last two: the output is late by one period of the targets.
    After `timeout_s` without a target there is no output.
    """

    def __init__(self, timeout_s: float):
        self._timeout_ns = round(timeout_s * NANOSECONDS)
        self._start: Pose | None = None
        self._goal: Pose | None = None
        self._arrived_ns = 0
        self._lasts_ns = 0

    def on_target(self, target: Pose, now_ns: int) -> None:
        present = self.sample(now_ns)
        self._lasts_ns = 0 if present is None else now_ns - self._arrived_ns
        self._start = target if present is None else present
        self._goal, self._arrived_ns = target, now_ns

    def sample(self, now_ns: int) -> Pose | None:
        """The pose to send now; None without a fresh target."""
        if self._goal is None or now_ns - self._arrived_ns > self._timeout_ns:
            return None
        share = (now_ns - self._arrived_ns) / self._lasts_ns if self._lasts_ns else 1.0
        if share >= 1.0:
            return self._goal
        return compose_delta(self._start, share * delta_between(self._start, self._goal))


class Tally:
    """What was passed on and what was refused, for diagnostics."""

    def __init__(self):
        self.passed = self.limited = 0
        self.refused: Counter[Refusal] = Counter()
        self.reason = ""        # of the last refusal, empty while targets pass

    def took(self, limited: bool = False) -> None:
        self.passed += 1
        self.limited += limited
        self.reason = ""

    def refuse(self, refused: Refused) -> None:
        self.refused[refused.refusal] += 1
        self.reason = str(refused)

    def values(self) -> dict[str, int]:
        return {"passed": self.passed, "speed_limited": self.limited,
                **{refusal.name: count for refusal, count in self.refused.items()}}


def checked_target(target: Pose, frame: str, base_frame: str, age_ns: int, timeout_s: float) -> Pose:
    """The target, when it can be used. age_ns: what its stamp says; a stamp of the future counts as new. Raises Refused."""
    if frame != base_frame:
        raise Refused(Refusal.WRONG_FRAME, f"the target is in frame '{frame}', the contract says '{base_frame}'")
    if not target.is_finite():
        raise Refused(Refusal.NOT_FINITE, "the target is not finite, or its quaternion has no length")
    if age_ns > timeout_s * NANOSECONDS:
        raise Refused(Refusal.STALE, f"the target is {age_ns / NANOSECONDS:.2f} s old; are the machines' clocks in step?")
    return target


def finger_positions(robot: RobotSpec, opening: float, fingers: int) -> list[float]:
    """One position per finger joint (metres of a Franka hand), for an opening in [0, 1]."""
    return [robot.gripper_joint_position(opening)] * fingers


class GripperGoals:
    """Which openings are worth a new goal: an action server would drop the goal it works on for every message."""

    def __init__(self):
        self._sent: float | None = None

    def next(self, opening: float) -> float | None:
        """The opening to send, None when the last goal says the same."""
        ends = opening in (0.0, 1.0) and opening != self._sent
        if self._sent is not None and abs(opening - self._sent) < _SAME_OPENING and not ends:
            return None
        self._sent = opening
        return opening

    def forget(self) -> None:
        """The last goal did not count."""
        self._sent = None
