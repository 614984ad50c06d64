"""The real graph on the stand-in, with a relay in the streams that a fault disturbs, and the eyes and hands of a drill.

    sim -> relay -> gate, policy, recorder, teleop          (camera, joint states, tool pose)
    teleop -> relay -> gate      policy -> relay -> gate    (twist, dead-man, gripper; action chunks)

The operator is the gamepad device, whose pad is played by this process; so a killed or cut device is a real one. The policy
is the given checkpoint, or a policy that nobody trained, which moves the arm a little and is as fast as a trained one.
"""

import math
import os
import time
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.messages import diagnostic_values, pose_from_msg
from rlco_common.processes import Processes
from rlco_common.ros import COMMAND_QOS, STATE_QOS
from rlco_common.ros_client import RosClient, Timeout
from rlco_common.seeds import REAL_DEMOS
from rlco_trainer.faults.base import NotTried
from rlco_trainer.sessions import in_episode, reset_scene

START_TIMEOUT_S = 120.0         # the first scene of a process compiles its shaders
GATE_RATE_HZ = 20.0
GATE_PERIOD_S = 1.0 / GATE_RATE_HZ
CIRCLE_S = 4.0                  # the pad draws a circle in this time
PAD_PERIOD_S = 0.05
PRESS_S = 3.0                   # in which an arm moves whose operator holds the dead-man
QUIET_S = 0.3                   # an arm whose target stood still this long has stopped
SLACK_S = 0.15                  # for messages under way on a busy machine
SOURCE = "/source"
MODULES = {
    "sim": "rlco_sim_bridge.nodes.bridge_node",
    "relay": "rlco_trainer.nodes.relay_node",
    "gate": "rlco_teleop.nodes.gate_node",
    "recorder": "rlco_teleop.nodes.recorder_node",
    "teleop": "rlco_teleop.nodes.teleop_node",
    "policy": "rlco_policy.nodes.policy_node",
}


class FaultGraph:
    """Use as a context manager. Nodes are started when a fault needs them, and go on for the next one."""

    def __init__(self, directory: Path, domain_id: int | None = None, contract_source: str = "panda_tabletop",
                 checkpoint: Path | None = None):
        self.contract, self._contract_source = load_contract(contract_source), contract_source
        self.bags, self._directory, self._checkpoint = directory / "bags", directory, checkpoint
        domain_id = domain_id or int(os.environ.get("ROS_DOMAIN_ID", 1 + os.getpid() % 90))
        self.processes = Processes(directory / "logs", domain_id)
        self.client = RosClient("fault_drill", domain_id, self.processes.check)
        names, client = self.contract.topics, self.client
        self.camera = next(iter(self.contract.cameras.values()))
        self.targets = client.subscribe(PoseStamped, names.target_pose, STATE_QOS)
        self.poses = client.subscribe(PoseStamped, names.ee_pose, STATE_QOS)
        self.status = client.subscribe(DiagnosticArray, topics.GATE_STATUS, STATE_QOS)
        self.diagnostics = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        self.chunks = client.subscribe(JointTrajectory, topics.ACTION_CHUNK, COMMAND_QOS)
        self.pad_held = False
        self._pad = client.publisher(Joy, "/joy", STATE_QOS)
        client.node.create_timer(PAD_PERIOD_S, self._play_pad)
        self._started_with: dict[str, dict] = {}
        self._seeds = iter(REAL_DEMOS)

    def __enter__(self) -> "FaultGraph":
        return self

    def __exit__(self, *_) -> None:
        self.client.close()
        self.processes.stop_all()

    # -- processes

    def start(self, *names: str, **parameters) -> None:
        """Start nodes that do not run yet, or run with other parameters; does not wait for them."""
        for name in names:
            if name in self._started_with:
                if self._started_with[name] == parameters:
                    continue
                self.processes.stop(name)
            self._started_with[name] = parameters
            self.processes.start_node(MODULES[name], name, self._remaps(name), contract=self._contract_source,
                                      **self._parameters(name), **parameters)

    def require(self, *names: str, **parameters) -> None:
        """Start them and wait until they are active."""
        self.start(*names, **parameters)
        for name in names:
            if name != "relay":
                self.client.wait_active(f"/{name}", START_TIMEOUT_S)
        if "relay" in names:
            self.disturb("", START_TIMEOUT_S)

    def kill(self, name: str) -> None:
        """kill -9."""
        self.processes.kill(name)
        del self._started_with[name]

    def pid(self, name: str) -> int:
        return self.processes[name].pid

    def _remaps(self, name: str) -> list[str]:
        arm = self.contract.topics
        behind = {"sim": (self.camera.topic, arm.joint_states, arm.ee_pose), "policy": (topics.ACTION_CHUNK,),
                  "teleop": (topics.TELEOP_TWIST, topics.TELEOP_DEADMAN, topics.TELEOP_GRIPPER)}.get(name, ())
        return ["--ros-args", *(part for topic in behind for part in ("-r", f"{topic}:={SOURCE}{topic}"))] if behind else []

    def _parameters(self, name: str) -> dict:
        arm = self.contract.topics
        if name == "policy":
            return {"checkpoint": str((self._checkpoint or untrained_policy(self.contract, self._directory)).absolute())}
        return {
            "sim": {"task": "push_cube", "domain": "standin"},
            "relay": {"topics": " ".join((self.camera.topic, arm.joint_states, arm.ee_pose, topics.ACTION_CHUNK,
                                          topics.TELEOP_TWIST, topics.TELEOP_DEADMAN, topics.TELEOP_GRIPPER))},
            "gate": {"rate_hz": GATE_RATE_HZ},
            "recorder": {"output_directory": str(self.bags.absolute()), "operator": "drill", "min_free_mb": 1,
                         "stop_free_mb": 1},
            "teleop": {"device": "gamepad"},
        }[name]

    # -- hands

    def disturb(self, text: str, timeout_s: float = 10.0) -> None:
        """What the relay does from now on, as 'TOPIC=KIND TOPIC=KIND:AMOUNT'; empty: it carries everything."""
        self.client.set_parameters("/relay", timeout_s, disturb=text)

    def begin(self) -> None:
        """A new episode: scene reset, nobody in charge, nothing latched, nothing disturbed or recorded."""
        self.pad_held = False
        self.disturb("")
        if "recorder" in self._started_with:
            self.client.trigger(topics.RECORDER_DISCARD)
        self._prepared(lambda: self.client.wait_until(lambda: self.client.trigger(topics.GATE_REARM)[0], 5, "re-arming"))
        start_ns = reset_scene(self.client, next(self._seeds))
        self._prepared(lambda: self.client.wait_until(
            lambda: self.state() == "IDLE" and in_episode(self.status.last, start_ns) and len(self.poses), 5, "an idle gate"))
        for inbox in (self.targets, self.poses, self.diagnostics, self.chunks):
            inbox.clear()

    def drive(self) -> None:
        """The operator takes the dead-man and moves the arm in a circle. A press that the device has missed, because it had
        not yet seen the button up or the pad fell silent for a moment, is repeated."""
        self._prepared(lambda: self.client.wait_until(self._pressed, 30, "the arm to be driven"))

    def _pressed(self) -> bool:
        self.pad_held = False
        self.client.spin_for(2 * PAD_PERIOD_S)
        self.pad_held = True
        deadline = time.monotonic() + PRESS_S
        while self.travelled_m() <= 0.01 and time.monotonic() < deadline:
            self.client.spin_for(0.02)
        return self.travelled_m() > 0.01

    def let_go(self) -> None:
        """The operator releases the dead-man; wait until everything that the device has sent is older than a command may be."""
        self.pad_held = False
        self._prepared(lambda: self.client.wait_for_message(
            Bool, SOURCE + topics.TELEOP_DEADMAN, lambda message: not message.data, COMMAND_QOS, 10.0))
        self.client.spin_for(self.contract.limits.command_timeout_s + SLACK_S)

    def hand_over(self) -> None:
        """The policy moves the arm."""
        self._prepared(lambda: self.client.wait_until(
            lambda: self.client.set_bool(topics.GATE_ENABLE_POLICY, True)[0], 5, "the hand-over"))
        self._prepared(lambda: self.client.wait_until(
            lambda: self.travelled_m() > 0.002 and len(self.chunks) > 1, 20, "the policy to move the arm"))

    def record(self) -> None:
        """Start an episode; the recorder refuses until it has heard every stream."""
        self._prepared(lambda: self.client.wait_until(
            lambda: self.client.trigger(topics.RECORDER_START)[0], 15, "the recorder to start"))

    def saved(self) -> Path:
        """End the episode as a success; its bag."""
        return Path(self.client.must_trigger(topics.RECORDER_SUCCESS))

    def spin(self, duration_s: float) -> None:
        self.client.spin_for(duration_s)

    def _prepared(self, wait) -> None:
        try:
            wait()
        except Timeout as error:
            raise NotTried(f"{error}; logs are in {self.processes.log_directory}") from error

    def _play_pad(self) -> None:
        angle = 2 * math.pi * time.monotonic() / CIRCLE_S
        buttons = [0] * 15
        buttons[10] = int(self.pad_held)
        self._pad.publish(Joy(axes=[math.sin(angle), math.cos(angle), 0.0, 0.0], buttons=buttons))

    # -- eyes

    def state(self) -> str:
        return self.status.last.status[0].message if len(self.status) else ""

    def count(self, cause: str) -> int:
        """How often the gate has refused or limited something for this cause."""
        return int(diagnostic_values(self.status.last.status[0]).get(cause, 0)) if len(self.status) else 0

    def target_path(self) -> np.ndarray:
        """[n, 7] position and quaternion of every target since `begin`."""
        return np.array([pose_from_msg(message).as_array() for message in self.targets.messages]).reshape(-1, 7)

    def travelled_m(self) -> float:
        return float(np.linalg.norm(np.diff(self.target_path()[:, :3], axis=0), axis=1).sum()) if len(self.targets) else 0.0

    def longest_step_m(self) -> float:
        """The longest way between one target and the next since `begin`."""
        steps = np.linalg.norm(np.diff(self.target_path()[:, :3], axis=0), axis=1)
        return float(steps.max()) if len(steps) else 0.0

    def last_move_ns(self) -> int:
        """Arrival (monotonic) of the last target that differed from the one before it; 0: there was none."""
        moved = np.abs(np.diff(self.target_path(), axis=0)).max(axis=1) > 0 if len(self.targets) > 1 else np.array([])
        return self.targets.arrivals_ns[int(np.flatnonzero(moved)[-1]) + 1] if moved.any() else 0

    def stopped_after_s(self, since_ns: int, limit_s: float = 5.0) -> float:
        """Wait until the target stands still while targets go on; how long after `since_ns` it moved for the last time."""
        def still():
            arrivals = self.targets.arrivals_ns
            return arrivals and arrivals[-1] > since_ns and arrivals[-1] - max(self.last_move_ns(), since_ns) > QUIET_S * 1e9

        self.client.wait_until(still, limit_s, "the arm's target to stand still")
        return max(0.0, (self.last_move_ns() - since_ns) / 1e9)

    def status_of(self, name: str):
        """The newest DiagnosticStatus of this name, or None."""
        message = self.diagnostics.find(lambda message: any(status.name == name for status in message.status))
        return None if message is None else next(status for status in message.status if status.name == name)

    def warning(self, kinds: tuple[str, ...], topic: str) -> str | None:
        """The kind of a warning of the recorder's audit that holds now, or None."""
        status = self.status_of("recorder: audit")
        keys = {item.key for item in status.values} if status else set()
        return next((kind for kind in kinds if f"{kind} {topic}" in keys), None)


def untrained_policy(contract, directory: Path) -> Path:
    """A checkpoint with small random weights."""
    import torch

    from rlco_policy.checkpoint import save_policy
    from rlco_policy.registry import create_policy
    from rlco_policy.statistics import Statistics

    path = directory / "untrained"
    if not path.exists():
        names = contract.proprioception_names
        readings = np.random.default_rng(0).normal(0.5, 0.2, (100, len(names)))
        policy = create_policy("compact_flow", contract, Statistics.from_proprioception(names, readings), seed=0)
        with torch.no_grad():
            for weights in policy.param_groups()["policy"]:
                weights.mul_(0.5)
        save_policy(policy, path)
    return path


def end_of_chunk_ns(contract, message: JointTrajectory) -> int:
    """Stamp at which the last action of a chunk is over."""
    stamp = message.header.stamp
    return stamp.sec * 10**9 + stamp.nanosec + len(message.points) * contract.control_period_ns


