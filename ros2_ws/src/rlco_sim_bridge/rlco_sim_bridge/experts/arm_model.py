"""Kinematics and collisions of an arm from its URDF: pinocchio and coal, no simulator and no knowledge of a task.

Poses are in the robot's base frame, metres; joint positions in radians, in the order of `arm_joints`.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from rlco_common.errors import ConfigError, RlcoError
from rlco_common.pose import Pose

try:
    import coal
    import pinocchio
except ImportError as error:
    raise ConfigError(f"motion planning needs pinocchio and coal: {error}. Install them with "
                      "`pip install pin==4.1.0 coal==3.0.3 ompl==2.0.1`, or run scripts/setup.sh") from error

PANDA_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
_HELD = "held object"
_MAX_ITERATIONS = 100
_DAMPING = 1e-3
_TOLERANCE = 1e-5          # of the twist that is left, metres and radians
_POSTURE_GAIN = 0.05       # pulls redundant joints towards `near`, per iteration
_LIMIT_SLACK_RAD = 1e-3    # a measured state may be this far outside its limits


class PlanningError(RlcoError):
    """No motion can be given; subclasses say why."""


class OutOfReach(PlanningError):
    """No joint positions within the limits bring the tool to the goal."""


@dataclass(frozen=True)
class Box:
    """A solid box. pose: of its centre, robot base frame (a held one: tool frame). half_size_m: [3] along its own axes."""

    name: str
    pose: Pose
    half_size_m: tuple[float, float, float]

    def __post_init__(self):
        if not (self.pose.is_finite() and min(self.half_size_m) > 0):
            raise ValueError(f"box '{self.name}' needs a finite pose and positive half sizes")


class ArmKinematics:
    """An arm as its URDF describes it, without its shapes. tool_frame: link whose pose is meant.

    lower, upper: [n] joint limits in radians. max_speed: [n] rad/s. Raises ConfigError for unreadable files and unknown names.
    """

    def __init__(self, urdf: str | Path, *, tool_frame: str = "panda_hand_tcp", arm_joints: Sequence[str] = PANDA_JOINTS,
                 finger_opening_m: float = 0.04):
        self._model = _load_model(Path(urdf))
        missing = [name for name in arm_joints if not self._model.existJointName(name)]
        if missing or not self._model.existFrame(tool_frame):
            raise ConfigError(f"{urdf}: no joint or link {', '.join(missing) or tool_frame}")
        joints = [self._model.joints[self._model.getJointId(name)] for name in arm_joints]
        self._at = np.array([joint.idx_q for joint in joints])
        self._columns = np.array([joint.idx_v for joint in joints])
        self.joint_names = tuple(arm_joints)
        self.lower, self.upper = self._model.lowerPositionLimit[self._at], self._model.upperPositionLimit[self._at]
        self.max_speed = self._model.velocityLimit[self._columns]
        self._tool = self._model.getFrameId(tool_frame)
        self._data = self._model.createData()
        self._full = np.clip(np.full(self._model.nq, finger_opening_m), self._model.lowerPositionLimit,
                             self._model.upperPositionLimit)

    def within_limits(self, qpos) -> bool:
        """True when every joint of [n] is within its limits, give or take a milliradian."""
        qpos = np.asarray(qpos)
        return bool((qpos >= self.lower - _LIMIT_SLACK_RAD).all() and (qpos <= self.upper + _LIMIT_SLACK_RAD).all())

    def forward(self, qpos) -> Pose:
        """Tool pose at joint positions [n]."""
        pinocchio.framesForwardKinematics(self._model, self._data, self._complete(qpos))
        placed = self._data.oMf[self._tool]
        return Pose(placed.translation.copy(), pinocchio.Quaternion(placed.rotation).coeffs().copy())

    def tilt_rad(self, qpos) -> float:
        """Angle between the tool's z axis and straight down at joint positions [n]."""
        pinocchio.framesForwardKinematics(self._model, self._data, self._complete(qpos))
        return math.acos(min(1.0, max(-1.0, -self._data.oMf[self._tool].rotation[2, 2])))

    def inverse(self, pose: Pose, near) -> np.ndarray:
        """Joint positions [n] within the limits with the tool at `pose`, found by damped Newton steps from `near` [n].

        Raises OutOfReach when the steps do not lead there; another `near` may.
        """
        goal = _placement(pose)
        near = np.asarray(near, dtype=np.float64)
        qpos = np.clip(near, self.lower, self.upper)
        for _ in range(_MAX_ITERATIONS):
            full = self._complete(qpos)
            pinocchio.framesForwardKinematics(self._model, self._data, full)
            left = pinocchio.log6(self._data.oMf[self._tool].actInv(goal)).vector
            if np.abs(left).max() < _TOLERANCE:
                return qpos
            jacobian = pinocchio.computeFrameJacobian(self._model, self._data, full, self._tool)[:, self._columns]
            step = _newton_step(jacobian, left, near - qpos)
            blocked = ((qpos <= self.lower) & (step < 0)) | ((qpos >= self.upper) & (step > 0))
            if blocked.any():       # the other joints have to do it
                step = _newton_step(jacobian * ~blocked, left, (near - qpos) * ~blocked)
            qpos = np.clip(qpos + step / max(1.0, np.abs(step).max() / 0.5), self.lower, self.upper)
        raise OutOfReach(f"no joint positions found with the tool at {pose.position.round(3).tolist()} m, quaternion "
                         f"{pose.quaternion.round(3).tolist()}; give a pose within reach, or start nearer to it")

    def _complete(self, qpos):
        self._full[self._at] = qpos
        return self._full


class ArmModel(ArmKinematics):
    """An arm among boxes. The links are the convex hulls of the URDF's collision meshes, as ManiSkill's physics has them.

    The SRDF beside the URDF (same stem) names the links that may touch. Obstacles are checked against moving links only:
    the base stands on its table. margin_m: what is nearer than this counts as touching an obstacle.
    tool_frame: link whose pose is planned. Raises ConfigError for unreadable files and unknown names.
    """

    def __init__(self, urdf: str | Path, obstacles: Sequence[Box] = (), *, margin_m: float = 0.01, **kinematics):
        super().__init__(urdf, **kinematics)
        self._links, self._self_pairs = _load_links(Path(urdf))
        self._margin_m = margin_m
        self._obstacles, self._held = tuple(obstacles), None
        self._build()

    def set_obstacles(self, obstacles: Sequence[Box]) -> None:
        """Replace all obstacles."""
        self._obstacles = tuple(obstacles)
        self._build()

    def hold(self, held: Box | None, finger_opening_m: float | None = None) -> None:
        """Attach a box to the tool (pose in the tool frame), or detach it with None. It may touch the hand that holds it."""
        self._held = held
        if finger_opening_m is not None:
            fingers = np.setdiff1d(np.arange(self._model.nq), self._at)
            self._full[fingers] = np.clip(finger_opening_m, self._model.lowerPositionLimit[fingers],
                                          self._model.upperPositionLimit[fingers])
        self._build()

    def is_free(self, qpos) -> bool:
        """True when at joint positions [n] nothing touches."""
        return not pinocchio.computeCollisions(self._model, self._data, self._geometry, self._checks, self._complete(qpos),
                                               True)

    def touching(self, qpos) -> tuple[str, str] | None:
        """The first pair of links, obstacles or the held object that touch at joint positions [n]; None when free."""
        return next(iter(self.contacts(qpos)), None)

    def contacts(self, qpos) -> list[tuple[str, str]]:
        """All pairs that touch at joint positions [n]."""
        pinocchio.computeCollisions(self._model, self._data, self._geometry, self._checks, self._complete(qpos), False)
        objects = self._geometry.geometryObjects
        return [(self._name(objects[pair.first]), self._name(objects[pair.second]))
                for pair, result in zip(self._geometry.collisionPairs, self._checks.collisionResults, strict=True)
                if result.isCollision()]

    def _name(self, geometry) -> str:
        if geometry.name in (_HELD, *(box.name for box in self._obstacles)):
            return geometry.name
        return self._model.frames[geometry.parentFrame].name

    def _build(self):
        """The geometry model of links, held object and obstacles, with the pairs to check."""
        names = [box.name for box in self._obstacles]
        if len({*names, _HELD}) <= len(names):
            raise ConfigError(f"obstacles need different names, none of them '{_HELD}': {', '.join(names)}")
        geometry = self._links.copy()
        moving = [i for i, link in enumerate(self._links.geometryObjects) if link.parentJoint != 0]
        pairs, near = list(self._self_pairs), []
        if self._held is not None:
            frame = self._model.frames[self._tool]
            held = geometry.addGeometryObject(_solid(_HELD, self._held, frame.parentJoint, frame.placement))
            hand = self._hand()
            pairs += [(i, held) for i, link in enumerate(self._links.geometryObjects) if link.parentJoint not in hand]
            moving.append(held)
        for box in self._obstacles:
            index = geometry.addGeometryObject(_solid(box.name, box, 0))
            near += [(i, index) for i in moving]
        geometry.removeAllCollisionPairs()
        for pair in pairs + near:
            geometry.addCollisionPair(pinocchio.CollisionPair(*pair))
        self._geometry, self._checks = geometry, pinocchio.GeometryData(geometry)
        for index in range(len(pairs), len(pairs) + len(near)):
            self._checks.collisionRequests[index].security_margin = self._margin_m

    def _hand(self) -> set[int]:
        """The joints that carry the tool and whatever moves on it: what may touch a held object."""
        wrist = self._model.frames[self._tool].parentJoint
        return {wrist, *(i for i, parent in enumerate(self._model.parents) if parent == wrist)}


@lru_cache(maxsize=4)
def _load_model(urdf: Path):
    if not urdf.is_file():
        raise ConfigError(f"{urdf} does not exist; give the path of the arm's URDF")
    try:
        return pinocchio.buildModelFromUrdf(str(urdf))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{urdf}: {error}") from error


@lru_cache(maxsize=4)
def _load_links(urdf: Path):
    """(geometry of the links, pairs of them that must not touch)."""
    model, srdf = _load_model(urdf), urdf.with_suffix(".srdf")
    if not srdf.is_file():
        raise ConfigError(f"{srdf} does not exist; motion planning needs an SRDF beside the URDF, of the same name")
    try:
        links = pinocchio.buildGeomFromUrdf(model, str(urdf), pinocchio.GeometryType.COLLISION,
                                            package_dirs=_package_folders(urdf))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{urdf}: {error}") from error
    for link in links.geometryObjects:
        if isinstance(link.geometry, coal.BVHModelBase):
            link.geometry.buildConvexRepresentation(True)
            link.geometry = link.geometry.convex
    links.addAllCollisionPairs()
    pinocchio.removeCollisionPairs(model, links, str(srdf))
    return links, [(pair.first, pair.second) for pair in links.collisionPairs]


def _package_folders(urdf: Path) -> list[str]:
    """Where a `package://` of the URDF may be: beside it, and in every prefix of the ROS environment."""
    prefixes = filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))
    return [str(urdf.parent), *(str(Path(prefix) / "share") for prefix in prefixes)]


def _newton_step(jacobian, left, posture):
    """[n] joint step that removes the twist `left` [6], and moves by a share of `posture` [n] where that costs nothing."""
    inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + _DAMPING**2 * np.eye(6))
    return inverse @ left + _POSTURE_GAIN * (posture - inverse @ (jacobian @ posture))


def _placement(pose: Pose):
    return pinocchio.XYZQUATToSE3(pose.as_array())


def _solid(name, box, joint, parent=None):
    placement = _placement(box.pose) if parent is None else parent * _placement(box.pose)
    return pinocchio.GeometryObject(name, joint, placement, coal.Box(*(2 * np.array(box.half_size_m))))
