"""The scripted operator: a twin's expert whose hands are on the teleop topics, exactly where a human's would be.

It sees the scene (a privilege that a human has by looking at the table), asks the expert for the next control tick's
action, and expresses it as a twist held for the tick. It begins when told, and lets go when the episode is over.
"""

import json
from dataclasses import dataclass

import numpy as np

from rlco_common import topics
from rlco_common.contract import Contract
from rlco_common.errors import DataError
from rlco_sim_bridge.experts import make_expert
from rlco_sim_bridge.scene_state import SceneState, scene_state_from_json
from rlco_teleop.devices.base import Device, DeviceSettings, Input, Operation, released, setting

_SEED_STREAM = 0x0b5e       # keeps the operator's randomness apart from the scene's, which has the same episode seed


@dataclass(frozen=True)
class ScriptedSettings(DeviceSettings):
    """How steady the scripted hand is."""

    noise: float = setting(0.0, "disturbance of the scripted hand, in normalised action units", 0.0, 1.0)


class ScriptedOperator(Device):
    """Device `scripted`. Deterministic in the episode seed and the scenes it is shown."""

    Settings = ScriptedSettings
    works_in_lockstep = True

    def __init__(self, contract: Contract, settings: ScriptedSettings, rate_hz: float):
        self._contract = contract
        self._settings = settings
        self._asks_per_tick = round(rate_hz / contract.control_rate_hz)
        self._rng = np.random.default_rng()
        self._expert = None
        self._working = False
        self._scene: SceneState | None = None
        self._over = False
        self._asked = 0
        self._action: np.ndarray | None = None

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (Input("scene", topics.SCENE, self.on_scene),)

    def begin(self, seed: int) -> None:
        self._rng = np.random.default_rng([_SEED_STREAM, max(seed, 0)])
        self._expert, self._action = None, None
        self._asked = 0
        self._working = True

    def end(self) -> None:
        self._working = False

    def on_scene(self, text: str, now_ns: int = 0) -> int | None:
        """The scene's JSON; returns its stamp when it is another scene than before."""
        try:
            flags = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"scene message: not valid JSON: {error}") from error
        scene = scene_state_from_json(text)
        is_new = self._scene is None or scene.stamp_ns != self._scene.stamp_ns
        self._scene = scene
        self._over = any(flags.get(name, False) for name in ("success", "failure", "done"))
        return scene.stamp_ns if is_new else None

    def operate(self, now_ns: int = 0, opening: float | None = None) -> Operation:
        """The tick's action as a twist. Lets go by itself when the scene says that the episode is over."""
        if self._working and self._over:
            self.end()
        if not self._working or self._scene is None:
            return released()
        if self._asked % self._asks_per_tick == 0:
            self._action = self._ask_expert()
        self._asked += 1
        return Operation(True, self._action[:6] / self._contract.control_period_s, float(self._action[6]))

    def _ask_expert(self) -> np.ndarray:
        if self._expert is None:
            self._expert = make_expert(self._scene.task, self._contract, self._rng, self._settings.noise)
        return self._expert.act(self._scene)
