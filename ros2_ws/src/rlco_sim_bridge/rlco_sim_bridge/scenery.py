"""The bodies of a scene, built into a SAPIEN scene in the looks and with the contacts of a domain."""

import numpy as np
import sapien

from rlco_common.pose import Pose
from rlco_sim_bridge import textures
from rlco_sim_bridge.domain import CameraView, Domain
from rlco_sim_bridge.tasks.base import Body, DrawerCabinet, Part

TABLE_MIN_M, TABLE_MAX_M = (-0.4, -0.8, -0.04), (1.0, 0.8, 0.0)
PARKING_TOP_M = -0.6      # a shelf below the table holds the objects that are not in play
_ALONG_Z = [0.5**0.5, 0.0, 0.5**0.5, 0.0]       # (w, x, y, z); SAPIEN's cylinders lie along x
_ALONG_MINUS_X = [0.0, 0.0, 0.0, 1.0]


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


class Scenery:
    """Builds into `scene`, a ManiSkillScene of one or many sub-scenes."""

    def __init__(self, scene, domain: Domain):
        self._scene = scene
        self._domain = domain
        friction = domain.contact.friction
        self._contact = sapien.physx.PhysxMaterial(static_friction=friction, dynamic_friction=friction, restitution=0.0)

    def build_room(self) -> None:
        """Table, floor, the walls that cameras see, and the shelf for objects that are not in play."""
        background = _material(self._domain.look.background)
        self._static_box("table", TABLE_MIN_M, TABLE_MAX_M, self._table_material())
        self._static_box("floor", (-3.0, -3.0, -1.2), (3.0, 3.0, -1.0), background)
        self._static_box("wall_behind", (-1.2, -3.0, -1.0), (-1.1, 3.0, 2.0), background)
        self._static_box("wall_ahead", (2.9, -3.0, -1.0), (3.0, 3.0, 2.0), background)
        self._static_box("wall_left", (-3.0, 2.9, -1.0), (3.0, 3.0, 2.0), background)
        self._static_box("parking", (-0.4, -0.8, PARKING_TOP_M - 0.02), (1.0, 0.8, PARKING_TOP_M), background)

    def build_body(self, name: str, body: Body, pose: Pose):
        """A ManiSkill actor: dynamic, or kinematic when it is fixed."""
        builder = self._scene.create_actor_builder()
        for part in body.parts:
            self._add(builder, part)
        builder.initial_pose = to_sapien(pose)
        if body.fixed:
            return builder.build_kinematic(name)
        actor = builder.build(name)
        actor.set_angular_damping(self._domain.contact.rolling_damping)
        return actor

    def build_cabinet(self, spec: DrawerCabinet):
        """A ManiSkill articulation with one joint, the drawer's travel in metres."""
        contact = self._domain.contact
        builder = self._scene.create_articulation_builder()
        cabinet = builder.create_link_builder()
        cabinet.set_name("cabinet")
        drawer = builder.create_link_builder(cabinet)
        drawer.set_name("drawer")
        drawer.set_joint_name("drawer_slide")
        for link, parts in ((cabinet, spec.cabinet), (drawer, spec.drawer)):
            for part in parts:
                self._add(link, part)
        slide = sapien.Pose([0.0, 0.0, 0.0], _ALONG_MINUS_X)     # a prismatic joint moves along its own x
        drawer.set_joint_properties("prismatic", limits=[[0.0, spec.max_travel_m]], pose_in_parent=slide, pose_in_child=slide,
                                    friction=contact.drawer_friction, damping=contact.drawer_damping)
        builder.initial_pose = sapien.Pose([0.785, 0.0, 0.0])
        return builder.build("cabinet", fix_root_link=True)

    def _add(self, builder, part: Part) -> None:
        density, material = self._domain.contact.density_kg_m3, _material(self._domain.color(part.color))
        pose = sapien.Pose(part.position, _ALONG_Z) if part.kind == "cylinder" else sapien.Pose(part.position)
        size = {"box": ("half_size",), "sphere": ("radius",), "cylinder": ("radius", "half_length")}[part.kind]
        values = (part.size,) if part.kind == "box" else part.size
        size = dict(zip(size, values, strict=True))
        getattr(builder, f"add_{part.kind}_collision")(pose, **size, material=self._contact, density=density)
        getattr(builder, f"add_{part.kind}_visual")(pose, **size, material=material)

    def _static_box(self, name, low, high, material):
        half = np.subtract(high, low) / 2
        builder = self._scene.create_actor_builder()
        builder.add_box_collision(half_size=half, material=self._contact)
        builder.add_box_visual(half_size=half, material=material)
        builder.initial_pose = sapien.Pose(np.add(high, low) / 2)
        return builder.build_static(name)

    def _table_material(self):
        table = self._domain.look.table
        if table.texture == "plain" or not self._scene.can_render():
            return _material(table.color)
        material = _material((1.0, 1.0, 1.0))
        material.base_color_texture = sapien.render.RenderTexture2D(
            textures.wood(table.color), "R8G8B8A8Unorm", mipmap_levels=4)
        return material


def _material(color):
    return sapien.render.RenderMaterial(base_color=[*color, 1.0], roughness=0.9, specular=0.1)
