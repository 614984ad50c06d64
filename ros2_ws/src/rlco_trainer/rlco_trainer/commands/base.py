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


def variation_option(parser) -> None:
    parser.add_argument("--variation", default="", help="what episodes vary beside their seed, for example "
                        "objects=unseen,start=perturbed,camera=0.5,light=0.5")


def chosen_variation(options):
    """The Variation of --variation. Raises ConfigError naming a wrong switch."""
    from rlco_sim_bridge.variation import variation_from_text

    return variation_from_text(options.variation, "--variation")
