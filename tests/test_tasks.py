"""The tasks without a simulator: initial states, instructions, success and failure, on numpy arrays and torch tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlco_common.contract import load_contract
from rlco_common.errors import ConfigError
from rlco_sim_bridge.domain import load_domain
from rlco_sim_bridge.tasks import TASKS, load_task
from rlco_sim_bridge.tasks.base import Snapshot, yaw_quaternion
from rlco_sim_bridge.tasks.drawers import MAX_TRAVEL_M
from rlco_sim_bridge.tasks.pick_place import CONTAINER
from rlco_sim_bridge.variation import NOMINAL, Variation, variation_from_text

CONTRACT = load_contract()
SEEDS = range(400)


def sampled(name, variation=NOMINAL, seeds=SEEDS):
    task = load_task(name)
    return task, [task.sample(CONTRACT.task(name), seed, variation) for seed in seeds]


def moment(task, state, **changes):
    """A Snapshot of an initial state with the gripper open; `changes` replace arrays, or positions by body name."""
    names = list(task.bodies)
    position = np.array([state.objects[name].position if name in state.objects else [0, 0, -0.6] for name in names])
    quaternion = np.array([state.objects[name].quaternion if name in state.objects else [0, 0, 0, 1.0] for name in names])
    for name in [name for name in changes if name in names]:
        position[names.index(name)] = changes.pop(name)
    return replace(Snapshot(position.reshape(-1, 3), quaternion.reshape(-1, 4), state.tool.position, np.float64(1.0),
                            np.float64(state.travel_m)), **changes)


def judged(task, state, now):
    """(success, failure), judged on numpy arrays and on a batch of three torch copies; both must agree."""
    names = list(task.bodies)
    named = np.array([name == state.named for name in names], dtype=bool)
    in_play = np.array([name in state.objects for name in names], dtype=bool)
    start = moment(task, state)
    single = tuple(map(bool, task.judge(start, now, named, in_play)))

    def batch(value):
        return torch.tensor(np.array([value] * 3))

    batched = task.judge(*(Snapshot(*map(batch, vars(snapshot).values())) for snapshot in (start, now)), batch(named),
                         batch(in_play))
    assert [flag.tolist() for flag in batched] == [[single[0]] * 3, [single[1]] * 3]
    return single


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_wordings_limits_and_colours(name):
    spec = CONTRACT.task(name)
    task = load_task(name)
    assert len(spec.instructions) >= 3
    assert spec.max_steps <= 80
    parts = [part for body in task.bodies.values() for part in body.parts]
    parts += [*task.drawer.cabinet, *task.drawer.drawer] if task.drawer else []
    for domain in map(load_domain, ("twin", "standin")):
        assert {part.color for part in parts} <= domain.look.objects.keys()


@pytest.mark.parametrize("name", TASKS)
def test_seeds_vary_the_start_and_the_wording_within_the_workspace(name):
    _, states = sampled(name)
    spec = CONTRACT.task(name)
    assert {template.split()[0] for template in spec.instructions} == {state.instruction.split()[0] for state in states}
    for pick in (lambda state: state.tool.position, lambda state: next(iter(state.objects.values())).position[:2]):
        assert np.std([pick(state) for state in states], axis=0).min() > 0.002
    for state in states:
        assert np.array_equal(CONTRACT.limits.clip_position(state.tool.position), state.tool.position)
        goal = load_task(name).goal(state)
        assert np.array_equal(CONTRACT.limits.clip_position(goal), goal)


def test_push_cube_varies_everything_that_language_and_sight_must_resolve():
    task, states = sampled("push_cube")
    slots = [list(state.objects).index(state.named) for state in states]
    assert min(np.bincount(slots, minlength=3)) > 80
    assert {state.named for state in states} == set(CONTRACT.task("push_cube").slots["color"])
    for state in states:
        assert state.named in state.instruction
        assert all(color == state.named or color not in state.instruction for color in state.objects)
        x = np.array([pose.position[:2] for pose in state.objects.values()])
        gaps = np.linalg.norm(x[:, None] - x[None], axis=-1)[np.triu_indices(3, 1)]
        assert gaps.min() > 1.5 * task.layout.cube_size_m


def test_pick_place_names_every_shape_and_keeps_it_clear_of_the_container():
    task, states = sampled("pick_place")
    assert {state.named for state in states} == set(task.layout.shapes)
    reach = max(np.hypot(*(np.abs(part.position[:2]) + part.size[:2])) for name, body in task.bodies.items()
                for part in body.parts if part.kind == "box" and name != CONTAINER)
    corner = 0.5 * task.layout.container.side_m * (1.0 + np.sin(task.layout.container_yaw_half_width_rad))
    for state in states:
        assert state.named.replace("_", " ") in state.instruction
        assert state.objects[state.named].position[1] - reach > state.objects[CONTAINER].position[1] + corner
    words = {name.replace("_", " ") for name in (*task.layout.shapes, *task.layout.unseen_shapes)}
    assert words == set(CONTRACT.task("pick_place").slots["object"])


def test_push_cube_tells_success_disturbance_and_failure():
    task, (state,) = sampled("push_cube", seeds=[0])
    other = next(color for color in state.objects if color != state.named)
    parked = next(color for color in task.bodies if color not in state.objects)

    def after(**moves):
        return judged(task, state, moment(task, state, **{
            color: (state.objects[color].position if color in state.objects else np.zeros(3)) + np.array([*move, 0.0])
            for color, move in moves.items()}))

    enough = task.layout.push_distance_m + 0.001
    assert after() == (False, False)
    assert after(**{state.named: (enough, 0.0)}) == (True, False)
    assert after(**{state.named: (enough - 0.002, 0.0)}) == (False, False)
    assert after(**{state.named: (-enough, 0.0)}) == (False, False)
    assert after(**{state.named: (enough, 0.0), other: (0.0, task.layout.disturbed_m + 0.001)}) == (False, False)
    assert after(**{other: (0.0, -task.layout.failure_m - 0.001)}) == (False, True)
    assert after(**{parked: (0.3, 0.0)}) == (False, False)


def test_pick_place_tells_inside_released_and_lost():
    task, (state,) = sampled("pick_place", seeds=[4])
    layout, tray = task.layout, state.objects[CONTAINER]

    def after(position, **changes):
        return judged(task, state, moment(task, state, **{state.named: np.array(position)}, **changes))

    def in_tray(x, y, z=0.03):
        angle = 2 * np.arctan2(tray.quaternion[2], tray.quaternion[3])
        cosine, sine = np.cos(angle), np.sin(angle)
        return tray.position + np.array([cosine * x - sine * y, sine * x + cosine * y, z])

    edge = layout.container.inner_half_m
    assert abs(tray.quaternion[2]) > 0.02, "this seed's tray should be turned"
    assert after(state.objects[state.named].position) == (False, False)
    assert after(in_tray(0, 0)) == (True, False)
    assert after(in_tray(edge - 0.002, edge - 0.002)) == (True, False)
    assert after(in_tray(edge + 0.002, 0)) == (False, False)
    assert after(in_tray(0, -edge - 0.002)) == (False, False)
    assert after(in_tray(0, 0, 0.07)) == (False, False)
    assert after(in_tray(0, 0), opening=np.float64(layout.released_opening - 0.05)) == (False, False)
    assert after([0.9, 0.1, 0.02]) == (False, True)
    assert after([0.6, 0.1, -0.1]) == (False, True)


def test_drawers_tell_open_shut_and_pulled_out():
    task, (state,) = sampled("open_drawer", seeds=[0])
    for travel, expected in ((0.0, False), (0.099, False), (0.101, True), (MAX_TRAVEL_M, True)):
        assert judged(task, state, moment(task, state, travel=np.float64(travel))) == (expected, False)
    task, (state,) = sampled("close_drawer", seeds=[0])
    assert 0.09 <= state.travel_m <= 0.14
    for travel, expected in ((0.011, (True, False)), (0.013, (False, False)), (state.travel_m + 0.029, (False, False)),
                             (state.travel_m + 0.031, (False, True))):
        assert judged(task, state, moment(task, state, travel=np.float64(travel))) == expected


@pytest.mark.parametrize("name", TASKS)
def test_progress_is_zero_at_the_start_and_one_at_the_goal(name):
    task, (state,) = sampled(name, seeds=[1])
    named = np.array([body == state.named for body in task.bodies], dtype=bool)
    start, goal = moment(task, state), task.goal(state)
    there = moment(task, state, **({state.named: goal} if state.named in task.bodies else
                                   {"travel": np.float64(task.layout.success_travel_m)}))
    assert task.progress(start, start, named, goal) == pytest.approx(0.0, abs=1e-4)
    assert task.progress(start, there, named, goal) == pytest.approx(1.0, abs=1e-4)


def test_unseen_objects_change_the_shape_and_nothing_else():
    task, seen = sampled("pick_place")
    _, unseen = sampled("pick_place", Variation(objects="unseen"))
    assert {state.named for state in unseen} == set(task.layout.unseen_shapes)
    for a, b in zip(seen, unseen, strict=True):
        assert np.array_equal(a.tool.position, b.tool.position)
        assert np.array_equal(a.objects[CONTAINER].position, b.objects[CONTAINER].position)
        assert np.array_equal(a.objects[a.named].position[:2], b.objects[b.named].position[:2])


@pytest.mark.parametrize("name", TASKS)
def test_a_perturbed_start_moves_the_tool_and_nothing_else(name):
    _, nominal = sampled(name)
    _, perturbed = sampled(name, Variation(start="perturbed"))
    moved = np.array([b.tool.position - a.tool.position for a, b in zip(nominal, perturbed, strict=True)])
    assert np.abs(moved).max(0) == pytest.approx(load_task(name).layout.start.perturbed_half_width_m, rel=0.1)
    assert all(np.array_equal(CONTRACT.limits.clip_position(state.tool.position), state.tool.position) for state in perturbed)
    for a, b in zip(nominal, perturbed, strict=True):
        assert a.objects.keys() == b.objects.keys()
        assert all(np.array_equal(a.objects[key].as_array(), b.objects[key].as_array()) for key in a.objects)


def test_after_a_missed_grasp_the_hand_is_closed_between_object_and_container():
    task, nominal = sampled("pick_place")
    _, missed = sampled("pick_place", Variation(start="missed"))
    spec, shares, pushed = task.layout.missed, [], []
    for a, b in zip(nominal, missed, strict=True):
        assert np.array_equal(a.objects[CONTAINER].as_array(), b.objects[CONTAINER].as_array())
        pushed.append(b.objects[b.named].position - a.objects[a.named].position)
        assert (a.opening, b.opening, a.instruction) == (1.0, 0.0, b.instruction)
        start, end = (b.objects[name].position[:2] for name in (b.named, CONTAINER))
        way = (end - start) / np.linalg.norm(end - start)
        along = way @ (b.tool.position[:2] - start)
        off = b.tool.position[:2] - start - along * way
        shares.append(along / np.linalg.norm(end - start))
        assert np.linalg.norm(off) <= 2**0.5 * spec.half_width_m
        assert spec.height_m[0] <= b.tool.position[2] <= spec.height_m[1]
        assert np.array_equal(CONTRACT.limits.clip_position(b.tool.position), b.tool.position)
    assert min(shares) < 0.1 and max(shares) > 0.9
    assert np.abs(pushed).max(0) == pytest.approx([*2 * [spec.pushed_half_width_m], 0.0], rel=0.1)
    with pytest.raises(ConfigError, match=r"push_cube.*no grasp to miss"):
        load_task("push_cube").check(Variation(start="missed"))
    with pytest.raises(ConfigError, match="no 'missed'"):
        load_task("pick_place", replace(task.layout, missed=None)).check(Variation(start="missed"))


def test_variations_have_a_text_and_bad_ones_are_refused_by_name():
    variation = Variation(objects="unseen", camera=0.5)
    assert variation.text() == "objects=unseen,camera=0.5"
    assert variation_from_text(variation.text()) == variation
    assert variation_from_text("") == NOMINAL
    for text, match in (("objects=all", "'all' is not one of"), ("colour=red", "colour"), ("camera=3", "strength"),
                        ("camera", "not name=value")):
        with pytest.raises(ConfigError, match=match):
            variation_from_text(text)
    with pytest.raises(ConfigError, match="no held-out objects"):
        load_task("push_cube").check(Variation(objects="unseen"))


def test_camera_and_light_variation_follow_their_strength_and_the_seed():
    domain = load_domain("twin")
    view = domain.camera("front_camera", "push_cube")
    assert NOMINAL.camera_view(view, 3) == view
    half, full = Variation(camera=0.5), Variation(camera=1.0)
    shift = [np.subtract(v.camera_view(view, 3).eye_m, view.eye_m) for v in (half, full)]
    np.testing.assert_allclose(2 * shift[0], shift[1])
    assert full.camera_view(view, 3) == full.camera_view(view, 3) != full.camera_view(view, 4)
    assert Variation(light=1.0).lights(domain.light, 3) != domain.light
    assert NOMINAL.lights(domain.light, 3) == domain.light


def test_a_layout_is_checked_and_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no twin for task 'juggle'.*pick_place"):
        load_task("juggle")
    text = ("shapes: [cube, pyramid]", "a YAML of one's own")
    path = tmp_path / "mine.yaml"
    path.write_text(text[0])
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_task("pick_place", path)


def test_yaw_quaternions_turn_about_z():
    np.testing.assert_allclose(yaw_quaternion(np.pi / 2), [0, 0, 2**-0.5, 2**-0.5], atol=1e-12)
