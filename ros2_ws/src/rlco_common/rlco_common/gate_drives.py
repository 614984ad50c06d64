"""The two drives of the command gate: fixed rate in real time, tick by tick in lock step. Pure, like gate.py."""

from dataclasses import replace

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_common.gate import NANOSECONDS, Command, Gate, GateState, Refusal, Source
from rlco_common.pose import Pose, compose_delta, delta_between


class RealTimeGate(Gate):
    """Fixed-rate drive: `step` every 1 / rate_hz seconds, a whole number of times in a control period.

    planned_speeds: m/s and rad/s of planned moves, whatever their targets say.
    """

    def __init__(self, contract: Contract, rate_hz: float, planned_speeds: tuple[float, float] = (0.15, 0.8)):
        steps = round(rate_hz / contract.control_rate_hz)
        if steps < 1 or abs(steps * contract.control_rate_hz - rate_hz) > 1e-6:
            raise ConfigError(
                f"gate rate {rate_hz:g} Hz is not a whole multiple of the control rate "
                f"{contract.control_rate_hz:g} Hz; use for example {max(steps, 1) * contract.control_rate_hz:g} Hz")
        super().__init__(contract, steps)
        self._period_ns = round(self._dt_s * NANOSECONDS)
        self._stepped_ns: int | None = None
        self._moved_ns = 0
        self._planned_steps = tuple(speed * self._dt_s for speed in planned_speeds)

    def step(self, now_ns: int) -> Command | None:
        """The command for the next step; None while there is no target."""
        self._notice_own_stall(now_ns)
        if not self.latched:
            self._authorise(now_ns)
            if self._source is Source.NOBODY or not self._state_usable(now_ns):
                self._hold()
            elif self._source is Source.OPERATOR:
                self._operate(now_ns)
            elif self._source is Source.PLANNED:
                self._follow_plan(now_ns)
            else:
                self._follow_policy(now_ns)
        return self.held_command

    def allow_planned(self, allow: bool, now_ns: int) -> str | None:
        if allow and self.latched:
            return f"the gate is {self.state.value}; re-arm it first"
        if allow and self._deadman_held(now_ns):
            return "the operator holds the dead-man; release it first"
        if allow and self.policy_enabled:
            return "the policy is in charge; take the arm from it first"
        if allow and not self._state_usable(now_ns):
            return "the arm's pose is not heard"
        self.planned_allowed = allow
        self._authorise(now_ns)
        return None

    def _follow_plan(self, now_ns: int) -> None:
        heard_ns = self._engaged_ns if self._planned is None else self._planned.sent_ns
        if now_ns - heard_ns > self._timeout_ns:
            self.counts[Refusal.COMMAND_STALE] += 1
            self.allow_planned(False, now_ns)
        if self._planned is None:
            self._hold()
            return
        base = self._base()
        self._move(self._slowed(base.pose, self._planned.target), base, self._planned.opening)

    def _slowed(self, start: Pose, wish: Pose) -> Pose:
        """The wish, or a pose on the straight way there that planned moves may reach in one step."""
        delta = delta_between(start, wish)
        ways = np.linalg.norm(delta[:3]), np.linalg.norm(delta[3:])
        share = min(1.0, *(step / max(way, 1e-12) for step, way in zip(self._planned_steps, ways, strict=True)))
        return wish if share == 1.0 else compose_delta(start, share * delta)

    def _operate(self, now_ns: int) -> None:
        if self._twist is None or now_ns - self._twist.sent_ns > self._timeout_ns:
            self._count_if(self._twist is not None, Refusal.COMMAND_STALE)
            self._twist = None
            self._hold()
            return
        base = self._base()
        opening = self._gripper.opening if self._gripper_meant(now_ns) else None
        self._move(self._aim(base.pose, self._twist.values * self._dt_s), base, opening)

    def _gripper_meant(self, now_ns: int) -> bool:
        """A gripper wish from long before the takeover must not snap the gripper at the takeover."""
        return self._gripper is not None and self._gripper.arrived_ns >= self._engaged_ns - self._timeout_ns

    def _follow_policy(self, now_ns: int) -> None:
        base = self._base()
        if self._playback is None:
            index = self._due_index(now_ns)
            if index is not None:
                self._start_playback(base, index)
        if self._playback is not None:
            self._moved_ns = now_ns
            self._advance_playback(base)
        elif self.state is GateState.POLICY and now_ns - self._moved_ns <= self._timeout_ns:
            self._hold()
            self.state = GateState.POLICY   # between two chunks
        else:
            self._count_if(self.state is GateState.POLICY, Refusal.COMMAND_STALE)
            self._hold()

    def _due_index(self, now_ns: int) -> int | None:
        """The action that belongs to the tick starting now; drops a chunk whose last action is over."""
        if self._chunk is None:
            return None
        age_ns = now_ns - self._chunk.observed_ns - self._period_ns
        index = max(self._chunk.next_index, age_ns // self.contract.control_period_ns)
        if index < len(self._chunk.actions):
            return index
        if self._chunk.next_index == 0:
            self.counts[Refusal.COMMAND_STALE] += 1     # it was never used at all
        self._chunk = None
        return None

    def _state_usable(self, now_ns: int) -> bool:
        max_age_ns = self.contract.topics.state_max_age_s * NANOSECONDS
        if self._measured is not None and now_ns - self._measured_ns <= max_age_ns:
            return True
        self._count_if(self.state in (GateState.OPERATOR, GateState.POLICY, GateState.PLANNED), Refusal.STATE_STALE)
        self._flush()       # or half an action would go on when the state comes back
        return False

    def _notice_own_stall(self, now_ns: int) -> None:
        """After the gate itself slept longer than a command may live, nothing that it holds is to be executed."""
        if self._stepped_ns is not None and now_ns - self._stepped_ns > self._timeout_ns:
            self._flush()
            self._twist = self._gripper = None
            self._deadman = False
        self._stepped_ns = now_ns

    def _deadman_held(self, now_ns: int) -> bool:
        return self._deadman and now_ns - self._deadman_ns <= self._timeout_ns


class LockstepGate(Gate):
    """Tick-by-tick drive. A command counts only for the tick whose stamp it bears, whatever its age in wall time.

    A tick is decided once; until the source in charge has its command (operator: twist stamped with the tick and one
    gripper message since the last decision; policy: a chunk that covers it) nothing is commanded and simulation waits.
    """

    def __init__(self, contract: Contract):
        super().__init__(contract, steps_per_tick=1)
        self.engaged_tick_ns = 0    # stamp of the first tick that whoever is in charge decides, or decided
        self._open_ns: int | None = None
        self._decided_ns = -1

    def on_state(self, pose: Pose, stamp_ns: int, now_ns: int) -> None:
        super().on_state(pose, stamp_ns, now_ns)
        if self._measured is pose and stamp_ns > self._decided_ns:
            self._open_ns = stamp_ns

    def reset(self, episode_start_ns: int = 0) -> None:
        super().reset(episode_start_ns)
        if self._open_ns is not None and self._open_ns < episode_start_ns:
            self._open_ns = None

    def decide(self, now_ns: int) -> Command | None:
        """The command of the open tick, once it can be given; None otherwise."""
        if self.latched:
            return None
        self._authorise(now_ns)
        if self._open_ns is None or self._source is Source.NOBODY:
            self.state = GateState.IDLE if self._motion is None else GateState.HOLD
            return None
        decided = self._operate() if self._source is Source.OPERATOR else self._follow_policy()
        if not decided or self.latched:
            return None
        stamp_ns, self._open_ns = self._open_ns, None
        self._decided_ns = stamp_ns
        return replace(self.held_command, stamp_ns=stamp_ns)

    def allow_planned(self, allow: bool, now_ns: int) -> str | None:
        return "planned moves are for real time; in lock step reset the simulator" if allow else None

    def _operate(self) -> bool:
        if self._twist is None or self._twist.stamp_ns != self._open_ns or self._gripper is None:
            return False
        base = self._base()
        wish = self._aim(base.pose, self._twist.values * self._dt_s)
        self._move(wish, base, self._gripper.opening)
        self._gripper = None
        return True

    def _follow_policy(self) -> bool:
        if self._chunk is None:
            return False
        index, offset = divmod(self._open_ns - self._chunk.stamp_ns, self.contract.control_period_ns)
        if offset or not 0 <= index < len(self._chunk.actions):
            return False
        base = self._base()
        self._start_playback(base, index)
        self._advance_playback(base)
        return True

    def _flush_at_handover(self) -> None:
        """A chunk of the open tick's own observation is as new as can be: a hand-over to the policy keeps it."""
        following_ns = self._decided_ns + self.contract.control_period_ns
        self.engaged_tick_ns = following_ns if self._open_ns is None else self._open_ns
        chunk = self._chunk
        self._flush()
        if self._source is Source.POLICY and chunk is not None and chunk.stamp_ns == self._open_ns:
            self._chunk = chunk

    def _deadman_held(self, now_ns: int) -> bool:
        return self._deadman
