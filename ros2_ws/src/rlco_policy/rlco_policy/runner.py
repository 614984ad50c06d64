"""Observation -> action chunk, and when the next one is due. What the policy node runs; usable without ROS."""

import numpy as np
import torch

from rlco_common.contract import Contract, require_same_contract
from rlco_common.errors import DataError
from rlco_common.observation import Observation, encode_image, encode_proprioception
from rlco_policy.interface import ObsBatch, VLAPolicy

STAMP_TOLERANCE = 0.1
"""Share of a control period by which a frame may come early and still start the next chunk (camera jitter)."""


class PolicyRunner:
    """One policy on one robot. Deterministic: equal observations, instruction and episode seed give equal actions."""

    def __init__(self, policy: VLAPolicy, contract: Contract, temperature: float = 0.0):
        require_same_contract(contract, policy.contract, "the policy")
        self.policy, self.contract, self.temperature = policy, contract, temperature
        self._generator = torch.Generator()
        self._chunk_ns = policy.spec.chunk * contract.control_period_ns
        self._last_ns: int | None = None
        self.new_episode(0)

    def new_episode(self, seed: int = 0) -> None:
        """Forget the schedule and start the random numbers over (they matter at temperature > 0 only)."""
        self._generator.manual_seed(max(seed, 0))
        self.interrupt()

    def interrupt(self) -> None:
        """The running chunk is void (an operator took over): the next observation starts a new one."""
        self._last_ns = None

    def due(self, stamp_ns: int) -> bool:
        """Whether an observation of this stamp starts a new chunk. A clock that jumped back starts one, too."""
        if self._last_ns is None or stamp_ns < self._last_ns:
            return True
        return stamp_ns >= self._last_ns + self._chunk_ns - STAMP_TOLERANCE * self.contract.control_period_ns

    def infer(self, observation: Observation, instruction: str) -> np.ndarray:
        """Actions float64 [chunk, 7], physical units, for the ticks from the observation's stamp on.

        Raises DataError on an instruction the policy cannot read and on non-finite numbers.
        """
        inputs = self.policy.preprocess(observation_batch(self.policy, [observation], [instruction]))
        actions = self.policy.act(inputs, temperature=self.temperature, generator=self._generator)
        actions = actions[0].double().cpu().numpy()
        if not np.isfinite(actions).all():
            raise DataError(f"the policy produced a non-finite action for '{instruction}'; the chunk is dropped")
        self._last_ns = observation.stamp_ns
        return self.contract.action.clip(actions)       # float32 rounds a limit to beyond it, which the gate would reject

    def warm_up(self) -> None:
        """Two inferences on neutral input: the first ones of a process are many times slower."""
        for _ in range(2):
            self.policy.act(self.policy.example_inputs(), temperature=self.temperature, generator=self._generator)
        self.new_episode(0)


def observation_batch(policy: VLAPolicy, observations: list[Observation], instructions: list[str]) -> ObsBatch:
    """Observations through the codec that datasets and twins use as well, ready for `preprocess`."""
    size = policy.spec.image_size
    return ObsBatch(
        images={name: torch.from_numpy(np.stack([encode_image(o.images[name], size) for o in observations]))
                for name in policy.spec.cameras},
        proprio=torch.from_numpy(np.stack([encode_proprioception(policy.contract, o) for o in observations])),
        instruction=list(instructions),
    )
