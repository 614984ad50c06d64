"""The tasks as registered ManiSkill environments, built from a domain: on a CPU one scene, on a GPU many in a batch.

    gym.make("RlcoPushCube-v1", domain="twin", obs_mode="rgb", sim_backend="physx_cpu", render_backend="cpu")

The world frame is the robot's base frame. A domain's delay belongs to rlco_sim_bridge.twin.Twin; everything else of a
domain is in the environment.
"""

import gymnasium as gym
import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils.registration import register_env
from mani_skill.utils.structs import Pose as BatchedPose
from mani_skill.utils.structs.types import SceneConfig, SimConfig

from rlco_common.contract import Contract, load_contract
from rlco_common.errors import ConfigError, TwinError
from rlco_common.pose import Pose
from rlco_sim_bridge import shaders
from rlco_sim_bridge.arm import start_qpos
from rlco_sim_bridge.domain import Domain, load_domain
from rlco_sim_bridge.robot import CONTROL_MODE, panda_class
from rlco_sim_bridge.scenery import PARKING_TOP_M, Scenery, camera_pose, to_sapien
from rlco_sim_bridge.tasks import load_task
from rlco_sim_bridge.tasks.base import EpisodeState, Snapshot, chosen
from rlco_sim_bridge.variation import NOMINAL, Variation

PHYSICS_RATE_HZ = 100
SOLVER_ITERATIONS = 8       # of ManiSkill's 15: a quarter less time a step, and enough for a few small bodies
NEAR_M, FAR_M = 0.02, 10.0    # clipping planes of the cameras
PARKING_FIRST_M, PARKING_SPACING_M = -0.3, 0.12
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])


class TabletopEnv(BaseEnv):
    """Robot, table, lights and cameras of a domain, and the bodies of the task that a subclass names.

    The initial state of an episode is `task.sample(seed)`, for every backend and number of environments. `named` [N, bodies]:
    which body the instruction means. `info` has success and fail. Reward: sparse (1 at success) or normalized_dense (progress
    towards the goal, 1 at success).
    """

    TASK: str
    SUPPORTED_REWARD_MODES = ("sparse", "normalized_dense", "none")

    def __init__(self, *args, contract: Contract | str = "panda_tabletop", domain: Domain | str = "twin", layout=None,
                 variation: Variation = NOMINAL, robot_visuals: str = "lite", **kwargs):
        self.contract = contract if isinstance(contract, Contract) else load_contract(contract)
        self.domain = load_domain(domain)
        self.task = load_task(self.TASK, layout)
        self.task.check(variation)
        self.variation = variation
        self._start: Snapshot | None = None
        kwargs.setdefault("control_mode", CONTROL_MODE)
        super().__init__(*args, robot_uids=panda_class(self.domain, self.contract, robot_visuals), **kwargs)

    def sample(self, seed: int) -> EpisodeState:
        """The initial state of episode `seed`."""
        return self.task.sample(self.contract.task(self.TASK), seed, self.variation)

    def parked(self, name: str) -> Pose:
        """Where a body waits while it is not in play."""
        index = list(self.task.bodies).index(name)
        height = PARKING_TOP_M + self.task.bodies[name].height_m
        return Pose([PARKING_FIRST_M + PARKING_SPACING_M * index, 0.0, height], UPRIGHT)

    # -- what ManiSkill asks for

    @property
    def _default_sim_config(self):
        return SimConfig(sim_freq=PHYSICS_RATE_HZ, control_freq=round(self.contract.control_rate_hz),
                         scene_config=SceneConfig(solver_position_iterations=SOLVER_ITERATIONS))

    @property
    def _default_sensor_configs(self):
        views = {name: self.domain.camera(name, self.TASK) for name in self.contract.cameras}
        return [
            CameraConfig(name, camera_pose(views[name]), camera.width, camera.height, fov=views[name].fov_rad, near=NEAR_M,
                         far=FAR_M, shader_config=shaders.shader_config("minimal"))
            for name, camera in self.contract.cameras.items()
        ]

    @property
    def _default_human_render_camera_configs(self):
        view = self.domain.camera(next(iter(self.contract.cameras)), self.TASK)
        return CameraConfig("render_camera", camera_pose(view), 640, 480, fov=view.fov_rad, near=NEAR_M, far=FAR_M)

    def _setup_sensors(self, options):
        shaders.activate("minimal")   # ManiSkill sets the picture format of the packs that it knows by name only
        super()._setup_sensors(options)

    def _load_agent(self, options):
        super()._load_agent(options, sapien.Pose())

    def _load_lighting(self, options):
        self.scene.set_ambient_light(list(self.domain.light.ambient))
        for light in self.domain.light.directional:
            self.scene.add_directional_light(list(light.direction), list(light.color), shadow=light.shadow,
                                             shadow_scale=1.2, shadow_map_size=512)

    def _load_scene(self, options):
        scenery = Scenery(self.scene, self.domain)
        scenery.build_room()
        self.bodies = {name: scenery.build_body(name, body, self.parked(name)) for name, body in self.task.bodies.items()}
        self.cabinet = scenery.build_cabinet(self.task.drawer) if self.task.drawer is not None else None

    def _initialize_episode(self, env_idx, options):
        if not len(env_idx):
            return
        with torch.device(self.device):
            states = [self.sample(int(self._episode_seed[i])) for i in env_idx.tolist()]
            for name, actor in self.bodies.items():
                actor.set_pose(_batched([state.objects.get(name, self.parked(name)) for state in states]))
                if not self.task.bodies[name].fixed:
                    actor.set_linear_velocity(torch.zeros(len(states), 3))
                    actor.set_angular_velocity(torch.zeros(len(states), 3))
            if self.cabinet is not None:
                self.cabinet.set_pose(_batched([state.objects["cabinet"] for state in states]))
                self.cabinet.set_qpos(torch.tensor([[state.travel_m] for state in states]))
                self.cabinet.set_qvel(torch.zeros(len(states), 1))
            qpos = [start_qpos(self.agent.urdf_path, state.tool, self.contract.robot.gripper_joint_position(state.opening))
                    for state in states]
            self.agent.robot.set_qpos(torch.tensor(np.array(qpos), dtype=torch.float32))
            self.agent.robot.set_qvel(torch.zeros(len(states), len(qpos[0])))
            self._remember(env_idx, states)

    def reset(self, seed=None, options=None):
        """As ManiSkill's. With options["env_idx"] the other scenes go on, their controllers' targets included, which ManiSkill
        would set to the measured state."""
        if seed is not None:    # gymnasium's own generator, which ManiSkill leaves unseeded; no episode uses it
            gym.Env.reset(self, seed=int(np.atleast_1d(seed)[0]))
        if "env_idx" not in (options or {}):
            return super().reset(seed=seed, options=options)
        others = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        others[options["env_idx"]] = False
        arm = self.agent.controller.controllers["arm"]
        targets = arm.targets()
        result = super().reset(seed=seed, options=options)
        arm.keep_targets(targets, others)
        return result

    def step(self, action):
        if self.domain.arm.delay_s:
            raise ConfigError(f"domain '{self.domain.name}' has arm.delay_s, which only rlco_sim_bridge.twin.Twin simulates")
        return super().step(action)

    def _before_simulation_step(self):
        if self.gpu_sim_enabled:    # the arm's drive targets ramp; ManiSkill hands targets to a GPU once per control step only
            self.scene.px.gpu_apply_articulation_target_position()

    def evaluate(self):
        if self._start is None:
            return {}
        success, failure = self.task.judge(self._start, self.snapshot(), self.named, self._in_play)
        return {"success": success, "fail": failure & ~success}

    def compute_normalized_dense_reward(self, obs, action, info):
        progress = self.task.progress(self._start, self.snapshot(), self.named, self._goals).clamp(0.0, 1.0)
        return torch.where(info["success"], torch.ones_like(progress), progress)

    def _get_obs_extra(self, info):
        return {"tool_pose": self.agent.tcp.pose.raw_pose}

    # -- the task's view of the scenes

    def snapshot(self) -> Snapshot:
        """The present moment of all scenes, torch tensors."""
        poses = [actor.pose for actor in self.bodies.values()]
        position = torch.stack([pose.p for pose in poses], 1) if poses else torch.zeros(self.num_envs, 0, 3, device=self.device)
        quaternion = (torch.stack([pose.q for pose in poses], 1)[..., [1, 2, 3, 0]] if poses
                      else torch.zeros(self.num_envs, 0, 4, device=self.device))
        robot = self.contract.robot
        fingers = self.agent.robot.get_qpos()[:, -2]
        opening = ((fingers - robot.gripper_closed) / (robot.gripper_open - robot.gripper_closed)).clamp(0.0, 1.0)
        travel = self.cabinet.get_qpos()[:, 0] if self.cabinet is not None else torch.zeros_like(opening)
        return Snapshot(position, quaternion, self.agent.tcp.pose.p, opening, travel)

    def places(self) -> torch.Tensor:
        """[N, 6] the privileged SceneState.places of all scenes."""
        if self.cabinet is None:
            named = chosen(self.snapshot().position, self.named)
        else:
            handles = [self.task.drawer.handle(Pose(pose[:3], pose[[4, 5, 6, 3]]), float(travel))
                       for pose, travel in zip(self.cabinet.pose.raw_pose.cpu().numpy().astype(np.float64),
                                               self.cabinet.get_qpos()[:, 0], strict=True)]
            named = torch.tensor(np.array([handle.position for handle in handles]), dtype=torch.float32, device=self.device)
        return torch.cat([named, self._goals.to(named)], 1)

    def _remember(self, env_idx, states):
        """Note what the judge needs of the episodes that begin."""
        names = list(self.bodies)
        poses = [[state.objects.get(name, self.parked(name)) for name in names] for state in states]

        def table(pick, width):
            return torch.tensor(np.array([[pick(pose) for pose in row] for row in poses]), dtype=torch.float32).reshape(
                len(states), len(names), width)

        fresh = {
            "position": table(lambda pose: pose.position, 3), "quaternion": table(lambda pose: pose.quaternion, 4),
            "tool": torch.tensor(np.array([state.tool.position for state in states]), dtype=torch.float32),
            "opening": torch.tensor([state.opening for state in states]),
            "travel": torch.tensor([state.travel_m for state in states]),
        }
        def mask(holds):
            return torch.tensor([[holds(state, name) for name in names] for state in states], dtype=torch.bool).reshape(
                len(states), len(names))

        named = mask(lambda state, name: name == state.named)
        in_play = mask(lambda state, name: name in state.objects)
        goals = torch.tensor(np.array([self.task.goal(state) for state in states]), dtype=torch.float32)
        if self._start is None:
            self._start = Snapshot(**{key: torch.zeros((self.num_envs, *value.shape[1:])) for key, value in fresh.items()})
            self.named = torch.zeros((self.num_envs, len(names)), dtype=torch.bool)
            self._in_play = torch.zeros((self.num_envs, len(names)), dtype=torch.bool)
            self._goals = torch.zeros((self.num_envs, 3))
        for key, value in fresh.items():
            getattr(self._start, key)[env_idx] = value
        self.named[env_idx], self._in_play[env_idx], self._goals[env_idx] = named, in_play, goals


@register_env("RlcoPickPlace-v1", max_episode_steps=60)
class PickPlaceEnv(TabletopEnv):
    """Put the named object into the container.

    Success: its centre is inside the container's walls, lower than 6 cm above the table, and the gripper is open by 80 %.
    Failure: it left the arm's reach (x 0.30 to 0.80 m, y +-0.35 m) or fell 2 cm below the table's top. At most 60 ticks.
    """

    TASK = "pick_place"


@register_env("RlcoPushCube-v1", max_episode_steps=32)
class PushCubeEnv(TabletopEnv):
    """Push the cube of the named colour away from the robot.

    Success: it is 7 cm farther along +x and the two others are within 2 cm of their start. Failure: another cube moved
    more than 5 cm. At most 32 ticks.
    """

    TASK = "push_cube"


@register_env("RlcoOpenDrawer-v1", max_episode_steps=40)
class OpenDrawerEnv(TabletopEnv):
    """Open the drawer. Success: it is open by more than 10 cm. Failure: none but the time limit of 40 ticks."""

    TASK = "open_drawer"


@register_env("RlcoCloseDrawer-v1", max_episode_steps=32)
class CloseDrawerEnv(TabletopEnv):
    """Close the drawer, which is open by 9 to 14 cm.

    Success: it is open by less than 1.2 cm. Failure: it was pulled out 3 cm beyond its start. At most 32 ticks.
    """

    TASK = "close_drawer"


ENVIRONMENTS = {env.TASK: env for env in (PickPlaceEnv, PushCubeEnv, OpenDrawerEnv, CloseDrawerEnv)}


def make_environment(task: str, *, num_envs: int = 1, sim_backend: str = "physx_cpu", render: bool = True,
                     **options) -> TabletopEnv:
    """The environment of a task, without gym's wrappers. Raises TwinError when there is no renderer."""
    render_backend = ("cpu" if sim_backend == "physx_cpu" else "gpu") if render else "none"
    try:
        return ENVIRONMENTS[task](num_envs=num_envs, obs_mode="none", reward_mode="none", sim_backend=sim_backend,
                                  render_backend=render_backend, **options)
    except RuntimeError as error:
        if "device" in str(error).lower() or "vulkan" in str(error).lower():
            raise TwinError(f"no Vulkan renderer: {error}. On a machine without a GPU install mesa-vulkan-drivers 24.3 or "
                            "newer; `rlco doctor` says what is missing") from error
        raise


def _batched(poses: list[Pose]) -> BatchedPose:
    converted = [to_sapien(pose) for pose in poses]
    return BatchedPose.create_from_pq(torch.tensor(np.array([pose.p for pose in converted])),
                                      torch.tensor(np.array([pose.q for pose in converted])))
