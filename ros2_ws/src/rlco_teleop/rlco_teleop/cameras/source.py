"""Where pictures come from: V4L2 devices and video files, through OpenCV. No ROS.

Times are those of the system's clock in nanoseconds, which is what ROS stamps are.
"""

import glob
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "2")     # seconds until a silent device counts as dead

import cv2
import numpy as np

from rlco_common.errors import RlcoError

_OLDEST_S = 2.0         # a driver's stamp may be this old; else it is not on a clock that we know


class CameraError(RlcoError):
    """A camera cannot be opened, or does not deliver."""


class EndOfFile(CameraError):
    """A video file is over."""


@dataclass(frozen=True)
class Picture:
    """image: uint8 [height, width, 3] BGR. stamp_ns: when it was taken, if by_driver; else when it came."""

    image: np.ndarray
    stamp_ns: int
    by_driver: bool


class V4l2Device:
    """A camera of the kernel. Zero or empty settings leave the driver's own."""

    def __init__(self, device: str, width: int = 0, height: int = 0, rate_hz: float = 0.0, fourcc: str = ""):
        self._device = device
        self._wanted = {cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*fourcc) if fourcc else 0, cv2.CAP_PROP_FRAME_WIDTH: width,
                        cv2.CAP_PROP_FRAME_HEIGHT: height, cv2.CAP_PROP_FPS: rate_hz}
        self._capture = None

    def open(self) -> None:
        """Raises CameraError saying what is there instead."""
        if not Path(self._device).exists():
            there = ", ".join(sorted(glob.glob("/dev/video*"))) or "none"
            raise CameraError(f"no camera at {self._device}; devices here: {there}. Plug it in, or set the parameter source")
        if not os.access(self._device, os.R_OK | os.W_OK):
            raise CameraError(f"{self._device} may not be read by this user; add it to the group of the device, mostly `video`")
        capture = cv2.VideoCapture(self._device, cv2.CAP_V4L2)
        if not capture.isOpened():
            raise CameraError(f"{self._device} cannot be opened: another program has it, or it is not a capture device "
                              "(v4l2-ctl --list-devices tells)")
        for setting, value in self._wanted.items():
            if value:
                capture.set(setting, value)
        for setting, name in ((cv2.CAP_PROP_FRAME_WIDTH, "width"), (cv2.CAP_PROP_FRAME_HEIGHT, "height")):
            if self._wanted[setting] and capture.get(setting) != self._wanted[setting]:
                got = int(capture.get(setting))
                capture.release()
                raise CameraError(f"{self._device} gives {name} {got} instead of {self._wanted[setting]}; choose a size that "
                                  "it has (v4l2-ctl --list-formats-ext)")
        self._capture = capture

    def read(self) -> Picture:
        """The next picture. Raises CameraError when none comes."""
        good, image = self._capture.read()
        if not good:
            raise CameraError(f"{self._device} delivers nothing any more")
        stamp_ns, by_driver = driver_stamp(self._capture.get(cv2.CAP_PROP_POS_MSEC), time.time_ns(), time.monotonic_ns())
        return Picture(image, stamp_ns, by_driver)

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class VideoFile:
    """A recorded video, at its own speed. `read` waits until a picture is due."""

    def __init__(self, path: str, closing: threading.Event):
        """closing: ends the waiting."""
        self._path, self._closing = path, closing
        self._capture = None

    def open(self) -> None:
        if not Path(self._path).is_file():
            raise CameraError(f"no video file {self._path}")
        self._capture = cv2.VideoCapture(self._path)
        if not self._capture.isOpened():
            raise CameraError(f"{self._path} is not a video that OpenCV can read")
        self._began_ns: int | None = None

    def read(self) -> Picture:
        """Raises EndOfFile after the last picture."""
        good, image = self._capture.read()
        if not good:
            raise EndOfFile(f"{self._path} is over")
        in_file_ns = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        if self._began_ns is None:
            self._began_ns, self._begin_stamp_ns, self._first_ns = time.monotonic_ns(), time.time_ns(), in_file_ns
        since_ns = in_file_ns - self._first_ns
        wait_s = (self._began_ns + since_ns - time.monotonic_ns()) / 1e9
        if wait_s > 0:
            self._closing.wait(wait_s)
        return Picture(image, self._begin_stamp_ns + since_ns, True)

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def driver_stamp(position_ms: float, now_ns: int, monotonic_ns: int) -> tuple[int, bool]:
    """(stamp in nanoseconds of the system's clock, whether the driver gave it).

    V4L2 drivers stamp on the monotonic clock, some on the system's; 0 or anything else is no stamp.
    """
    driver_ns = round(position_ms * 1e6)
    for clock_ns in (monotonic_ns, now_ns):
        age_ns = clock_ns - driver_ns
        if 0 <= age_ns <= _OLDEST_S * 1e9:
            return now_ns - age_ns, True
    return now_ns, False
