"""Scripted experts: pure numpy, closed loop on the scene state, in the policy's own action space."""

from importlib import import_module

from rlco_common.errors import ConfigError
from rlco_sim_bridge.experts import drawers, pick_place, push_cube

EXPERTS = {"pick_place": pick_place.Expert, "push_cube": push_cube.Expert,
           "open_drawer": drawers.OpenExpert, "close_drawer": drawers.CloseExpert}
PLANNED = {"pick_place": "rlco_sim_bridge.experts.planned"}    # imported when asked for: they need the planning libraries
KINDS = ("scripted", "planned")


def make_expert(task: str, contract, rng, noise: float = 0.0, kind: str = "scripted"):
    """The expert of a task. kind: `scripted` (follows waypoints) or `planned` (motion planning around obstacles).

    Raises ConfigError naming the tasks that have such an expert, or the libraries that are missing.
    """
    if kind not in KINDS:
        raise ConfigError(f"no kind of expert '{kind}'; there are {', '.join(KINDS)}")
    known = EXPERTS if kind == "scripted" else PLANNED
    if task not in known:
        raise ConfigError(f"no {kind} expert for task '{task}'; there is one for {', '.join(known)}")
    expert = EXPERTS[task] if kind == "scripted" else import_module(PLANNED[task]).Expert
    return expert(contract, rng, noise)
