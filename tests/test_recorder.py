"""Recordings: whole bags that any tool reads, exact boundaries, nothing lost silently, and repair after a crash."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lifecycle_msgs.msg import Transition
from mcap.reader import make_reader
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from sensor_msgs.msg import JointState as JointStateMsg
from std_msgs.msg import String

from rlco_common import topics
from rlco_common.contract import contract_from_json, load_contract
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent, EpisodeMetadata, event_from_json
from rlco_common.errors import RecordingError
from rlco_common.messages import diagnostic_values, image_from_msg
from rlco_common.pose import Pose
from rlco_common.processes import Processes
from rlco_common.ros import (
    CAMERA_QOS,
    COMMAND_QOS,
    EVENT_QOS,
    STATE_QOS,
    image_to_msg,
    joint_state_to_msg,
    pose_to_msg,
)
from rlco_common.ros_client import RosClient
from rlco_sim_bridge.ros import wait_until_heard
from rlco_teleop.audit_report import EpisodeAudit
from rlco_teleop.bags import (
    AUDIT_KEY,
    Bag,
    Segment,
    drive_segments,
    find_episodes,
    read_audit,
    read_episode_metadata,
    typestore,
)
from rlco_teleop.episode_writer import EpisodeWriter, Stream, repair_all
from rlco_teleop.intake import Intake
from rlco_teleop.recording import Recorded, Recording, require_free_space
from rlco_trainer.dataset.build import read_streams

CONTRACT = load_contract()
CAMERA = CONTRACT.cameras["front_camera"]
POSE_TYPE = "geometry_msgs/msg/PoseStamped"
STREAMS = [Stream("/a", POSE_TYPE), Stream("/b", "std_msgs/msg/Bool", "reliable", "transient_local", 3)]
RECORDER = "rlco_teleop.nodes.recorder_node"


def metadata(name="episode"):
    return EpisodeMetadata(name, "push_cube", "push the red cube", "standin", "tester", 7, CONTRACT.hash,
                           CONTRACT.to_json())


def pose_bytes(stamp_ns):
    store = typestore()
    types = store.types
    header = types["std_msgs/msg/Header"](
        stamp=types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id="base")
    pose = types["geometry_msgs/msg/Pose"](
        position=types["geometry_msgs/msg/Point"](x=1.0, y=2.0, z=3.0),
        orientation=types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0))
    return bytes(store.serialize_cdr(types[POSE_TYPE](header=header, pose=pose), POSE_TYPE))


# -- the bag

def test_a_finished_bag_is_read_by_rosbags_and_mcap_with_payloads_times_and_qos(tmp_path):
    writer = EpisodeWriter(tmp_path, metadata(), STREAMS)
    payloads = [pose_bytes(10**9 + i) for i in range(5)]
    for i, payload in enumerate(payloads):
        writer.write("/a", 2 * 10**9 + i, 10**9 + i, payload)
    directory = writer.finish(metadata().judged(True))
    assert [path.name for path in tmp_path.iterdir()] == ["episode"] and directory.name == "episode"
    with Bag(directory) as bag:
        assert bag.payloads("/a") == payloads
        assert [item.log_ns for item in bag.messages("/a")] == [2 * 10**9 + i for i in range(5)]
        assert [item.stamp_ns for item in bag.messages("/a")] == [10**9 + i for i in range(5)]
        assert bag.collect("/a")[0].message.pose.position.y == 2.0
        assert bag.counts == {"/a": 5, "/b": 0} and bag.collect("/nowhere") == []
        offered = {c.topic: c.ext.offered_qos_profiles[0] for c in bag._reader.connections}
        assert (offered["/b"].durability.name, offered["/b"].depth) == ("TRANSIENT_LOCAL", 3)
    with (directory / "episode.mcap").open("rb") as stream:
        found = [(m.publish_time, m.log_time, m.data) for _, _, m in make_reader(stream).iter_messages()]
    assert found == [(10**9 + i, 2 * 10**9 + i, payloads[i]) for i in range(5)]


def test_metadata_survives_the_loss_of_either_place(tmp_path):
    writer = EpisodeWriter(tmp_path, metadata(), STREAMS)
    writer.write("/a", 1, 1, pose_bytes(1))
    directory = writer.finish(metadata().judged(False))
    expected = metadata().judged(False)
    assert read_episode_metadata(directory) == expected
    assert contract_from_json(read_episode_metadata(directory).contract, "bag").hash == CONTRACT.hash
    (directory / "metadata.yaml").rename(tmp_path / "aside.yaml")
    assert read_episode_metadata(directory) == expected
    shutil.move(tmp_path / "aside.yaml", directory / "metadata.yaml")
    (directory / "episode.mcap").unlink()
    assert read_episode_metadata(directory) == expected


@pytest.fixture(scope="module")
def cut_recording(tmp_path_factory):
    """The bytes of a recording of 40 messages in several chunks, abandoned before its end."""
    root = tmp_path_factory.mktemp("cut")
    writer = EpisodeWriter(root, metadata(), STREAMS)
    for i in range(40):
        writer.write("/a", i, i, pose_bytes(i))
        if i % 8 == 7:
            writer.flush()
    writer.abandon()
    return (root / "episode.part" / "episode.mcap").read_bytes()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_wherever_a_recording_was_cut_repair_saves_a_readable_prefix(data, cut_recording, tmp_path):
    length = data.draw(st.integers(0, len(cut_recording)))
    shutil.rmtree(tmp_path, ignore_errors=True)
    part = tmp_path / "episode.part"
    part.mkdir(parents=True)
    (part / "episode.mcap").write_bytes(cut_recording[:length])
    [repair] = repair_all(tmp_path)
    assert not part.exists()
    if repair.directory is None:
        assert "episode" in repair.message and not find_episodes(tmp_path)
        return
    with Bag(repair.directory) as bag:
        stamps = [item.stamp_ns for item in bag.messages("/a")]
    assert stamps == list(range(len(stamps))) and len(stamps) % 8 == 0
    if length == len(cut_recording):
        assert len(stamps) == 40
    found = read_episode_metadata(repair.directory)
    assert found.repaired and found.success is None and found.seed == 7


def test_repair_leaves_a_running_recording_alone(tmp_path):
    writer = EpisodeWriter(tmp_path, metadata(), STREAMS)
    assert repair_all(tmp_path) == []
    writer.write("/a", 1, 1, pose_bytes(1))
    assert read_episode_metadata(writer.finish(metadata().judged(True))).success is True


def test_a_recording_killed_between_its_end_and_its_name_keeps_its_judgement(tmp_path, monkeypatch):
    writer = EpisodeWriter(tmp_path, metadata(), STREAMS)
    writer.write("/a", 1, 1, pose_bytes(1))
    monkeypatch.setattr(type(writer.directory), "rename", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        writer.finish(metadata().judged(True))
    monkeypatch.undo()
    writer.abandon()
    [repair] = repair_all(tmp_path)
    found = read_episode_metadata(repair.directory)
    assert found.success is True and not found.repaired


# -- the queue and the disk

def test_a_write_that_fails_is_reported_with_its_topic_and_never_as_a_success(tmp_path):
    recording = Recording(tmp_path, metadata(), STREAMS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        noise = np.random.default_rng(0).bytes(500_000)
        recording.put(Recorded("/a", 1, 1, noise))
        with pytest.raises(RecordingError, match=r"writing .*/a.* failed.*File too large"):
            recording.finish(metadata().judged(True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not find_episodes(tmp_path)


def test_a_disk_that_is_too_slow_costs_counted_messages_and_never_blocks(tmp_path, monkeypatch):
    go_on = threading.Event()
    write = EpisodeWriter.write
    monkeypatch.setattr(EpisodeWriter, "write", lambda *args: (go_on.wait(10), write(*args)))
    recording = Recording(tmp_path, metadata(), STREAMS, queue_size=10)
    for i in range(50):
        recording.put(Recorded("/a", i, i, pose_bytes(i)))
    go_on.set()
    directory = recording.finish(metadata().judged(True))
    with Bag(directory) as bag:
        assert bag.counts["/a"] + recording.dropped["/a"] == 50 and recording.dropped["/a"] >= 39
    assert f"/a {recording.dropped['/a']}" in (directory / "metadata.yaml").read_text()


def test_a_start_is_refused_when_the_disk_is_nearly_full(tmp_path):
    with pytest.raises(RecordingError, match="MB are free"):
        require_free_space(tmp_path, 10**9)


KILLED = """
import os, sys, time
from pathlib import Path
from dataclasses import replace
from rlco_common.episode import metadata_from_json
from rlco_teleop.episode_writer import Stream
from rlco_teleop.recording import Recorded, Recording
root, about, payload = Path(sys.argv[1]), metadata_from_json(sys.argv[2], ""), bytes.fromhex(sys.argv[3])
def record(root):
    for name in ("closed", "open"):
        recording = Recording(root, replace(about, episode=name), [Stream("/a", "geometry_msgs/msg/PoseStamped")])
        for i in range(10 if name == "closed" else 100_000):
            now = time.monotonic_ns()
            recording.put(Recorded("/a", now, now, payload))
            if i == 10:
                os.write(1, f"{root.name} {os.getpid()}\\n".encode())     # one write, or processes' lines mix
            time.sleep(0.01 if name == "open" else 0)
        recording.finish(replace(about, episode=name).judged(True))
for number in range(int(sys.argv[4])):
    if os.fork() == 0:
        record(root / str(number))
time.sleep(60)
"""


def test_kill_9_at_20_moments_loses_at_most_the_last_second_of_the_open_episode(tmp_path):
    count, losses = 20, []
    with Processes(tmp_path / "log", domain_id=1) as processes:
        child = processes.start("victims", [sys.executable, "-c", KILLED, str(tmp_path), metadata().to_json(),
                                            pose_bytes(1).hex(), str(count)])
        while len(child.tail(count).split()) < 2 * count:
            processes.check()
            time.sleep(0.02)
        victims = dict(line.split() for line in child.tail(count).splitlines())
        time.sleep(0.5)             # what is younger than a flush period is lost as a whole
        for number in range(count):
            time.sleep(0.05)        # together more than two flush periods: the kills come at every moment of one
            os.kill(int(victims[str(number)]), signal.SIGKILL)
            losses.append(time.monotonic_ns())
        processes.kill("victims")
    for number in range(count):
        root = tmp_path / str(number)
        [repair] = repair_all(root)
        assert [path.name for path in find_episodes(root)] == ["closed", "open"] and repair.directory == root / "open"
        with Bag(root / "closed") as bag:
            assert bag.counts["/a"] == 10 and read_episode_metadata(root / "closed").success is True
        with Bag(root / "open") as bag:
            stamps = [item.log_ns for item in bag.messages("/a")]
        losses[number] = (losses[number] - stamps[-1]) / 1e9
        assert np.diff(stamps).max() < 0.5e9, "a gap inside what was saved"
        assert read_episode_metadata(root / "open").repaired
    print(f"\nkill -9 lost the last {min(losses):.2f} to {max(losses):.2f} s")
    assert max(losses) < 1.0


def test_a_repair_that_was_cut_off_before_its_last_step_is_taken_for_done(tmp_path, cut_recording):
    part = tmp_path / "episode.part"
    part.mkdir()
    (part / "episode.mcap").write_bytes(cut_recording)
    shutil.copytree(part, tmp_path / "aside")
    [repair] = repair_all(tmp_path)
    shutil.move(tmp_path / "aside", part)
    [again] = repair_all(tmp_path)
    assert again.directory == repair.directory and "already" in again.message
    assert [path.name for path in tmp_path.iterdir()] == ["episode"]


def test_what_cannot_be_repaired_is_left_alone_and_keeps_nothing_from_working(tmp_path, cut_recording):
    for name, data in (("episode", cut_recording), ("strange", cut_recording.replace(b'"domain"', b'"demain"'))):
        (tmp_path / f"{name}.part").mkdir()
        (tmp_path / f"{name}.part" / f"{name}.mcap").write_bytes(data)
    repaired, strange = repair_all(tmp_path)
    assert repaired.directory == tmp_path / "episode" and strange.directory is None and "left as it is" in strange.message
    assert (tmp_path / "strange.part" / "strange.mcap").read_bytes() != b""


def test_the_audit_survives_the_loss_of_either_place_and_a_kill_before_the_name(tmp_path, monkeypatch):
    audit = EpisodeAudit(False, ("a gap",), 1.0, "receive", None, (), ())
    writer = EpisodeWriter(tmp_path, metadata(), STREAMS)
    writer.write("/a", 1, 1, pose_bytes(1))
    monkeypatch.setattr(type(writer.directory), "rename", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        writer.finish(metadata().judged(True), {AUDIT_KEY: audit.to_json()})
    monkeypatch.undo()
    writer.abandon()
    [repair] = repair_all(tmp_path)
    assert read_audit(repair.directory) == audit
    (repair.directory / "metadata.yaml").unlink()
    assert read_audit(repair.directory) == audit


# -- dates

def test_a_gripper_command_gets_the_time_of_the_pose_it_was_sent_with():
    intake = Intake({"/grip": "std_msgs/msg/Float64MultiArray", "/target": POSE_TYPE, "/b": "std_msgs/msg/Bool"},
                    {"/grip", "/target"}, "/grip", "/target")
    assert intake.take("/grip", b"first", None) == [] and intake.take("/grip", b"second", None) == []
    first, pose = intake.take("/target", pose_bytes(7), None)   # both grippers overtook both poses
    assert (first.data, first.publish_ns, first.log_ns, pose.publish_ns) == (b"first", 7, 7, 7)
    second, _ = intake.take("/target", pose_bytes(9), None)
    assert (second.data, second.publish_ns) == (b"second", 9)
    assert [record.topic for record in intake.take("/target", pose_bytes(11), None)] == ["/target"]
    [flag] = intake.take("/b", b"\x00\x01\x00\x00\x01", None)
    assert flag.log_ns == 11, "in simulated time an unstamped message bears the newest stamp"
    assert [record.topic for record in intake.preroll(None)] == ["/b"]


def test_preroll_holds_the_newest_of_this_episode_and_a_repeated_tick_once():
    intake = Intake({"/state": POSE_TYPE, "/event": "std_msgs/msg/String"}, set(), "/grip", "/target")
    event = b"\x00\x01\x00\x00" + bytes(8)
    for stamp in (1, 2):
        intake.take("/state", pose_bytes(stamp), None)
    intake.reset("/event", event, start_ns=2)       # the first observation overtook the event
    assert [(r.topic, r.publish_ns) for r in intake.preroll(None)] == [("/event", 2), ("/state", 2)]
    assert intake.take("/state", pose_bytes(2), None) == [] and len(intake.take("/state", pose_bytes(3), None)) == 1
    intake.reset("/event", event, start_ns=9)
    intake.take("/state", pose_bytes(4), None)      # a straggler of the episode before
    assert intake.missing(["/state"]) == ["/state"]


# -- the node

class Table:
    """A recorder process, and the publishers of a robot that moves one tick at a time."""

    def __init__(self, processes, client, root):
        self.processes, self.client, self.root = processes, client, root
        self.image = client.publisher(Image, CAMERA.topic, CAMERA_QOS)
        self.info = client.publisher(CameraInfo, CAMERA.info_topic, CAMERA_QOS)
        self.joints = client.publisher(JointStateMsg, CONTRACT.topics.joint_states, STATE_QOS)
        self.ee_pose = client.publisher(PoseStamped, CONTRACT.topics.ee_pose, STATE_QOS)
        self.target = client.publisher(PoseStamped, CONTRACT.topics.target_pose, COMMAND_QOS)
        self.event = client.publisher(String, EVENT_TOPIC, EVENT_QOS)
        self.publishers = (self.image, self.info, self.joints, self.ee_pose, self.target, self.event)
        self.diagnostics = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)

    def start_recorder(self):
        self.processes.start_node(RECORDER, output_directory=self.root, operator="tester", min_free_mb=1, stop_free_mb=1)
        self.client.wait_active("/recorder")
        self.client.wait_until(lambda: all(p.get_subscription_count() for p in self.publishers), 10, "the recorder")
        self.client.wait_until(self.heard, 10, "the recorder to hear every stream")

    def heard(self):
        """Whether an episode can start. The subscription counts still hold a recorder that was killed a moment ago."""
        self.reset(0)
        self.tick(1)
        ok, _ = self.client.trigger(topics.RECORDER_START)
        if ok:
            self.client.must_trigger(topics.RECORDER_DISCARD)
        return ok

    def tick(self, number):
        """One tick's observation and command; number is the stamp in seconds and the x of the pose."""
        stamp_ns = number * 10**9
        pose = Pose([float(number), 0, 0], [0, 0, 0, 1])
        self.image.publish(image_to_msg(np.full(CAMERA.shape, number % 256, np.uint8), CAMERA.frame, stamp_ns))
        self.joints.publish(joint_state_to_msg(CONTRACT, np.full(7, float(number)), 1.0, stamp_ns))
        self.ee_pose.publish(pose_to_msg(pose, CONTRACT.robot.base_frame, stamp_ns))
        self.target.publish(pose_to_msg(pose, CONTRACT.robot.base_frame, stamp_ns))

    def audit(self):
        """The newest audit status of the recorder: (message, {key: value})."""
        found = self.diagnostics.find(lambda message: message.status[-1].name == "recorder: audit")
        return ("", {}) if found is None else (found.status[-1].message, diagnostic_values(found.status[-1]))

    def recorder_runs(self):
        try:
            return self.processes["recorder_node"].running()
        except KeyError:
            return False

    def restore(self):
        """Undo whatever a test left behind: a running episode, parameters, bags."""
        if self.recorder_runs():
            self.client.trigger(topics.RECORDER_DISCARD)
            self.client.set_parameters("/recorder", min_free_mb=1, stop_free_mb=1)
        for directory in self.root.iterdir():
            shutil.rmtree(directory)

    def reset(self, seed):
        """As the bridge does it: the first observation follows when the event has arrived."""
        self.event.publish(String(data=EpisodeEvent(
            "reset", task="push_cube", instruction="push the red cube", domain="standin", seed=seed).to_json()))
        wait_until_heard(self.event)

    def start(self):
        return self.client.must_trigger(topics.RECORDER_START)


@pytest.fixture(scope="module")
def recorder_table(tmp_path_factory, module_ros_domain):
    root = tmp_path_factory.mktemp("bags")
    with Processes(root.parent / "log", module_ros_domain) as processes, \
            RosClient("table", module_ros_domain, processes.check) as client:
        yield Table(processes, client, root)


@pytest.fixture
def table(recorder_table):
    """The shared table, as it was before the first test: a test that fails takes no other one with it."""
    if not recorder_table.recorder_runs():
        recorder_table.start_recorder()
    yield recorder_table
    recorder_table.restore()


def seconds(bag, topic):
    return [item.stamp_ns // 10**9 for item in bag.messages(topic)]


def test_two_start_stop_pairs_give_two_episodes_with_exact_boundaries(table):
    for seed, base in ((3, 100), (4, 200)):
        table.tick(base)
        table.reset(seed)
        table.tick(base + 1)        # the first observation, before the start: pre-roll
        name = table.start()
        for number in range(base + 2, base + 12):
            table.tick(number)
        end = topics.RECORDER_SUCCESS if seed == 3 else topics.RECORDER_FAIL
        assert table.client.must_trigger(end).endswith(name)
        table.tick(base + 50)
    episodes = find_episodes(table.root)
    assert len(episodes) == 2
    for directory, seed, base in zip(episodes, (3, 4), (100, 200), strict=True):
        with Bag(directory) as bag:
            for topic in (CAMERA.topic, CONTRACT.topics.joint_states, CONTRACT.topics.ee_pose):
                assert seconds(bag, topic) == list(range(base + 1, base + 12)), topic
            assert seconds(bag, CONTRACT.topics.target_pose) == list(range(base + 2, base + 12))
            events = [event_from_json(item.message.data) for item in bag.messages(EVENT_TOPIC)]
            assert [event.kind for event in events] == ["reset", "start"] and events[0].seed == seed
            image = bag.collect(CAMERA.topic)[0].message
            assert (image.data == (base + 1) % 256).all() and image.data.size == CAMERA.width * CAMERA.height * 3
        found = read_episode_metadata(directory)
        assert (found.success, found.seed, found.domain, found.operator) == (seed == 3, seed, "standin", "tester")
        assert found.instruction == "push the red cube" and found.contract_hash == CONTRACT.hash


def test_what_cannot_be_recorded_is_refused_with_the_reason(table):
    client = table.client
    ok, reason = client.trigger(topics.RECORDER_SUCCESS)
    assert not ok and "nothing is being recorded" in reason
    table.reset(1)      # forgets the streams seen so far
    ok, reason = client.trigger(topics.RECORDER_START)
    assert not ok and CAMERA.topic in reason and CONTRACT.topics.ee_pose in reason
    table.tick(1)
    client.set_parameters("/recorder", min_free_mb=10**9)
    ok, reason = client.trigger(topics.RECORDER_START)
    assert not ok and "MB are free" in reason
    client.set_parameters("/recorder", min_free_mb=1)
    table.diagnostics.clear()
    sloppy = client.publisher(PoseStamped, CONTRACT.topics.ee_pose,
                              QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    # Not by asking until it is refused: a start that comes before the publisher was discovered succeeds.
    client.wait_until(lambda: f"qos {CONTRACT.topics.ee_pose}" in table.audit()[1], 10, "the recorder to notice")
    ok, reason = client.trigger(topics.RECORDER_START)
    assert not ok and "QoS" in reason and CONTRACT.topics.ee_pose in reason and "table" in reason
    client.node.destroy_publisher(sloppy)
    client.wait_until(lambda: table.audit()[0] == "no warning", 10, "the recorder to notice")
    table.start()
    ok, reason = client.trigger(topics.RECORDER_START)
    assert not ok and "end it first" in reason
    client.must_trigger(topics.RECORDER_DISCARD)
    assert not list(table.root.iterdir())


def test_a_failed_write_makes_success_fail_and_the_next_start_works(table):
    pid = table.processes["recorder_node"].pid
    table.reset(2)
    table.tick(1)
    table.start()
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, limits[1]))
    noise = np.random.default_rng(0).integers(0, 256, CAMERA.shape, np.uint8)
    table.image.publish(image_to_msg(noise, CAMERA.frame, 2 * 10**9))
    ok, reason = table.client.trigger(topics.RECORDER_SUCCESS)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    assert not ok and CAMERA.topic in reason and "failed" in reason
    table.start()
    table.client.must_trigger(topics.RECORDER_DISCARD)
    assert not find_episodes(table.root)


def test_before_the_disk_is_full_the_episode_is_ended_saved_and_the_reason_told(table):
    table.reset(2)
    table.tick(1)
    name = table.start()
    for number in range(2, 6):
        table.tick(number)
    table.client.set_parameters("/recorder", stop_free_mb=10**9)
    table.client.wait_until(lambda: find_episodes(table.root), 5, "the saved episode")
    ok, reason = table.client.trigger(topics.RECORDER_SUCCESS)
    assert not ok and "MB are free" in reason and name in reason and "stop_free_mb" in reason
    table.client.wait_until(lambda: table.diagnostics.find(lambda m: "MB are free" in m.status[0].message), 5, "diagnostics")
    [directory] = find_episodes(table.root)
    found, audit = read_episode_metadata(directory), read_audit(directory)
    assert found.success is None and not found.repaired and not audit.go and "MB are free" in audit.reasons[0]
    with Bag(directory) as bag:
        assert seconds(bag, CONTRACT.topics.ee_pose) == [1, 2, 3, 4, 5]
    table.client.set_parameters("/recorder", stop_free_mb=1)
    table.start()


def test_a_disk_that_goes_away_ends_the_episode_with_the_reason_and_its_part_is_repaired(table):
    table.reset(2)
    table.tick(1)
    name = table.start()
    table.tick(2)
    table.client.spin_for(0.6)      # what came is written
    aside = table.root.with_name("aside")
    table.root.rename(aside)
    try:
        table.client.wait_until(lambda: table.diagnostics.find(lambda m: name in m.status[0].message), 5, "the complaint")
        ok, reason = table.client.trigger(topics.RECORDER_SUCCESS)
        assert not ok and "No such file" in reason
    finally:
        aside.rename(table.root)
    table.start()
    table.client.must_trigger(topics.RECORDER_DISCARD)
    [repair] = repair_all(table.root)
    with Bag(repair.directory) as bag:
        assert seconds(bag, CONTRACT.topics.ee_pose) == [1, 2]


def test_jpeg_images_are_recorded_by_choice_and_the_other_form_is_named(table):
    client = table.client

    def activate():
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            assert client.change_state("/recorder", transition)

    client.set_parameters("/recorder", images="jpeg")
    try:
        activate()
        table.reset(1)
        table.tick(1)
        ok, reason = client.trigger(topics.RECORDER_START)
        assert not ok and f"offers only {CAMERA.topic}" in reason and "images to raw" in reason
        image = np.zeros(CAMERA.shape, np.uint8)
        image[:, :64] = [250, 40, 10]
        publisher = client.publisher(CompressedImage, CAMERA.compressed_topic, CAMERA_QOS, matched_s=5)
        message = CompressedImage(format="rgb8; jpeg compressed bgr8")
        message.data.frombytes(simplejpeg.encode_jpeg(image, quality=95, colorspace="RGB"))

        def tick(number):
            table.tick(number)
            message.header.stamp.sec = number
            publisher.publish(message)

        def start():
            tick(1)
            return client.trigger(topics.RECORDER_START)[0]

        client.wait_until(start, 5, "the recorder to hear every stream")
        tick(2)
        with Bag(client.must_trigger(topics.RECORDER_SUCCESS)) as bag:
            assert bag.counts[CAMERA.compressed_topic] >= 2 and CAMERA.topic not in bag.counts
            decoded = image_from_msg(CAMERA, bag.collect(CAMERA.compressed_topic)[0].message)
            assert np.abs(decoded.astype(int) - image).mean() < 3
            streams = read_streams(CONTRACT, bag.directory).images["front_camera"]
        assert set(streams.stamps_ns) == {10**9, 2 * 10**9} and (streams.values[0]() == decoded).all()
    finally:
        client.set_parameters("/recorder", images="raw")
        activate()


def test_kill_9_of_the_node_costs_the_open_episode_its_last_second_and_nothing_else(table):
    table.reset(5)
    table.tick(1)
    table.start()
    closed = table.client.must_trigger(topics.RECORDER_SUCCESS)
    table.start()
    for number in range(2, 10):
        table.tick(number)
    table.client.spin_for(1.0)
    table.tick(10)
    table.processes.kill("recorder_node")
    table.start_recorder()
    [first, second] = find_episodes(table.root)
    assert str(first) == closed and read_episode_metadata(first).success is True
    found = read_episode_metadata(second)
    assert found.repaired and found.success is None and found.seed == 5
    with Bag(second) as bag:
        assert seconds(bag, CONTRACT.topics.ee_pose)[:9] == list(range(1, 10))
    assert read_audit(first) is not None and read_audit(second) is None


def test_sigterm_closes_an_open_episode_without_a_judgement(table):
    table.reset(6)
    table.tick(1)
    table.start()
    table.tick(2)
    ok, _ = table.client.trigger(topics.RECORDER_START)     # refused; but whatever was sent before it has arrived
    assert not ok
    child = table.processes["recorder_node"]
    child.process.send_signal(signal.SIGTERM)
    assert child.process.wait(10) == 0
    [directory] = find_episodes(table.root)
    found = read_episode_metadata(directory)
    assert found.success is None and not found.repaired
    with Bag(directory) as bag:
        assert seconds(bag, CONTRACT.topics.ee_pose) == [1, 2]
    assert read_audit(directory) is not None
    table.processes.stop("recorder_node")


def test_the_bag_holds_the_sent_command_and_not_the_measured_state(tmp_path, ros_domain):
    from test_gate_node import Cell

    with Processes(tmp_path / "log", ros_domain) as processes, RosClient("t", ros_domain, processes.check) as client:
        processes.start_node("rlco_teleop.nodes.gate_node")
        processes.start_node(RECORDER, output_directory=tmp_path / "bags", task="push_cube", instruction="push it",
                             require_streams=False)
        cell = Cell(processes, client)
        cell.follow = False             # the arm is stuck: what is measured never moves
        client.wait_active("/recorder")
        client.must_trigger(topics.RECORDER_START)
        cell.drive(distance_m=0.05)
        cell.release()
        [directory] = [client.must_trigger(topics.RECORDER_SUCCESS)]
        sent = {m.header.stamp.sec * 10**9 + m.header.stamp.nanosec: m.pose.position.x for m in cell.targets.messages}
        with Bag(directory) as bag:
            recorded = {i.stamp_ns: i.message.pose.position.x for i in bag.messages(CONTRACT.topics.target_pose)}
            measured = {i.message.pose.position.x for i in bag.messages(CONTRACT.topics.ee_pose)}
            assert any(item.message.data for item in bag.messages(topics.TELEOP_DEADMAN))
            assert bag.counts[topics.TELEOP_TWIST] > 3 and bag.counts[topics.GATE_STATUS] > 0
        assert measured == {0.5} and max(recorded.values()) > 0.54
        assert len(recorded) > 8 and all(sent[stamp] == x for stamp, x in recorded.items() if stamp in sent)
        assert len(set(recorded) - set(sent)) <= 1      # the last one may still be on its way to this test
        assert read_episode_metadata(directory).domain == "real"


def test_in_lock_step_the_command_before_the_last_observation_is_waited_for(tmp_path, ros_domain):
    """It comes from another process than the observation, and may be later than the call that ends the episode."""
    with Processes(tmp_path / "log", ros_domain) as processes, RosClient("t", ros_domain, processes.check) as client:
        processes.start_node(RECORDER, output_directory=tmp_path / "bags", task="push_cube", instruction="push it",
                             require_streams=False, use_sim_time=True)
        ee_pose = client.publisher(PoseStamped, CONTRACT.topics.ee_pose, STATE_QOS)
        target = client.publisher(PoseStamped, CONTRACT.topics.target_pose, COMMAND_QOS)
        client.wait_active("/recorder")
        client.wait_until(lambda: ee_pose.get_subscription_count() and target.get_subscription_count(), 10, "the recorder")
        pose = Pose([0.5, 0, 0.2], [0, 0, 0, 1])
        first_ns, next_ns = 10**9, 10**9 + CONTRACT.control_period_ns
        ee_pose.publish(pose_to_msg(pose, CONTRACT.robot.base_frame, first_ns))
        client.must_trigger(topics.RECORDER_START)
        ee_pose.publish(pose_to_msg(pose, CONTRACT.robot.base_frame, next_ns))
        late = threading.Timer(0.3, lambda: target.publish(pose_to_msg(pose, CONTRACT.robot.base_frame, first_ns)))
        late.start()
        directory = client.must_trigger(topics.RECORDER_SUCCESS)
        late.join()
        with Bag(directory) as bag:
            assert [item.stamp_ns for item in bag.messages(CONTRACT.topics.ee_pose)] == [first_ns, next_ns]
            assert [item.stamp_ns for item in bag.messages(CONTRACT.topics.target_pose)] == [first_ns]


def test_interventions_are_labelled_with_their_times(tmp_path, ros_domain):
    from test_gate_node import Cell

    with Processes(tmp_path / "log", ros_domain) as processes, RosClient("t", ros_domain, processes.check) as client:
        processes.start_node("rlco_teleop.nodes.gate_node")
        processes.start_node(RECORDER, output_directory=tmp_path / "bags", task="push_cube", instruction="push it",
                             require_streams=False)
        cell = Cell(processes, client)
        client.wait_active("/recorder")
        client.wait_until(lambda: client.node.count_subscribers(topics.GATE_STATUS) > 1, 10, "the recorder's subscriptions")

        def policy_moves(y):
            cell.enable_policy()
            cell.send_chunk(np.tile([0, 0.03, 0, 0, 0, 0, 1.0], (3, 1)))
            client.wait_until(lambda: len(cell.targets) and cell.targets.last.pose.position.y > y, 5, "policy motion")
            return cell.now_ns()

        client.must_trigger(topics.RECORDER_START)
        at = [policy_moves(0.05)]
        cell.drive([0.05, 0, 0, 0, 0, 0], 0.005)
        at.append(cell.now_ns())
        cell.release()
        at.append(cell.now_ns())
        at.append(policy_moves(0.1))
        mixed = client.must_trigger(topics.RECORDER_SUCCESS)
        cell.event.publish(String(data=EpisodeEvent("reset", task="push_cube", instruction="push it").to_json()))
        cell.wait_state("IDLE")
        client.must_trigger(topics.RECORDER_START)
        cell.drive()
        by_hand = client.must_trigger(topics.RECORDER_SUCCESS)
    with Bag(mixed) as bag:
        segments = drive_segments(bag)
        assert [segment.source for segment in segments] == ["policy", "operator", "policy"]
        assert (segments[0].start_ns, segments[-1].end_ns) == (bag.start_ns, bag.end_ns)
        assert at[0] <= segments[1].start_ns <= at[1] and at[2] - 10**9 <= segments[1].end_ns <= at[3]
        assert segments[0].end_ns == segments[1].start_ns and segments[1].end_ns == segments[2].start_ns
        moves = [(i.stamp_ns, i.message.pose.position.x) for i in bag.messages(CONTRACT.topics.target_pose)]
        by_operator = [a[0] for a, b in zip(moves[1:], moves, strict=False) if a[1] != b[1]]
        assert by_operator and all(segments[1].start_ns <= stamp <= segments[1].end_ns for stamp in by_operator)
    with Bag(by_hand) as bag:
        assert drive_segments(bag) == [Segment(bag.start_ns, bag.end_ns, "operator")]


ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=6m,{options} tmpfs "$1"
if [ "{then}" ]; then mount -o {then} "$1"; fi
shift
exec "$@"
"""


def small_disk_recorder(processes, directory, options="rw", then="", **parameters):
    """The recorder with a disk of 6 MB of its own below `directory`, in a mount namespace."""
    directory.mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces on this machine")
    arguments = [part for key, value in parameters.items() for part in ("-p", f"{key}:={value}")]
    script = ON_A_SMALL_DISK.format(options=options, then=then)
    return processes.start("recorder", [
        "unshare", "-rm", "sh", "-c", script, "sh", str(directory), sys.executable, "-m", RECORDER, "--ros-args",
        "-p", f"output_directory:={directory}", *arguments])


def test_a_read_only_disk_is_told_at_once(tmp_path, ros_domain):
    with Processes(tmp_path / "log", ros_domain) as processes, RosClient("t", ros_domain, processes.check) as client:
        child = small_disk_recorder(processes, tmp_path / "disk", then="remount,ro")
        client.wait_until(lambda: "cannot write in output_directory" in child.tail(), 20, "the complaint")
        assert "Read-only file system" in child.tail() and str(tmp_path / "disk") in child.tail()


def test_a_full_disk_makes_success_fail_and_what_was_written_is_there_after_the_next_start(tmp_path, ros_domain):
    with Processes(tmp_path / "log", ros_domain) as processes, RosClient("t", ros_domain, processes.check) as client:
        child = small_disk_recorder(processes, tmp_path / "disk", min_free_mb=1, stop_free_mb=0)
        table = Table(processes, client, tmp_path)
        client.wait_active("/recorder")
        client.wait_until(lambda: all(p.get_subscription_count() for p in table.publishers), 10, "the recorder")
        client.wait_until(table.heard, 10, "the recorder to hear every stream")
        disk = Path(f"/proc/{child.pid}/root{tmp_path}/disk")
        table.start()
        table.tick(2)
        closed = client.must_trigger(topics.RECORDER_SUCCESS)
        table.start()
        rng = np.random.default_rng(0)
        for number in range(3, 203):
            noise = rng.integers(0, 256, CAMERA.shape, np.uint8)
            table.image.publish(image_to_msg(noise, CAMERA.frame, number * 10**9))
            client.spin_for(0.005)      # as fast as the publisher's queue of 30 allows, not as Python can
        client.wait_until(lambda: table.diagnostics.find(lambda m: "No space left" in m.status[0].message), 10, "a complaint")
        ok, reason = client.trigger(topics.RECORDER_SUCCESS)
        assert not ok and "No space left" in reason and CAMERA.topic in reason
        ok, reason = client.trigger(topics.RECORDER_START)
        assert not ok and "MB are free" in reason
        saved = tmp_path / "saved"
        shutil.copytree(disk, saved)
    [repair] = repair_all(saved)
    assert [path.name for path in find_episodes(saved)] == sorted([Path(closed).name, repair.directory.name])
    with Bag(repair.directory) as bag:
        stamps = seconds(bag, CAMERA.topic)
        assert stamps == list(range(2, 2 + len(stamps))) and len(stamps) > 50
