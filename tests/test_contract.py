"""The contract: loaded strictly, hashed, compared readably; actions and codecs as properties."""

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlco_common.contract import contract_diff, contract_from_json, load_contract, require_same_contract
from rlco_common.episode import EpisodeEvent, EpisodeMetadata, event_from_json, metadata_from_json
from rlco_common.errors import ConfigError, ContractMismatch, DataError
from rlco_common.observation import (
    Observation,
    decode_camera_image,
    encode_image,
    encode_proprioception,
    joints_by_name,
)
from rlco_common.pose import Pose, compose_delta, delta_between, quaternion_from_rotation_vector, rotation_matrix
from rlco_common.resources import share_directory
from rlco_common.strict import apply_overrides, to_mapping

CONTRACT = load_contract()
number = st.floats(-1, 1, allow_nan=False)
vector = st.tuples(number, number, number).map(np.array)


def poses():
    return st.builds(lambda p, r: Pose(p, quaternion_from_rotation_vector(3 * r)), vector, vector)


def shipped() -> dict:
    return yaml.safe_load((share_directory("rlco_common") / "panda_tabletop.yaml").read_text())


def load(tmp_path, data):
    path = tmp_path / "cell.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return load_contract(path)


# -- loading

def test_json_round_trip_keeps_the_hash():
    again = contract_from_json(CONTRACT.to_json(), "here")
    assert again == CONTRACT
    assert again.hash == CONTRACT.hash


@pytest.mark.parametrize(("path", "message"), [
    (("control_rate_hz",), "missing field.*control_rate_hz"),
    (("cameras", "front_camera", "max_age_s"), "front_camera: missing field.*max_age_s"),
    (("limits", "max_linear_speed_m_s"), "limits: missing field.*max_linear_speed_m_s"),
])
def test_a_missing_field_is_named(tmp_path, path, message):
    data = shipped()
    node = data
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, data)


@pytest.mark.parametrize(("section", "key", "value", "message"), [
    (None, "colour", 1, "unknown field.*colour"),
    ("limits", "max_jerk", 1.0, "limits: unknown field.*max_jerk"),
    ("action", "max_translation_m", "fast", "action.max_translation_m: expected float, got 'fast'"),
    ("action", "max_translation_m", -0.1, "must be positive"),
    ("action", "names", ["dx", "dy"], "action names must be"),
    ("limits", "workspace_min_m", [0.9, 0.9, 0.9], "must be below workspace_max_m"),
    ("limits", "max_linear_speed_m_s", float("inf"), "finite and positive"),
    ("observation", "proprioception", ["ee_velocity"], "ee_velocity"),
    ("robot", "gripper_open", 0.0, "opening cannot be computed"),
])
def test_a_bad_field_is_named(tmp_path, section, key, value, message):
    data = shipped()
    (data[section] if section else data)[key] = value
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, data)


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "cell.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(ConfigError, match=r"cell.yaml:2: key 'name' is given twice"):
        load_contract(path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"known: .*panda_tabletop"):
        load_contract("panda_table_top")


def test_another_contract_is_refused_with_the_differing_fields(tmp_path):
    data = shipped()
    data["action"]["max_translation_m"] = 0.04
    data["cameras"]["front_camera"]["width"] = 64
    other = load(tmp_path, data)
    assert other.hash != CONTRACT.hash
    assert contract_diff(CONTRACT, other) == [
        "action.max_translation_m: 0.05 -> 0.04", "cameras.front_camera.width: 128 -> 64"]
    with pytest.raises(ContractMismatch, match=r"checkpoint x(.|\n)*action.max_translation_m: 0.05 -> 0.04"):
        require_same_contract(CONTRACT, other, "checkpoint x")


def test_overrides_reach_nested_fields_and_leave_the_source_alone():
    data = {"a": {"b": 1}, "c": 2}
    assert apply_overrides(data, ["a.b=1e-3", "d=[1, 2]"]) == {"a": {"b": "1e-3"}, "c": 2, "d": [1, 2]}
    assert data == {"a": {"b": 1}, "c": 2}
    assert apply_overrides(data, ["a.b=", "c=''", "d=null"]) == {"a": {"b": ""}, "c": "", "d": None}
    with pytest.raises(ConfigError, match="key=value"):
        apply_overrides(data, ["a.b"])


# -- actions and poses

@settings(max_examples=200, deadline=None)
@given(poses(), vector, vector)
def test_a_delta_and_its_inverse(pose, translation, rotation):
    delta = np.concatenate([translation, 0.9 * rotation])
    recovered = delta_between(pose, compose_delta(pose, delta))
    assert recovered == pytest.approx(delta, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(poses(), poses())
def test_the_difference_of_two_poses_leads_from_one_to_the_other(a, b):
    reached = compose_delta(a, delta_between(a, b))
    assert reached.position == pytest.approx(b.position, abs=1e-9)
    assert rotation_matrix(reached.quaternion) == pytest.approx(rotation_matrix(b.quaternion), abs=1e-7)


@given(poses())
def test_the_sign_of_a_quaternion_means_nothing(pose):
    flipped = Pose(pose.position, -pose.quaternion)
    assert delta_between(pose, flipped) == pytest.approx(np.zeros(6), abs=1e-7)


def test_rotation_is_about_the_base_axes():
    yawed = compose_delta(Pose([0, 0, 0], [1, 0, 0, 0]), [0, 0, 0, 0, 0, 0.3])
    turned = rotation_matrix(yawed.quaternion) @ rotation_matrix(np.array([1.0, 0, 0, 0])).T
    assert turned[:2, 0] == pytest.approx([np.cos(0.3), np.sin(0.3)])


@given(st.lists(number, min_size=7, max_size=7))
def test_normalisation_round_trip(values):
    action = CONTRACT.action
    assert action.normalise(action.denormalise(values)) == pytest.approx(values, abs=1e-12)


def test_the_limits_are_plus_and_minus_one():
    action = CONTRACT.action
    assert action.normalise(action.low).tolist() == [-1.0] * 7
    assert action.normalise(action.high).tolist() == [1.0] * 7
    assert action.denormalise(np.zeros(7))[:6].tolist() == [0.0] * 6
    with pytest.raises(ValueError, match="non-finite"):
        action.clip([np.nan] + [0.0] * 6)


@settings(max_examples=100, deadline=None)
@given(st.lists(number, min_size=7, max_size=7))
def test_targets_stay_in_the_workspace_and_actions_are_recovered(values):
    limits = CONTRACT.limits
    start = Pose([0.5, 0.0, 0.2], [1, 0, 0, 0])
    action = CONTRACT.action.denormalise(values)
    target = CONTRACT.compose_target(start, action)
    assert (target.position >= limits.workspace_min_m).all()
    assert (target.position <= limits.workspace_max_m).all()
    assert CONTRACT.action_between(start, target, action[6]) == pytest.approx(action, abs=1e-9)
    edge = CONTRACT.compose_target(Pose(limits.workspace_max_m, [1, 0, 0, 0]), np.array([0.05] * 3 + [0.0] * 4))
    assert edge.position.tolist() == list(limits.workspace_max_m)


# -- codecs

def test_gripper_convention():
    robot = CONTRACT.robot
    assert robot.gripper_opening(robot.gripper_closed) == 0.0
    assert robot.gripper_opening(robot.gripper_open) == 1.0
    assert robot.gripper_joint_position(0.5) == pytest.approx(0.02)


def test_joint_order_does_not_matter():
    names = [*CONTRACT.robot.arm_joints, CONTRACT.robot.gripper_joint]
    positions = np.arange(8) * 0.004
    order = np.random.default_rng(0).permutation(8)
    straight = joints_by_name(CONTRACT, names, positions)
    shuffled = joints_by_name(CONTRACT, [names[i] for i in order], positions[order])
    assert straight[0].tolist() == shuffled[0].tolist() == positions[:7].tolist()
    assert straight[1] == shuffled[1]
    with pytest.raises(DataError, match="panda_joint3"):
        joints_by_name(CONTRACT, [name for name in names if name != "panda_joint3"], positions[:7])


def test_proprioception_is_named_element_by_element():
    observation = Observation({}, Pose([0.1, 0.2, 0.3], [1, 0, 0, 0]), 0.25, np.zeros(7), 0)
    values = dict(zip(CONTRACT.proprioception_names, encode_proprioception(CONTRACT, observation), strict=True))
    assert (values["x"], values["z"], values["gripper"]) == pytest.approx((0.1, 0.3, 0.25))
    assert (values["r11"], values["r22"]) == pytest.approx((1.0, -1.0))     # the tool points down


@pytest.mark.parametrize("shape", [(128, 128), (480, 640), (100, 100), (64, 64)])
def test_policy_images_average_areas(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    small = encode_image(image, 64)
    assert small.shape == (64, 64, 3)
    side = min(shape)
    left = (shape[1] - side) // 2
    assert small.mean() == pytest.approx(image[:, left : left + side].mean(), abs=0.6)
    flat = encode_image(np.full((*shape, 3), 77, np.uint8), 64)
    assert (flat == 77).all()


def test_camera_image_must_match_the_contract():
    camera = CONTRACT.cameras["front_camera"]
    pixels = np.random.default_rng(0).integers(0, 256, camera.shape, dtype=np.uint8)
    assert (decode_camera_image(camera, pixels.tobytes(), 128, 128, "rgb8", 384) == pixels).all()
    padded = np.zeros((128, 400), np.uint8)
    padded[:, :384] = pixels.reshape(128, 384)
    assert (decode_camera_image(camera, padded.tobytes(), 128, 128, "rgb8", 400) == pixels).all()
    for height, encoding in ((64, "rgb8"), (128, "bgr8")):
        with pytest.raises(DataError, match="the contract says 128x128 rgb8"):
            decode_camera_image(camera, pixels.tobytes(), height, 128, encoding, 384)
    with pytest.raises(DataError, match="do not hold 128 rows"):
        decode_camera_image(camera, pixels.tobytes()[:-1], 128, 128, "rgb8", 384)


def test_bgr_cameras_come_out_as_rgb(tmp_path):
    data = shipped()
    data["cameras"]["front_camera"]["encoding"] = "bgr8"
    camera = load(tmp_path, data).cameras["front_camera"]
    bgr = np.zeros(camera.shape, np.uint8)
    bgr[..., 0] = 200
    assert decode_camera_image(camera, bgr.tobytes(), 128, 128, "bgr8", 384)[0, 0].tolist() == [0, 0, 200]


def test_episode_metadata_and_events_round_trip():
    metadata = EpisodeMetadata("e1", "push_cube", "push the red cube", "standin", "me", 7, CONTRACT.hash, CONTRACT.to_json())
    assert metadata_from_json(metadata.judged(True).to_json(), "bag") == metadata.judged(True)
    event = EpisodeEvent("reset", task="push_cube", seed=3)
    assert event_from_json(event.to_json()) == event
    with pytest.raises(ConfigError, match="'begin' is not one of"):
        event_from_json('{"kind": "begin"}')
    with pytest.raises(DataError, match="not valid JSON"):
        event_from_json("{")


def test_plain_data_survives_yaml():
    assert yaml.safe_load(yaml.safe_dump(to_mapping(CONTRACT))) == to_mapping(CONTRACT)
