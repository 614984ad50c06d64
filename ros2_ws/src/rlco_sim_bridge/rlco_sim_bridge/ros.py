"""Messages that only a simulator publishes."""

import numpy as np
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo

from rlco_common.contract import CameraSpec
from rlco_common.ros import stamp_from_ns


def clock_msg(now_ns: int) -> Clock:
    return Clock(clock=stamp_from_ns(now_ns))


def camera_info_msg(camera: CameraSpec, intrinsics: np.ndarray, stamp_ns: int) -> CameraInfo:
    """CameraInfo of an undistorted pinhole camera with `intrinsics` [3, 3] in pixels."""
    message = CameraInfo(width=camera.width, height=camera.height, distortion_model="plumb_bob", d=[0.0] * 5)
    message.header.frame_id = camera.frame
    message.header.stamp = stamp_from_ns(stamp_ns)
    message.k = intrinsics.ravel().tolist()
    message.r = np.eye(3).ravel().tolist()
    message.p = np.hstack([intrinsics, np.zeros((3, 1))]).ravel().tolist()
    return message
