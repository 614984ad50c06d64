"""The reference of the `rlco` command, from its parsers."""

import argparse
from collections.abc import Iterator

from rlco_trainer.reference.markdown import REGENERATE, code, table

_INTRODUCTION = f"""# Commands

{REGENERATE}

`rlco` prints one line and returns 1 for an error that has a name, 2 for a wrong command line, 130 when interrupted.
`--help` works on every command; it is left out below.
"""


def commands_page(parser: argparse.ArgumentParser) -> str:
    """The page as markdown: a list of all commands, then one section each."""
    commands = list(leaf_commands(parser))
    listing = table(("command", "what it does"),
                    [[f"[`{name}`](#{name.replace(' ', '-')})", _summary(command)] for name, command in commands])
    return "\n".join([_INTRODUCTION, listing, *(_section(name, command) for name, command in commands)])


def leaf_commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(whole name, parser) of every command that has no commands below it."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser.prog, parser
    for action in below:
        for command in action.choices.values():
            yield from leaf_commands(command)


def _summary(parser: argparse.ArgumentParser) -> str:
    return (parser.description or "").rstrip(".")


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    lines = [f"## {name}", "", f"{_summary(parser)}.", "", f"    {_usage(name, actions)}", ""]
    if actions:
        lines.append(table(("argument", "default", "meaning"),
                           [[code(_title(action)), _default(action), _meaning(action)] for action in actions]))
    if parser.epilog:
        lines += [parser.epilog, ""]
    return "\n".join(lines)


def _usage(name: str, actions: list[argparse.Action]) -> str:
    options = any(action.option_strings and not action.required for action in actions)
    required = [_title(action) for action in actions if action.option_strings and action.required]
    return " ".join([name, *[_positional(action) for action in actions if not action.option_strings], *required,
                     *(["[options]"] if options else [])])


def _positional(action: argparse.Action) -> str:
    value = _value(action)
    return {"?": f"[{value}]", "*": f"[{value} ...]", "+": f"{value} [{value} ...]"}.get(action.nargs, value)


def _title(action: argparse.Action) -> str:
    if not action.option_strings:
        return _value(action)
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    return f"{names} {_value(action)}{' ...' if action.nargs in ('+', '*') else ''}"


def _value(action: argparse.Action) -> str:
    if action.metavar:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _default(action: argparse.Action) -> str:
    if action.required or action.nargs == 0 or action.default in (None, "", argparse.SUPPRESS) or action.default == []:
        return "required" if action.required and action.nargs not in ("*", "?") else ""
    if isinstance(action.default, list | tuple):
        return code(" ".join(map(str, action.default)))
    return code(str(action.default))


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "").strip()
    return text % {**vars(action), "prog": "rlco"} if "%" in text else text
