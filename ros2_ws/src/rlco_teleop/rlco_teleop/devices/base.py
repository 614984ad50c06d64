"""What every operator device is to the node that hosts it: something that says, when asked, what the operator's hands do.

Devices are pure: the node decodes the messages of the topics that feed a device, and hands in the time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError

AXES = ("x", "y", "z", "roll", "pitch", "yaw")      # of a twist, along and about the base axes


@dataclass(frozen=True)
class Operation:
    """The operator's hands at one moment.

    held: the dead-man switch. twist: [6] m/s and rad/s along the base axes. gripper: opening wanted, 0 closed to 1 open;
    None leaves it as it is.
    """

    held: bool
    twist: np.ndarray
    gripper: float | None


def released() -> Operation:
    """Nobody's hands."""
    return Operation(False, np.zeros(6), None)


@dataclass(frozen=True)
class Joy:
    """A sensor_msgs/Joy: axes in [-1, 1], buttons 0 or 1."""

    axes: tuple[float, ...]
    buttons: tuple[int, ...]

    def pressed(self, button: int) -> bool:
        """A button that the message does not have is not pressed: some drivers send only those pressed so far."""
        return 0 <= button < len(self.buttons) and bool(self.buttons[button])


@dataclass(frozen=True)
class Joints:
    """A sensor_msgs/JointState by name: positions in radians or metres."""

    positions: Mapping[str, float]


@dataclass(frozen=True)
class Input:
    """A topic that feeds a device.

    kind: what `receive(value, now_ns)` is given: the text of a scene, a Joy, a twist as array [6], or Joints. It returns
    the stamp in nanoseconds of a control tick to act on (lock step), else None, and raises RlcoError for bad values,
    after which the device counts as released.
    """

    kind: Literal["scene", "joy", "twist", "joints"]
    topic: str
    receive: Callable[[Any, int], int | None]


@dataclass(frozen=True)
class Health:
    """For diagnostics. complaint: what the operator has to know, empty when all is well."""

    complaint: str = ""
    values: Mapping[str, object] = field(default_factory=dict)


def setting(default, description: str, low: float | None = None, high: float | None = None):
    """A dataclass field that the node declares as a parameter with this description and these bounds."""
    return field(default=default, metadata={"description": description, "low": low, "high": high})


@dataclass(frozen=True)
class DeviceSettings:
    """A device's parameters; every field is made with `setting`."""


@dataclass(frozen=True)
class JogSettings(DeviceSettings):
    """Speeds of a device that a hand moves directly."""

    linear_speed_m_s: float = setting(0.1, "speed along each base axis at full deflection, m/s", 0.001, 1.0)
    angular_speed_rad_s: float = setting(0.5, "speed about each base axis at full deflection, rad/s", 0.001, 5.0)

    @property
    def speeds(self) -> np.ndarray:
        """[6] m/s and rad/s at full deflection."""
        return np.repeat([self.linear_speed_m_s, self.angular_speed_rad_s], 3)

    def require_within(self, contract: Contract) -> None:
        """Raise ConfigError when a full deflection is more than the contract lets one control tick do."""
        action, period_s = contract.action, contract.control_period_s
        for name, allowed in (("linear_speed_m_s", action.max_translation_m / period_s),
                              ("angular_speed_rad_s", action.max_rotation_rad / period_s)):
            if getattr(self, name) > allowed + 1e-9:
                raise ConfigError(f"{name} {getattr(self, name):g} is more than the contract's per-tick limit, {allowed:g}; "
                                  "the gate would cut it; lower the parameter")


class Device:
    """A source of operator input. `begin` and `end` are the operator's wish to work; `close` frees the hardware."""

    Settings: type[DeviceSettings] = DeviceSettings
    works_in_lockstep = False       # a person cannot answer tick by tick

    def __init__(self, contract: Contract, settings: DeviceSettings, rate_hz: float):
        """rate_hz: how often `operate` will be asked, a multiple of the contract's control rate."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The topics that feed the device."""
        return ()

    def open(self) -> None:
        """Take hold of the hardware. Raises RlcoError saying what is missing."""

    def begin(self, seed: int) -> None:
        """The operator may start. `seed` of the episode, -1 on a real table."""

    def end(self) -> None:
        """Let go; a dead-man that is held at this moment has to be released and pressed again."""

    def operate(self, now_ns: int, opening: float | None) -> Operation:
        """What the hands do now. Asked at a fixed rate in real time, once per control tick in lock step.

        now_ns: monotonic. opening: the gripper's present one, as commanded last, else as measured; None: unknown.
        """
        raise NotImplementedError

    def health(self, now_ns: int) -> Health:
        """What diagnostics should say about the device."""
        return Health()

    def close(self) -> None:
        """Release the hardware."""
