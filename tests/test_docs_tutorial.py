"""The commands of docs/tutorial.md, in their order and with their arguments, at a small scale."""

import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from rlco_common.records import read_records
from rlco_policy.checkpoint import read_description
from rlco_teleop.bags import find_episodes
from rlco_trainer.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def commands(page: str) -> list[str]:
    return re.findall(r"^    (\S.*)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)


TUTORIAL = commands("tutorial.md")
# Beginning of a command -> what makes it small. They come after the page's own arguments, so they win over them.
SMALL = {
    "rlco twin view": [],
    "rlco record": ["-n", "2"],
    "rlco dataset build": ["--ignore-audit"],       # a busy machine may lose pictures
    "rlco dataset info": [],
    "rlco demos": ["-n", "4", "--workers", "0"],
    "rlco train stage1": ["steps=4", "batch_size=8", "held_out=1"],
    "rlco train stage2": ["iterations=1", "episodes=2", "scenes=2", "workers=0", "measure_episodes=2", "min_initial_success=0",
                          "held_out=1", "sft_batch_size=4", "ppo.minibatch_size=4", "replay.updates=1"],
    "rlco eval": ["--trials", "1", "--workers", "0"],
}
# Commands that are run elsewhere: the same ones, or with the paths of another page.
ELSEWHERE = {"make setup", "source .venv/bin/activate", "rlco doctor"}


def beginning(command: str) -> str | None:
    return next((known for known in SMALL if command.startswith(known + " ")), None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tutorial")


@pytest.mark.long
def test_the_tutorial_leads_from_nothing_to_a_policy_and_its_figures(place, monkeypatch, ros_domain, capsys):
    monkeypatch.chdir(place)
    for command in filter(beginning, TUTORIAL):
        assert main([*shlex.split(command)[1:], *SMALL[beginning(command)]]) == 0, command
    runs = place / "runs" / "tutorial"
    assert (runs / "scene.png").is_file() and len(find_episodes(runs / "bags")) == 2
    lineage = read_description(runs / "rl_co" / "policy")["lineage"]
    assert lineage["start"]["digest"] == read_description(runs / "sft" / "policy")["digest"]
    trials = read_records(runs / "trials.jsonl")
    assert [(trial.policy, trial.domain) for trial in trials] == [
        (arm, domain) for arm in ("sft", "rl_co") for domain in ("twin", "standin")]
    audit, report = (next(line for line in TUTORIAL if line.startswith(name)) for name in ("rlco dataset audit", "rlco report"))
    assert main(shlex.split(audit)[1:]) in (0, 1), "1: a no-go on a busy machine"
    assert (runs / "audit.html").is_file()
    capsys.readouterr()
    assert main(shlex.split(report)[1:]) == 0
    assert "rl_co" in (runs / "report.html").read_text()


def test_the_console_of_the_tutorial_serves_its_page(place, ros_domain, monkeypatch):
    monkeypatch.setenv("ROS_LOG_DIR", str(place / "log"))
    command = next(line for line in TUTORIAL if line.startswith("rlco up console"))
    log = place / "console.log"
    with subprocess.Popen([sys.executable, "-m", "rlco_trainer.cli", *shlex.split(command)[1:], "port:=0"], cwd=place,
                          stdout=log.open("w"), stderr=subprocess.STDOUT) as run:
        try:
            deadline = time.monotonic() + 90
            while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
                assert time.monotonic() < deadline and run.poll() is None, log.read_text()
                time.sleep(0.1)
            with urllib.request.urlopen(found[0], timeout=20) as answer:
                assert answer.status == 200 and b"<html" in answer.read().lower()
        finally:
            run.send_signal(signal.SIGINT)
        assert run.wait(30) == 0


def test_the_other_commands_of_the_tutorial_are_run_by_other_tests():
    """On the page of the deployment with its paths; setup and doctor are targets that CI goes through."""
    deployment = set(commands("deployment.md"))
    for command in TUTORIAL:
        if beginning(command) or command.startswith(("rlco dataset audit", "rlco report", "rlco up console")):
            continue
        same = command.replace("runs/tutorial/rl_co", "runs/demo/rl_co").replace("runs/tutorial/deploy", "runs/deploy")
        assert same in deployment or command in ELSEWHERE, command


def test_the_console_is_where_the_tutorial_says():
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    launch = (ROOT / "ros2_ws" / "src" / "rlco_teleop" / "launch" / "console.launch.xml").read_text()
    assert "http://127.0.0.1:8030" in page and 'name="port" default="8030"' in launch


def test_the_index_leads_to_every_page():
    linked = set(re.findall(r"\]\(([^)#]+)", (DOCS / "README.md").read_text(encoding="utf-8")))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "examples" not in path.parts} - {"README.md"}
    assert pages <= linked, f"docs/README.md does not lead to {sorted(pages - linked)}"
