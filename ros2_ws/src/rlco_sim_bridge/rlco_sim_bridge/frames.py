"""Frames of a cell as poses in the robot's base frame (REP-103 axes, REP-105 names come from the contract)."""

import numpy as np

from rlco_common.pose import Pose
from rlco_sim_bridge.domain import CameraView


def optical_pose(view: CameraView) -> Pose:
    """The camera's optical frame in the base frame: x right, y down, z forward, origin at the eye."""
    forward, left, up = view.rotation().T
    return Pose(view.eye_m, quaternion_from_matrix(np.stack([-left, -up, forward], axis=1)))


def quaternion_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Unit quaternion (x, y, z, w), w >= 0, of a rotation matrix [3, 3]; the inverse of rlco_common.pose.rotation_matrix.

    The quaternion is the eigenvector with eigenvalue 1 of Bar-Itzhack's symmetric matrix (J. Guidance 23(6), 2000), which
    has no singular case and averages rounding errors.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.asarray(matrix, dtype=np.float64)
    symmetric = np.array([
        [xx - yy - zz, yx + xy, zx + xz, zy - yz],
        [yx + xy, yy - xx - zz, zy + yz, xz - zx],
        [zx + xz, zy + yz, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]) / 3.0
    quaternion = np.linalg.eigh(symmetric)[1][:, -1]
    return -quaternion if quaternion[3] < 0 else quaternion
