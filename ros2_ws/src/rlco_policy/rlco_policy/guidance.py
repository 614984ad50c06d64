"""Real-time chunking (Black et al. 2025): a flow policy's new chunk is pulled to what is left of the chunk under way.

While the new chunk is computed, the arm executes the old one. Its first `delay` steps are therefore settled, and the new
chunk has to go on from there. Every Euler step of the flow is corrected towards the old chunk, fully on the settled
steps and ever less on those after. The Jacobian of the predicted action is taken as the identity, so that no backward
pass is needed.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class ChunkGuidance:
    """Corrects velocities of a flow from noise (time 0) to action (time 1), in the policy's normalised action space."""

    def __init__(self, previous: Tensor, delay: int, horizon: int, steps: int):
        """previous: [B, n, A], the old chunk from the new chunk's first step on; what exceeds `horizon` is ignored.

        delay: steps of it that will be executed before the new chunk arrives. steps: Euler steps of the flow.
        """
        left = min(previous.shape[1], horizon)
        self._target = F.pad(previous[:, :left], (0, 0, 0, horizon - left))
        self._weight = prefix_weights(min(delay, left), left, horizon).to(previous.device)[None, :, None]
        self._strongest = float(steps)      # no step corrects more than the whole error

    def correct(self, velocity: Tensor, x: Tensor, time: float) -> Tensor:
        """velocity and x: [B, horizon, A] at `time` in [0, 1)."""
        left = 1.0 - time
        error = self._weight * (self._target - (x + left * velocity))
        strength = self._strongest if time == 0 else min(self._strongest, (time**2 + left**2) / (time * left))
        return velocity + strength * error


def prefix_weights(delay: int, end: int, horizon: int) -> Tensor:
    """float32 [horizon]: 1 before `delay`, falling exponentially until `end`, 0 from there on."""
    falling = [(end - i) / (end - delay + 1) for i in range(delay, end)]
    weights = [1.0] * delay + [c * math.expm1(c) / math.expm1(1.0) for c in falling]
    return torch.tensor(weights + [0.0] * (horizon - end))
