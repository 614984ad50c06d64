"""Launch XML files without the launch package: which nodes one starts, with what.

The subset: arg (with choice), let, node (with param, remap, env), group, include, set_env, push_ros_namespace, if and
unless, and the substitutions of launch_text. It means what `ros2 launch` of Jazzy makes of it; everything else is
refused by name, with file and line. `rlco_common.launch_runner` starts the nodes.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlco_common.errors import ConfigError
from rlco_common.launch_file import Element, declared_arguments, load_elements, read_launch_file
from rlco_common.launch_text import LaunchProblem, Scope, expand, truth, typed_value, words
from rlco_common.processes import STOP_TIMEOUT_S

_NAMESPACE = "ros_namespace"    # the launch configuration in which launch_ros, too, keeps the pushed namespace
_OUTPUTS = ("screen", "both")   # here everything goes to the terminal and to a log file


@dataclass(frozen=True)
class LaunchNode:
    """A node to start. `name` and `namespace` are None where the file leaves them to the node."""

    package: str
    executable: str
    label: str
    name: str | None
    namespace: str | None
    parameters: tuple[dict | Path, ...]         # names to values, or a parameter file; later ones win
    remappings: tuple[tuple[str, str], ...]
    arguments: tuple[str, ...]
    ros_arguments: tuple[str, ...]
    environment: dict[str, str]                 # beside what the launching process has
    respawn: bool
    respawn_delay_s: float
    sigterm_timeout_s: float                    # from SIGINT on; from there until SIGKILL:
    sigkill_timeout_s: float
    ends_run: bool                              # on_exit="shutdown": its end, also a good one, ends all


def evaluate_launch_file(path: str | Path, given: Mapping[str, str] | None = None) -> list[LaunchNode]:
    """The nodes that the file starts with the given arguments, in order.

    Raises ConfigError: for what the subset does not know, for missing arguments (each with its description), and for
    arguments that no file declares, which `ros2 launch` would ignore.
    """
    path, given = Path(path).absolute(), dict(given or {})
    known = {argument.name for argument in read_launch_file(path).arguments}
    walk = _Walk(given)
    walk.file(path, given)
    if unknown := sorted(set(given) - known - walk.declared):
        raise ConfigError(f"{path}: unknown argument(s) {', '.join(unknown)}; known: "
                          f"{', '.join(sorted(known | walk.declared)) or 'none'}")
    return walk.nodes


def parse_assignments(texts: list[str]) -> dict[str, str]:
    """`name:=value` of a command line; of duplicates the last counts. Raises ConfigError."""
    given = {}
    for text in texts:
        name, assigned, value = text.partition(":=")
        if not name or not assigned:
            raise ConfigError(f"'{text}' is not of the form name:=value")
        given[name] = value
    return given


class _Walk:
    """Visits a file and the ones it includes, as launch does: launch configurations are shared, groups are scopes."""

    def __init__(self, given: dict[str, str]):
        self.nodes: list[LaunchNode] = []
        self.declared: set[str] = set()
        self._configurations = dict(given)
        self._environment: dict[str, str] = {}
        self._files: list[Path] = []

    @property
    def _scope(self) -> Scope:
        return Scope(self._configurations, {**os.environ, **self._environment}, self._files[-1].parent)

    def file(self, path: Path, given: Mapping[str, str]) -> None:
        if path in self._files:
            raise ConfigError(f"{path} includes itself, by way of {', '.join(map(str, self._files))}")
        root, _ = load_elements(path)
        if missing := [argument for argument in declared_arguments(root, path, includes=False)
                       if argument.default is None and not argument.conditional and argument.name not in given]:
            raise ConfigError(f"{path} needs {len(missing)} more argument(s), as name:=value:" + "".join(
                f"\n  {argument.name}: {argument.description or 'no description given'}" for argument in missing))
        self._files.append(path)
        self._visit_children(root)
        self._files.pop()

    def _visit_children(self, element: Element) -> None:
        for child in element.children:
            try:
                if self._holds(child):
                    getattr(self, f"_{child.tag.replace('-', '_')}")(child)
            except LaunchProblem as problem:
                raise ConfigError(f"{self._files[-1]}:{child.line}: <{child.tag}>: {problem}") from problem

    def _holds(self, element: Element) -> bool:
        for name, wanted in (("if", True), ("unless", False)):
            if name in element.attributes:
                return truth(element.attributes[name], self._scope) is wanted
        return True

    def _text(self, element: Element, name: str) -> str | None:
        return expand(element.attributes[name], self._scope) if name in element.attributes else None

    def _pair(self, element: Element, first: str = "name", second: str = "value") -> tuple[str, str]:
        return self._text(element, first), self._text(element, second)

    def _arg(self, element: Element) -> None:
        name = element.attributes["name"]
        self.declared.add(name)
        if name not in self._configurations:
            if "default" not in element.attributes:
                raise LaunchProblem(f"argument '{name}' is missing: {element.attributes.get('description', '')}")
            self._configurations[name] = self._text(element, "default")
        choices = [choice.attributes["value"] for choice in element.children]
        if choices and self._configurations[name] not in choices:
            raise LaunchProblem(f"{name}:={self._configurations[name]} is not one of: {', '.join(choices)}")

    def _let(self, element: Element) -> None:
        name, value = self._pair(element)
        self._configurations[name] = value

    def _set_env(self, element: Element) -> None:
        name, value = self._pair(element)
        self._environment[name] = value

    def _push_ros_namespace(self, element: Element) -> None:
        self._configurations[_NAMESPACE] = self._namespace(self._text(element, "namespace"))

    def _namespace(self, inner: str | None) -> str | None:
        """A namespace below the pushed one, absolute and without a slash at the end; None where neither is given."""
        outer = self._configurations.get(_NAMESPACE)
        if inner is None:
            return outer
        full = inner if inner.startswith("/") or not outer else f"{outer.rstrip('/')}/{inner}"
        return "/" + full.strip("/")

    def _group(self, element: Element) -> None:
        if not truth(element.attributes.get("scoped", "true"), self._scope):
            return self._visit_children(element)
        outside = self._configurations, self._environment
        self._configurations, self._environment = dict(self._configurations), dict(self._environment)
        self._visit_children(element)
        self._configurations, self._environment = outside
        return None

    def _include(self, element: Element) -> None:
        path = Path(self._text(element, "file"))
        if not path.is_absolute():
            raise LaunchProblem(f"file=\"{path}\" depends on where it is run; begin it with $(dirname) or $(find-pkg-share)")
        given = {}
        for argument in element.children:
            name, value = self._pair(argument)
            given[name] = value
            self._configurations[name] = value      # stays set behind the include, as it does in launch
        self.file(path, given)

    def _node(self, element: Element) -> None:
        scope, attributes = self._scope, element.attributes
        if attributes.get("on_exit", "shutdown") != "shutdown":
            raise LaunchProblem(f"on_exit=\"{attributes['on_exit']}\" is not known; known: shutdown")
        if self._text(element, "output") not in (None, *_OUTPUTS):
            raise LaunchProblem(f"output=\"{attributes['output']}\" is not known; known: {', '.join(_OUTPUTS)}")
        package, executable = self._pair(element, "pkg", "exec")
        children = {tag: [child for child in element.children if child.tag == tag] for tag in ("param", "remap", "env")}
        self.nodes.append(LaunchNode(
            package=package, executable=executable,
            label=self._text(element, "exec_name") or executable,
            name=self._text(element, "name"), namespace=self._namespace(self._text(element, "namespace")),
            parameters=tuple(self._parameters(children["param"])),
            remappings=tuple(self._pair(child, "from", "to") for child in children["remap"]),
            arguments=tuple(words(attributes.get("args", ""), scope)),
            ros_arguments=tuple(words(attributes.get("ros_args", ""), scope)),
            environment={**self._environment, **dict(map(self._pair, children["env"]))},
            respawn=truth(attributes.get("respawn", "false"), scope),
            respawn_delay_s=_seconds(attributes, "respawn_delay", 0.0),
            sigterm_timeout_s=_seconds(attributes, "sigterm_timeout", STOP_TIMEOUT_S),
            sigkill_timeout_s=_seconds(attributes, "sigkill_timeout", STOP_TIMEOUT_S),
            ends_run="on_exit" in attributes,
        ))

    def _parameters(self, elements: list[Element]) -> Iterator[dict | Path]:
        """Parameters of a node; values that follow each other are one dict."""
        values: dict = {}
        for element in elements:
            names = set(element.attributes)
            if names == {"from"}:
                if values:
                    yield values
                values = {}
                yield self._parameter_file(element)
            elif names - {"type"} == {"name", "value"}:
                values[self._text(element, "name")] = self._value(element)
            else:
                raise LaunchProblem(f"<param> in line {element.line} needs name and value (and may have type), or from alone")
        if values:
            yield values

    def _value(self, element: Element):
        try:
            return typed_value(element.attributes["value"], element.attributes.get("type", "yaml"), self._scope)
        except LaunchProblem as problem:
            raise LaunchProblem(f"<param name=\"{element.attributes['name']}\">: {problem}") from problem

    def _parameter_file(self, element: Element) -> Path:
        path = Path(self._text(element, "from")).absolute()
        if not path.is_file():
            raise LaunchProblem(f"<param from=\"{element.attributes['from']}\">: there is no file {path}")
        return path


def _seconds(attributes: Mapping[str, str], name: str, default: float) -> float:
    """An attribute that launch, too, reads as a plain number, without substitutions."""
    text = attributes.get(name, str(default))
    try:
        value = float(text)
    except ValueError as error:
        raise LaunchProblem(f"{name}=\"{text}\" is not a number of seconds") from error
    if not 0 <= value < math.inf:
        raise LaunchProblem(f"{name}=\"{text}\" is negative or not finite")
    return value
