"""Metrics of a run: JSON lines for reports, TensorBoard for people who watch, one progress line on the terminal."""

import json
from pathlib import Path

from tqdm import tqdm


class Metrics:
    """Writes `metrics.jsonl` and TensorBoard events under a run's directory, and drives a progress bar.

    A resumed run cuts the lines of steps that it will do again. quiet: no progress line. silent: write nothing at all, for
    the further processes of a run.
    """

    def __init__(self, directory: Path, *, total: int, start: int, label: str, quiet: bool = False, silent: bool = False):
        self._bar = tqdm(total=total, initial=start, desc=label, disable=quiet or silent, dynamic_ncols=True, mininterval=1.0)
        self._stream = self._board = None
        if not silent:
            self._open(directory, start)

    def _open(self, directory: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= start] if start else []
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._stream = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(directory / "tensorboard", purge_step=start + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._stream is None:
            return
        self._stream.write(json.dumps({"step": step, **values}) + "\n")
        self._stream.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def progress(self, steps: int = 1, **shown: float) -> None:
        if shown:
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
        self._bar.update(steps)

    def close(self) -> None:
        self._bar.close()
        if self._stream is not None:
            self._board.close()
            self._stream.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict]:
    """All complete lines of a metrics file; an absent file has none."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the line that a killed run was writing
    return rows
