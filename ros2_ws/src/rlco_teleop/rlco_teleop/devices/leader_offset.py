"""Whether a leader arm and its follower differ by a constant in a joint: an encoder's zero that is off, or a bad calibration.

Such an offset is invisible to the operator, who corrects it by eye, and becomes a bias in everything learned from leader
positions. What this stack records as action is the gate's target, which has none of it, but the hands feel it.
"""

from collections import deque
from collections.abc import Mapping

import numpy as np

_WINDOW = 200           # still moments that are remembered
_LEAST = 10             # of them before anything is said
_STILL_RAD_S = 0.05     # a joint that is slower stands still: a moving follower lags, which is no offset
_APART_RAD = 0.1        # still moments nearer than this are one and the same pose
_POSES = 3              # different poses before an offset counts as constant
_SPREAD_RAD = 0.02      # what a constant may vary


class LeaderOffset:
    """Collects joint positions of both arms, by name; `constant(threshold)` are the joints with a constant offset."""

    def __init__(self, prefix: str = ""):
        """prefix: what the leader's joint names have before the follower's."""
        self._prefix = prefix
        self._follower: Mapping[str, float] = {}
        self._last: tuple[int, dict[str, float]] | None = None
        self._still: deque[tuple[dict[str, float], dict[str, float]]] = deque(maxlen=_WINDOW)

    def on_follower(self, positions: Mapping[str, float]) -> None:
        self._follower = positions

    def on_leader(self, positions: Mapping[str, float], now_ns: int) -> None:
        """Leader positions in radians. A moment counts when all the leader's shared joints stand still."""
        shared = {name: positions[self._prefix + name] for name in self._follower if self._prefix + name in positions}
        last, self._last = self._last, (now_ns, shared)
        if last is None or last[1].keys() != shared.keys() or not shared or now_ns <= last[0]:
            return
        seconds = (now_ns - last[0]) / 1e9
        if all(abs(shared[name] - last[1][name]) <= _STILL_RAD_S * seconds for name in shared):
            self._still.append((shared, {name: shared[name] - self._follower[name] for name in shared}))

    def constant(self, threshold_rad: float) -> dict[str, float]:
        """Joint name -> leader minus follower in radians, where that is the same in several poses and over the threshold."""
        moments = [offsets for _, offsets in self._still]
        if len(moments) < _LEAST or self._poses() < _POSES:
            return {}
        result = {}
        for name in moments[-1]:
            values = np.array([offsets[name] for offsets in moments if name in offsets])
            low, high = np.percentile(values, [10, 90])
            if high - low <= _SPREAD_RAD and abs(np.median(values)) > threshold_rad:
                result[name] = float(np.median(values))
        return result

    def _poses(self) -> int:
        """How many different poses the still moments were in."""
        poses: list[np.ndarray] = []
        for positions, _ in self._still:
            pose = np.array(list(positions.values()))
            if all(pose.shape == other.shape and np.abs(pose - other).max() > _APART_RAD for other in poses):
                poses.append(pose)
        return len(poses)
