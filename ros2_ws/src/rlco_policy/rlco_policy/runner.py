"""Observation -> action chunk with a policy of this process. What the policy node runs; usable without ROS."""

import time

import numpy as np
import torch

from rlco_common.contract import Contract, require_same_contract
from rlco_common.errors import DataError
from rlco_common.observation import Observation, encode_image, encode_proprioception
from rlco_policy.execution import START, Continuation
from rlco_policy.interface import ObsBatch, VLAPolicy


class PolicyRunner:
    """One policy on one robot. Deterministic: equal observations, instruction and episode seed give equal actions."""

    def __init__(self, policy: VLAPolicy, contract: Contract, temperature: float = 0.0):
        require_same_contract(contract, policy.contract, "the policy")
        self.policy, self.contract, self.temperature = policy, contract, temperature
        self.horizon, self.chunk, self.guided = policy.spec.horizon, policy.spec.chunk, policy.real_time_chunking
        self.latency_s = 0.0
        self._generator = torch.Generator()
        self.new_episode(0)

    def new_episode(self, seed: int = 0) -> None:
        """Start the random numbers over (they matter at temperature > 0 only)."""
        self._generator.manual_seed(max(seed, 0))

    def infer(self, observation: Observation, instruction: str, steps: int | None = None,
              continuation: Continuation = START) -> np.ndarray:
        """Actions float64 [steps or chunk, 7], physical units, from the observation's stamp on.

        Raises DataError on an instruction the policy cannot read and on non-finite numbers.
        """
        batch = observation_batch(self.policy, [observation], [instruction])
        return self.infer_batch(batch, steps, continuation)

    def infer_batch(self, batch: ObsBatch, steps: int | None = None, continuation: Continuation = START) -> np.ndarray:
        """The same for an observation that has gone through the codec already, as a batch of one."""
        inputs = self.policy.preprocess(batch)
        options = {}
        if self.guided and continuation.previous is not None:
            options = {"prev_chunk": torch.from_numpy(continuation.previous).float()[None], "delay": continuation.delay}
        actions = self.policy.act(inputs, temperature=self.temperature, generator=self._generator, steps=steps, **options)
        actions = actions[0].double().cpu().numpy()
        if not np.isfinite(actions).all():
            raise DataError(f"the policy produced a non-finite action for '{batch.instruction[0]}'; the chunk is dropped")
        return self.contract.action.clip(actions)       # float32 rounds a limit to beyond it, which the gate would reject

    def warm_up(self) -> None:
        """Inferences on neutral input: the first ones of a process are many times slower. The last one sets latency_s."""
        for _ in range(3):
            started = time.monotonic()
            self.policy.act(self.policy.example_inputs(), temperature=self.temperature, generator=self._generator)
            self.latency_s = time.monotonic() - started
        self.new_episode(0)

    def close(self) -> None:
        """Nothing to release; a remote runner has a connection."""


def observation_batch(policy: VLAPolicy, observations: list[Observation], instructions: list[str]) -> ObsBatch:
    """Observations through the codec that datasets and twins use as well, ready for `preprocess`."""
    size = policy.spec.image_size
    return ObsBatch(
        images={name: torch.from_numpy(np.stack([encode_image(o.images[name], size) for o in observations]))
                for name in policy.spec.cameras},
        proprio=torch.from_numpy(np.stack([encode_proprioception(policy.contract, o) for o in observations])),
        instruction=list(instructions),
    )
