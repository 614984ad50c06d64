"""The generated reference pages are those of the present code, and leave nothing out."""

from pathlib import Path

import pytest

from rlco_common.contract import load_contract
from rlco_common.launch_xml import evaluate_launch_file
from rlco_common.resources import package_executable
from rlco_trainer.cli import build_parser
from rlco_trainer.commands.up import shipped
from rlco_trainer.reference.commands import commands_page, leaf_commands
from rlco_trainer.reference.launch import USUAL, launch_page
from rlco_trainer.reference.pages import PAGES
from rlco_trainer.reference.parameters import parameters_page
from rlco_trainer.reference.ros import inspected_nodes
from rlco_trainer.reference.topics import topics_page

DOCS = Path(__file__).resolve().parent.parent / "docs"
REMEDY = "run python -m rlco_trainer.reference docs"
REQUIRED = {"deploy": {"checkpoint": "nowhere"}, "train": {"config": "nothing"},
            "evaluate": {"protocol": "nothing"}}


def written(name: str) -> str:
    assert name in PAGES
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def nodes(module_ros_domain):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ROS_DOMAIN_ID", str(module_ros_domain))
        return inspected_nodes()


def test_the_page_of_the_commands_is_the_present_one():
    assert written("reference/commands.md") == commands_page(build_parser()), REMEDY


def test_every_command_has_its_section_whatever_the_terminal_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    page = commands_page(build_parser())
    assert page == written("reference/commands.md")
    for name, parser in leaf_commands(build_parser()):
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for action in parser._actions:
            assert action.option_strings[-1:] == ["--help"] or all(option in section for option in action.option_strings)


def test_the_page_of_the_launch_files_is_the_present_one():
    assert written("launch.md") == launch_page(list(shipped().values())), REMEDY


def test_every_launch_file_tells_all_arguments_and_nodes():
    page = written("launch.md")
    for name, path in shipped().items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for node in evaluate_launch_file(path, REQUIRED.get(name)):
            assert f"`{node.executable}`" in section
    for argument in USUAL:
        assert f"| `{argument}` |" in page.split("\n## Every file has\n")[1]


def test_the_pages_of_topics_and_parameters_are_the_present_ones(nodes):
    assert written("reference/topics.md") == topics_page(load_contract(), nodes), REMEDY
    assert written("reference/parameters.md") == parameters_page(nodes), REMEDY


def test_every_node_that_a_launch_file_starts_is_described_with_the_parameters_it_is_given(nodes):
    for name, path in shipped().items():
        for node in evaluate_launch_file(path, REQUIRED.get(name)):
            variants = [known for known in nodes if known.executable == node.executable]
            declared = {parameter.name for known in variants for parameter in known.parameters} | {"use_sim_time"}
            given = {key for part in node.parameters if isinstance(part, dict) for key in part}
            assert variants, f"{node.executable} is missing in rlco_trainer.reference.ros"
            assert given <= declared, f"{name}: {node.executable} has no parameter {given - declared}"


def test_every_node_is_installed_under_the_name_that_the_page_runs(nodes):
    for node in nodes:
        assert package_executable(node.package, node.executable)


def test_every_parameter_says_what_it_is(nodes):
    for node in nodes:
        for parameter in node.parameters:
            assert parameter.description, f"{node.name} {node.variant}: {parameter.name} has no description"
