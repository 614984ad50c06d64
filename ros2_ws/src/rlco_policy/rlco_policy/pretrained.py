"""What policies with a public base model share: freezing, and checkpoints that leave out what the base holds unchanged."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers.initialization import no_init_weights

from rlco_common.errors import DataError
from rlco_policy.hub import ModelFolder
from rlco_policy.interface import VLAPolicy


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built inside have parameters on the meta device, which take no memory and no time until they are loaded."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        yield


class PretrainedPolicy(VLAPolicy):
    """A policy around a model whose weights come from `base`, a folder or hub repository, or are random without one.

    Subclasses say in `_base_weights` how a weight of the base is called here.
    """

    base: ModelFolder | None = None
    small_files: dict[str, bytes]

    def __init__(self, config: Any, contract, statistics):
        super().__init__(config, contract, statistics)
        self._unchanged: set[str] = set()       # names whose values are the base's
        self.small_files = {}

    # -- freezing

    def _train_only(self, trainable: Callable[[str], bool]) -> None:
        """Freeze every parameter whose name is not `trainable`. What may change is stored from now on."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(trainable(name))
            if parameter.requires_grad:
                self._unchanged.discard(name)

    def param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        groups: dict[str, list[torch.nn.Parameter]] = {"policy": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                role = {"value_head": "value", "noise_head": "noise"}.get(name.split(".")[0], "policy")
                groups.setdefault(role, []).append(parameter)
        return groups

    # -- checkpoints

    def base_reference(self) -> dict[str, Any] | None:
        return None if self.base is None else {"name": self.config.pretrained, "fingerprint": self.base.fingerprint}

    def left_to_base(self) -> frozenset[str]:
        """Nothing, unless it is at least half of the weights: otherwise a checkpoint had better stand on its own."""
        sizes = {name: tensor.numel() for name, tensor in self.state_dict().items()}
        unchanged = sum(sizes[name] for name in self._unchanged)
        return frozenset(self._unchanged if 2 * unchanged >= sum(sizes.values()) else ())

    def load_base(self, names: Iterable[str], reference: dict[str, Any] | None) -> None:
        names = set(names)
        if not names:
            return
        if reference is None:
            raise DataError(f"the checkpoint lacks weights and names no base model to take them from: {_some(names)}")
        self.base = ModelFolder.open(reference["name"], getattr(self.config, "revision", ""))
        if self.base.fingerprint != reference["fingerprint"]:
            raise DataError(f"{self.base.path} holds other weights (fingerprint {self.base.fingerprint}) than the base model "
                            f"of this checkpoint ({reference['fingerprint']}); restore the revision it was trained on")
        self._take_from_base(names)

    def save_assets(self, directory: Path) -> None:
        for name, content in self.small_files.items():
            (directory / name).write_bytes(content)

    def _take_from_base(self, names: Iterable[str] | None = None) -> None:
        """Load weights from the base; `names` None: every one it has."""
        done = self._base_weights(self.base, None if names is None else set(names))
        missing = set(names or ()) - done
        if missing:
            raise DataError(f"{self.base.path} lacks weights: {_some(missing)}")
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self._unchanged |= done - trained

    def _base_weights(self, base: ModelFolder, names: set[str] | None) -> set[str]:
        """Load the weights `names` (None: all) of the base into the model; the names that were loaded."""
        raise NotImplementedError


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
