"""Where a package's shipped data files live."""

import importlib.util
import os
from pathlib import Path

from rlco_common.errors import ConfigError


def share_directory(package: str, folder: str = "config") -> Path:
    """`folder` of a package: in the ament share directory, or in the source tree beside its Python package.

    Raises ConfigError when neither exists.
    """
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        share = Path(prefix) / "share" / package / folder
        if prefix and share.is_dir():
            return share
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        source = Path(spec.origin).resolve().parent.parent / folder
        if source.is_dir():
            return source
    raise ConfigError(f"no '{folder}' folder of package '{package}' found; install the workspace, or source its setup file")


def shipped_file(package: str, folder: str, name: str, kind: str) -> Path:
    """The shipped `<folder>/<name>.yaml` of a package; ConfigError listing the known names when there is none."""
    path = share_directory(package, folder) / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ConfigError(f"no {kind} named '{name}' in {path.parent}; known: {known}; or give a YAML file's path")
    return path
