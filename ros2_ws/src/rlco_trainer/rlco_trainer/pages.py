"""What the project's HTML pages share: rendering of templates, embedded pictures, plots in one style, the machine."""

import base64
import io
import os
import platform
from pathlib import Path

import numpy as np

from rlco_common.resources import share_directory


def write_page(template: str, out: Path, **values) -> None:
    """Render a template of this package into the self-contained page `out`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(share_directory("rlco_trainer", "templates")), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(environment.get_template(template).render(machine=machine(), **values), encoding="utf-8")


def curve_url(lines: dict[str, tuple[list[tuple[float, float]], str]], x: str, y: str, *, log: bool = False,
              from_zero: bool = True) -> str:
    """A plot as a data URL. lines: label -> (points, colour). from_zero: the y axis begins at 0 or lower."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 2.9), layout="constrained")
    for label, (points, color) in lines.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=color, linewidth=1.6)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log:
        axes.set_yscale("log")
    elif from_zero:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return _svg_url(figure)


def bars_url(groups: list[str], bars: dict[str, list[float]], y: str) -> str:
    """Grouped bars as a data URL. bars: label -> one height per group."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 2.9), layout="constrained")
    width = 0.8 / max(len(bars), 1)
    for index, (label, heights) in enumerate(bars.items()):
        axes.bar(np.arange(len(groups)) + (index - (len(bars) - 1) / 2) * width, heights, width, label=label)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis="y")
    axes.legend(frameon=False, fontsize=8)
    return _svg_url(figure)


def _svg_url(figure) -> str:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    return data_url(buffer.getvalue(), "image/svg+xml")


def picture_url(image: np.ndarray) -> str:
    """A uint8 RGB picture as a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return data_url(buffer.getvalue(), "image/png")


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def machine() -> str:
    """Processor, cores and memory, as measured figures must say."""
    processor, memory = platform.processor() or platform.machine(), 0
    try:
        information = Path("/proc/cpuinfo").read_text()
        processor = next(line.split(":", 1)[1].strip() for line in information.splitlines() if line.startswith("model name"))
        memory = int(Path("/proc/meminfo").read_text().split()[1]) // 2**20
    except (OSError, StopIteration):
        processor = platform.platform()
    return f"{len(os.sched_getaffinity(0))} cores of {processor}, {memory} GiB, no GPU used"
