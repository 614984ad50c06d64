"""A terminal that hands over single keys, and is put back as it was however the process ends."""

import contextlib
import os
import subprocess
import termios
from pathlib import Path

from rlco_common.errors import ConfigError

_READ_BYTES = 4096
_RESTORE = 'read -r _ || true; exec stty "$1" <"$0"'      # waits for the end of its input: the end of this process
_INPUT, _LOCAL, _SPECIAL = 0, 3, 6                        # indices into termios' list of attributes


class Terminal:
    """Keys without waiting for Enter and without echo. Ctrl-C still ends the process; Ctrl-Z, which would freeze it, does not.

    A small helper process restores the terminal when this one ends without `close`, by a crash or a SIGKILL.
    path: a terminal device, empty for `own_terminal`; raises ConfigError when there is none to be had.
    """

    def __init__(self, path: str):
        path = path or own_terminal()
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise ConfigError(f"no terminal at {path}: {error.strerror}. Run the keyboard device in a terminal of its own, or "
                              'name one: tty:="$(tty)"') from error
        try:
            self._before = termios.tcgetattr(self._descriptor)
            saved = subprocess.run(["stty", "-g"], stdin=self._descriptor, capture_output=True, text=True, check=True).stdout
        except (termios.error, OSError, subprocess.CalledProcessError) as error:
            os.close(self._descriptor)
            raise ConfigError(f"{path} is not a terminal: {error}") from error
        # In a session of its own, so that the Ctrl-C that ends this process does not end it first.
        self._guard = subprocess.Popen(["sh", "-c", _RESTORE, path, saved.strip()], stdin=subprocess.PIPE,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        raw = termios.tcgetattr(self._descriptor)
        raw[_INPUT] &= ~(termios.IXON | termios.ICRNL)
        raw[_LOCAL] &= ~(termios.ICANON | termios.ECHO)
        raw[_SPECIAL][termios.VSUSP] = b"\0"
        termios.tcsetattr(self._descriptor, termios.TCSAFLUSH, raw)

    def read(self) -> str | None:
        """What was typed since the last call; None when the terminal is gone."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return ""
        except OSError:
            return None
        return data.decode("utf-8", "replace") if data else None

    def write(self, text: str) -> None:
        """Show text, or lose it: a terminal that is slow or gone must not hold up the operator."""
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode())

    def close(self) -> None:
        """Restore the terminal. Idempotent."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(termios.error):        # it may be gone
            termios.tcsetattr(self._descriptor, termios.TCSAFLUSH, self._before)
        os.close(self._descriptor)
        self._descriptor = -1
        self._guard.stdin.close()
        self._guard.wait()


def own_terminal() -> str:
    """The terminal of this process, else the one that a program reads which started it: `rlco up` keeps its nodes away from
    its own terminal, so that a Ctrl-C there stops them in order."""
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return "/dev/tty"
    ancestor = os.getppid()
    while ancestor > 1:
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/{ancestor}/fd/0")
            if path.startswith(("/dev/pts/", "/dev/tty")):
                return path
        try:    # the parent is the second field after the name, which is in parentheses and may hold anything
            ancestor = int(Path(f"/proc/{ancestor}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            break
    return "/dev/tty"
