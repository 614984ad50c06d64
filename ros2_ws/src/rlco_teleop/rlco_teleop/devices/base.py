"""What every operator device is to the teleop node: something that says, when asked, what the operator's hands do."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Operation:
    """The operator's hands at one moment.

    held: the dead-man switch. twist: [6] m/s and rad/s along the base axes. gripper: opening wanted, 0 closed to 1 open.
    """

    held: bool
    twist: np.ndarray
    gripper: float


@dataclass(frozen=True)
class DeviceSettings:
    """asks_per_tick: how often `operate` is asked in a control period. noise: of a scripted operator (see its expert)."""

    asks_per_tick: int = 1
    noise: float = 0.0


class Device:
    """A source of operator input. `begin` and `end` are the operator's wish to work; `close` frees the hardware."""

    wants_scene = False     # True: the node feeds on_scene with the simulator's privileged state

    def begin(self, seed: int) -> None:
        """The operator starts. `seed` of the episode, -1 on a real table."""

    def end(self) -> None:
        """The operator lets go."""

    def on_scene(self, text: str) -> int | None:
        """A message of the scene topic; returns its stamp in nanoseconds when there is something new to act on."""
        return None

    def operate(self) -> Operation:
        """What the hands do now. Asked at a fixed rate in real time, once per control tick in lock step."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the hardware."""
