"""Takes pictures on a thread of its own, and opens the camera again when it has died. No ROS."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from rlco_common.contract import CameraSpec
from rlco_common.errors import ConfigError
from rlco_teleop.cameras.source import CameraError, EndOfFile
from rlco_teleop.cameras.view import Crop, crop_for

WAITING = 2             # pictures that may wait to be published; older ones are dropped, and counted
RATE_WINDOW_S = 2.0


@dataclass(frozen=True)
class Shot:
    """A picture as the contract wants it: uint8 [height, width, 3] in the contract's channel order."""

    image: np.ndarray
    stamp_ns: int


class Capture:
    """make: () -> source (V4l2Device, VideoFile), opened anew after each failure. wake: called when shots wait in `take`.

    loop: a file begins again at its end.
    """

    def __init__(self, make: Callable, camera: CameraSpec, wake: Callable[[], None], closing: threading.Event, *, loop: bool,
                 reopen_s: float):
        self._make, self._wake, self._closing = make, wake, closing
        self._size, self._swap = (camera.width, camera.height), camera.encoding == "rgb8"
        self._loop, self._reopen_s = loop, reopen_s
        self._shots: deque[Shot] = deque()
        self._lock = threading.Lock()
        self._arrivals: deque[float] = deque()
        self._thread: threading.Thread | None = None
        self._source = None
        self.source_size: tuple[int, int] | None = None
        self.problem = ""           # why there are no pictures now
        self.ended = False          # a file that does not loop
        self.pictures = self.dropped = self.reopened = 0
        self.by_driver: bool | None = None

    def open(self) -> None:
        """Open the camera for the first time. Raises CameraError."""
        source = self._make()
        source.open()
        self._source = source

    def start(self) -> None:
        """Begin to take pictures. Raises CameraError while the thread of before hangs in the driver."""
        if self._thread is not None and self._thread.is_alive():
            raise CameraError("the camera's driver still hangs; unplug the camera, or start the node anew")
        self._closing.clear()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 4.0) -> None:
        """End the thread; a device that hangs in the kernel is left to the end of the process."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def close(self) -> None:
        """Stop, and free the camera."""
        self.stop()
        if self._thread is None or not self._thread.is_alive():
            self._let_go()

    def take(self) -> list[Shot]:
        """The shots that wait, oldest first."""
        with self._lock:
            shots = list(self._shots)
            self._shots.clear()
        return shots

    @property
    def rate_hz(self) -> float:
        """Pictures per second over the last two seconds."""
        now = time.monotonic()
        recent = [arrived for arrived in list(self._arrivals) if now - arrived <= RATE_WINDOW_S]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 else 0.0

    @property
    def silent_s(self) -> float:
        """Time since the last picture; infinite before the first."""
        return time.monotonic() - self._arrivals[-1] if self._arrivals else float("inf")

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                if self._source is None:
                    self.open()
                    self.reopened += 1
                self._take_all()
            except EndOfFile as end:
                self._let_go()
                if not self._loop:
                    self.problem, self.ended = str(end), True
                    return
            except CameraError as error:
                self._let_go()
                self.problem = str(error)
                self._closing.wait(self._reopen_s)

    def _take_all(self) -> None:
        crop: Crop | None = None
        while not self._closing.is_set():
            picture = self._source.read()
            height, width = picture.image.shape[:2]
            if crop is None or self.source_size != (width, height):
                crop = self._crop(width, height)
            image = cv2.resize(crop.cut(picture.image), self._size, interpolation=cv2.INTER_AREA)
            if self._swap:
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            self.by_driver = picture.by_driver
            self._put(Shot(image, picture.stamp_ns))

    def _crop(self, width: int, height: int) -> Crop:
        try:
            crop = crop_for(width, height, *self._size)
        except ConfigError as error:
            raise CameraError(str(error)) from error
        self.source_size = (width, height)
        return crop

    def _put(self, shot: Shot) -> None:
        with self._lock:
            self._shots.append(shot)
            while len(self._shots) > WAITING:
                self._shots.popleft()
                self.dropped += 1
        now = time.monotonic()
        self._arrivals.append(now)
        while now - self._arrivals[0] > RATE_WINDOW_S:
            self._arrivals.popleft()
        self.pictures += 1
        self.problem = ""
        self._wake()

    def _let_go(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None
