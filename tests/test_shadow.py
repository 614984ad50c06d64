"""Shadow mode: the policy moves nothing, and its error against the operator is right, by phase, offline and live."""

import re

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from test_recorded_session import CONTRACT

from rlco_common import topics
from rlco_common.errors import DataError
from rlco_common.messages import diagnostic_values
from rlco_common.pose import Pose
from rlco_common.ros import STATE_QOS
from rlco_common.seeds import REAL_DEMOS
from rlco_policy.checkpoint import load_policy
from rlco_policy.shadow import SCALES, ErrorTable, LiveShadow, PhaseTracker, phases_of
from rlco_teleop.bags import find_episodes
from rlco_trainer.cli import main
from rlco_trainer.sessions import open_session
from rlco_trainer.shadow import operated, shadow_episode

PERIOD = CONTRACT.control_period_ns


@pytest.mark.parametrize(("openings", "expected"), [
    ("111", "aaa"), ("000", "aaa"),                             # a closed hand that never closed holds nothing
    ("110000011111", "aagggccrrraa"), ("1101100", "aagrrgg"),   # a grasp that is given up at once is released
    ("0110000", "aaagggc"),
])
def test_phases_follow_the_commanded_gripper(openings, expected):
    names = {"a": "approach", "g": "grasp", "c": "carry", "r": "release"}
    assert phases_of([float(x) for x in openings]) == [names[letter] for letter in expected]


def test_errors_are_means_in_physical_units_beside_the_operators_own_motion():
    table = ErrorTable()
    for error in (0.001, -0.003):
        table.add("grasp", np.array([0.01 + error, 0, 0, 0, 0, np.radians(2), 1.0]), np.array([0.01, 0, 0, 0, 0, 0, 0.0]))
    [(phase, count, errors, motions)] = list(table.rows())
    assert (phase, count) == ("grasp", 2)
    assert errors == pytest.approx([2.0, 0, 0, 0, 0, 2.0, 1.0]) and motions == pytest.approx([10.0, 0, 0, 0, 0, 0, 0])
    assert "2.00 / 10.00" in table.text()


def test_live_actions_are_those_between_commands_and_only_while_the_operator_drives():
    live = LiveShadow(CONTRACT)
    start = 10**12

    def target(tick):
        return Pose([0.4 + 0.01 * tick, 0.0, 0.2], [1.0, 0.0, 0.0, 0.0])

    live.predicted(np.tile([0.012, 0, 0, 0, 0, 0, 1.0], (4, 1)), start)
    live.predicted(np.tile([9.0] * 7, (4, 1)), start)           # the same chunk again, as in lock step
    for quarter in range(-4, 13):                               # the gate sends four commands a tick, a little after the tick
        live.commanded(target((quarter + 1) / 4), 1.0, start + quarter * PERIOD // 4 + 1000)
    [(phase, count, errors, motions)] = list(live.table.rows())
    assert (phase, count) == ("approach", 3)
    assert errors[0] == pytest.approx(2.0) and motions[0] == pytest.approx(10.0)
    assert live.values()["approach.dx_mm"] == "2.000" and live.values()["approach.ticks"] == "3"
    live.interrupt()
    live.commanded(target(50), 1.0, start + 50 * PERIOD)
    assert live.table.count["approach"] == 3, "a jump while nobody drove is no action"
    assert PhaseTracker().step(0.0) == "approach"


@pytest.mark.parametrize(("interrupted", "ticks"), [(False, 3), (True, 0)])
def test_commands_from_before_the_gates_word_count_once_it_names_the_operator(interrupted, ticks):
    live, start = LiveShadow(CONTRACT), 10**12
    live.predicted(np.zeros((4, 7)), start)
    for tick in range(-1, 4):
        live.hold(Pose([0.4 + 0.01 * tick, 0.0, 0.2], [1.0, 0.0, 0.0, 0.0]), 1.0, start + tick * PERIOD + 1000)
    assert live.table.count["approach"] == 0, "nobody knows yet whose they are"
    if interrupted:
        live.interrupt()
    live.claim()
    assert live.table.count["approach"] == ticks


def test_a_dataset_is_shadowed_and_the_page_is_written(briefly_trained, tiny_datasets, tmp_path, capsys):
    options = ["--checkpoint", str(briefly_trained), "--out", str(tmp_path / "p.html")]
    assert main(["shadow", str(tiny_datasets["real"]), *options]) == 0
    out = capsys.readouterr().out
    assert re.search(r"approach +\d+ .* / ", out) and "4 episodes" in out
    page = (tmp_path / "p.html").read_text()
    assert page.count("<img") == 7 and "approach" in page and "http" not in re.sub(r"http://www\.w3\.org\S*", "", page)


def test_a_policy_that_does_what_the_operator_did_has_no_error(briefly_trained, tiny_datasets, monkeypatch):
    policy = load_policy(briefly_trained, CONTRACT)
    episode = next(operated(CONTRACT, tiny_datasets["real"], policy.spec.image_size))
    chunks = np.stack([np.pad(episode.actions[t : t + 4], ((0, max(0, t + 4 - len(episode.actions))), (0, 0)))
                       for t in range(len(episode.actions))])
    monkeypatch.setattr("rlco_trainer.shadow._act", lambda policy, episode, rows: chunks[rows].astype(float))
    result = shadow_episode(policy, episode)
    assert all(np.all(error == 0) for error in result.table.error.values())
    ticks = len(episode.actions)
    assert sum(result.table.count.values()) == 4 * ticks - (1 + 2 + 3), "every action of every chunk within the episode"


def test_what_is_no_recording_is_refused_by_name(briefly_trained, tmp_path):
    with pytest.raises(DataError, match="neither a dataset nor an episode bag"):
        list(operated(CONTRACT, tmp_path / "nothing", 64))


def operated_beside_a_shadow(checkpoint, out):
    """One lock-step episode of the operator on the stand-in, the policy node in shadow mode: its bag, the shadow's figures."""
    def driver(processes):
        processes.start_node("rlco_policy.nodes.policy_node", checkpoint=str(checkpoint), lockstep=True, use_sim_time=True,
                             shadow=True)
        processes.start_node("rlco_teleop.nodes.teleop_node", device="scripted", noise=0.1, lockstep=True, use_sim_time=True)
        return "/teleop"

    with open_session(CONTRACT, out, task="pick_place", domain="standin", lockstep=True, operator="scripted",
                      driver=driver) as session:
        client = session.client
        client.wait_active("/policy", 60.0)
        session.reset(REAL_DEMOS[0])
        assert client.node.count_publishers(topics.SHADOW_CHUNK) == 1
        assert client.node.count_publishers(topics.ACTION_CHUNK) == 0, "the gate has nothing to follow"
        outcome = session.operate()
        assert outcome["success"], outcome
        client.must_trigger(topics.RECORDER_SUCCESS)
        reports = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        report = client.wait_until(lambda: reports.find(lambda m: m.status[0].name == "shadow"), 10, "the shadow's report")
        live = {key: float(value) for key, value in diagnostic_values(report.status[0]).items()}
    [bag] = find_episodes(out)
    return bag, live


@pytest.mark.long
def test_live_and_from_the_bag_the_error_is_the_same_and_nothing_moves(briefly_trained, ros_domain, tmp_path):
    """The operator drives the stand-in in lock step; the policy node in shadow mode reports what `rlco shadow` finds later.

    Nothing waits for a shadow, so on a busy machine it can come too late for a tick: then once more, three times in all.
    """
    policy = load_policy(briefly_trained, CONTRACT)
    for attempt in range(3):
        bag, live = operated_beside_a_shadow(briefly_trained, tmp_path / f"bags_{attempt}")
        [episode] = operated(CONTRACT, bag, policy.spec.image_size)
        scored = int(sum(value for key, value in live.items() if key.endswith(".ticks")))
        if scored >= len(episode.actions) - 2:
            break
    result = shadow_episode(policy, episode)
    expected = ErrorTable()
    assert scored >= len(episode.actions) - 2, "the last tick is complete only with a command after it"
    first = len(episode.actions) - 1 - scored if len(episode.actions) - 1 > scored else 0
    for tick in range(first, first + scored):
        expected.add(result.phases[tick], result.predictions[tick - tick % 4, tick % 4], episode.actions[tick].astype(float))
    assert expected.count["grasp"] > 0 and expected.count["carry"] > 0
    for phase, count, errors, _ in expected.rows():
        assert live[f"{phase}.ticks"] == count
        assert live[f"{phase}.dx_mm"] == pytest.approx(errors[0], abs=2e-3)
        assert live[f"{phase}.gripper_opening"] == pytest.approx(errors[6], abs=2e-3)
    assert SCALES[0] == 1e3
