"""What makes the twins fast changes no result: shaders, image encoding, inverse kinematics, ramps of drive targets."""

import re
from pathlib import Path

import numpy as np
import pytest
import sapien
from mani_skill.agents.robots import Panda

from rlco_common.contract import load_contract
from rlco_common.observation import encode_image
from rlco_common.pose import Pose, compose_delta, delta_between
from rlco_sim_bridge import shaders
from rlco_sim_bridge.arm import kinematics
from rlco_sim_bridge.twin import Twin

CONTRACT = load_contract()
CAMERA = "front_camera"
SEED = 10_400


def pictures(task, domain, visuals="lite"):
    """The start of three episodes, and one moment in motion."""
    twin = Twin(CONTRACT, task, domain, robot_visuals=visuals)
    images = [twin.reset(SEED + k).images[CAMERA] for k in range(3)]
    twin.step(np.array([0.03, 0.02, -0.03, 0.2, 0.1, 0.3, 0.0]))
    images.append(twin.observe().images[CAMERA])
    twin.close()
    return np.array(images)


@pytest.fixture
def stock_shaders(tmp_path, monkeypatch):
    """SAPIEN's own shaders but for the table of reflections, which takes 10 s to fill."""
    shaders.edited_packs(tmp_path, {shaders.TABLE: shaders.EDITS[shaders.TABLE]})
    monkeypatch.setattr(shaders, "_packs", lambda: tmp_path)
    shaders.shader_config.cache_clear()
    yield
    shaders.shader_config.cache_clear()


SCENES = [("push_cube", "twin", "lite"), ("pick_place", "standin", "lite"), ("open_drawer", "standin", "lite"),
          ("push_cube", "twin", "full")]


@pytest.fixture(scope="module")
def fast_pictures():
    return {scene: pictures(*scene) for scene in SCENES}


@pytest.mark.parametrize("scene", SCENES, ids="-".join)
def test_the_shaders_show_what_sapiens_own_show(scene, fast_pictures, stock_shaders):
    np.testing.assert_array_equal(fast_pictures[scene], pictures(*scene))


def test_every_edit_of_the_shaders_finds_its_place():
    """Or an update of SAPIEN has moved it."""
    source = Path(sapien.__file__).parent / "vulkan_shader"
    for files, edits in shaders.EDITS.items():
        text = "".join(path.read_text() for path in source.glob(files) if path.parent.name in ("common", "minimal"))
        for pattern, _ in edits:
            assert re.search(pattern, text, flags=re.DOTALL), (files, pattern)


@pytest.mark.parametrize(("shape", "size"), [((128, 128), 64), ((128, 128), 32), ((480, 640), 96), ((224, 224), 1)])
def test_a_policy_image_is_the_rounded_mean_of_its_blocks(shape, size):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    side = min(shape)
    left = (shape[1] - side) // 2
    blocks = image[:, left:left + side].reshape(size, side // size, size, side // size, 3).astype(np.float64)
    encoded = encode_image(image, size)
    assert encoded.dtype == np.uint8
    np.testing.assert_array_equal(encoded, np.floor(blocks.mean((1, 3)) + 0.5))
    assert (encode_image(np.full_like(image, 255), size) == 255).all()


def test_the_inverse_kinematics_is_the_compiled_one_whatever_is_installed():
    """With pinocchio installed, SAPIEN offers a loop in Python instead: 50 times slower, and other in the last bits."""
    assert type(kinematics(Panda.urdf_path)._model).__module__ == "sapien.pysapien_pinocchio"


def test_following_a_target_is_as_exact_as_the_solver_of_small_steps_and_as_continuous():
    twin = Twin(CONTRACT, "push_cube", render=False)
    twin.reset(SEED)
    solver, near, target = kinematics(twin._env.agent.urdf_path), twin.observe().joint_positions, twin.target
    near = np.append(near, [0.04, 0.04])
    rng = np.random.default_rng(0)
    for _ in range(30):
        action = rng.uniform(CONTRACT.action.low, CONTRACT.action.high) * [0.4, 0.4, 0.4, 0.2, 0.2, 0.5, 1]
        target = CONTRACT.compose_target(target, action)
        goal = solver.follow(target, near)
        np.testing.assert_allclose(goal, solver.inverse(target, near), atol=0.05)   # the elbow is free
        twin._set_arm(goal)
        assert np.abs(delta_between(twin.tool_pose(), target)).max() < 2e-4
        near = goal
    twin.reset(SEED)
    target, near = twin.target, np.append(twin.observe().joint_positions, [0.04, 0.04])
    far = compose_delta(target, [0, 0, 0, 0, 0, 1.2])      # turns the wrist farther than a tick can
    np.testing.assert_array_equal(solver.follow(far, near), solver.inverse(far, near))
    assert solver.follow(Pose([2.0, 0.0, 0.5], target.quaternion), near) is None
    twin.close()


def test_drive_targets_ramp_linearly_to_the_goal_and_stay():
    twin = Twin(CONTRACT, "push_cube", render=False)
    twin.reset(SEED)
    arm, rows, fingers = twin._arm, [], []
    arm._set_arm = [rows.append] * 7
    arm._set_fingers = [fingers.append] * 2
    start = arm._goal.copy()
    arm.command(twin.target, 0.5, 20)
    for _ in range(25):
        arm.advance()
    targets = np.array(rows).reshape(25, 7)
    shares = np.minimum(np.arange(1, 26) / 20, 1.0)[:, None]
    np.testing.assert_allclose(targets, start[:7] + shares * (arm._goal[:7] - start[:7]), atol=1e-12)
    assert fingers == [CONTRACT.robot.gripper_joint_position(0.5)] * 2, "the fingers do not ramp"
    twin.close()
