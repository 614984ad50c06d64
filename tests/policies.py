"""Policies in test sizes, and what they are fed."""

import numpy as np
import torch
from tiny_models import openvla_config, pi05_config

from rlco_common.contract import load_contract
from rlco_policy.interface import ObsBatch
from rlco_policy.registry import create_policy
from rlco_policy.statistics import Statistics

CONTRACT = load_contract()
NAMES = CONTRACT.proprioception_names
BATCH = 6
CONFIGS = {"compact_flow": dict, "compact_token": dict, "openvla": openvla_config, "pi05": pi05_config}
"""Registered name -> the config of a policy that a test can afford."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def statistics():
    return Statistics.from_proprioception(NAMES, np.random.default_rng(0).normal(0.1, 0.3, (50, len(NAMES))))


def make_policy(name, config=None, seed=0):
    return create_policy(name, CONTRACT, statistics(), config, seed=seed)


def weights(policy):
    """All weights in one vector, a copy."""
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def observations(batch=BATCH, seed=0, colours=("red", "green", "blue", "yellow"), size=64):
    rng = np.random.default_rng(seed)
    return ObsBatch(
        images={name: torch.from_numpy(rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8))
                for name in CONTRACT.cameras},
        proprio=torch.from_numpy(rng.normal(0.1, 0.3, (batch, len(NAMES))).astype(np.float32)),
        instruction=[f"push the {colours[i % len(colours)]} cube" for i in range(batch)],
    )


def actions(policy, batch=BATCH, seed=0):
    low, high = CONTRACT.action.low, CONTRACT.action.high
    unit = np.random.default_rng(seed).random((batch, policy.spec.horizon, policy.spec.action_dim))
    return torch.from_numpy((low + unit * (high - low)).astype(np.float32))


def take(tensors, index):
    return {name: tensor[index] for name, tensor in tensors.items()}
