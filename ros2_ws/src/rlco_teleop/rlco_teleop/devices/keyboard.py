"""A keyboard in a terminal. A terminal tells presses and repeats, never a release, so that nothing can be truly held:

- The dead-man is switched on and off with the space bar, and goes off by itself when no key comes for a while.
- A motion key moves for a moment after each of its presses or repeats; kept down, it moves for as long as it repeats.
- Any key that means nothing, Escape too, switches the dead-man off.
"""

import re
from dataclasses import dataclass

import numpy as np

from rlco_common.contract import Contract
from rlco_teleop.devices.base import Device, Health, JogSettings, Operation, released, setting
from rlco_teleop.devices.switch import NANOSECONDS, GripperWish
from rlco_teleop.devices.terminal import Terminal

_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|.", re.DOTALL)
_UNFINISHED = re.compile(r"\x1b(\[[0-9;]*|O)?$")        # the beginning of a key that is more than one character

# key -> (axis of the twist, direction)
MOTIONS = {
    "w": (0, 1), "s": (0, -1), "a": (1, 1), "d": (1, -1), "r": (2, 1), "f": (2, -1),
    "l": (3, 1), "j": (3, -1), "i": (4, 1), "k": (4, -1), "q": (5, 1), "e": (5, -1),
    "\x1b[A": (0, 1), "\x1b[B": (0, -1), "\x1b[D": (1, 1), "\x1b[C": (1, -1), "\x1b[5~": (2, 1), "\x1b[6~": (2, -1),
}
GRIPPER = {"o": 1.0, "c": 0.0}
DEADMAN = " "
HELP = """
  space   dead-man on / off               o / c   gripper open / close
  w / s   forward / back   (up, down)     i / k   tip forward / back
  a / d   left / right     (left, right)  j / l   roll left / right
  r / f   up / down        (page up, dn)  q / e   turn left / right
  any other key: dead-man off             Ctrl-C  end
"""


@dataclass(frozen=True)
class KeyboardSettings(JogSettings):
    """Speeds and times of the keys."""

    tty: str = setting("", "terminal to read from, as the command tty prints it; empty: the one that this was started from")
    key_s: float = setting(0.15, "a motion key moves this long after each press or repeat, s", 0.02, 1.0)
    deadman_s: float = setting(3.0, "the dead-man goes off after this long without a key, s", 0.2, 30.0)


class Keys:
    """What the typed keys mean; no terminal here."""

    def __init__(self, settings: KeyboardSettings):
        self._settings = settings
        self._key_ns, self._deadman_ns = round(settings.key_s * NANOSECONDS), round(settings.deadman_s * NANOSECONDS)
        self.wish = GripperWish()
        self._on = False
        self._last_ns = 0
        self._pressed_ns: dict[tuple[int, int], int] = {}
        self._rest = ""

    def type(self, text: str, now_ns: int) -> None:
        """Characters as the terminal gives them. To be called also when there are none: an Escape is known by its silence."""
        more, text, self._rest = bool(text), self._rest + text, ""
        cut = _UNFINISHED.search(text)
        if cut and more:
            text, self._rest = text[: cut.start()], cut.group()
        for key in _KEY.findall(text):
            self._press(key.lower() if len(key) == 1 else key, now_ns)

    def held(self, now_ns: int) -> bool:
        if self._on and now_ns - self._last_ns > self._deadman_ns:
            self.release()
        return self._on

    def release(self) -> None:
        """The dead-man off."""
        self._on = False
        self._pressed_ns.clear()
        self.wish.clear()

    def deflection(self, now_ns: int) -> np.ndarray:
        """[6] of -1, 0 or 1 along the base axes."""
        result = np.zeros(6)
        for (axis, direction), pressed_ns in self._pressed_ns.items():
            if now_ns - pressed_ns <= self._key_ns:
                result[axis] += direction
        return result

    def _press(self, key: str, now_ns: int) -> None:
        held = self.held(now_ns)
        self._last_ns = now_ns
        if key == DEADMAN and not held:
            self._on = True
        elif key in MOTIONS:
            if held:
                axis, direction = MOTIONS[key]
                self._pressed_ns.pop((axis, -direction), None)      # turning round is at once
                self._pressed_ns[axis, direction] = now_ns
        elif key in GRIPPER:
            if held:
                self.wish.value = GRIPPER[key]
        else:
            self.release()


class Keyboard(Device):
    """Device `keyboard`: keys typed in the terminal `tty`."""

    Settings = KeyboardSettings

    def __init__(self, contract: Contract, settings: KeyboardSettings, rate_hz: float):
        settings.require_within(contract)
        self._settings = settings
        self._keys = Keys(settings)
        self._terminal: Terminal | None = None
        self._lost = False
        self._shown = ""

    def open(self) -> None:
        self._terminal = Terminal(self._settings.tty)
        self._terminal.write(HELP)

    def end(self) -> None:
        self._keys.release()

    def operate(self, now_ns: int, opening: float | None) -> Operation:
        text = None if self._lost else self._terminal.read()
        if text is None:
            self._lost = True
            self._keys.release()
        else:
            self._keys.type(text, now_ns)
        held = self._keys.held(now_ns)
        self._show(held, opening)
        if not held:
            return released()
        return Operation(True, self._keys.deflection(now_ns) * self._settings.speeds, self._keys.wish.value)

    def health(self, now_ns: int) -> Health:
        return Health("the terminal is gone; restart the device" if self._lost else "")

    def close(self) -> None:
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None

    def _show(self, held: bool, opening: float | None) -> None:
        """The state, on one line that is rewritten when it changes."""
        gripper = "unknown" if opening is None else f"{100 * opening:.0f} %"
        line = f"\r\x1b[K  dead-man {'ON ' if held else 'off'}   gripper {gripper}"
        if line != self._shown and not self._lost:
            self._shown = line
            self._terminal.write(line)
