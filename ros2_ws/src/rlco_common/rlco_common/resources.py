"""Where a package's shipped data files live."""

import importlib.util
import os
import sys
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


def package_prefix(package: str) -> Path:
    """Where a package is installed: the first prefix of AMENT_PREFIX_PATH whose index has it, else of this environment.

    Raises ConfigError when none has it.
    """
    prefixes = [Path(prefix) for prefix in (os.environ.get("AMENT_PREFIX_PATH") or sys.prefix).split(os.pathsep) if prefix]
    for prefix in prefixes:
        if (prefix / "share" / "ament_index" / "resource_index" / "packages" / package).exists():
            return prefix
    raise ConfigError(f"package '{package}' is not installed in {', '.join(map(str, prefixes))}; build the workspace "
                      "(scripts/setup.sh), or source its setup file")


def package_share(package: str) -> Path:
    """The share directory of an installed package."""
    return package_prefix(package) / "share" / package


def package_executable(package: str, name: str) -> Path:
    """A program that a package installs for `ros2 run`; ConfigError listing the known ones when there is none."""
    folder = package_prefix(package) / "lib" / package
    path = folder / name
    if not os.access(path, os.X_OK) or path.is_dir():
        known = sorted(file.name for file in folder.glob("*") if file.is_file())
        raise ConfigError(f"package '{package}' has no executable '{name}' in {folder}; known: {', '.join(known) or 'none'}")
    return path
