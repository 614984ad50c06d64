"""Reading launch XML files: the elements of the subset, what a file declares, and errors with file and line.

What the elements do is in launch_xml; the text inside their attributes is launch_text's.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from rlco_common.errors import ConfigError
from rlco_common.launch_text import LaunchProblem, Scope, calls, expand, parse

_CONDITIONS = ("if", "unless")
_ACTIONS = ("arg", "let", "node", "group", "include", "set_env", "push_ros_namespace", "push-ros-namespace")


@dataclass(frozen=True)
class _Rule:
    """What an element must have, may have, and may hold."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    children: tuple[str, ...] = ()


_NAMED = _Rule(("name", "value"))
_PUSH = _Rule(("namespace",), _CONDITIONS)
_RULES = {      # an element's name, with its parent's where it has a meaning only there
    "launch": _Rule(children=_ACTIONS),
    "arg": _Rule(("name",), ("default", "description", *_CONDITIONS), ("choice",)),
    "arg/choice": _Rule(("value",)),
    "let": _Rule(("name", "value"), _CONDITIONS),
    "set_env": _Rule(("name", "value"), _CONDITIONS),
    "group": _Rule((), ("scoped", *_CONDITIONS), _ACTIONS),
    "include": _Rule(("file",), _CONDITIONS, ("arg",)),
    "include/arg": _NAMED,
    "push_ros_namespace": _PUSH,
    "push-ros-namespace": _PUSH,
    "node": _Rule(("pkg", "exec"), ("name", "namespace", "exec_name", "args", "ros_args", "output", "respawn",
                                    "respawn_delay", "sigterm_timeout", "sigkill_timeout", "on_exit",
                                    *_CONDITIONS), ("param", "remap", "env")),
    "node/param": _Rule((), ("name", "value", "type", "from")),
    "node/remap": _Rule(("from", "to")),
    "node/env": _NAMED,
}


@dataclass
class Element:
    """An XML element and the line on which it starts."""

    tag: str
    attributes: dict[str, str]
    line: int
    children: list["Element"] = field(default_factory=list)


@dataclass(frozen=True)
class LaunchArgument:
    """A declared argument; `default` as it is written, None where a value must be given."""

    name: str
    description: str
    default: str | None
    choices: tuple[str, ...]
    conditional: bool


@dataclass(frozen=True)
class LaunchFile:
    """What a launch file says about itself: its first comment, and the arguments of it and of the files it includes."""

    path: Path
    description: str
    arguments: tuple[LaunchArgument, ...]


def read_launch_file(path: str | Path) -> LaunchFile:
    """What a file says about itself, without evaluating it: included files whose path needs a $(var) are not looked into."""
    path = Path(path).absolute()
    root, comment = load_elements(path)
    found: dict[str, LaunchArgument] = {}
    for argument in declared_arguments(root, path):
        found.setdefault(argument.name, argument)
    return LaunchFile(path, comment, tuple(found.values()))


def arguments_text(file: LaunchFile) -> str:
    """The arguments as `ros2 launch --show-args` lists them; defaults as they are written in the file."""
    lines = ["Arguments (pass arguments as '<name>:=<value>'):"]
    for argument in file.arguments:
        description = argument.description or "no description given"
        if argument.choices:
            description = f"{description.rstrip('.')}. Valid choices are: {', '.join(argument.choices)}"
        lines += ["", f"    '{argument.name}':{'*' if argument.conditional else ''}", f"        {description}"]
        if argument.default is not None:
            lines.append(f"        (default: '{argument.default}')")
    if not file.arguments:
        lines += ["", "  No arguments."]
    if any(argument.conditional for argument in file.arguments):
        lines += ["", "* argument(s) which are only used if specific conditions occur"]
    return "\n".join(lines)


def load_elements(path: Path) -> tuple[Element, str]:
    """The checked root element and the first comment of a file."""
    if path.suffix != ".xml":
        raise ConfigError(f"{path}: only XML launch files are read here; `ros2 launch` runs the others")
    parser = expat.ParserCreate()
    stack, roots, comments = [], [], []

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, parser.CurrentLineNumber)
        (stack[-1].children if stack else roots).append(element)
        stack.append(element)

    def text(data: str) -> None:
        if data.strip():
            raise ConfigError(f"{path}:{parser.CurrentLineNumber}: <{stack[-1].tag}>: text between elements: {data.strip()}")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: stack.pop()
    parser.CharacterDataHandler = text
    parser.CommentHandler = lambda comment: comments.append(" ".join(comment.split()))
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise ConfigError(f"cannot read launch file {path}: {error.strerror}") from error
    except expat.ExpatError as error:
        raise ConfigError(f"{path}:{error.lineno}: not XML: {expat.errors.messages[error.code]}") from error
    if roots[0].tag != "launch":
        raise ConfigError(f"{path}:{roots[0].line}: the outermost element is <{roots[0].tag}>, not <launch>")
    _check(roots[0], "launch", path)
    return roots[0], comments[0] if comments else ""


def _check(element: Element, rule_name: str, path: Path) -> None:
    rule, where = _RULES[rule_name], f"{path}:{element.line}: <{element.tag}>"
    known = (*rule.required, *rule.optional)
    for name in element.attributes:
        if name not in known:
            raise ConfigError(f"{where}: attribute '{name}' is not known here; known: {', '.join(known) or 'none'}")
    for name in rule.required:
        if name not in element.attributes:
            raise ConfigError(f"{where}: attribute '{name}' is missing")
    if all(name in element.attributes for name in _CONDITIONS):
        raise ConfigError(f"{where}: 'if' and 'unless' cannot be used together")
    for child in element.children:
        if child.tag not in rule.children:
            raise ConfigError(f"{path}:{child.line}: element <{child.tag}> is not known inside <{element.tag}>; known: "
                              f"{', '.join(rule.children) or 'none'}")
        nested = f"{element.tag}/{child.tag}"
        _check(child, nested if nested in _RULES else child.tag, path)


def declared_arguments(element: Element, path: Path, conditional: bool = False, above: tuple[Path, ...] = (),
                       includes: bool = True) -> Iterator[LaunchArgument]:
    """Every argument below an element, in order, and those of included files (never of the files `above`)."""
    for child in element.children:
        maybe = conditional or any(name in child.attributes for name in _CONDITIONS)
        if child.tag == "arg":
            yield LaunchArgument(child.attributes["name"], child.attributes.get("description", ""),
                                 child.attributes.get("default"),
                                 tuple(choice.attributes["value"] for choice in child.children), maybe)
        elif child.tag == "group":
            yield from declared_arguments(child, path, maybe, above, includes)
        elif child.tag == "include" and includes:
            yield from _declared_by_included(child, path, maybe, (*above, path))


def _declared_by_included(include: Element, path: Path, conditional: bool,
                          above: tuple[Path, ...]) -> Iterator[LaunchArgument]:
    target = _plain_path(include, path)
    if target is None or target in above:
        return
    try:
        root, _ = load_elements(target)
    except ConfigError:
        if conditional:
            return      # it may never be included; if it is, evaluation raises this
        raise
    yield from declared_arguments(root, target, conditional, above)


def _plain_path(include: Element, path: Path) -> Path | None:
    """The file of an <include>, where that can be told without launch configurations; what is wrong, evaluation names."""
    try:
        template = parse(include.attributes["file"])
        if calls(template, "var"):
            return None
        target = Path(expand(template, Scope({}, os.environ, path.parent)))
    except LaunchProblem:
        return None
    return target if target.is_absolute() else None
