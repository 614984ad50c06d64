"""The camera node: a V4L2 device or a video file on a camera's topics of the contract."""

import math
import threading

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from rlco_common import topics
from rlco_common.errors import ConfigError
from rlco_common.ros import (
    CAMERA_QOS,
    STATE_QOS,
    RlcoLifecycleNode,
    compressed_image_msg,
    declare,
    declare_contract,
    diagnostics,
    image_to_msg,
    run_node,
    stamp_from_ns,
)
from rlco_teleop.cameras.capture import Capture
from rlco_teleop.cameras.source import V4l2Device, VideoFile
from rlco_teleop.cameras.view import Calibration, crop_for, load_calibration
from rlco_teleop.ros import Endpoints

DIAGNOSTICS_PERIOD_S = 1.0


class CameraNode(RlcoLifecycleNode):
    """Lifecycle node `camera`, for one camera. Pictures are cropped in the middle and shrunk to the contract's size.

    It configures only when the camera can be opened. One that dies later is reported, and opened again as soon as it is back.
    """

    def __init__(self):
        super().__init__("camera")
        self._contract = declare_contract(self)
        name = declare(self, "camera", "", "camera of the contract; empty: the only one", read_only=True)
        self._source = declare(self, "source", "/dev/video0", "V4L2 device, or path of a video file", read_only=True)
        size = {"low": 0, "high": 10000, "read_only": True}
        self._width = declare(self, "width", 0, "device: width to capture, pixels; 0: the driver's", **size)
        self._height = declare(self, "height", 0, "device: height to capture, pixels; 0: the driver's", **size)
        self._rate_hz = declare(self, "rate_hz", 0.0, "device: pictures per second; 0: the driver's", low=0.0, high=1000.0,
                                read_only=True)
        self._fourcc = declare(self, "fourcc", "", "device: pixel format of four letters, such as MJPG; empty: the driver's",
                               read_only=True)
        self._calibration_file = declare(self, "calibration", "", "camera_info YAML of the captured size; empty: none",
                                         read_only=True)
        self._loop = declare(self, "loop", True, "file: begin again at the end", read_only=True)
        self._reopen_s = declare(self, "reopen_s", 1.0, "time between two attempts to open a camera that died, s", low=0.1,
                                 high=60.0, read_only=True)
        self._quality = declare(self, "jpeg_quality", 90, "quality of /compressed, made while somebody subscribes", low=1,
                                high=100, read_only=True)
        self._camera = self._contract.cameras[self._known(name)]
        self._closing = threading.Event()
        self._capture: Capture | None = None
        self._calibration: Calibration | None = None
        self._info_size: tuple[int, int] | None = None     # of the capture that the present camera_info is for
        self._endpoints = Endpoints(self)
        self._arrived = self.create_guard_condition(self._publish)

    def _known(self, name: str) -> str:
        cameras = self._contract.cameras
        if name in cameras:
            return name
        if name or len(cameras) != 1:
            raise ConfigError(f"the contract has no camera '{name}'; set the parameter camera to one of {', '.join(cameras)}")
        return next(iter(cameras))

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.guarded(self._open)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        started = self.guarded(self._capture.start)
        if started != TransitionCallbackReturn.SUCCESS:
            return started
        camera, ends = self._camera, self._endpoints
        self._info_out = ends.publisher(CameraInfo, camera.info_topic, CAMERA_QOS)
        self._raw_out = ends.publisher(Image, camera.topic, CAMERA_QOS)
        self._jpeg_out = ends.publisher(CompressedImage, camera.compressed_topic, CAMERA_QOS)
        self._diagnostics = ends.publisher(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)
        ends.timer(DIAGNOSTICS_PERIOD_S, self._diagnose, Clock(clock_type=ClockType.STEADY_TIME))
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._capture.stop()
        self._capture.take()
        self._endpoints.clear()
        return super().on_deactivate(state)

    def close(self) -> None:
        """Free the camera; called at clean-up and at the end of the process."""
        if self._capture is not None:
            self._capture.close()
            self._capture = None

    def _open(self) -> None:
        if self.get_parameter("use_sim_time").value:
            raise ConfigError("a camera stamps its pictures with the system's time; set use_sim_time to false")
        self._calibration = load_calibration(self._calibration_file) if self._calibration_file else None
        capture = Capture(self._make_source, self._camera, self._arrived.trigger, self._closing, loop=self._loop,
                          reopen_s=self._reopen_s)
        capture.open()
        self._capture, self._info_size = capture, None

    def _make_source(self):
        if self._source.startswith("/dev/") and not self._source.startswith("/dev/shm/"):     # which holds plain files
            return V4l2Device(self._source, self._width, self._height, self._rate_hz, self._fourcc)
        return VideoFile(self._source, self._closing)

    # -- pictures

    def _publish(self) -> None:
        if not self._endpoints:
            return
        camera = self._camera
        for shot in self._capture.take():
            info = self._camera_info()
            info.header.stamp = stamp_from_ns(shot.stamp_ns)
            self._info_out.publish(info)
            self._raw_out.publish(image_to_msg(shot.image, camera.frame, shot.stamp_ns, camera.encoding))
            if self._jpeg_out.get_subscription_count():
                self._jpeg_out.publish(compressed_image_msg(shot.image, camera.frame, shot.stamp_ns, self._quality,
                                                            camera.encoding))

    def _camera_info(self) -> CameraInfo:
        """Without a calibration all matrices are zero, by which sensor_msgs/CameraInfo means an uncalibrated camera."""
        if self._info_size != self._capture.source_size:
            self._info_size = self._capture.source_size
            self._info = CameraInfo(width=self._camera.width, height=self._camera.height)
            self._info.header.frame_id = self._camera.frame
            if self._fits():
                crop = crop_for(*self._info_size, self._camera.width, self._camera.height)
                view = crop.calibration(self._calibration)
                self._info.distortion_model, self._info.d = view.distortion_model, list(view.d)
                self._info.k, self._info.r, self._info.p = (matrix.ravel().tolist() for matrix in (view.k, view.r, view.p))
        return self._info

    def _fits(self) -> bool:
        """The calibration, if there is one, is for what the camera captures."""
        calibration = self._calibration
        return calibration is not None and (calibration.width, calibration.height) == self._capture.source_size

    # -- diagnostics

    def _diagnose(self) -> None:
        level, text = self._health()
        capture = self._capture
        by_driver = {None: "", True: "driver", False: "arrival"}[capture.by_driver]
        values = {"source": self._source, "captured": "x".join(map(str, capture.source_size or ())), "rate_hz":
                  f"{capture.rate_hz:.1f}", "pictures": capture.pictures, "dropped": capture.dropped,
                  "reopened": capture.reopened, "stamps": by_driver,
                  "calibration": self._calibration_file if self._fits() else "none"}
        self._diagnostics.publish(diagnostics(self, f"camera: {self._camera.topic}", level, text, values))

    def _health(self) -> tuple[bytes, str]:
        capture = self._capture
        if capture.ended:
            return DiagnosticStatus.WARN, f"end of file: {capture.problem}"
        if capture.problem:
            return DiagnosticStatus.ERROR, f"{capture.problem}; trying again every {self._reopen_s:g} s"
        if capture.silent_s > max(1.0, self._camera.max_age_s):
            since = f"for {capture.silent_s:.1f} s" if math.isfinite(capture.silent_s) else "yet"
            return DiagnosticStatus.ERROR, f"no picture {since}"
        if self._calibration is not None and not self._fits():
            return DiagnosticStatus.ERROR, (
                f"{self._calibration_file} is for {self._calibration.width}x{self._calibration.height}, the camera gives "
                f"{capture.source_size[0]}x{capture.source_size[1]}; calibrate at this size, or capture at that one")
        return DiagnosticStatus.OK, f"{capture.rate_hz:.1f} pictures/s"


def main(args=None) -> int:
    return run_node(CameraNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
