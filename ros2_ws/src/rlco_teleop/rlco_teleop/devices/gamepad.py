"""A gamepad through `sensor_msgs/Joy`. The defaults fit the joy package's game_controller_node, whose order of axes and
buttons is the same for every pad; left and up are positive there.

The driver has to repeat itself (its autorepeat_rate, 20 Hz by default): a silent pad is a released one.
"""

from dataclasses import dataclass

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import DataError
from rlco_teleop.devices.base import AXES, Device, Health, Input, JogSettings, Joy, Operation, released, setting
from rlco_teleop.devices.switch import DeadMan, GripperWish, beyond_dead_zone

_ORDER = "for " + ", ".join(AXES)


@dataclass(frozen=True)
class GamepadSettings(JogSettings):
    """Mapping of a pad onto the base frame."""

    topic: str = setting("/joy", "sensor_msgs/Joy of the pad's driver")
    timeout_s: float = setting(0.3, "a pad that is silent this long is released, s", 0.05, 1.0)
    dead_zone: float = setting(0.1, "share of an axis' travel around its middle that counts as zero", 0.0, 0.9)
    axes: tuple[int, ...] = setting((1, 0, 3, -1, -1, 2), f"axis of the pad {_ORDER}; -1: none")
    signs: tuple[int, ...] = setting((1, 1, 1, 1, 1, 1), f"direction, 1 or -1, {_ORDER}")
    buttons_plus: tuple[int, ...] = setting((-1, -1, -1, 14, 11, -1), f"button for the positive direction {_ORDER}; -1: none")
    buttons_minus: tuple[int, ...] = setting((-1, -1, -1, 13, 12, -1), f"button for the negative direction {_ORDER}; -1: none")
    button_deadman: int = setting(10, "button to hold while the arm may move; 10: right shoulder", 0, 63)
    button_close: int = setting(0, "button that closes the gripper; 0: A or cross", 0, 63)
    button_open: int = setting(1, "button that opens the gripper; 1: B or circle", 0, 63)

    def __post_init__(self):
        for name in ("axes", "signs", "buttons_plus", "buttons_minus"):
            if len(getattr(self, name)) != len(AXES):
                raise ValueError(f"{name} needs {len(AXES)} values, {_ORDER}; got {len(getattr(self, name))}")
        if any(sign not in (-1, 1) for sign in self.signs):
            raise ValueError(f"signs must be 1 or -1, got {list(self.signs)}")
        if len({self.button_deadman, self.button_close, self.button_open}) < 3:
            raise ValueError("button_deadman, button_close and button_open must be three different buttons")


class Gamepad(Device):
    """Device `gamepad`: hold the dead-man button; sticks and cross move, two buttons close and open the gripper."""

    Settings = GamepadSettings

    def __init__(self, contract: Contract, settings: GamepadSettings, rate_hz: float):
        settings.require_within(contract)
        self._settings = settings
        self._deadman = DeadMan(settings.timeout_s)
        self._gripper = GripperWish()
        self._deflection = np.zeros(6)

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (Input("joy", self._settings.topic, self._on_joy),)

    def end(self) -> None:
        self._deadman.release()

    def operate(self, now_ns: int, opening: float | None) -> Operation:
        if not self._deadman.held(now_ns):
            self._gripper.clear()
            return released()
        return Operation(True, self._deflection * self._settings.speeds, self._gripper.value)

    def health(self, now_ns: int) -> Health:
        silent = self._deadman.silent(now_ns)
        return Health(f"nothing from the pad on {self._settings.topic}; start its driver (game_controller_node, "
                      "autorepeat_rate 20)" if silent else "")

    def _on_joy(self, joy: Joy, now_ns: int) -> None:
        settings = self._settings
        try:
            self._deflection = self._read(joy)
        except DataError:
            self._deadman.release()
            raise
        self._deadman.hear(joy.pressed(settings.button_deadman), now_ns)
        if not self._deadman.held(now_ns):
            return
        if joy.pressed(settings.button_close):
            self._gripper.value = 0.0
        elif joy.pressed(settings.button_open):
            self._gripper.value = 1.0

    def _read(self, joy: Joy) -> np.ndarray:
        """Deflections [6] in [-1, 1] along the base axes."""
        settings = self._settings
        if max(settings.axes) >= len(joy.axes):
            raise DataError(f"{settings.topic} has {len(joy.axes)} axes, the parameter axes wants {list(settings.axes)}")
        if not np.isfinite(joy.axes).all():
            raise DataError(f"{settings.topic}: an axis is not finite")
        sticks = np.array([joy.axes[axis] if axis >= 0 else 0.0 for axis in settings.axes])
        buttons = np.array([joy.pressed(plus) - joy.pressed(minus) for plus, minus in zip(
            settings.buttons_plus, settings.buttons_minus, strict=True)], dtype=np.float64)
        moved = beyond_dead_zone(sticks, settings.dead_zone) * settings.signs + buttons
        return np.clip(moved, -1.0, 1.0)
