"""The measure of how RL and the real data pull on the weights takes no more memory than an update does."""

import sys

import pytest
import torch
from policies import make_policy
from test_peers import torchrun
from test_stage2_loss import real_batch, synthetic_rollout

from rlco_trainer import forgetting
from rlco_trainer.config import PpoConfig
from rlco_trainer.forgetting import gradient_cosine
from rlco_trainer.peers import Peers
from rlco_trainer.ppo import total_loss

RL, REAL = 13, 7


def cosine(name, **split) -> float:
    policy = make_policy(name, seed=3)
    return gradient_cosine(policy, synthetic_rollout(policy, RL), real_batch(policy, REAL), PpoConfig(), **split)


@pytest.mark.parametrize("name", ["compact_flow", "compact_token"])
def test_gradient_cosine_in_micro_batches_is_that_of_the_whole_batch(name, monkeypatch):
    whole, sizes = cosine(name), []

    def watched(policy, rl, sft, *arguments):
        sizes.append(len(rl if sft is None else sft))
        return total_loss(policy, rl, sft, *arguments)

    monkeypatch.setattr(forgetting, "total_loss", watched)
    assert cosine(name, micro_batches=5) == pytest.approx(whole, abs=1e-6)
    assert whole != 0 and sum(sizes) == RL + REAL and max(sizes) <= 3


@pytest.mark.long
def test_gradient_cosine_on_two_processes_is_that_of_one(tmp_path):
    torchrun(2, __file__, str(tmp_path))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(cosine("compact_flow"), abs=1e-6)


if __name__ == "__main__":
    peers = Peers.join("cpu")
    torch.save(cosine("compact_flow", micro_batches=2, peers=peers), f"{sys.argv[1]}/{peers.rank}.pt")
