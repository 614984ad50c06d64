"""Operator devices, by name. A device is one small class in a module of its own; see base.py."""

from collections.abc import Callable

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_teleop.devices.base import Device, DeviceSettings
from rlco_teleop.devices.scripted import ScriptedOperator

DEVICES: dict[str, Callable[[Contract, DeviceSettings], Device]] = {"scripted": ScriptedOperator}


def make_device(name: str, contract: Contract, settings: DeviceSettings) -> Device:
    """The device of that name. Raises ConfigError naming those that exist."""
    if name not in DEVICES:
        raise ConfigError(f"no operator device '{name}'; there are {', '.join(DEVICES)}")
    return DEVICES[name](contract, settings)
