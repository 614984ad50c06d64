"""The recording session as a whole, in separate processes: bridge, gate, scripted operator, recorder."""

import json
import time

import numpy as np
import pytest

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.messages import diagnostic_values
from rlco_common.pose import Pose
from rlco_common.seeds import REAL_DEMOS
from rlco_teleop.bags import Bag, find_episodes, read_audit, read_episode_metadata
from rlco_trainer.sessions import open_session

CONTRACT = load_contract()
DATA_TOPICS = (
    *(camera.topic for camera in CONTRACT.cameras.values()), *(camera.info_topic for camera in CONTRACT.cameras.values()),
    CONTRACT.topics.joint_states, CONTRACT.topics.ee_pose, CONTRACT.topics.target_pose, CONTRACT.topics.gripper_command,
    topics.TELEOP_TWIST, topics.TELEOP_DEADMAN,
)


def record(out, lockstep, seeds, look=lambda client: None):
    def driver(processes):
        processes.start_node("rlco_teleop.nodes.teleop_node", noise=0.1, lockstep=lockstep, use_sim_time=lockstep)
        return "/teleop"

    with open_session(CONTRACT, out, task="push_cube", domain="standin", lockstep=lockstep, operator="scripted",
                      driver=driver) as session:
        for seed in seeds:
            session.reset(seed)
            outcome = session.operate()
            assert outcome["success"], outcome
            session.client.must_trigger(topics.RECORDER_SUCCESS)
        look(session.client)
    return find_episodes(out)


def pose_of(item):
    position, orientation = item.message.pose.position, item.message.pose.orientation
    return Pose([position.x, position.y, position.z], [orientation.x, orientation.y, orientation.z, orientation.w])


@pytest.mark.long
def test_two_lock_step_runs_give_the_same_bags_and_only_the_gate_commands_the_arm(tmp_path, ros_domain):
    def only_the_gate(client):
        for topic in (CONTRACT.topics.target_pose, CONTRACT.topics.gripper_command):
            assert [info.node_name for info in client.node.get_publishers_info_by_topic(topic)] == ["gate"]

    seed = REAL_DEMOS[0]
    started = time.monotonic()
    [first] = record(tmp_path / "first", True, [seed], only_the_gate)
    [second] = record(tmp_path / "second", True, [seed])
    print(f"\ntwo sessions with one episode each: {time.monotonic() - started:.1f} s")
    assert read_episode_metadata(first).seed == read_episode_metadata(second).seed == seed
    audit = read_audit(first)
    assert audit == read_audit(second) and audit.go and not audit.warnings, "a warning that is false"
    with Bag(first) as a, Bag(second) as b:
        for topic in DATA_TOPICS:
            assert a.payloads(topic) == b.payloads(topic) != [], topic
            if topic != topics.TELEOP_DEADMAN:      # unstamped and sent by nobody's clock: its time is when it came
                assert [i.log_ns for i in a.messages(topic)] == [i.log_ns for i in b.messages(topic)], topic
        observed = [item.stamp_ns for item in a.messages(CONTRACT.topics.ee_pose)]
        assert (np.diff(observed) == CONTRACT.control_period_ns).all()
        assert [item.stamp_ns for item in a.messages(CONTRACT.topics.target_pose)] == observed[:-1]
        assert [item.log_ns for item in a.messages(CONTRACT.topics.gripper_command)] == observed[:-1]
        check_commands(a)


def check_commands(bag):
    """The gate sent what the operator meant, from the measured start on, and nothing had to be limited."""
    target = pose_of(bag.collect(CONTRACT.topics.ee_pose)[0])
    for twist, sent, gripper in zip(*(bag.collect(topic) for topic in (
            topics.TELEOP_TWIST, CONTRACT.topics.target_pose, CONTRACT.topics.gripper_command)), strict=True):
        linear, angular = twist.message.twist.linear, twist.message.twist.angular
        values = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]) * CONTRACT.control_period_s
        target = CONTRACT.compose_target(target, np.append(values, gripper.message.data[0]))
        assert np.abs(pose_of(sent).as_array() - target.as_array()).max() < 1e-12
    last = bag.collect(topics.GATE_STATUS)[-1].message.status[0]
    assert diagnostic_values(last).keys() <= {"state", "source", "policy_enabled", "episode_start_ns", "lead_m", "lead_rad"}


@pytest.mark.long
def test_in_real_time_the_arm_rests_between_reset_and_takeover(tmp_path, ros_domain):
    episodes = record(tmp_path, False, REAL_DEMOS[:2])
    assert [read_episode_metadata(episode).success for episode in episodes] == [True, True]
    for episode in episodes:
        audit = read_audit(episode)
        late = {"rate", "gap", "silent", "loss", "age", "jitter"}       # a busy machine may really make the stand-in late
        assert {warning.kind for warning in audit.warnings} <= late, audit.warnings
        assert not any(score.lost or score.dropped for score in audit.streams)
        with Bag(episode) as bag:
            taken_ns = bag.collect(CONTRACT.topics.target_pose)[0].stamp_ns
            before = [pose_of(item).position for item in bag.messages(CONTRACT.topics.ee_pose) if item.stamp_ns <= taken_ns]
            assert np.ptp(before, axis=0).max() < 1e-3, "an old target moved the arm after the reset"
            event = json.loads(bag.collect("/episode/event")[0].message.data)
            assert event["kind"] == "reset" and event["instruction"] == read_episode_metadata(episode).instruction
            steps = np.diff([pose_of(item).position for item in bag.messages(CONTRACT.topics.target_pose)], axis=0)
            assert np.abs(steps).max() <= CONTRACT.action.max_translation_m / 4 + 1e-9


