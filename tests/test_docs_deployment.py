"""Every command of docs/deployment.md runs, on the stand-in and with the documented arguments."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from rlco_common import topics
from rlco_common.ros import COMMAND_QOS, STATE_QOS
from rlco_common.ros_client import RosClient
from rlco_trainer.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in re.findall(r"^    (\S.*)$", PAGE, re.MULTILINE)]
CLI = [sys.executable, "-m", "rlco_trainer.cli"]


def line_of(beginning: str) -> str:
    """The one command of the page that begins like this, not counting the variables before it."""
    found = [line for line in COMMANDS if re.sub(r"^[A-Z_]+=\S+ ", "", line).startswith(beginning)]
    assert len(found) == 1, (beginning, found)
    return found[0]


def command(beginning: str) -> list[str]:
    """The same as words, without the variables."""
    return [word for word in shlex.split(line_of(beginning)) if not re.match(r"[A-Z_]+=", word)]


@pytest.fixture(scope="module")
def place(tmp_path_factory, briefly_trained):
    """A directory in which the page's paths exist."""
    root = tmp_path_factory.mktemp("deployment")
    (root / "runs" / "demo" / "rl_co").mkdir(parents=True)
    (root / "runs" / "demo" / "rl_co" / "policy").symlink_to(briefly_trained)
    return root


class Terminal:
    """A `rlco` command that runs until it is interrupted."""

    def __init__(self, place, words, **environment):
        self.log = place / f"{words[0]}_{words[1].replace('/', '_')}_{time.monotonic_ns()}.log"
        self.process = subprocess.Popen([*CLI, *words], cwd=place, stdout=self.log.open("w"), stderr=subprocess.STDOUT,
                                        env={**os.environ, "ROS_LOG_DIR": str(place / "log"), **environment})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0, self.log.read_text()[-2000:]


def call(client, words):
    """`ros2 service call NAME TYPE [VALUES]`, through the same service."""
    assert words[:3] == ["ros2", "service", "call"]
    if words[4] == "std_srvs/srv/SetBool":
        assert words[5] == "{data: true}"
        return client.call(SetBool, words[3], SetBool.Request(data=True))
    assert words[4] == "std_srvs/srv/Trigger"
    return client.call(Trigger, words[3])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.long
def test_policy_takeover_remote_and_shadow_on_the_stand_in(place, ros_domain, capsys, monkeypatch):
    """The page from top to bottom, in one graph."""
    monkeypatch.chdir(place)
    with Terminal(place, command("rlco up twin")[1:]), RosClient("reader", ros_domain) as client:
        teleop = [word.replace("keyboard", "scripted") for word in command("rlco up teleop")[1:]]      # tests have no keyboard
        with (Terminal(place, command("rlco up deploy checkpoint:=runs/demo/rl_co/policy record:=true")[1:]),
              Terminal(place, teleop)):
            for node in ("/sim", "/gate", "/policy", "/recorder", "/teleop"):
                client.wait_active(node, 120.0)
            assert client.node.count_publishers("/arm/target_pose") == 1, "one gate"
            client.must_trigger(topics.SIM_RESET, timeout_s=30.0)
            client.wait_until(lambda: client.trigger(topics.RECORDER_START)[0], 20, "the recorder")
            gate = client.subscribe(DiagnosticArray, topics.GATE_STATUS, STATE_QOS)
            assert call(client, command("ros2 service call /gate/enable_policy")).success
            client.wait_until(lambda: gate.find(lambda m: m.status[0].message == "POLICY"), 30, "the policy's motion")
            client.must_trigger(topics.OPERATOR_START)
            client.wait_until(lambda: gate.find(lambda m: m.status[0].message == "OPERATOR"), 20, "the takeover")
            client.spin_for(2.5)
            client.must_trigger(topics.RECORDER_SUCCESS)
            assert call(client, command("ros2 service call /gate/stop")).success
            client.wait_until(lambda: gate.last.status[0].message == "STOPPED", 10, "the stop")
            client.trigger(topics.OPERATOR_STOP)
            client.wait_until(lambda: call(client, command("ros2 service call /gate/rearm")).success, 10, "the re-arming")
        with (remote(place) as address, Terminal(place, command_to(address), RLCO_API_KEY="choose-one")):
            client.wait_active("/policy", 60.0)
            chunks = client.subscribe(JointTrajectory, topics.ACTION_CHUNK, COMMAND_QOS)
            client.must_trigger(topics.SIM_RESET, timeout_s=30.0)
            client.wait_until(lambda: chunks.messages, 30, "a chunk of the remote policy")
        with Terminal(place, command("rlco up deploy checkpoint:=runs/demo/rl_co/policy shadow:=true")[1:]):
            client.wait_active("/policy", 60.0)
            assert command("ros2 topic echo")[3] == topics.DIAGNOSTICS
            client.wait_for_message(DiagnosticArray, topics.DIAGNOSTICS, lambda m: m.status[0].name == "shadow", timeout_s=20.0)
            assert client.node.count_publishers(topics.ACTION_CHUNK) == 0
    assert main([*command("rlco dataset build")[1:], "--ignore-audit"]) == 0, "a busy machine may lose pictures"
    assert "1 bags" in capsys.readouterr().out
    assert main(command("rlco shadow")[1:]) == 0
    assert (place / "runs" / "shadow.html").is_file()


class remote(Terminal):
    """The page's policy server, on a port that is free and without a GPU."""

    def __init__(self, place):
        words = command("rlco serve")[1:]
        self.port = free_port()
        words[words.index("8000")] = str(self.port)
        words[words.index("cuda")] = "cpu"
        super().__init__(place, words, RLCO_API_KEY="choose-one")

    def __enter__(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                assert urllib.request.urlopen(f"http://localhost:{self.port}/healthz", timeout=5).read() == b"OK\n"
                return f"ws://localhost:{self.port}"
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
                time.sleep(0.2)


def command_to(address):
    return [word.replace("ws://gpu-machine:8000", address) for word in command("rlco up deploy checkpoint:=ws://")[1:]]


@pytest.mark.long
def test_trials_with_one_command(place, ros_domain, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = command("rlco deploy")[1:]
    words[words.index("--trials") + 1] = "1"
    assert main(words) == 0
    assert "over ROS on standin" in capsys.readouterr().out and (place / "runs" / "deploy" / "trials.jsonl").is_file()


MAKE_TARGETS = {"make bench-policy": "policy_node.py", "make bench-deployment": "deployment.py"}


@pytest.mark.parametrize(("target", "script"), MAKE_TARGETS.items())
def test_a_benchmark_is_a_target_of_make(target, script):
    """It takes minutes; that it would run this very file is checked, not its figures."""
    done = subprocess.run([*command(target), "-n", "-o", "setup"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and f"benchmarks/{script}" in done.stdout
    assert (ROOT / "benchmarks" / script).is_file()


def test_no_command_of_the_page_is_left_out():
    """Each is the one that some test above takes."""
    taken = re.findall(r'command\("([^"]+)"\)', Path(__file__).read_text(encoding="utf-8"))
    assert {line_of(beginning) for beginning in (*taken, *MAKE_TARGETS)} == set(COMMANDS)
