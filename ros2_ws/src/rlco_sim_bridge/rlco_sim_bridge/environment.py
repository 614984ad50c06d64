"""The tasks as registered ManiSkill environments, built from a domain.

    gym.make("RlcoPushCube-v1", domain="twin", obs_mode="rgb", sim_backend="physx_cpu", render_backend="cpu")

The world frame is the robot's base frame. A domain's command gain and delay belong to the command path and are applied
by rlco_sim_bridge.twin.Twin; everything else of a domain is in the environment.
"""

import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils.registration import register_env
from mani_skill.utils.structs import Pose as BatchedPose
from mani_skill.utils.structs.types import SceneConfig, SimConfig

from rlco_common.contract import Contract, load_contract
from rlco_common.pose import Pose
from rlco_sim_bridge import shaders, textures
from rlco_sim_bridge.arm import start_qpos
from rlco_sim_bridge.domain import CameraView, Domain, load_domain
from rlco_sim_bridge.robot import CONTROL_MODE, panda_class
from rlco_sim_bridge.tasks import push_cube

PHYSICS_RATE_HZ = 100
SOLVER_ITERATIONS = 8       # of ManiSkill's 15: a quarter less time a step, and enough for a few cubes
TABLE_MIN_M, TABLE_MAX_M = (-0.4, -0.8, -0.04), (1.0, 0.8, 0.0)
NEAR_M, FAR_M = 0.02, 10.0    # clipping planes of the cameras
PARKING_TOP_M = -0.6      # a shelf below the table holds the objects that are not in play


def to_sapien(pose: Pose) -> sapien.Pose:
    x, y, z, w = pose.quaternion
    return sapien.Pose(pose.position, [w, x, y, z])


def from_sapien(pose: sapien.Pose) -> Pose:
    w, x, y, z = pose.q
    return Pose(pose.p, [x, y, z, w])


def camera_pose(view: CameraView) -> sapien.Pose:
    """SAPIEN's camera pose: x forward, y left, z up."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = view.rotation(), view.eye_m
    return sapien.Pose(matrix)


class TabletopEnv(BaseEnv):
    """Robot, table, lights and cameras of a domain. A task adds its objects."""

    SUPPORTED_REWARD_MODES = ("sparse", "none")

    def __init__(self, *args, contract: Contract | str = "panda_tabletop", domain: Domain | str = "twin", **kwargs):
        self.contract = contract if isinstance(contract, Contract) else load_contract(contract)
        self.domain = load_domain(domain)
        kwargs.setdefault("control_mode", CONTROL_MODE)
        super().__init__(*args, robot_uids=panda_class(self.domain, self.contract.action), **kwargs)

    @property
    def _default_sim_config(self):
        return SimConfig(sim_freq=PHYSICS_RATE_HZ, control_freq=round(self.contract.control_rate_hz),
                         scene_config=SceneConfig(solver_position_iterations=SOLVER_ITERATIONS))

    @property
    def _default_sensor_configs(self):
        return [
            CameraConfig(name, camera_pose(self.domain.cameras[name]), camera.width, camera.height,
                         fov=self.domain.cameras[name].fov_rad, near=NEAR_M, far=FAR_M,
                         shader_config=shaders.shader_config("minimal"))
            for name, camera in self.contract.cameras.items()
        ]

    @property
    def _default_human_render_camera_configs(self):
        view = next(iter(self.domain.cameras.values()))
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
        look = self.domain.look
        self._static_box("table", TABLE_MIN_M, TABLE_MAX_M, self._table_material())
        self._static_box("floor", (-3.0, -3.0, -1.2), (3.0, 3.0, -1.0), _material(look.background))
        self._static_box("wall", (-1.2, -3.0, -1.0), (-1.1, 3.0, 2.0), _material(look.background))
        self._static_box("parking", (-0.4, -0.8, PARKING_TOP_M - 0.02), (1.0, 0.8, PARKING_TOP_M),
                         _material(look.background))

    def _table_material(self):
        table = self.domain.look.table
        if table.texture == "plain" or not self.scene.can_render():
            return _material(table.color)
        material = _material((1.0, 1.0, 1.0))
        material.base_color_texture = sapien.render.RenderTexture2D(
            textures.wood(table.color), "R8G8B8A8Unorm", mipmap_levels=4)
        return material

    def _static_box(self, name, low, high, material):
        half = np.subtract(high, low) / 2
        builder = self.scene.create_actor_builder()
        builder.add_box_collision(half_size=half, material=self._contact_material())
        builder.add_box_visual(half_size=half, material=material)
        builder.initial_pose = sapien.Pose(np.add(high, low) / 2)
        return builder.build_static(name)

    def _dynamic_box(self, name, size, color, pose):
        builder = self.scene.create_actor_builder()
        half = [size / 2] * 3
        builder.add_box_collision(half_size=half, material=self._contact_material(),
                                  density=self.domain.contact.density_kg_m3)
        builder.add_box_visual(half_size=half, material=_material(color))
        builder.initial_pose = pose
        return builder.build(name)

    def _contact_material(self):
        friction = self.domain.contact.friction
        return sapien.physx.PhysxMaterial(static_friction=friction, dynamic_friction=friction, restitution=0.0)


@register_env("RlcoPushCube-v1", max_episode_steps=32)
class PushCubeEnv(TabletopEnv):
    """push_cube. `info` has success and fail; the initial state is rlco_sim_bridge.tasks.push_cube.sample(seed)."""

    def __init__(self, *args, layout=push_cube.NAME, **kwargs):
        self.layout = push_cube.load_layout(layout)
        self.states: dict[int, push_cube.PushCubeState] = {}
        super().__init__(*args, **kwargs)

    def _load_scene(self, options):
        super()._load_scene(options)
        self.cubes = {
            color: self._dynamic_box(color, self.layout.cube_size_m, self.domain.look.objects[color],
                                     to_sapien(self.parked(i)))
            for i, color in enumerate(self.layout.colors)
        }

    def parked(self, index: int) -> Pose:
        """Where object `index` waits while it is not in play."""
        return Pose([0.1 + 0.12 * index, 0.0, PARKING_TOP_M + self.layout.cube_size_m / 2], [0.0, 0.0, 0.0, 1.0])

    def sample(self, seed: int) -> push_cube.PushCubeState:
        return push_cube.sample(self.layout, self.contract.task(push_cube.NAME), seed)

    def _initialize_episode(self, env_idx, options):
        with torch.device(self.device):
            states = [self.sample(int(self._episode_seed[i])) for i in env_idx.tolist()]
            self.states.update(zip(env_idx.tolist(), states, strict=True))
            for index, (color, cube) in enumerate(self.cubes.items()):
                poses = [to_sapien(state.objects.get(color, self.parked(index))) for state in states]
                cube.set_pose(BatchedPose.create_from_pq(
                    torch.tensor(np.array([pose.p for pose in poses])), torch.tensor(np.array([p.q for p in poses]))))
            qpos = [start_qpos(self.agent.urdf_path, state.tool) for state in states]
            self.agent.robot.set_qpos(torch.tensor(np.array(qpos), dtype=torch.float32))

    def evaluate(self):
        if not self.states:
            return {}
        start = np.zeros((self.num_envs, len(self.cubes), 2))
        named = np.zeros((self.num_envs, len(self.cubes)), dtype=bool)
        for i, state in self.states.items():
            for k, color in enumerate(self.cubes):
                start[i, k] = state.objects.get(color, self.parked(k)).position[:2]
                named[i, k] = color == state.named
        now = torch.stack([cube.pose.p[:, :2] for cube in self.cubes.values()], dim=1)
        start, named = torch.tensor(start, device=self.device), torch.tensor(named, device=self.device)
        success, failure = push_cube.judge(self.layout, start, now, named)
        return {"success": success, "fail": failure}

    def _get_obs_extra(self, info):
        return {"tool_pose": self.agent.tcp.pose.raw_pose}


def _material(color):
    return sapien.render.RenderMaterial(base_color=[*color, 1.0], roughness=0.9, specular=0.1)
