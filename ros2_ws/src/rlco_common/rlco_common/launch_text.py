"""The text of launch XML files: `$(...)` substitutions, and parameter values typed as launch_ros types them.

A subset of what `launch` and `launch_ros` of ROS 2 Jazzy read, with their meaning. What is not in it is refused by name.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from rlco_common.errors import ConfigError
from rlco_common.resources import package_share

# type="..." of a <param>: (type of the value or of its items, whether it is a list); None: as YAML reads it.
KINDS = {
    **{name: (kind, False) for name, kind in (("str", str), ("bool", bool), ("int", int), ("float", float), ("yaml", None))},
    **{f"list_of_{kind.__name__}": (kind, True) for kind in (str, bool, int, float)},
}
_SCALARS = (str, bool, int, float)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class LaunchProblem(ValueError):
    """What is wrong with a piece of a launch file; whoever knows the file and the line adds them."""


@dataclass(frozen=True)
class Call:
    """A substitution with its arguments, each of them text with substitutions again."""

    name: str
    arguments: tuple["Template", ...]


Template = tuple[str | Call, ...]


@dataclass
class Scope:
    """What substitutions see: launch configurations (`$(var)`), environment, and the folder of the current file."""

    configurations: dict[str, str]
    environment: Mapping[str, str]
    directory: Path


def parse(text: str) -> Template:
    """Text with substitutions; a backslash takes the meaning from the character after it."""
    parts, end = _parts(text, 0, "")
    assert end == len(text)
    return parts


def expand(template: Template | str, scope: Scope) -> str:
    """The text with every substitution made. Raises LaunchProblem."""
    parts = parse(template) if isinstance(template, str) else template
    return "".join(part if isinstance(part, str) else _perform(part, scope) for part in parts)


def calls(template: Template, name: str) -> bool:
    """Whether a substitution of that name is anywhere in the text."""
    return any(isinstance(part, Call) and (part.name == name or any(calls(inner, name) for inner in part.arguments))
               for part in template)


def words(text: str, scope: Scope) -> list[str]:
    """A command line: split at white space as a shell does, but never inside what a substitution yields."""
    marks: list[str] = []

    def mark(part: str | Call) -> str:
        if isinstance(part, str):
            return part
        marks.append(_perform(part, scope))
        return f"\0{len(marks) - 1}\0"

    try:
        split = shlex.split("".join(mark(part) for part in parse(text)))
    except ValueError as error:
        raise LaunchProblem(f"'{text}' is not a command line: {error}") from error
    return [re.sub(r"\0(\d+)\0", lambda match: marks[int(match[1])], word) for word in split]


def truth(text: str, scope: Scope) -> bool:
    """A condition: true or 1, false or 0, in any case of letters."""
    value = expand(text, scope).strip().lower()
    if value not in ("true", "1", "false", "0"):
        raise LaunchProblem(f"'{text}' is '{value}', neither true nor false")
    return value in ("true", "1")


def typed_value(text: str, kind: str, scope: Scope):
    """The value of a parameter: str, bool, int, float, or a list of one of them.

    As in launch_ros the written text is typed first and, where it holds substitutions, what they yield after them; a
    list with a type has to be written as a list.
    """
    if kind not in KINDS:
        raise LaunchProblem(f"unknown type '{kind}'; known: {', '.join(KINDS)}")
    scalar, is_list = KINDS[kind]
    written = _coerce(text, scalar, is_list, lenient=True)
    if isinstance(written, list):
        values = [_substituted(item, scalar, False, scope) for item in written]
        if len({type(value) for value in values}) > 1:
            raise LaunchProblem(f"the items of '{text}' have different types")
        value = values
    else:
        value = _substituted(written, scalar, is_list, scope)
    if not _fits(value, scalar, is_list):
        raise LaunchProblem(f"'{text}' is {value!r}, not of type {kind}")
    return value


def _substituted(written, scalar, is_list: bool, scope: Scope):
    if not isinstance(written, str):
        return written
    template = parse(written)
    value = expand(template, scope)
    if all(isinstance(part, str) for part in template):
        return value        # plain text was typed when it was read
    return _coerce(value, scalar, is_list, lenient=False)


def _coerce(text: str, scalar, is_list: bool, lenient: bool):
    """`text` as a value; lenient: text that cannot be one stays text, for it may hold substitutions."""
    if scalar is str and not is_list:
        return text
    if scalar in (int, float) and not is_list:
        try:
            return scalar(text)
        except ValueError as error:
            if lenient:
                return text
            raise LaunchProblem(f"'{text}' is not of type {scalar.__name__}") from error
    if scalar is bool and not is_list:
        text = {"1": "true", "0": "false"}.get(text, text)
    try:
        value = yaml.safe_load(text) if text else text
    except yaml.YAMLError as error:
        if lenient:
            return text
        raise LaunchProblem(f"'{text}' is not YAML; type=\"str\" takes it as it is") from error
    if _fits(value, scalar, is_list) or (lenient and isinstance(value, list if is_list else str | list)):
        return value
    raise LaunchProblem(f"'{text}' is {value!r} to YAML, which a parameter cannot be"
                        + (f" with type {'list of ' if is_list else ''}{scalar.__name__}" if scalar else
                           "; type=\"str\" takes the text as it is"))


def _fits(value, scalar, is_list: bool) -> bool:
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        if not value:
            return scalar is None or (is_list and scalar is str)
        return (is_list or scalar is None) and len(kinds) == 1 and kinds <= set([scalar] if scalar else _SCALARS)
    return not is_list and type(value) in ((scalar,) if scalar else _SCALARS)


def _parts(text: str, at: int, ends: str) -> tuple[Template, int]:
    """Text and substitutions from `at` up to a character of `ends`, or to the end of the text where `ends` is empty."""
    parts: list[str | Call] = []
    plain = ""
    while at < len(text) and text[at] not in ends:
        if text[at] == "\\" and at + 1 < len(text):
            plain, at = plain + text[at + 1], at + 2
        elif text.startswith("$(", at):
            if plain:
                parts.append(plain)
            call, at = _call(text, at)
            parts.append(call)
            plain = ""
        else:
            plain, at = plain + text[at], at + 1
    return (*parts, *([plain] if plain else [])), at


def _call(text: str, start: int) -> tuple[Call, int]:
    """The substitution that starts at `start`, and where the text goes on."""
    name = _NAME.match(text, start + 2)
    if name is None:
        raise LaunchProblem(f"'{text[start:]}': a substitution starts with its name, as in $(var task)")
    at, arguments = name.end(), []
    while at < len(text) and text[at] == " ":
        at += 1
        if text[at:at + 1] in ("'", '"'):
            quote = text[at]
            argument, at = _parts(text, at + 1, quote)
            at += 1
        else:
            argument, at = _parts(text, at, " )('\"")
            if not argument:
                raise LaunchProblem(f"'{text[start:]}': an argument is empty; one space separates them, '' is an empty one")
        arguments.append(argument)
    if text[at:at + 1] != ")":
        raise LaunchProblem(f"'{text[start:]}': the substitution is not closed with ')'")
    return Call(name[0], tuple(arguments)), at + 1


def _perform(call: Call, scope: Scope) -> str:
    if call.name not in _SUBSTITUTIONS:
        raise LaunchProblem(f"substitution $({call.name}) is not known here; known: "
                            f"{', '.join(f'$({name})' for name in _SUBSTITUTIONS)}")
    function, fewest, most = _SUBSTITUTIONS[call.name]
    if not fewest <= len(call.arguments) <= most:
        wanted = str(most) if fewest == most else f"{fewest} or {most}"
        raise LaunchProblem(f"$({call.name}) takes {wanted} argument(s), not {len(call.arguments)}")
    return function(scope, *(expand(argument, scope) for argument in call.arguments))


def _variable(scope: Scope, name: str, default: str | None = None) -> str:
    value = scope.configurations.get(name, default)
    if value is None:
        raise LaunchProblem(f"$(var {name}): no <arg> or <let> of that name stands before it")
    return value


def _environment(scope: Scope, name: str, default: str | None = None) -> str:
    value = scope.environment.get(name, default)
    if value is None:
        raise LaunchProblem(f"$(env {name}): the environment variable is not set, and no default is given")
    return value


def _package_share(scope: Scope, package: str) -> str:
    try:
        return str(package_share(package))
    except ConfigError as error:
        raise LaunchProblem(str(error)) from error


_SUBSTITUTIONS = {      # name: (function, fewest arguments, most)
    "var": (_variable, 1, 2),
    "env": (_environment, 1, 2),
    "find-pkg-share": (_package_share, 1, 1),
    "dirname": (lambda scope: str(scope.directory), 0, 0),
}
