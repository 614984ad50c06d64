"""The audit figures of one episode, and what they mean: go, look at it, or no-go, each with its reason. Pure."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rlco_common.contract import Contract
from rlco_common.episode import EpisodeMetadata
from rlco_trainer.dataset.align import Alignment, RecordedStreams, Samples
from rlco_trainer.dataset.checks import GripperCheck, bias_at_rest, gripper_check, longest_frozen_s, saturation
from rlco_trainer.dataset.episode import idle_ticks

FROZEN_S, FROZEN_TRAVEL_M = 1.0, 0.02
MAX_REFUSED_SHARE = 0.1
LIMIT_TOLERANCE = 1e-3          # float32 rounding of a commanded action at the contract's limit
LOOK_IDLE_SHARE = 0.6
LOOK_SATURATED_SHARE = 0.6
LOOK_AGE_SHARE = 0.75           # of the age that the contract allows
LOOK_BIAS_M, LOOK_BIAS_RAD = 0.02, 0.1

Level = Literal["no-go", "look"]


@dataclass(frozen=True)
class StreamFigures:
    """One topic of a bag, in the order of recording."""

    count: int
    rate_hz: float
    largest_gap_s: float
    unstamped: int
    backwards: int


@dataclass(frozen=True)
class EpisodeFigures:
    """What is measured on one episode before idle ticks go. None: could not be measured.

    over_limit: the greatest action over the contract's limit per tick, 1 is at the limit. age_p95_s: per camera and for
    the state. frozen_s: per camera, the longest still image while the tool moved. bias: see bias_at_rest. recorder: reasons
    of the recorder's own no-go, empty when it said go, None when it said nothing.
    """

    ticks: int
    duration_s: float
    refused: int
    refused_reason: str
    idle_share: float
    saturation: dict[str, float]
    over_limit: dict[str, float]
    age_p95_s: dict[str, float]
    frozen_s: dict[str, float]
    gripper: GripperCheck | None = None
    bias: dict[str, float] | None = None
    streams: dict[str, StreamFigures] = field(default_factory=dict)
    recorder: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Finding:
    """Why an episode should not be used (no-go), or what somebody should look at. breaks_contract: no option takes it."""

    level: Level
    text: str
    breaks_contract: bool = False


def figures_of_bag(contract: Contract, streams: RecordedStreams, alignment: Alignment,
                   recorder: tuple[str, ...] | None) -> EpisodeFigures:
    """The figures of an aligned bag, from its full-rate streams."""
    episode = alignment.episode
    positions = np.array([pose.position for pose in streams.ee_pose.values])
    frozen = {
        name: longest_frozen_s(_seconds(quality.repeated), np.array(quality.repeated.values, bool),
                               _seconds(streams.ee_pose), positions, FROZEN_TRAVEL_M)
        for name, quality in ((name, streams.quality[camera.topic]) for name, camera in contract.cameras.items())}
    openings = _openings(contract, streams.joint_states)
    return EpisodeFigures(
        ticks=len(episode), duration_s=_duration_s(contract, alignment.ticks_ns), refused=len(alignment.refused),
        refused_reason=alignment.refused[0][1] if alignment.refused else "",
        **action_figures(contract, episode.actions, _crowding(contract, streams.targets, episode.stamps_ns)),
        age_p95_s=age_figures(contract, episode.ages_s), frozen_s=frozen,
        gripper=gripper_check(_seconds(streams.gripper), np.array(streams.gripper.values), _seconds(streams.joint_states),
                              openings),
        bias=bias_at_rest(streams.targets.stamps_ns, streams.targets.values, streams.ee_pose.stamps_ns,
                          streams.ee_pose.values),
        streams={topic: StreamFigures(quality.count, quality.rate_hz, quality.largest_gap_s, quality.unstamped,
                                      quality.backwards) for topic, quality in streams.quality.items()},
        recorder=recorder,
    )


def action_figures(contract: Contract, actions: np.ndarray, crowding: np.ndarray | None = None) -> dict:
    """idle_share, saturation and over_limit of actions [T, 7]. crowding: see _crowding; None for exact ticks."""
    normalised = np.abs(contract.action.normalise(actions.astype(np.float64)))
    if crowding is not None:
        normalised[:, :6] /= crowding[:, None]
    return {"idle_share": float(idle_ticks(actions).mean()), "saturation": saturation(contract, actions),
            "over_limit": dict(zip(contract.action.names, normalised.max(axis=0).tolist(), strict=True))}


def _crowding(contract: Contract, targets: Samples, ticks_ns: np.ndarray) -> np.ndarray:
    """[T], how many times more commands than usual fell into each tick, at least 1.

    The gate limits every one of its steps. On a busy machine its timer is late and then catches up, and a tick that holds
    one step more than the others is no sign that somebody else commanded the arm.
    """
    stamps_ns = np.array(targets.stamps_ns, np.int64)
    held = np.searchsorted(stamps_ns, ticks_ns + contract.control_period_ns) - np.searchsorted(stamps_ns, ticks_ns)
    interval_ns = float(np.median(np.diff(stamps_ns))) if len(stamps_ns) > 1 else contract.control_period_ns
    usual = max(round(contract.control_period_ns / max(interval_ns, 1.0)), 1)
    return np.maximum(held / usual, 1.0)


def age_figures(contract: Contract, ages_s: np.ndarray) -> dict[str, float]:
    """95th percentile of the age at the tick, per camera and for the state, from [T, cameras + 1]."""
    return {name: float(np.quantile(column, 0.95)) for name, column in zip((*contract.cameras, "state"), ages_s.T, strict=True)}


def findings(contract: Contract, metadata: EpisodeMetadata, figures: EpisodeFigures,
             allow_unstamped: bool = False) -> list[Finding]:
    """Everything that is wrong or odd, worst first."""
    found = [*_stamp_findings(figures, allow_unstamped), *_tick_findings(contract, figures),
             *_gripper_findings(figures.gripper), *_look_findings(contract, metadata, figures)]
    found += [Finding("no-go", f"the recorder said no-go: {reason}") for reason in figures.recorder or ()]
    return sorted(found, key=lambda finding: finding.level != "no-go")


def _stamp_findings(figures: EpisodeFigures, allow_unstamped: bool):
    for topic, stream in figures.streams.items():
        if stream.unstamped:
            yield Finding("look" if allow_unstamped else "no-go",
                          f"{topic}: {stream.unstamped} of {stream.count} messages have no stamp, the time of recording stands "
                          "for it; let the driver fill header.stamp, or give --allow-unstamped")
        if stream.backwards:
            yield Finding("no-go", f"{topic}: {stream.backwards} stamps go back in time; check that one driver publishes and "
                                   "that its clock is not set meanwhile")


def _tick_findings(contract: Contract, figures: EpisodeFigures):
    over = [name for name, value in figures.over_limit.items() if value > 1 + LIMIT_TOLERANCE]
    if over:
        yield Finding("no-go", f"commanded {', '.join(over)} beyond the contract's limit per tick (up to "
                               f"{max(figures.over_limit.values()):.2f} times); was the gate bypassed?", True)
    share = figures.refused / (figures.ticks + figures.refused)
    if figures.refused:
        yield Finding("no-go" if share > MAX_REFUSED_SHARE else "look",
                      f"{figures.refused} ticks ({share:.0%}) are unusable: {figures.refused_reason}")
    if figures.idle_share >= 1.0:
        yield Finding("no-go", "every tick is idle")
    for camera, seconds in figures.frozen_s.items():
        if seconds >= FROZEN_S:
            yield Finding("no-go", f"camera {camera} was frozen for {seconds:.1f} s while the arm moved; check its driver and "
                                   "cable")


def _gripper_findings(check: GripperCheck | None):
    if check is None or check.verdict in ("follows", "not exercised"):
        return
    ranges = "commanded {:.2f} to {:.2f}, measured {:.2f} to {:.2f}".format(*check.commanded, *check.measured)
    advice = {"inverted": "the gripper is inverted; 0 is closed and 1 is open, swap gripper_closed and gripper_open in the "
                          "contract or fix the driver",
              "does not move": "the gripper does not move; check its power, its joint name and its command topic",
              "does not follow": "the gripper does not follow its command",
              "opens too little": "the gripper does not open as far as the contract says; check gripper_open"}
    inverted = check.verdict == "inverted"
    yield Finding("no-go" if inverted else "look", f"{advice[check.verdict]} ({ranges})", inverted)


def _look_findings(contract: Contract, metadata: EpisodeMetadata, figures: EpisodeFigures):
    if LOOK_IDLE_SHARE <= figures.idle_share < 1.0:
        yield Finding("look", f"{figures.idle_share:.0%} of the ticks are idle; they are dropped")
    if figures.saturation["any"] >= LOOK_SATURATED_SHARE:
        yield Finding("look", f"{figures.saturation['any']:.0%} of the ticks are commanded at the limit; a slower operator, or "
                              "a larger limit, gives finer actions")
    for name, age_s in figures.age_p95_s.items():
        allowed = contract.cameras[name].max_age_s if name in contract.cameras else contract.topics.state_max_age_s
        if age_s > LOOK_AGE_SHARE * allowed:
            yield Finding("look", f"{name} is up to {age_s:.3f} s old at the tick (95 %), {allowed:g} s are allowed")
    for name, value in (figures.bias or {}).items():
        limit, unit = (LOOK_BIAS_M, "m") if name in contract.action.names[:3] else (LOOK_BIAS_RAD, "rad")
        if abs(value) > limit:
            yield Finding("look", f"at rest the arm stands {value:+.3f} {unit} off its target in {name[1:]}; calibrate the arm "
                                  "or its controller")
    if not _worded_by(contract, metadata):
        yield Finding("look", f"the instruction '{metadata.instruction}' is not one of task {metadata.task} in the contract")


def _worded_by(contract: Contract, metadata: EpisodeMetadata) -> bool:
    """The instruction is one of the task's templates with its slots filled."""
    task = contract.tasks.get(metadata.task)
    if task is None:
        return False
    wordings = set(task.instructions)
    for slot, values in task.slots.items():
        wordings = {text.replace(f"{{{slot}}}", value) for text in wordings for value in values}
    return metadata.instruction in wordings


def _openings(contract: Contract, joint_states: Samples) -> np.ndarray:
    joint = contract.robot.gripper_joint
    return np.array([contract.robot.gripper_opening(positions[names.index(joint)]) for names, positions in joint_states.values])


def _seconds(samples: Samples) -> np.ndarray:
    return np.array(samples.stamps_ns, np.int64) * 1e-9


def _duration_s(contract: Contract, stamps_ns: list[int]) -> float:
    return float(stamps_ns[-1] - stamps_ns[0]) * 1e-9 + contract.control_period_s
