"""The picture of benchmarks/policy_node.py: chunks, queue and commanded motion of two runs at the same control rate."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

WINDOW_S = 4.0


def draw(asynchronous, synchronous, period_s: float, horizon: int, chunk: int, path: Path) -> None:
    """Two runs (policy_node.Run) of the same model, the middle WINDOW_S seconds of each."""
    figure, axes = plt.subplots(3, 2, figsize=(11, 6), sharex="col", sharey="row", height_ratios=[1.2, 1, 1])
    columns = (("asynchronous", asynchronous, horizon), ("synchronous", synchronous, chunk))
    for column, (title, run, steps) in enumerate(columns):
        chunks = [(at, (stamp - run.wall_ns) * 1e-9) for at, stamp in run.chunks]
        begin = run.targets[len(run.targets) // 2][0]
        shown = [(at, seen) for at, seen in chunks if begin - 2 < seen < begin + WINDOW_S]
        top, middle, bottom = axes[:, column]
        for row, (at, seen) in enumerate(shown):
            end = seen + steps * period_s
            top.plot([seen - begin, at - begin], [row % 4] * 2, color="tab:orange", lw=5, solid_capstyle="butt")
            top.plot([at - begin, end - begin], [row % 4] * 2, color="tab:blue", lw=5, alpha=0.35, solid_capstyle="butt")
            following = shown[row + 1][0] if row + 1 < len(shown) else end
            top.plot([at - begin, min(following, end) - begin], [row % 4] * 2, color="tab:blue", lw=5, solid_capstyle="butt")
        time = np.arange(0.0, WINDOW_S, 0.005)
        ends = [max((seen + steps * period_s for at, seen in chunks if at <= begin + t), default=0.0) for t in time]
        middle.plot(time, np.maximum(np.array(ends) - begin - time, 0.0) / period_s, color="tab:blue", lw=1.2)
        at, x = np.array(run.targets).T
        speed = np.diff(x) / np.median(np.diff(at)) * 1e3
        bottom.step(at[1:] - begin, speed, where="post", color="tab:green", lw=1.0)
        top.set_title(title)
        top.set_yticks([])
        top.set_ylim(-0.6, 5.6)
        bottom.set_xlabel("time, s")
        bottom.set_xlim(0, WINDOW_S)
    axes[0, 0].set_ylabel("chunks")
    axes[1, 0].set_ylabel("queue,\ncontrol periods")
    axes[2, 0].set_ylabel("commanded speed,\nmm/s")
    axes[0, 1].plot([], [], color="tab:orange", lw=5, label="from observation to arrival")
    axes[0, 1].plot([], [], color="tab:blue", lw=5, label="executed")
    axes[0, 1].plot([], [], color="tab:blue", lw=5, alpha=0.35, label="replaced or in reserve")
    axes[0, 1].legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
