"""The camera node: true stamps, the contract's picture with its calibration; a dead camera is reported and opened again."""

import threading
import time

import cv2
import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from rlco_common import topics
from rlco_common.contract import load_contract
from rlco_common.errors import ConfigError
from rlco_common.messages import diagnostic_values, image_from_msg
from rlco_common.processes import Processes
from rlco_common.ros import CAMERA_QOS, STATE_QOS, stamp_to_ns
from rlco_common.ros_client import RosClient
from rlco_teleop.cameras.source import CameraError, EndOfFile, V4l2Device, VideoFile, driver_stamp
from rlco_teleop.cameras.view import crop_for, load_calibration

CONTRACT = load_contract()
CAMERA = CONTRACT.cameras["front_camera"]
NODE = "rlco_teleop.nodes.camera_node"
WIDTH, HEIGHT, RATE_HZ, COUNT = 320, 240, 20.0, 30


def write_video(path, count=COUNT):
    """Red on the left, blue on the right, brighter from picture to picture."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE_HZ, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for number in range(count):
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[:, :WIDTH // 2, 2] = image[:, WIDTH // 2:, 0] = 60 + 6 * number
        writer.write(image)
    writer.release()
    return path


def write_calibration(path, width=WIDTH, height=HEIGHT, **changes):
    data = {"image_width": width, "image_height": height, "camera_name": "front", "distortion_model": "plumb_bob",
            "camera_matrix": {"rows": 3, "cols": 3, "data": [300.0, 0, 161.5, 0, 301.0, 118.0, 0, 0, 1]},
            "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0.1, -0.2, 0.001, 0.002, 0.0]},
            "rectification_matrix": {"rows": 3, "cols": 3, "data": np.eye(3).ravel().tolist()},
            "projection_matrix": {"rows": 3, "cols": 4, "data": [300.0, 0, 161.5, 0, 0, 301.0, 118.0, 0, 0, 0, 1, 0]}}
    path.write_text(yaml.safe_dump({key: value for key, value in {**data, **changes}.items() if value is not None}))
    return path


# -- the picture


@pytest.mark.parametrize(("size", "wanted"), [((320, 240), (128, 128)), ((640, 480), (640, 480)), ((1920, 1080), (320, 240)),
                                              ((480, 640), (100, 50))])
def test_calibration_follows_the_crop(tmp_path, size, wanted):
    """A point of the world is where the new calibration says, in the picture that was cropped and shrunk."""
    calibration = load_calibration(write_calibration(tmp_path / "c.yaml", *size))
    crop = crop_for(*size, *wanted)
    view = crop.calibration(calibration)
    assert (view.width, view.height, view.d) == (*wanted, calibration.d)
    for point in ([0.0, 0.0, 1.0], [0.1, -0.2, 1.3], [-0.3, 0.1, 2.0]):
        u, v, w = calibration.k @ point
        edge = np.array([u / w, v / w]) - [crop.left, crop.top] + 0.5       # from the crop's corner
        expected = edge * [wanted[0] / crop.width, wanted[1] / crop.height] - 0.5
        u, v, w = view.k @ point
        assert [u / w, v / w] == pytest.approx(expected, abs=1e-9)
        assert view.p @ [*point, 1.0] == pytest.approx(view.k @ point, abs=1e-9)


def test_a_smaller_picture_is_not_blown_up():
    with pytest.raises(ConfigError, match="gives 100x80, the contract wants 128x128"):
        crop_for(100, 80, 128, 128)


@pytest.mark.parametrize(("changes", "problem"), [
    ({"camera_matrix": None}, "'camera_matrix' is missing"), ({"image_width": "wide"}, "invalid literal"),
    ({"projection_matrix": {"rows": 3, "cols": 3, "data": [1.0] * 9}}, "3 x 4"),
    ({"camera_matrix": {"rows": 3, "cols": 3, "data": [float("nan")] * 9}}, "not finite")])
def test_a_wrong_calibration_is_named(tmp_path, changes, problem):
    with pytest.raises(ConfigError, match=problem):
        load_calibration(write_calibration(tmp_path / "c.yaml", **changes))


# -- stamps and sources


def test_driver_stamps_of_either_clock_count_and_nothing_else():
    now, monotonic = 1_700_000_000 * 10**9, 5_000 * 10**9
    assert driver_stamp((monotonic - 30_000_000) / 1e6, now, monotonic) == (now - 30_000_000, True)
    stamp, by_driver = driver_stamp((now - 30_000_000) / 1e6, now, monotonic)
    assert by_driver and abs(stamp - (now - 30_000_000)) < 1000
    for nonsense in (0.0, -1.0, (monotonic - 10 * 10**9) / 1e6, (monotonic + 10**9) / 1e6):
        assert driver_stamp(nonsense, now, monotonic) == (now, False)


def test_a_device_that_is_not_there_or_no_camera_is_explained(tmp_path):
    with pytest.raises(CameraError, match="no camera at /dev/video77; devices here: "):
        V4l2Device("/dev/video77").open()
    with pytest.raises(CameraError, match="not a capture device"):
        V4l2Device("/dev/null").open()
    with pytest.raises(CameraError, match="no video file"):
        VideoFile(str(tmp_path / "none.mp4"), threading.Event()).open()
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(CameraError, match="not a video"):
        VideoFile(str(text), threading.Event()).open()


def test_a_file_plays_at_its_own_speed_and_ends(tmp_path):
    source = VideoFile(str(write_video(tmp_path / "v.mp4", 10)), threading.Event())
    source.open()
    began, before = time.monotonic(), time.time_ns()
    pictures = [source.read() for _ in range(10)]
    took_s = time.monotonic() - began
    assert 0.44 <= took_s < 2.0
    assert np.diff([picture.stamp_ns for picture in pictures]) == pytest.approx(50_000_000, abs=1000)
    assert 0 <= pictures[0].stamp_ns - before < 10**9
    with pytest.raises(EndOfFile):
        source.read()
    source.close()


# -- over ROS


class Watcher:
    def __init__(self, client):
        self.client = client
        self.images = client.subscribe(Image, CAMERA.topic, CAMERA_QOS)
        self.infos = client.subscribe(CameraInfo, CAMERA.info_topic, CAMERA_QOS)
        self.diagnostics = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS, STATE_QOS)

    def status(self):
        last = self.diagnostics.last
        return last.status[0] if last is not None else DiagnosticStatus(message="nothing yet")

    def values(self):
        return diagnostic_values(self.status())

    def wait_status(self, level, text, timeout_s=10.0):
        self.client.wait_until(lambda: self.status().level == level and text in self.status().message, timeout_s,
                               f"'{text}' in diagnostics")


@pytest.fixture
def watch(tmp_path, ros_domain):
    """watch(**parameters): a camera node, and what it publishes."""
    with Processes(tmp_path / "log", ros_domain) as processes, RosClient("watcher", ros_domain, processes.check) as client:
        def start(**parameters):
            watcher = Watcher(client)
            processes.start_node(NODE, autostart=False, **parameters)
            assert client.change_state("/camera", Transition.TRANSITION_CONFIGURE, 90)
            client.wait_until(lambda: len(client.node.get_publishers_info_by_topic(CAMERA.topic)) == 0, 5, "silence")
            assert client.change_state("/camera", Transition.TRANSITION_ACTIVATE, timeout_s=30)
            return watcher

        yield start


def brightness(message):
    return float(image_from_msg(CAMERA, message)[:, :50, 0].mean())


def test_a_video_becomes_the_contracts_stream(watch, tmp_path):
    watcher = watch(source=str(write_video(tmp_path / "v.mp4")), calibration=str(write_calibration(tmp_path / "c.yaml")),
                    loop=False)
    jpegs = watcher.client.subscribe(CompressedImage, CAMERA.compressed_topic, CAMERA_QOS)
    watcher.wait_status(DiagnosticStatus.WARN, "end of file")
    images = watcher.images.messages
    assert len(images) >= COUNT // 3, "discovery may cost the first pictures"
    stamps = [stamp_to_ns(message.header.stamp) for message in images]
    assert np.diff(stamps) == pytest.approx(50_000_000, abs=2_000_000)
    late_s = [(time.time_ns() - (time.monotonic_ns() - arrived) - stamp) / 1e9
              for arrived, stamp in zip(watcher.images.arrivals_ns, stamps, strict=True)]
    assert min(late_s) > -0.001 and np.median(late_s) < 0.5
    assert images[0].header.frame_id == CAMERA.frame
    shown = [brightness(message) for message in images]
    assert (np.diff(shown) > 0).all()
    last = image_from_msg(CAMERA, images[-1])
    assert last[:, :50, 0].mean() > 150 and last[:, :50, 2].mean() < 40, "the left is red"
    assert last[:, -50:, 2].mean() > 150 and last[:, -50:, 0].mean() < 40, "the right is blue"
    decoded = image_from_msg(CAMERA, jpegs.last)
    assert np.abs(decoded.astype(int) - last).mean() < 6
    info = watcher.infos.find(lambda message: message.header.stamp == images[-1].header.stamp)
    assert info.header.frame_id == CAMERA.frame and (info.width, info.height) == (128, 128)
    scale = 128 / 240
    assert info.k[0] == pytest.approx(300.0 * scale) and info.k[2] == pytest.approx((161.5 - 40 + 0.5) * scale - 0.5)
    assert list(info.d) == pytest.approx([0.1, -0.2, 0.001, 0.002, 0.0])
    assert watcher.values()["stamps"] == "driver" and watcher.values()["captured"] == "320x240"
    assert int(watcher.values()["pictures"]) == COUNT


def test_a_camera_that_dies_is_reported_and_opened_again(watch, tmp_path):
    path = write_video(tmp_path / "v.mp4", 20)
    watcher = watch(source=str(path), reopen_s=0.2)
    watcher.client.wait_until(lambda: len(watcher.images) > 25, 10, "the video for the second time")
    path.rename(tmp_path / "gone.mp4")
    watcher.wait_status(DiagnosticStatus.ERROR, "no video file")
    (tmp_path / "gone.mp4").rename(path)
    watcher.wait_status(DiagnosticStatus.OK, "pictures/s")
    stamps = [stamp_to_ns(message.header.stamp) for message in watcher.images.messages]
    assert (np.diff(stamps) > 0).all(), "stamps go on"
    assert int(watcher.values()["reopened"]) >= 2
    info = watcher.infos.last
    assert info.k[0] == 0.0 and info.width == 128, "not calibrated, and says so"


def test_a_calibration_of_another_size_is_an_error_and_is_not_used(watch, tmp_path):
    watcher = watch(source=str(write_video(tmp_path / "v.mp4")),
                    calibration=str(write_calibration(tmp_path / "c.yaml", 640, 480)))
    watcher.wait_status(DiagnosticStatus.ERROR, "is for 640x480, the camera gives 320x240")
    assert watcher.infos.last.k[0] == 0.0


@pytest.mark.parametrize(("parameters", "reason"), [
    ({"source": "/dev/video77"}, "no camera at /dev/video77"),
    ({"camera": "wrist_camera"}, "no camera 'wrist_camera'; set the parameter camera to one of front_camera"),
    ({"use_sim_time": True}, "set use_sim_time to false"),
])
def test_what_cannot_work_is_refused_with_the_reason(tmp_path, ros_domain, parameters, reason):
    with Processes(tmp_path, ros_domain) as processes, RosClient("watcher", ros_domain) as client:
        processes.start_node(NODE, **parameters)
        client.wait_until(lambda: reason in processes["camera_node"].tail(), 60, "the reason in the log")
