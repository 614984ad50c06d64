"""Rigid poses and the delta-pose algebra of the action space.

Quaternions are (x, y, z, w), the order of geometry_msgs. Positions are in metres in the robot's base frame.
A delta is `[dx, dy, dz, rx, ry, rz]`: a translation and a rotation vector, both along the base axes, applied to the
previous *target* pose: `p' = p + d`, `q' = exp(r) * q`. For the small rotations of one control tick the rotation
vector is roll, pitch and yaw about the base axes; unlike Euler angles it has an exact inverse.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pose:
    """Position [3] in metres and unit quaternion [4] (x, y, z, w), both float64."""

    position: np.ndarray
    quaternion: np.ndarray

    def __post_init__(self):
        position = np.asarray(self.position, dtype=np.float64).reshape(3)
        quaternion = np.asarray(self.quaternion, dtype=np.float64).reshape(4)
        object.__setattr__(self, "position", position)
        object.__setattr__(self, "quaternion", quaternion)

    def is_finite(self) -> bool:
        """True when every number is finite and the quaternion is not degenerate."""
        numbers = [*self.position.tolist(), *self.quaternion.tolist()]
        return all(map(math.isfinite, numbers)) and abs(math.hypot(*numbers[3:]) - 1.0) < 1e-3

    def as_array(self) -> np.ndarray:
        """[7]: x, y, z, qx, qy, qz, qw."""
        return np.concatenate([self.position, self.quaternion])


def pose_from_array(values) -> Pose:
    """Inverse of Pose.as_array."""
    values = np.asarray(values, dtype=np.float64)
    return Pose(values[:3], values[3:7])


def quaternion_multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamilton product a * b of (x, y, z, w) quaternions."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return np.array(
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ]
    )


def quaternion_conjugate(q: np.ndarray) -> np.ndarray:
    return np.array([-q[0], -q[1], -q[2], q[3]])


def quaternion_from_rotation_vector(r: np.ndarray) -> np.ndarray:
    """exp(r): the unit quaternion that rotates by |r| radians about r."""
    x, y, z = np.asarray(r, dtype=np.float64).tolist()      # plain numbers: arrays of three cost ten times as much
    angle = math.sqrt(x * x + y * y + z * z)
    half_sinc = math.sin(0.5 * angle) / angle if angle > 0.0 else 0.5
    return np.array([half_sinc * x, half_sinc * y, half_sinc * z, math.cos(0.5 * angle)])


def rotation_vector_from_quaternion(q: np.ndarray) -> np.ndarray:
    """log(q): rotation vector with angle in [0, pi]; q and -q give the same vector."""
    q = np.asarray(q, dtype=np.float64)
    q = q / np.linalg.norm(q)
    if q[3] < 0:
        q = -q
    sine = np.linalg.norm(q[:3])
    if sine < 1e-12:
        return 2.0 * q[:3]
    return q[:3] * (2.0 * np.arctan2(sine, q[3]) / sine)


def rotation_matrix(q: np.ndarray) -> np.ndarray:
    """[3, 3] rotation matrix of a unit quaternion (x, y, z, w)."""
    x, y, z, w = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def compose_delta(pose: Pose, delta: np.ndarray) -> Pose:
    """Apply `delta` [6] (metres and radians, base axes) to `pose`."""
    delta = np.asarray(delta, dtype=np.float64)
    turn = quaternion_from_rotation_vector(delta[3:6])
    quaternion = quaternion_multiply(turn.tolist(), pose.quaternion.tolist())
    return Pose(pose.position + delta[:3], quaternion / math.sqrt(quaternion.dot(quaternion)))


def delta_between(start: Pose, end: Pose) -> np.ndarray:
    """The delta [6] with compose_delta(start, delta) == end; the inverse of compose_delta."""
    rotation = quaternion_multiply(end.quaternion, quaternion_conjugate(start.quaternion))
    return np.concatenate([end.position - start.position, rotation_vector_from_quaternion(rotation)])


def rotation_angle(a: Pose, b: Pose) -> float:
    """Angle in radians between the orientations of two poses."""
    return float(np.linalg.norm(delta_between(a, b)[3:]))
