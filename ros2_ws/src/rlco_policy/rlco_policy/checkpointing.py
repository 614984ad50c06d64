"""Gradient checkpointing for policies that never enter train mode, where the libraries' own switch has no effect."""

import torch
from torch.utils.checkpoint import checkpoint


def run(function, *arguments, save_memory: bool, **keywords):
    """`function(*arguments)`; with save_memory its activations are computed again in the backward pass."""
    if not (save_memory and torch.is_grad_enabled()):
        return function(*arguments, **keywords)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, **keywords)
