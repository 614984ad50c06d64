"""The command line: helpful help, named errors, the doctor's verdict."""

import argparse
import subprocess
import sys

import pytest

from rlco_common.errors import ConfigError
from rlco_trainer import doctor
from rlco_trainer.cli import build_parser, main
from rlco_trainer.config import StageOneConfig, StageTwoConfig, load_stage_config


def every_command(parser, path=()):
    """All command paths of the command line, the empty one included."""
    yield list(path)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from every_command(below, (*path, name))


@pytest.mark.parametrize("command", every_command(build_parser()), ids=" ".join)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args([*command, "--help"])
    assert end.value.code == 0
    assert "usage: rlco" in capsys.readouterr().out


def test_output_cut_off_by_its_reader_is_not_an_error():
    program = subprocess.Popen([sys.executable, "-m", "rlco_trainer.cli", "up", "twin", "--show-args"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.close()
    assert program.stderr.read() == b""
    assert program.wait() == 141


def test_a_named_error_is_one_line(tmp_path, capsys):
    assert main(["dataset", "info", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "rlco dataset build" in error
    assert error.count("\n") == 1


def test_help_is_quick():
    """Help must not pay for importing torch or the simulator."""
    code = "import sys; from rlco_trainer.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_shipped_configurations_load_and_take_overrides():
    first = load_stage_config(StageOneConfig, "push_cube_stage1", ["steps=7", "policy_config.draws=1", "lr=1e-4"])
    assert (first.steps, first.policy_config["draws"], first.lr) == (7, 1, 1e-4)
    second = load_stage_config(StageTwoConfig, "push_cube_stage2", ["ppo.clip=0.1", "beta=0.3"])
    assert (second.ppo.clip, second.beta) == (0.1, 0.3)
    with pytest.raises(ConfigError, match=r"ppo: unknown field\(s\) clipp"):
        load_stage_config(StageTwoConfig, "push_cube_stage2", ["ppo.clipp=0.1"])
    with pytest.raises(ConfigError, match=r"known: .*push_cube_stage1"):
        load_stage_config(StageOneConfig, "push_cubes", [])


def test_the_doctor_says_go_here():
    findings = doctor.diagnose()
    assert {finding.check for finding in findings if finding.go is False} == set(), doctor.render(findings)
    assert {"Python", "ROS 2", "DDS on loopback", "Vulkan rendering", "disk", "contract"} <= {f.check for f in findings}


def test_the_doctor_names_cause_and_remedy(tmp_path, monkeypatch):
    broken = tmp_path / "cell.yaml"
    broken.write_text("name: x\n")
    contract = doctor._contract(str(broken))
    assert contract.go is False
    assert "missing field" in contract.detail
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)
    assert doctor._disk().go is False
    monkeypatch.setattr(doctor, "MIN_MESA", (999, 0))
    monkeypatch.setattr(doctor, "_mesa_version", lambda: (25, 0))
    text = doctor.render([doctor._rendering(), contract])
    assert "check(s) failed" in text
    assert "-> fix the field" in text


def test_a_broken_check_does_not_end_the_others(monkeypatch):
    monkeypatch.setattr(doctor, "_gpu", lambda: 1 / 0)
    monkeypatch.setattr(doctor, "_dds", lambda: doctor.Finding("DDS on loopback", True, "not run in this test"))
    findings = doctor.diagnose()
    assert sum(finding.go is False for finding in findings) == 1
    assert any("ZeroDivisionError" in finding.detail for finding in findings)
