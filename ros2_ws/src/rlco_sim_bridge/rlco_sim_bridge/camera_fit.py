"""Lining the twin's camera up with a real one: overlays for the eye, and a fit of the pose from marked points."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import sobel
from scipy.optimize import least_squares

from rlco_common.errors import DataError
from rlco_sim_bridge.domain import CameraView
from rlco_sim_bridge.view import joined

EDGE_COLOR = np.array([255, 40, 40])
EDGE_SHARE = 0.06       # the strongest gradients of the rendering are drawn as its edges
MIN_POINTS = 4


@dataclass(frozen=True)
class CameraFit:
    """view: the fitted camera. errors_px: [N] distance of each marked pixel from where `view` sees its point."""

    view: CameraView
    errors_px: np.ndarray


def fit_camera(start: CameraView, points_m: np.ndarray, pixels: np.ndarray, width: int, height: int) -> CameraFit:
    """The camera that sees points_m [N, 3] (base frame, metres) at pixels [N, 2] (u, v) of a width x height image.

    Starts from `start` and keeps its distance to the target, which the pose does not depend on. Four to six points that
    are not on one line are enough with a known field of view; seven or more also determine fov_rad.
    Raises DataError with fewer than four points, or when no camera fits.
    """
    points_m, pixels = np.asarray(points_m, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    if len(points_m) < MIN_POINTS or points_m.shape != (len(pixels), 3) or pixels.shape != (len(pixels), 2):
        raise DataError(f"a camera fit needs at least {MIN_POINTS} points with a pixel each, got {len(points_m)} points and "
                        f"{len(pixels)} pixels")
    with_fov = len(points_m) >= 7
    begin = np.array([*start.eye_m, *start.target_m, start.roll_rad, start.fov_rad])

    def view(change):
        values = begin.copy()
        values[: len(change)] += change
        return replace(start, eye_m=tuple(values[:3]), target_m=tuple(values[3:6]), roll_rad=values[6], fov_rad=values[7])

    def residuals(change):
        seen = np.array([view(change).project(point, width, height) for point in points_m])
        # the target's distance is free; holding it makes the solution unique
        distance = np.linalg.norm(np.subtract(view(change).target_m, view(change).eye_m))
        return np.append((seen - pixels).ravel(), height * (distance - np.linalg.norm(begin[3:6] - begin[:3])))

    found = least_squares(residuals, np.zeros(8 if with_fov else 7), x_scale=0.1)
    errors = np.linalg.norm(found.fun[:-1].reshape(-1, 2), axis=1)
    if not (found.success and np.isfinite(errors).all()):
        raise DataError(f"no camera fits these points: {found.message}; check them, and start from a nearer pose")
    return CameraFit(view(found.x), errors)


def overlay(photograph: np.ndarray, rendering: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, 3 W + 16, 3] of two images of the same size: the photograph with the rendering's edges in red, both
    mixed half and half, and the rendering."""
    if photograph.shape != rendering.shape:
        raise DataError(f"photograph {photograph.shape} and rendering {rendering.shape} differ in size")
    grey = rendering.astype(np.float64).mean(-1)
    strength = np.hypot(sobel(grey, 0), sobel(grey, 1))
    edges = strength > max(np.quantile(strength, 1.0 - EDGE_SHARE), 1.0)
    outlined = np.where(edges[..., None], EDGE_COLOR, photograph).astype(np.uint8)
    mixed = ((photograph.astype(np.uint16) + rendering) // 2).astype(np.uint8)
    return joined([outlined, mixed, rendering], axis=1)
