"""The measure of how RL and the real data pull on the weights takes no more memory than an update does."""

import sys

import pytest
import torch
from policies import make_policy
from test_peers import torchrun
from test_stage2_loss import real_batch, synthetic_rollout
from test_training import stage2_config

from rlco_trainer import forgetting
from rlco_trainer.config import PpoConfig
from rlco_trainer.forgetting import gradient_cosine
from rlco_trainer.peers import Peers
from rlco_trainer.ppo import total_loss
from rlco_trainer.stage2 import StageTwo

RL, REAL = 13, 7


def cosine(name, **split) -> float:
    policy = make_policy(name, seed=3)
    return gradient_cosine(policy, synthetic_rollout(policy, RL), real_batch(policy, REAL), PpoConfig(), **split)


@pytest.fixture
def sizes(monkeypatch):
    """Of the batches whose losses the cosine asks for."""
    found = []

    def watched(policy, rl, sft, *arguments):
        found.append(len(rl if sft is None else sft))
        return total_loss(policy, rl, sft, *arguments)

    monkeypatch.setattr(forgetting, "total_loss", watched)
    return found


@pytest.mark.parametrize("name", ["compact_flow", "compact_token"])
def test_gradient_cosine_in_micro_batches_is_that_of_the_whole_batch(name, sizes):
    whole = cosine(name)
    assert whole != 0 and sizes == [RL, REAL]
    sizes.clear()
    assert cosine(name, micro_batches=5) == pytest.approx(whole, abs=1e-6)
    assert sum(sizes) == RL + REAL and max(sizes) == 3


def test_stage_two_measures_it_in_the_runs_micro_batches(tiny_datasets, untrained, tmp_path, contract, sizes):
    config = stage2_config(tiny_datasets, untrained["compact_flow"], tmp_path / "run", critic_warmup=0, beta=0.1,
                           cosine_every=1, sft_batch_size=6, micro_batches=3, ppo=PpoConfig(minibatch_size=8))
    run = StageTwo(config, contract)
    assert -1 <= run.ppo_phase(synthetic_rollout(run.policy, 8))["rl/sft_gradient_cosine"] <= 1
    assert sizes == [2, 3, 3, 2, 2, 2]


@pytest.mark.long
def test_gradient_cosine_on_two_processes_is_that_of_one(tmp_path):
    torchrun(2, __file__, str(tmp_path))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(cosine("compact_flow"), abs=1e-6)


if __name__ == "__main__":
    peers = Peers.join("cpu")
    torch.save(cosine("compact_flow", micro_batches=2, peers=peers), f"{sys.argv[1]}/{peers.rank}.pt")
