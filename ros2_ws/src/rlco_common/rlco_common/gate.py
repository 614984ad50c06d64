"""The command gate: who may move the arm, and to which target. Pure; time is handed in as monotonic nanoseconds.

One state machine with two drives (gate_drives.py): `RealTimeGate.step` is called at a fixed rate and returns the target
of the next step; `LockstepGate.decide` is called after every input and returns the target of the open control tick once
the source in charge has a command for exactly that tick. Arbitration, latches and the limiter (limiter.py) are shared.

- Operator over planned move over policy. The operator is in charge while the dead-man is held; the policy only after
  enable_policy(), a planned move (to the start, between episodes) only after allow_planned(), and never both.
- Every change of who is in charge flushes the policy's chunks; the target goes on from where it is.
- When commands stop, the last target is held. stop() latches in every state, past every filter; only rearm() clears it.
- Ages are measured from monotonic arrival. A header stamp can make a command older, never younger.
- Non-finite and ill-shaped input is refused; every refusal and every limit that took effect is counted by its cause.
"""

from collections import Counter, deque
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from rlco_common.contract import Contract
from rlco_common.limiter import Limit, Motion, at_rest, limit_step, target_lead
from rlco_common.pose import Pose, compose_delta

NANOSECONDS = 1_000_000_000
_REMEMBERED_OBSERVATIONS = 500


class GateState(Enum):
    IDLE = "idle"            # no target yet: nothing is commanded
    OPERATOR = "operator"
    POLICY = "policy"
    PLANNED = "planned"      # a planned move, slower than the others
    HOLD = "hold"            # nobody moves the arm: the last target is held
    STOPPED = "stopped"      # latched by stop(); rearm() clears it
    FAULT = "fault"          # latched by the target's lead over the measured pose; rearm() clears it


class Source(Enum):
    """Who is in charge."""

    NOBODY = "nobody"
    OPERATOR = "operator"
    POLICY = "policy"
    PLANNED = "planned"


class Refusal(Enum):
    """Why an input was not used."""

    NOT_FINITE = "not_finite"
    BAD_SHAPE = "bad_shape"
    UNSTAMPED = "unstamped"
    WRONG_FRAME = "wrong_frame"
    COMMAND_STALE = "command_stale"
    STATE_INVALID = "state_invalid"
    STATE_STALE = "state_stale"


Cause = Refusal | Limit


@dataclass(frozen=True)
class Command:
    """What the gate publishes. gripper: opening in [0, 1], None until one was commanded. stamp_ns: lock step only."""

    target: Pose
    gripper: float | None
    stamp_ns: int | None = None


@dataclass(frozen=True)
class Chunk:
    """Actions [n, 7] in physical units, one per control tick. observed_ns: monotonic time of their observation."""

    actions: np.ndarray
    stamp_ns: int
    observed_ns: int
    next_index: int = 0


@dataclass(frozen=True)
class Playback:
    """One policy action, spread linearly over the `steps` gate steps of its tick; the last one is the exact target."""

    start: Pose
    action: np.ndarray
    steps: int
    done: int = 0

    def advanced(self) -> "Playback":
        return replace(self, done=self.done + 1)

    @property
    def delta(self) -> np.ndarray:
        """[6] the part of the action that is done, from `start`."""
        return self.action[:6] if self.done >= self.steps else self.action[:6] * (self.done / self.steps)


@dataclass(frozen=True)
class _Twist:
    values: np.ndarray       # [6] m/s and rad/s
    stamp_ns: int
    sent_ns: int             # monotonic arrival, minus what the stamp says it was under way


@dataclass(frozen=True)
class _Planned:
    target: Pose
    opening: float | None
    sent_ns: int


@dataclass(frozen=True)
class _Gripper:
    opening: float
    arrived_ns: int


class Gate:
    """State, arbitration and latches; the drives below add time. All `now_ns` are monotonic nanoseconds."""

    def __init__(self, contract: Contract, steps_per_tick: int):
        self.contract = contract
        self.state = GateState.IDLE
        self.counts: Counter[Cause] = Counter()
        self.policy_enabled = False
        self.planned_allowed = False
        self._steps_per_tick = steps_per_tick
        self._dt_s = contract.control_period_s / steps_per_tick
        self._timeout_ns = round(contract.limits.command_timeout_s * NANOSECONDS)
        self._source = Source.NOBODY
        self._motion: Motion | None = None
        self._opening: float | None = None
        self._measured: Pose | None = None
        self._measured_ns = 0
        self._observations: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED_OBSERVATIONS)
        self.episode_start_ns = 0
        self._deadman = False
        self._deadman_ns = 0
        self._twist: _Twist | None = None
        self._gripper: _Gripper | None = None
        self._planned: _Planned | None = None
        self._engaged_ns = 0
        self._chunk: Chunk | None = None
        self._playback: Playback | None = None

    # -- inputs

    def on_state(self, pose: Pose, stamp_ns: int, now_ns: int) -> None:
        """The measured end-effector pose. When each stamp was first seen is remembered, to date chunks by no clock."""
        if not self._plausible(pose):
            self.counts[Refusal.STATE_INVALID] += 1
            return
        if stamp_ns < self.episode_start_ns:
            return      # of the episode before, and only now delivered
        self._measured, self._measured_ns = pose, now_ns
        if self._observations and stamp_ns < self._observations[-1][0]:
            self._observations.clear()      # the source's clock was set back; older dates mean nothing any more
        if not self._observations or stamp_ns > self._observations[-1][0]:
            self._observations.append((stamp_ns, now_ns))

    def on_deadman(self, held: bool, now_ns: int) -> None:
        self._deadman, self._deadman_ns = held, now_ns

    def on_twist(self, values, stamp_ns: int, stamp_age_ns: int, now_ns: int) -> None:
        """[6] m/s and rad/s along the base axes. stamp_age_ns: node clock minus stamp; counts only when positive."""
        values = self._checked(values, (6,))
        if values is None:
            return
        if stamp_ns <= 0:
            self.counts[Refusal.UNSTAMPED] += 1
            return
        limits = self.contract.limits
        fastest = np.repeat([limits.max_linear_speed_m_s, limits.max_angular_speed_rad_s], 3)
        if (np.abs(values) > fastest).any():    # also keeps huge numbers from overflowing further on
            self.counts[Limit.SPEED] += 1
            values = np.clip(values, -fastest, fastest)
        self._twist = _Twist(values, stamp_ns, now_ns - max(0, stamp_age_ns))

    def on_gripper(self, opening: float, now_ns: int) -> None:
        """Opening wanted by the operator; outside [0, 1] is clipped."""
        value = self._checked(opening, ())
        if value is not None:
            self._gripper = _Gripper(float(np.clip(value, 0.0, 1.0)), now_ns)

    def on_chunk(self, actions, stamp_ns: int, stamp_age_ns: int, now_ns: int) -> None:
        """A policy's actions [n, 7] for the ticks from its observation's stamp on."""
        shape = np.shape(actions)
        if len(shape) != 2 or shape[0] < 1:
            self.counts[Refusal.BAD_SHAPE] += 1
            return
        actions = self._checked(actions, (shape[0], self.contract.action.dim))
        if actions is None:
            return
        if stamp_ns <= 0:
            self.counts[Refusal.UNSTAMPED] += 1
            return
        if self._chunk is not None and stamp_ns < self._chunk.stamp_ns:
            self.counts[Refusal.COMMAND_STALE] += 1
            return
        if self._chunk is not None and stamp_ns == self._chunk.stamp_ns:
            return      # the same chunk again
        clipped = self.contract.action.clip(actions)
        if np.abs(clipped - actions).max() > 1e-9:
            self.counts[Limit.ACTION_DELTA] += 1
        self._chunk = Chunk(clipped, stamp_ns, self._observed_ns(stamp_ns, stamp_age_ns, now_ns))

    def on_planned(self, target: Pose, opening: float | None, sent_ns: int) -> None:
        """The next point of a planned move; opening: of the gripper, None leaves it as it is. sent_ns: monotonic."""
        if not target.is_finite():
            self.counts[Refusal.NOT_FINITE] += 1
        elif self.planned_allowed:
            self._planned = _Planned(target, opening, sent_ns)

    def refuse(self, refusal: Refusal) -> None:
        """Count an input that the caller could not even hand in (a message of the wrong shape)."""
        self.counts[refusal] += 1

    # -- requests

    def stop(self) -> None:
        """Latch a stop: freeze the target at once, flush everything. Works in every state and cannot be refused."""
        self._latch(GateState.STOPPED)

    def rearm(self, now_ns: int) -> str | None:
        """Clear a stop or fault; returns the reason when refused. The next command starts at the measured pose."""
        if self._deadman_held(now_ns):
            return "the dead-man is held; release it first, then re-arm"
        self.reset(self.episode_start_ns)
        self.state = GateState.IDLE
        return None

    def enable_policy(self, enable: bool, now_ns: int) -> str | None:
        """Hand over to the policy, or take it away; returns the reason when refused."""
        if enable and self.latched:
            return f"the gate is {self.state.value}; re-arm it first"
        if enable and self._deadman_held(now_ns):
            return "the operator holds the dead-man; release it first"
        if enable and self.planned_allowed:
            return "a planned move has the arm; cancel it, or wait for its end"
        self.policy_enabled = enable
        self._authorise(now_ns)
        return None

    def allow_planned(self, allow: bool, now_ns: int) -> str | None:
        """Let a planned move have the arm, or take it away; returns the reason when refused.

        It loses the arm to the operator's dead-man, to a stop, and when its targets stop for the command timeout.
        """
        raise NotImplementedError

    def reset(self, episode_start_ns: int = 0) -> None:
        """A new episode: forget target and commands, revoke the policy. A latched stop or fault stays latched.

        episode_start_ns: stamp of the episode's first observation; states with an older one do not count any more.
        """
        self.episode_start_ns = episode_start_ns
        if self._observations and self._observations[-1][0] < episode_start_ns:
            self._measured = None
        self._flush()
        self._twist = self._gripper = self._motion = self._opening = None
        self.policy_enabled = self.planned_allowed = False
        self._source = Source.NOBODY
        if not self.latched:
            self.state = GateState.IDLE

    # -- what is going on

    @property
    def latched(self) -> bool:
        return self.state in (GateState.STOPPED, GateState.FAULT)

    @property
    def source(self) -> Source:
        return self._source

    @property
    def held_command(self) -> Command | None:
        """The present target, to be held; None when there is none."""
        return None if self._motion is None else Command(self._motion.pose, self._opening)

    def lead(self) -> tuple[float, float] | None:
        """Target over measured pose in metres and radians, None when either is unknown."""
        if self._motion is None or self._measured is None:
            return None
        return target_lead(self._motion.pose, self._measured)

    # -- the shared core

    def _authorise(self, now_ns: int) -> None:
        """Decide who is in charge; flush the policy's chunks when that changed."""
        if self._deadman_held(now_ns):
            source = Source.OPERATOR
            self.policy_enabled = False     # after a takeover the policy needs a deliberate hand-over again
            self.planned_allowed = False
        elif self.planned_allowed:
            source = Source.PLANNED
        else:
            source = Source.POLICY if self.policy_enabled else Source.NOBODY
        if source is self._source:
            return
        self._source = source
        self._engaged_ns = now_ns
        self._flush_at_handover()

    def _aim(self, start: Pose, delta) -> Pose:
        """The contract's compose_target, counted when the workspace cuts it."""
        moved = compose_delta(start, delta)
        position = self.contract.limits.clip_position(moved.position)
        self._count_if((position != moved.position).any(), Limit.WORKSPACE)
        return Pose(position, moved.quaternion)

    def _move(self, wish: Pose, base: Motion, opening: float | None) -> None:
        """Command the wish as far as the limits allow; a target that leads too far is a fault."""
        step = limit_step(wish, base, self._measured, self.contract, self._dt_s)
        self.counts.update(step.limits)
        self._motion = step.motion
        if Limit.TARGET_LEAD in step.limits:
            self._latch(GateState.FAULT)
            return
        if opening is not None:
            self._opening = opening
        self.state = GateState[self._source.name]

    def _hold(self) -> None:
        """Brake to, and stay at, the last target."""
        if self._motion is not None:
            pose = self._motion.pose
            self._motion = limit_step(pose, self._motion, pose, self.contract, self._dt_s).motion
        self.state = GateState.HOLD if self._motion is not None else GateState.IDLE

    def _latch(self, state: GateState) -> None:
        self._flush()
        self._twist = self._gripper = None
        self.policy_enabled = self.planned_allowed = False
        self._source = Source.NOBODY
        if self._motion is not None:
            self._motion = at_rest(self._motion.pose)
        self.state = state

    def _flush(self) -> None:
        self._chunk = self._playback = self._planned = None

    def _flush_at_handover(self) -> None:
        self._flush()

    def _base(self) -> Motion:
        """Where the next step starts: the last command, or the measured pose when there is none."""
        return at_rest(self._measured) if self._motion is None else self._motion

    def _start_playback(self, base: Motion, index: int) -> None:
        self._playback = Playback(base.pose, self._chunk.actions[index], self._steps_per_tick)
        self._chunk = replace(self._chunk, next_index=index + 1)

    def _advance_playback(self, base: Motion) -> None:
        self._playback = self._playback.advanced()
        self._move(self._aim(self._playback.start, self._playback.delta), base, float(self._playback.action[6]))
        if self._playback is not None and self._playback.done >= self._steps_per_tick:
            self._playback = None

    def _plausible(self, pose: Pose) -> bool:
        """Finite, and no further outside the workspace than a target may lead: else there is no way back in."""
        if not pose.is_finite():
            return False
        outside = pose.position - self.contract.limits.clip_position(pose.position)
        return bool(np.abs(outside).max() <= self.contract.limits.max_target_lead_m)

    def _count_if(self, happened: bool, cause: Cause) -> None:
        if happened:
            self.counts[cause] += 1

    def _checked(self, values, shape) -> np.ndarray | None:
        try:
            values = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            self.counts[Refusal.BAD_SHAPE] += 1
            return None
        if values.shape != shape:
            self.counts[Refusal.BAD_SHAPE] += 1
            return None
        if not np.isfinite(values).all():
            self.counts[Refusal.NOT_FINITE] += 1
            return None
        return values

    def _observed_ns(self, stamp_ns: int, stamp_age_ns: int, now_ns: int) -> int:
        """Monotonic time at which the observation with this stamp was new; the earlier of two witnesses."""
        by_clock = now_ns - max(0, stamp_age_ns)
        seen = next((arrived for stamp, arrived in reversed(self._observations) if stamp <= stamp_ns), None)
        if seen is None:
            return min(by_clock, self._observations[0][1]) if self._observations else by_clock
        return min(by_clock, seen)

    def _deadman_held(self, now_ns: int) -> bool:
        raise NotImplementedError
