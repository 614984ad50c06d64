"""The reference of the launch files, from their XML."""

from collections.abc import Sequence
from pathlib import Path

from rlco_common.launch_file import Element, LaunchArgument, LaunchFile, load_elements, read_launch_file
from rlco_trainer.reference.markdown import REGENERATE, code, table

SUFFIX = ".launch.xml"
USUAL = ("namespace", "use_sim_time", "params_file", "log_level", "autostart")
_INTRODUCTION = f"""# Launch files

{REGENERATE}

One XML file serves two commands: `rlco up NAME argument:=value`, which needs no ROS installation, and
`ros2 launch PACKAGE NAME{SUFFIX} argument:=value`. `rlco up` alone lists the files, `rlco up NAME --show-args` the arguments
of one; `rlco up` refuses an argument that no file declares, `ros2 launch` ignores it. Ctrl-C stops every node; a node that
fails ends the run with its exit status.

An argument sets a parameter of the nodes. All others stand in a file given as `params_file:=FILE` (a sample is
`ros2_ws/src/rlco_common/launch/parameters.yaml`), listed in [reference/parameters.md](reference/parameters.md).
"""
_USUAL = "## Every file has\n\nShown as in `{name}`; the default of `use_sim_time` differs between files.\n\n"


def launch_page(paths: Sequence[Path]) -> str:
    """The page as markdown; the files in the order given."""
    files = [read_launch_file(path) for path in paths]
    listing = table(("file", "package", "what it starts"),
                    [[f"[`{_name(file)}`](#{_name(file)})", code(_package(file)), file.description] for file in files])
    usual = [argument for argument in files[0].arguments if argument.name in USUAL]
    return "\n".join([_INTRODUCTION, listing, *map(_section, files), _USUAL.format(name=_name(files[0])) + _arguments(usual)])


def _section(file: LaunchFile) -> str:
    root, _ = load_elements(file.path)
    own = [argument for argument in file.arguments if argument.name not in USUAL]
    use_sim_time = next((argument.default for argument in file.arguments if argument.name == "use_sim_time"), None)
    return "\n".join([
        f"## {_name(file)}", "", file.description, "",
        f"    rlco up {_name(file)}{_required(own)}",
        f"    ros2 launch {_package(file)} {file.path.name}{_required(own)}", "",
        "Starts " + ", ".join(_starts(root)) + f". `use_sim_time` defaults to `{use_sim_time}`." + _patience(root), "",
        _arguments(own)])


def _starts(root: Element) -> list[str]:
    """Nodes and included files of the outermost level, each with its condition."""
    found = []
    for child in root.children:
        if child.tag == "node":
            what = code(child.attributes["exec"])
        elif child.tag == "include":
            what = code(child.attributes["file"].rpartition("/")[2])
        else:
            continue
        found.append(what + (f" (if {code(child.attributes['if'])})" if "if" in child.attributes else ""))
    return found


def _patience(root: Element) -> str:
    """What nodes of the outermost level have more time for than usual when they are stopped."""
    return "".join(f" At Ctrl-C {code(child.attributes['exec'])} has {child.attributes['sigterm_timeout']} s to finish what it "
                   "does." for child in root.children if "sigterm_timeout" in child.attributes)


def _required(arguments: Sequence[LaunchArgument]) -> str:
    return "".join(f" {argument.name}:={argument.name.upper()}" for argument in arguments
                   if argument.default is None and not argument.conditional)


def _arguments(arguments: Sequence[LaunchArgument]) -> str:
    return table(("argument", "default", "meaning"),
                 [[code(argument.name), "required" if argument.default is None else code(argument.default) or "empty",
                   argument.description + (f"; one of {', '.join(argument.choices)}" if argument.choices else "")]
                  for argument in arguments])


def _name(file: LaunchFile) -> str:
    return file.path.name.removesuffix(SUFFIX)


def _package(file: LaunchFile) -> str:
    return file.path.resolve().parents[1].name
