"""What the bridge node does between its topics: one robot cell at a time, in any domain. No ROS."""

import json
from dataclasses import dataclass

import numpy as np

from rlco_common.contract import Contract
from rlco_common.episode import EpisodeEvent
from rlco_common.errors import ConfigError, TwinError
from rlco_common.observation import Observation
from rlco_common.pose import Pose
from rlco_sim_bridge.domain import CameraView, Domain, load_domain
from rlco_sim_bridge.scene_state import StepResult
from rlco_sim_bridge.tasks import TASKS
from rlco_sim_bridge.twin import Twin
from rlco_sim_bridge.variation import variation_from_text

MOST_TWINS = 8      # kept for when they are asked for again; each holds its scene in memory


@dataclass(frozen=True)
class EpisodeChoice:
    """What an episode is made of, as the node's parameters say it. Each field is checked when it is set."""

    task: str
    domain: str
    seed: int
    variation: str = ""


def check_choice(contract: Contract, name: str, value) -> None:
    """Raise ConfigError, naming what exists, when `value` cannot be the field `name` of an EpisodeChoice."""
    if name == "task":
        if value not in TASKS:
            raise ConfigError(f"no twin for task '{value}'; there is one for {', '.join(TASKS)}")
        contract.task(value)
    elif name == "domain":
        load_domain(value)
    elif name == "variation":
        variation_from_text(value)
    elif name == "seed" and value < 0:
        raise ConfigError(f"seed {value} is negative; episode seeds start at 0")


class SimulatedCell:
    """The table behind the topics. Keeps the twins that were asked for lately."""

    def __init__(self, contract: Contract):
        self._contract = contract
        self._twins: dict[tuple[str, str, str], tuple[Domain, Twin]] = {}
        self._twin: Twin | None = None
        self.result = StepResult(False, False, 0, False)

    def reset(self, choice: EpisodeChoice) -> EpisodeEvent:
        """Start an episode and say so. Raises ConfigError for a wrong choice, TwinError without a renderer."""
        for name, value in vars(choice).items():
            check_choice(self._contract, name, value)
        twin = self._twin_for(choice)
        twin.reset(choice.seed)
        self._twin = twin
        self.result = StepResult(False, False, 0, False)
        self._target, self._gripper = self._twin.target, self._twin.observe(images=False).gripper
        return EpisodeEvent(kind="reset", task=choice.task, instruction=self._twin.instruction,
                            domain=self._twin.domain.name, seed=choice.seed,
                            variation=variation_from_text(choice.variation).text())

    def command(self, target: Pose | np.ndarray | None = None, gripper: float | None = None) -> None:
        """What the arm and the gripper shall do from now on. target: tool pose, or joint positions [7].

        Raises ValueError on a non-finite command.
        """
        if target is not None:
            if not (target.is_finite() if isinstance(target, Pose) else np.isfinite(target).all()):
                raise ValueError(f"non-finite target {target.as_array().tolist() if isinstance(target, Pose) else target}")
            self._target = target
        if gripper is not None:
            if not np.isfinite(gripper):
                raise ValueError(f"non-finite gripper command {gripper}")
            self._gripper = gripper

    def advance(self, duration_s: float) -> StepResult:
        """Simulate under the latest command, which the arm reaches at the end."""
        self.drive(duration_s)
        return self.pass_time(duration_s)

    def drive(self, ramp_s: float) -> None:
        """Hand the latest command to the arm, which gets there linearly in `ramp_s` as time passes."""
        self._require_episode().command(self._target, self._gripper, ramp_s)

    def pass_time(self, duration_s: float) -> StepResult:
        """Simulate under what was handed to the arm last."""
        self.result = self._require_episode().simulate(duration_s)
        return self.result

    def observe(self, images: bool) -> Observation:
        return self._require_episode().observe(images)

    @property
    def camera_views(self) -> dict[str, CameraView]:
        """Where each of the contract's cameras is in this episode."""
        twin = self._require_episode()
        return {name: twin.camera_view(name) for name in self._contract.cameras}

    def scene_text(self, stamp_ns: int) -> str:
        """JSON of the privileged state, with the stamp of the observation it belongs to and the episode's flags."""
        state = json.loads(self._require_episode().scene_state().to_json())
        return json.dumps(state | {"stamp_ns": stamp_ns} | self._flags())

    def status_text(self) -> str:
        """JSON with success, failure, done, steps, and how many targets were out of the arm's reach."""
        return json.dumps(self._flags() | {"unreached_targets": self.unreached_targets})

    @property
    def unreached_targets(self) -> int:
        """Commanded targets of this episode that were out of the arm's reach; the arm held still for those."""
        return self._twin.unreached_targets if self._twin else 0

    def close(self) -> None:
        for _, twin in self._twins.values():
            twin.close()
        self._twins.clear()
        self._twin = None

    def _twin_for(self, choice):
        """A kept twin, or a new one; also when the domain's file says something else than it did before."""
        domain = load_domain(choice.domain)
        key = (choice.task, choice.domain, choice.variation)
        kept, twin = self._twins.get(key, (None, None))
        if kept != domain:
            outdated = twin
            twin = Twin(self._contract, choice.task, domain, variation=variation_from_text(choice.variation))
            if outdated is not None:
                outdated.close()
        self._twins.pop(key, None)
        self._twins[key] = domain, twin         # the last one is the newest
        while len(self._twins) > MOST_TWINS:
            _, oldest = self._twins.pop(next(iter(self._twins)))
            oldest.close()
        return twin

    def _require_episode(self):
        if self._twin is None:
            raise TwinError("the cell has no episode yet; reset it first")
        return self._twin

    def _flags(self):
        result = self.result
        return {"success": result.success, "failure": result.failure, "done": result.done, "steps": result.steps}
