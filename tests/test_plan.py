"""`rlco train --plan`: memory as a real run takes it, time from the run itself, refusal of what cannot fit."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from commands import written
from tiny_models import openvla_tokenizer

from rlco_common.contract import load_contract
from rlco_common.errors import TrainingError
from rlco_policy.checkpoint import load_policy
from rlco_policy.footprint import GIB
from rlco_trainer import memory
from rlco_trainer import plan as planning
from rlco_trainer.cli import main
from rlco_trainer.config import PpoConfig, ReplayConfig, StageOneConfig, StageTwoConfig
from rlco_trainer.plan import HOST, activation_bytes, plan_stage1, plan_stage2

PEAK = """
import resource, sys
from rlco_trainer.cli import main
main(sys.argv[1:])
print("peak", sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024)
"""


@pytest.fixture
def stage1(tmp_path, tiny_datasets):
    return StageOneConfig(out=tmp_path / "run", real=str(tiny_datasets["real"]), sim=str(tiny_datasets["sim"]), steps=3,
                          batch_size=256, held_out=1)


@pytest.fixture
def stage2(tmp_path, tiny_datasets, untrained):
    return StageTwoConfig(out=tmp_path / "run", start=untrained["compact_flow"], real=str(tiny_datasets["real"]), held_out=1,
                          iterations=10, episodes=8, scenes=4, workers=0, max_chunks=2, measure_episodes=8, sft_batch_size=4,
                          replay=ReplayConfig(updates=1, batch_size=4, demos=str(tiny_datasets["sim"])))


@pytest.mark.long
def test_the_memory_of_stage_one_is_about_what_a_run_takes(stage1):
    predicted = plan_stage1(stage1, trial=False).needed(HOST)
    arguments = [f"{name}={getattr(stage1, name)}" for name in ("out", "real", "sim", "steps", "batch_size", "held_out")]
    run = subprocess.run([sys.executable, "-c", PEAK, "train", "stage1", "push_cube_stage1", *arguments], text=True,
                         capture_output=True, check=True)
    peak = int(re.search(r"peak (\d+)", run.stdout)[1])
    assert 0.6 < predicted / peak < 1.5, f"predicted {predicted / GIB:.2f} GiB, taken {peak / GIB:.2f} GiB"


@pytest.mark.long
def test_the_memory_of_stage_two_is_about_what_a_run_takes(stage2, tmp_path):
    config = replace(stage2, iterations=3, workers=1, ema=0.9, critic_warmup=1, measure_every=100, min_initial_success=0.0,
                     replay=replace(stage2.replay, min_size=1, capacity=500))
    predicted = plan_stage2(config, trial=False).needed(HOST)
    run = subprocess.run([sys.executable, "-c", PEAK, "train", "stage2", written(config, tmp_path / "stage2.yaml")], text=True,
                         capture_output=True, check=True)
    peak = int(re.search(r"peak (\d+)", run.stdout)[1])
    assert 0.6 < predicted / peak < 1.5, f"predicted {predicted / GIB:.2f} GiB, taken {peak / GIB:.2f} GiB"


def test_every_copy_of_the_weights_is_counted(stage2):
    def names(**changes):
        return {part.name for part in plan_stage2(replace(stage2, **changes), trial=False).parts}

    more = names(ema=0.9, overlap=True, ppo=PpoConfig(surrogate_weight=0.0)) - names(replay=ReplayConfig())
    assert more >= {"averaged weights", "copy that acts beside the update", "AdamW's moments of the replay", "success replay"}


@pytest.mark.long
def test_time_is_measured_and_nothing_is_left_in_the_run_directory(stage1, stage2):
    first, second = plan_stage1(stage1), plan_stage2(stage2)
    assert 0 < first.seconds < second.seconds
    assert not stage1.out.exists() and not stage2.out.exists()
    assert re.search(r"simulators, 4 scenes in 1 processes(.|\n)*min on this machine", second.text())


@pytest.mark.long
def test_a_run_that_ends_by_the_clock_is_not_planned_beyond_it(stage2):
    assert plan_stage2(replace(stage2, iterations=10**6, time_limit_s=5.0)).seconds < 600


def test_activations_grow_with_the_batch(untrained):
    policy = load_policy(untrained["compact_flow"])
    assert activation_bytes(policy, "sft") > policy.spec.image_size**2 * 4
    assert activation_bytes(policy, "rl") > 0


def test_a_run_that_cannot_fit_is_refused_with_advice(stage2, tmp_path, capsys):
    huge = replace(stage2, replay=replace(stage2.replay, capacity=10**9))
    with pytest.raises(TrainingError, match=r"does not fit.*GiB of host memory.*'success replay'.*Lower replay\.capacity"):
        plan_stage2(huge)
    arguments = [f"out={stage2.out}", f"start={stage2.start}", f"real={stage2.real}", "replay.demos=''",
                 "replay.capacity=1000000000", "--plan"]
    assert main(["train", "stage2", "push_cube_stage2", *arguments]) == 1
    assert "does not fit" in capsys.readouterr().err and not stage2.out.exists()


def test_a_large_model_is_weighed_without_its_weights(stage1, monkeypatch):
    monkeypatch.setattr(planning, "available_bytes", lambda: 8 * GIB)
    config = replace(stage1, policy="openvla", policy_config={"tokenizer": str(openvla_tokenizer()), "dtype": "bfloat16"})
    with pytest.raises(TrainingError, match=r"largest part is 'weights' with 14\.\d GiB.*LoRA"):
        plan_stage1(config)


def test_a_rollout_is_as_long_as_the_task_allows(stage2):
    longest = -(-load_contract().task("push_cube").max_steps // 4)
    def rollout(config):
        return next(part.bytes for part in plan_stage2(config, trial=False).parts if part.name == "rollout")

    assert rollout(replace(stage2, max_chunks=0)) == pytest.approx(rollout(stage2) * longest / 2)


@pytest.mark.parametrize(("folder", "names"), [
    (".", ("memory.max", "memory.current", "memory.stat", "inactive_file")),
    ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")),
])
def test_a_containers_limit_counts(tmp_path, monkeypatch, folder, names):
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    machine = memory.available_bytes()
    assert machine > 100 * 2**20
    (tmp_path / folder).mkdir(exist_ok=True)
    limit, usage, statistics = (tmp_path / folder / name for name in names[:3])
    for path, text in ((limit, str(70 * 2**20)), (usage, str(50 * 2**20)), (statistics, f"anon 5\n{names[3]} {20 * 2**20}\n")):
        path.write_text(text)
    assert memory.available_bytes() == 40 * 2**20
    limit.write_text("max\n" if folder == "." else "9223372036854771712")
    assert memory.available_bytes() > 100 * 2**20
