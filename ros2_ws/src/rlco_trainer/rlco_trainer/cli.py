"""The `rlco` command."""

import argparse
import os
import signal
import sys

from rlco_common.errors import RlcoError
from rlco_trainer.commands import data, demo, doctor, export, fault, report, run, serve, shadow, train, twin, up

GROUPS = (doctor, demo, data, twin, train, run, report, serve, shadow, up, fault, export)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; named errors become one line on stderr and exit status 1."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except RlcoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:     # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="rlco", description="RL-based sim-real co-training (RL-Co): from teleoperation to a deployed policy.",
        epilog="'rlco COMMAND --help' explains a command. Start with 'rlco doctor', then 'rlco demo'.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in GROUPS:
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
