"""Every fault drill on the real graph, what the relay does to a stream, and that a broken promise is told as one."""

import json
import math
from types import SimpleNamespace

import pytest
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from rlco_common.errors import ConfigError, RlcoError
from rlco_common.observation import joints_by_name
from rlco_common.ros import QOS, joint_state_to_msg, stamp_to_ns
from rlco_common.topic_table import graph_topics
from rlco_trainer.cli import main
from rlco_trainer.faults import streams
from rlco_trainer.faults.base import Fault, NotTried, Outcome
from rlco_trainer.faults.disturbance import KINDS, Disturbance, disturbances_from_text
from rlco_trainer.faults.graph import SOURCE, FaultGraph
from rlco_trainer.faults.runner import ORDER, catalogue, try_fault


@pytest.fixture(scope="module")
def graph(tmp_path_factory, module_ros_domain):
    with FaultGraph(tmp_path_factory.mktemp("faults"), module_ros_domain) as graph:
        graph.start(*ORDER)
        yield graph


def test_the_running_graph_has_the_types_and_qos_that_the_table_says(graph, contract):
    graph.require(*ORDER)
    known = {topic.name: topic for topic in graph_topics(contract)}
    others = {"/rosout", "/parameter_events", "/joy", "/clock", "/tf", "/tf_static"}
    seen = 0
    for topic, types in graph.client.node.get_topic_names_and_types():
        offers = graph.client.node.get_publishers_info_by_topic(topic)
        topic = topic.removeprefix(SOURCE)
        if not offers or topic in others or topic.endswith("/transition_event"):
            continue
        assert topic in known, f"{topic} is in no table"
        assert types == [known[topic].type], topic
        wanted = QOS[known[topic].qos]
        for offer in (info.qos_profile for info in offers):
            assert (offer.reliability, offer.durability) == (wanted.reliability, wanted.durability), topic
        seen += 1
    assert seen > 12


def test_a_promise_that_does_not_hold_is_told_so(graph, monkeypatch):
    """A camera that is not frozen: the audit that should have warned of it cannot have."""
    monkeypatch.setattr(streams, "WARN_S", 0.5)
    about = {"does": "nothing", "promise": "the audit warns of a frozen camera", "needs": streams.OPERATED}
    verdict = try_fault(graph, Fault("nothing", check=streams._audited("drop:0", ("frozen",)), **about))
    assert verdict.status == "broken" and "a warning of frozen" in verdict.figure


@pytest.mark.long
@pytest.mark.parametrize("name", catalogue())
def test_the_promise_holds(graph, name):
    verdict = try_fault(graph, catalogue()[name])
    print(f"\n{name}: {verdict.figure} ({verdict.seconds:.1f} s)")
    assert verdict.status == "held", f"{verdict.promise} But: {verdict.figure}"


def test_nothing_is_said_about_a_promise_that_could_not_be_tried():
    def raising(error):
        def check(graph):
            raise error
        return Fault("x", "does", "promise", (), check)

    graph = SimpleNamespace(require=lambda *names: None)
    assert try_fault(graph, raising(NotTried("no arm"))).status == "not tried"
    assert try_fault(graph, raising(RlcoError("late"))).status == "broken"
    assert try_fault(graph, Fault("x", "", "", (), lambda graph: Outcome(False, "1 s"))).status == "broken"


def test_the_exit_status_and_the_json_tell_what_did_not_hold(monkeypatch, tmp_path, capsys):
    from rlco_trainer.faults import runner

    monkeypatch.setattr(runner, "FaultGraph", lambda *args: _NoGraph())
    faults = {"good": Outcome(True, "1 ms"), "bad": Outcome(False, "9 s")}
    monkeypatch.setattr(runner, "catalogue", lambda: {
        name: Fault(name, "does", f"{name} promise", (), lambda graph, outcome=outcome: outcome)
        for name, outcome in faults.items()})
    assert main(["fault", "good"]) == 0
    assert main(["fault", "all", "--json", str(tmp_path / "verdicts.json")]) == 1
    assert "promised: bad promise" in capsys.readouterr().out
    assert [(v["fault"], v["status"]) for v in json.loads((tmp_path / "verdicts.json").read_text())] == [
        ("good", "held"), ("bad", "broken")]
    assert main(["fault", "good", "worse"]) == 1 and "no fault 'worse'; there are good, bad" in capsys.readouterr().err


class _NoGraph:
    def __enter__(self):
        return SimpleNamespace(start=lambda *names: None, require=lambda *names: None)

    def __exit__(self, *_):
        return None


def test_the_list_names_every_fault_with_its_promise(capsys):
    assert main(["fault", "--list"]) == 0
    listed = capsys.readouterr().out
    for fault in catalogue().values():
        assert f"{fault.name}: {fault.does}" in listed and fault.promise in listed
        assert fault.promise.endswith(".")


# -- the relay

def image(number):
    message = Image(data=bytes([number]))
    message.header.stamp.sec = number
    return message


def seconds(messages):
    return [message.header.stamp.sec for message in messages]


def carried(kind, amount=0.0, count=6):
    """(what is sent while it lasts, what is sent at its end), one message a second."""
    disturbance, sent = Disturbance(kind, amount), []
    for number in range(1, count + 1):
        sent += disturbance.due(number) + disturbance.take(image(number), number)
    return sent, disturbance.end()


@pytest.mark.parametrize(("kind", "amount", "during", "after"), [
    ("drop", 0.5, [2, 4, 6], []), ("drop", 0.0, [1, 2, 3, 4, 5, 6], []), ("drop", 1.0, [], []),
    ("delay", 2.0, [1, 2, 3, 4], [5, 6]), ("reorder", 0.0, [2, 1, 4, 3, 6, 5], []),
    ("cut", 0.0, [], []), ("hold", 0.0, [], [1, 2, 3, 4, 5, 6]), ("shift", -0.5, [0, 1, 2, 3, 4, 5], []),
])
def test_what_arrives_when_a_stream_is_disturbed(kind, amount, during, after):
    sent, rest = carried(kind, amount)
    assert (seconds(sent), seconds(rest)) == (during, after)


def test_a_frozen_camera_repeats_its_picture_under_new_stamps():
    sent, _ = carried("freeze")
    assert seconds(sent) == [1, 2, 3, 4, 5, 6] and {bytes(message.data) for message in sent} == {b"\x01"}
    assert stamp_to_ns(carried("shift", 0.25)[0][0].header.stamp) == 1_250_000_000


def test_shuffled_joints_keep_their_values_and_a_renamed_one_is_missing(contract):
    message = joint_state_to_msg(contract, range(7), 0.5, 1)
    shuffle, orders = Disturbance("shuffle"), set()
    for _ in range(10):
        [sent] = shuffle.take(message, 0.0)
        orders.add(tuple(sent.name))
        arm, gripper = joints_by_name(contract, sent.name, sent.position)
        assert arm.tolist() == list(range(7)) and gripper == 0.5
    assert len(orders) > 5
    [sent] = Disturbance("rename").take(joint_state_to_msg(contract, range(7), 0.5, 1), 0.0)
    with pytest.raises(RlcoError, match=contract.robot.gripper_joint):
        joints_by_name(contract, sent.name, sent.position)
    assert isinstance(sent, JointState)


def test_every_action_of_a_disturbed_chunk_is_no_number():
    chunk = JointTrajectory(points=[JointTrajectoryPoint(positions=[1.0, 2.0])] * 2)
    [sent] = Disturbance("nan").take(chunk, 0.0)
    assert all(math.isnan(point.positions[0]) and point.positions[1] == 2.0 for point in sent.points)


@pytest.mark.parametrize(("text", "complaint"), [
    ("/a=fly", "'fly' is unknown; choose from drop"), ("/b=cut", "does not carry /b; it carries /a"),
    ("/a=delay", "with an amount for"), ("/a=cut:3", "TOPIC=KIND"), ("/a=delay:soon", "soon is not a number"),
    ("/a=drop:2", "between 0 and 1"),
])
def test_a_disturbance_that_cannot_be_is_refused_by_name(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        disturbances_from_text(text, ("/a",))


def test_every_kind_of_disturbance_is_explained():
    assert all(KINDS.values()) and set(disturbances_from_text("/a=cut /b=delay:1", ("/a", "/b"))) == {"/a", "/b"}
