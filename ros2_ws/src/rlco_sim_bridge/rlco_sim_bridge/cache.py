"""Where files that are derived from installed packages are kept: `$XDG_CACHE_HOME/rlco`, by default `~/.cache/rlco`."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cached_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """The cache folder `name`, filled by `fill` the first time. Safe when several processes want it at once."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlco"
    folder = root / name
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=root))
    fill(scratch)
    try:
        scratch.rename(folder)
    except OSError:   # another process was faster; rename refuses to replace its folder
        shutil.rmtree(scratch)
    return folder
