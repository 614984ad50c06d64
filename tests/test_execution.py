"""Action chunks follow each other without a gap, whatever the model takes; a chunk goes on where the last one was."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import make_policy

from rlco_common.contract import load_contract
from rlco_common.gate_drives import RealTimeGate
from rlco_common.pose import Pose
from rlco_policy.execution import AsynchronousExecution, Continuation, SynchronousExecution, blended, slowed
from rlco_policy.guidance import prefix_weights

CONTRACT = load_contract()
MS = 1_000_000
PERIOD = CONTRACT.control_period_ns
START_NS = 10**12


def chunk(horizon, dx=0.001):
    return np.tile([dx, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], (horizon, 1))


class Plant:
    """Gate, camera, model and execution on one clock of milliseconds; the arm follows its target at once."""

    def __init__(self, execution, rate_hz, camera_hz, latency_ms, gate_hz=20.0):
        contract = dataclasses.replace(CONTRACT, control_rate_hz=rate_hz)
        self.gate, self.execution = RealTimeGate(contract, gate_hz), execution
        self.frame_ms, self.gate_ms, self.latency_ms = 1000.0 / camera_hz, 1000.0 / gate_hz, latency_ms
        self.moves: list[bool] = []         # per gate step since the arm first moved
        self.published: list[np.ndarray] = []

    def run(self, duration_ms):
        frame_ns = under_way = None
        ready_ms, next_frame_ms, next_step_ms = 0, 0.0, 0.0
        for now_ms in range(duration_ms):
            now = START_NS + now_ms * MS
            if now_ms >= next_frame_ms:
                next_frame_ms, frame_ns = next_frame_ms + self.frame_ms, now
                held = self.gate.held_command
                self.gate.on_state(Pose([0.5, 0.0, 0.3], [1.0, 0.0, 0.0, 0.0]) if held is None else held.target, now, now)
                self.execution.frame(now)
            if now_ms == 0:
                assert self.gate.enable_policy(True, now) is None
            if under_way is not None and now_ms >= ready_ms:
                actions = self.execution.finish(under_way, chunk(self.execution.steps), now)
                self.published.append(actions)
                self.gate.on_chunk(actions, under_way, now - under_way, now)
                under_way = None
            if under_way is None and self.execution.due(frame_ns):
                under_way, ready_ms = frame_ns, now_ms + self.latency_ms()
                self.execution.begin(frame_ns)
            if now_ms >= next_step_ms:
                next_step_ms += self.gate_ms
                self._step(now)
        return self

    def _step(self, now):
        before = self.gate.held_command
        after = self.gate.step(now)
        moved = before is not None and bool((before.target.position != after.target.position).any())
        if moved or self.moves:
            self.moves.append(moved)


@settings(max_examples=60, deadline=None)
@given(rate_hz=st.sampled_from([5.0, 10.0, 20.0]), camera_hz=st.sampled_from([10.0, 15.0, 30.0, 60.0]),
       model_ms=st.sampled_from([20, 120, 300]), guided=st.booleans(), seed=st.integers(0, 99))
def test_a_slow_model_leaves_no_gap(rate_hz, camera_hz, model_ms, guided, seed):
    """A synthetic model of up to 300 ms, give or take a tenth, horizon 8: the arm moves in every single step of the gate."""
    rng = random.Random(seed)
    execution = AsynchronousExecution(8, 4, round(1e9 / rate_hz), guided=guided, latency_ns=model_ms * MS)
    plant = Plant(execution, rate_hz, camera_hz, lambda: round(model_ms * rng.uniform(0.9, 1.1))).run(5_000)
    assert len(plant.moves) > 70 and all(plant.moves)
    report = execution.report(START_NS)
    assert report["gaps"] == 0 and not plant.gate.counts, plant.gate.counts
    if 2 * 1.1 * model_ms + 1000 / camera_hz + 50 < 8_000 / rate_hz / 1.3:
        assert report["slowdown"] == 1, "a model that is fast enough moves the arm at full speed"


def test_waiting_for_the_model_does_leave_gaps():
    """Otherwise the test above could not fail."""
    plant = Plant(SynchronousExecution(4, PERIOD), 5.0, 30.0, lambda: 300).run(5_000)
    assert not all(plant.moves)


def test_a_gap_is_counted_and_measured():
    execution = AsynchronousExecution(8, 4, PERIOD, guided=True, latency_ns=MS)
    execution.begin(START_NS)
    execution.finish(START_NS, chunk(8), START_NS + MS)
    late_ns = START_NS + 8 * PERIOD + 250 * MS
    execution.begin(START_NS + 4 * PERIOD)
    execution.finish(START_NS + 4 * PERIOD, chunk(8), late_ns)
    assert (execution.report(late_ns)["gaps"], execution.report(late_ns)["last_gap_s"]) == (1, "0.250")


def test_a_model_that_is_too_slow_slows_the_arm_and_a_faster_one_lets_it_go_again():
    execution = AsynchronousExecution(8, 4, 50 * MS, guided=True, latency_ns=20 * MS)
    now, seen = START_NS, []
    for latency_ms in [20] * 3 + [300] * 12 + [20] * 12:
        execution.begin(now)
        actions = execution.finish(now, chunk(8), now + latency_ms * MS)
        seen.append(execution.report(now)["slowdown"])
        assert len(actions) == 8 * seen[-1]
        assert actions[:, 0].sum() == pytest.approx(0.008) and (actions[:, 6] == 1.0).all(), "same path, other pace"
        now += 400 * MS
    assert set(seen[:3]) == {1} and seen[14] == 2 and seen[-1] == 1


def test_what_is_left_of_the_chunk_under_way_is_handed_to_the_next_inference():
    execution = AsynchronousExecution(8, 4, PERIOD, guided=True, latency_ns=300 * MS)
    assert execution.begin(START_NS).previous is None
    steps = np.arange(56, dtype=float).reshape(8, 7)
    execution.finish(START_NS, steps, START_NS + 300 * MS)
    continuation = execution.begin(START_NS + 4 * PERIOD + 20 * MS)      # a frame a little after the tick
    assert np.array_equal(continuation.previous, steps[4:])
    assert continuation.delay == 2, "two steps of 200 ms begin within 300 ms"
    execution.interrupt()
    assert execution.due(START_NS + PERIOD) and execution.begin(START_NS + PERIOD).previous is None


def test_a_policy_that_cannot_continue_is_blended_without_a_jump():
    old, new = chunk(6, 0.004), chunk(6, -0.004)
    new[:, 6] = 0.0
    mixed = blended(new, Continuation(old[:4], 2))
    assert np.array_equal(mixed[:2], old[:2]), "these are executed before the chunk arrives"
    assert np.array_equal(mixed[4:], new[4:])
    assert (np.diff(mixed[1:5, 0]) < 0).all() and np.abs(np.diff(mixed[:, 0])).max() < 0.5 * (0.004 + 0.004)
    assert mixed[:, 6].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], "a gripper is never half open by mixing"


def test_slowing_down_keeps_the_way_and_the_limits():
    steps = np.array([[0.05, -0.05, 0.02, 0.3, 0.0, -0.1, 0.0], [0.0, 0.01, 0.0, 0.0, 0.0, 0.0, 1.0]])
    slow = slowed(steps, 3)
    assert slow.shape == (6, 7) and np.allclose(slow.reshape(2, 3, 7)[:, :, :6].sum(1), steps[:, :6])
    assert slow[:, 6].tolist() == [0.0] * 3 + [1.0] * 3
    assert np.array_equal(slowed(steps, 1), steps)


@pytest.mark.parametrize("execution", [
    SynchronousExecution(4, PERIOD), AsynchronousExecution(8, 4, PERIOD, guided=True, latency_ns=MS)], ids=["sync", "async"])
def test_the_schedule_is_one_chunk_long_and_survives_a_clock_that_jumps_back(execution):
    start = START_NS
    assert execution.due(start)
    execution.begin(start)
    execution.finish(start, chunk(execution.steps), start + MS)
    assert [execution.due(start + k * PERIOD) for k in range(6)] == [False] * 4 + [True] * 2
    assert execution.due(start + 4 * PERIOD - PERIOD // 20)      # a frame that comes a little early
    assert execution.due(start - PERIOD)
    assert float(execution.report(start + PERIOD)["queue_length"]) == execution.steps - 1
    execution.interrupt()
    assert execution.due(start + PERIOD)


# -- real-time chunking


def test_prefix_weights_are_full_then_fall_then_nothing():
    weights = prefix_weights(2, 6, 8)
    assert weights[:2].tolist() == [1.0, 1.0] and weights[6:].tolist() == [0.0, 0.0]
    assert (weights[1:6].diff() < 0).all() and weights[5] > 0
    assert prefix_weights(0, 0, 3).tolist() == [0.0] * 3 and prefix_weights(3, 3, 3).tolist() == [1.0] * 3


@pytest.mark.parametrize("delay", [1, 3])
def test_a_guided_chunk_goes_on_from_the_settled_steps_and_is_free_later(delay):
    policy = make_policy("compact_flow", seed=1)
    inputs = policy.example_inputs(2)
    normalise = policy.normalizer.normalise
    free = policy.act(inputs, steps=8)
    previous = policy.normalizer.denormalise(1.6 * torch.rand((2, 6, 7), generator=torch.Generator().manual_seed(0)) - 0.8)
    guided = policy.act(inputs, prev_chunk=previous, delay=delay, steps=8)
    distance = (normalise(guided)[:, :6] - normalise(previous)).abs().mean((0, 2))
    unguided = (normalise(free)[:, :6] - normalise(previous)).abs().mean((0, 2))
    assert distance[:delay].max() < 0.02 < 0.2 < unguided.min(), "settled steps are kept"
    share = distance / unguided
    assert (share.diff() > -0.02).all() and share[-1] > 0.8, "later ones follow the picture"
    assert torch.equal(policy.act(inputs), free[:, :4]), "without a previous chunk nothing changes"


@pytest.mark.parametrize("name", ["compact_flow", "compact_token"])
def test_steps_asks_for_more_or_fewer_of_the_same_chunk(name):
    policy = make_policy(name, seed=1)
    inputs = policy.example_inputs()
    whole = policy.act(inputs, steps=policy.spec.horizon)
    assert whole.shape[1] == policy.spec.horizon
    assert torch.equal(policy.act(inputs, steps=2), whole[:, :2])
    assert torch.equal(policy.act(inputs), whole[:, : policy.spec.chunk])
