"""A run goes on as it began or not at all, and loses nothing that was saved."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from policies import make_policy, weights
from test_training import same_weights, stage1_config, stage2_config

from rlco_common.errors import TrainingError
from rlco_common.seeds import RL
from rlco_policy.checkpoint import read_description, save_policy
from rlco_trainer.config import PpoConfig, ReplayConfig
from rlco_trainer.metrics import read_metrics
from rlco_trainer.rollout import Episode, returns_of
from rlco_trainer.run_state import Randomness, latest_run, load_run, save_run
from rlco_trainer.stage1 import train_stage1
from rlco_trainer.stage2 import StageTwo, train_stage2


@pytest.mark.parametrize(("changes", "named"), [
    ({"alpha": 0.9}, r"alpha=0\.9 \(it began with 0\.5\)"),
    ({"sim": ""}, r"sim='' \(it began with .*sim\)"),
    ({"policy_config": {"draws": 1}}, r"policy_config\.draws=1 \(it began with None\)"),
    ({"lr": 1.0, "seed": 4}, r"lr=1\.0 .*seed=4"),
])
def test_a_run_does_not_go_on_with_other_settings(tiny_datasets, tmp_path, changes, named):
    config = stage1_config(tiny_datasets, tmp_path / "run")
    train_stage1(config, stop_after=3, quiet=True)
    before = (config.out / "config.yaml").read_text()
    with pytest.raises(TrainingError, match=f"other settings: {named}"):
        train_stage1(replace(config, **changes), quiet=True)
    assert (config.out / "config.yaml").read_text() == before
    train_stage1(replace(config, steps=7, threads=2, save_every=1, device="cpu"), quiet=True)
    assert latest_run(config.out).name == "00000007"


def test_stage2_does_not_go_on_with_other_settings_nor_in_a_run_of_stage1(tiny_datasets, untrained, tmp_path):
    config = stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "run")
    train_stage2(config, stop_after=1, quiet=True)
    with pytest.raises(TrainingError, match=r"beta=0 \(it began with 0\.05\), ppo\.clip=0\.1 \(it began with 0\.2\)"):
        train_stage2(replace(config, beta=0, ppo=replace(config.ppo, clip=0.1)), quiet=True)
    with pytest.raises(TrainingError, match="holds another kind of run"):
        train_stage1(stage1_config(tiny_datasets, config.out), quiet=True)


def test_a_resumed_run_names_the_policy_that_it_began_with(tiny_datasets, untrained, tmp_path, contract):
    start = tmp_path / "start"
    shutil.copytree(untrained["compact_flow"], start)
    began_with = read_description(start)["digest"]
    config = stage2_config(tiny_datasets, start, tmp_path / "run", iterations=2)
    train_stage2(config, stop_after=1, quiet=True)
    save_policy(make_policy("compact_flow", seed=9), start, {})      # trained again meanwhile
    assert read_description(start)["digest"] != began_with
    assert read_description(train_stage2(config, quiet=True))["lineage"]["start"]["digest"] == began_with


@pytest.mark.parametrize("stage", ["one", "two"])
def test_a_run_does_not_go_on_with_a_dataset_that_was_made_again(tiny_datasets, untrained, tmp_path, stage):
    data = {name: tmp_path / name for name in tiny_datasets}
    for name, copy in data.items():
        shutil.copytree(tiny_datasets[name], copy)
    if stage == "one":
        train, config = train_stage1, stage1_config(data, tmp_path / "run")
    else:
        train, config = train_stage2, stage2_config(data, untrained["compact_flow"], tmp_path / "run", iterations=2)
    train(config, stop_after=1, quiet=True)
    shutil.rmtree(data["real"])
    shutil.copytree(tiny_datasets["sim"], data["real"])
    with pytest.raises(TrainingError, match=rf"{data['real']} is not what the run(.|\n)*its content has changed"):
        train(config, quiet=True)


SAVES = """
import sys
from pathlib import Path
from policies import make_policy
from rlco_trainer.run_state import Randomness, save_run
import torch
policy = make_policy("compact_flow")
optimizer = torch.optim.AdamW(policy.parameters())
for step in range(1, 10_000):
    save_run(Path(sys.argv[1]), step, policy, optimizer, Randomness(step), {}, {"filler": torch.zeros(500_000)})
    print(step, flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("wait_ms", [0, 7, 23, 61])
def test_a_kill_in_a_save_leaves_a_whole_checkpoint(tmp_path, contract, wait_ms):
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    with subprocess.Popen([sys.executable, "-c", SAVES, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                          env=environment) as saving:
        saved = [int(saving.stdout.readline()) for _ in range(4)]
        time.sleep(wait_ms / 1000)
        saving.send_signal(signal.SIGKILL)
        saved += map(int, saving.stdout.read().split())
    policy, state = load_run(latest_run(tmp_path), contract)
    assert state["step"] in (saved[-1], saved[-1] + 1)
    assert torch.equal(weights(policy), weights(make_policy("compact_flow")))
    assert state["random"]["torch"].equal(Randomness(state["step"]).torch.get_state())


def test_a_step_that_is_saved_already_is_not_taken_apart(tmp_path):
    policy = make_policy("compact_flow")
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    first = save_run(tmp_path, 3, policy, optimizer, Randomness(0), {})
    inodes = {path: path.stat().st_ino for path in first.rglob("*")}
    assert save_run(tmp_path, 3, policy, optimizer, Randomness(0), {}) == first
    assert {path: path.stat().st_ino for path in first.rglob("*")} == inodes


def test_a_checkpoint_of_another_version_is_refused(tmp_path, contract):
    policy = make_policy("compact_flow")
    saved = save_run(tmp_path, 3, policy, torch.optim.SGD(policy.parameters(), lr=0.1), Randomness(0), {})
    state = torch.load(saved / "trainer.pt", weights_only=False)
    torch.save({name: value for name, value in state.items() if name != "format"}, saved / "trainer.pt")
    with pytest.raises(TrainingError, match="written by another version"):
        load_run(saved, contract)


@pytest.mark.long
def test_a_run_without_variance_ends_with_everything_saved_and_goes_on_when_told(tiny_datasets, untrained, tmp_path):
    """The untrained policy never succeeds within one chunk."""
    config = stage2_config(tiny_datasets, untrained["compact_token"], tmp_path / "run", iterations=4, beta=0.0, max_chunks=1,
                           measure_every=100, save_every=100, stall_iterations=2, episodes=2)
    train_stage2(config, stop_after=1, quiet=True)
    for _ in range(2):      # the count survives the stop; given again, the command says the same
        with pytest.raises(TrainingError, match=r"last 2 iterations(.|\n)*same return(.|\n)*stall_iterations=0"):
            train_stage2(config, quiet=True)
        assert latest_run(config.out).name == "00000002"
    assert train_stage2(replace(config, stall_iterations=0), quiet=True).is_dir()
    assert [row["step"] for row in read_metrics(config.out / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_returns_are_those_that_the_critic_learns():
    def episode(places, rewards):
        return Episode(1, "push", places=[torch.tensor([x, 0.0, 0.0, 1.0, 0.0, 0.0]) for x in places], rewards=rewards)

    late, failed = episode([0.0, 0.2, 0.5], [0.0, 0.0, 1.0]), episode([0.0, 0.2], [0.0, 0.0])
    assert returns_of(late, PpoConfig(gamma=0.9)).tolist() == pytest.approx([0.81, 0.9, 1.0])
    assert returns_of(failed, PpoConfig(gamma=0.9)).tolist() == [0.0, 0.0]
    # potentials cancel on the way (Ng et al. 1999): what is left is the one of the state that the decision was made in
    assert returns_of(failed, PpoConfig(gamma=0.9, shaping=0.5)).tolist() == pytest.approx([0.0, -0.1])


@pytest.mark.parametrize("seed", [0, 42, 43, 1234])
def test_every_seed_has_episodes_of_its_own(tiny_datasets, untrained, tmp_path, contract, monkeypatch, seed):
    run = StageTwo(stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "run", seed=seed), contract)
    other = StageTwo(stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "other", seed=seed + 1), contract)
    seen = []
    monkeypatch.setattr("rlco_trainer.stage2.run_episodes", lambda policy, pool, seeds, **options: seen.extend(seeds))
    for one in (run, other):
        for step in (0, 1):
            one.roll_out(None, one.policy, step, lambda: False)
    assert len(set(seen)) == len(seen) == 4 * run.config.episodes
    assert all(one in RL for one in seen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: training on one is not tested here")
@pytest.mark.parametrize("policy", ["compact_flow", "compact_token"])
def test_both_stages_train_on_a_gpu_and_resume(tiny_datasets, tmp_path, contract, policy):
    start = train_stage1(stage1_config(tiny_datasets, tmp_path / "sft", policy, device="cuda"), quiet=True)
    config = stage2_config(tiny_datasets, start, tmp_path / "run", device="cuda", critic_warmup=0, cosine_every=1,
                           replay=ReplayConfig(updates=2, batch_size=4, min_size=1, demos=str(tiny_datasets["sim"])))
    train_stage2(config, stop_after=2, quiet=True)
    assert not same_weights(start, train_stage2(config, quiet=True), contract)
