"""Policy, takeover, correction, deliberate hand-back, in real time on the stand-in; and what the bag makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from std_msgs.msg import Bool, String
from test_recorded_session import CONTRACT
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.episode import EVENT_TOPIC
from rlco_common.messages import diagnostic_values
from rlco_common.ros import COMMAND_QOS, EVENT_QOS, STATE_QOS, stamp_to_ns
from rlco_teleop.bags import Bag, drive_segments
from rlco_trainer.dataset.build import BuildOptions, build_dataset
from rlco_trainer.dataset.reader import load_demos, read_sidecar
from rlco_trainer.sessions import open_session

pytestmark = pytest.mark.long


class Watch:
    """What the graph says, and waiting for it."""

    def __init__(self, client):
        self.client = client
        self.gate = client.subscribe(DiagnosticArray, topics.GATE_STATUS, STATE_QOS)
        self.targets = client.subscribe(PoseStamped, CONTRACT.topics.target_pose, COMMAND_QOS)
        self.chunks = client.subscribe(JointTrajectory, topics.ACTION_CHUNK, COMMAND_QOS)
        self.deadman = client.subscribe(Bool, topics.TELEOP_DEADMAN, COMMAND_QOS)
        self.events = client.subscribe(String, EVENT_TOPIC, EVENT_QOS)

    def source(self):
        return self.gate.last and diagnostic_values(self.gate.last.status[0])["source"]

    def wait_source(self, source):
        self.client.wait_until(lambda: self.source() == source, 10, f"the gate to follow {source}")

    def moves(self):
        """(arrival in monotonic ns, whether the target moved) of every command since the last clear."""
        positions = [message.pose.position for message in self.targets.messages]
        points = np.array([[p.x, p.y, p.z] for p in positions])
        return list(zip(self.targets.arrivals_ns[1:], np.abs(np.diff(points, axis=0)).max(1) > 1e-6, strict=True))

    def wait_moving(self, steps):
        self.client.wait_until(lambda: len(self.targets) > 1 and sum(moved for _, moved in self.moves()) >= steps, 20,
                               f"{steps} moving targets")

    def kinds(self):
        return [event["kind"] for event in map(json.loads, (m.data for m in self.events.messages))
                if event["kind"] in ("takeover", "hand_back")]


@pytest.fixture(scope="module")
def recorded(briefly_trained, tmp_path_factory, module_ros_domain):
    """The whole story once; the tests below look at its parts. {name: evidence}"""
    out = tmp_path_factory.mktemp("takeover")
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(module_ros_domain))

        def driver(processes):
            processes.start_node("rlco_policy.nodes.policy_node", checkpoint=str(briefly_trained))
            processes.start_node("rlco_teleop.nodes.teleop_node", device="scripted")
            return "/teleop"

        with open_session(CONTRACT, out / "bags", task="push_cube", domain="standin", lockstep=False, operator="both",
                          driver=driver) as session:
            client, watch = session.client, Watch(session.client)
            client.wait_active("/policy", 60.0)
            session.reset(20_003)
            assert client.set_bool(topics.GATE_ENABLE_POLICY, True)[0]
            watch.targets.clear()
            watch.wait_moving(6)
            take_over(watch, seen)
            watch.targets.clear()
            watch.wait_moving(16)       # four ticks: long enough to learn from
            let_go(watch, seen)
            hand_back(watch, seen)
            watch.targets.clear()
            watch.wait_moving(6)
            outcome = session.operate()
            assert outcome["success"], outcome
            seen["kinds"] = watch.kinds()
            bag = Path(client.must_trigger(topics.RECORDER_SUCCESS))
    return seen | {"bag": bag, "out": out}


def take_over(watch, seen):
    for inbox in (watch.deadman, watch.gate, watch.targets):
        inbox.clear()
    watch.client.must_trigger(topics.OPERATOR_START)
    watch.wait_source("OPERATOR")
    held_ns = next(at for at, m in zip(watch.deadman.arrivals_ns, watch.deadman.messages, strict=True) if m.data)
    taken_ns = next(at for at, m in zip(watch.gate.arrivals_ns, watch.gate.messages, strict=True)
                    if diagnostic_values(m.status[0])["source"] == "OPERATOR")
    seen["takeover_ms"] = (taken_ns - held_ns) * 1e-6


def let_go(watch, seen):
    """The operator lets go: nobody drives, though the policy node goes on offering chunks."""
    watch.client.must_trigger(topics.OPERATOR_STOP)
    watch.wait_source("NOBODY")
    watch.client.spin_for(0.3)      # braking
    watch.targets.clear()
    watch.chunks.clear()
    watch.client.wait_until(lambda: len(watch.chunks) >= 2, 10, "two more chunks")
    seen["rest"] = watch.moves()


def hand_back(watch, seen):
    watch.chunks.clear()
    watch.targets.clear()
    asked_ns = watch.client.node.get_clock().now().nanoseconds
    assert watch.client.set_bool(topics.GATE_ENABLE_POLICY, True)[0]
    watch.wait_moving(1)
    moved_ns = next(at for at, moved in watch.moves() if moved)
    seen["fresh"] = [(stamp_to_ns(m.header.stamp) - asked_ns, moved_ns - at)
                     for at, m in zip(watch.chunks.arrivals_ns, watch.chunks.messages, strict=True)]


def test_the_dead_man_pre_empts_the_policy_at_once(recorded):
    print(f"dead-man to gate: {recorded['takeover_ms']:.0f} ms")
    assert recorded["takeover_ms"] < 50 + 250, "a period of the gate, and what a busy machine adds"


def test_the_arm_rests_until_it_is_handed_back_on_purpose(recorded):
    assert len(recorded["rest"]) >= 10 and not any(moved for _, moved in recorded["rest"])


def test_after_the_hand_back_the_policy_goes_on_from_what_it_sees_then(recorded):
    """Chunks from before the hand-back are void; the first motion follows a chunk of a picture taken about then or later."""
    used = [stamp_ns for stamp_ns, before_motion_ns in recorded["fresh"] if before_motion_ns > 0]
    assert used and max(used) > -0.25e9, recorded["fresh"]


def test_the_bag_names_who_drove(recorded):
    """When the first correction was enough, the policy may have come to the end itself; else the operator took over again."""
    kinds = recorded["kinds"]
    assert kinds in (["takeover", "hand_back"], ["takeover", "hand_back", "takeover"])
    with Bag(recorded["bag"]) as bag:
        segments = drive_segments(bag)
    assert [segment.source for segment in segments] == ["policy", "operator", "policy", "operator"][: len(kinds) + 1]
    assert all(segment.end_ns > segment.start_ns for segment in segments)


def test_the_dataset_holds_the_corrections_and_nothing_of_the_policy(recorded):
    lenient = BuildOptions(ignore_audit=True)       # a busy machine may really have lost pictures
    report = build_dataset(CONTRACT, [recorded["bag"]], recorded["out"] / "dataset", options=lenient, quiet=True)
    assert list(report.kept) == [recorded["bag"].name], report.left_out
    entries = read_sidecar(recorded["out"] / "dataset")["episodes"]
    assert {entry["kind"] for entry in entries} == {"correction"}
    with Bag(recorded["bag"]) as bag:
        begin_ns, segments = bag.start_ns, drive_segments(bag)
    driven_s = [((s.start_ns - begin_ns) * 1e-9, (s.end_ns - begin_ns) * 1e-9) for s in segments if s.source == "operator"]
    assert len(load_demos(recorded["out"] / "dataset", CONTRACT, 64).actions) >= 2
    slack_s = CONTRACT.control_period_s     # the grid begins at the first picture, not at the first message
    for entry in entries:
        assert any(begin - slack_s <= entry["begin_s"] and entry["end_s"] <= end + slack_s for begin, end in driven_s), (
            entry, driven_s)
