"""The layouts for RViz and Foxglove show topics that exist, with displays for their types."""

import json
import re
from pathlib import Path

import pytest
import yaml

from rlco_common.contract import load_contract
from rlco_common.resources import package_share
from rlco_common.ros import message_class
from rlco_common.topic_table import graph_topics

LAYOUTS = Path(__file__).resolve().parent.parent / "ros2_ws" / "src" / "rlco_teleop" / "layouts"
RVIZ_TYPES = {"rviz_default_plugins/Pose": "geometry_msgs/msg/PoseStamped",
              "rviz_default_plugins/Image": "sensor_msgs/msg/Image"}
FOXGLOVE_3D = {"geometry_msgs/msg/PoseStamped", "sensor_msgs/msg/CameraInfo"}
RELIABLE = {"camera", "state", "command", "event"}       # every QoS of the table


@pytest.fixture(scope="module")
def topics():
    return {topic.name: topic for topic in graph_topics(load_contract())}


def displays() -> list[dict]:
    return yaml.safe_load((LAYOUTS / "rlco.rviz").read_text())["Visualization Manager"]["Displays"]


def panels() -> dict[str, dict]:
    return json.loads((LAYOUTS / "rlco.foxglove.json").read_text())["configById"]


def paths() -> list[str]:
    return [entry["value"] for panel in panels().values() for entry in panel.get("paths", ())]


def test_rviz_displays_fit_the_topics(topics):
    shown = set()
    for display in displays():
        if "Topic" in display:
            topic, qos = topics[display["Topic"]["Value"]], display["Topic"]
            assert topic.type == RVIZ_TYPES[display["Class"]]
            assert qos["Reliability Policy"] == "Reliable" and topic.qos in RELIABLE
            assert qos["Durability Policy"] == "Volatile"       # a latched publisher serves a volatile reader, too
            shown.add(topic.name)
    names = load_contract().topics
    assert {names.ee_pose, names.target_pose, *(camera.topic for camera in load_contract().cameras.values())} <= shown
    assert "rviz_default_plugins/TF" in {display["Class"] for display in displays()}


def test_both_stand_on_the_base_of_the_robot():
    frame = load_contract().robot.base_frame
    config = yaml.safe_load((LAYOUTS / "rlco.rviz").read_text())
    assert config["Visualization Manager"]["Global Options"]["Fixed Frame"] == frame
    assert panels()["3D!scene"]["followTf"] == frame


def test_foxglove_panels_fit_the_topics(topics):
    for name, panel in panels().items():
        kind = name.partition("!")[0]
        if kind == "Image":
            assert topics[panel["imageMode"]["imageTopic"]].type == "sensor_msgs/msg/Image"
            assert topics[panel["imageMode"]["calibrationTopic"]].type == "sensor_msgs/msg/CameraInfo"
        elif kind == "3D":
            assert {topics[topic].type for topic in panel["topics"]} <= FOXGLOVE_3D
        elif kind == "DiagnosticSummary":
            assert topics[panel["topicToRender"]].type == "diagnostic_msgs/msg/DiagnosticArray"
        elif kind == "RawMessages":
            assert panel["topicPath"] in topics
        else:
            assert kind in ("Plot", "StateTransitions") and panel["paths"], kind


@pytest.mark.parametrize("path", paths())
def test_every_message_path_leads_to_a_value(path, topics):
    name, _, fields = path.partition(".")
    value = message_class(topics[name].type)
    for field in fields.split("."):
        plain = re.sub(r"\[\d+\]$", "", field)
        kind = value.get_fields_and_field_types()[plain]
        element = re.sub(r"^sequence<(.*)>$", r"\1", kind)
        assert (element != kind) == (plain != field), f"{path}: {plain} is {kind}"
        value = message_class(element.replace("/", "/msg/", 1)) if "/" in element else element
    assert value in ("string", "boolean", "double"), f"{path} ends in {value}"


def test_foxglove_shows_camera_frames_targets_gate_events_and_health(topics):
    text = (LAYOUTS / "rlco.foxglove.json").read_text()
    for name in ("/front_camera/image_raw", "/arm/ee_pose", "/arm/target_pose", "/gate/status", "/episode/event",
                 "/diagnostics"):
        assert name in topics and f'"{name}' in text


def test_the_panes_of_the_foxglove_layout_are_its_panels():
    def leaves(node):
        return {node} if isinstance(node, str) else leaves(node["first"]) | leaves(node["second"])

    assert leaves(json.loads((LAYOUTS / "rlco.foxglove.json").read_text())["layout"]) == set(panels())


def test_they_are_installed():
    for path in LAYOUTS.iterdir():
        assert (package_share("rlco_teleop") / "layouts" / path.name).read_bytes() == path.read_bytes()
