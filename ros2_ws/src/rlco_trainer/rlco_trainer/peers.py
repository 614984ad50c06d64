"""The processes of one training run, started by torchrun; alone, everything here does nothing.

Every process draws the same batches from the same random streams and computes its part of each; the parts' gradients are
summed. So batch sizes are those of the whole run, and the number of processes changes an update on the same samples by
rounding alone. The samples of Stage II depend on it: each process explores its share of the episodes with noise of its own.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from rlco_common.errors import ConfigError
from rlco_trainer.batches import slices

TIMEOUT = timedelta(minutes=30)     # a rollout may take that long; a dead peer is noticed by torchrun at once


@dataclass(frozen=True)
class Peers:
    """This process's place among `size` of them."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> "Peers":
        """Join the process group that torchrun's environment names, or stay alone.

        device: `cuda` is another one in each process of a machine, that of its LOCAL_RANK; raises ConfigError for a numbered
        one, which all of them would share.
        """
        size, kind = int(os.environ.get("WORLD_SIZE", "1")), torch.device(device)
        if size == 1:
            return cls()
        if kind.type == "cuda":
            if kind.index is not None:
                raise ConfigError(f"device={device} would be the same for all {size} processes; give device=cuda")
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if kind.type == "cuda" else "gloo", timeout=TIMEOUT)
        return cls(dist.get_rank(), size)

    @property
    def main(self) -> bool:
        """Whether this process logs, saves and decides."""
        return self.rank == 0

    def parts(self, total: int, micro_batches: int) -> list[slice]:
        """This process's micro-batches of a batch of `total` samples; may be none."""
        shares = slices(total, self.size)
        if self.rank >= len(shares):
            return []
        start, stop = shares[self.rank].start, shares[self.rank].stop
        return [slice(start + part.start, start + part.stop) for part in slices(stop - start, micro_batches)]

    def share(self, items: list) -> list:
        """This process's part of a list; `gather` puts the results into the list's order again."""
        return [item for part in self.parts(len(items), 1) for item in items[part]]

    def gather(self, items: list) -> list:
        """The lists of all processes, one after the other."""
        if self.size == 1:
            return items
        lists: list = [None] * self.size
        dist.all_gather_object(lists, items)
        return [item for found in lists for item in found]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up every parameter's gradient over the processes."""
        if self.size == 1:
            return
        parameters = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            # in the parameter's own memory layout, which the fused optimizer takes for granted
            parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter))

    def sum_values(self, values: dict[str, float]) -> dict[str, float]:
        """Sum of each named number over the processes; a process may lack some."""
        totals: dict[str, float] = {}
        for name, value in self.gather(list(values.items())):
            totals[name] = totals.get(name, 0.0) + value
        return totals

    def agree(self, decision: bool) -> bool:
        """The main process's decision, in all of them."""
        return self.gather([decision])[0]


ALONE = Peers()
