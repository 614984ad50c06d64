"""What flow policies share in RL (ReinFlow, Zhang et al. 2025): the exploration noise's size and a chain's likelihood.

A chain x_0 ~ N(0, I), x_{k+1} = mu_k + sigma_k * u_k has one entry per element and k: log N(x_0; 0, 1), then the density of
every transition.
"""

import math
from typing import Literal

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def exploration_std(head: Tensor, low: float, high: float) -> Tensor:
    """Output of a noise head, any real number -> standard deviation between low and high, even in the logarithm."""
    log_low, log_high = math.log(low), math.log(high)
    return torch.exp(log_low + (log_high - log_low) * (0.5 * (torch.tanh(head) + 1)))


def transition_entries(x: Tensor, mean: Tensor, std: Tensor, correlation: float = 0.0) -> Tensor:
    """Log-density of x = mean + std * u, element by element; u is equally correlated between the steps [..., T, A]."""
    return log_equicorrelated((x - mean) / std, correlation) - std.log()


def start_entries(x: Tensor) -> Tensor:
    """Log-density of x_0 ~ N(0, I), element by element."""
    return log_equicorrelated(x, 0.0)


def join_entries(entries: Tensor, chunk: int, how: Literal["mean", "sum"]) -> Tensor:
    """[B, K + 1, horizon, A] chain entries -> [B, chunk, A] of the executed steps."""
    executed = entries[:, :, :chunk]
    return executed.mean(1) if how == "mean" else executed.sum(1)


def log_equicorrelated(noise: Tensor, correlation: float) -> Tensor:
    """Log-density of standard normal noise [..., T, A] whose steps t are equally correlated, one number per entry.

    Entry t is the density of step t given the steps before it, so that the entries of the first n steps sum to the joint
    log-density of those n steps: u_t | u_<t ~ N(rho s / (1 + (t - 1) rho), 1 - rho^2 t / (1 + (t - 1) rho)) with s the
    sum of the t steps before.
    """
    if correlation == 0:
        return -0.5 * noise.square() - HALF_LOG_2PI
    steps = torch.arange(noise.shape[-2], device=noise.device, dtype=noise.dtype)[:, None]
    weight = correlation / (1 + (steps - 1) * correlation)
    mean = weight * (noise.cumsum(-2) - noise)
    variance = 1 - correlation * weight * steps
    return -0.5 * (noise - mean).square() / variance - 0.5 * variance.log() - HALF_LOG_2PI
