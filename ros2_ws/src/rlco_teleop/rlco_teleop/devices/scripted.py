"""The scripted operator: a twin's expert whose hands are on the teleop topics, exactly where a human's would be.

It sees the scene (a privilege that a human has by looking at the table), asks the expert for the next control tick's
action, and expresses it as a twist held for the tick. It begins when told, and lets go when the episode is over.
"""

import json

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import DataError
from rlco_sim_bridge.experts import make_expert
from rlco_sim_bridge.scene_state import SceneState, scene_state_from_json
from rlco_teleop.devices.base import Device, DeviceSettings, Operation

_SEED_STREAM = 0x0b5e       # keeps the operator's randomness apart from the scene's, which has the same episode seed


class ScriptedOperator(Device):
    """Device `scripted`. Deterministic in the episode seed and the scenes it is shown."""

    wants_scene = True

    def __init__(self, contract: Contract, settings: DeviceSettings):
        self._contract = contract
        self._settings = settings
        self._rng = np.random.default_rng()
        self._expert = None
        self._working = False
        self._scene: SceneState | None = None
        self._over = False
        self._asked = 0
        self._action: np.ndarray | None = None

    def begin(self, seed: int) -> None:
        self._rng = np.random.default_rng([_SEED_STREAM, max(seed, 0)])
        self._expert, self._action = None, None
        self._asked = 0
        self._working = True

    def end(self) -> None:
        self._working = False

    def on_scene(self, text: str) -> int | None:
        try:
            flags = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"scene message: not valid JSON: {error}") from error
        scene = scene_state_from_json(text)
        is_new = self._scene is None or scene.stamp_ns != self._scene.stamp_ns
        self._scene = scene
        self._over = any(flags.get(name, False) for name in ("success", "failure", "done"))
        return scene.stamp_ns if is_new else None

    def operate(self) -> Operation:
        """The tick's action as a twist. Lets go by itself when the scene says that the episode is over."""
        if self._working and self._over:
            self.end()
        if not self._working or self._scene is None:
            return Operation(False, np.zeros(6), 0.0)
        if self._asked % self._settings.asks_per_tick == 0:
            self._action = self._ask_expert()
        self._asked += 1
        return Operation(True, self._action[:6] / self._contract.control_period_s, float(self._action[6]))

    def _ask_expert(self) -> np.ndarray:
        if self._expert is None:
            self._expert = make_expert(self._scene.task, self._contract, self._rng, self._settings.noise)
        return self._expert.act(self._scene)
