"""What the commands share."""

import argparse


def command(commands, name: str, run, summary: str, **kwargs) -> argparse.ArgumentParser:
    """Add a command to a group of subparsers. run(options) is called when it is chosen and returns the exit status."""
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".",
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)
    parser.set_defaults(run=run)
    return parser


def contract_option(parser) -> None:
    parser.add_argument("--contract", default="panda_tabletop", help="name of a shipped contract, or path of a YAML file")
