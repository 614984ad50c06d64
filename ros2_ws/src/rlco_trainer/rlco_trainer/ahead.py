"""When an iteration's rollouts are made: before its update, or beside the update of the iteration before."""

import copy
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor

from rlco_policy.interface import VLAPolicy
from rlco_trainer.averaging import WeightAverage, overwrite, trained_weights
from rlco_trainer.rollout import Episode

type RollOut = Callable[[VLAPolicy, int, Callable[[], bool]], list[Episode]]
"""Makes the episodes of an iteration, counted from 0, with a policy, until it is asked (last argument) to end early."""


class RolloutsInTurns:
    """Rollouts before the update, by the policy itself. acting: the weights that it has meanwhile."""

    def __init__(self, policy: VLAPolicy, acting: Callable[[], AbstractContextManager]):
        self.policy = policy
        self._acting = acting

    def next(self, roll_out: RollOut, step: int, *, more: bool) -> tuple[list[Episode], float]:
        """The episodes of iteration `step`, and the seconds that they took. more: another iteration follows."""
        started = time.monotonic()
        with self._acting():
            episodes = roll_out(self.policy, step, lambda: False)
        return episodes, time.monotonic() - started

    def wait(self) -> None:
        """Until the pool is free."""

    def check(self) -> None:
        """Raise now what rollouts under way have raised."""

    def cancel(self) -> None:
        """End rollouts under way after the chunk that they are in."""

    def state(self) -> list[Tensor] | None:
        """For the run's checkpoint."""
        return None

    def restore(self, state: list[Tensor] | None) -> None:
        """The policy and its average, which the run restores, are all there is."""


class RolloutsAhead:
    """Rollouts in a thread beside the update, by a copy of the policy.

    The copy shares with the policy what does not train. It acts with the average from before the update beside it, taken
    before that update begins, so what it does depends on nothing that happens meanwhile: the same run gives the same bits,
    however long its rollouts and updates take. The interface is that of RolloutsInTurns.
    """

    def __init__(self, policy: VLAPolicy, average: WeightAverage):
        fixed = [tensor for tensor in (*policy.parameters(), *policy.buffers()) if not tensor.requires_grad]
        self.policy = copy.deepcopy(policy, {id(tensor): tensor for tensor in fixed})
        self._average = average
        self._weights = trained_weights(self.policy)
        self._thread: threading.Thread | None = None
        self._cancelled = False

    @property
    def under_way(self) -> bool:
        """Whether rollouts were started whose result nobody has taken."""
        return self._thread is not None

    def next(self, roll_out: RollOut, step: int, *, more: bool) -> tuple[list[Episode], float]:
        """Wait for the episodes of iteration `step`, and begin those of the following one. Raises what they raised."""
        if not self.under_way:
            self.start(roll_out, step)
        episodes, seconds = self._result()
        overwrite(self._weights, self._average.values)
        if more:
            self.start(roll_out, step + 1)
        return episodes, seconds

    def start(self, roll_out: RollOut, step: int) -> None:
        """Begin rollouts with the copy, in the thread."""
        self._cancelled, self._episodes, self._error = False, [], None

        def work():
            started = time.monotonic()
            try:
                self._episodes = roll_out(self.policy, step, lambda: self._cancelled)
            except BaseException as error:      # raised again where the result is taken
                self._error = error
            self._seconds = time.monotonic() - started

        self._thread = threading.Thread(target=work, name="rollouts_ahead", daemon=True)
        self._thread.start()

    def _result(self) -> tuple[list[Episode], float]:
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        return self._episodes, self._seconds

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        if self._thread is not None and self._error is not None:
            self._result()

    def cancel(self) -> None:
        if self._thread is not None:
            self._cancelled = True
            self._thread.join()
            self._thread = None

    def state(self) -> list[Tensor] | None:
        """The weights that made the rollouts under way, or will make the next ones."""
        return [weight.detach() for weight in self._weights]

    def restore(self, state: list[Tensor] | None) -> None:
        """state: None when the run did without until now, and has none of its own: the average, restored before, acts."""
        overwrite(self._weights, self._average.values if state is None else state)
