"""Commands that start processes of their own, run so that a test that gives up leaves none of them behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from rlco_common.strict import to_mapping


def run_tree(command: list[str], timeout: float, **options) -> subprocess.CompletedProcess:
    """subprocess.run with captured text output; whatever ends it, the command's whole process group ends with it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                          **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            print(f"=== given up: {' '.join(command)}\n{out[-3000:]}\n{err[-3000:]}")
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def gone(pid: int) -> bool:
    """The process has ended, whether or not its parent has noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def written(config, path: Path) -> str:
    """The path of a YAML file with this config, as a command takes it."""
    path.write_text(yaml.safe_dump(to_mapping(config)))
    return str(path)


def rlco(*arguments, timeout: float) -> subprocess.CompletedProcess:
    """The `rlco` command in a process of its own."""
    return run_tree([sys.executable, "-m", "rlco_trainer.cli", *map(str, arguments)], timeout)
