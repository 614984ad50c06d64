"""The commands and overrides of docs/training.md and of the README load, with the data that they name and no other."""

import re
import shlex
from pathlib import Path

import pytest

from rlco_trainer.cli import build_parser
from rlco_trainer.config import StageOneConfig, StageTwoConfig, load_stage_config, roots

ROOT = Path(__file__).resolve().parent.parent
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("docs/training.md", "README.md")}
COMMANDS = [(page, line) for page, text in PAGES.items() for line in re.findall(r"^    (rlco train .*)$", text, re.MULTILINE)]
CONFIGS = {"stage1": StageOneConfig, "stage2": StageTwoConfig}
SHIPPED = sorted(path.stem for path in (ROOT / "ros2_ws/src/rlco_trainer/config").glob("*_stage?.yaml"))


def load(line: str):
    """The configuration of an `rlco train` command."""
    words = shlex.split(line, comments=True)
    arguments = build_parser().parse_args(words[1:])
    return load_stage_config(CONFIGS[words[2]], arguments.config, arguments.overrides)


def inputs(config) -> set[str]:
    """The datasets and the checkpoint that a run reads."""
    if isinstance(config, StageOneConfig):
        return set(map(str, roots(config.real) + roots(config.sim)))
    return {str(config.start), *map(str, roots(config.real) + roots(config.replay.demos))}


def test_a_command_with_a_folder_of_its_own_reads_nothing_from_the_configurations_folders():
    assert {page for page, _ in COMMANDS} == set(PAGES)
    for page, line in COMMANDS:
        read = inputs(load(line))
        assert " out=" not in line or read <= {"real", "sim", "sft/policy"}, f"{page}: {line} reads {read}"


def overrides_of_the_paper() -> list[tuple[str, str, list[str]]]:
    """(row, stage, overrides) of the table of ablations, the overrides as a shell passes them on."""
    table = re.search(r"\| the paper \| Stage I \| Stage II \|\n\|---.*\n((?:\|.*\n)+)", PAGES["docs/training.md"]).group(1)
    found = []
    for line in table.splitlines():
        row, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found += [(row, stage, [text.replace("...", "0.5") for text in shlex.split(cell.strip("`"))])
                  for stage, cell in zip(("stage1", "stage2"), cells, strict=True) if cell]
    assert len(found) > 5
    return found


@pytest.mark.parametrize("shipped", SHIPPED)
def test_the_papers_ablations_are_overrides_of_every_shipped_configuration(shipped):
    for row, stage, overrides in overrides_of_the_paper():
        if shipped.endswith(stage):
            load_stage_config(CONFIGS[stage], shipped, overrides)
            assert all(re.fullmatch(r"[\w.]+=\S*", text) for text in overrides), row


def test_no_simulated_demonstration_comes_back_in_stage_two():
    fig5 = {stage: overrides for row, stage, overrides in overrides_of_the_paper() if row.startswith("Fig. 5")}
    assert inputs(load_stage_config(StageOneConfig, "push_cube_stage1", ["real=real", *fig5["stage1"]])) == {"real"}
    stage2 = load_stage_config(StageTwoConfig, "push_cube_stage2", ["real=real", "start=sft/policy", *fig5["stage2"]])
    assert inputs(stage2) == {"real", "sft/policy"}
    assert stage2.replay.updates and stage2.min_initial_success == 0


def test_the_papers_plain_ppo_is_without_what_the_shipped_configurations_add():
    line, = (line for page, line in COMMANDS if page == "docs/training.md" and "out=ppo" in line)
    config = load(line)
    assert (config.replay.updates, config.places.weight, config.ppo.shaping, config.overlap) == (0, 0, 0, False)
    assert (config.ppo.surrogate_weight, config.ppo.epochs) == (1, 2) and config.beta > 0
    extra = [word for word in shlex.split(line) if re.match(r"(replay|places|overlap|ppo)\b", word)]
    for task in ("pick_place", "open_drawer", "close_drawer"):
        load_stage_config(StageTwoConfig, f"{task}_stage2", extra)
