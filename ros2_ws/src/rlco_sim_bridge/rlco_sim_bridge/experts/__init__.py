"""Scripted experts: pure numpy, closed loop on the scene state, in the policy's own action space."""

from rlco_common.errors import ConfigError
from rlco_sim_bridge.experts import push_cube

EXPERTS = {"push_cube": push_cube.Expert}


def make_expert(task: str, contract, rng, noise: float = 0.0):
    """The expert of a task. Raises ConfigError naming the tasks that have one."""
    if task not in EXPERTS:
        raise ConfigError(f"no expert for task '{task}'; there is one for {', '.join(EXPERTS)}")
    return EXPERTS[task](contract, rng, noise)
