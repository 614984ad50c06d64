"""Operator devices, by name. A device is one small class in a module of its own; see base.py."""

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_teleop.devices.base import Device, DeviceSettings
from rlco_teleop.devices.gamepad import Gamepad
from rlco_teleop.devices.keyboard import Keyboard
from rlco_teleop.devices.leader import Leader
from rlco_teleop.devices.scripted import ScriptedOperator
from rlco_teleop.devices.spacemouse import Spacemouse

DEVICES: dict[str, type[Device]] = {
    "scripted": ScriptedOperator, "keyboard": Keyboard, "gamepad": Gamepad, "spacemouse": Spacemouse, "leader": Leader,
}


def device_class(name: str) -> type[Device]:
    """The device of that name. Raises ConfigError naming those that exist."""
    if name not in DEVICES:
        raise ConfigError(f"no operator device '{name}'; there are {', '.join(DEVICES)}")
    return DEVICES[name]


def make_device(name: str, contract: Contract, settings: DeviceSettings | None = None, rate_hz: float | None = None) -> Device:
    """The device of that name; default settings, and asked once per control tick, unless said otherwise."""
    kind = device_class(name)
    return kind(contract, kind.Settings() if settings is None else settings, rate_hz or contract.control_rate_hz)
