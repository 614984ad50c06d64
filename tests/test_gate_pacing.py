"""The gate's steps follow the commands at once, and are never more frequent than the rate."""

import numpy as np
import pytest

from rlco_common.gate_pacing import GRACE, StepPacer

PERIOD_NS = 10_000_000


def run(arrivals_ns, seconds=4.0, start_ns=0):
    """(steps, waits of commands in periods) of a gate that is asked at every arrival and whenever it wanted to be asked."""
    pacer, now, steps, waits, pending = StepPacer(PERIOD_NS, start_ns), start_ns, [], [], []
    arrivals = sorted(arrivals_ns)
    end_ns = start_ns + round(seconds * 1e9)

    def step():
        steps.append(now)
        waits.extend((now - arrived) / PERIOD_NS for arrived in pending)
        pending.clear()
        pacer.step_done(now)

    while now < end_ns:
        due = now + pacer.wait_ns(now)
        if arrivals and arrivals[0] <= due:
            now = arrivals.pop(0)
            pending.append(now)
            if pacer.command_arrived(now):
                step()
        else:
            now = due
            if not pacer.wait_ns(now):
                step()
    return np.array(steps), np.array(waits)


@pytest.mark.parametrize("phase", [0.05, 0.3, 0.5, 0.8, 0.99])
def test_commands_at_the_gates_rate_find_their_step_at_once_whatever_the_phase(phase):
    steps, waits = run([round((k + phase) * PERIOD_NS) for k in range(400)])
    assert waits[20:].max() <= 0.05
    assert len(steps) >= 398, "one step was put off at most"


def test_a_late_command_is_waited_for_and_the_others_are_not_disturbed():
    rng = np.random.default_rng(0)
    late = np.where(rng.random(2000) < 0.2, 0.35, 0.0)
    steps, waits = run([round((k + 0.6 + lateness) * PERIOD_NS) for k, lateness in enumerate(late)], seconds=20)
    assert np.percentile(waits[50:], 99) < 0.3
    assert np.diff(steps).min() >= (1 - GRACE) * PERIOD_NS - 1


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.93, 0.97, 0.99, 1.0, 1.01, 1.03, 1.07, 3.1])
def test_whatever_the_rate_of_the_commands_steps_are_as_frequent_as_promised(rate):
    rng = np.random.default_rng(1)
    arrivals = (np.arange(int(2000 * rate)) + rng.normal(0, 0.1, int(2000 * rate))) / rate * PERIOD_NS
    steps, waits = run(np.abs(arrivals).astype(int).tolist(), seconds=20)
    for window in (1, 10, 100, 1000):     # within any window, at most the rate, but for the little that a late step is late
        spans = steps[window:] - steps[:-window]
        assert spans.min() >= (window - GRACE - min(1.0, 0.02 * window)) * PERIOD_NS - 1
    assert len(steps) > 1920 and waits.max() < 2.0


def test_without_commands_the_grid_is_regular():
    steps, _ = run([])
    assert set(np.diff(steps)) == {PERIOD_NS}


def test_a_device_that_falls_silent_costs_one_grace():
    steps, _ = run([round((k + 0.5) * PERIOD_NS) for k in range(50)])
    after = steps[steps > 52 * PERIOD_NS]
    assert set(np.diff(after)) == {PERIOD_NS}


def test_after_a_stall_steps_are_not_made_up_for():
    pacer = StepPacer(PERIOD_NS, 0)
    pacer.step_done(PERIOD_NS)
    pacer.step_done(50 * PERIOD_NS)
    assert pacer.wait_ns(50 * PERIOD_NS) == PERIOD_NS


