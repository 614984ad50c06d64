"""Data parallelism: the number of processes changes an update on the same samples by rounding alone."""

import json
import sys

import pytest
import torch
from commands import run_tree, written
from policies import make_policy, weights
from test_stage2_loss import real_batch, synthetic_rollout
from test_training import stage1_config, stage2_config

from rlco_common.errors import ConfigError
from rlco_policy.checkpoint import load_policy
from rlco_trainer.config import PlacesConfig, PpoConfig, ReplayConfig, StageTwoConfig
from rlco_trainer.metrics import read_metrics
from rlco_trainer.peers import Peers
from rlco_trainer.places import PlaceBatch, Places
from rlco_trainer.stage1 import StageOne, train_stage1
from rlco_trainer.updates import acting_weights, replay_step, update_step


def torchrun(processes: int, *arguments: str) -> None:
    done = run_tree([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
                     *arguments], timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("total", "size", "micro_batches"), [(10, 1, 3), (10, 2, 2), (7, 3, 2), (2, 3, 4)])
def test_parts_cover_a_batch_once_over_all_processes(total, size, micro_batches):
    parts = [part for rank in range(size) for part in Peers(rank, size).parts(total, micro_batches)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(total))


def test_processes_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert Peers.join("cuda") == Peers(1, 2)
    assert chosen == [1]
    with pytest.raises(ConfigError, match="device=cuda:0 would be the same for all 2 processes"):
        Peers.join("cuda:0")


@pytest.mark.long
def test_stage1_on_two_processes_equals_one(tiny_datasets, tmp_path, contract):
    one = stage1_config(tiny_datasets, tmp_path / "one", batch_size=7, ema=0.5)
    two = stage1_config(tiny_datasets, tmp_path / "two", batch_size=7, ema=0.5)
    before = {name: tensor.clone() for name, tensor in StageOne(one, contract).policy.state_dict().items()}
    train_stage1(one, quiet=True)
    torchrun(2, "-m", "rlco_trainer.cli", "train", "stage1", written(two, tmp_path / "two.yaml"))
    first, second = (load_policy(config.out / "policy", contract).state_dict() for config in (one, two))

    def distance(a, b):
        return float(sum((a[name].double() - b[name].double()).square().sum() for name in a)) ** 0.5

    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert distance(first, second) < 1e-4 * distance(first, before)
    rows = [read_metrics(config.out / "metrics.jsonl") for config in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]


def stage2_updates(peers: Peers) -> torch.Tensor:
    """All weights after one PPO step and one replay step on fixed batches; SGD, as Adam would blow up rounding errors."""
    policy = make_policy("compact_flow")
    config = StageTwoConfig(out="x", start="y", real="r", beta=0.3, micro_batches=2, replay=ReplayConfig(updates=1),
                            places=PlacesConfig(weight=1.0))
    update_step(policy, torch.optim.SGD(policy.parameters(), lr=0.1), synthetic_rollout(policy, 9), real_batch(policy, 5),
                config, beta=config.beta, peers=peers)
    places = Places(policy, config.places, seed=0)
    seen = PlaceBatch(policy.example_inputs(5), torch.rand(5, 6, generator=torch.Generator().manual_seed(0)))
    replay_step(policy, torch.optim.SGD([*acting_weights(policy), *places.head.parameters()], lr=0.1), real_batch(policy, 7),
                real_batch(policy, 5), config, beta=config.beta, peers=peers, places=(places.head, seen))
    return torch.cat([weights(policy), weights(places.head)])


@pytest.mark.long
def test_stage2_updates_on_two_processes_equal_one(tmp_path):
    torchrun(2, __file__, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(*found)
    untouched = make_policy("compact_flow")
    assert not torch.equal(found[0], torch.cat([weights(untouched), weights(Places(untouched, PlacesConfig(), seed=0).head)]))
    torch.testing.assert_close(found[0], stage2_updates(Peers()), rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("overlap", [False, True])
def test_stage2_on_two_processes_shares_the_episodes(tiny_datasets, untrained, tmp_path, overlap):
    config = stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "run", iterations=2, overlap=overlap,
                           ppo=PpoConfig(minibatch_size=8, surrogate_weight=0.0 if overlap else 1.0))
    torchrun(2, "-m", "rlco_trainer.cli", "train", "stage2", written(config, tmp_path / "run.yaml"))
    row = read_metrics(config.out / "metrics.jsonl")[-1]
    assert row["rollout/steps"] == pytest.approx(config.episodes * row["rollout/episode_steps"])
    assert json.loads((config.out / "policy" / "policy.json").read_text())["lineage"]["step"] == 2


if __name__ == "__main__":
    peers = Peers.join("cpu")
    torch.save(stage2_updates(peers), f"{sys.argv[1]}/{peers.rank}.pt")
