"""How many times faster than real time `rlco dataset build` is: 640x480 cameras at 30 Hz, joints and poses at 100 Hz.

    python benchmarks/dataset_build.py --cameras 2 --episodes 6 --seconds 30

The bags are written by the recorder's own writer, with the message rates of a real cell; every picture has sensor noise,
because noise is what PNG compression costs. Prints seconds recorded per second of building, and that per camera.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlco_common.contract import CameraSpec, Contract, load_contract
from rlco_common.episode import EVENT_TOPIC, EpisodeEvent, EpisodeMetadata
from rlco_teleop.bags import typestore
from rlco_teleop.episode_writer import EpisodeWriter, Stream

CAMERA_HZ, STATE_HZ, COMMAND_HZ = 30, 100, 20
START_NS = 1_700_000_000_000_000_000
PICTURES = 60       # different ones; they repeat


def contract_with(cameras: int, width: int = 640, height: int = 480) -> Contract:
    """The shipped contract with that many cameras of that size."""
    names = [f"camera_{k}" for k in range(cameras)]
    return replace(load_contract(), cameras={
        name: CameraSpec(f"/{name}/image_raw", f"{name}_optical_frame", width, height, "rgb8", 0.2) for name in names})


def pictures(width: int = 640, height: int = 480, noise: float = 2.0) -> list[bytes]:
    """A tabletop-like scene in which something moves, with sensor noise of that standard deviation."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    table = np.stack([90 + 60 * y / height, 80 + 40 * x / width, 70 + 20 * np.sin(x / 30)], axis=-1)
    made = []
    for k in range(PICTURES):
        scene = table.copy()
        left = round((width - 80) * k / PICTURES)
        scene[height // 3 : height // 3 + 80, left : left + 80] = (200, 40, 40)
        made.append(np.clip(scene + rng.normal(0, noise, scene.shape), 0, 255).astype(np.uint8).tobytes())
    return made


class SyntheticBag:
    """Writes episodes with the recorder's own writer; the arm draws a circle, the gripper opens and closes.

    change: given (topic, seconds, message), returns the message to write in its place, or None to drop it.
    """

    def __init__(self, contract: Contract, root: Path, change: Callable = lambda topic, time_s, message: message):
        self.contract, self.root, self.change = contract, root, change
        self.types = typestore().types
        camera = next(iter(contract.cameras.values()))
        self.pictures = pictures(camera.width, camera.height)

    def write(self, name: str, seconds: float, *, success: bool | None = True, events: Sequence[tuple[float, str]] = (),
              **about) -> Path:
        """One episode. events: (seconds, kind) of takeovers and hand-backs. about: fields of its metadata."""
        contract, names = self.contract, self.contract.topics
        metadata = replace(EpisodeMetadata(name, "push_cube", "push the red cube", "standin", "synthetic", 0, contract.hash,
                                           contract.to_json()), **about)
        streams = [*(Stream(camera.topic, "sensor_msgs/msg/Image", depth=30) for camera in contract.cameras.values()),
                   Stream(names.joint_states, "sensor_msgs/msg/JointState"),
                   Stream(names.ee_pose, "geometry_msgs/msg/PoseStamped"),
                   Stream(names.target_pose, "geometry_msgs/msg/PoseStamped"),
                   Stream(names.gripper_command, "std_msgs/msg/Float64MultiArray"), Stream(EVENT_TOPIC, "std_msgs/msg/String")]
        writer = EpisodeWriter(self.root, metadata, streams)
        schedule = [*self._schedule(seconds), *((round(time_s * 1e9), self._event(kind)) for time_s, kind in events)]
        for stamp_ns, write in sorted(schedule, key=lambda pair: pair[0]):
            write(writer, START_NS + stamp_ns, stamp_ns * 1e-9)
        return writer.finish(replace(metadata, success=success))

    def _schedule(self, seconds: float):
        for rate, write in ((CAMERA_HZ, self._images), (STATE_HZ, self._state), (COMMAND_HZ, self._command)):
            yield from ((round(k * 1e9 / rate), write) for k in range(round(seconds * rate)))

    def _put(self, writer, topic: str, msgtype: str, stamp_ns: int, message) -> None:
        message = self.change(topic, (stamp_ns - START_NS) * 1e-9, message)
        if message is not None:
            writer.write(topic, stamp_ns, stamp_ns, bytes(typestore().serialize_cdr(message, msgtype)))

    def _event(self, kind: str):
        def write(writer, stamp_ns: int, time_s: float) -> None:
            text = EpisodeEvent(kind, stamp_ns=stamp_ns).to_json()
            self._put(writer, EVENT_TOPIC, "std_msgs/msg/String", stamp_ns, self.types["std_msgs/msg/String"](data=text))

        return write

    def _header(self, stamp_ns: int, frame: str):
        time_type, header_type = self.types["builtin_interfaces/msg/Time"], self.types["std_msgs/msg/Header"]
        return header_type(stamp=time_type(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id=frame)

    def _images(self, writer, stamp_ns: int, time_s: float) -> None:
        image_type = self.types["sensor_msgs/msg/Image"]
        for k, camera in enumerate(self.contract.cameras.values()):
            picture = self.pictures[(round(time_s * CAMERA_HZ) + 7 * k) % PICTURES]
            self._put(writer, camera.topic, "sensor_msgs/msg/Image", stamp_ns, image_type(
                header=self._header(stamp_ns, camera.frame), height=camera.height, width=camera.width, encoding="rgb8",
                is_bigendian=0, step=camera.width * 3, data=np.frombuffer(picture, np.uint8)))

    def _state(self, writer, stamp_ns: int, time_s: float) -> None:
        robot = self.contract.robot
        position = robot.gripper_joint_position(self._opening(time_s - 0.1))
        positions = np.array([*np.full(len(robot.arm_joints), 0.1), position])
        self._put(writer, self.contract.topics.joint_states, "sensor_msgs/msg/JointState", stamp_ns,
                  self.types["sensor_msgs/msg/JointState"](
                      header=self._header(stamp_ns, ""), name=[*robot.arm_joints, robot.gripper_joint], position=positions,
                      velocity=np.zeros(0), effort=np.zeros(0)))
        self._pose(writer, self.contract.topics.ee_pose, stamp_ns, time_s - 0.1)

    def _command(self, writer, stamp_ns: int, time_s: float) -> None:
        self._put(writer, self.contract.topics.gripper_command, "std_msgs/msg/Float64MultiArray", stamp_ns,
                  self.types["std_msgs/msg/Float64MultiArray"](
                      layout=self.types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0),
                      data=np.array([self._opening(time_s)])))
        self._pose(writer, self.contract.topics.target_pose, stamp_ns, time_s)

    def _pose(self, writer, topic: str, stamp_ns: int, time_s: float) -> None:
        types = self.types
        self._put(writer, topic, "geometry_msgs/msg/PoseStamped", stamp_ns, types["geometry_msgs/msg/PoseStamped"](
            header=self._header(stamp_ns, self.contract.robot.base_frame),
            pose=types["geometry_msgs/msg/Pose"](
                position=types["geometry_msgs/msg/Point"](
                    x=0.5 + 0.1 * np.cos(0.8 * max(0.0, time_s)), y=0.1 * np.sin(0.8 * max(0.0, time_s)), z=0.2),
                orientation=types["geometry_msgs/msg/Quaternion"](x=1.0, y=0.0, z=0.0, w=0.0))))

    @staticmethod
    def _opening(time_s: float) -> float:
        return 1.0 if time_s % 4.0 < 2.0 else 0.0


def main() -> None:
    from rlco_trainer.dataset.build import build_dataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of an episode")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="directory for bags and dataset, reused when it holds bags")
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="rlco_build_"))
    contract = contract_with(options.cameras)
    bags = root / "bags"
    if not bags.is_dir():
        writer = SyntheticBag(contract, bags)
        for k in range(options.episodes):
            writer.write(f"episode_{k:03d}", options.seconds)
    from rlco_trainer.dataset.schema import lerobot_dataset_class

    lerobot_dataset_class()     # its import takes seconds, once
    started_s, cpu_s = time.perf_counter(), sum(os.times()[:4])
    report = build_dataset(contract, [bags], root / "dataset", overwrite=True, workers=options.workers)
    taken_s, cpu_s = time.perf_counter() - started_s, sum(os.times()[:4]) - cpu_s
    recorded_s = options.seconds * options.episodes
    print(report.text())
    recorded_s *= options.cameras
    print(f"{recorded_s:.0f} camera seconds built in {taken_s:.1f} s: {recorded_s / taken_s:.1f} times real time per camera at "
          f"a load of {os.getloadavg()[0]:.1f}; {cpu_s:.1f} s of processor time, so {2 * recorded_s / cpu_s:.1f} times on two "
          "cores that do nothing else")
    if not options.keep:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
