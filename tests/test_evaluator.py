"""Evaluations: what a protocol may say, paired and blind orders, resuming without mixing, over ROS and on a table that a
person resets."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from PIL import Image as Picture
from policies import make_policy
from sensor_msgs.msg import Image
from std_msgs.msg import Float64, String

from rlco_common import topics
from rlco_common.errors import ConfigError, DataError
from rlco_common.messages import image_from_msg
from rlco_common.processes import Processes
from rlco_common.records import read_records
from rlco_common.ros import CAMERA_QOS, EVENT_QOS, STATE_QOS
from rlco_common.ros_client import RosClient
from rlco_policy.checkpoint import save_policy
from rlco_teleop.bags import read_episode_metadata
from rlco_trainer.cli import main
from rlco_trainer.evaluation import run_protocol
from rlco_trainer.film import last_frame
from rlco_trainer.overlay import blend, difference, read_photo
from rlco_trainer.protocol import Protocol, load_protocol, protocol_text, trial_order

ARMS = ("first", "second")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two policies with different random weights: arm -> directory."""
    root = tmp_path_factory.mktemp("policies")
    return {arm: str(save_policy(make_policy("compact_flow", seed=seed), root / arm, {"seed": seed}))
            for seed, arm in enumerate(ARMS)}


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


# -- the protocol


def test_a_protocol_is_read_with_its_defaults_and_written_back(tmp_path):
    protocol = load_protocol(written(tmp_path, "task: push_cube\ncheckpoints: {a: runs/a, b: runs/b}\ntrials: 3\n"))
    assert (protocol.domain, protocol.ros, protocol.out.as_posix()) == ("standin", False, "runs/evaluation/mine")
    assert protocol.initial_states == [0, 1, 2]
    assert load_protocol(written(tmp_path, protocol_text(protocol))) == protocol


@pytest.mark.parametrize(("text", "problem"), [
    ("checkpoints: {}", "checkpoints is empty"), ("domain: real", "a real table needs states"),
    ("blind: true", "set over_ros: true"), ("lockstep: true", "set over_ros: true"), ("seeds: [1, 1]", "a seed twice"),
    ("states: [{photo: a.png, instruction: push it}]", "states are for domain: real"), ("trails: 3", "unknown field"),
    ("domain: real\nstates: [{photo: a.png, instruction: push it}]\nvariation: light=1", "for simulated domains"),
])
def test_a_protocol_that_makes_no_sense_is_refused_by_name(tmp_path, text, problem):
    base = "" if text.startswith("checkpoints") else "checkpoints: {a: runs/a}\n"
    with pytest.raises(ConfigError, match=problem):
        load_protocol(written(tmp_path, f"task: push_cube\n{base}{text}\n"))


def test_more_trials_than_states_are_refused():
    with pytest.raises(ConfigError, match="only 2 initial states"):
        trial_order(Protocol("push_cube", {"a": "x"}, seeds=(4, 5), trials=3))


def test_a_blind_order_is_paired_shuffled_and_repeatable():
    protocol = Protocol("push_cube", dict.fromkeys("abc", "x"), trials=40, over_ros=True, blind=True, order_seed=3)
    order = trial_order(protocol)
    assert order == trial_order(protocol) != trial_order(replace(protocol, order_seed=4))
    blocks = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert [{trial.seed for trial in block} for block in blocks] == [{seed} for seed in range(40)]
    assert all({trial.arm for trial in block} == set("abc") for block in blocks)
    firsts = [block[0].arm for block in blocks]
    assert min(map(firsts.count, "abc")) >= 5, "no policy has a fixed place in the order"
    longer = trial_order(replace(protocol, trials=50))
    assert longer[: len(order)] == order, "more trials do not change the order of the first ones"


# -- in-process


def test_an_evaluation_goes_on_where_it_was_and_never_mixes_checkpoints(tmp_path, checkpoints, capsys):
    protocol = Protocol("push_cube", checkpoints, out=tmp_path / "out", domain="twin", trials=1, workers=0)
    first = run_protocol(protocol, quiet=True)
    before = (protocol.out / "trials.jsonl").read_text()
    path = written(tmp_path, protocol_text(replace(protocol, trials=2)))
    assert main(["eval", str(path)]) == 0
    text = (protocol.out / "trials.jsonl").read_text()
    assert text.startswith(before) and text.count("\n") == 4
    trials = read_records(protocol.out / "trials.jsonl")
    assert [trial for trial in trials if trial.seed == 0] == first
    assert {(trial.policy, trial.seed) for trial in trials} == {(arm, seed) for arm in ARMS for seed in (0, 1)}
    assert all(len(trial.checkpoint_digest) == 16 for trial in trials)
    told = capsys.readouterr().out
    assert "first" in told and "(n=2)" in told and "McNemar" in told
    swapped = replace(protocol, checkpoints={"first": checkpoints["second"]})
    with pytest.raises(DataError, match="holds trials of 'first'"):
        run_protocol(swapped, quiet=True)
    assert (protocol.out / "trials.jsonl").read_text() == text
    save_policy(make_policy("compact_flow", seed=9), checkpoints["second"], {"seed": 9})
    with pytest.raises(DataError, match="holds trials of 'second'"):
        run_protocol(protocol, quiet=True)
    save_policy(make_policy("compact_flow", seed=1), checkpoints["second"], {"seed": 1})


# -- over ROS


@pytest.mark.long
def test_the_node_runs_a_protocol_and_tells_how_far_it_is(tmp_path, checkpoints, ros_domain):
    path = written(tmp_path, protocol_text(Protocol("push_cube", checkpoints, out=tmp_path / "out", trials=1, workers=0)))
    with Processes(tmp_path / "logs", ros_domain) as processes, RosClient("visitor", ros_domain, processes.check) as client:
        progress = client.subscribe(Float64, "/evaluator/progress", STATE_QOS)
        processes.start_node("rlco_trainer.nodes.evaluator_node", protocol=str(path))
        result = client.wait_for_message(String, "/evaluator/result", qos=EVENT_QOS, timeout_s=200.0).data
        client.wait_until(lambda: progress.last and progress.last.data == 1.0, 10, "the end of the progress")
        assert client.change_state("/evaluator", Transition.TRANSITION_DEACTIVATE)
    assert "(n=1)" in result and len(read_records(tmp_path / "out" / "trials.jsonl")) == 2


@pytest.mark.long
def test_blind_trials_over_ros_leave_bags_films_and_no_names(tmp_path, checkpoints, ros_domain, capfd):
    protocol = Protocol("push_cube", checkpoints, out=tmp_path / "out", seeds=(3,), over_ros=True, lockstep=True, blind=True)
    progress = []
    trials = run_protocol(protocol, on_progress=lambda done, total: progress.append((done, total)))
    assert progress == [(1, 2), (2, 2)]
    assert [(trial.policy, trial.seed, trial.over_ros) for trial in trials] == [
        (planned.arm, 3, True) for planned in trial_order(protocol)]
    assert len({trial.instruction for trial in trials}) == 1
    for trial in trials:
        metadata = read_episode_metadata(protocol.out / trial.bag)
        assert (metadata.seed, metadata.operator, metadata.success) == (3, "policy", trial.success)
        assert last_frame(protocol.out / trial.video).ndim == 3
    shown = capfd.readouterr()
    assert not any(arm in shown.out + shown.err for arm in ARMS), "an arm's name was shown"
    held = (protocol.out / "trials.jsonl").read_text()
    assert run_protocol(protocol) == trials and (protocol.out / "trials.jsonl").read_text() == held


# -- a table that a person resets


@pytest.fixture
def cell(tmp_path, ros_domain):
    """What stands on a real table: arm, camera, gate and recorder; the stand-in plays it, and nobody may reset it."""
    with Processes(tmp_path / "logs", ros_domain) as processes, RosClient("operator", ros_domain, processes.check) as client:
        processes.start_node("rlco_sim_bridge.nodes.bridge_node", task="push_cube", domain="standin")
        processes.start_node("rlco_teleop.nodes.gate_node")
        processes.start_node("rlco_teleop.nodes.recorder_node", output_directory=str(tmp_path / "bags"), require_streams=True)
        for node in ("/sim", "/gate", "/recorder"):
            client.wait_active(node, 120.0)
        yield client


@pytest.mark.long
def test_on_a_real_table_the_operator_places_starts_and_judges(tmp_path, contract, checkpoints, cell):
    camera = next(iter(contract.cameras.values()))
    view = image_from_msg(camera, cell.wait_for_message(Image, camera.topic, qos=CAMERA_QOS, timeout_s=30.0))
    Picture.fromarray(view).save(tmp_path / "state.png")
    path = written(tmp_path, json.dumps({       # JSON is YAML
        "task": "push_cube", "checkpoints": {"first": checkpoints["first"]}, "domain": "real", "go_to_start": False,
        "states": [{"photo": str(tmp_path / "state.png"), "instruction": "push the red cube"}], "out": str(tmp_path / "out"),
        "operator_timeout_s": 120}))
    said, trials, failed = [], [], []

    def evaluate():
        try:
            trials.extend(run_protocol(load_protocol(path), say=said.append))
        except Exception as error:      # shown by the test's own assertion
            failed.append(error)

    thread = threading.Thread(target=evaluate)
    thread.start()

    def until(happened, what):
        cell.wait_until(lambda: failed or happened(), 120, what)
        assert not failed, failed

    overlays = cell.subscribe(Image, topics.EVALUATION_OVERLAY, CAMERA_QOS)
    for judge in (topics.RECORDER_DISCARD, topics.RECORDER_SUCCESS):      # the first attempt does not count
        overlays.clear()
        asked = sum("the policy drives" in text for text in said)
        until(lambda: len(overlays) > 0, "the overlay")
        until(lambda: cell.trigger(topics.RECORDER_START)[0], "the recorder")
        until(lambda asked=asked: sum("the policy drives" in text for text in said) > asked, "the policy")
        cell.spin_for(0.5)
        cell.must_trigger(judge)
    thread.join(60)
    assert not thread.is_alive() and not failed, failed
    shown = image_from_msg(camera, overlays.messages[0])
    assert difference(view, shown) < 0.02, "the table is as on the photograph"
    (trial,) = trials
    assert (trial.success, trial.domain, trial.seed, trial.instruction) == (True, "real", 0, "push the red cube")
    assert trial.extra == {"takeovers": 0.0} and trial.state and trial.steps >= 1
    assert (tmp_path / "out" / trial.video).is_file() and (tmp_path / "out" / trial.bag / "metadata.yaml").is_file()
    assert "place the objects" in said[0]
    assert any("discarded" in text for text in said)
    Picture.fromarray(view[:, ::-1]).save(tmp_path / "state.png")
    with pytest.raises(DataError, match="another photograph"):
        run_protocol(load_protocol(path))


# -- the overlay


def test_an_overlay_is_sharp_where_both_agree_and_shows_the_rest_twice():
    wanted, live = np.zeros((2, 30, 40, 3), np.uint8)
    wanted[10:20, 5:15], live[10:20, 25:35] = 200, 200
    both = blend(wanted, live)
    assert both[15, 10].tolist() == both[15, 30].tolist() == [100] * 3 and both[0, 0].tolist() == [0] * 3
    assert np.array_equal(blend(live, live), live)
    assert difference(live, live) == 0.0 < difference(wanted, live) < 0.2
    assert np.array_equal(blend(wanted, live, 1.0), wanted) and np.array_equal(blend(wanted, live, 0.0), live)
    larger = wanted.repeat(2, axis=0).repeat(2, axis=1)
    assert blend(larger, live).shape == live.shape


def test_a_photograph_that_is_none_is_named(tmp_path, contract):
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(DataError, match=r"x\.png: not a picture"):
        read_photo(contract, tmp_path / "x.png")
