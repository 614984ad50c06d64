"""The generated pages by their path below docs/; what a page needs is loaded when it is made."""


def _commands() -> str:
    from rlco_trainer.cli import build_parser
    from rlco_trainer.reference.commands import commands_page

    return commands_page(build_parser())


def _launch() -> str:
    from rlco_trainer.commands.up import shipped
    from rlco_trainer.reference.launch import launch_page

    return launch_page(list(shipped().values()))


def _topics() -> str:
    from rlco_common.contract import load_contract
    from rlco_trainer.reference.ros import inspected_nodes
    from rlco_trainer.reference.topics import topics_page

    return topics_page(load_contract(), inspected_nodes())


def _parameters() -> str:
    from rlco_trainer.reference.parameters import parameters_page
    from rlco_trainer.reference.ros import inspected_nodes

    return parameters_page(inspected_nodes())


PAGES = {"launch.md": _launch, "reference/commands.md": _commands, "reference/topics.md": _topics,
         "reference/parameters.md": _parameters}
