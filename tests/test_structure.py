"""The checks of scripts/check_layers.py hold, and would notice what they forbid."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "check_layers.py"


@pytest.fixture(scope="module")
def layers():
    spec = importlib.util.spec_from_file_location("check_layers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tree_obeys():
    result = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(("package", "folder", "code", "complaint"), [
    ("rlco_teleop", "", "import torch", "must not import torch"),
    ("rlco_teleop", "", "def f():\n    from rlco_sim_bridge.twin import Twin", "must not import rlco_sim_bridge.twin"),
    ("rlco_common", "", "from rlco_policy.interface import VLAPolicy", "must not import rlco_policy"),
    ("rlco_policy", "", "import rclpy", "only nodes/"),
    ("rlco_policy", "nodes", "from rclpy.executors import MultiThreadedExecutor", "loses callbacks"),
    ("rlco_policy", "nodes", "x = 1\n" * 301, "at most 300"),
    ("rlco_policy", "", "try:\n    x = 1\nexcept Exception:\n    pass", "swallowed"),
])
def test_a_violation_is_named(layers, tmp_path, monkeypatch, package, folder, code, complaint):
    monkeypatch.setattr(layers, "ROOT", tmp_path)
    path = tmp_path / package / folder / "module.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    problems = list(layers.check_file(path, package))
    assert any(complaint in problem for problem in problems), problems


def test_an_allowed_import_passes(layers, tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text("from rlco_sim_bridge.experts import make_expert\nfrom rlco_common.pose import Pose\n")
    assert list(layers.check_file(path, "rlco_teleop")) == []


def benchmarks():
    return re.findall(r"^\t@\$\(RUN\) \$\(PYTHON\) (benchmarks/\S+\.py)", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.long
@pytest.mark.parametrize("script", benchmarks())
def test_a_benchmark_starts_and_explains_itself(script):
    """They take minutes; that their imports and options hold is checked, not their figures."""
    done = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr[-2000:]
