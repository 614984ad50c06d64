"""Reading messages by their fields alone: the same code decodes rclpy's messages live and rosbags' from a bag."""

import numpy as np

from rlco_common.contract import CameraSpec
from rlco_common.observation import decode_camera_image
from rlco_common.pose import Pose


def pose_from_msg(message) -> Pose:
    """The pose of a geometry_msgs/PoseStamped."""
    position, orientation = message.pose.position, message.pose.orientation
    return Pose(
        np.array([position.x, position.y, position.z]),
        np.array([orientation.x, orientation.y, orientation.z, orientation.w]),
    )


def image_from_msg(camera: CameraSpec, message) -> np.ndarray:
    """uint8 RGB [height, width, 3] of a sensor_msgs/Image; raises DataError when it breaks the contract."""
    return decode_camera_image(camera, message.data, message.height, message.width, message.encoding, message.step)
