"""The live audit equals the truth: faults of known size are injected, and figures, warnings and verdict must tell them."""

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.messages import diagnostic_values
from rlco_common.pose import Pose
from rlco_common.processes import Processes
from rlco_common.ros import CAMERA_QOS, STATE_QOS, image_to_msg, joint_state_to_msg, pose_to_msg
from rlco_common.ros_client import RosClient
from rlco_teleop.audit import Audit, AuditLimits, Auditor, content_hash
from rlco_teleop.audit_report import FINDINGS, EpisodeAudit, Finding, audit_from_json
from rlco_teleop.bags import read_audit
from rlco_teleop.recording import Recorded
from rlco_teleop.stream_meter import StreamSpec

CONTRACT = load_contract()
FRONT = CONTRACT.cameras["front_camera"]
S = 10**9
CAMERA, JOINTS, POSE = "/camera", "/joint_states", "/arm/ee_pose"
SPECS = [StreamSpec(CAMERA, "camera", 0.2), StreamSpec(JOINTS, "state", 0.2), StreamSpec(POSE, "state", 0.2)]
RATES = {CAMERA: 30.0, JOINTS: 100.0, POSE: 100.0}
LATENCY_S = {CAMERA: 0.012, JOINTS: 0.002, POSE: 0.002}
DURATION_S = 8.0
START = 1000 * S


@dataclass(frozen=True)
class Message:
    """A message on its way: when it arrives, its stamp, and the content of its image."""

    topic: str
    log_ns: int
    stamp_ns: int
    content: int | None = None
    preroll: bool = False


def nominal(seed=0):
    """Topic -> the messages of an undisturbed episode, whose arrivals scatter as on a busy machine."""
    rng = np.random.default_rng(seed)
    streams = {}
    for topic, rate_hz in RATES.items():
        stamps = START + (np.arange(round(DURATION_S * rate_hz)) / rate_hz * S).astype(int)
        arrivals = np.maximum.accumulate(stamps + (LATENCY_S[topic] + rng.exponential(0.004, len(stamps))) * S)
        streams[topic] = [Message(topic, int(arrival), int(stamp), number)
                          for number, (stamp, arrival) in enumerate(zip(stamps, arrivals, strict=True))]
    return streams


def lockstep(ticks=40):
    """The same in lock step: one message of each stream per tick, and arrival times that mean nothing."""
    return {topic: [Message(topic, START + k * S // 5, START + k * S // 5, k) for k in range(ticks)] for topic in RATES}


def play(streams, *, in_real_time=True, limits=None, learned=True, tool=None, auditor=None):
    """Feed an audit as the recorder does; (audit of the episode, [(seconds, kind, topic, raised)])."""
    audit = Audit(SPECS, limits or AuditLimits(), periods_s={t: 1 / r for t, r in RATES.items()} if learned else {},
                  in_real_time=in_real_time, start_ns=START, tool_topic=POSE)
    timeline, checked_ns = [], START
    messages = sorted((m for stream in streams.values() for m in stream), key=lambda m: m.log_ns)
    for message in messages:
        while in_real_time and message.log_ns - checked_ns >= S // 5:
            checked_ns += S // 5
            audit.check(checked_ns)
            timeline += [(checked_ns, change) for change in audit.changes()]
        if tool is not None and message.topic == POSE:
            data = serialize_message(pose_to_msg(tool(message.stamp_ns), "base", message.stamp_ns))
            audit.take(Recorded(POSE, message.log_ns, message.stamp_ns, data, message.stamp_ns))
        else:
            audit.observe(message.topic, message.log_ns, message.stamp_ns, message.content, preroll=message.preroll)
        audit.check_simulated()
        timeline += [(message.log_ns, change) for change in audit.changes()]
    report = audit.finish(START + round(DURATION_S * S) if in_real_time else None)
    return report, [((now - START) / S, c.finding.kind, c.finding.topic, c.raised) for now, c in timeline]


def only(timeline, kind, topic):
    """When a warning of this kind was raised and when it was over; fails on any other kind of warning."""
    others = [entry for entry in timeline if entry[1:3] != (kind, topic)]
    assert not others, others
    raised = [t for t, _, _, up in timeline if up]
    over = [t for t, _, _, up in timeline if not up]
    return raised, over


# -- nothing is wrong

@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("learned", [True, False])
def test_an_undisturbed_episode_has_no_warning_and_the_true_rates(seed, learned):
    report, timeline = play(nominal(seed), learned=learned)
    assert report.go and report.reasons == () and report.warnings == () and timeline == []
    for topic, rate_hz in RATES.items():
        score = report.stream(topic)
        assert score.count == DURATION_S * rate_hz
        assert score.rate_hz == pytest.approx(rate_hz, rel=1e-3) and score.expected_rate_hz == pytest.approx(rate_hz, rel=1e-3)
        assert (score.missing, score.duplicates, score.backwards, score.unstamped, score.repeated) == (0, 0, 0, 0, 0)
        assert score.jitter_s < 1e-6 and score.largest_gap_s == pytest.approx(1 / rate_hz, rel=1e-3)
        assert score.age_median_s == pytest.approx(LATENCY_S[topic] + 0.003, abs=0.002)
    assert report.stream(CAMERA).skew_s == pytest.approx(0.010, abs=0.002)
    assert report.duration_s == DURATION_S and report.time_base == "receive"


def test_lock_step_is_judged_by_stamps_alone():
    streams = lockstep()
    report, timeline = play(streams, in_real_time=False, learned=False)
    assert report.go and timeline == [] and report.time_base == "stamp"
    score = report.stream(CAMERA)
    assert score.rate_hz == pytest.approx(5.0) and score.skew_s == 0.0
    assert (score.missing, score.age_max_s, score.late_share) == (0, None, None)
    rushed = {t: [replace(m, log_ns=START + i) for i, m in enumerate(s)] for t, s in streams.items()}
    assert play(rushed, in_real_time=False, learned=False)[0] == report


def test_an_audit_survives_its_journey_through_json():
    streams = nominal()
    streams[CAMERA] = streams[CAMERA][:100]
    report, _ = play(streams)
    assert not report.go and report.warnings
    assert audit_from_json(report.to_json(), "bag") == report


def test_every_kind_of_finding_has_a_text_with_topic_figure_and_limit():
    for kind in FINDINGS:
        finding = Finding("/topic", kind, 3.0, 1.0)
        assert finding.text.startswith("/topic: ") and "3" in finding.text.replace("300", "3") and finding.advice


def test_the_recording_guide_explains_every_warning_and_names_every_limit():
    guide = (Path(__file__).resolve().parent.parent / "docs" / "recording.md").read_text(encoding="utf-8")
    limits = {field.name for field in fields(AuditLimits)} - {"frozen_needs_motion", "window_s"}
    assert not [name for name in (*FINDINGS, *limits) if f"`{name}`" not in guide]


# -- one fault of a known size

@pytest.mark.parametrize("count", [1, 7, 40])
def test_dropped_messages_are_counted(count):
    streams = nominal()
    rng = np.random.default_rng(count)
    gone = set(rng.choice(np.arange(1, len(streams[CAMERA]) - 1), count, replace=False).tolist())
    streams[CAMERA] = [m for i, m in enumerate(streams[CAMERA]) if i not in gone]
    report, timeline = play(streams)
    assert report.stream(CAMERA).missing == count and report.stream(JOINTS).missing == 0
    assert report.go == (count / 240 <= 0.05), report.reasons
    if count == 40:
        assert any(entry[1] == "loss" for entry in timeline)


def test_a_burst_of_lost_messages_is_warned_of_at_once_and_is_over_later():
    streams = nominal()
    streams[JOINTS] = [m for m in streams[JOINTS] if not 3.0 <= (m.stamp_ns - START) / S < 3.15]
    report, timeline = play(streams)
    raised, over = only(timeline, "loss", JOINTS)
    assert len(raised) == len(over) == 1 and 3.15 <= raised[0] <= 3.4 and over[0] == pytest.approx(raised[0] + 2.0, abs=0.3)
    assert report.stream(JOINTS).missing == 15
    assert report.go, "15 of 800 are no reason against the whole episode"


def test_a_stream_that_stops_is_warned_of_while_it_is_silent():
    streams = nominal()
    streams[CAMERA] = [m for m in streams[CAMERA] if not 2.0 <= (m.stamp_ns - START) / S < 4.0]
    report, timeline = play(streams)
    silent = [(t, up) for t, kind, _, up in timeline if kind == "silent"]
    assert [up for _, up in silent] == [True, False]
    assert 2.2 <= silent[0][0] <= 2.45 and 4.0 <= silent[1][0] <= 4.25
    assert report.stream(CAMERA).largest_gap_s == pytest.approx(2.0, abs=0.04) and not report.go
    assert all(topic == CAMERA for _, _, topic, _ in timeline)


def test_a_stream_that_dies_or_never_comes_is_a_reason():
    streams = nominal()
    streams[POSE] = [m for m in streams[POSE] if m.stamp_ns < START + 7 * S]
    streams[CAMERA] = []
    report, _ = play(streams)
    assert report.stream(POSE).largest_gap_s == pytest.approx(1.0, abs=0.03)
    assert any(r.startswith(CAMERA) for r in report.reasons) and any(r.startswith(POSE) for r in report.reasons)


def test_a_rate_that_falls_to_half_is_warned_of():
    streams = nominal()
    streams[CAMERA] = [m for i, m in enumerate(streams[CAMERA]) if i < 120 or i % 2]
    report, timeline = play(streams)
    rate = [t for t, kind, topic, up in timeline if kind == "rate" and up]
    assert rate and 4.0 <= rate[0] <= 5.2
    assert report.stream(CAMERA).missing == 60


def test_late_messages_are_warned_of_at_once_and_it_is_over_when_it_is_over():
    streams = nominal()
    delayed_ns = 0      # nothing overtakes on its way
    for i, m in enumerate(streams[CAMERA]):
        delay_ns = 3 * S // 10 if 2.0 <= (m.stamp_ns - START) / S < 4.0 else 0
        delayed_ns = max(delayed_ns, m.log_ns + delay_ns)
        streams[CAMERA][i] = replace(m, log_ns=delayed_ns)
    report, timeline = play(streams)
    age = [(t, up) for t, kind, topic, up in timeline if kind == "age"]
    assert [up for _, up in age] == [True, False]
    assert 2.3 <= age[0][0] <= 2.8 and 4.3 <= age[1][0] <= 6.5
    assert 60 / 240 <= report.stream(CAMERA).late_share <= 64 / 240 and report.stream(CAMERA).missing == 0
    assert report.stream(CAMERA).backwards == 0 and report.stream(CAMERA).age_max_s == pytest.approx(0.32, abs=0.03)
    assert not report.go


def test_stamps_from_the_future_are_warned_of():
    streams = nominal()
    streams[POSE] = [replace(m, stamp_ns=m.stamp_ns + S // 10) for m in streams[POSE]]
    streams[JOINTS] = [replace(m, stamp_ns=m.stamp_ns + S // 10) for m in streams[JOINTS]]
    report, _ = play(streams)
    assert report.stream(POSE).late_share == 1.0 and not report.go


def test_a_skew_of_40_ms_is_measured_and_warned_of():
    streams = nominal()
    streams[CAMERA] = [replace(m, stamp_ns=m.stamp_ns - 40 * S // 1000) for m in streams[CAMERA]]
    report, timeline = play(streams)
    raised, over = only(timeline, "skew", CAMERA)
    assert len(raised) == 1 and raised[0] <= 0.6 and not over
    assert report.stream(CAMERA).skew_s == pytest.approx(0.040 + 0.010, abs=0.002) and not report.go
    calibrated, timeline = play(streams, limits=AuditLimits(max_skew_s=0.06))
    assert calibrated.go and not timeline


def test_images_that_load_holds_up_at_the_beginning_are_no_skew():
    """The first two of a camera of 10 Hz, by less than the limit of an age; so few do not tell of clocks."""
    streams = nominal()
    streams[CAMERA] = [replace(m, log_ns=m.log_ns + (45 * S // 1000 if i < 2 else 0))
                       for i, m in enumerate(streams[CAMERA][::3])]
    report, timeline = play(streams, learned=False)
    assert report.go and timeline == []


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_skew_of_40_ms_is_measured_in_lock_step_too(sign):
    streams = lockstep()
    streams[CAMERA] = [replace(m, stamp_ns=m.stamp_ns + sign * 40 * S // 1000) for m in streams[CAMERA]]
    report, timeline = play(streams, in_real_time=False)
    assert report.stream(CAMERA).skew_s == pytest.approx(-sign * 0.040)
    assert ("skew", CAMERA, True) in [entry[1:] for entry in timeline] and not report.go
    assert report.stream(JOINTS).skew_s == pytest.approx(0.0)


@pytest.mark.parametrize("count", [1, 12])
def test_messages_sent_twice_are_counted(count):
    streams = nominal()
    twice = set(range(50, 50 + count))
    streams[CAMERA] = [copy for i, m in enumerate(streams[CAMERA]) for copy in ([m, m] if i in twice else [m])]
    report, timeline = play(streams)
    assert report.stream(CAMERA).duplicates == count
    assert (report.stream(CAMERA).missing, report.stream(CAMERA).repeated, report.stream(CAMERA).backwards) == (0, 0, 0)
    raised, _ = only(timeline, "duplicates", CAMERA)
    assert bool(raised) == (count == 12)


def test_a_clock_that_is_set_back_is_told_and_nothing_is_taken_for_lost():
    streams = nominal()
    streams[JOINTS] = [replace(m, stamp_ns=m.stamp_ns - S // 5) if i >= 400 else m for i, m in enumerate(streams[JOINTS])]
    report, timeline = play(streams)
    assert report.stream(JOINTS).backwards == 1 and report.stream(JOINTS).missing == 0
    assert any(kind == "backwards" and 4.0 <= t <= 4.3 for t, kind, _, up in timeline if up) and not report.go


def test_single_stamps_that_go_back_are_counted():
    streams = nominal()
    for i in (100, 200, 300):
        streams[JOINTS][i] = replace(streams[JOINTS][i], stamp_ns=streams[JOINTS][i].stamp_ns - S // 2)
    report, timeline = play(streams)
    assert report.stream(JOINTS).backwards == 3
    assert report.stream(JOINTS).missing == 3, "the three times themselves have no sample"
    assert {kind for _, kind, _, _ in timeline} == {"backwards"}


def test_reordered_messages_are_told_and_not_taken_for_lost():
    streams = nominal()
    camera = streams[CAMERA]
    for i in (50, 90, 130, 170):
        a, b = camera[i], camera[i + 1]
        camera[i], camera[i + 1] = replace(b, log_ns=a.log_ns), replace(a, log_ns=max(b.log_ns, a.log_ns + 1))
    report, _ = play(streams)
    assert report.stream(CAMERA).backwards == 4 and report.stream(CAMERA).missing == 0 and not report.go


@pytest.mark.parametrize("share", ["some", "all"])
def test_missing_stamps_are_counted_and_acceptable_only_on_request(share):
    streams = nominal()
    bare = range(len(streams[JOINTS])) if share == "all" else (10, 11, 400)
    for i in bare:
        streams[JOINTS][i] = replace(streams[JOINTS][i], stamp_ns=0)
    report, timeline = play(streams)
    assert report.stream(JOINTS).unstamped == len(bare) and report.stream(JOINTS).backwards == 0 and not report.go
    assert timeline[0][1:] == ("unstamped", JOINTS, True)
    accepted, timeline = play(streams, limits=AuditLimits(allow_unstamped=True))
    assert accepted.go and not timeline, accepted.reasons
    assert accepted.stream(JOINTS).rate_hz == pytest.approx(100.0, rel=0.02)


def freeze(streams, first, last):
    streams[CAMERA] = [replace(m, content=-1) if first <= i < last else m for i, m in enumerate(streams[CAMERA])]
    return streams


def test_a_frozen_camera_is_told_with_its_time_and_the_number_of_repeated_images():
    report, timeline = play(freeze(nominal(), 90, 150))
    assert report.stream(CAMERA).repeated == 59 and report.stream(CAMERA).frozen_s == pytest.approx(59 / 30, abs=1e-3)
    raised, over = only(timeline, "frozen", CAMERA)
    assert len(raised) == len(over) == 1 and 3.5 <= raised[0] <= 3.75 and 5.0 <= over[0] <= 5.25 and not report.go


@pytest.mark.parametrize("moving", [True, False])
def test_in_simulation_a_still_scene_is_no_frozen_camera(moving):
    def tool(stamp_ns):
        return Pose([0.05 * (stamp_ns - START) / S * moving, 0, 0], [0, 0, 0, 1])

    report, _ = play(freeze(nominal(), 90, 150), limits=AuditLimits(frozen_needs_motion=True), tool=tool)
    assert report.go != moving and report.stream(CAMERA).repeated == 59


def test_messages_that_the_disk_cost_are_counted_exactly():
    audit = Audit(SPECS, AuditLimits(), periods_s={}, in_real_time=True, start_ns=START, tool_topic=POSE)
    streams, dropped = nominal(), {}
    messages = sorted((m for stream in streams.values() for m in stream), key=lambda m: m.log_ns)
    changes, checked_ns = [], START
    for i, message in enumerate(messages):
        audit.observe(message.topic, message.log_ns, message.stamp_ns, message.content)
        if 600 <= i < 640 and message.topic == CAMERA:
            dropped[CAMERA] = dropped.get(CAMERA, 0) + 1
        if message.log_ns - checked_ns > S // 5:
            checked_ns = message.log_ns
            audit.report([], dropped)
            audit.check(checked_ns)
            changes += audit.changes()
    audit.report([], dropped)
    report = audit.finish(START + round(DURATION_S * S))
    assert report.stream(CAMERA).dropped == dropped[CAMERA] > 3
    assert [(c.finding.kind, c.raised) for c in changes] == [("queue", True), ("queue", False)]


def test_sequence_numbers_tell_what_the_middleware_lost_when_one_publisher_sends():
    auditor = Auditor(SPECS, POSE)
    auditor.publishers({CAMERA: 1, JOINTS: 2, POSE: 1})
    audit = auditor.begin(AuditLimits(), in_real_time=True, start_ns=START)
    for sequence in (7, 8, 12, 13, 1, 2, 4):        # four lost; the driver was started anew; one lost
        auditor.arrived(CAMERA, sequence, audit)
    for sequence in (1, 501, 2, 502):               # two publishers take turns
        auditor.arrived(JOINTS, sequence, audit)
    auditor.arrived(POSE, None, audit)
    report = audit.finish(START + S)
    assert (report.stream(CAMERA).lost, report.stream(JOINTS).lost) == (4, 0)


def test_conditions_of_the_graph_are_warnings_and_reasons():
    audit = Audit(SPECS, AuditLimits(), periods_s={}, in_real_time=False, start_ns=START, tool_topic=POSE)
    for stream in zip(*lockstep().values(), strict=True):
        for message in stream:
            audit.observe(message.topic, message.log_ns, message.stamp_ns, message.content)
        audit.check_simulated()
        audit.report([Finding(POSE, "qos", 1, 0)] if START + S < stream[0].stamp_ns < START + 3 * S else [], {})
    changes = [(c.finding.topic, c.finding.kind, c.raised) for c in audit.changes()]
    assert changes == [(POSE, "qos", True), (POSE, "qos", False)]
    report = audit.finish(None)
    assert not report.go and "QoS" in report.reasons[0]


def test_what_the_recorder_itself_has_to_say_is_a_reason():
    audit = Audit(SPECS, AuditLimits(), periods_s={}, in_real_time=False, start_ns=START, tool_topic=POSE)
    for messages in lockstep().values():
        for message in messages:
            audit.observe(message.topic, message.log_ns, message.stamp_ns, message.content)
    report: EpisodeAudit = audit.finish(None, ["the disk is full"])
    assert report.reasons[0] == "the disk is full" and not report.go


def test_the_hash_of_an_image_ignores_its_stamp_and_sees_a_small_change():
    rng = np.random.default_rng(0)
    data = bytearray(rng.bytes(640 * 480 * 3))
    for message in (data, data[:3000]):        # of a small one, a JPEG for example, every byte counts
        before = content_hash(bytes(message))
        message[4:12] = bytes(8)
        assert content_hash(bytes(message)) == before
    first = content_hash(bytes(data))
    image = np.frombuffer(data, np.uint8)[12:].copy()
    image[400_000:402_000] ^= 255       # about one row
    assert content_hash(bytes(data[:12]) + image.tobytes()) != first


@pytest.mark.parametrize("rest_s", [0.0, 2.0, 6.0])
def test_the_idle_share_is_the_time_in_which_the_tool_rests(rest_s):
    audit = Auditor(SPECS, POSE).begin(AuditLimits(), in_real_time=True, start_ns=START)
    for stamp_ns in range(START, START + 8 * S, S // 100):
        moved_s = max(0.0, (stamp_ns - START) / S - rest_s)
        tremble_m = 0.0005 * (stamp_ns // (S // 100) % 2)
        pose = Pose([0.05 * moved_s + tremble_m, 0, 0], [0, 0, 0, 1])
        data = serialize_message(pose_to_msg(pose, "base", stamp_ns))
        audit.take(Recorded(POSE, stamp_ns, stamp_ns, data, stamp_ns))
    assert audit.finish(START + 8 * S).idle_share == pytest.approx(rest_s / 8, abs=0.02)


def test_a_period_that_is_learned_in_one_episode_serves_the_next():
    auditor = Auditor(SPECS, POSE)
    for message in nominal()[CAMERA]:
        auditor.learn(Recorded(CAMERA, message.log_ns, message.stamp_ns, b"", message.stamp_ns), None)
    audit = auditor.begin(AuditLimits(), in_real_time=True, start_ns=START)
    for message in nominal()[CAMERA][::2]:
        audit.observe(CAMERA, message.log_ns, message.stamp_ns, message.content)
    score = audit.finish(START + 8 * S).stream(CAMERA)
    assert score.expected_rate_hz == pytest.approx(30, rel=1e-3) and score.rate_hz == pytest.approx(15, rel=1e-2)


# -- over real topics

class Cell:
    """The streams of a cell, published in time by their index, so that what is left out or changed is known exactly."""

    def __init__(self, client):
        names = CONTRACT.topics
        self.client = client
        self.camera = FRONT.topic
        self.publishers = {
            FRONT.topic: client.publisher(Image, FRONT.topic, CAMERA_QOS),
            names.joint_states: client.publisher(JointState, names.joint_states, STATE_QOS),
            names.ee_pose: client.publisher(PoseStamped, names.ee_pose, STATE_QOS),
        }
        self.rates_hz = {FRONT.topic: 20.0, names.joint_states: 50.0, names.ee_pose: 50.0}
        self.start_ns, self.sent = time.time_ns(), dict.fromkeys(self.publishers, 0)
        self.faults = {topic: [] for topic in self.publishers}      # what to do with the next messages, in order
        self.skew_ns = dict.fromkeys(self.publishers, 0)
        self.picture = np.zeros(FRONT.shape, np.uint8)
        client.node.create_timer(0.005, self.pump)

    def pump(self):
        for topic, rate_hz in self.rates_hz.items():
            while (stamp_ns := self.start_ns + round(self.sent[topic] / rate_hz * 1e9)) <= time.time_ns():
                self.sent[topic] += 1
                self.send(topic, stamp_ns + self.skew_ns[topic], self.faults[topic].pop(0) if self.faults[topic] else "")

    def send(self, topic, stamp_ns, fault):
        if fault == "drop":
            return
        if fault == "back":
            stamp_ns -= S // 5
        if fault == "unstamped":
            stamp_ns = 0
        if topic == FRONT.topic:
            if fault != "freeze":
                self.picture = np.full(FRONT.shape, self.sent[topic] % 256, np.uint8)
            message = image_to_msg(self.picture, FRONT.frame, stamp_ns)
        elif topic == CONTRACT.topics.joint_states:
            message = joint_state_to_msg(CONTRACT, np.zeros(7), 1.0, stamp_ns)
        else:
            message = pose_to_msg(Pose([0.5, 0, 0.2], [1, 0, 0, 0]), CONTRACT.robot.base_frame, stamp_ns)
        for _ in range(2 if fault == "twice" else 1):
            self.publishers[topic].publish(message)

    def inject(self, topic, *faults):
        """Let these happen to the next messages of a topic, and wait until they did."""
        self.faults[topic] = list(faults)
        self.client.wait_until(lambda: not self.faults[topic], 10, "the faults")


def test_over_real_topics_the_audit_equals_the_truth_and_warns_while_it_records(tmp_path, ros_domain):
    joints, pose = CONTRACT.topics.joint_states, CONTRACT.topics.ee_pose
    with Processes(tmp_path / "log", ros_domain) as processes, RosClient("cell", ros_domain, processes.check) as client:
        processes.start_node("rlco_teleop.nodes.recorder_node", output_directory=tmp_path / "bags", task="push_cube",
                             instruction="push it", **{"audit.learn_s": 0.5, "audit.expected_rates": f"{FRONT.topic}=20"})
        diagnostics = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        cell = Cell(client)

        def warned(key):
            return diagnostics.find(lambda message: key in diagnostic_values(message.status[-1]))

        client.wait_active("/recorder")
        client.wait_until(lambda: client.trigger(topics.RECORDER_START)[0], 15, "the start")
        client.must_trigger(topics.RECORDER_DISCARD)
        client.spin_for(1.5)            # the rates are learned
        client.must_trigger(topics.RECORDER_START)
        client.spin_for(0.5)
        cell.inject(FRONT.topic, *["drop"] * 8, "", "twice", "", "twice", "twice")
        cell.inject(FRONT.topic, *["freeze"] * 16)
        cell.inject(joints, "back", *[""] * 5, "back", *[""] * 5)
        cell.inject(pose, *["unstamped"] * 3)
        for key in (f"frozen {FRONT.topic}", f"backwards {joints}", f"unstamped {pose}"):
            client.wait_until(lambda key=key: warned(key), 3, f"the warning '{key}'")
        assert warned(f"silent {FRONT.topic}") or warned(f"gap {FRONT.topic}")
        faulty = read_audit(client.must_trigger(topics.RECORDER_SUCCESS))
        cell.skew_ns[joints] = -40 * S // 1000
        client.spin_for(0.2)
        client.must_trigger(topics.RECORDER_START)
        client.wait_until(lambda: warned(f"skew {joints}"), 5, "the warning of the skew")
        skewed = read_audit(client.must_trigger(topics.RECORDER_SUCCESS))
    camera = faulty.stream(FRONT.topic)
    assert (camera.missing, camera.duplicates, camera.repeated, camera.lost, camera.dropped) == (8, 3, 16, 0, 0)
    assert camera.largest_gap_s == pytest.approx(9 / 20, abs=1e-3) and camera.frozen_s == pytest.approx(16 / 20, abs=1e-3)
    assert faulty.stream(joints).backwards == 2 and faulty.stream(pose).unstamped == 3
    assert faulty.stream(joints).missing == 2 and faulty.stream(pose).missing == 0
    assert faulty.stream(joints).expected_rate_hz == pytest.approx(50, rel=0.01)
    assert not faulty.go and {w.kind for w in faulty.warnings} >= {"frozen", "backwards", "unstamped"}
    assert skewed.stream(joints).skew_s == pytest.approx(0.04, abs=0.02) and any(joints in r for r in skewed.reasons)
    assert skewed.stream(FRONT.topic).backwards == 0
