"""The bridge node's parameters that choose an episode: wrong values are refused when they are set, with the reason."""

from rcl_interfaces.msg import SetParametersResult

from rlco_common.contract import Contract
from rlco_common.errors import RlcoError
from rlco_common.ros import declare
from rlco_sim_bridge.bridge import EpisodeChoice, check_choice
from rlco_sim_bridge.tasks import TASKS

_FIRST = EpisodeChoice("push_cube", "twin", 0)
_HELP = {
    "task": f"task of the next episode: {', '.join(TASKS)}",
    "domain": "domain of the next episode: twin, standin, or the path of a domain file",
    "seed": "seed of the next episode's initial state and instruction",
    "variation": "what the next episode varies, as objects=unseen,start=perturbed,camera=0.5,light=0.5; empty: nothing",
}


def declare_choice(node, contract: Contract) -> None:
    """Declare one parameter per field of EpisodeChoice. Raises ConfigError for a wrong initial value."""
    for name, default in vars(_FIRST).items():
        value = declare(node, name, default, f"{_HELP[name]}. Set between episodes; acts from the next reset on",
                        low=0 if name == "seed" else None)
        check_choice(contract, name, value)

    def check(parameters) -> SetParametersResult:
        for parameter in parameters:
            try:
                check_choice(contract, parameter.name, parameter.value)
            except RlcoError as error:
                return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(check)


def chosen(node) -> EpisodeChoice:
    """What the parameters say now."""
    return EpisodeChoice(**{name: node.get_parameter(name).value for name in vars(_FIRST)})
