"""`rlco up`: start the nodes of a launch file."""

from pathlib import Path

from rlco_common.errors import ConfigError
from rlco_trainer.commands.base import command

PACKAGES = ("rlco_sim_bridge", "rlco_teleop", "rlco_policy", "rlco_trainer", "rlco_common")
SUFFIX = ".launch.xml"


def add(commands) -> None:
    parser = command(commands, "up", _run, "start the nodes of a launch file, as `ros2 launch` does where it is installed")
    parser.add_argument("file", nargs="?", metavar="NAME|FILE",
                        help="name of a shipped launch file such as twin, or path of an XML file; without it, list them")
    parser.add_argument("arguments", nargs="*", metavar="name:=value", help="arguments of the launch file")
    parser.add_argument("--show-args", action="store_true", help="list the file's arguments and start nothing")


def _run(options) -> int:
    from rlco_common.launch_file import arguments_text, read_launch_file
    from rlco_common.launch_runner import log_directory, run_nodes
    from rlco_common.launch_xml import evaluate_launch_file, parse_assignments

    if options.file is None:
        print(_list())
        return 0
    path = launch_file(options.file)
    if options.show_args:
        print(arguments_text(read_launch_file(path)))
        return 0
    nodes = evaluate_launch_file(path, parse_assignments(options.arguments))
    folder = log_directory()
    print(f"{path}: {', '.join(node.executable for node in nodes)}; logs in {folder}", flush=True)
    return run_nodes(nodes, folder)


def shipped() -> dict[str, Path]:
    """The launch files of the installed workspace by name."""
    from rlco_common.resources import package_share

    return {path.name.removesuffix(SUFFIX): path for package in PACKAGES
            for path in sorted((package_share(package) / "launch").glob(f"*{SUFFIX}"))}


def launch_file(name: str) -> Path:
    """The file of a shipped name or of a path. Raises ConfigError listing the shipped names."""
    if name in (known := shipped()):
        return known[name]
    if Path(name).is_file():
        return Path(name)
    raise ConfigError(f"no launch file '{name}'; shipped: {', '.join(known)}; or give a file's path")


def _list() -> str:
    from rlco_common.launch_file import read_launch_file

    files = shipped()
    width = max(map(len, files), default=0)
    lines = [f"  {name.ljust(width)}  {read_launch_file(path).description}" for name, path in files.items()]
    return "\n".join(["Launch files (rlco up NAME --show-args lists the arguments of one):", *lines])
