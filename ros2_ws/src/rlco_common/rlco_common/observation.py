"""Observations and the codecs that turn them into what datasets store and policies read.

The same functions run live, on bags, on datasets and in the twin; their outputs are byte-equal for equal inputs.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rlco_common.contract import CameraSpec, Contract
from rlco_common.errors import DataError
from rlco_common.pose import Pose, rotation_matrix


@dataclass(frozen=True)
class Observation:
    """What the robot perceives at one control tick.

    images: camera name -> uint8 [height, width, 3] RGB, as the camera delivers it.
    ee_pose: end effector in the base frame. gripper: opening in [0, 1].
    joint_positions: [arm joints] radians, in the contract's order. stamp_ns: time of the newest image, nanoseconds.
    """

    images: dict[str, np.ndarray]
    ee_pose: Pose
    gripper: float
    joint_positions: np.ndarray
    stamp_ns: int


def encode_proprioception(contract: Contract, observation: Observation) -> np.ndarray:
    """The proprioception vector, float32 [len(contract.proprioception_names)], in physical units."""
    parts = {
        "ee_position": lambda: observation.ee_pose.position,
        "ee_rotation": lambda: rotation_matrix(observation.ee_pose.quaternion)[:, :2].T.ravel(),
        "gripper": lambda: [observation.gripper],
        "joint_positions": lambda: observation.joint_positions,
    }
    return np.concatenate([parts[name]() for name in contract.observation.proprioception]).astype(np.float32)


def encode_image(image: np.ndarray, size: int) -> np.ndarray:
    """Policy image: centre-cropped square, area-averaged to uint8 [size, size, 3] RGB."""
    height, width = image.shape[:2]
    side = min(height, width)
    if size > side:
        raise DataError(f"camera image {width}x{height} is smaller than the policy's {size}x{size}; use a smaller size")
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    if side % size == 0:
        factor = side // size
        # sums of slices: ten times faster than one sum over two axes of blocks
        rows = square[::factor].astype(np.uint32)
        for k in range(1, factor):
            rows += square[k::factor]
        blocks = rows[:, ::factor] + factor * factor // 2
        for k in range(1, factor):
            blocks += rows[:, k::factor]
        return (blocks // (factor * factor)).astype(np.uint8)
    weights = area_weights(side, size)
    rows = np.tensordot(weights, square.astype(np.float32), axes=(1, 0))
    return np.clip(np.tensordot(weights, rows, axes=(1, 1)).transpose(1, 0, 2) + 0.5, 0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def area_weights(source: int, target: int) -> np.ndarray:
    """float32 [target, source]: the share of each source pixel in each target pixel, along one axis. Rows sum to 1."""
    edges = np.linspace(0, source, target + 1)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0, None) * target / source).astype(np.float32)


def decode_camera_image(camera: CameraSpec, data, height: int, width: int, encoding: str, step: int) -> np.ndarray:
    """uint8 RGB [height, width, 3] of a raw sensor_msgs/Image payload. Raises DataError on another format."""
    if encoding != camera.encoding or (height, width) != (camera.height, camera.width):
        raise DataError(
            f"{camera.topic}: got {width}x{height} {encoding}, the contract says "
            f"{camera.width}x{camera.height} {camera.encoding}; fix the camera driver or the contract"
        )
    row_bytes = width * 3
    array = np.frombuffer(data, np.uint8)
    if step < row_bytes or array.size != height * step:
        raise DataError(f"{camera.topic}: {array.size} bytes do not hold {height} rows of step {step}")
    image = array.reshape(height, step)[:, :row_bytes].reshape(height, width, 3)
    return image[:, :, ::-1].copy() if encoding == "bgr8" else image


def joints_by_name(contract: Contract, names, positions) -> tuple[np.ndarray, float]:
    """Arm joint positions [n] in the contract's order and the gripper opening, whatever order the message has."""
    index = {name: i for i, name in enumerate(names)}
    wanted = (*contract.robot.arm_joints, contract.robot.gripper_joint)
    missing = [name for name in wanted if name not in index]
    if missing:
        raise DataError(f"{contract.topics.joint_states}: joint(s) {', '.join(missing)} missing; got {', '.join(names)}")
    arm = np.array([positions[index[name]] for name in contract.robot.arm_joints], dtype=np.float64)
    return arm, contract.robot.gripper_opening(positions[index[contract.robot.gripper_joint]])
