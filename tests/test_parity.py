"""One recorded episode gives byte-equal policy inputs live, from its bag and from the dataset; ROS equals in-process."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import rclpy
import torch
import yaml
from rclpy.executors import SingleThreadedExecutor

from rlco_common import topics
from rlco_common.observation import encode_image
from rlco_policy.checkpoint import load_policy
from rlco_policy.interface import ObsBatch
from rlco_policy.runner import observation_batch
from rlco_sim_bridge.twin import Twin
from rlco_teleop.bags import METADATA_KEY, read_episode_metadata
from rlco_trainer.dataset.align import align
from rlco_trainer.dataset.build import BuildOptions, build_dataset, read_streams
from rlco_trainer.dataset.reader import load_demos, read_sidecar
from rlco_trainer.sessions import open_session

pytestmark = pytest.mark.long

SEED = 3
TASKS = ("push_cube", "open_drawer")
POLICY_TOO = BuildOptions(keep_policy=True, ignore_audit=True)


@pytest.fixture(scope="module")
def episodes(contract, briefly_trained, tmp_path_factory, module_ros_domain):
    """One lock-step episode per task of a policy over ROS. The policy node runs in this process, so that its very inputs
    can be kept: [(stamp, inputs)]; bridge, gate and recorder are processes of their own. {task: (inputs, bag, outcome)}"""
    import os

    from rlco_policy import runner
    from rlco_policy.nodes import policy_node

    previous = os.environ.get("ROS_DOMAIN_ID")
    os.environ["ROS_DOMAIN_ID"] = str(module_ros_domain)
    out = tmp_path_factory.mktemp("parity")
    seen = []

    class KeepingRunner(runner.PolicyRunner):
        def infer(self, observation, instruction, *execution):
            actions = super().infer(observation, instruction, *execution)
            inputs = self.policy.preprocess(observation_batch(self.policy, [observation], [instruction]))
            seen.append((observation.stamp_ns, inputs))
            return actions

    rclpy.init(args=["--ros-args", "-p", f"checkpoint:={briefly_trained}", "-p", "lockstep:=true",
                     "-p", "use_sim_time:=true"])
    node = policy_node.PolicyNode(lambda checkpoint, contract, **_: KeepingRunner(load_policy(checkpoint, contract), contract))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    try:
        with open_session(contract, out, task="push_cube", domain="standin", lockstep=True, operator="policy",
                          driver=lambda processes: "/policy") as session:
            outcomes = {task: run_episode(session, task) for task in TASKS}
    finally:
        node.close()
        executor.shutdown()
        spinning.join(timeout=10)
        node.destroy_node()
        rclpy.try_shutdown()
        if previous is None:
            del os.environ["ROS_DOMAIN_ID"]
        else:
            os.environ["ROS_DOMAIN_ID"] = previous
    found = {}
    for task, (bag, outcome) in outcomes.items():
        stamps_ns = read_streams(contract, bag).images["front_camera"].stamps_ns    # the bridge showed other episodes, too
        found[task] = [(stamp, inputs) for stamp, inputs in seen if stamps_ns[0] <= stamp <= stamps_ns[-1]], bag, outcome
    return found


def run_episode(session, task):
    """(bag, outcome). A policy without skill may run into the gate's lead limit, which ends the episode ("faulted")."""
    session.task = task
    session.client.set_parameters("/sim", task=task)
    session.reset(SEED)
    outcome = session.run(lambda: session.client.set_bool(topics.GATE_ENABLE_POLICY, True),
                          lambda: session.client.set_bool(topics.GATE_ENABLE_POLICY, False))
    # marked as a success, because the dataset builder takes nothing else
    return Path(session.client.must_trigger(topics.RECORDER_SUCCESS)), outcome | {"faulted": session.faulted}


@pytest.fixture
def live(episodes):
    return episodes["push_cube"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_the_policy_looked_once_per_chunk(live, contract, briefly_trained):
    inputs, _, outcome = live
    chunk_ns = load_policy(briefly_trained, contract).spec.chunk * contract.control_period_ns
    stamps = [stamp for stamp, _ in inputs]
    assert len(stamps) >= 2
    assert set(np.diff(stamps)) == {chunk_ns}
    assert len(stamps) in (outcome["steps"] // 4, -(-outcome["steps"] // 4), outcome["steps"] // 4 + 1)


def test_bag_inputs_equal_live_inputs(live, contract, briefly_trained):
    inputs, bag, _ = live
    policy = load_policy(briefly_trained, contract)
    metadata = read_episode_metadata(bag)
    episode = align(contract, read_streams(contract, bag), metadata).episode
    rows = {int(stamp): row for row, stamp in enumerate(episode.stamps_ns)}
    compared = 0
    for stamp, live_inputs in inputs:
        if stamp not in rows:
            continue    # the picture of the end state, on which no command followed
        row = rows[stamp]
        obs = ObsBatch({name: torch.from_numpy(encode_image(images[row], 64)[None]) for name, images in episode.images.items()},
                       torch.from_numpy(episode.proprioception[row : row + 1]), [metadata.instruction])
        assert same(policy.preprocess(obs), live_inputs)
        compared += 1
    assert compared >= 2


def test_dataset_inputs_equal_live_inputs(live, contract, briefly_trained, tmp_path):
    inputs, bag, _ = live
    policy = load_policy(briefly_trained, contract)
    build_dataset(contract, [bag], tmp_path / "dataset", options=POLICY_TOO, quiet=True)
    demos = load_demos(tmp_path / "dataset", contract, policy.spec.image_size)
    batch = demos.every_frame(policy.spec.horizon)
    stored = policy.preprocess(ObsBatch({name: torch.from_numpy(images) for name, images in batch.images.items()},
                                        torch.from_numpy(batch.proprioception), batch.instructions))
    _, first = inputs[0]
    assert same({name: value[:1] for name, value in stored.items()}, first)


@pytest.mark.parametrize("task", TASKS)
def test_commands_over_ros_equal_those_in_process(episodes, task, contract, briefly_trained):
    """The same policy on the same initial state, without ROS, sends the same targets to the last bit."""
    _, bag, outcome = episodes[task]
    policy = load_policy(briefly_trained, contract)
    sent = read_streams(contract, bag).targets.values
    assert read_episode_metadata(bag).task == task
    twin = Twin(contract, task, "standin")
    observation, targets, results = twin.reset(SEED), [], []
    while len(targets) < len(sent):
        actions = policy.act(policy.preprocess(observation_batch(policy, [observation], [twin.instruction])))
        for action in actions[0].double().numpy()[: len(sent) - len(targets)]:
            results.append(twin.step(action))
            targets.append(twin.target)
        observation = twin.observe()
    twin.close()
    # until the session stops the policy, a chunk that is under way may go on past the end of the episode
    result = results[outcome["steps"] - 1]
    assert len(sent) == len(results) >= outcome["steps"] == result.steps > 4
    assert outcome["faulted"] or (result.success, result.failure, result.done) == (
        outcome["success"], outcome["failure"], True)
    for over_ros, in_process in zip(sent, targets, strict=True):
        assert over_ros.as_array().tolist() == in_process.as_array().tolist()


def test_the_bag_holds_the_gates_targets_not_the_measured_motion(live, contract):
    _, bag, _ = live
    streams = read_streams(contract, bag)
    episode = align(contract, streams, read_episode_metadata(bag)).episode
    targets = np.array([target.position for target in streams.targets.values])
    assert np.cumsum(episode.actions[:, :3], axis=0)[-1] == pytest.approx(targets[-1] - streams.ee_pose.values[0].position,
                                                                          abs=1e-5)
    measured = np.array([pose.position for pose in streams.ee_pose.values])
    assert np.abs(measured[1 : len(targets) + 1] - targets[: len(measured) - 1]).max() > 1e-3


def test_bags_that_cannot_be_used_are_left_out_by_name(live, contract, tmp_path):
    """Failed, unjudged and foreign episodes stay out of the dataset, each with its reason."""
    _, bag, _ = live
    changes = {
        "good": {},
        "failed": {"success": False},
        "cut": {"success": None, "repaired": True},
        "foreign": {"contract": contract.to_json().replace('"control_rate_hz":5.0', '"control_rate_hz":10.0')},
    }
    for name, change in changes.items():
        copy = tmp_path / "bags" / name
        shutil.copytree(bag, copy)
        information = yaml.safe_load((copy / "metadata.yaml").read_text())
        custom = information["rosbag2_bagfile_information"]["custom_data"]
        custom[METADATA_KEY] = json.dumps(json.loads(custom[METADATA_KEY]) | change)
        (copy / "metadata.yaml").write_text(yaml.safe_dump(information))
    report = build_dataset(contract, [tmp_path / "bags"], tmp_path / "dataset", options=POLICY_TOO, quiet=True)
    assert set(report.kept) == {"good"}
    assert "marked as failed" in report.left_out["failed"]
    assert "cut off and repaired" in report.left_out["cut"]
    assert "control_rate_hz: 5.0 -> 10.0" in report.left_out["foreign"]
    assert read_sidecar(tmp_path / "dataset")["lineage"]["left_out"].keys() == {"failed", "cut", "foreign"}
