"""Datasets: LeRobot v3 on disk, the same numbers back, lineage and refusals."""

import json
import shutil

import numpy as np
import pytest

from rlco_common.errors import ConfigError, ContractMismatch, DataError
from rlco_common.observation import encode_image
from rlco_sim_bridge.demos import DemoGenerator
from rlco_trainer.dataset.episode import idle_ticks
from rlco_trainer.dataset.reader import load_demos, load_proprioception, read_sidecar, sample_cotraining
from rlco_trainer.dataset.schema import SIDECAR
from rlco_trainer.dataset.simulated import write_simulated_demos


@pytest.fixture(scope="module")
def demos(contract, tiny_datasets):
    return {name: load_demos(root, contract, 64) for name, root in tiny_datasets.items()}


def test_lerobot_reads_what_we_wrote(contract, tiny_datasets):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tiny_datasets["sim"]
    dataset = LeRobotDataset("rlco/sim", root=root)
    assert json.loads((root / "meta" / "info.json").read_text())["codebase_version"] == "v3.0"
    assert (dataset.num_episodes, dataset.fps) == (4, 5)
    frame = dataset[0]
    assert frame["observation.images.front_camera"].shape == (3, 128, 128)
    assert frame["action"].shape == (7,)
    assert frame["task"] in {episode["instruction"] for episode in read_sidecar(root)["episodes"]}
    assert set(dataset.meta.stats["action"]) >= {"mean", "std", "q01", "q99"}


def test_what_comes_back_is_what_the_twin_gave(contract, demos):
    """Images byte for byte, proprioception and actions bit for bit."""
    generator = DemoGenerator(contract, "push_cube", "twin", range(100_000, 100_100), 4, noise=0.1, workers=0)
    for index, rollout in enumerate(generator):
        keep = ~idle_ticks(rollout.intended.astype(np.float32))
        part = slice(demos["sim"].starts[index], demos["sim"].ends[index])
        images = [encode_image(o.images["front_camera"], 64) for o in rollout.observations]
        assert (demos["sim"].images["front_camera"][part] == np.stack(images)[keep]).all()
        assert (demos["sim"].actions[part] == rollout.intended.astype(np.float32)[keep]).all()
        assert demos["sim"].instructions[index] == rollout.instruction


def test_chunks_end_with_their_episode(demos):
    batch = demos["sim"].every_frame(8)
    first_length = demos["sim"].ends[0] - demos["sim"].starts[0]
    assert batch.valid[0].sum() == min(8, first_length)
    assert batch.valid[first_length - 1].tolist() == [True] + [False] * 7
    assert (batch.actions[0, 1] == demos["sim"].actions[1]).all()


def test_alpha_is_the_share_of_simulated_trajectories(demos):
    rng = np.random.default_rng(0)
    for alpha in (0.0, 0.25, 0.8, 1.0):
        counts = [sample_cotraining(demos["real"], demos["sim"], alpha, 50, 8, rng)[1] for _ in range(80)]
        share = sum(counts) / (80 * 50)
        half_width = 4 * np.sqrt(alpha * (1 - alpha) / (80 * 50))
        assert abs(share - alpha) <= half_width
    only_real, count = sample_cotraining(demos["real"], None, 0.9, 10, 8, rng)
    assert (count, len(only_real.instructions)) == (0, 10)


def test_trajectories_are_drawn_uniformly_whatever_their_length(demos):
    """Eq. 2: first the trajectory, then the step; a long trajectory must not be drawn more often."""
    real = demos["real"]
    rng = np.random.default_rng(0)
    short = real.subset(np.arange(2))
    short.ends[0] = short.starts[0] + 1     # one episode of a single frame beside a whole one
    batch = short.sample(4000, 1, rng)
    first = np.array([np.array_equal(row, real.proprioception[short.starts[0]]) for row in batch.proprioception])
    assert abs(first.mean() - 0.5) < 0.04


def test_held_out_episodes_are_not_trained_on(demos):
    train, held_out = demos["real"].split(1)
    assert (train.episodes, held_out.episodes) == (3, 1)
    assert set(train.starts).isdisjoint(held_out.starts)
    with pytest.raises(DataError, match="hold out 4 of 4"):
        demos["real"].split(4)


def test_another_contract_is_refused_readably(contract, tiny_datasets, tmp_path):
    copy = tmp_path / "other"
    shutil.copytree(tiny_datasets["real"], copy)
    sidecar = json.loads((copy / SIDECAR).read_text())
    changed = json.loads(sidecar["contract"])
    changed["control_rate_hz"] = 10.0
    (copy / SIDECAR).write_text(json.dumps(sidecar | {"contract": json.dumps(changed)}))
    with pytest.raises(ContractMismatch, match=r"control_rate_hz: 5.0 -> 10.0"):
        load_demos(copy, contract, 64)


def test_an_unfinished_dataset_is_refused(tiny_datasets, tmp_path):
    copy = tmp_path / "cut"
    shutil.copytree(tiny_datasets["real"], copy)
    (copy / SIDECAR).unlink()
    with pytest.raises(DataError, match="not a finished dataset"):
        load_proprioception(copy)


def test_an_existing_dataset_is_not_overwritten(contract, tiny_datasets):
    before = read_sidecar(tiny_datasets["real"])
    with pytest.raises(ConfigError, match="exists"):
        write_simulated_demos(contract, tiny_datasets["real"], task="push_cube", domain="twin", count=1, noise=0.0, workers=0,
                              quiet=True)
    assert read_sidecar(tiny_datasets["real"]) == before
