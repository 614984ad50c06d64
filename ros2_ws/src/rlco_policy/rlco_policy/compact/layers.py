"""Transformer parts of the compact policies."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]
"""Keys and values, each [B, heads, tokens, width / heads]."""


class Block(nn.Module):
    """Pre-norm transformer block whose tokens may also attend to a fixed memory (the prefix) in front of them.

    With `condition_width` the norms are adaptive (adaRMS, as in pi-0.5): scale, shift and gate come from a condition
    vector per sample.
    """

    def __init__(self, width: int, heads: int, *, memory: bool = False, condition_width: int = 0, mlp_ratio: int = 2):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.memory_key_value = nn.Linear(width, 2 * width) if memory else None
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.SiLU(), nn.Linear(mlp_ratio * width, width))
        self.attention_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=not condition_width)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=not condition_width)
        self.modulation = nn.Linear(condition_width, 6 * width) if condition_width else None
        if self.modulation is not None:
            nn.init.normal_(self.modulation.weight, std=0.02)
            nn.init.zeros_(self.modulation.bias)

    def memory(self, tokens: Tensor) -> KeyValue:
        """Keys and values of the memory tokens [B, N, width]; computed once, used for every denoising step or token."""
        return tuple(self._split(part) for part in self.memory_key_value(tokens).chunk(2, dim=-1))

    def forward(self, x: Tensor, memory: KeyValue | None = None, mask: Tensor | None = None,
                condition: Tensor | None = None) -> Tensor:
        """x [B, T, width] attends to [memory | x] under mask [T, N + T] (True = visible, None = all)."""
        keys_values = None if memory is None else memory
        return self.step(x, keys_values, mask, condition)[0]

    def step(self, x: Tensor, past: KeyValue | None, mask: Tensor | None = None,
             condition: Tensor | None = None) -> tuple[Tensor, KeyValue]:
        """Like forward, and returns the keys and values of [past | x] for the next token."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._modulate(condition)
        q, k, v = (self._split(part) for part in self.query_key_value(
            _affine(self.attention_norm(x), scale_a, shift_a)).chunk(3, dim=-1))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = _gated(x, self.attention_out(attended.transpose(1, 2).flatten(2)), gate_a)
        x = _gated(x, self.mlp(_affine(self.mlp_norm(x), scale_m, shift_m)), gate_m)
        return x, (k, v)

    def _modulate(self, condition):
        if self.modulation is None:
            return (None,) * 6
        return self.modulation(condition).unsqueeze(1).chunk(6, dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _affine(x, scale, shift):
    return x if scale is None else torch.addcmul(shift, x, 1 + scale)


def _gated(x, update, gate):
    return x + update if gate is None else torch.addcmul(x, update, 1 + gate)


class TimeEmbedding(nn.Module):
    """Sine and cosine of a time in [0, 1] at geometric periods 4e-3 to 4 (as in pi-0.5), then an MLP."""

    def __init__(self, width: int):
        super().__init__()
        periods = 4e-3 * (4.0 / 4e-3) ** torch.linspace(0, 1, width // 2, dtype=torch.float64)
        self.register_buffer("frequencies", (2 * math.pi / periods).float(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        """[B] -> [B, width]."""
        angle = time[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=-1))


def value_head(width: int, hidden: int) -> nn.Sequential:
    """MLP [.., width] -> [.., 1] whose first output is near zero."""
    head = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden // 2), nn.SiLU(),
                         nn.Linear(hidden // 2, 1))
    nn.init.normal_(head[-1].weight, std=0.02)
    nn.init.zeros_(head[-1].bias)
    return head
