"""Rollouts of the next iteration beside the update of this one."""

import copy
import threading
import time
from collections.abc import Callable

from torch import Tensor

from rlco_policy.interface import VLAPolicy
from rlco_trainer.averaging import overwrite, trained_weights
from rlco_trainer.rollout import Episode

type RollOut = Callable[[VLAPolicy, Callable[[], bool]], list[Episode]]
"""Makes episodes with a policy until it is asked (second argument) to end early."""


class RolloutsAhead:
    """A copy of the policy, and the thread in which it makes the rollouts of one iteration at a time.

    The copy shares with the policy what does not train. `take` gives it weights, so what it does depends on nothing that
    happens meanwhile: the same run gives the same bits, however long its rollouts and updates take.
    """

    def __init__(self, policy: VLAPolicy):
        fixed = [tensor for tensor in (*policy.parameters(), *policy.buffers()) if not tensor.requires_grad]
        self.policy = copy.deepcopy(policy, {id(tensor): tensor for tensor in fixed})
        self._weights = trained_weights(self.policy)
        self._thread: threading.Thread | None = None
        self._cancelled = False

    @property
    def under_way(self) -> bool:
        """Whether rollouts were started whose result nobody has taken."""
        return self._thread is not None

    def take(self, weights: list[Tensor]) -> None:
        """Act with these from now on, in the order of trained_weights. Not while rollouts are under way."""
        overwrite(self._weights, weights)

    def start(self, roll_out: RollOut) -> None:
        """Begin rollouts with the copy, in the thread."""
        self._cancelled, self._episodes, self._error = False, [], None

        def work():
            started = time.monotonic()
            try:
                self._episodes = roll_out(self.policy, lambda: self._cancelled)
            except BaseException as error:      # raised again where the result is taken
                self._error = error
            self._seconds = time.monotonic() - started

        self._thread = threading.Thread(target=work, name="rollouts_ahead", daemon=True)
        self._thread.start()

    def result(self) -> tuple[list[Episode], float]:
        """Wait for the rollouts: (episodes, seconds that they took). Raises what they raised."""
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        return self._episodes, self._seconds

    def wait(self) -> None:
        """Until the pool is free; the result stays here."""
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Raise now what the rollouts under way have raised."""
        if self._thread is not None and self._error is not None:
            self.result()

    def cancel(self) -> None:
        """End rollouts under way after the chunk that they are in."""
        if self._thread is not None:
            self._cancelled = True
            self._thread.join()
            self._thread = None

    def state(self) -> list[Tensor]:
        """For the run's checkpoint: the weights that made the rollouts under way, or will make the next ones."""
        return [weight.detach() for weight in self._weights]
