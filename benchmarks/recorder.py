"""Does the recorder lose anything, and what does it cost? Two 640x480 cameras at 30 Hz and joints at 100 Hz, by default 30 s.

Every publisher is a process of its own, light (it sends prepared bytes with a new stamp) and in time, and notes the stamps
of what it sent. Three recorders take turns: the recorder node with raw images, the same with JPEG, and a plain rosbags
writer that is fed deserialised messages in the subscription's callback. All messages sent since the recorder's start must
be in the bag. Run: make bench-recorder
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import yaml
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from sensor_msgs.msg import CompressedImage, Image, JointState

from rlco_common import topics
from rlco_common.contract import DEFAULT_CONTRACT, CameraSpec, Contract, contract_directory, load_contract
from rlco_common.pose import Pose
from rlco_common.processes import Processes
from rlco_common.ros import CAMERA_QOS, STATE_QOS, image_to_msg, joint_state_to_msg, pose_to_msg
from rlco_common.ros_client import RosClient
from rlco_common.strict import load_yaml
from rlco_teleop.bags import Bag, read_audit, typestore

CAMERAS = ("left_camera", "right_camera")
CAMERA_RATE_HZ, STATE_RATE_HZ = 30.0, 100.0
PICTURES = 8                # prepared pictures per camera, sent in turn
STAMP = slice(4, 12)        # of a serialised message that begins with a header
DOMAIN_ID = 1 + os.getpid() % 90


def bench_contract(directory: Path) -> Path:
    """The shipped contract with two 640x480 cameras."""
    data = load_yaml(contract_directory() / f"{DEFAULT_CONTRACT}.yaml")
    [camera] = data["cameras"].values()
    data["cameras"] = {name: camera | {"topic": f"/{name}/image_raw", "frame": name, "width": 640, "height": 480}
                       for name in CAMERAS}
    path = directory / "bench.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def picture(camera: CameraSpec, number: int) -> np.ndarray:
    """A smooth scene with the noise of a sensor; uint8 [height, width, 3]."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: camera.height, : camera.width]
    scene = np.stack([128 + 80 * np.sin((x + 20 * number) / 90), 128 + 80 * np.cos(y / 70), (x + y) / 5], axis=-1)
    return np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8)


# -- the processes

def prepared(contract: Contract, stream: str) -> list[tuple[type, str, float, list[bytes]]]:
    """(type, topic, rate in Hz, serialised messages) of what one publisher process sends."""
    if stream == "arm":
        names = contract.topics
        joints = joint_state_to_msg(contract, np.zeros(7), 1.0, 1)
        pose = pose_to_msg(Pose([0.5, 0, 0.2], [1, 0, 0, 0]), contract.robot.base_frame, 1)
        return [(JointState, names.joint_states, STATE_RATE_HZ, [serialize_message(joints)]),
                (PoseStamped, names.ee_pose, STATE_RATE_HZ, [serialize_message(pose)])]
    name, form = stream.split(":")
    camera = contract.cameras[name]
    pictures = [picture(camera, number) for number in range(PICTURES)]
    if form == "raw":
        raw = [serialize_message(image_to_msg(image, camera.frame, 1)) for image in pictures]
        return [(Image, camera.topic, CAMERA_RATE_HZ, raw)]
    compressed = []
    for image in pictures:
        message = CompressedImage(format="rgb8; jpeg compressed bgr8")
        message.data.frombytes(simplejpeg.encode_jpeg(image, quality=90, colorspace="RGB", colorsubsampling="420"))
        compressed.append(serialize_message(message))
    return [(CompressedImage, camera.compressed_topic, CAMERA_RATE_HZ, compressed)]


def publish(contract: Contract, stream: str, sent_file: Path, stop_file: Path) -> None:
    """Publish until the stop file appears; then note the stamps of what was sent, by topic."""
    sent = {}
    with RosClient(f"bench_{stream.replace(':', '_')}") as client:
        outlets = []
        for message_type, topic, rate_hz, messages in prepared(contract, stream):
            qos = STATE_QOS if stream == "arm" else CAMERA_QOS
            outlets.append((client.publisher(message_type, topic, qos), topic, 1 / rate_hz, messages))
            sent[topic] = []
        start_s, counts = time.monotonic(), [0] * len(outlets)
        while not stop_file.exists():
            for index, (publisher, topic, period_s, messages) in enumerate(outlets):
                if time.monotonic() < start_s + counts[index] * period_s:
                    continue
                data = bytearray(messages[counts[index] % len(messages)])
                stamp_ns = time.time_ns()
                data[STAMP] = (stamp_ns // 10**9).to_bytes(4, "little") + (stamp_ns % 10**9).to_bytes(4, "little")
                publisher.publish(bytes(data))
                sent[topic].append(stamp_ns)
                counts[index] += 1
            next_s = min(start_s + count * outlet[2] for count, outlet in zip(counts, outlets, strict=True))
            time.sleep(max(0.0, next_s - time.monotonic()))
        unfinished = sent_file.with_suffix(".part")
        unfinished.write_text(json.dumps(sent), encoding="utf-8")
        unfinished.rename(sent_file)
        client.spin_for(1.0)        # what is still in the queues is delivered


def record_plainly(contract: Contract, bag: Path, stop_file: Path) -> None:
    """The usual short script: deserialised messages in the callback, serialised again, into a rosbags writer."""
    writer = Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP)
    writer.open()
    with RosClient("plain_recorder") as client:
        def listen(message_type, msgtype, topic, qos):
            connection = writer.add_connection(topic, msgtype, typestore=typestore())
            client.node.create_subscription(
                message_type, topic, lambda message: writer.write(connection, time.time_ns(), serialize_message(message)), qos)

        for camera in contract.cameras.values():
            listen(Image, "sensor_msgs/msg/Image", camera.topic, STATE_QOS)
        listen(JointState, "sensor_msgs/msg/JointState", contract.topics.joint_states, STATE_QOS)
        listen(PoseStamped, "geometry_msgs/msg/PoseStamped", contract.topics.ee_pose, STATE_QOS)
        while not stop_file.exists():
            client.spin_for(0.5)
    writer.close()


# -- the measurement

@dataclass(frozen=True)
class Result:
    """One recorder's run. cpu: share of one core. missing: topic -> (sent since the start, of these not in the bag)."""

    name: str
    cpu: float
    peak_rss_mb: float
    megabytes: float
    duration_s: float
    missing: dict[str, tuple[int, int]]
    verdict: str

    def row(self) -> str:
        lost = sum(count for _, count in self.missing.values())
        sent = sum(count for count, _ in self.missing.values())
        return (f"| {self.name} | {sent} | {lost} | {100 * self.cpu:.0f} % | {self.peak_rss_mb:.0f} MB | "
                f"{self.megabytes / self.duration_s:.0f} MB/s | {self.verdict} |")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(name: str, form: str, plain: bool, directory: Path, contract_file: Path, duration_s: float) -> Result:
    """Run one recorder with fresh publishers."""
    contract = load_contract(contract_file)
    directory.mkdir()
    stop_file, bag = directory / "stop", directory / "plain"
    command = [sys.executable, __file__, "--contract", str(contract_file), "--stop-file", str(stop_file)]
    with (Processes(directory / "logs", DOMAIN_ID) as processes,
          RosClient("bench", DOMAIN_ID, watch=processes.check) as client):
        if plain:
            recorder = processes.start("recorder", [*command, "--record", str(bag)])
        else:
            recorder = processes.start_node("rlco_teleop.nodes.recorder_node", output_directory=str(directory / "bags"),
                                            contract=str(contract_file), images=form, task="push_cube", instruction="bench",
                                            **{"audit.max_gap_s": 1.0})     # publishers in Python, on a busy machine
        streams = ["arm", *(f"{camera}:{form}" for camera in CAMERAS)]
        for stream in streams:
            sent_file = directory / f"{stream}.sent"
            processes.start(stream, [*command, "--publish", stream, "--sent-file", str(sent_file)])
        if plain:
            wanted = [camera.topic for camera in contract.cameras.values()]
            client.wait_until(lambda: all(client.node.count_publishers(t) and client.node.count_subscribers(t) for t in wanted),
                              30, "publishers and recorder")
            client.spin_for(3.0)        # all connections are up; the recorder node would refuse to start before
        else:
            client.wait_active("/recorder")
            client.spin_for(3.0)
            client.wait_until(lambda: client.trigger(topics.RECORDER_START)[0], 30, "the start of the recording")
        start_ns, started_s, cpu_s = time.time_ns(), time.monotonic(), cpu_seconds(recorder.pid)
        client.spin_for(duration_s)
        used_s, elapsed_s = cpu_seconds(recorder.pid) - cpu_s, time.monotonic() - started_s
        peak_mb = peak_rss_mb(recorder.pid)
        bag = end(processes, streams, stop_file, bag, plain)
    sent = {}
    for file in directory.glob("*.sent"):
        sent |= json.loads(file.read_text(encoding="utf-8"))
    return judged(name, bag, sent, start_ns, used_s / elapsed_s, peak_mb, elapsed_s)


def end(processes: Processes, streams: list[str], stop_file: Path, bag: Path, plain: bool) -> Path:
    """Stop the publishers, then the recorder, and return the bag."""
    with RosClient("end", DOMAIN_ID) as client:         # one that does not mind that processes end
        if not plain:
            client.wait_until(lambda: client.node.count_publishers(topics.DIAGNOSTICS), 30, "the recorder")
        stop_file.touch()
        while not all((stop_file.parent / f"{stream}.sent").exists() for stream in streams):
            client.spin_for(0.01)
        if not plain:
            client.spin_for(0.1)        # the last images are on their way
            return Path(client.must_trigger(topics.RECORDER_SUCCESS, 60.0))
        client.wait_until(lambda: not processes["recorder"].running(), 60, "the plain recorder to close its bag")
    return bag


def judged(name, bag_directory: Path, sent, start_ns: int, cpu: float, peak_mb: float, duration_s: float) -> Result:
    with Bag(bag_directory) as bag:
        recorded = {topic: {stamp_ns for _, stamp_ns in bag.times(topic)} for topic in sent}
    missing = {}
    for topic, stamps in sent.items():
        since = [stamp for stamp in stamps if stamp >= start_ns]
        missing[topic] = (len(since), len(set(since) - recorded[topic]))
    megabytes = sum(file.stat().st_size for file in bag_directory.iterdir()) / 1e6
    audit = read_audit(bag_directory)
    verdict = "none" if audit is None else audit.verdict + ("" if audit.go else f": {'; '.join(audit.reasons)}")
    return Result(name, cpu, peak_mb, megabytes, duration_s, missing, verdict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of each recording (default 30)")
    parser.add_argument("--directory", type=Path, help="where to record (default: a temporary directory; removed at the end)")
    for name in ("--contract", "--publish", "--record", "--sent-file", "--stop-file"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish(load_contract(options.contract), options.publish, Path(options.sent_file), Path(options.stop_file))
        return 0
    if options.record:
        record_plainly(load_contract(options.contract), Path(options.record), Path(options.stop_file))
        return 0
    root = Path(tempfile.mkdtemp(prefix="rlco_bench_", dir=options.directory))
    try:
        contract_file = bench_contract(root)
        print(f"{os.cpu_count()} cores, load average before: {os.getloadavg()[0]:.1f}", flush=True)
        print("| recorder | messages sent | not in the bag | CPU of a core | peak RSS | to disk | audit |\n"
              "|---|---|---|---|---|---|---|", flush=True)
        for name, form, plain in (("recorder node, raw", "raw", False), ("rosbags, deserialised, raw", "raw", True),
                                  ("recorder node, JPEG", "jpeg", False)):
            result = measure(name, form, plain, root / name.replace(" ", "_"), contract_file, options.duration)
            print(result.row(), flush=True)
            shutil.rmtree(root / name.replace(" ", "_"))
        print(f"load average after: {os.getloadavg()[0]:.1f}")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
