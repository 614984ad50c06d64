"""Low-rank adapters (Hu et al. 2022) that keep the names of the weights they adapt.

An adapted layer has `weight` and `bias` where the plain one has them, and `lora_a` and `lora_b` beside them. A published
checkpoint therefore loads and is written back name for name with and without adapters, which wrapping libraries, whose
layers move the weight to another name, do not give.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADAPTER_NAMES = ("lora_a", "lora_b")


@dataclass(frozen=True)
class LoraConfig:
    """rank 0 switches adapters off. The update is scaled by alpha / rank. targets: last parts of layer names."""

    rank: int = 32
    alpha: float = 16.0
    targets: tuple[str, ...] = ("proj", "qkv", "fc1", "fc2", "fc3", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                "up_proj", "down_proj", "lm_head")

    def __post_init__(self):
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"lora: rank {self.rank} must be >= 0 and alpha {self.alpha} positive")


class LoraLinear(nn.Module):
    """y = W x + b + (alpha / rank) B A x. A is random, B zero, so that adapting a model changes nothing at first.

    A and B are float32 whatever W is: an optimizer's small steps vanish in bfloat16.
    """

    def __init__(self, plain: nn.Linear, config: LoraConfig):
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.scale = config.alpha / config.rank
        device = "cpu" if plain.weight.is_meta else plain.weight.device
        outputs, inputs = plain.weight.shape
        self.lora_a = nn.Parameter(torch.randn(config.rank, inputs, device=device) / config.rank)
        self.lora_b = nn.Parameter(torch.zeros(outputs, config.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x, slice(None))

    def rows(self, x: Tensor, rows: slice) -> Tensor:
        """The outputs of `rows` only."""
        bias = None if self.bias is None else self.bias[rows]
        update = F.linear(F.linear(x, self.lora_a.to(x.dtype)), self.lora_b[rows].to(x.dtype))
        return F.linear(x, self.weight[rows], bias) + self.scale * update

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + (alpha / rank) B A in the dtype of W; W itself while B is zero."""
        if not self.lora_b.any():
            return self.weight.detach()
        return (self.weight.float() + self.scale * self.lora_b.float() @ self.lora_a.float()).to(self.weight.dtype)


def linear_rows(layer: nn.Linear | LoraLinear, x: Tensor, rows: slice) -> Tensor:
    """The outputs of `rows` of a linear layer, adapted or not, without computing the others."""
    if isinstance(layer, LoraLinear):
        return layer.rows(x, rows)
    return F.linear(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows])


def adapt(model: nn.Module, config: LoraConfig, wanted: Callable[[str], bool] = lambda name: True) -> int:
    """Give every targeted linear layer whose name is `wanted` an adapter. Returns how many there are."""
    if config.rank == 0:
        return 0
    layers = [(name, module) for name, module in model.named_modules()
              if isinstance(module, nn.Linear) and name.rpartition(".")[2] in config.targets and wanted(name)]
    for name, module in layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoraLinear(module, config))
    return len(layers)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with adapters merged in: the names and shapes that it had before `adapt`."""
    adapted = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    return {name: adapted[name].merged_weight() if name in adapted else tensor.detach()
            for name, tensor in model.state_dict().items() if name.rpartition(".")[2] not in ADAPTER_NAMES}
