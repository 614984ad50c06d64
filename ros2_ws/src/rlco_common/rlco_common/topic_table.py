"""Every topic of the graph: type, QoS, who sends, who listens. The one table that documentation and drills read. Pure."""

from dataclasses import dataclass

from rlco_common import topics
from rlco_common.contract import Contract
from rlco_common.episode import EVENT_TOPIC

# Names of the QoS profiles in rlco_common.ros, and why each is as it is.
QOS_REASONS = {
    "camera": "reliable, keep last 30: best effort loses most large images under load",
    "state": "reliable, keep last 100: no state is missed",
    "command": "reliable, keep last 1: a queued command must never replay late",
    "event": "reliable, keep last 10, transient local: who comes later is told what holds",
}


@dataclass(frozen=True)
class Topic:
    """One topic. type: `package/msg/Name`. qos: a key of QOS_REASONS. receivers: who needs it; the recorder takes most."""

    name: str
    type: str
    qos: str
    sender: str
    receivers: str
    meaning: str


def graph_topics(contract: Contract) -> tuple[Topic, ...]:
    """The topics of a cell with this contract."""
    names = contract.topics
    cameras = []
    for camera in contract.cameras.values():
        cameras += [
            Topic(camera.topic, "sensor_msgs/msg/Image", "camera", "camera or bridge", "policy, console, recorder",
                  "image, stamped when it was taken"),
            Topic(camera.compressed_topic, "sensor_msgs/msg/CompressedImage", "camera", "camera or bridge",
                  "recorder, if it records JPEG", "the same image as JPEG"),
            Topic(camera.info_topic, "sensor_msgs/msg/CameraInfo", "camera", "camera or bridge", "recorder",
                  "calibration of the camera"),
        ]
    return (
        *cameras,
        Topic(names.joint_states, "sensor_msgs/msg/JointState", "state", "arm or bridge", "policy, devices, recorder",
              "positions by joint name, in any order; rad, and m for the gripper's joint"),
        Topic(names.ee_pose, "geometry_msgs/msg/PoseStamped", "state", "arm or bridge", "gate, policy, recorder",
              "measured pose of the tool in the base frame"),
        Topic(names.target_pose, "geometry_msgs/msg/PoseStamped", "command", "gate alone", "arm or bridge, recorder",
              "pose that the arm is to go to, in the base frame"),
        Topic(names.gripper_command, "std_msgs/msg/Float64MultiArray", "command", "gate alone", "gripper or bridge, recorder",
              "one number: opening, 0 closed to 1 open; sent before the pose of its step"),
        Topic(topics.TELEOP_TWIST, "geometry_msgs/msg/TwistStamped", "command", "operator's device", "gate, recorder",
              "velocity of the tool along and about the base axes, m/s and rad/s; counts while the dead-man is held"),
        Topic(topics.TELEOP_GRIPPER, "std_msgs/msg/Float64", "command", "operator's device", "gate",
              "opening that the operator asks for, 0 closed to 1 open"),
        Topic(topics.TELEOP_DEADMAN, "std_msgs/msg/Bool", "command", "operator's device", "gate, recorder",
              "true while the dead-man is held, again and again; silence counts as released"),
        Topic(topics.ACTION_CHUNK, "trajectory_msgs/msg/JointTrajectory", "command", "policy", "gate, recorder",
              "actions, one point per control tick; joint_names are the action's names, the stamp is the observation's"),
        Topic(topics.SHADOW_CHUNK, "trajectory_msgs/msg/JointTrajectory", "command", "policy in shadow mode", "any ROS tool",
              "what the policy would have sent; nothing follows it"),
        Topic(topics.PLANNED_TARGET, "geometry_msgs/msg/PoseStamped", "command", "start node", "gate",
              "next point of a planned move; counts while the gate allows one"),
        Topic(topics.PLANNED_GRIPPER, "std_msgs/msg/Float64", "command", "start node", "gate",
              "opening that goes with the next point of a planned move"),
        Topic(topics.START_STATUS, "diagnostic_msgs/msg/DiagnosticArray", "state", "start node", "any ROS tool",
              "stage and progress of the way to the start, and how the last one ended"),
        Topic(topics.GATE_STATUS, "diagnostic_msgs/msg/DiagnosticArray", "state", "gate", "console, recorder",
              "state, source and counts of the gate, at every change and 5 times a second"),
        Topic(topics.DIAGNOSTICS, "diagnostic_msgs/msg/DiagnosticArray", "state", "every node", "console, any ROS tool",
              "health of every node, once a second"),
        Topic(topics.EVALUATION_OVERLAY, "sensor_msgs/msg/Image", "camera", "evaluator", "any ROS tool",
              "the wanted initial state over the live image, while the operator places the objects"),
        Topic(EVENT_TOPIC, "std_msgs/msg/String", "event", "bridge, recorder, gate, evaluator", "all",
              "JSON: what happens to the episode; its fields are under `Episode events` in docs/contract.md"),
        Topic(topics.SCENE, "std_msgs/msg/String", "state", "bridge", "scripted operator alone",
              "JSON: where everything in the simulated scene is; not recorded"),
    )
