"""The trainer node: the loops of `rlco train` over ROS, which can be paused, saved, stopped and resumed."""

import signal
import subprocess
import sys

import pytest
from commands import written
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from std_msgs.msg import Float64, String
from test_training import same_weights, stage1_config, stage2_config

from rlco_common import topics
from rlco_common.messages import diagnostic_values
from rlco_common.processes import Processes
from rlco_common.ros import EVENT_QOS
from rlco_common.ros_client import RosClient
from rlco_policy.checkpoint import read_description
from rlco_trainer.control import RunControl
from rlco_trainer.run_state import latest_run
from rlco_trainer.stage1 import train_stage1
from rlco_trainer.stage2 import train_stage2

NODE = "rlco_trainer.nodes.trainer_node"
MANY = 100_000


@pytest.fixture
def graph(ros_domain, tmp_path):
    with (Processes(tmp_path / "logs", ros_domain) as processes,
          RosClient(domain_id=ros_domain, watch=processes.check) as client):
        yield processes, client


def state_of_training(inbox):
    status = next((s for message in reversed(inbox.messages) for s in message.status if s.name == "trainer"), None)
    return "" if status is None else status.message


@pytest.mark.long
def test_a_run_is_paused_saved_stopped_and_resumed_over_ros(graph, tiny_datasets, tmp_path):
    processes, client = graph
    config = stage1_config(tiny_datasets, tmp_path / "run", steps=MANY, save_every=MANY, monitor_every=MANY, log_every=1)
    processes.start_node(NODE, config=written(config, tmp_path / "stage1.yaml"), stage="1", overrides=["seed=5"])
    progress, metrics = client.subscribe(Float64, "/trainer/progress"), client.subscribe(DiagnosticArray, "/trainer/metrics")
    health = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS)
    client.wait_active("/trainer", timeout_s=60)
    client.wait_until(lambda: len(progress) and len(metrics), 180, "progress and metrics")
    assert 0 < progress.last.data < 1
    assert "sft/loss" in diagnostic_values(metrics.last.status[0])

    assert client.set_bool("/trainer/pause", True)[0]
    client.wait_until(lambda: state_of_training(health) == "paused", 30, "the pause")
    assert latest_run(config.out) is None
    assert client.trigger("/trainer/checkpoint")[0]
    client.wait_until(lambda: latest_run(config.out), 30, "a checkpoint while paused")
    saved = int(latest_run(config.out).name)
    assert client.set_bool("/trainer/pause", False)[0]
    client.wait_until(lambda: progress.last.data * MANY > saved, 30, "training to go on")

    result = client.subscribe(String, "/trainer/result", EVENT_QOS)
    assert client.trigger("/trainer/stop")[0]
    client.wait_until(lambda: len(result), 30, "the result")
    assert state_of_training(health) in ("training", "stopped, can be resumed")
    stopped = read_description(result.last.data)["lineage"]
    assert stopped["step"] > saved and stopped["seed"] == 5
    assert client.trigger("/trainer/stop") == (False, "no training runs")

    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
        assert client.change_state("/trainer", transition)
    client.wait_until(lambda: progress.last.data * MANY > stopped["step"], 60, "the resumed run")


def test_a_configuration_that_cannot_be_is_refused_with_the_reason(graph, tmp_path):
    processes, client = graph
    child = processes.start_node(NODE, config=str(tmp_path / "none.yaml"), stage="1")
    client.wait_until(lambda: "no such file" in child.tail(), 60, "the refusal")
    assert client.change_state("/trainer", Transition.TRANSITION_CONFIGURE) is False


@pytest.mark.long
def test_a_run_that_fails_says_why(graph, tiny_datasets, untrained, tmp_path):
    processes, client = graph
    config = stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "run", min_initial_success=0.9)
    processes.start_node(NODE, config=written(config, tmp_path / "stage2.yaml"), stage="2")
    health = client.subscribe(DiagnosticArray, topics.DIAGNOSTICS)
    client.wait_until(lambda: "RL hardly starts from there" in state_of_training(health), 120, "the reason")


@pytest.mark.long
@pytest.mark.parametrize("stage", ("one", "two"))
def test_a_stopped_run_resumes_to_the_same_weights(stage, tiny_datasets, untrained, tmp_path, contract):
    def config(out):
        if stage == "one":
            return stage1_config(tiny_datasets, out, steps=5, save_every=100)
        return stage2_config(tiny_datasets, untrained["compact_token"], out, iterations=2, save_every=100)

    train = train_stage1 if stage == "one" else train_stage2
    whole = train(config(tmp_path / "whole"), quiet=True)
    control = RunControl(lambda progress: control.stop() if progress.step == 1 else None)
    train(config(tmp_path / "cut"), quiet=True, control=control)
    assert control.stopped
    assert int(latest_run(tmp_path / "cut").name) == 1
    assert same_weights(whole, train(config(tmp_path / "cut"), quiet=True), contract)


@pytest.mark.long
def test_interrupting_the_command_saves_and_says_how_to_go_on(tiny_datasets, tmp_path):
    config = stage1_config(tiny_datasets, tmp_path / "run", steps=MANY, save_every=MANY, monitor_every=MANY, log_every=1)
    source = written(config, tmp_path / "stage1.yaml")
    with subprocess.Popen([sys.executable, "-m", "rlco_trainer.cli", "train", "stage1", source], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        for line in command.stderr:     # the progress bar's first line: the loop runs
            if "stage I" in line:
                break
        command.send_signal(signal.SIGINT)
        out, _ = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "goes on from the last step" in out
    assert latest_run(config.out) is not None
