"""How much memory a policy's training state takes, from its parameters alone: no weights have to exist for it."""

from dataclasses import dataclass
from typing import Literal

from rlco_policy.interface import VLAPolicy

GIB = 1 << 30


@dataclass(frozen=True)
class Footprint:
    """Numbers of parameters, and bytes. Activations come on top: they depend on batch size and sequence length."""

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def acting(self) -> int:
        return self.weights

    @property
    def training(self) -> int:
        return self.weights + self.gradients + self.optimizer


def footprint(policy: VLAPolicy, stage: Literal["sft", "rl"]) -> Footprint:
    """Weights, gradients and AdamW's two moments of a policy in a stage; a policy on the meta device will do."""
    policy.set_stage(stage)
    parameters = list(policy.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]

    def size(some) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in some)

    return Footprint(sum(p.numel() for p in parameters), sum(p.numel() for p in trainable), size(parameters), size(trainable),
                     2 * size(trainable))


def footprint_table(rows: list[tuple[str, Footprint]]) -> str:
    """Markdown: one row per (label, footprint)."""
    heads = ("policy, stage", "parameters", "trained", "weights", "gradients", "AdamW", "sum")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for label, it in rows:
        sizes = " | ".join(f"{number / GIB:.1f} GiB" for number in (it.weights, it.gradients, it.optimizer, it.training))
        lines.append(f"| {label} | {it.parameters / 1e6:,.0f} M | {it.trainable / 1e6:,.0f} M | {sizes} |")
    return "\n".join(lines)
