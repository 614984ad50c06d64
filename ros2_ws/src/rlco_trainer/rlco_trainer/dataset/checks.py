"""Checks on the columns and streams of an episode: frozen cameras, gripper polarity, saturation, bias at rest. Pure.

Times are seconds in ascending order. Thresholds are those a lab would look twice at; docs/datasets.md explains them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlco_common.contract import Contract
from rlco_common.pose import Pose, delta_between

SATURATED = 0.995               # share of the limit per tick from which an action counts as at its limit
REST_S = 0.6                    # the target has stood still this long: the arm should have arrived
REST_MOVED_M, REST_MOVED_RAD = 2e-4, 1e-3
MIN_REST_SAMPLES = 3
_REST_SAMPLES = 400             # more tell nothing new and take time
_SETTLE_S = 0.6                 # a gripper command later than this before the end has no time to be followed
_LAGS_S = np.arange(0.0, 1.55, 0.05)
_SWING = 0.3                    # of the commanded opening: less than this proves nothing about the polarity
_STILL = 0.05                   # of the measured opening: less than this is no motion
_OPEN, _SURELY_OPEN, _OPPOSITE = 0.95, 0.8, 0.8
_CORRELATED = 0.5

GripperVerdict = Literal["follows", "inverted", "does not move", "does not follow", "opens too little", "not exercised"]


@dataclass(frozen=True)
class GripperCheck:
    """The measured opening against the commanded one. lag_s, correlation: at the best lag; None when not exercised."""

    verdict: GripperVerdict
    lag_s: float | None
    correlation: float | None
    commanded: tuple[float, float]      # least, greatest
    measured: tuple[float, float]


def gripper_check(commanded_s: np.ndarray, commanded: np.ndarray, measured_s: np.ndarray, measured: np.ndarray) -> GripperCheck:
    """Does the gripper do what it is told: 0 closed, 1 open on both sides? (ANCHORS E.2, 14)"""
    ranges = (float(commanded.min()), float(commanded.max())), (float(measured.min()), float(measured.max()))
    answered = commanded_s <= measured_s[-1] - _SETTLE_S
    if answered.any():
        commanded_s, commanded = commanded_s[answered], commanded[answered]
    if not answered.any() or np.ptp(commanded) < _SWING:
        apart = float(np.median(commanded) - np.median(measured))
        if abs(apart) > _OPPOSITE:
            return GripperCheck("inverted", None, None, *ranges)
        return GripperCheck("not exercised", None, None, *ranges)
    if np.ptp(measured) < _STILL:
        return GripperCheck("does not move", None, None, *ranges)
    correlations = np.array([_correlation(commanded_s, commanded, measured_s, measured, lag) for lag in _LAGS_S])
    best = int(np.argmax(np.abs(correlations)))
    lag_s, correlation = float(_LAGS_S[best]), float(correlations[best])
    if correlation <= -_CORRELATED:
        verdict = "inverted"
    elif correlation < _CORRELATED:
        verdict = "does not follow"
    else:
        open_s = commanded_s[commanded >= _OPEN]
        reached = _held(measured_s, measured, open_s + lag_s)
        verdict = "opens too little" if len(reached) and reached.max() < _SURELY_OPEN else "follows"
    return GripperCheck(verdict, lag_s, correlation, *ranges)


def _correlation(commanded_s, commanded, measured_s, measured, lag_s: float) -> float:
    usable = commanded_s + lag_s <= measured_s[-1]
    if usable.sum() < 3:
        return 0.0
    first, second = commanded[usable], _held(measured_s, measured, commanded_s[usable] + lag_s)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _held(times_s, values, at_s) -> np.ndarray:
    """The newest value at each time."""
    return values[np.clip(np.searchsorted(times_s, at_s, "right") - 1, 0, len(values) - 1)]


def longest_frozen_s(image_s: np.ndarray, repeated: np.ndarray, position_s: np.ndarray, positions: np.ndarray,
                     travel_m: float) -> float:
    """The longest time in which the image stayed the same while the tool moved by `travel_m` or more, seconds.

    repeated: bool [n], the image equals the one before. positions: [m, 3] of the tool. An arm at rest before a still camera
    gives equal images only where there is no noise, in simulation; that is why motion is asked for.
    """
    longest, begin = 0.0, 0
    for index in range(1, len(image_s) + 1):
        if index < len(image_s) and repeated[index]:
            continue
        lasted = float(image_s[index - 1] - image_s[begin])
        if lasted > longest:
            seen = positions[(position_s >= image_s[begin]) & (position_s <= image_s[index - 1])]
            if len(seen) and np.linalg.norm(np.ptp(seen, axis=0)) >= travel_m:
                longest = lasted
        begin = index
    return longest


def saturation(contract: Contract, actions: np.ndarray) -> dict[str, float]:
    """Share of ticks at which a motion is commanded at its limit per tick; by action name, and "any"."""
    names = contract.action.names[:6]
    at_limit = np.abs(contract.action.normalise(actions.astype(np.float64)))[:, :6] >= SATURATED
    return {name: float(share) for name, share in zip(names, at_limit.mean(axis=0), strict=True)} | {
        "any": float(at_limit.any(axis=1).mean())}


def bias_at_rest(targets_ns: list[int], targets: list[Pose], measured_ns: list[int],
                 measured: list[Pose]) -> dict[str, float] | None:
    """Commanded minus measured pose while the target stands still (ANCHORS E.2, 46): dx, dy, dz in m, droll, dpitch, dyaw
    in rad, medians over the samples; None when the arm never rests long enough."""
    deltas = []
    last_change_ns, newest = None, 0
    step = max(1, len(measured) // _REST_SAMPLES)
    for stamp_ns, pose in zip(measured_ns[::step], measured[::step], strict=True):
        while newest < len(targets) and targets_ns[newest] <= stamp_ns:
            if newest == 0 or _moved(targets[newest - 1], targets[newest]):
                last_change_ns = targets_ns[newest]
            newest += 1
        if last_change_ns is not None and stamp_ns - last_change_ns >= REST_S * 1e9:
            deltas.append(delta_between(pose, targets[newest - 1]))
    if len(deltas) < MIN_REST_SAMPLES:
        return None
    return {name: float(value) for name, value in
            zip(("dx", "dy", "dz", "droll", "dpitch", "dyaw"), np.median(deltas, axis=0), strict=True)}


def _moved(before: Pose, after: Pose) -> bool:
    if np.array_equal(before.as_array(), after.as_array()):
        return False
    delta = delta_between(before, after)
    return bool(np.linalg.norm(delta[:3]) > REST_MOVED_M or np.linalg.norm(delta[3:]) > REST_MOVED_RAD)
