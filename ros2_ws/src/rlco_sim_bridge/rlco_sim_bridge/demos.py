"""Successful demonstrations of the scripted expert, generated in parallel."""

from collections.abc import Iterable, Iterator

from rlco_common.contract import Contract
from rlco_common.errors import TwinError
from rlco_sim_bridge.domain import Domain
from rlco_sim_bridge.pool import TwinPool
from rlco_sim_bridge.pool_worker import Rollout
from rlco_sim_bridge.variation import NOMINAL, Variation

_TRIED_BEFORE_GIVING_UP = 20


class DemoGenerator:
    """Iterates over the first `count` successful expert Rollouts of `seeds`, in the order of the seeds.

    kind: of expert, see experts.make_expert. The result depends on seeds, noise, kind, domain, variation and layout only,
    not on the number of workers. Failures are rejected and counted in `rejected`. Raises TwinError when the seeds run out
    or when the expert fails more often than not.
    """

    def __init__(self, contract: Contract, task: str, domain: str | Domain, seeds: Iterable[int], count: int, *,
                 noise: float = 0.1, workers: int = 2, kind: str = "scripted", variation: Variation = NOMINAL, layout=None,
                 render: bool = True):
        self._arguments = (contract, task, domain)
        self._seeds = seeds
        self._noise = noise
        self._kind = kind
        self._workers = workers
        self._options = {"variation": variation, "layout": layout, "render": render}
        self.count = count
        self.rejected = 0

    def __iter__(self) -> Iterator[Rollout]:
        self.rejected = accepted = 0
        if self.count == 0:
            return
        with TwinPool(*self._arguments, scenes=max(1, self._workers), workers=self._workers, **self._options) as pool:
            for rollout in pool.rollout_expert(self._seeds, self._noise, self._kind):
                if not rollout.success:
                    self.rejected += 1
                    self._give_up_if_hopeless(accepted)
                    continue
                accepted += 1
                yield rollout
                if accepted == self.count:
                    return
        raise TwinError(f"{len(self._seeds)} seeds gave only {accepted} of {self.count} demonstrations; give more seeds")

    def _give_up_if_hopeless(self, accepted):
        tried = accepted + self.rejected
        if tried >= _TRIED_BEFORE_GIVING_UP and self.rejected > accepted:
            raise TwinError(f"the expert failed in {self.rejected} of {tried} episodes; lower the noise or check the domain")
