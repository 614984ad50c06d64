"""Runs the nodes of a launch file, as `ros2 launch` would: their output on the terminal, a signal stops them in order.

Two differences, both on the side of safety: a node that fails ends the run (in launch only with on_exit="shutdown"), and
a SIGTERM or a closed terminal, too, stops every node.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TextIO

import yaml

from rlco_common.launch_xml import LaunchNode
from rlco_common.processes import STOP_TIMEOUT_S, Child, Processes
from rlco_common.resources import package_executable
from rlco_common.signals import TERMINAL_SIGNALS, StopRequest, stop_requested

WATCH_PERIOD_S = 0.1
_ORDERLY = (0, -signal.SIGINT)      # exit statuses of a process that did what SIGINT asked for


def log_directory() -> Path:
    """Where ROS keeps logs, a new folder for each run: ROS_LOG_DIR, else ROS_HOME/log, else ~/.ros/log."""
    home = Path(os.environ.get("ROS_HOME") or Path.home() / ".ros")
    base = Path(os.environ.get("ROS_LOG_DIR") or home / "log")
    return base / f"rlco-up-{datetime.now():%Y-%m-%d-%H-%M-%S}-{os.getpid()}"


def node_command(node: LaunchNode, folder: Path, label: str) -> list[str]:
    """The command line of a node, word for word as launch_ros builds it; parameter values go through files in `folder`.

    Raises ConfigError when package or executable is missing.
    """
    command = [str(package_executable(node.package, node.executable)), *node.arguments]
    if node.ros_arguments:
        command += ["--ros-args", *node.ros_arguments]
    command.append("--ros-args")
    if node.name is not None:
        command += ["-r", f"__node:={node.name}"]
    if node.namespace is not None:
        command += ["-r", f"__ns:={node.namespace}"]
    for index, parameters in enumerate(node.parameters):
        path = parameters if isinstance(parameters, Path) else folder / f"{label}_{index}.yaml"
        if path is not parameters:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump({parameters_key(node): {"ros__parameters": parameters}}), encoding="utf-8")
        command += ["--params-file", str(path)]
    for source, target in node.remappings:
        command += ["-r", f"{source}:={target}"]
    return command


def parameters_key(node: LaunchNode) -> str:
    """Which nodes the values are for: any, unless the file gives name and namespace. A full name beats `/**` of a file."""
    if node.name is None or node.namespace is None:
        return "/**"
    return f"{node.namespace.rstrip('/')}/{node.name}"


def run_nodes(nodes: Sequence[LaunchNode], folder: Path, terminal: TextIO | None = None) -> int:
    """Run until a signal, until a node fails, or until all have ended.

    `folder` takes logs and parameter files. Returns 0 when all ended well, else the exit status of the node that failed
    (128 + number for a signal, as a shell has it), whose last lines are then on stderr.
    """
    with stop_requested(TERMINAL_SIGNALS) as stop:
        return _Run(nodes, folder, terminal or sys.stdout).until(stop)


class _Run:
    def __init__(self, nodes: Sequence[LaunchNode], folder: Path, terminal: TextIO):
        self._folder = folder
        self._nodes = dict(zip(_labels(nodes), nodes, strict=True))
        self._commands = {label: node_command(node, folder, label) for label, node in self._nodes.items()}
        self._followers = {label: _Follower(folder / f"{label}.log", label, terminal) for label in self._nodes}
        self._children: dict[str, Child] = {}       # of each node the process that was started last
        self._wanted = set(self._nodes)             # nodes that run or will be started again
        self._due: dict[str, float] = {}            # monotonic time at which a node is started again
        self._culprit: Child | None = None          # the first process that failed

    def until(self, stop: StopRequest) -> int:
        # The graph is the user's, not a session's own: domain and discovery range stay as they are.
        domain_id = int(os.environ.get("ROS_DOMAIN_ID") or 0)
        own = {"ROS_AUTOMATIC_DISCOVERY_RANGE": os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")}
        with Processes(self._folder, domain_id, own) as processes:
            for label in self._nodes:
                self._start(processes, label)
            while self._wanted and not stop.wait(WATCH_PERIOD_S):
                self._forward()
                for child in processes.take_ended():
                    self._on_end(child)
                for label in [label for label, due in self._due.items() if due <= time.monotonic()]:
                    del self._due[label]
                    self._start(processes, label)
            self._say_what_may_take_long()
        self._forward(last=True)
        if stop.is_set() and self._culprit is None:
            self._culprit = next((child for child in self._children.values()
                                  if child.process.returncode not in _ORDERLY), None)
        if self._culprit is None:
            return 0
        print(f"error: {self._culprit.obituary()}", file=sys.stderr)
        status = self._culprit.process.returncode
        return status if status >= 0 else 128 - status

    def _start(self, processes: Processes, label: str) -> None:
        node = self._nodes[label]
        self._children[label] = processes.start(label, self._commands[label], node.environment,
                                                sigterm_timeout_s=node.sigterm_timeout_s,
                                                sigkill_timeout_s=node.sigkill_timeout_s)

    def _on_end(self, child: Child) -> None:
        node, status = self._nodes[child.name], child.process.returncode
        follower = self._followers[child.name]
        follower.forward(last=True)
        if node.respawn:
            follower.say(f"ended with status {status}; starts again in {node.respawn_delay_s:g} s")
            self._due[child.name] = time.monotonic() + node.respawn_delay_s
            return
        follower.say(f"ended with status {status}")
        if status and self._culprit is None:
            self._culprit = child
        if status or node.ends_run:
            self._wanted.clear()
        self._wanted.discard(child.name)

    def _say_what_may_take_long(self) -> None:
        for label, child in self._children.items():
            if child.running() and child.sigterm_timeout_s > STOP_TIMEOUT_S:
                self._followers[label].say(f"is asked to stop and has {child.sigterm_timeout_s:g} s to finish what it does")

    def _forward(self, last: bool = False) -> None:
        for follower in self._followers.values():
            follower.forward(last)


class _Follower:
    """Shows what is added to a log file, each line with its node's name.

    Nodes write to files and never to the terminal, so that a terminal that stands still does not stop a robot's node.
    """

    def __init__(self, path: Path, label: str, terminal: TextIO):
        self._path, self._label, self._terminal = path, label, terminal
        self._shown = 0     # bytes

    def forward(self, last: bool = False) -> None:
        """Show the complete lines that are new; with `last` also one without its end."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._shown)
            data = stream.read()
        if not last:
            data = data[: data.rfind(b"\n") + 1]
        self._shown += len(data)
        for line in data.decode("utf-8", "replace").splitlines():
            self.say(line)

    def say(self, line: str) -> None:
        print(f"[{self._label}] {line}", file=self._terminal, flush=True)


def _labels(nodes: Sequence[LaunchNode]) -> list[str]:
    """A name of its own for each node: two of one program are told apart by a number."""
    labels: list[str] = []
    for node in nodes:
        count = 2
        label = node.label
        while label in labels:
            label, count = f"{node.label}-{count}", count + 1
        labels.append(label)
    return labels
