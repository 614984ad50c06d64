"""The motion limiter: one commanded step, as a pure function of the wish, the last command, the measured pose and dt.

Limits (LimitSpec and ActionSpec of the contract) on the commanded target:

- workspace box on the position, approached no faster than it can be braked for;
- linear and angular speed, Euclidean norm;
- linear and angular acceleration, per base axis (so a full reversal of an action axis in a 20 Hz step passes);
- the action space's per-tick delta, per base axis, in proportion to dt: nobody moves faster than a policy could;
- lead of the target over the measured pose.

Inside the limits the wish is returned as it is, bit for bit: that makes the gate's targets equal the twin's. Otherwise
the wish is clipped per axis, then shortened towards *braking*, which is always allowed, until the speed limits hold; so
no combination of limits is ever exceeded.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from rlco_common.contract import Contract
from rlco_common.pose import Pose, compose_delta, delta_between

_SLACK = 1e-9   # metres per second and radians per second: rounding of differences between poses, no more


class Limit(Enum):
    """Why a wish was not followed to the letter."""

    ACTION_DELTA = "action_delta"
    WORKSPACE = "workspace"
    SPEED = "speed"
    ACCELERATION = "acceleration"
    TARGET_LEAD = "target_lead"


@dataclass(frozen=True)
class Motion:
    """A commanded pose and the velocities of the step that led to it: [3] m/s and [3] rad/s, base axes."""

    pose: Pose
    linear: np.ndarray
    angular: np.ndarray


@dataclass(frozen=True)
class Step:
    """What limit_step returns: the motion to command, and which limits changed the wish."""

    motion: Motion
    limits: frozenset[Limit]


def at_rest(pose: Pose) -> Motion:
    return Motion(pose, np.zeros(3), np.zeros(3))


def limit_step(desired: Pose, last: Motion, measured: Pose, contract: Contract, dt_s: float) -> Step:
    """The command for the next `dt_s` seconds that is nearest to `desired` and within every limit.

    A step that would end further from the measured pose than the lead allows is refused whole: the result is the last
    pose at rest, with TARGET_LEAD among the limits. `desired` and `measured` must be finite.
    """
    limits = contract.limits
    wish = delta_between(last.pose, desired) / dt_s
    box_low, box_high = _box_velocities(last.pose.position, contract, dt_s)
    linear, hit_linear = _limit_velocity(
        wish[:3], last.linear, contract.action.max_translation_m / contract.control_period_s,
        limits.max_linear_speed_m_s, limits.max_linear_acceleration_m_s2 * dt_s, box_low, box_high)
    angular, hit_angular = _limit_velocity(
        wish[3:], last.angular, contract.action.max_rotation_rad / contract.control_period_s,
        limits.max_angular_speed_rad_s, limits.max_angular_acceleration_rad_s2 * dt_s)
    hit = hit_linear | hit_angular
    if hit:
        pose = compose_delta(last.pose, np.concatenate([linear, angular]) * dt_s)
        pose = Pose(_into_box(pose.position, last.pose.position, contract), pose.quaternion)
    else:
        pose = desired
    if leads_too_far(pose, measured, contract):
        return Step(at_rest(last.pose), hit | {Limit.TARGET_LEAD})
    return Step(Motion(pose, linear, angular), hit)


def target_lead(target: Pose, measured: Pose) -> tuple[float, float]:
    """Distance (m) and angle (rad) of the target from the measured pose."""
    delta = delta_between(measured, target)
    return float(np.linalg.norm(delta[:3])), float(np.linalg.norm(delta[3:]))


def leads_too_far(target: Pose, measured: Pose, contract: Contract) -> bool:
    distance, angle = target_lead(target, measured)
    return not (distance <= contract.limits.max_target_lead_m and angle <= contract.limits.max_target_lead_rad)


def _limit_velocity(wish, last, max_axis, max_norm, max_change, box_low=-np.inf, box_high=np.inf):
    """Velocity [3] nearest to `wish` that all limits allow, and the set of limits that changed it."""
    braking = last - np.clip(last, -max_change, max_change)
    bounds = {
        Limit.ACTION_DELTA: (np.full(3, -max_axis), np.full(3, max_axis)),
        Limit.ACCELERATION: (last - max_change, last + max_change),
        Limit.WORKSPACE: (np.broadcast_to(box_low, 3), np.broadcast_to(box_high, 3)),
    }
    hit = {limit for limit, (low, high) in bounds.items()
           if (wish < low - _SLACK).any() or (wish > high + _SLACK).any()}
    low = np.minimum(np.max([low for low, _ in bounds.values()], axis=0), braking)
    high = np.maximum(np.min([high for _, high in bounds.values()], axis=0), braking)
    velocity = np.clip(wish, low, high) if hit else wish
    if np.linalg.norm(velocity) > max_norm + _SLACK:
        hit.add(Limit.SPEED)
        velocity = braking + _fraction_within(braking, velocity - braking, max_norm) * (velocity - braking)
    return velocity, frozenset(hit)


def _fraction_within(start, direction, radius) -> float:
    """Largest f in [0, 1] with |start + f * direction| <= radius; 0 when `start` itself is on or beyond the radius."""
    a, b, c = direction @ direction, start @ direction, start @ start - radius * radius
    if c >= 0.0 or a == 0.0:
        return 0.0
    return float(np.clip((-b + np.sqrt(b * b - a * c)) / a, 0.0, 1.0))


def _box_velocities(position, contract, dt_s):
    """Per axis, the lowest and highest velocity of this step after which braking still ends inside the workspace."""
    limits = contract.limits
    change = limits.max_linear_acceleration_m_s2 * dt_s
    low, high = _reach(position, contract)
    return -_fastest(position - low, change, dt_s), _fastest(high - position, change, dt_s)


def _fastest(distance, change, dt_s):
    """Highest speed v with dt * (v + (v - change) + (v - 2 change) + ...) <= distance, the discrete braking path."""
    steps = np.floor((np.sqrt(1.0 + 8.0 * distance / (dt_s * change)) - 1.0) / 2.0)
    return (distance / dt_s + change * steps * (steps + 1.0) / 2.0) / (steps + 1.0)


def _reach(position, contract):
    """The workspace box, widened to hold `position`: from outside one may only come in."""
    limits = contract.limits
    return np.minimum(limits.workspace_min_m, position), np.maximum(limits.workspace_max_m, position)


def _into_box(position, last_position, contract):
    return np.clip(position, *_reach(last_position, contract))
