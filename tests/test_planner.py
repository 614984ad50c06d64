"""The arm planner: paths are free by a check that shares nothing with it, within limits and repeatable; refusals say why."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import trimesh
from mani_skill.agents.robots import Panda
from sapien.wrapper.pinocchio_model import PinocchioModel

from rlco_common.errors import ConfigError
from rlco_common.pose import Pose, delta_between, rotation_matrix
from rlco_sim_bridge.experts.planner import (
    ArmPlanner,
    Box,
    GoalInCollision,
    NoPathInTime,
    OutOfReach,
    PlanningError,
    StartInCollision,
)

UPRIGHT, DOWN = [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]
TABLE = Box("table", Pose([0.3, 0.0, -0.02], UPRIGHT), (0.7, 0.8, 0.02))
WALL = Box("wall", Pose([0.55, 0.0, 0.2], UPRIGHT), (0.15, 0.02, 0.2))
REST = np.array([0.0, 0.13, 0.0, -2.4, 0.0, 2.43, 0.79])
LEFT, RIGHT = Pose([0.55, 0.2, 0.15], DOWN), Pose([0.55, -0.2, 0.15], DOWN)
LINKS = [*(f"panda_link{i}" for i in range(1, 8)), "panda_hand"]
FINGERS = ("panda_leftfinger", "panda_rightfinger")


@pytest.fixture
def planner():
    return ArmPlanner(Panda.urdf_path, [TABLE, WALL])


@pytest.fixture(scope="module")
def links():
    """SAPIEN's kinematics and, by link, points on its surface in its frame: what the planner does not use."""
    model = PinocchioModel(Path(Panda.urdf_path).read_text(), [0.0, 0.0, -9.81])
    model.set_joint_order([*Panda.arm_joint_names, *Panda.gripper_joint_names])
    model.set_link_order([*LINKS, *FINGERS])
    folder = Path(Panda.urdf_path).parent / "franka_description" / "meshes" / "collision"
    points = [trimesh.sample.sample_surface(trimesh.load(folder / f"{name.removeprefix('panda_')}.stl"), 1000, seed=0)[0]
              for name in LINKS]
    return model, [*points, *([np.array([[0.0, 0.0, 0.053]])] * len(FINGERS))]     # a finger's tip


def points_inside(links, qpos, boxes) -> int:
    """How many surface points of the arm at joint positions [7] lie in one of the boxes."""
    model, points = links
    model.compute_forward_kinematics([*qpos, 0.04, 0.04])
    inside = 0
    for index, local in enumerate(points):
        pose = model.get_link_pose(index)
        world = local @ pose.to_transformation_matrix()[:3, :3].T + pose.p
        for box in boxes:
            in_box = (world - box.pose.position) @ rotation_matrix(box.pose.quaternion)
            inside += int((np.abs(in_box) < box.half_size_m).all(axis=1).sum())
    return inside


def finely(path):
    """The path with states at most 0.0125 rad apart."""
    return np.concatenate([a + (b - a) * np.linspace(0, 1, 5)[:, None] for a, b in pairwise(path)])


@pytest.mark.parametrize("seed", range(4))
def test_path_goes_around_what_the_straight_line_hits(planner, links, seed):
    start, end = planner.inverse(RIGHT, REST), planner.inverse(LEFT, REST)
    straight = start + (end - start) * np.linspace(0, 1, 100)[:, None]
    assert any(points_inside(links, qpos, [WALL]) for qpos in straight), "otherwise this proves nothing"
    path = planner.plan(start, LEFT, seed=seed, time_limit_s=20.0)
    assert not any(points_inside(links, qpos, [TABLE, WALL]) for qpos in finely(path))
    assert np.array_equal(path[0], start)
    assert np.abs(delta_between(planner.forward(path[-1]), LEFT)).max() < 1e-4
    assert np.abs(np.diff(path, axis=0)).max() <= 0.05 + 1e-9
    assert (path >= planner.lower).all() and (path <= planner.upper).all()


def test_same_seed_same_path_whatever_was_planned_before_and_in_another_process(planner):
    start = planner.inverse(RIGHT, REST)
    first = planner.plan(start, LEFT, seed=3, time_limit_s=20.0)
    other = planner.plan(start, LEFT, seed=4, time_limit_s=20.0)
    assert np.array_equal(planner.plan(start, LEFT, seed=3, time_limit_s=20.0), first)
    assert not (other.shape == first.shape and np.allclose(other, first)), "the seed does nothing"
    code = ("import sys, numpy as np; sys.path.insert(0, sys.argv[1]); import test_planner as t\n"
            "p = t.ArmPlanner(t.Panda.urdf_path, [t.TABLE, t.WALL])\n"
            "print(p.plan(p.inverse(t.RIGHT, t.REST), t.LEFT, seed=3, time_limit_s=60.0).tobytes().hex())")
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.split()[-1] == first.tobytes().hex()


def test_free_straight_motion_is_returned_as_it_is(planner):
    planner.set_obstacles([TABLE])
    path = planner.plan(REST, REST + 0.1)
    assert np.allclose(path, REST + 0.1 * np.linspace(0, 1, len(path))[:, None])


def test_kinematics_agree_with_sapien_and_inverse_undoes_forward(planner, links):
    rng = np.random.default_rng(0)
    for _ in range(20):
        qpos = rng.uniform(0.9 * planner.lower + 0.1 * planner.upper, 0.1 * planner.lower + 0.9 * planner.upper)
        links[0].compute_forward_kinematics([*qpos, 0.04, 0.04])
        assert np.allclose(planner.touching(qpos) is None, planner.is_free(qpos))
        near = np.clip(qpos + rng.uniform(-0.1, 0.1, 7), planner.lower, planner.upper)
        pose = planner.forward(qpos)
        hand = links[0].get_link_pose(LINKS.index("panda_hand"))
        assert np.allclose(hand.p + 0.1034 * hand.to_transformation_matrix()[:3, 2], pose.position, atol=1e-5)
        assert np.abs(delta_between(planner.forward(planner.inverse(pose, near)), pose)).max() < 1e-4


def test_tool_path_and_tilt_limit(planner):
    start = planner.inverse(RIGHT, REST)
    path = planner.plan(start, LEFT, seed=0, time_limit_s=30.0, max_tilt_rad=0.4)
    tools = planner.tool_path(path)
    assert len(tools) == len(path)
    down = np.array([rotation_matrix(tool.quaternion)[:, 2] @ [0, 0, -1] for tool in tools])
    assert np.arccos(down.min()) <= 0.4 + 0.02


def test_margin_counts_as_contact_and_fingers_follow_their_opening():
    tool = Pose([0.55, 0.0, 0.3], DOWN)      # the fingertips are 9 mm below the tool point
    for gap, free in ((0.004, False), (0.03, True)):
        block = Box("block", Pose([0.55, 0.0, 0.3 - 0.009 - gap - 0.05], UPRIGHT), (0.05, 0.05, 0.05))
        planner = ArmPlanner(Panda.urdf_path, [block], margin_m=0.01)
        assert planner.is_free(planner.inverse(tool, REST)) is free
    beside = Box("beside", Pose([0.55, 0.05, 0.29], UPRIGHT), (0.01, 0.01, 0.02))
    planner = ArmPlanner(Panda.urdf_path, [beside], margin_m=0.005)
    qpos = planner.inverse(tool, REST)
    assert "finger" in planner.touching(qpos)[0]
    planner.hold(None, finger_opening_m=0.0)
    assert planner.is_free(qpos)


def test_held_object_needs_room_until_it_is_let_go(planner):
    above = planner.inverse(Pose([0.55, 0.0, 0.47], DOWN), REST)
    assert planner.is_free(above)
    planner.hold(Box("bar", Pose([0.0, 0.0, 0.03], UPRIGHT), (0.02, 0.02, 0.05)))
    assert planner.touching(above) == ("held object", "wall")
    with pytest.raises(StartInCollision, match="held object touches wall"):
        planner.plan(above, LEFT)
    planner.hold(None)
    assert planner.is_free(above)


def test_obstacles_can_be_replaced(planner):
    inside = planner.inverse(Pose([0.55, 0.0, 0.2], DOWN), REST)
    assert not planner.is_free(inside)
    planner.set_obstacles([TABLE])
    assert planner.is_free(inside)


def test_every_refusal_has_a_name_and_says_why(planner):
    start = planner.inverse(RIGHT, REST)
    with pytest.raises(StartInCollision, match="touches wall"):
        planner.plan(planner.inverse(Pose([0.55, 0.0, 0.2], DOWN), REST), LEFT)
    with pytest.raises(GoalInCollision, match="touches wall"):
        planner.plan(start, Pose([0.55, 0.0, 0.2], DOWN))
    with pytest.raises(GoalInCollision, match="wall"):
        planner.plan(start, planner.inverse(Pose([0.55, 0.0, 0.2], DOWN), REST))
    with pytest.raises(OutOfReach, match=r"2\.0, 0\.0, 0\.3"):
        planner.plan(start, Pose([2.0, 0.0, 0.3], DOWN))
    with pytest.raises(OutOfReach, match="within the limits"):
        planner.plan(start, np.full(7, 3.5))
    with pytest.raises(PlanningError, match="within the limits"):
        planner.plan(np.full(7, 3.5), LEFT)
    with pytest.raises(NoPathInTime, match=r"0\.005 s"):
        planner.plan(start, LEFT, time_limit_s=0.005)


def test_wrong_files_and_names_are_configuration_errors(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        ArmPlanner(tmp_path / "no.urdf")
    broken = tmp_path / "broken.urdf"
    broken.write_text("<robot")
    broken.with_suffix(".srdf").write_text("<robot/>")
    with pytest.raises(ConfigError, match=r"broken\.urdf"):
        ArmPlanner(broken)
    with pytest.raises(ConfigError, match="no joint or link elbow"):
        ArmPlanner(Panda.urdf_path, arm_joints=["elbow"])
    with pytest.raises(ConfigError, match="different names"):
        ArmPlanner(Panda.urdf_path, [TABLE, TABLE])
    with pytest.raises(ValueError, match="half sizes"):
        Box("flat", Pose([0.0, 0.0, 0.0], UPRIGHT), (0.1, 0.1, 0.0))


def test_planner_needs_no_simulator_and_its_absence_is_explained():
    code = ("import sys\n"
            "import rlco_sim_bridge.experts.planner\n"
            "assert not {'sapien', 'mani_skill', 'torch'} & set(sys.modules), 'a simulator was imported'\n")
    subprocess.run([sys.executable, "-c", code], check=True)
    code = ("import sys\n"
            "sys.modules['ompl'] = None\n"
            "import rlco_sim_bridge.experts.planner\n")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 1 and "pip install ompl" in answer.stderr
