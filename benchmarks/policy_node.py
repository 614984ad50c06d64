"""What the policy node costs, and whether a slow model leaves gaps. Real node and gate, a synthetic robot, synthetic models.

Overhead: from the callback of an image (224x224, camera 640x480 as well) to the published chunk, less the model's own time.
Gaps: a model that takes 300 ms, horizon 8; the arm may not rest in a single step of the gate. Run: make bench-policy
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.contract import DEFAULT_CONTRACT, Contract, contract_directory, load_contract
from rlco_common.messages import pose_from_msg
from rlco_common.pose import Pose
from rlco_common.processes import Processes
from rlco_common.ros import (
    CAMERA_QOS,
    COMMAND_QOS,
    STATE_QOS,
    image_to_msg,
    joint_state_to_msg,
    pose_to_msg,
    run_node,
    stamp_from_ns,
    stamp_to_ns,
)
from rlco_common.ros_client import RosClient
from rlco_common.strict import load_yaml
from rlco_policy.interface import PolicySpec
from rlco_policy.nodes.policy_node import SWITCH_INTERVAL_S, PolicyNode
from rlco_policy.runner import PolicyRunner

DOMAIN_ID = 1 + os.getpid() % 90
CAMERA_HZ, STATE_HZ = 30.0, 100.0
IMAGE_SIZE, HORIZON, CHUNK = 224, 8, 4
STEP_M = 0.0004             # of the synthetic policy along x: small, so that long runs stay inside the workspace


def bench_contract(directory: Path, rate_hz: float, width: int, height: int) -> Path:
    """The shipped contract at another control rate, with another picture."""
    data = load_yaml(contract_directory() / f"{DEFAULT_CONTRACT}.yaml") | {"control_rate_hz": rate_hz}
    for camera in data["cameras"].values():
        camera |= {"width": width, "height": height}
    path = directory / f"bench_{rate_hz:g}_{width}x{height}.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


# -- the node under test, in a process of its own

class SyntheticPolicy:
    """What a runner needs of a policy; every inference takes `model_s`, give or take a tenth."""

    def __init__(self, contract: Contract, model_s: float, chunk: int):
        self.contract, self.model_s, self.real_time_chunking = contract, model_s, True
        self.spec = PolicySpec(7, HORIZON, chunk, len(contract.proprioception_names), tuple(contract.cameras), IMAGE_SIZE,
                               "flow")
        self.took_s = 0.0
        self._rng = np.random.default_rng(0)
        self._actions = torch.zeros(1, HORIZON, 7)
        self._actions[:, :, 0], self._actions[:, :, 6] = STEP_M, 1.0

    def example_inputs(self):
        return {}

    def preprocess(self, batch):
        return {"images": torch.stack(list(batch.images.values()), 1), "proprio": batch.proprio}

    def act(self, inputs, *, temperature, generator, steps=None, prev_chunk=None, delay=0):
        started = time.monotonic()
        time.sleep(self.model_s * self._rng.uniform(0.9, 1.1))
        self.took_s = time.monotonic() - started
        return self._actions[:, : steps or self.spec.chunk]


class TimedNode(PolicyNode):
    """Notes, per chunk: its stamp, when its image came, when it was published, the model's share, and the processor time of
    the whole process in between, which other jobs on the machine do not lengthen."""

    def __init__(self, model_s: float, chunk: int, file: Path):
        def open_synthetic(checkpoint, contract, **_):
            self.policy = SyntheticPolicy(contract, model_s, chunk)
            runner = PolicyRunner(self.policy, contract)
            runner.warm_up()
            return runner

        self.arrived, self.times, self.file = {}, [], file
        super().__init__(open_synthetic)

    def _on_image(self, name, message):
        self.arrived[stamp_to_ns(message.header.stamp)] = time.monotonic(), time.process_time()
        super()._on_image(name, message)

    def _publish(self, actions, stamp_ns):
        super()._publish(actions, stamp_ns)
        came, came_cpu = self.arrived.get(stamp_ns, (None, 0.0))
        self.times.append((stamp_ns, came, time.monotonic(), self.policy.took_s, time.process_time() - came_cpu))

    def close(self):
        super().close()
        self.file.write_text(json.dumps(self.times), encoding="utf-8")


# -- the synthetic robot

@dataclass
class Run:
    """times: of the node, see TimedNode. targets: (monotonic seconds, x) of the gate's commands. reports: (monotonic seconds,
    values) of the node's diagnostics. chunks: (monotonic seconds, stamp ns) as they arrived. wall_ns: of monotonic 0."""

    times: list
    targets: list[tuple[float, float]]
    reports: list[tuple[float, dict]]
    chunks: list[tuple[float, int]]
    wall_ns: int


def run_robot(directory: Path, contract_file: Path, duration_s: float, model_s: float, chunk: int, asynchronous: bool) -> Run:
    """Node, gate and robot for a while; the arm is wherever it was told to be."""
    contract = load_contract(contract_file)
    [camera] = contract.cameras.values()
    times_file = directory / "times.json"
    times_file.unlink(missing_ok=True)
    with (Processes(directory / "logs", DOMAIN_ID) as processes, RosClient("robot", DOMAIN_ID, processes.check) as client):
        processes.start("policy", [
            sys.executable, __file__, "--node", str(times_file), "--model", str(model_s), "--chunk", str(chunk), "--ros-args",
            "-p", f"contract:={contract_file}", "-p", "instruction:=push the red cube", "-p", f"asynchronous:={asynchronous}"])
        processes.start_node("rlco_teleop.nodes.gate_node", contract=str(contract_file))
        images = client.publisher(Image, camera.topic, CAMERA_QOS)
        joints = client.publisher(JointState, contract.topics.joint_states, STATE_QOS)
        poses = client.publisher(PoseStamped, contract.topics.ee_pose, STATE_QOS)
        targets = client.subscribe(PoseStamped, contract.topics.target_pose, COMMAND_QOS)
        chunks = client.subscribe(JointTrajectory, topics.ACTION_CHUNK, COMMAND_QOS)
        reports = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        client.wait_active("/policy", 60.0)
        client.wait_active("/gate", 60.0)
        for publisher in (images, joints, poses):
            client.wait_until(lambda p=publisher: p.get_subscription_count(), 20, f"a subscriber of {publisher.topic}")
        picture = np.random.default_rng(0).integers(0, 256, camera.shape, dtype=np.uint8)
        message, pose = image_to_msg(picture, camera.frame, 1), Pose([0.45, 0.0, 0.3], [1.0, 0.0, 0.0, 0.0])
        started = next_image = next_state = time.monotonic()
        enabled = False
        while (now := time.monotonic()) < started + duration_s:
            stamp_ns = time.time_ns()
            if now >= next_state:
                next_state += 1 / STATE_HZ
                pose = pose_from_msg(targets.last) if targets.last is not None else pose
                joints.publish(joint_state_to_msg(contract, np.zeros(7), 1.0, stamp_ns))
                poses.publish(pose_to_msg(pose, contract.robot.base_frame, stamp_ns))
            if now >= next_image:
                next_image += 1 / CAMERA_HZ
                joints.publish(joint_state_to_msg(contract, np.zeros(7), 1.0, stamp_ns))
                poses.publish(pose_to_msg(pose, contract.robot.base_frame, stamp_ns))
                message.header.stamp = stamp_from_ns(stamp_ns)
                images.publish(message)
            if not enabled and now > started + 1.0:
                enabled = client.set_bool(topics.GATE_ENABLE_POLICY, True)[0]
            client.spin_for(max(0.0, min(next_state, next_image) - time.monotonic()))
        watched = [(at * 1e-9, {v.key: v.value for v in m.status[0].values})
                   for m, at in zip(reports.messages, reports.arrivals_ns, strict=True) if m.status[0].name == "policy"]
    return Run(json.loads(times_file.read_text(encoding="utf-8")),
               [(at * 1e-9, m.pose.position.x) for m, at in zip(targets.messages, targets.arrivals_ns, strict=True)], watched,
               [(at * 1e-9, stamp_to_ns(m.header.stamp)) for m, at in zip(chunks.messages, chunks.arrivals_ns, strict=True)],
               time.time_ns() - time.monotonic_ns())


def rests(targets: list[tuple[float, float]]) -> tuple[int, int, float]:
    """(steps of the gate since the arm first moved, steps without motion, longest rest in seconds)."""
    moved = np.diff([x for _, x in targets]) != 0.0
    if not moved.any():
        return 0, 0, float("inf")
    first = int(np.argmax(moved))
    moved, at = moved[first:], [when for when, _ in targets][first + 1:]
    longest, since = 0.0, None
    for now, moving in zip(at, moved, strict=True):
        since = None if moving else since if since is not None else now
        longest = max(longest, 0.0 if since is None else now - since + 1 / 20)
    return len(moved), int((~moved).sum()), longest


# -- the tables

def overhead_row(root: Path, width: int, height: int, duration_s: float) -> str:
    """A null model that looks at every tick of 20 Hz."""
    run = run_robot(root, bench_contract(root, 20.0, width, height), duration_s, 0.0, 1, True)
    own_ms = np.array([1e3 * (out - came - model) for _, came, out, model, _ in run.times if came is not None])[5:]
    cpu_ms = np.array([1e3 * cpu for _, came, _, _, cpu in run.times if came is not None])[5:]
    seen = {stamp: at for at, stamp in run.chunks}
    whole_ms = np.array([1e3 * (seen[stamp] - (stamp - run.wall_ns) * 1e-9) for stamp, *_ in run.times if stamp in seen])[5:]
    quantiles = [np.percentile(values, q) for values in (own_ms, cpu_ms, whole_ms) for q in (50, 99)]
    return f"| {width}x{height} | {len(own_ms)} | " + " | ".join(f"{value:.1f} ms" for value in quantiles) + " |"


def gap_row(root: Path, rate_hz: float, asynchronous: bool, duration_s: float) -> tuple[str, Run]:
    run = run_robot(root, bench_contract(root, rate_hz, IMAGE_SIZE, IMAGE_SIZE), duration_s, 0.3, CHUNK, asynchronous)
    steps, still, longest_s = rests(run.targets)
    values = run.reports[-1][1]
    mode = "asynchronous" if asynchronous else "synchronous"
    if not steps:
        return f"| {rate_hz:g} Hz | {mode} | 0 | never moved: every chunk is over before it arrives | | | |", run
    row = (f"| {rate_hz:g} Hz | {mode} | {steps} | {still} | {longest_s * 1e3:.0f} ms | {values.get('slowdown', 1)} | "
           f"{values.get('delay_steps', '-')} |")
    return row, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=float, default=20.0, help="seconds of each run (default 20)")
    parser.add_argument("--plot", type=Path, help="also draw the run at 5 Hz into this PNG file")
    parser.add_argument("--node", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    options, _ = parser.parse_known_args()
    if options.node:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        return run_node(lambda: TimedNode(options.model, options.chunk, Path(options.node)))
    print(f"{os.cpu_count()} cores, load average before: {os.getloadavg()[0]:.1f}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="rlco_bench_") as directory:
        root = Path(directory)
        print("| camera | chunks | node, median | p99 | of it processor time, median | p99 | "
              "image to chunk over ROS, median | p99 |\n"
              "|---|---|---|---|---|---|---|---|", flush=True)
        for width, height in ((224, 224), (640, 480)):
            print(overhead_row(root, width, height, options.duration), flush=True)
        print("\n| control rate | execution | gate steps | without motion | longest rest | slowdown | delay, steps |\n"
              "|---|---|---|---|---|---|---|", flush=True)
        runs = {}
        for rate_hz in (5.0, 10.0, 20.0):
            for asynchronous in (True, False):
                row, runs[rate_hz, asynchronous] = gap_row(root, rate_hz, asynchronous, options.duration)
                print(row, flush=True)
    if options.plot:
        from policy_node_plot import draw

        draw(runs[5.0, True], runs[5.0, False], 0.2, HORIZON, CHUNK, options.plot)
    print(f"\nload average after: {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
