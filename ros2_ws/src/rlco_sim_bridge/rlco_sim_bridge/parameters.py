"""The bridge node's parameters: wrong values are refused, with the reason, when they are set."""

from rcl_interfaces.msg import SetParametersResult

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError, RlcoError
from rlco_common.ros import declare
from rlco_sim_bridge.bridge import EpisodeChoice, check_choice
from rlco_sim_bridge.environment import PHYSICS_RATE_HZ
from rlco_sim_bridge.pacing import whole_multiple
from rlco_sim_bridge.ros import PoseInput, TrajectoryInput
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


def declare_rates(node) -> tuple[float, float, int]:
    """(states per second, pictures per second, states between two pictures) of real time. Raises ConfigError."""
    state_rate_hz = declare(node, "state_rate_hz", 20.0, "real time: rate of joint states and tool pose in Hz; "
                            f"{PHYSICS_RATE_HZ} must be a multiple of it", low=1.0, high=100.0, read_only=True)
    camera_rate_hz = declare(node, "camera_rate_hz", 10.0, "real time: rate of images in Hz, while somebody subscribes; "
                             "state_rate_hz must be a multiple of it", low=0.1, high=100.0, read_only=True)
    whole_multiple(PHYSICS_RATE_HZ, state_rate_hz, "the physics rate", "state_rate_hz")
    return state_rate_hz, camera_rate_hz, whole_multiple(state_rate_hz, camera_rate_hz, "state_rate_hz", "camera_rate_hz")


def declare_arm_input(node, contract: Contract, state_rate_hz: float, lockstep: bool) -> PoseInput | TrajectoryInput:
    """What the arm listens to. Raises ConfigError for trajectories in lock step: they bear no stamp of a tick."""
    kind = declare(node, "arm_input", "pose", "what the arm takes: target poses, or real time only the joint trajectories of "
                   "an arm adapter", choices=("pose", "trajectory"), read_only=True)
    topic = declare(node, "trajectory_topic", "/joint_trajectory_controller/joint_trajectory", "where joint trajectories come",
                    read_only=True)
    if kind == "pose":
        return PoseInput(contract, 1.0 / state_rate_hz)
    if lockstep:
        raise ConfigError("arm_input trajectory is for real time; in lock step use arm_input pose")
    return TrajectoryInput(contract, topic)


def chosen(node) -> EpisodeChoice:
    """What the parameters say now."""
    return EpisodeChoice(**{name: node.get_parameter(name).value for name in vars(_FIRST)})
