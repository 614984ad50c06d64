"""A Panda for ManiSkill that renders fast: the shipped collision meshes serve as visuals, too.

The stock visual meshes have 135,000 triangles and take 40 of the 50 ms of a step on a CPU renderer; these have 2,000.
"""

import hashlib
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mani_skill.agents.controllers import PDEEPoseControllerConfig, PDJointPosMimicControllerConfig
from mani_skill.agents.controllers.pd_ee_pose import PDEEPoseController
from mani_skill.agents.robots import Panda
from mani_skill.utils.geometry import rotation_conversions
from mani_skill.utils.structs import Pose

from rlco_common.contract import Contract
from rlco_sim_bridge.arm import FINGERS, kinematics
from rlco_sim_bridge.cache import cached_folder
from rlco_sim_bridge.domain import Domain
from rlco_sim_bridge.scenery import from_sapien

TOOL_LINKS = ("panda_hand", "panda_leftfinger", "panda_rightfinger")
CONTROL_MODE = "pd_ee_target_delta_pose"


def lite_urdf(robot_color, tool_color) -> Path:
    """Path of the Panda's URDF with collision meshes as visuals, written once per colouring to the user's cache."""
    source = Path(Panda.urdf_path)
    tree = ET.parse(source)
    for link in tree.getroot().iter("link"):
        for mesh in link.iter("mesh"):
            mesh.set("filename", str(source.parent / mesh.get("filename")))
        collision, visual = link.find("collision/geometry/mesh"), link.find("visual/geometry/mesh")
        if visual is None or collision is None:
            continue
        visual.set("filename", collision.get("filename"))
        color = tool_color if link.get("name") in TOOL_LINKS else robot_color
        material = ET.SubElement(link.find("visual"), "material", name=f"{link.get('name')}_material")
        ET.SubElement(material, "color", rgba=" ".join(map(str, (*color, 1.0))))
    text = ET.tostring(tree.getroot())

    def fill(folder: Path):
        (folder / "panda.urdf").write_bytes(text)
        # the SRDF beside it tells the loader which links may overlap; without it the wrist collides with itself
        (folder / "panda.srdf").write_bytes(source.with_suffix(".srdf").read_bytes())

    return cached_folder(f"panda_lite_{hashlib.sha256(text).hexdigest()[:12]}", fill) / "panda.urdf"


class CellArmController(PDEEPoseController):
    """ManiSkill's end-effector controller with the command path of a robot cell: the contract's workspace box, rotations
    as rotation vectors, a domain's gain, and drive targets that ramp from the previous target over the control period.

    The stock controller ramps from the measured joint positions, so a lagging arm is jerked back at each tick's start.
    """

    _start_pose = None

    def reset(self):
        super().reset()
        if self._start_pose is None:
            self._start_pose = Pose.create(self._target_pose.raw_pose.clone())
        else:
            mask = self.scene._reset_mask
            self._start_pose.raw_pose[mask] = self._target_pose.raw_pose[mask]

    def targets(self) -> list[torch.Tensor]:
        """Copies of what the controller remembers of the present episodes, each [N, ...]; see `keep_targets`."""
        return [tensor.clone() for tensor in self._remembered()]

    def keep_targets(self, targets: list[torch.Tensor], scenes: torch.Tensor) -> None:
        """Take `targets` back in the scenes [N] bool."""
        for tensor, before in zip(self._remembered(), targets, strict=True):
            tensor[scenes] = before[scenes]

    def _remembered(self):
        return self._start_qpos, self._target_qpos, self._target_pose.raw_pose, self._start_pose.raw_pose

    def set_action(self, action):
        self._step = 0
        self._start_qpos = self._target_qpos.clone()
        self._target_pose = self._composed(self._target_pose, action)
        solved = self._solved(self._miscalibrated(self._target_pose))
        if solved is not None:
            self._target_qpos = solved
        self._step_size = (self._target_qpos - self._start_qpos) / self._sim_steps

    def _solved(self, target):
        """[N, 7] joint positions with the tool at `target`; None where the solver of the CPU does not get there."""
        if self.device.type == "cuda":
            return self.kinematics.compute_ik(pose=target, q0=self.articulation.get_qpos(), current_pose=self.ee_pose_at_base,
                                              solver_config=self.config.delta_solver_config)
        qpos = kinematics(self.config.urdf_path).follow(
            from_sapien(target.sp), self.articulation.get_qpos()[0].numpy().astype(np.float64))
        return None if qpos is None else torch.tensor(qpos[None, :-FINGERS], dtype=torch.float32)

    def _composed(self, target, action):
        """contract.compose_target, batched."""
        low, high = (torch.as_tensor(bound, dtype=action.dtype, device=action.device) for bound in self.config.workspace_m)
        rotation = rotation_conversions.axis_angle_to_quaternion(action[:, 3:6])
        return Pose.create_from_pq((target.p + action[:, :3]).clamp(low, high),
                                   rotation_conversions.quaternion_multiply(rotation, target.q))

    def _miscalibrated(self, target):
        if self.config.gain == 1.0:
            return target
        start = self._start_pose
        turned = rotation_conversions.quaternion_multiply(target.q, rotation_conversions.quaternion_invert(start.q))
        turned = rotation_conversions.quaternion_to_axis_angle(rotation_conversions.standardize_quaternion(turned))
        rotation = rotation_conversions.axis_angle_to_quaternion(self.config.gain * turned)
        share = torch.tensor([self.config.gain, self.config.gain, 1.0], device=target.p.device)
        return Pose.create_from_pq(start.p + share * (target.p - start.p),
                                   rotation_conversions.quaternion_multiply(rotation, start.q))


@dataclass
class CellArmControllerConfig(PDEEPoseControllerConfig):
    """workspace_m: (min [3], max [3]) of the target position, base frame. gain: see rlco_sim_bridge.domain.ArmSpec."""

    workspace_m: tuple = ()
    gain: float = 1.0
    controller_cls = CellArmController


@lru_cache(maxsize=16)
def _panda_class(arm, gripper, colors, action, limits, visuals):
    class CellPanda(Panda):
        uid = f"rlco_panda_{visuals}"
        urdf_path = str(lite_urdf(*colors)) if visuals == "lite" else Panda.urdf_path

        @property
        def _controller_configs(self):
            return {CONTROL_MODE: {
                "arm": CellArmControllerConfig(
                    joint_names=self.arm_joint_names, pos_lower=-action.max_translation_m, pos_upper=action.max_translation_m,
                    rot_lower=-action.max_rotation_rad, rot_upper=action.max_rotation_rad,
                    stiffness=arm.stiffness, damping=arm.damping, force_limit=arm.force_limit,
                    ee_link=self.ee_link_name, urdf_path=self.urdf_path, use_target=True, interpolate=True,
                    normalize_action=False, workspace_m=(limits.workspace_min_m, limits.workspace_max_m), gain=arm.gain),
                "gripper": PDJointPosMimicControllerConfig(
                    self.gripper_joint_names, lower=0.0, upper=0.04, stiffness=gripper.stiffness,
                    damping=gripper.damping, force_limit=gripper.force_limit,
                    mimic={"panda_finger_joint2": {"joint": "panda_finger_joint1"}}),
            }}

    return CellPanda


def panda_class(domain: Domain, contract: Contract, visuals: str = "lite") -> type[Panda]:
    """The ManiSkill agent class of a domain. Its action: 6-D delta of the target in metres and radians, gripper -1..1.

    The bounds of its action space are the contract's limits; an action beyond them is not clipped. visuals: "lite" or
    "full", ManiSkill's own meshes (135,000 triangles, for comparison).
    """
    if visuals not in ("lite", "full"):
        raise ValueError(f"robot visuals are 'lite' or 'full', not '{visuals}'")
    colors = (domain.look.robot, domain.look.tool)
    return _panda_class(domain.arm, domain.gripper, colors, contract.action, contract.limits, visuals)
