"""Recorded commands played again in a twin: how far does the simulated arm get from the recorded one? No ROS, no bags.

The twin starts where the recorded episode started and receives every command at the time at which the arm got it, to one
physics step; a command is held until the next one. What differs then is the physics gap of the domain. A constant part of
it in time, the lag, is what ArmSpec.delay_s of the domain can take up.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import DataError
from rlco_common.pose import Pose, pose_from_array, rotation_angle
from rlco_sim_bridge.domain import Domain
from rlco_sim_bridge.environment import PHYSICS_RATE_HZ
from rlco_sim_bridge.scene_state import StepResult
from rlco_sim_bridge.twin import Twin
from rlco_sim_bridge.variation import NOMINAL, Variation

NO_SEED = -1            # of an episode on a real table
SCENE_OF_NO_SEED = 0    # the scene that stands in for the real table's
MOST_LAG_S = 0.5
LEAST_MOTION_M = 0.005  # along a track; with less there is no lag to be seen
LEAST_TIME_S = 0.8
_PERIOD_NS = 1_000_000_000 // PHYSICS_RATE_HZ


@dataclass(frozen=True)
class Track:
    """A signal over time. stamps_ns: [N] int64, never going back. values: [N, D] float64."""

    stamps_ns: np.ndarray
    values: np.ndarray

    def __post_init__(self):
        stamps_ns = np.asarray(self.stamps_ns, dtype=np.int64)
        values = np.asarray(self.values, dtype=np.float64)
        complete = len(values) == len(stamps_ns) > 0 and np.isfinite(values).all()
        if not complete or (np.diff(stamps_ns) < 0).any():
            raise DataError("a track needs at least one sample, one stamp for each, finite values, and stamps that never go "
                            "back")
        object.__setattr__(self, "stamps_ns", stamps_ns)
        object.__setattr__(self, "values", values.reshape(len(values), -1))

    def at(self, stamps_ns: np.ndarray) -> np.ndarray:
        """[M, D] linear interpolation; before the first and after the last sample that sample."""
        return np.stack([np.interp(stamps_ns, self.stamps_ns, column) for column in self.values.T], axis=1)


@dataclass(frozen=True)
class Recording:
    """One recorded episode. All stamps on one clock; poses [*, 7] in the base frame; openings [*, 1] in [0, 1].

    targets, gripper: commands. ee_pose, opening: measured. start_ns: when the episode's initial state stood; the first
    sample of all when it is None. seed: NO_SEED on a real table.
    """

    task: str
    seed: int
    targets: Track
    gripper: Track
    ee_pose: Track
    opening: Track
    start_ns: int | None = None

    @property
    def begin_ns(self) -> int:
        tracks = (self.targets, self.gripper, self.ee_pose)
        return min(int(track.stamps_ns[0]) for track in tracks) if self.start_ns is None else self.start_ns

    @property
    def end_ns(self) -> int:
        return max(int(self.ee_pose.stamps_ns[-1]), int(self.targets.stamps_ns[-1]))


@dataclass(frozen=True)
class Lag:
    """lag_s: how much later the second signal does what the first does. correlation: of their velocities then, [-1, 1]."""

    lag_s: float
    correlation: float


@dataclass(frozen=True)
class Replay:
    """What the twin did with the commands.

    simulated, opening: every physics step from the initial state on, as in Recording. position_error_m,
    rotation_error_rad: [K] at the stamps of the measured ee_pose. opening_error: at those of the measured opening.
    lag: of the measured behind the simulated motion; None without motion. pictures: stamp -> camera -> RGB image.
    result, unreached_targets: how the episode ended in the twin. instruction: of the twin's scene.
    """

    recording: Recording
    domain: str
    instruction: str
    simulated: Track
    opening: Track
    position_error_m: np.ndarray
    rotation_error_rad: np.ndarray
    opening_error: np.ndarray
    lag: Lag | None
    pictures: dict[int, dict[str, np.ndarray]]
    result: StepResult
    unreached_targets: int

    def summary(self) -> dict[str, float]:
        """Root mean square, largest and last errors, and the lag (NaN when unknown); SI units by name."""
        errors = {"position_m": self.position_error_m, "rotation_rad": self.rotation_error_rad,
                  "opening": self.opening_error}
        figures = {f"{kind}_{name}": float(reduce(values)) for name, values in errors.items()
                   for kind, reduce in (("rms", _rms), ("largest", np.max), ("last", lambda values: values[-1]))}
        return figures | {"lag_s": self.lag.lag_s if self.lag else math.nan}


def replay(contract: Contract, recording: Recording, domain: str | Domain = "twin", *, variation: Variation = NOMINAL,
           pictures_ns: Iterable[int] = ()) -> Replay:
    """Play a recording in a new twin of `domain`. pictures_ns: when to look; to the next physics step.

    Without a seed (a real table) the arm starts at the measured pose, over the scene of SCENE_OF_NO_SEED.
    Raises ConfigError for an unknown task or domain.
    """
    wanted = sorted(int(stamp) for stamp in pictures_ns)
    twin = Twin(contract, recording.task, domain, variation=variation, render=bool(wanted))
    try:
        if recording.seed == NO_SEED:
            twin.reset(SCENE_OF_NO_SEED, tool=pose_from_array(recording.ee_pose.at(np.array([recording.begin_ns]))[0]))
        else:
            twin.reset(recording.seed)
        simulated, opening, pictures, result = _play(contract, recording, twin, wanted)
        return _compare(recording, twin, simulated, opening, pictures, result)
    finally:
        twin.close()


def best_lag(reference: Track, delayed: Track, most_s: float = MOST_LAG_S) -> Lag | None:
    """The constant time by which `delayed` follows `reference` ([N, >= 3], positions first), by cross-correlation.

    Velocities are correlated, over the time that both cover, so that a wrong gain or a constant offset does not matter.
    Lags up to `most_s`, and up to half of that time, either way. None when one of the two does not move, or when they have
    less than LEAST_TIME_S in common.
    """
    start = max(reference.stamps_ns[0], delayed.stamps_ns[0])
    grid = np.arange(start, min(reference.stamps_ns[-1], delayed.stamps_ns[-1]) + 1, _PERIOD_NS)
    if len(grid) <= LEAST_TIME_S * PHYSICS_RATE_HZ:
        return None
    first, second = (np.diff(track.at(grid)[:, :3], axis=0) for track in (reference, delayed))
    if min(np.linalg.norm(moves, axis=1).sum() for moves in (first, second)) < LEAST_MOTION_M:
        return None
    most = min(round(most_s * PHYSICS_RATE_HZ), len(first) // 2)
    scores = np.array([_correlation(first[max(0, -lag) : len(first) - max(0, lag)],
                                    second[max(0, lag) : len(second) - max(0, -lag)]) for lag in range(-most, most + 1)])
    best = int(scores.argmax())
    return Lag((best - most + _parabola_top(scores, best)) / PHYSICS_RATE_HZ, float(scores[best]))


def _play(contract, recording, twin, wanted):
    begin_ns = recording.begin_ns
    commands = _commands_by_step(contract, recording)
    last = max(_step_of(recording.end_ns, begin_ns), *commands)
    poses, openings, pictures, wanted = [], [], {}, list(wanted)
    target, gripper, result = twin.target, twin.observe(images=False).gripper, StepResult(False, False, 0, False)
    for step in range(last + 1):
        observation = twin.observe(images=False)
        poses.append(observation.ee_pose.as_array())
        openings.append([observation.gripper])
        while wanted and _step_of(wanted[0], begin_ns) <= step:
            pictures[wanted.pop(0)] = twin.observe().images
        if step in commands:
            new_target, new_gripper, ramp_s = commands[step]
            target = target if new_target is None else new_target
            gripper = gripper if new_gripper is None else new_gripper
            twin.command(target, gripper, ramp_s)
        if step < last:
            result = twin.simulate(1.0 / PHYSICS_RATE_HZ)
    stamps_ns = begin_ns + _PERIOD_NS * np.arange(last + 1)
    return Track(stamps_ns, _on_one_side(np.array(poses))), Track(stamps_ns, np.array(openings)), pictures, result


def _commands_by_step(contract, recording) -> dict[int, tuple[Pose | None, float | None, float]]:
    """Physics step -> (target, opening, ramp): what changes there, and how long the arm has until the next change."""
    begin_ns = recording.begin_ns
    targets = {_step_of(stamp, begin_ns): pose_from_array(value)
               for stamp, value in zip(recording.targets.stamps_ns, recording.targets.values, strict=True)}
    openings = {_step_of(stamp, begin_ns): float(value[0])
                for stamp, value in zip(recording.gripper.stamps_ns, recording.gripper.values, strict=True)}
    steps = sorted(targets.keys() | openings.keys())
    following = [*steps[1:], steps[-1] + PHYSICS_RATE_HZ]
    longest_s = contract.control_period_s       # what the bridge gives a lone command
    return {step: (targets.get(step), openings.get(step), min((after - step) / PHYSICS_RATE_HZ, longest_s))
            for step, after in zip(steps, following, strict=True)}


def _step_of(stamp_ns, begin_ns) -> int:
    return max(0, round((int(stamp_ns) - begin_ns) / _PERIOD_NS))


def _compare(recording, twin, simulated, opening, pictures, result):
    measured = recording.ee_pose
    there = simulated.at(measured.stamps_ns)
    return Replay(
        recording=recording, domain=twin.domain.name, instruction=twin.instruction, simulated=simulated, opening=opening,
        position_error_m=np.linalg.norm(there[:, :3] - measured.values[:, :3], axis=1),
        rotation_error_rad=np.array([rotation_angle(pose_from_array(a), pose_from_array(b))
                                     for a, b in zip(there, measured.values, strict=True)]),
        opening_error=np.abs(opening.at(recording.opening.stamps_ns) - recording.opening.values)[:, 0],
        lag=best_lag(Track(measured.stamps_ns, there), measured), pictures=pictures, result=result,
        unreached_targets=twin.unreached_targets)


def _on_one_side(poses: np.ndarray) -> np.ndarray:
    """[N, 7] poses with quaternion signs such that neighbours can be interpolated (q and -q are the same rotation)."""
    quaternions = poses[:, 3:]
    flips = (quaternions[1:] * quaternions[:-1]).sum(axis=1) < 0
    signs = np.where(np.concatenate([[0], np.cumsum(flips)]) % 2, -1.0, 1.0)
    return np.concatenate([poses[:, :3], quaternions * signs[:, None]], axis=1)


def _correlation(a, b) -> float:
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def _parabola_top(scores, best) -> float:
    """Where between samples the maximum of a parabola through the best one and its neighbours lies, [-0.5, 0.5]."""
    if not 0 < best < len(scores) - 1:
        return 0.0
    left, top, right = scores[best - 1 : best + 2]
    bend = left - 2 * top + right
    return float(0.5 * (left - right) / bend) if bend < 0 else 0.0


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
