"""Supervision of the processes of a session: start, watch, stop. Standard library only.

Every process is `python -m MODULE --ros-args -p ...` under one ROS domain, with its output in one log file. A process
that ends by itself is an error that quotes its last lines. Only processes started here are ever signalled, by their id.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rlco_common.errors import ProcessError

# A preexec_fn would do the same after a fork, which can hang in a process with threads. The shell looks whether the parent
# ended before setpriv (of util-linux) had said what shall happen then.
_END_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
_LOG_TAIL_LINES = 15
STOP_TIMEOUT_S = 5.0
"""What a process has after SIGINT before SIGTERM, and after that before SIGKILL, unless it is given more; as in launch."""


@dataclass(frozen=True)
class Child:
    """A started process and where its output goes."""

    name: str
    process: subprocess.Popen
    log: Path
    sigterm_timeout_s: float = STOP_TIMEOUT_S       # from SIGINT on
    sigkill_timeout_s: float = STOP_TIMEOUT_S       # from SIGTERM on

    @property
    def pid(self) -> int:
        return self.process.pid

    def running(self) -> bool:
        return self.process.poll() is None

    def tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines of the log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return "\n".join(text.splitlines()[-lines:])

    def obituary(self) -> str:
        """How the process ended, and its last words."""
        return (f"process '{self.name}' (pid {self.pid}) ended with {_exit_text(self.process.returncode)}; "
                f"its log is {self.log}. Last lines:\n{self.tail()}")


class Processes:
    """The processes of one session. Use as a context manager: leaving it stops them all.

    `domain_id`: ROS_DOMAIN_ID of every child. Children run in their own session (Ctrl-C reaches only the parent, which
    stops them in order) and receive SIGTERM when the *thread* that started them ends, so that a killed parent leaves
    no robot running.
    """

    def __init__(self, log_directory: str | Path, domain_id: int, environment: Mapping[str, str] | None = None):
        self.log_directory = Path(log_directory)
        self.domain_id = domain_id
        self._environment = {
            **os.environ,
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "ROS_DOMAIN_ID": str(domain_id),
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        self._children: dict[str, Child] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_) -> None:
        self.stop_all()

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    def start_node(self, module: str, name: str | None = None, arguments: Sequence[str] = (), **parameters) -> Child:
        """Start the ROS node `python -m module` with its ROS parameters; `name` defaults to the module's last part.

        The name labels log and errors; it does not rename the node.
        """
        ros_arguments = []
        for key, value in parameters.items():
            ros_arguments += ["-p", f"{key}:={parameter_text(value)}"]
        ros = ["--ros-args", *ros_arguments] if ros_arguments else []
        return self.start(name or module.rpartition(".")[2], [sys.executable, "-m", module, *arguments, *ros])

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None, *,
              sigterm_timeout_s: float = STOP_TIMEOUT_S, sigkill_timeout_s: float = STOP_TIMEOUT_S) -> Child:
        """Start any command under this session's environment, with additions of its own.

        It is stopped by SIGINT, by SIGTERM `sigterm_timeout_s` later, by SIGKILL `sigkill_timeout_s` after that.
        """
        if name in self._children and self._children[name].running():
            raise ProcessError(f"process '{name}' is already running (pid {self._children[name].pid}); stop it first")
        self.log_directory.mkdir(parents=True, exist_ok=True)
        log = self.log_directory / f"{name}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [*_END_WITH_PARENT, str(os.getpid()), *command], stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT, env={**self._environment, **(environment or {})}, start_new_session=True,
            )
        self._children[name] = Child(name, process, log, sigterm_timeout_s, sigkill_timeout_s)
        return self._children[name]

    def check(self) -> None:
        """Raise ProcessError when a process ended by itself; pass this as `watch` to RosClient."""
        for child in self._children.values():
            if not child.running():
                raise ProcessError(child.obituary())

    def take_ended(self) -> list[Child]:
        """The processes that ended by themselves, for a caller that does not take every end for an error; forgotten here."""
        ended = [child for child in self._children.values() if not child.running()]
        for child in ended:
            del self._children[child.name]
        return ended

    def kill(self, name: str) -> None:
        """SIGKILL one process, as a crash test does; it is then forgotten."""
        child = self._children.pop(name)
        child.process.kill()
        child.process.wait()

    def stop(self, name: str) -> int:
        """Stop one process in order and return its exit status."""
        child = self._children.pop(name)
        _stop([child])
        return child.process.returncode

    def stop_all(self) -> None:
        """Stop every process, newest first in signalling, each with the time it was given between two signals."""
        children, self._children = list(self._children.values()), {}
        _stop(children[::-1])


def parameter_text(value) -> str:
    """A parameter value as `--ros-args -p name:=VALUE` wants it (YAML flow style; strings quoted)."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float) and value.is_integer():
        return f"{value:.1f}"
    return json.dumps(value)


def _stop(children: list[Child]) -> None:
    begun = time.monotonic()
    signals = [(due_s, number, child) for child in children for due_s, number in (
        (0.0, signal.SIGINT), (child.sigterm_timeout_s, signal.SIGTERM),
        (child.sigterm_timeout_s + child.sigkill_timeout_s, signal.SIGKILL))]
    for due_s, number, child in sorted(signals, key=lambda entry: entry[0]):
        _wait(children, begun + due_s)
        child.process.send_signal(number)       # to one that has ended, none is sent
    _wait(children, time.monotonic() + STOP_TIMEOUT_S)


def _wait(children: list[Child], deadline: float) -> None:
    """Wait until all have ended, at most until the deadline on the monotonic clock."""
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))


def _exit_text(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
