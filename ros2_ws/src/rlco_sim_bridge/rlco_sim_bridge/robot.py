"""A Panda for ManiSkill that renders fast: the shipped collision meshes serve as visuals, too.

The stock visual meshes have 135,000 triangles and take 40 of the 50 ms of a step on a CPU renderer; these have 2,000.
"""

import hashlib
import xml.etree.ElementTree as ET
from functools import lru_cache
from pathlib import Path

from mani_skill.agents.controllers import PDEEPoseControllerConfig, PDJointPosMimicControllerConfig
from mani_skill.agents.controllers.pd_ee_pose import PDEEPoseController
from mani_skill.agents.robots import Panda

from rlco_common.contract import ActionSpec
from rlco_sim_bridge.cache import cached_folder
from rlco_sim_bridge.domain import Domain

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


class RampedEEPoseController(PDEEPoseController):
    """ManiSkill's end-effector controller with drive targets that ramp from the previous target over the control period.

    The stock one ramps from the measured joint positions, so a lagging arm is jerked back at the start of each tick.
    """

    def set_action(self, action):
        previous = self._target_qpos.clone()
        super().set_action(action)
        self._start_qpos = previous
        self._step_size = (self._target_qpos - previous) / self._sim_steps


class RampedEEPoseControllerConfig(PDEEPoseControllerConfig):
    controller_cls = RampedEEPoseController


@lru_cache(maxsize=16)
def _panda_class(arm, gripper, robot_color, tool_color, translation_m, rotation_rad):
    class PandaLite(Panda):
        uid = "rlco_panda_lite"
        urdf_path = str(lite_urdf(robot_color, tool_color))

        @property
        def _controller_configs(self):
            return {CONTROL_MODE: {
                "arm": RampedEEPoseControllerConfig(
                    joint_names=self.arm_joint_names, pos_lower=-translation_m, pos_upper=translation_m,
                    rot_lower=-rotation_rad, rot_upper=rotation_rad,
                    stiffness=arm.stiffness, damping=arm.damping, force_limit=arm.force_limit,
                    ee_link=self.ee_link_name, urdf_path=self.urdf_path, use_target=True, interpolate=True,
                    normalize_action=False),
                "gripper": PDJointPosMimicControllerConfig(
                    self.gripper_joint_names, lower=0.0, upper=0.04, stiffness=gripper.stiffness,
                    damping=gripper.damping, force_limit=gripper.force_limit,
                    mimic={"panda_finger_joint2": {"joint": "panda_finger_joint1"}}),
            }}

    return PandaLite


def panda_class(domain: Domain, action: ActionSpec) -> type[Panda]:
    """The ManiSkill agent class of a domain. Its action: 6-D delta of the target in metres and radians, gripper -1..1.

    The bounds of its action space are the contract's limits; an action beyond them is not clipped.
    """
    return _panda_class(domain.arm, domain.gripper, domain.look.robot, domain.look.tool, action.max_translation_m,
                        action.max_rotation_rad)
