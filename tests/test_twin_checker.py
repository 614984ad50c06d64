"""Every twin keeps its promises, and the checker notices each one that is broken; gymnasium's checker on our environments."""

import dataclasses
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper

from rlco_common.contract import load_contract
from rlco_common.pose import Pose
from rlco_sim_bridge.checker import BrokenPromises, check_twin
from rlco_sim_bridge.environment import ENVIRONMENTS
from rlco_sim_bridge.scene_state import StepResult
from rlco_sim_bridge.tasks import TASKS
from rlco_sim_bridge.twin import Twin
from rlco_sim_bridge.variation import Variation

CONTRACT = load_contract()
CAMERA = "front_camera"


@pytest.mark.long
@pytest.mark.parametrize("domain", ["twin", "standin"])
@pytest.mark.parametrize("task", TASKS)
def test_every_twin_keeps_its_promises(task, domain):
    check_twin(lambda: Twin(CONTRACT, task, domain), seed=10_300)


@pytest.mark.long
def test_a_varied_twin_keeps_its_promises():
    variation = Variation(objects="unseen", start="perturbed", camera=0.5, light=0.5)
    check_twin(lambda: Twin(CONTRACT, "pick_place", variation=variation), seed=10_300)
    check_twin(lambda: Twin(CONTRACT, "open_drawer", "standin", variation=Variation(start="perturbed"), render=False))


class ColorsAsNumbers(Twin):
    def observe(self, images=True):
        seen = super().observe(images)
        return dataclasses.replace(seen, images={name: image / 255.0 for name, image in seen.images.items()})


class EmptyPictures(Twin):
    def observe(self, images=True):
        return dataclasses.replace(super().observe(images), images={CAMERA: np.zeros((128, 128, 3), np.uint8)})


class OnePictureForAll(Twin):
    _buffer = np.zeros((128, 128, 3), np.uint8)

    def _picture(self, camera):
        self._buffer[:] = super()._picture(camera)
        return self._buffer


class FrozenCamera(Twin):
    _first = None

    def _picture(self, camera):
        if self._first is None:
            self._first = super()._picture(camera)
        return self._first


class BlindJoint(Twin):
    def observe(self, images=True):
        seen = super().observe(images)
        return dataclasses.replace(seen, joint_positions=seen.joint_positions * np.array([1, 1, np.nan, 1, 1, 1, 1]))


class GripperInMetres(Twin):
    def observe(self, images=True):
        return dataclasses.replace(super().observe(images), gripper=-0.04)


class AlwaysAnother(Twin):
    count = 0

    def reset(self, seed, tool=None):
        self.count += 1
        return super().reset(seed + 1000 * self.count, tool)


class AlwaysTheSame(Twin):
    def reset(self, seed, tool=None):
        return super().reset(0, tool)


class StartsElsewhere(Twin):
    def reset(self, seed, tool=None):
        drawn = self.task.sample(self.contract.task(self.task.name), seed, self.variation).tool
        return super().reset(seed, Pose(drawn.position + np.array([0.0, 0.0, 0.03]), drawn.quaternion))


class RemembersContact(Twin):
    """The named cube starts a little farther in every episode."""

    count = 0

    def _place(self, state):
        super()._place(state)
        self.count += 1
        entity = self._bodies[state.named]
        pose = entity.get_pose()
        pose.p = pose.p + np.array([1e-6 * self.count, 0, 0])
        entity.set_pose(pose)


class DiffersByTwin(Twin):
    """Every twin of this class has a calibration error of its own."""

    made = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        type(self).made += 1
        self._error_m = 1e-7 * type(self).made

    def command(self, target, gripper, ramp_s):
        super().command(Pose(target.position + self._error_m, target.quaternion), gripper, ramp_s)


class Unclipped(Twin):
    def step(self, action):
        return self.apply_target(self.contract.compose_target(self._target, np.asarray(action)), float(action[6]))


class NanIsZero(Twin):
    def step(self, action):
        return super().step(np.nan_to_num(action, posinf=0.0))


class BothAtOnce(Twin):
    def _judge(self):
        success, failure = self.task.judge(self._start, self._snapshot(), self._named, self._in_play)
        return dataclasses.replace(super()._judge(), success=bool(success), failure=bool(failure))


class ChangesItsMind(Twin):
    def _judge(self):
        self._success = self._failure = False
        return super()._judge()


class SucceedsAtOnce(Twin):
    def _judge(self):
        return StepResult(True, False, super()._judge().steps, True)


class NeverEnds(Twin):
    def _judge(self):
        return dataclasses.replace(super()._judge(), done=False)


class WallClock(Twin):
    @property
    def time_ns(self):
        return super().time_ns + 12_345


class FreeText(Twin):
    @property
    def instruction(self):
        return super().instruction + ", please"


class StartsUnasked(Twin):
    def _require_state(self):
        if self._state is None:
            self.reset(0)
        return self._state


BROKEN = {     # -> what the checker says
    ColorsAsNumbers: "front_camera is float64",
    EmptyPictures: r"images of \['front_camera'\], expected \[\]",
    OnePictureForAll: "a picture changed after it was handed out",
    FrozenCamera: "does not show the robot's motion",
    BlindJoint: "joint_positions must be 7 finite numbers",
    GripperInMetres: "gripper must be within 0 and 1",
    AlwaysAnother: "an episode depends on the one before it",
    AlwaysTheSame: "different seeds must give different initial states",
    StartsElsewhere: "the tool starts 30.0 mm away",
    RemembersContact: "an episode depends on the one before it",
    DiffersByTwin: "an episode differs in a fresh twin",
    Unclipped: "must do what the limits do",
    NanIsZero: "an action of nan must raise ValueError",
    BothAtOnce: "must exclude each other",
    ChangesItsMind: "stay as first met",
    SucceedsAtOnce: "must neither end, solve nor fail",
    NeverEnds: "done come at 32",
    WallClock: "stamps must start at 0",
    FreeText: "is from no template of the contract",
    StartsUnasked: "before the first reset, instruction must raise TwinError",
}
NEEDS_PICTURES = (ColorsAsNumbers, OnePictureForAll, FrozenCamera)


@pytest.mark.long
@pytest.mark.parametrize("broken", BROKEN, ids=lambda twin: twin.__name__)
def test_a_broken_promise_is_named(broken):
    with pytest.raises(BrokenPromises, match=BROKEN[broken]):
        check_twin(partial(broken, CONTRACT, "push_cube", render=broken in NEEDS_PICTURES))


@pytest.mark.parametrize("name", [name for name in gym.registry if name.startswith("Rlco")])
def test_gymnasiums_checker_accepts_the_registered_environments(name):
    """Its check of a second `close` is done here: it makes the environment anew, and ManiSkill's TimeLimitWrapper cannot."""
    wrapped = CPUGymWrapper(gym.make(name, num_envs=1, obs_mode="state", sim_backend="physx_cpu", render_backend="none"))
    check_env(wrapped, skip_render_check=True, skip_close_check=True)
    wrapped.close()
    wrapped.close()


def test_every_task_has_a_registered_environment():
    registered = {spec.entry_point for name, spec in gym.registry.items() if name.startswith("Rlco")}
    assert len(registered) == len(ENVIRONMENTS) == len(TASKS)
