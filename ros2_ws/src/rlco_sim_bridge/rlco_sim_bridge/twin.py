"""One simulated table, stepped fast: numpy in, numpy out, no ROS and no gym.

Same physics as the registered ManiSkill environment, but only the work that a control tick needs: one inverse
kinematics, the physics steps, and a picture when somebody looks.
"""

import math
from dataclasses import replace

import numpy as np
import sapien

from rlco_common.contract import Contract
from rlco_common.errors import TwinError
from rlco_common.observation import Observation
from rlco_common.pose import Pose
from rlco_sim_bridge import shaders
from rlco_sim_bridge.arm import Arm, start_qpos
from rlco_sim_bridge.domain import CameraView, Domain, load_domain
from rlco_sim_bridge.environment import FAR_M, NEAR_M, PHYSICS_RATE_HZ, make_environment
from rlco_sim_bridge.scene_state import SceneState, StepResult
from rlco_sim_bridge.scenery import camera_pose, from_sapien, to_sapien
from rlco_sim_bridge.tasks import load_task
from rlco_sim_bridge.tasks.base import Snapshot
from rlco_sim_bridge.variation import NOMINAL, Variation

_XYZW = [1, 2, 3, 0]    # of SAPIEN's quaternions
_NO_BODIES = np.zeros((0, 3)), np.zeros((0, 4))


class Twin:
    """A scene of `task` in `domain`; `renders` says whether it has pictures.

    render=False needs no Vulkan; observations then have no images. layout: the task's layout (name, path or object; None:
    the task's own). Raises TwinError when there is no renderer, ConfigError for an unknown task, domain or variation.
    """

    def __init__(self, contract: Contract, task: str, domain: str | Domain = "twin", *, variation: Variation = NOMINAL,
                 layout=None, render: bool = True, robot_visuals: str = "lite"):
        self.task = load_task(task, layout)
        self.contract = contract
        self.max_steps = contract.task(task).max_steps
        self.domain = load_domain(domain)
        for camera in contract.cameras:
            self.domain.camera(camera, task)    # raises when the domain lacks one
        self.variation = variation
        self._tick_steps = round(PHYSICS_RATE_HZ * contract.control_period_s)
        self._env = make_environment(task, render=render, contract=contract, domain=self.domain, layout=self.task.layout,
                                     variation=variation, robot_visuals=robot_visuals)
        self.renders = render
        self._home = self._env.scene.sub_scenes[0]
        self._physical = [entity for entity in self._home.entities
                          if entity.find_component_by_type(sapien.physx.PhysxBaseComponent) is not None]
        self._articulation = self._env.agent.robot._objs[0]
        self._tool_link = self._env.agent.tcp._objs[0]
        self._bodies = {name: actor._objs[0] for name, actor in self._env.bodies.items()}
        self._dynamics = {name: entity.find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)
                          for name, entity in self._bodies.items() if not self.task.bodies[name].fixed}
        self._cabinet = self._env.cabinet._objs[0] if self._env.cabinet is not None else None
        self._arm = Arm(self._env.agent, contract.robot, self.domain.arm, 1.0 / PHYSICS_RATE_HZ)
        self._cameras = {name: self._env._sensors[name].camera._render_cameras[0] for name in contract.cameras
                         } if render else {}
        self._lamps = [entity.find_component_by_type(sapien.render.RenderDirectionalLightComponent)
                       for entity in self._home.entities if entity.name == "directional_light"]
        self._views: dict[tuple, object] = {}
        self._state = None

    def reset(self, seed: int, tool: Pose | None = None) -> Observation:
        """Start episode `seed`: the same initial state and instruction in every domain.

        tool: where the end effector starts instead (base frame). Raises TwinError when that is out of reach.
        """
        self.seed = int(seed)
        state = self._env.sample(self.seed)
        self._state = state = state if tool is None else replace(state, tool=tool)
        self._renew_physics()
        self._place(state)
        self._set_arm(start_qpos(self._env.agent.urdf_path, state.tool,
                                 self.contract.robot.gripper_joint_position(state.opening)))
        self._arrange_look()
        names = list(self._bodies)
        self._named = np.array([name == state.named for name in names], dtype=bool)
        self._in_play = np.array([name in state.objects for name in names], dtype=bool)
        self._start = self._snapshot()
        self._physics_steps = 0
        self._success = self._failure = False
        self._target = self.tool_pose()
        self._arm.reset(self._articulation.get_qpos(), self._target)
        return self.observe()

    @property
    def instruction(self) -> str:
        """The present episode's instruction."""
        return self._require_state().instruction

    @property
    def unreached_targets(self) -> int:
        """How many commanded targets of this episode were out of the arm's reach; the arm held still for those."""
        return self._arm.unreached

    def step(self, action) -> StepResult:
        """One control tick with a physical action [7], clipped to the contract's limits. Renders nothing."""
        self._require_state()
        action = self.contract.action.clip(action)
        return self.apply_target(self.contract.compose_target(self._target, action), float(action[6]))

    def apply_target(self, target: Pose, gripper: float, duration_s: float | None = None) -> StepResult:
        """Command an absolute tool pose (base frame) and gripper opening [0, 1], and simulate `duration_s`.

        The default duration is one control period. A following `step` composes its delta onto this target.
        Raises ValueError on a non-finite command.
        """
        duration_s = self.contract.control_period_s if duration_s is None else duration_s
        self.command(target, gripper, duration_s)
        return self.simulate(duration_s)

    def command(self, target: Pose | np.ndarray, gripper: float, ramp_s: float) -> None:
        """Command as `apply_target` does, without simulating: the arm's drives get there linearly in `ramp_s`.

        target: tool pose, or joint positions [7]; a following `step` then composes its delta onto the measured pose.
        """
        self._require_state()
        numbers = target.as_array() if isinstance(target, Pose) else target
        if not (np.isfinite(numbers).all() and math.isfinite(gripper)):
            raise ValueError(f"non-finite command: {numbers.tolist()}, gripper {gripper}")
        self._target = target if isinstance(target, Pose) else self.tool_pose()
        self._arm.command(target, gripper, round(ramp_s * PHYSICS_RATE_HZ))

    def simulate(self, duration_s: float) -> StepResult:
        """Let `duration_s` pass, to a whole physics step, under the command given last."""
        self._require_state()
        steps = round(duration_s * PHYSICS_RATE_HZ)
        advance, step = self._arm.advance, self._physics.step
        for _ in range(steps):
            advance()
            step()
        self._physics_steps += steps
        return self._judge()

    def observe(self, images: bool = True) -> Observation:
        """The present observation, on demand without images; stamp_ns counts from the reset."""
        qpos = self._articulation.get_qpos().astype(np.float64)
        return Observation(
            images=self._pictures() if images else {},
            ee_pose=self.tool_pose(), gripper=self.contract.robot.gripper_opening(qpos[7]), joint_positions=qpos[:7],
            stamp_ns=self.time_ns)

    def scene_state(self) -> SceneState:
        """The privileged state, for experts and critics."""
        state, qpos = self._require_state(), self._articulation.get_qpos()
        objects = {name: from_sapien(self._bodies[name].get_pose()) if name in self._bodies else pose
                   for name, pose in state.objects.items()}
        return SceneState(
            stamp_ns=self.time_ns, task=self.task.name, named=state.named, goal_m=self.task.goal(state),
            objects=self.task.landmarks(objects, self._travel_m()), tool=self.tool_pose(),
            tool_velocity_m_s=np.asarray(self._tool_link.get_linear_velocity(), dtype=np.float64),
            gripper=self.contract.robot.gripper_opening(float(qpos[7])), joint_positions=qpos[:7].astype(np.float64))

    def camera_view(self, camera: str) -> CameraView:
        """Where a contract camera stands in the present episode."""
        return self.variation.camera_view(self.domain.camera(camera, self.task.name), self.seed if self._state else 0)

    def tool_pose(self) -> Pose:
        """Measured end-effector pose in the base frame."""
        return from_sapien(self._tool_link.get_entity_pose())

    @property
    def target(self) -> Pose:
        """The pose commanded last; at an episode's start the measured one."""
        return self._target

    @property
    def time_ns(self) -> int:
        """Simulated time since the reset, nanoseconds."""
        return self._physics_steps * (1_000_000_000 // PHYSICS_RATE_HZ)

    def picture(self, width: int = 640, height: int = 480, shader: str = "default", camera: str | None = None,
                view: CameraView | None = None) -> np.ndarray:
        """uint8 [height, width, 3] RGB for people, from a contract camera's place or from `view`.

        Raises TwinError without a renderer.
        """
        if not self._cameras:
            raise TwinError("this twin was made with render=False; make one with render=True to take pictures")
        name = camera or next(iter(self._cameras))
        key = (name, width, height, shader)
        if key not in self._views:
            self._views[key] = _add_camera(self._env, width, height, shader)
        _point(self._views[key], view or self.camera_view(name))
        self._update_render()
        return self._picture(self._views[key])

    def close(self) -> None:
        """Free the scene."""
        self._cameras, self._views = {}, {}
        self._env.close()

    def _judge(self) -> StepResult:
        if not (self._success or self._failure):
            success, failure = self.task.judge(self._start, self._snapshot(), self._named, self._in_play)
            self._success, self._failure = bool(success), bool(failure & ~success)
        steps = -(-self._physics_steps // self._tick_steps)
        return StepResult(self._success, self._failure, steps, self._success or self._failure or steps >= self.max_steps)

    def _snapshot(self) -> Snapshot:
        poses = [entity.get_pose() for entity in self._bodies.values()]
        if poses:
            position = np.concatenate([pose.p for pose in poses], dtype=np.float64).reshape(-1, 3)
            quaternion = np.concatenate([pose.q for pose in poses], dtype=np.float64).reshape(-1, 4)[:, _XYZW]
        else:
            position, quaternion = _NO_BODIES
        return Snapshot(position, quaternion, tool=self._tool_link.get_entity_pose().p.astype(np.float64),
                        opening=np.float64(self.contract.robot.gripper_opening(float(self._articulation.get_qpos()[7]))),
                        travel=np.float64(self._travel_m()))

    def _travel_m(self) -> float:
        return float(self._cabinet.get_qpos()[0]) if self._cabinet is not None else 0.0

    def _renew_physics(self):
        """Move everything into a new physics system. PhysX keeps orderings of past contacts that no reset clears, so
        without this an episode would depend, in the last bits, on those before it. Takes under a millisecond."""
        self._env._set_scene_config()    # global in PhysX; another environment may have changed it
        self._physics = sapien.physx.PhysxCpuSystem()
        self._physics.timestep = 1.0 / PHYSICS_RATE_HZ
        stage = sapien.Scene([self._physics, self._home.render_system] if self.renders else [self._physics])
        for entity in self._physical:
            entity.remove_from_scene()
        for entity in self._physical:
            stage.add_entity(entity)
        self._stage = stage              # keeps the entities; cameras and lights stay in the scene they were made in
        self._env.scene.px = self._physics

    def _place(self, state):
        for name, entity in self._bodies.items():
            entity.set_pose(to_sapien(state.objects.get(name, self._env.parked(name))))
        for body in self._dynamics.values():
            body.set_linear_velocity([0.0, 0.0, 0.0])
            body.set_angular_velocity([0.0, 0.0, 0.0])
            body.wake_up()     # its sleep timer would go on from the last episode, and change the last bits of this one
        if self._cabinet is not None:
            self._cabinet.set_root_pose(to_sapien(state.objects["cabinet"]))
            self._cabinet.set_qpos([state.travel_m])
            self._cabinet.set_qvel([0.0])

    def _arrange_look(self):
        """Camera poses and lights of this episode, where the variation moves them."""
        if self.variation.camera:
            for name, camera in self._cameras.items():
                _point(camera, self.camera_view(name))
        if self.variation.light and self.renders:
            light = self.variation.lights(self.domain.light, self.seed)
            self._env.scene.set_ambient_light(list(light.ambient))
            for lamp, spec in zip(self._lamps, light.directional, strict=True):
                lamp.color = list(spec.color)
                lamp.pose = sapien.Pose([0.0, 0.0, 0.0], sapien.math.shortest_rotation([1, 0, 0], list(spec.direction)))

    def _set_arm(self, qpos):
        self._articulation.set_qpos(qpos)
        self._articulation.set_qvel(np.zeros(len(qpos)))

    def _pictures(self) -> dict[str, np.ndarray]:
        if self._cameras:
            self._update_render()
        return {name: self._picture(camera) for name, camera in self._cameras.items()}

    def _update_render(self):
        self._home.update_render()

    def _picture(self, camera) -> np.ndarray:
        camera.take_picture()
        color = camera.get_picture("Color")
        if color.dtype != np.uint8:
            return (np.clip(color[..., :3], 0.0, 1.0) * 255).astype(np.uint8)
        picture = np.empty((*color.shape[:2], 3), np.uint8)
        for channel in range(3):     # seven times faster than a copy of color[..., :3]
            picture[..., channel] = color[..., channel]
        return picture

    def _require_state(self):
        if self._state is None:
            raise TwinError("the twin has no episode yet; call reset(seed) first")
        return self._state


def _add_camera(env, width, height, shader):
    shaders.activate(shader)
    return env.scene.sub_scenes[0].add_camera(
        name=f"view_{width}x{height}_{shader}", width=width, height=height, fovy=1.0, near=NEAR_M, far=FAR_M)


def _point(camera, view: CameraView) -> None:
    camera.set_local_pose(camera_pose(view))    # not the entity's: ManiSkill put the first view there, and both count
    camera.set_fovy(view.fov_rad)
