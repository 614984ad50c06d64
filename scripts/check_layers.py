#!/usr/bin/env python3
"""Checks the structure: which package may import which, where rclpy and torch may be imported, node size, manifests.

Runs with Python 3.12, without the project's environment. Prints what is wrong and where; exit status 1 then.
"""

import ast
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "ros2_ws" / "src"

# package -> what it may import of the workspace; an entry with a dot allows that module only.
ALLOWED = {
    "rlco_common": set(),
    "rlco_sim_bridge": {"rlco_common"},
    "rlco_policy": {"rlco_common"},
    "rlco_teleop": {"rlco_common", "rlco_sim_bridge.experts", "rlco_sim_bridge.scene_state"},
    "rlco_trainer": {"rlco_common", "rlco_sim_bridge", "rlco_policy", "rlco_teleop"},
}
# Where a library must not be imported at all, at any level.
FORBIDDEN = {
    "rlco_common": {"torch", "mani_skill", "sapien", "lerobot", "transformers"},
    "rlco_teleop": {"torch", "mani_skill", "sapien", "lerobot", "transformers"},
}
ROS_MODULES = {"ros", "ros_client", "sessions"}     # beside nodes/: the modules that may import rclpy
ROS_LIBRARIES = {"rclpy"}
MAX_NODE_LINES = 300
NEVER = {"MultiThreadedExecutor": "it loses callbacks under load", "EventsExecutor": "it hangs in the wheels"}
MANIFEST_FIELDS = ("name", "version", "description", "maintainer", "license")


def imported(tree: ast.AST):
    """(module, line) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno


def check_file(path: Path, package: str):
    """Problems of one Python file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    where = path.relative_to(ROOT)
    is_node = path.parent.name == "nodes"
    for module, line in imported(tree):
        top = module.split(".")[0]
        if top in ALLOWED and top != package and not any(
                module == allowed or module.startswith(allowed + ".") for allowed in ALLOWED[package]):
            yield f"{where}:{line}: {package} must not import {module}"
        if top in FORBIDDEN.get(package, ()):
            yield f"{where}:{line}: {package} must not import {top}"
        if top in ROS_LIBRARIES and not is_node and path.stem not in ROS_MODULES and path.stem != "doctor":
            yield f"{where}:{line}: only nodes/ and {', '.join(sorted(ROS_MODULES))} may import {top}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in NEVER:
            yield f"{where}:{node.lineno}: {node.attr} is not used here: {NEVER[node.attr]}"
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name in NEVER:
                    yield f"{where}:{node.lineno}: {alias.name} is not used here: {NEVER[alias.name]}"
        if isinstance(node, ast.ExceptHandler) and all(isinstance(step, ast.Pass) for step in node.body) and (
                node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception")):
            yield f"{where}:{node.lineno}: an exception is swallowed; handle it or let it rise"
    if is_node and text.count("\n") > MAX_NODE_LINES:
        yield f"{where}: {text.count(chr(10))} lines; a node is a thin shell of at most {MAX_NODE_LINES}"


def check_manifest(package: Path):
    """Problems of a package.xml: fields, build type, and workspace dependencies that the code has but it lacks."""
    path = package / "package.xml"
    where = path.relative_to(ROOT)
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        yield f"{where}: {error}"
        return
    if root.get("format") != "3":
        yield f"{where}: format must be 3"
    for field in MANIFEST_FIELDS:
        if not (root.findtext(field) or "").strip():
            yield f"{where}: <{field}> is missing"
    if root.findtext("name") != package.name:
        yield f"{where}: the name differs from the folder"
    email = (root.find("maintainer").get("email") or "") if root.find("maintainer") is not None else ""
    if "." not in email.partition("@")[2] or len(email.partition("@")[2].rpartition(".")[2]) < 2:
        yield f"{where}: maintainer e-mail '{email}' is not valid; colcon would take the package for plain Python"
    if root.findtext("export/build_type") != "ament_python":
        yield f"{where}: build_type must be ament_python"
    depends = {node.text for node in root if node.tag.endswith("depend")}
    used = {module.split(".")[0] for file in (package / package.name).rglob("*.py")
            for module, _ in imported(ast.parse(file.read_text(encoding="utf-8")))}
    ros = {name for name in used if name.endswith(("_msgs", "_srvs", "_interfaces")) or name in ALLOWED or name == "rclpy"}
    for missing in sorted(ros - depends - {package.name}):
        yield f"{where}: the code imports {missing}, add <exec_depend>{missing}</exec_depend>"
    for file in ("setup.py", "setup.cfg", f"resource/{package.name}"):
        if not (package / file).is_file():
            yield f"{package.relative_to(ROOT)}/{file} is missing"


def main() -> int:
    problems = []
    for package in sorted(ALLOWED):
        problems += check_manifest(SOURCE / package)
        for path in sorted((SOURCE / package / package).rglob("*.py")):
            problems += check_file(path, package)
    print("\n".join(problems) if problems else "structure: all good")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
