"""Forward kinematics of one chain of a URDF, by joint name. Standard library and numpy only."""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlco_common.errors import ConfigError, DataError
from rlco_common.pose import Pose, quaternion_from_rotation_vector, quaternion_multiply, rotation_matrix

_TURNING, _SLIDING = ("revolute", "continuous"), ("prismatic",)


@dataclass(frozen=True)
class _Joint:
    name: str
    kind: str
    origin: Pose            # of the joint's frame in its parent link
    axis: np.ndarray        # [3] unit vector in the joint's frame
    parent: str


class UrdfChain:
    """The chain from a base link to a tip link. Empty names mean the root and the only leaf.

    Raises ConfigError for a file that is not a URDF, an unknown link, or more than one leaf where none is named.
    """

    def __init__(self, path: str | Path, tip: str = "", base: str = ""):
        by_child = _joints(Path(path))
        parents = {joint.parent for joint in by_child.values()}
        self.tip = tip or _only(sorted(set(by_child) - parents), path)
        if self.tip not in by_child:
            raise ConfigError(f"{path}: no link '{self.tip}' with a joint above it; links: {', '.join(by_child)}")
        self._chain: list[_Joint] = []
        link = self.tip
        while link in by_child and link != base:
            self._chain.insert(0, by_child[link])
            link = by_child[link].parent
        if base and link != base:
            raise ConfigError(f"{path}: link '{base}' is not below the tip '{self.tip}' on the way to '{link}'")
        self.base = link
        self.joint_names = tuple(joint.name for joint in self._chain if joint.kind in _TURNING + _SLIDING)

    def forward(self, positions: Mapping[str, float]) -> Pose:
        """Pose of the tip in the base link at these joint positions, radians and metres. DataError names missing joints."""
        missing = [name for name in self.joint_names if name not in positions]
        if missing:
            raise DataError(f"joint(s) {', '.join(missing)} missing; got {', '.join(positions) or 'none'}")
        pose = Pose(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]))
        for joint in self._chain:
            pose = _placed(pose, joint.origin)
            if joint.kind in _TURNING:
                turn = quaternion_from_rotation_vector(joint.axis * positions[joint.name])
                pose = _placed(pose, Pose(np.zeros(3), turn))
            elif joint.kind in _SLIDING:
                pose = _placed(pose, Pose(joint.axis * positions[joint.name], np.array([0.0, 0.0, 0.0, 1.0])))
        return pose


def _placed(frame: Pose, inner: Pose) -> Pose:
    """`inner`, which is given in `frame`, in the frame of `frame`."""
    quaternion = quaternion_multiply(frame.quaternion, inner.quaternion)
    return Pose(frame.position + rotation_matrix(frame.quaternion) @ inner.position, quaternion / np.linalg.norm(quaternion))


def _joints(path: Path) -> dict[str, _Joint]:
    """Joints by the link below them."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ConfigError(f"{path}: not a readable URDF: {error}") from error
    try:
        return {joint.find("child").attrib["link"]: _joint(joint) for joint in root.iter("joint") if "type" in joint.attrib}
    except (AttributeError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: a joint lacks its name, parent or child, or has a bad number: {error}") from error


def _joint(element) -> _Joint:
    origin, axis = element.find("origin"), element.find("axis")
    xyz = _numbers(origin, "xyz", "0 0 0")
    roll, pitch, yaw = _numbers(origin, "rpy", "0 0 0")
    direction = _numbers(axis, "xyz", "1 0 0")
    kind = element.attrib["type"]
    if kind not in (*_TURNING, *_SLIDING, "fixed"):
        raise ValueError(f"joint type '{kind}' is not supported")
    return _Joint(element.attrib["name"], kind, Pose(xyz, _quaternion(roll, pitch, yaw)),
                  direction / (np.linalg.norm(direction) or 1.0), element.find("parent").attrib["link"])


def _numbers(element, name: str, default: str) -> np.ndarray:
    values = np.array([float(word) for word in (default if element is None else element.get(name, default)).split()])
    if values.shape != (3,) or not np.isfinite(values).all():
        raise ValueError(f"{name} needs three numbers")
    return values


def _quaternion(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """URDF's fixed axes: about x, then y, then z."""
    turns = [quaternion_from_rotation_vector(np.array(vector)) for vector in ((roll, 0, 0), (0, pitch, 0), (0, 0, yaw))]
    quaternion = quaternion_multiply(turns[2], quaternion_multiply(turns[1], turns[0]))
    return quaternion / math.sqrt(quaternion @ quaternion)


def _only(leaves: list[str], path) -> str:
    if len(leaves) != 1:
        raise ConfigError(f"{path} has the tips {', '.join(leaves) or '(none)'}; name one")
    return leaves[0]
