"""Checks a twin's promises, in the manner of gymnasium's check_env: for whoever adds a task, a domain or a layout."""

from collections.abc import Callable, Iterator

import numpy as np

from rlco_common.errors import TwinError
from rlco_common.observation import Observation, encode_proprioception
from rlco_sim_bridge.scene_state import StepResult, scene_state_from_json
from rlco_sim_bridge.twin import Twin

TICKS = 5                   # of the motions that are compared
START_TOLERANCE_M = 0.002   # between the tool's start pose and the layout's
ACTION_SHARE = 0.6          # of the contract's limits, for random motions
HOLD = np.array([0.0] * 6 + [1.0])      # the action that moves nothing
_BOTH, _SUCCESS, _FAILURE, _NEITHER = (True, True), (True, False), (False, True), (False, False)


class BrokenPromises(TwinError):
    """A twin does not keep its promises; `broken` has a line for each."""

    def __init__(self, what: str, broken: list[str]):
        self.broken = broken
        super().__init__(f"{what} breaks {len(broken)} promise(s):\n  " + "\n  ".join(broken))


def check_twin(make: Callable[[], Twin], seed: int = 0) -> None:
    """Raise BrokenPromises unless the twins that `make` returns, each time a fresh one, keep every promise of their interface.

    Takes about a second without rendering: it makes two twins and runs a few short episodes and one to its time limit.
    """
    twin, fresh = make(), make()
    try:
        broken = _lines(_before_the_first_episode, fresh)
        for check in (_observations, _initial_state, _instructions, _actions, _verdicts, _end, _clock, _pictures):
            broken += _lines(check, twin, seed)
        broken += _lines(_determinism, twin, fresh, seed)
    finally:
        twin.close()
        fresh.close()
    if broken:
        raise BrokenPromises(f"twin of {twin.task.name} in domain {twin.domain.name}", broken)


def _lines(check, *arguments) -> list[str]:
    try:
        return list(check(*arguments))
    except Exception as error:
        return [f"{check.__name__.strip('_').replace('_', ' ')}: {error!r}"]


def _random_actions(twin: Twin, seed: int, ticks: int = TICKS) -> np.ndarray:
    action = twin.contract.action
    return np.random.default_rng(seed).uniform(action.low, action.high, (ticks, action.dim)) * ACTION_SHARE


def _raises(error: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except error:
        return True
    return False


def _before_the_first_episode(twin: Twin) -> Iterator[str]:
    for name, call in {"step": lambda: twin.step(HOLD), "instruction": lambda: twin.instruction,
                       "scene_state": twin.scene_state}.items():
        if not _raises(TwinError, call):
            yield f"before the first reset, {name} must raise TwinError"


def _observations(twin: Twin, seed: int) -> Iterator[str]:
    """Shapes and types as the contract has them, finite, at the start and in motion."""
    for moment, observation in (("at the reset", twin.reset(seed)), ("after a step", _moved(twin, seed))):
        yield from (f"observation {moment}: {line}" for line in _wrong(twin, observation))
    if twin.observe(images=False).images:
        yield "observe(images=False) must have no images"


def _moved(twin: Twin, seed: int) -> Observation:
    twin.step(_random_actions(twin, seed)[0])
    return twin.observe()


def _wrong(twin: Twin, observation: Observation) -> Iterator[str]:
    contract = twin.contract
    expected = set(contract.cameras) if twin.renders else set()
    if set(observation.images) != expected:
        yield f"images of {sorted(observation.images)}, expected {sorted(expected)}"
    for name in expected & set(observation.images):
        image = observation.images[name]
        if image.dtype != np.uint8 or image.shape != contract.cameras[name].shape:
            yield f"{name} is {image.dtype} {list(image.shape)}, expected uint8 {list(contract.cameras[name].shape)}"
    joints = observation.joint_positions
    if joints.shape != (len(contract.robot.arm_joints),) or not np.isfinite(joints).all():
        yield f"joint_positions must be {len(contract.robot.arm_joints)} finite numbers, got {joints.tolist()}"
    if not observation.ee_pose.is_finite():
        yield f"ee_pose must be finite with a unit quaternion, got {observation.ee_pose.as_array().tolist()}"
    if not 0.0 <= observation.gripper <= 1.0:
        yield f"gripper must be within 0 and 1, got {observation.gripper}"
    proprioception = encode_proprioception(contract, observation)
    if proprioception.shape != (len(contract.proprioception_names),) or not np.isfinite(proprioception).all():
        yield f"proprioception must be {len(contract.proprioception_names)} finite numbers, got {proprioception.tolist()}"


def _initial_state(twin: Twin, seed: int) -> Iterator[str]:
    """What the task draws for the seed, which no domain has a part in; other seeds differ."""
    for number in range(seed, seed + 3):
        drawn = twin.task.sample(twin.contract.task(twin.task.name), number, twin.variation)
        twin.reset(number)
        scene = twin.scene_state()
        if scene.named != drawn.named or twin.instruction != drawn.instruction:
            yield f"seed {number}: names '{scene.named}', says '{twin.instruction}'; the task drew '{drawn.instruction}'"
        for name, pose in drawn.objects.items():
            if name not in scene.objects or np.abs(scene.objects[name].as_array() - pose.as_array()).max() > 1e-5:
                yield f"seed {number}: {name} is not where the task put it, so domains may differ"
        off = np.abs(scene.tool.position - drawn.tool.position).max()
        if not off <= START_TOLERANCE_M:
            yield f"seed {number}: the tool starts {1000 * off:.1f} mm away from where the task put it"
        if not np.array_equal(twin.contract.limits.clip_position(drawn.tool.position), drawn.tool.position):
            yield f"seed {number}: the tool starts outside of the workspace, at {drawn.tool.position.tolist()}"
        if scene_state_from_json(scene.to_json()).to_json() != scene.to_json():
            yield f"seed {number}: the scene state does not survive its JSON"
    if len({_state_after_reset(twin, number) for number in range(seed, seed + 5)}) < 5:
        yield "different seeds must give different initial states"


def _state_after_reset(twin: Twin, seed: int) -> str:
    twin.reset(seed)
    return twin.scene_state().to_json()


def _instructions(twin: Twin, seed: int) -> Iterator[str]:
    spec = twin.contract.task(twin.task.name)
    known = {template.format(**dict(zip(spec.slots, values, strict=True)))
             for template in spec.instructions for values in _combinations(list(spec.slots.values()))}
    for number in range(seed, seed + 5):
        twin.reset(number)
        if twin.instruction not in known:
            yield f"seed {number}: '{twin.instruction}' is from no template of the contract"


def _combinations(slots):
    return [()] if not slots else [(value, *rest) for value in slots[0] for rest in _combinations(slots[1:])]


def _actions(twin: Twin, seed: int) -> Iterator[str]:
    """Clipped to the limits; a non-finite one is refused and changes nothing."""
    states = []
    for action in (twin.contract.action.high, 10.0 * twin.contract.action.high):
        twin.reset(seed)
        twin.step(action)
        states.append(twin.scene_state().to_json())
    if states[0] != states[1]:
        yield "an action beyond the contract's limits must do what the limits do"
    for value in (np.nan, np.inf):
        if not _raises(ValueError, lambda value=value: twin.step(np.full(twin.contract.action.dim, value))):
            yield f"an action of {value} must raise ValueError"
        elif twin.scene_state().to_json() != states[1]:
            yield f"an action of {value} was refused, but changed the scene"


def _verdicts(twin: Twin, seed: int) -> Iterator[str]:
    """Neither at the start; never both; the first one stays. Told by a judge with a script in place of the task's."""
    twin.reset(seed)
    result = twin.step(HOLD)
    if result.success or result.failure or result.done:
        yield f"doing nothing for a tick must neither end, solve nor fail an episode; got {result}"
    for script, expected in (((_NEITHER, _BOTH, _FAILURE, _NEITHER), (_NEITHER, _SUCCESS, _SUCCESS, _SUCCESS)),
                             ((_NEITHER, _FAILURE, _SUCCESS, _NEITHER), (_NEITHER, _FAILURE, _FAILURE, _FAILURE))):
        results = _judged_by(twin, seed, script)
        if [(result.success, result.failure) for result in results] != list(expected):
            yield (f"success and failure must exclude each other and stay as first met: the task judged {list(script)}, "
                   f"the twin said {[(result.success, result.failure) for result in results]}")
        if [result.done for result in results] != [success or failure for success, failure in expected]:
            yield "done must be true from the first success or failure on"


def _judged_by(twin: Twin, seed: int, script) -> list[StepResult]:
    """The results of an episode in which nothing moves and the judge says what the script says."""
    verdicts = iter(script)
    twin.reset(seed)
    twin.task.judge = lambda *_: tuple(map(np.bool_, next(verdicts, _NEITHER)))
    try:
        return [twin.step(HOLD) for _ in script]
    finally:
        del twin.task.judge     # the class's own again


def _end(twin: Twin, seed: int) -> Iterator[str]:
    twin.reset(seed)
    results = [twin.step(HOLD) for _ in range(twin.max_steps)]
    if any(result.success or result.failure for result in results):
        yield "doing nothing must not solve or fail the task"
    elif [(result.steps, result.done) for result in results] != [
            (tick, tick == twin.max_steps) for tick in range(1, twin.max_steps + 1)]:
        yield f"steps must count up, and done come at {twin.max_steps}; the last result was {results[-1]}"
    twin.reset(seed)
    if (result := twin.step(HOLD)).done or result.steps != 1:
        yield f"after a reset an episode must begin anew; got {result}"


def _clock(twin: Twin, seed: int) -> Iterator[str]:
    stamps = [twin.reset(seed).stamp_ns]
    for action in _random_actions(twin, seed):
        twin.step(action)
        stamps.append(twin.observe(images=False).stamp_ns)
    if stamps != [tick * twin.contract.control_period_ns for tick in range(TICKS + 1)]:
        yield f"stamps must start at 0 and grow by the control period, got {stamps}"


def _pictures(twin: Twin, seed: int) -> Iterator[str]:
    """A picture stays as it was taken, and shows what moved; without a renderer there is none."""
    twin.reset(seed)
    if not twin.renders:
        if not _raises(TwinError, twin.picture):
            yield "without a renderer, picture must raise TwinError"
        return
    first = twin.observe().images
    kept = {name: image.copy() for name, image in first.items()}
    again = twin.observe().images
    for action in _random_actions(twin, seed):
        twin.step(action)
    moved = twin.observe().images
    for name, image in kept.items():
        if not np.array_equal(image, again[name]):
            yield f"{name}: two pictures of one moment differ"
        if not np.array_equal(image, first[name]):
            yield f"{name}: a picture changed after it was handed out"
        if np.array_equal(image, moved[name]):
            yield f"{name}: the picture does not show the robot's motion"


def _determinism(twin: Twin, fresh: Twin, seed: int) -> Iterator[str]:
    """The same seed and actions give the same bits: after another episode, and in a fresh twin."""
    first = _trace(twin, seed)
    twin.reset(seed + 1)
    for action in _random_actions(twin, seed + 1, 3 * TICKS):
        twin.step(action)
    if _trace(twin, seed) != first:
        yield "an episode depends on the one before it"
    if _trace(fresh, seed) != first:
        yield "an episode differs in a fresh twin"


def _trace(twin: Twin, seed: int) -> list:
    """Every number and pixel of a short episode."""
    observations, results = [twin.reset(seed)], []
    for action in _random_actions(twin, seed):
        results.append(twin.step(action))
        observations.append(twin.observe())
    return [results, twin.scene_state().to_json(), [
        (seen.ee_pose.as_array().tobytes(), seen.gripper, seen.joint_positions.tobytes(), seen.stamp_ns,
         sorted((name, image.tobytes()) for name, image in seen.images.items())) for seen in observations]]
