"""An episode as a strip over time: pictures, traces, and bands where something is missing. Geometry for an SVG; pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

WIDTH, ROW_HEIGHT, ROW_GAP, LEFT = 1000.0, 56.0, 20.0, 74.0
MAX_POINTS = 600
INK, RED, GREY = "#1d2127", "#c0392b", "#8a8f98"
COLORS = ("#2f6db3", "#d9822b", "#3d8f5f", "#8e5ba6", "#a0703c", "#5c6570")

BandKind = Literal["idle", "gap", "correction", "policy"]


@dataclass(frozen=True)
class Line:
    """A curve of a row: SVG polyline points."""

    label: str
    color: str
    points: str
    dashed: bool = False


@dataclass(frozen=True)
class Row:
    """A row of curves with its range; y: of its top."""

    title: str
    y: float
    low: str
    high: str
    lines: list[Line]


@dataclass(frozen=True)
class Band:
    """A stretch of time shaded through all rows."""

    kind: BandKind
    x: float
    width: float


@dataclass
class Strip:
    """Rows over one time axis from 0 to `duration_s`."""

    duration_s: float
    rows: list[Row] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)

    @property
    def height(self) -> float:
        return len(self.rows) * (ROW_HEIGHT + ROW_GAP) + 18

    @property
    def marks(self) -> list[tuple[float, str]]:
        """(x, label) of the time axis: whole seconds, about eight of them."""
        step = next(step for step in (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 3600) if self.duration_s / step <= 9
                    or step == 3600)
        return [(self.x(time_s), f"{time_s:g} s") for time_s in np.arange(0, self.duration_s + 1e-9, step)]

    def x(self, time_s: float) -> float:
        return LEFT + (WIDTH - LEFT) * float(np.clip(time_s / self.duration_s, 0, 1))

    def add_row(self, title: str, low: float, high: float, curves: Sequence[tuple], unit: str = "") -> None:
        """curves: (label, color, times_s, values[, dashed]). Values beyond the range are drawn at its edge."""
        y = len(self.rows) * (ROW_HEIGHT + ROW_GAP) + ROW_GAP - 3
        lines = [Line(curve[0], curve[1], self._points(y, low, high, curve[2], curve[3]), len(curve) > 4 and curve[4])
                 for curve in curves]
        self.rows.append(Row(title, y, f"{low:g}{unit}", f"{high:g}{unit}", lines))

    def add_band(self, kind: BandKind, begin_s: float, end_s: float) -> None:
        begin, end = self.x(begin_s), self.x(end_s)
        if end > begin:
            self.bands.append(Band(kind, begin, end - begin))

    def _points(self, y: float, low: float, high: float, times_s, values) -> str:
        times_s, values = np.asarray(times_s, float), np.asarray(values, float)
        step = -(-len(values) // MAX_POINTS) if len(values) else 1
        times_s, values = times_s[::step], np.clip(values[::step], low, high)
        heights = y + ROW_HEIGHT * (1 - (values - low) / (high - low))
        return " ".join(f"{self.x(time_s):.1f},{height:.1f}" for time_s, height in zip(times_s, heights, strict=True))


def spans(times_s: np.ndarray, chosen: np.ndarray, period_s: float) -> list[tuple[float, float]]:
    """(begin, end) of every run of chosen ticks."""
    found = []
    for time_s in np.asarray(times_s)[np.asarray(chosen, bool)]:
        if found and time_s - found[-1][1] < 0.5 * period_s:
            found[-1] = (found[-1][0], time_s + period_s)
        else:
            found.append((time_s, time_s + period_s))
    return found
