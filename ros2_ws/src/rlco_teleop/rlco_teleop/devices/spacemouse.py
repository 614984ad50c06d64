"""A SpaceMouse through the spacenav driver: `geometry_msgs/Twist` for the cap, its `sensor_msgs/Joy` for the buttons."""

from dataclasses import dataclass

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import DataError
from rlco_teleop.devices.base import AXES, Device, Health, Input, JogSettings, Joy, Operation, released, setting
from rlco_teleop.devices.switch import NANOSECONDS, DeadMan, GripperWish, beyond_dead_zone


@dataclass(frozen=True)
class SpacemouseSettings(JogSettings):
    """Mapping of the cap onto the base frame. The driver's x is forward, y left and z up, as the base frame's."""

    topic: str = setting("/spacenav/twist", "geometry_msgs/Twist of the driver")
    buttons_topic: str = setting("/spacenav/joy", "sensor_msgs/Joy of the driver, or of a foot pedal, for the dead-man")
    timeout_s: float = setting(0.3, "a cap or button that is silent this long is released, s", 0.05, 1.0)
    full_scale: float = setting(0.68, "twist at full deflection of the cap (350 of the driver's 512)", 0.01, 1000.0)
    dead_zone: float = setting(0.1, "share of the travel around the middle that counts as zero", 0.0, 0.9)
    signs: tuple[int, ...] = setting((1, 1, 1, 1, 1, 1), "direction for " + ", ".join(AXES) + ": 1, -1, or 0 to ignore it")
    button_deadman: int = setting(0, "button to hold while the arm may move", 0, 63)
    button_gripper: int = setting(1, "button that closes the open gripper and opens the closed one", 0, 63)

    def __post_init__(self):
        if len(self.signs) != len(AXES) or any(sign not in (-1, 0, 1) for sign in self.signs):
            raise ValueError(f"signs needs {len(AXES)} values of 1, -1 or 0, got {list(self.signs)}")
        if self.button_deadman == self.button_gripper:
            raise ValueError("button_deadman and button_gripper must be different buttons")


class Spacemouse(Device):
    """Device `spacemouse`: hold one button and push the cap; the other button works the gripper."""

    Settings = SpacemouseSettings

    def __init__(self, contract: Contract, settings: SpacemouseSettings, rate_hz: float):
        settings.require_within(contract)
        self._settings = settings
        self._deadman = DeadMan(settings.timeout_s)
        self._gripper = GripperWish()
        self._timeout_ns = round(settings.timeout_s * NANOSECONDS)
        self._twist = np.zeros(6)
        self._twist_ns: int | None = None
        self._gripper_down = False
        self._toggles = 0

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (Input("twist", self._settings.topic, self._on_twist),
                Input("joy", self._settings.buttons_topic, self._on_buttons))

    def end(self) -> None:
        self._deadman.release()

    def operate(self, now_ns: int, opening: float | None) -> Operation:
        if self._cap_silent(now_ns):
            self._deadman.release()
        if not self._deadman.held(now_ns):
            self._gripper.clear()
            self._toggles = 0
            return released()
        for _ in range(self._toggles):
            self._gripper.toggle(opening)
        self._toggles = 0
        return Operation(True, self._twist * self._settings.speeds, self._gripper.value)

    def health(self, now_ns: int) -> Health:
        silent = [topic for topic, quiet in ((self._settings.topic, self._cap_silent(now_ns)),
                                             (self._settings.buttons_topic, self._deadman.silent(now_ns))) if quiet]
        return Health(f"nothing on {', '.join(silent)}; start spacenavd and spacenav_node" if silent else "")

    def _cap_silent(self, now_ns: int) -> bool:
        return self._twist_ns is None or now_ns - self._twist_ns > self._timeout_ns

    def _on_twist(self, values: np.ndarray, now_ns: int) -> None:
        if not np.isfinite(values).all():
            self._deadman.release()
            raise DataError(f"{self._settings.topic}: a value is not finite")
        deflection = beyond_dead_zone(values / self._settings.full_scale, self._settings.dead_zone)
        self._twist, self._twist_ns = deflection * self._settings.signs, now_ns

    def _on_buttons(self, joy: Joy, now_ns: int) -> None:
        self._deadman.hear(joy.pressed(self._settings.button_deadman), now_ns)
        down = joy.pressed(self._settings.button_gripper)
        if down and not self._gripper_down and self._deadman.held(now_ns):
            self._toggles += 1
        self._gripper_down = down
