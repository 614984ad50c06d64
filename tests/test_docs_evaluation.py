"""Every command of docs/evaluation.md runs, and its table of the protocol is the code's."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml
from policies import make_policy

from rlco_common import topics
from rlco_common.records import read_records
from rlco_policy.checkpoint import save_policy
from rlco_trainer.cli import build_parser, main
from rlco_trainer.commands.up import shipped
from rlco_trainer.protocol import Protocol, load_protocol

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line.strip()) for line in re.findall(r"^(?:    |       )(\S.*)$", PAGE, re.MULTILINE)
            if line.strip().startswith(("rlco ", "ros2 "))]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("evaluation_*.yaml"))


def commands(beginning):
    return [words for words in COMMANDS if " ".join(words).startswith(beginning)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory in which the page's paths exist, with policies that know nothing and protocols of few trials."""
    for arm in ("real_only", "sft_cotraining", "rl_co"):
        save_policy(make_policy("compact_flow"), tmp_path / "runs" / "demo" / arm / "policy")
    (tmp_path / "docs" / "examples").mkdir(parents=True)
    for example in EXAMPLES:
        short = yaml.safe_load(example.read_text()) | {"workers": 0} | ({} if "real" in example.name else {"trials": 1})
        (tmp_path / "docs" / "examples" / example.name).write_text(yaml.safe_dump(short))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_of_the_protocol_is_the_code_s():
    told = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(Protocol))
    for field in dataclasses.fields(Protocol):
        row = re.search(rf"^\| `{field.name}` \| (.*?) \|", PAGE, re.MULTILINE).group(1).strip("`")
        if field.default is dataclasses.MISSING:
            assert row == "required"
        elif not isinstance(field.default, (Path, tuple)) and field.default != "":
            assert yaml.safe_load(row) == field.default, field.name


def test_the_examples_are_protocols():
    assert len(EXAMPLES) == 3
    real = [load_protocol(example) for example in EXAMPLES if load_protocol(example).real]
    assert [len(protocol.initial_states) for protocol in real] == [2]


@pytest.mark.long
def test_evaluate_and_report_on_the_stand_in(place, capsys):
    protocol, short, report = (*commands("rlco eval docs/examples/evaluation_standin"), *commands("rlco eval runs"),
                               *commands("rlco report"))
    short[short.index("--trials") + 1] = "1"
    assert main(protocol[1:]) == 0
    assert main([*short[1:], "--workers", "0"]) == 0
    assert main(report[1:]) == 0
    assert len(read_records(place / "runs" / "evaluation" / "evaluation_standin" / "trials.jsonl")) == 3
    assert "RL-Co" in (place / "runs" / "report.html").read_text() and "RL-Co" in capsys.readouterr().out


def test_the_other_commands_exist():
    """Trials over ROS and on a real table are run by test_evaluator; here that what the page types is understood."""
    for words in commands("rlco eval"):
        assert build_parser().parse_args(words[1:]).source.name.endswith(("policy", ".yaml"))
    (up,) = commands("rlco up")
    assert up[2] in shipped() and up[3].startswith("protocol:=")
    services = [words[3] for words in commands("ros2 service call")]
    assert services == [topics.RECORDER_START, topics.RECORDER_SUCCESS, topics.RECORDER_FAIL, topics.RECORDER_DISCARD]
    assert commands("ros2 run")[0][-1] == topics.EVALUATION_OVERLAY
    assert len(COMMANDS) == 4 + 1 + 1 + 1 + 4
