"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rlco_common.errors import DataError


@contextlib.contextmanager
def staged(directory: Path, suffix: str = "") -> Iterator[Path]:
    """An empty hidden folder beside `directory` to fill and then move there; what fails inside removes it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=suffix, dir=directory.parent))
    try:
        staging.chmod(0o755)        # mkdtemp makes it private; the result is meant to be read by others
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """An empty folder that stands at `directory`, with what the block put into it, once the block has ended well.

    Raises DataError when `directory` exists.
    """
    if directory.exists():
        raise DataError(f"{directory} exists; give a new folder")
    with staged(directory) as staging:
        yield staging
        os.rename(staging, directory)
