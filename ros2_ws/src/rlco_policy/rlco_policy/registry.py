"""Policies by name, through the entry-point group `rlco.policies` (value: module:Class)."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError
from rlco_common.strict import from_mapping
from rlco_policy.interface import VLAPolicy
from rlco_policy.statistics import Statistics

GROUP = "rlco.policies"


def policy_names() -> tuple[str, ...]:
    return tuple(sorted(_registered()))


def policy_class(name: str) -> type[VLAPolicy]:
    """The class registered under `name`. Raises ConfigError listing the known names."""
    registered = _registered()
    if name not in registered:
        raise ConfigError(f"no policy named '{name}'; known: {', '.join(sorted(registered)) or '(none)'}. Policies are "
                          f"registered in the entry-point group '{GROUP}'; after adding one, install its package again")
    cls = registered[name].load()
    if not issubclass(cls, VLAPolicy):
        raise ConfigError(f"policy '{name}': {registered[name].value} is not a VLAPolicy")
    return cls


def policy_name(policy: VLAPolicy) -> str:
    """The name under which a policy's class is registered."""
    value = f"{type(policy).__module__}:{type(policy).__qualname__}"
    names = [name for name, entry in _registered().items() if entry.value == value]
    if not names:
        raise ConfigError(f"{value} is not registered in the entry-point group '{GROUP}'; add it to its setup.py")
    return names[0]


def create_policy(name: str, contract: Contract, statistics: Statistics, config: dict[str, Any] | None = None, *,
                  seed: int = 0) -> VLAPolicy:
    """A new policy with weights drawn from `seed`; `config` is plain data of the policy's config dataclass."""
    cls = policy_class(name)
    parsed = from_mapping(cls.config_class, config or {}, f"policy '{name}'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(parsed, contract, statistics)


def _registered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
