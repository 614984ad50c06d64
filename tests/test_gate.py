"""What the gate promises, tested on its pure core: limits, staleness, latches, arbitration, parity with the twin."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlco_common.contract import load_contract
from rlco_common.errors import ConfigError
from rlco_common.gate import GateState, Refusal, Source
from rlco_common.gate_drives import LockstepGate, RealTimeGate
from rlco_common.limiter import Limit, at_rest, limit_step, target_lead
from rlco_common.pose import Pose, compose_delta, delta_between

CONTRACT = load_contract()
LIMITS, ACTION = CONTRACT.limits, CONTRACT.action
PERIOD_NS = CONTRACT.control_period_ns
STEP_NS = PERIOD_NS // 4
TIMEOUT_NS = round(LIMITS.command_timeout_s * 1e9)
START = Pose([0.5, 0.0, 0.2], [1.0, 0.0, 0.0, 0.0])
TOLERANCE = 1e-7

wild = st.lists(st.floats(-50.0, 50.0), min_size=6, max_size=6).map(np.array)
in_limit = st.lists(st.floats(-1.0, 1.0), min_size=7, max_size=7).map(lambda a: ACTION.denormalise(np.array(a)))


class Robot:
    """A real-time gate with an arm that follows its target at once, on a clock of its own."""

    def __init__(self, rate_hz=20.0):
        self.gate = RealTimeGate(CONTRACT, rate_hz)
        self.now_ns = 1_000_000_000
        self.step_ns = round(1e9 / rate_hz)
        self.pose = START
        self.held = False
        self.follow = True
        self.targets = []

    def step(self, twist=None, stamp_age_ns=0):
        self.now_ns += self.step_ns
        self.gate.on_state(self.pose, self.now_ns, self.now_ns)
        self.gate.on_deadman(self.held, self.now_ns)
        if twist is not None:
            self.gate.on_twist(twist, self.now_ns, stamp_age_ns, self.now_ns)
        command = self.gate.step(self.now_ns)
        if command is not None:
            self.targets.append(command.target)
            self.pose = command.target if self.follow else self.pose
        return command

    def send_chunk(self, actions, age_ns=0):
        self.gate.on_chunk(actions, self.now_ns - age_ns, 0, self.now_ns)

    def enable(self):
        assert self.gate.enable_policy(True, self.now_ns) is None


def assert_within_limits(targets, dt_s, contract=CONTRACT):
    """Every limit on every step of a sequence of targets, from their differences alone."""
    limits, action = contract.limits, contract.action
    previous = np.zeros(6)
    for before, after in itertools.pairwise(targets):
        assert after.is_finite()
        assert (after.position >= np.array(limits.workspace_min_m)).all()
        assert (after.position <= np.array(limits.workspace_max_m)).all()
        velocity = delta_between(before, after) / dt_s
        assert np.linalg.norm(velocity[:3]) <= limits.max_linear_speed_m_s + TOLERANCE
        assert np.linalg.norm(velocity[3:]) <= limits.max_angular_speed_rad_s + TOLERANCE
        assert np.abs(velocity[:3]).max() <= action.max_translation_m / CONTRACT.control_period_s + TOLERANCE
        assert np.abs(velocity[3:]).max() <= action.max_rotation_rad / CONTRACT.control_period_s + TOLERANCE
        change = np.abs(velocity - previous) / dt_s
        assert change[:3].max() <= limits.max_linear_acceleration_m_s2 + 1e-5
        assert change[3:].max() <= limits.max_angular_acceleration_rad_s2 + 1e-5
        previous = velocity


# -- the limiter

TIGHT = replace(CONTRACT, limits=replace(LIMITS, max_linear_speed_m_s=0.3, max_angular_speed_rad_s=1.7))


@settings(deadline=None, max_examples=50)
@given(wishes=st.lists(wild, min_size=1, max_size=25), rate_hz=st.sampled_from([5.0, 20.0, 100.0]),
       contract=st.sampled_from([CONTRACT, TIGHT]))
def test_no_wish_ever_passes_a_limit(wishes, rate_hz, contract):
    motion, targets = at_rest(START), [START]
    for wish in wishes:
        step = limit_step(compose_delta(motion.pose, wish * 0.05), motion, motion.pose, contract, 1.0 / rate_hz)
        motion = step.motion
        targets.append(motion.pose)
    assert_within_limits(targets, 1.0 / rate_hz, contract)


@settings(deadline=None, max_examples=40)
@given(direction=wild, contract=st.sampled_from([CONTRACT, TIGHT]))
def test_braking_before_a_wall_needs_no_more_than_the_allowed_acceleration(direction, contract):
    # 100 Hz: a step is too short to stop in, so the limiter has to look ahead. The corner is 8 cm away.
    start = Pose(np.array(LIMITS.workspace_max_m) - 0.08, START.quaternion)
    direction = np.append(np.abs(direction[:3]), direction[3:])
    motion, targets = at_rest(start), [start]
    for _ in range(60):
        motion = limit_step(compose_delta(motion.pose, direction), motion, motion.pose, contract, 0.01).motion
        targets.append(motion.pose)
    assert_within_limits(targets, 0.01, contract)


def test_the_wall_is_reached_and_not_passed():
    motion = at_rest(START)
    for _ in range(60):
        motion = limit_step(compose_delta(motion.pose, [1, 0, 0, 0, 0, 0]), motion, motion.pose, CONTRACT, 0.05).motion
    assert motion.pose.position[0] == pytest.approx(LIMITS.workspace_max_m[0], abs=1e-9)
    assert motion.pose.position[0] <= LIMITS.workspace_max_m[0]


@settings(deadline=None, max_examples=40)
@given(action=in_limit)
def test_an_action_inside_the_limits_passes_bit_for_bit(action):
    wish = CONTRACT.compose_target(START, action)
    step = limit_step(wish, at_rest(START), START, CONTRACT, CONTRACT.control_period_s)
    assert not step.limits
    assert (step.motion.pose.as_array() == wish.as_array()).all()


def test_a_full_reversal_of_an_axis_at_20_hz_is_within_the_acceleration_limit():
    forward = np.array([ACTION.max_translation_m / 4, 0, 0, 0, 0, ACTION.max_rotation_rad / 4])
    motion = limit_step(compose_delta(START, forward), at_rest(START), START, CONTRACT, 0.05).motion
    back = limit_step(compose_delta(motion.pose, -forward), motion, motion.pose, CONTRACT, 0.05)
    assert not back.limits


@pytest.mark.parametrize("by", ["operator", "policy"])
def test_a_command_that_the_workspace_cuts_is_counted_and_others_are_not(by):
    robot = Robot()
    robot.pose = Pose([LIMITS.workspace_max_m[0] - 0.07, 0.0, 0.2], START.quaternion)
    if by == "policy":
        robot.enable()
        robot.step()
        robot.send_chunk(np.tile([0.04, 0, 0, 0, 0, 0, 1.0], (4, 1)))
    robot.held = by == "operator"
    for _ in range(6):
        robot.step([0.2, 0, 0, 0, 0, 0] if by == "operator" else None)
    assert not robot.gate.counts
    for _ in range(6):
        robot.step([0.2, 0, 0, 0, 0, 0] if by == "operator" else None)
    assert robot.gate.counts[Limit.WORKSPACE] >= 4
    assert robot.pose.position[0] == LIMITS.workspace_max_m[0]


def test_a_target_outside_the_workspace_may_only_come_in():
    outside = Pose([0.5, 0.0, 0.0], START.quaternion)
    down = limit_step(compose_delta(outside, [0, 0, -0.01, 0, 0, 0]), at_rest(outside), outside, CONTRACT, 0.2)
    assert down.motion.pose.position[2] == 0.0 and Limit.WORKSPACE in down.limits
    up = limit_step(compose_delta(outside, [0, 0, 0.01, 0, 0, 0]), at_rest(outside), outside, CONTRACT, 0.2)
    assert up.motion.pose.position[2] == pytest.approx(0.01)


def test_a_target_that_leads_too_far_is_refused_whole():
    measured = Pose(START.position - [LIMITS.max_target_lead_m - 0.01, 0, 0], START.quaternion)
    step = limit_step(compose_delta(START, [0.02, 0, 0, 0, 0, 0]), at_rest(START), measured, CONTRACT, 0.2)
    assert Limit.TARGET_LEAD in step.limits
    assert (step.motion.pose.as_array() == START.as_array()).all()


# -- the whole gate under random input

inputs = st.one_of(
    st.tuples(st.just("twist"), st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=6, max_size=6)),
    st.tuples(st.just("twist"), wild.map(list)),
    st.tuples(st.just("shape"), st.lists(st.floats(-1, 1), max_size=9)),
    st.tuples(st.just("chunk"), st.lists(in_limit.map(list), min_size=1, max_size=4)),
    st.tuples(st.just("bad_chunk"), st.lists(st.floats(allow_nan=True), min_size=7, max_size=7)),
    st.tuples(st.just("deadman"), st.booleans()),
    st.tuples(st.just("enable"), st.booleans()),
    st.tuples(st.just("stamp_jump"), st.integers(-(10**12), 10**12)),
    st.tuples(st.just("nothing"), st.none()),
)


def feed(robot, kind, value):
    gate, now_ns = robot.gate, robot.now_ns
    if kind in ("twist", "shape"):
        gate.on_twist(value, now_ns, 0, now_ns)
    elif kind == "chunk":
        robot.send_chunk(value)
    elif kind == "bad_chunk":
        gate.on_chunk([value], now_ns, 0, now_ns)
    elif kind == "deadman":
        robot.held = value
    elif kind == "enable":
        gate.enable_policy(value, now_ns)
    elif kind == "stamp_jump":
        gate.on_state(robot.pose, now_ns + value, now_ns)


@settings(deadline=None, max_examples=40)
@given(events=st.lists(inputs, min_size=1, max_size=40))
def test_whatever_comes_in_no_limit_is_passed_and_nothing_non_finite_leaves(events):
    robot = Robot()
    for kind, value in events:
        feed(robot, kind, value)
        robot.step()
    assert_within_limits([START, *robot.targets], 0.05)


@settings(deadline=None, max_examples=40)
@given(before=st.lists(inputs, max_size=15), after=st.lists(inputs, min_size=1, max_size=15))
def test_a_stop_wins_in_every_state_over_everything(before, after):
    robot = Robot()
    for kind, value in before:
        feed(robot, kind, value)
        robot.step()
    robot.gate.stop()
    frozen = robot.gate.held_command
    for kind, value in after:
        feed(robot, kind, value)
        command = robot.step(np.full(6, 0.1))
        assert robot.gate.state is GateState.STOPPED
        assert command is frozen is None or (command.target.as_array() == frozen.target.as_array()).all()
    robot.held = False
    robot.step()
    assert robot.gate.rearm(robot.now_ns) is None
    assert robot.gate.state is GateState.IDLE and not robot.gate.policy_enabled


def test_rearming_is_deliberate_and_survives_a_reset():
    robot = Robot()
    robot.held = True
    robot.step(np.full(6, 0.05))
    robot.gate.stop()
    robot.gate.reset()
    assert robot.gate.state is GateState.STOPPED
    assert "dead-man" in robot.gate.rearm(robot.now_ns)
    assert "re-arm" in robot.gate.enable_policy(True, robot.now_ns)
    assert robot.gate.state is GateState.STOPPED


def test_rearming_begins_no_other_episode():
    robot = Robot()
    robot.step()
    robot.gate.reset(episode_start_ns=5_000_000)
    robot.gate.stop()
    assert robot.gate.rearm(robot.now_ns) is None
    assert robot.gate.episode_start_ns == 5_000_000


# -- staleness

def test_silence_holds_the_last_target_and_never_zero():
    robot = Robot()
    robot.held = True
    for _ in range(4):
        robot.step([0.1, 0, 0, 0, 0, 0])
    moved = [robot.step() for _ in range(12)]
    still = moved[-1].target.as_array()
    assert (moved[-2].target.as_array() == still).all() and still[0] > START.position[0]
    assert robot.gate.state is GateState.HOLD and robot.gate.counts[Refusal.COMMAND_STALE] == 1
    assert still[0] - START.position[0] <= 0.1 * (4 * 0.05 + LIMITS.command_timeout_s + 0.05) + 1e-9


@settings(deadline=None, max_examples=40)
@given(age_ns=st.integers(TIMEOUT_NS + 1, 10**12))
def test_a_twist_stamped_older_than_the_timeout_never_moves_the_arm(age_ns):
    robot = Robot()
    robot.held = True
    robot.step([0.1, 0, 0, 0, 0, 0], stamp_age_ns=age_ns)
    assert not robot.targets


@settings(deadline=None, max_examples=40)
@given(ahead_ns=st.integers(0, 10**15))
def test_a_stamp_from_the_future_does_not_extend_life(ahead_ns):
    robot = Robot()
    robot.held = True
    robot.step([0.1, 0, 0, 0, 0, 0], stamp_age_ns=-ahead_ns)
    for _ in range(TIMEOUT_NS // STEP_NS + 1):
        robot.step()
    still = robot.step().target.as_array()
    assert (robot.step().target.as_array() == still).all()
    robot = Robot()
    robot.enable()
    robot.step()
    robot.gate.on_chunk(np.tile([0.04, 0, 0, 0, 0, 0, 1.0], (2, 1)), robot.now_ns + ahead_ns, -ahead_ns, robot.now_ns)
    for _ in range(9):
        robot.step()
    still = robot.step().target.as_array()
    assert (robot.step().target.as_array() == still).all() and still[0] <= START.position[0] + 0.08 + 1e-12


def test_under_a_frozen_clock_an_old_observations_chunk_is_still_old():
    robot = Robot()
    frozen_ns = 5_000_000_000
    robot.enable()
    for _ in range(40):     # two seconds in which every state bears the same stamp
        robot.now_ns += STEP_NS
        robot.gate.on_state(START, frozen_ns, robot.now_ns)
        robot.gate.step(robot.now_ns)
    robot.gate.on_chunk(np.tile([0.04, 0, 0, 0, 0, 0, 1.0], (4, 1)), frozen_ns, 0, robot.now_ns)
    robot.now_ns += STEP_NS
    robot.gate.on_state(START, frozen_ns, robot.now_ns)
    assert robot.gate.step(robot.now_ns) is None
    assert robot.gate.counts[Refusal.COMMAND_STALE] == 1


def test_old_actions_of_a_late_chunk_are_skipped():
    robot = Robot()
    robot.enable()
    for _ in range(12):
        robot.step()
    actions = np.zeros((4, 7))
    actions[:, 0] = [0.01, 0.02, 0.03, 0.04]
    robot.send_chunk(actions, age_ns=2 * PERIOD_NS + STEP_NS)
    for _ in range(8):
        robot.step()
    assert robot.targets[-1].position[0] == pytest.approx(START.position[0] + 0.03 + 0.04)


def test_after_its_own_stall_the_gate_executes_nothing_that_it_held():
    robot = Robot()
    robot.enable()
    robot.step()
    robot.send_chunk(np.tile([0.04, 0, 0, 0, 0, 0, 1.0], (4, 1)))
    robot.step()
    before = robot.targets[-1].as_array()
    robot.now_ns += 2_000_000_000
    for _ in range(10):
        robot.step()
    assert abs(robot.targets[-1].as_array()[0] - before[0]) < 0.01


def test_without_a_fresh_state_nothing_moves():
    robot = Robot()
    robot.held = True
    robot.step([0.1, 0, 0, 0, 0, 0])
    for _ in range(20):
        robot.now_ns += STEP_NS
        robot.gate.on_deadman(True, robot.now_ns)
        robot.gate.on_twist([0.1, 0, 0, 0, 0, 0], robot.now_ns, 0, robot.now_ns)
        command = robot.gate.step(robot.now_ns)
    assert robot.gate.state is GateState.HOLD and robot.gate.counts[Refusal.STATE_STALE]
    assert command.target.position[0] < START.position[0] + 0.1 * 0.3


def test_half_an_action_does_not_go_on_when_the_state_comes_back():
    robot = Robot()
    robot.enable()
    robot.step()
    robot.send_chunk(np.tile([0.04, 0, 0, 0, 0, 0, 1.0], (4, 1)))
    robot.step()
    for _ in range(6):      # 0.3 s without a state
        robot.now_ns += STEP_NS
        robot.gate.step(robot.now_ns)
    before = robot.gate.held_command.target.as_array()
    for _ in range(6):
        robot.step()
    assert (robot.targets[-1].as_array() == before).all()


def test_a_silent_dead_man_is_a_released_one():
    robot = Robot()
    robot.held = True
    robot.step([0.1, 0, 0, 0, 0, 0])
    for _ in range(20):     # twists go on, the dead-man does not
        robot.now_ns += STEP_NS
        robot.gate.on_state(robot.pose, robot.now_ns, robot.now_ns)
        robot.gate.on_twist([0.1, 0, 0, 0, 0, 0], robot.now_ns, 0, robot.now_ns)
        robot.gate.step(robot.now_ns)
    assert robot.gate.source is Source.NOBODY and robot.gate.state is GateState.HOLD


# -- arbitration

def test_the_policy_moves_only_after_a_deliberate_hand_over():
    robot = Robot()
    robot.step()
    robot.send_chunk(np.tile([0.04, 0, 0, 0, 0, 0, 1.0], (2, 1)))
    for _ in range(4):
        assert robot.step() is None
    robot.enable()
    for _ in range(4):
        assert robot.step() is None, "a chunk from before the hand-over was executed"
    robot.send_chunk(np.tile([0.04, 0, 0, 0, 0, 0, 1.0], (1, 1)))
    for _ in range(4):
        robot.step()
    assert robot.targets[-1].position[0] == START.position[0] + 0.04


def test_a_takeover_flushes_the_chunk_and_is_without_a_bump():
    robot = Robot()
    robot.enable()
    robot.step()
    robot.send_chunk(np.tile([0.04, 0, 0, 0, 0, 0, 1.0], (4, 1)))
    for _ in range(5):
        robot.step()
    robot.held = True
    for _ in range(3):
        robot.step([0.0, 0.1, 0, 0, 0, 0])
    assert robot.gate.source is Source.OPERATOR and not robot.gate.policy_enabled
    at_takeover = robot.targets[-1].position[0]
    robot.held = False
    for _ in range(10):
        robot.step()
    assert robot.gate.state is GateState.HOLD
    robot.enable()
    for _ in range(6):
        robot.step()
    assert robot.targets[-1].position[0] == pytest.approx(at_takeover, abs=1e-12), "the old chunk went on"
    assert_within_limits([START, *robot.targets], 0.05)


def test_an_old_gripper_wish_does_not_snap_the_gripper_at_a_takeover():
    robot = Robot()
    robot.gate.on_gripper(0.0, robot.now_ns)
    robot.enable()
    robot.step()
    robot.send_chunk(np.tile([0.01, 0, 0, 0, 0, 0, 1.0], (4, 1)))
    for _ in range(8):
        robot.step()
    robot.held = True
    assert robot.step(np.zeros(6)).gripper == 1.0
    robot.gate.on_gripper(0.3, robot.now_ns)
    assert robot.step(np.zeros(6)).gripper == 0.3


def test_a_blocked_arm_is_a_fault_that_latches_before_the_lead_is_passed():
    robot = Robot()
    robot.follow = False
    robot.held = True
    for _ in range(60):
        robot.step([0.2, 0, 0, 0, 0, 0])
        assert target_lead(robot.targets[-1], START)[0] <= LIMITS.max_target_lead_m
    assert robot.gate.state is GateState.FAULT and robot.gate.counts[Limit.TARGET_LEAD] == 1
    robot.held = False
    robot.step()
    assert robot.gate.rearm(robot.now_ns) is None
    robot.held = True
    assert robot.step(np.zeros(6)).target.position[0] == START.position[0], "re-armed at the measured pose"


# -- parity

@settings(deadline=None, max_examples=30)
@given(actions=st.lists(in_limit, min_size=1, max_size=12))
def test_real_time_and_lock_step_end_every_tick_on_the_twins_target_without_a_trip(actions):
    twin, targets = START, []
    for action in actions:
        twin = CONTRACT.compose_target(twin, ACTION.clip(action))
        targets.append(twin.as_array())

    lockstep = LockstepGate(CONTRACT)
    pose, stamp_ns = START, 1_000_000_000
    for index, action in enumerate(actions):
        lockstep.on_state(pose, stamp_ns, index)
        lockstep.enable_policy(True, index)
        lockstep.on_chunk([action], stamp_ns, 0, index)
        command = lockstep.decide(index)
        assert command.stamp_ns == stamp_ns and (command.target.as_array() == targets[index]).all()
        pose, stamp_ns = command.target, stamp_ns + PERIOD_NS
    assert set(lockstep.counts) <= {Limit.WORKSPACE}


@settings(deadline=None, max_examples=30)
@given(actions=st.lists(in_limit, min_size=1, max_size=8))
def test_a_policys_action_is_spread_over_its_tick_and_ends_on_the_twins_target(actions):
    robot = Robot()
    robot.enable()
    robot.step()
    robot.send_chunk(actions)
    twin = START
    for action in actions:
        _, halfway, _, end = [robot.step().target for _ in range(4)]
        start, twin = twin, CONTRACT.compose_target(twin, ACTION.clip(action))
        assert (end.as_array() == twin.as_array()).all()
        assert np.allclose(delta_between(start, halfway)[3:], action[3:6] / 2, atol=1e-9)
    assert set(robot.gate.counts) <= {Limit.WORKSPACE}


def smooth_actions(rng, ticks):
    velocity, actions = np.zeros(6), []
    for _ in range(ticks):
        velocity = np.clip(0.8 * velocity + 0.3 * rng.normal(size=6), -1, 1)
        actions.append(ACTION.denormalise(np.append(velocity * [0.4, 0.4, 0.4, 0.2, 0.2, 0.2], 0.0)))
    return actions


def test_nominal_operation_never_trips():
    rng = np.random.default_rng(3)
    robot = Robot()
    for _ in range(10):
        robot.gate.reset()
        robot.pose = START
        robot.enable()
        for action in smooth_actions(rng, 100):
            robot.send_chunk([action])
            for _ in range(4):
                robot.step()
    assert set(robot.gate.counts) <= {Limit.WORKSPACE}


# -- lock step

def test_lock_step_takes_a_twist_only_for_its_tick_and_only_with_its_gripper():
    gate = LockstepGate(CONTRACT)
    tick = 1_000_000_000
    gate.on_state(START, tick, 0)
    gate.on_deadman(True, 0)
    gate.on_twist([0.1, 0, 0, 0, 0, 0], tick - PERIOD_NS, 0, 0)
    gate.on_gripper(0.0, 0)
    assert gate.decide(0) is None, "a twist of another tick"
    gate.on_twist([0.1, 0, 0, 0, 0, 0], tick, 0, 0)
    command = gate.decide(0)
    assert command.stamp_ns == tick and command.target.position[0] == START.position[0] + 0.1 * 0.2
    assert gate.decide(0) is None, "a tick is decided once"
    gate.on_state(command.target, tick + PERIOD_NS, 0)
    gate.on_twist([0.1, 0, 0, 0, 0, 0], tick + PERIOD_NS, 0, 0)
    assert gate.decide(0) is None, "no gripper wish of this tick yet"
    gate.on_gripper(1.0, 0)
    assert gate.decide(0).gripper == 1.0


def test_lock_step_waits_for_a_chunk_that_covers_the_tick():
    gate = LockstepGate(CONTRACT)
    tick = 1_000_000_000
    actions = np.zeros((2, 7))
    actions[:, 1] = [0.01, 0.02]
    gate.on_state(START, tick, 0)
    gate.on_chunk(actions, tick, 0, 0)
    assert gate.decide(0) is None, "not handed over yet"
    gate.enable_policy(True, 0)
    first = gate.decide(0)
    assert first.target.position[1] == 0.01, "a chunk of the open tick survives the hand-over"
    gate.on_state(first.target, tick + PERIOD_NS, 0)
    assert gate.decide(0).target.position[1] == 0.01 + 0.02
    gate.on_state(first.target, tick + 2 * PERIOD_NS, 0)
    assert gate.decide(0) is None
    gate.on_deadman(True, 0)
    gate.decide(0)
    gate.on_deadman(False, 0)
    gate.on_chunk(actions, tick + PERIOD_NS, 0, 0)
    gate.enable_policy(True, 0)
    assert gate.decide(0) is None, "a chunk of an older observation does not survive the hand-over"


def test_a_state_from_before_a_reset_does_not_count_after_it():
    gate = LockstepGate(CONTRACT)
    gate.on_state(START, 1_000_000_000, 0)
    gate.reset(episode_start_ns=2_000_000_000)
    gate.on_state(START, 1_200_000_000, 0)
    gate.enable_policy(True, 0)
    gate.on_chunk(np.zeros((1, 7)), 1_200_000_000, 0, 0)
    assert gate.decide(0) is None
    gate.on_state(START, 2_000_000_000, 0)
    gate.on_chunk(np.zeros((1, 7)), 2_000_000_000, 0, 0)
    assert gate.decide(0).stamp_ns == 2_000_000_000


def test_a_rate_that_does_not_divide_the_tick_is_refused():
    with pytest.raises(ConfigError, match="multiple of the control rate"):
        RealTimeGate(CONTRACT, 12.0)
