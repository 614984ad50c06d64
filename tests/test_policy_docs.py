"""docs/policies.md says what the code says, and its example runs as it stands there."""

import re
from pathlib import Path

import pytest
import yaml
from policies import CONFIGS, CONTRACT, make_policy, statistics
from test_policy_contract import outsider  # noqa: F401 - a fixture
from tiny_models import openvla_tokenizer, pi05_tokenizer

from rlco_common.strict import from_mapping
from rlco_policy.checkpoint import save_policy
from rlco_policy.footprint import footprint, footprint_table
from rlco_policy.registry import policy_class
from rlco_trainer.cli import main
from rlco_trainer.config import StageOneConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "policies.md"
CASES = (
    ("openvla", "`openvla`, bfloat16, adapters", {"dtype": "bfloat16"}, ("sft",)),
    ("pi05", "`pi05`, float32", {}, ("sft", "rl")),
    ("pi05", "`pi05`, bfloat16, expert", {"dtype": "bfloat16", "trains": "expert"}, ("rl",)),
)
STAGES = {"sft": "Stage I", "rl": "Stage II"}


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def table() -> str:
    rows = []
    for name, label, changes, stages in CASES:
        tokenizer = openvla_tokenizer() if name == "openvla" else pi05_tokenizer()
        cls = policy_class(name)
        config = from_mapping(cls.config_class, {"tokenizer": str(tokenizer), **changes}, name)
        policy = cls.blank(config, CONTRACT, statistics(), tokenizer)
        rows += [(f"{label}, {'both stages' if len(stages) == 1 and name == 'openvla' else STAGES[stage]}",
                  footprint(policy, stage)) for stage in stages]
    return footprint_table(rows)


def test_the_memory_table_is_the_present_one(page):
    written = re.search(r"<!-- footprint -->\n(.*?)<!-- /footprint -->", page, re.DOTALL).group(1).strip()
    assert written == table()


def test_a_footprint_counts_what_trains():
    policy = make_policy("pi05", CONFIGS["pi05"]())
    first, second = footprint(policy, "sft"), footprint(policy, "rl")
    assert first.weights == second.weights == 4 * sum(parameter.numel() for parameter in policy.parameters())
    assert second.trainable < first.trainable < first.parameters
    assert first.training == first.weights + 3 * 4 * first.trainable


def test_the_configurations_of_the_page_are_valid(page):
    found = [yaml.safe_load(text) for text in blocks(page, "yaml")]
    assert [data["policy"] for data in found] == ["openvla", "pi05"]
    for data in found:
        config = from_mapping(StageOneConfig, data | {"out": "run", "real": "data"}, str(PAGE))
        from_mapping(policy_class(config.policy).config_class, config.policy_config, str(PAGE))


def test_the_entry_point_is_that_of_the_example(page):
    written = (PAGE.parent / "examples" / "policy_package" / "pyproject.toml").read_text(encoding="utf-8")
    assert all(text.strip() in written for text in blocks(page, "toml"))


def test_the_checks_run_as_the_page_says(page, outsider, capsys):     # noqa: F811
    for text in blocks(page, "python"):
        exec(compile(text, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("target", "policy", "file"), [
    ("openvla", "openvla", "config.json"), ("lerobot", "pi05", "policy_preprocessor.json")])
def test_the_export_commands_write_and_refuse_by_name(tmp_path, capsys, target, policy, file):
    save_policy(make_policy(policy, CONFIGS[policy]()), tmp_path / "policy")
    assert main(["export", target, str(tmp_path / "policy"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / file).is_file() and str(tmp_path / "out") in capsys.readouterr().out
    assert main(["export", target, str(tmp_path / "policy"), str(tmp_path / "out")]) == 1
    save_policy(make_policy("compact_flow"), tmp_path / "other")
    assert main(["export", target, str(tmp_path / "other"), str(tmp_path / "new")]) == 1
    assert f"this export is for {policy} policies" in capsys.readouterr().err
