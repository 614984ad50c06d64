"""The export to RLinf: LeRobot reads the data, the names are openpi's, RLinf's own check accepts the configuration."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from policies import CONFIGS, CONTRACT, make_policy
from safetensors.torch import load_file

from rlco_common.errors import ConfigError
from rlco_policy.checkpoint import save_policy
from rlco_policy.pi05.config import Pi05Config
from rlco_policy.pi05.model import EMBEDDING, EXPERT_HEAD, LANGUAGE_HEAD
from rlco_trainer.cli import main
from rlco_trainer.config import PpoConfig, StageTwoConfig
from rlco_trainer.dataset.lerobot_v21 import state_of
from rlco_trainer.dataset.reader import load_demos
from rlco_trainer.rlinf_differences import DIFFERENCES, RECIPE_GPUS
from rlco_trainer.rlinf_export import ASSET_ID, export_rlinf, openpi_names


@pytest.fixture(scope="module")
def policy():
    return make_policy("pi05", CONFIGS["pi05"](state_in_prompt=False))


@pytest.fixture(scope="module")
def run(policy, tiny_datasets, tmp_path_factory):
    """The configuration of a Stage II run that has not been started."""
    folder = tmp_path_factory.mktemp("run")
    save_policy(policy, folder / "start")
    config = {"out": str(folder / "stage2"), "start": str(folder / "start"), "real": str(tiny_datasets["real"]),
              "beta": 0.04375, "lr": 4e-6, "value_lr": 2e-4, "ppo": {"entropy_weight": 0.005}}
    (folder / "stage2.yaml").write_text(yaml.safe_dump(config))
    return folder / "stage2.yaml"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export_rlinf(str(run), tmp_path_factory.mktemp("rlinf") / "out", cluster_root="/cluster/out")[0]


def test_lerobots_converter_and_loader_read_the_data(exported, tiny_datasets, tmp_path, monkeypatch):
    """Version 2.1, brought to version 3 by LeRobot itself, has our frames."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    root = tmp_path / "data"
    shutil.copytree(exported / "data", root)
    convert_dataset("local/data", root=root, push_to_hub=False)
    dataset = LeRobotDataset("local/data", root=root)
    demos = load_demos(tiny_datasets["real"], CONTRACT, 64)
    assert (dataset.num_episodes, len(dataset), dataset.fps) == (demos.episodes, demos.frames, 5)
    for index in (0, len(dataset) - 1):
        item = dataset[index]
        action = demos.actions[index].copy()
        action[6] = 2 * action[6] - 1
        np.testing.assert_allclose(item["actions"].numpy(), action, atol=1e-6)
        np.testing.assert_allclose(item["state"].numpy()[:3], demos.proprioception[index, :3], atol=1e-6)
        assert item["image"].shape[0] == 3 and item["image"].shape[1] == item["image"].shape[2]
    assert dataset[0]["task"] == demos.instructions[0]
    assert int(dataset[len(dataset) - 1]["episode_index"]) == demos.episodes - 1


def test_angles_are_those_of_the_rotation_matrix():
    rng = np.random.default_rng(0)
    roll, pitch, yaw = rng.uniform(-1.4, 1.4, (3, 20))
    rotations = [[np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]) for a in roll],
                 [np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]) for a in pitch],
                 [np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) for a in yaw]]
    matrices = np.stack([z @ y @ x for x, y, z in zip(*rotations, strict=True)])
    proprioception = np.concatenate([np.zeros((20, 3)), matrices[:, :, 0], matrices[:, :, 1], np.ones((20, 1))], 1)
    state = state_of(proprioception, CONTRACT)
    np.testing.assert_allclose(state[:, 3:6], np.stack([roll, pitch, yaw], 1), atol=1e-5)
    assert (state[:, 6] == 1).all()


def test_the_names_are_openpis_and_the_values_the_policys(exported, policy):
    with torch.device("meta"):
        full = modeling_pi05.PI05Pytorch(PI05Config(device="cpu")).state_dict().keys()
    assert openpi_names(Pi05Config(tokenizer="unused")) == full - {EMBEDDING, EXPERT_HEAD}
    weights, state = load_file(exported / "model" / "model.safetensors"), policy.model.state_dict()
    assert weights.keys() == openpi_names(policy.config)
    for name, tensor in weights.items():
        assert torch.equal(tensor, state[EMBEDDING if name == LANGUAGE_HEAD else name].to(torch.bfloat16)), name


def test_a_weight_that_rlinf_would_skip_is_noticed(policy, tmp_path, monkeypatch):
    from rlco_common.errors import DataError
    from rlco_trainer import rlinf_export

    monkeypatch.setattr(rlinf_export, "merged_state", lambda model: {
        f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    with pytest.raises(DataError, match="without a word"):
        rlinf_export._write_model(policy, {}, tmp_path / "model")


def test_the_statistics_normalise_as_the_policy_was_trained(exported, policy, tiny_datasets):
    stats = json.loads((exported / "model" / ASSET_ID / "norm_stats.json").read_text())["norm_stats"]["actions"]
    physical = load_demos(tiny_datasets["real"], CONTRACT, 64).actions
    ours = policy.normalizer.normalise(torch.from_numpy(physical)).numpy()
    written = physical.copy()
    written[:, 6] = 2 * written[:, 6] - 1
    low, high = np.array(stats["q01"]), np.array(stats["q99"])
    np.testing.assert_allclose((written - low) / (high - low + 1e-6) * 2 - 1, ours, atol=1e-4)


def test_the_configuration_is_whole_and_adds_up(exported):
    text = (exported / "rlinf.yaml").read_text()
    config = yaml.safe_load(text)
    assert "${" not in text.partition("\ncluster:")[2] and "defaults" not in config
    actor, train = config["actor"], config["env"]["train"]
    assert actor["sft_loss_weight"] == pytest.approx(0.2)       # 0.04375 * 32 / 7
    samples = train["total_num_envs"] * train["rollout_epoch"] * train["max_steps_per_rollout_epoch"] // 4
    assert train["max_steps_per_rollout_epoch"] % 4 == 0 and samples % actor["global_batch_size"] == 0
    assert actor["global_batch_size"] % (actor["micro_batch_size"] * RECIPE_GPUS) == 0
    assert actor["sft_data_path"] == "/cluster/out/data" and actor["model"]["model_path"] == "/cluster/out/model"
    assert config["rollout"]["model"]["model_path"] == "/cluster/out/model"


def test_what_has_a_counterpart_is_carried_over(run, tmp_path):
    """The policy_config of Stage II, which the Stage I checkpoint does not have, among it."""
    changes = {"policy_config": "{noise_std: [0.02, 0.1], rl_trains: all, denoise_steps: 2, value_detach: false}",
               "ppo.level": "action", "ppo.minibatch_size": 384, "ppo.epochs": 3, "episodes": 192, "critic_warmup": 2,
               "weight_decay": 0.02, "value_lr": 1e-3}
    out, listed = export_rlinf(str(run), tmp_path / "out", overrides=[f"{name}={value}" for name, value in changes.items()])
    config = yaml.safe_load((out / "rlinf.yaml").read_text())
    openpi, actor = config["actor"]["model"]["openpi"], config["actor"]
    assert openpi["noise_logvar_range"] == [0.02, 0.1] and openpi["num_steps"] == 2
    assert not openpi["train_expert_only"] and not openpi["detach_critic_input"]
    assert config["algorithm"]["logprob_type"] == "action_level" and config["env"]["train"]["rollout_epoch"] == 3
    steps = 64 * 3 * config["env"]["train"]["max_steps_per_rollout_epoch"] // 4 // actor["global_batch_size"]
    assert actor["global_batch_size"] == 384 and actor["optim"]["critic_warmup_steps"] == 2 * 3 * steps
    assert actor["optim"]["weight_decay"] == 0.02 and actor["optim"]["value_lr"] == 1e-3
    assert not [line for line in listed if line.split("=")[0] in changes]


def test_what_has_none_is_listed_in_the_file_and_printed(run, tmp_path, capsys):
    changes = ["ppo.surrogate_weight=0", "ppo.shaping=0.5", "replay.updates=4", "places.weight=0.2", "ema=0.9", "held_out=1",
               "beta_control={low: 1.0}", "policy_config={noise_std_end: 0.1, logprob: sum}", "episodes=100"]
    assert main(["export", "rlinf", str(run), str(tmp_path / "out"), *changes]) == 0
    printed, head = capsys.readouterr().out, (tmp_path / "out" / "rlinf.yaml").read_text().partition("\ncluster:")[0]
    for line in ("ppo.surrogate_weight=0.0: PPO's surrogate trains the policy with weight 1.0",
                 "ppo.shaping=0.5: the environment that you register gives the reward", "replay.updates=4: no success replay",
                 "places.weight=0.2: no learning of where things are", "ema=0.9: the last weights are the result",
                 "held_out=1: RLinf trains on all real episodes, the 1 held out here among them",
                 "beta_control: beta stays as it is", "policy_config.noise_std_end=0.1: the noise keeps its bounds",
                 "policy_config.logprob=sum: the likelihood is the mean over the chain",
                 "episodes=100: 128 episodes an iteration", "ppo.target_kl=0.05: no divergence ends the policy's steps"):
        assert f"\n# - {line}\n" in f"{head}\n" and f"\n- {line}\n" in printed


CARRIED = {
    "real", "start", "beta", "task", "contract", "iterations", "lr", "value_lr", "weight_decay", "max_grad_norm",
    "critic_warmup", "measure_every", "save_every", "seed",
    *(f"ppo.{name}" for name in ("level", "gamma", "gae_lambda", "clip", "value_clip", "huber_delta", "entropy_weight",
                                 "epochs")),
    *(f"policy_config.{name}" for name in ("chunk", "denoise_steps", "rl_trains", "noise_std", "value_detach"))}
REFUSED_UNLESS_THE_RECIPES = {f"policy_config.{name}" for name in ("cameras", "horizon", "action_width", "state_in_prompt",
                                                                   "statistics")}
OF_THE_MACHINE_OR_OF_STAGE_ONE = {
    "out", "scenes", "workers", "backend", "micro_batches", "threads", "device", "min_initial_success", "stall_iterations",
    *(f"policy_config.{name}" for name in ("pretrained", "revision", "tokenizer", "image_size", "vision", "language", "expert",
                                           "vocabulary", "max_prompt_tokens", "trains", "dtype", "keep_prefix"))}


def test_no_setting_of_a_run_is_lost_in_silence():
    """A new field of the configuration has to be carried over, refused or listed."""
    fields = {field.name for field in dataclasses.fields(StageTwoConfig)} - {"ppo", "policy_config"}
    fields |= {f"ppo.{field.name}" for field in dataclasses.fields(PpoConfig)}
    fields |= {f"policy_config.{field.name}" for field in dataclasses.fields(Pi05Config)}
    listed = {difference.setting for difference in DIFFERENCES} | {"held_out"}
    switches = {name.rpartition(".")[0] for name in listed}      # replay.updates stands for all of replay
    assert fields - CARRIED - REFUSED_UNLESS_THE_RECIPES - OF_THE_MACHINE_OR_OF_STAGE_ONE - listed <= switches - {"ppo"}
    assert not listed & CARRIED


@pytest.mark.skipif(importlib.util.find_spec("rlinf") is None, reason="rlinf is not installed here")
def test_rlinfs_own_check_accepts_the_configuration(exported):
    from omegaconf import OmegaConf
    from rlinf.config import validate_cfg

    validate_cfg(OmegaConf.load(exported / "rlinf.yaml"))


def test_what_the_recipe_cannot_do_is_refused_by_name(run, tmp_path, capsys):
    folder = run.parent
    save_policy(make_policy("pi05", CONFIGS["pi05"](horizon=6)), folder / "other")
    with pytest.raises(ConfigError, match=r"state_in_prompt: false; the recipe predicts 8 steps, the policy 6"):
        export_rlinf(str(run), tmp_path / "out", overrides=[f"start={folder / 'other'}"])
    save_policy(make_policy("compact_flow"), folder / "compact")
    assert main(["export", "rlinf", str(run), str(tmp_path / "out"), f"start={folder / 'compact'}"]) == 1
    assert "recipe is for pi05" in capsys.readouterr().err
    assert main(["export", "rlinf", str(run), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "rlinf.yaml").is_file()
