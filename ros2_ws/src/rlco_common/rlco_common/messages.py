"""Reading messages by their fields alone: the same code decodes rclpy's messages live and rosbags' from a bag."""

import numpy as np
import simplejpeg

from rlco_common.contract import CameraSpec
from rlco_common.errors import DataError
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
    """uint8 RGB [height, width, 3] of a sensor_msgs/Image, or of a sensor_msgs/CompressedImage that holds a JPEG.

    Raises DataError when it breaks the contract.
    """
    if hasattr(message, "format"):
        return _decode_jpeg(camera, message)
    return decode_camera_image(camera, message.data, message.height, message.width, message.encoding, message.step)


def diagnostic_values(status) -> dict[str, str]:
    """The values of a diagnostic_msgs/DiagnosticStatus by their keys."""
    return {item.key: item.value for item in status.values}


def _decode_jpeg(camera: CameraSpec, message) -> np.ndarray:
    try:
        image = simplejpeg.decode_jpeg(memoryview(message.data), colorspace="RGB")
    except ValueError as error:
        raise DataError(f"{camera.compressed_topic}: not a JPEG but '{message.format}': {error}; "
                        "let the driver compress to JPEG, or record raw images") from error
    if image.shape != camera.shape:
        raise DataError(f"{camera.compressed_topic}: got {image.shape[1]}x{image.shape[0]}, the contract says "
                        f"{camera.width}x{camera.height}; fix the camera driver or the contract")
    return image
