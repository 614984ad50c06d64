"""Scenes for learners, whatever they run on."""

from typing import Literal, Protocol

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_sim_bridge.domain import Domain
from rlco_sim_bridge.pool import ChunkBatch, ObservationBatch, TwinPool
from rlco_sim_bridge.variation import NOMINAL, Variation

Backend = Literal["cpu", "gpu"]


class ScenePool(Protocol):
    """What TwinPool and BatchedPool have in common; their docstrings say the rest."""

    scenes: int
    contract: Contract
    groups: list[list[int]]

    @property
    def worker_pids(self) -> list[int]: ...

    def reset(self, seeds) -> ObservationBatch: ...

    def step_chunks(self, actions, reset_seeds=None) -> ChunkBatch: ...

    def begin_chunks(self, scenes, actions, reset_seeds=None, ending=None) -> None: ...

    def end_chunks(self) -> ChunkBatch: ...

    def drain(self) -> None: ...

    def close(self) -> None: ...


def open_scenes(contract: Contract, task: str, domain: str | Domain = "twin", *, scenes: int = 8, backend: Backend = "cpu",
                workers: int = 2, variation: Variation = NOMINAL, image_size: int | None = None, layout=None,
                render: bool = True) -> ScenePool:
    """Scenes in worker processes (backend "cpu") or in one batch on a CUDA device ("gpu", where `workers` has no meaning)."""
    options = {"variation": variation, "image_size": image_size, "layout": layout, "render": render}
    if backend == "cpu":
        return TwinPool(contract, task, domain, scenes=scenes, workers=workers, **options)
    if backend == "gpu":
        # imports the simulator, which a parent of worker processes does without
        from rlco_sim_bridge.batched_pool import BatchedPool

        return BatchedPool(contract, task, domain, scenes=scenes, **options)
    raise ConfigError(f"backend must be cpu or gpu, not '{backend}'")
