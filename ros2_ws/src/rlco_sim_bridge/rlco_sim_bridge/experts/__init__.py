"""Scripted experts: pure numpy, closed loop on the scene state, in the policy's own action space."""

from rlco_common.errors import ConfigError
from rlco_sim_bridge.experts import drawers, pick_place, push_cube

EXPERTS = {"pick_place": pick_place.Expert, "push_cube": push_cube.Expert,
           "open_drawer": drawers.OpenExpert, "close_drawer": drawers.CloseExpert}


def make_expert(task: str, contract, rng, noise: float = 0.0):
    """The expert of a task. Raises ConfigError naming the tasks that have one."""
    if task not in EXPERTS:
        raise ConfigError(f"no expert for task '{task}'; there is one for {', '.join(EXPERTS)}")
    return EXPERTS[task](contract, rng, noise)
