"""Lining the twin's camera up with a real one: the fitted pose, the overlay, and the commands that a lab uses for it."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rlco_common.errors import DataError
from rlco_sim_bridge.camera_fit import fit_camera, overlay
from rlco_sim_bridge.domain import CameraView, load_domain
from rlco_trainer.cli import main

WIDTH, HEIGHT = 640, 480
TRUE = CameraView((1.08, 0.06, 0.52), (0.55, 0.02, 0.07), 0.80, roll_rad=0.05)
GUESS = load_domain("twin").camera("front_camera", "push_cube")
POINTS = np.array([[0.45, -0.2, 0.0], [0.45, 0.2, 0.0], [0.7, -0.2, 0.0], [0.7, 0.2, 0.0], [0.55, 0.0, 0.1], [0.6, 0.1, 0.05],
                   [0.5, -0.1, 0.15], [0.65, -0.05, 0.0]])


def seen(view, points=POINTS):
    return np.array([view.project(point, WIDTH, HEIGHT) for point in points])


def same_direction(a, b):
    return np.abs(a.rotation() - b.rotation()).max()


def test_eight_exact_points_give_the_camera_back():
    fit = fit_camera(GUESS, POINTS, seen(TRUE), WIDTH, HEIGHT)
    assert fit.errors_px.max() < 1e-3
    np.testing.assert_allclose(fit.view.eye_m, TRUE.eye_m, atol=1e-4)
    assert same_direction(fit.view, TRUE) < 1e-4
    assert fit.view.fov_rad == pytest.approx(TRUE.fov_rad, abs=1e-4)
    assert fit.view.roll_rad == pytest.approx(TRUE.roll_rad, abs=1e-4)


def test_marks_that_are_a_pixel_off_give_a_camera_within_two_pixels():
    rng = np.random.default_rng(0)
    grid = np.array([[x, y, 0.0] for x in (0.45, 0.6, 0.75) for y in (-0.2, 0.0, 0.2)])
    errors = []
    for _ in range(10):
        fit = fit_camera(GUESS, POINTS, seen(TRUE) + rng.normal(0.0, 1.0, (len(POINTS), 2)), WIDTH, HEIGHT)
        errors.append(np.linalg.norm(seen(fit.view, grid) - seen(TRUE, grid), axis=1))
    assert np.quantile(errors, 0.9) < 2.0


def test_four_points_are_enough_when_the_field_of_view_is_known():
    true = replace(TRUE, fov_rad=GUESS.fov_rad)
    fit = fit_camera(GUESS, POINTS[:4], seen(true, POINTS[:4]), WIDTH, HEIGHT)
    assert fit.view.fov_rad == GUESS.fov_rad
    np.testing.assert_allclose(fit.view.eye_m, true.eye_m, atol=1e-3)


def test_too_few_points_are_refused():
    with pytest.raises(DataError, match="at least 4 points"):
        fit_camera(GUESS, POINTS[:3], seen(TRUE)[:3], WIDTH, HEIGHT)


def test_a_positive_roll_turns_the_picture_counter_clockwise():
    """The camera turns clockwise, so a point to the right of the middle is seen higher."""
    right = np.add(GUESS.target_m, -0.1 * GUESS.rotation()[:, 1])
    level = GUESS.project(right, WIDTH, HEIGHT)
    rolled = replace(GUESS, roll_rad=0.2).project(right, WIDTH, HEIGHT)
    assert level[0] > WIDTH / 2
    assert rolled[1] < level[1] - 1.0


def test_the_overlay_draws_the_outlines_of_the_rendering():
    photograph = np.full((60, 80, 3), 100, np.uint8)
    rendering = photograph.copy()
    rendering[20:40, 30:50] = 200
    picture = overlay(photograph, rendering)
    assert picture.shape == (60, 3 * 80 + 16, 3)
    assert (picture[20, 40] == [255, 40, 40]).all()
    assert (picture[5, 5] == 100).all()
    assert (picture[30, 88 + 40] == 150).all()
    with pytest.raises(DataError, match="differ in size"):
        overlay(photograph, rendering[:30])


@pytest.mark.long
def test_align_fits_a_photograph_and_view_shows_the_scene(tmp_path, capsys):
    """With a picture of the stand-in in place of a photograph: its camera is found from marked points."""
    standin = load_domain("standin").camera("front_camera", "push_cube")
    assert main(["twin", "view", "push_cube", "--domain", "standin", "--out", str(tmp_path / "view.png")]) == 0
    view = np.asarray(Image.open(tmp_path / "view.png"))
    assert view.shape == (500, 640 + 8 + 480, 3)
    photograph = tmp_path / "photograph.png"
    Image.fromarray(view[20:, :640]).save(photograph)
    points = [f"--point={u},{v},{x},{y},{z}" for (x, y, z), (u, v) in zip(POINTS, seen(standin), strict=True)]
    capsys.readouterr()
    assert main(["twin", "align", "push_cube", str(photograph), *points, "--out", str(tmp_path / "align.png")]) == 0
    printed = capsys.readouterr().out
    assert "largest 0.00 pixels" in printed
    assert f"fov_rad: {standin.fov_rad:.4f}" in printed
    outlined = np.asarray(Image.open(tmp_path / "align.png"))[:, :640]
    assert (outlined == [255, 40, 40]).all(-1).mean() > 0.01
    assert main(["twin", "align", "push_cube", str(photograph), "--point=1,2,3"]) == 1
    assert "expected five numbers" in capsys.readouterr().err
    assert main(["twin", "align", "push_cube", str(tmp_path / "absent.png")]) == 1
    assert "not a picture" in capsys.readouterr().err
