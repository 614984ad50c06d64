"""A Stage II run as the engine of the paper's authors takes it: RLinf's co-training recipe for pi-0.5.

Written are the real demonstrations (LeRobot 2.1), the Stage I weights in openpi's layout, the statistics that it normalises
by, and one self-contained YAML. RLinf loads weights without complaint about names, so names are checked here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from rlco_common.contract import Contract, load_contract
from rlco_common.errors import ConfigError, DataError
from rlco_common.folders import new_folder
from rlco_policy.checkpoint import load_policy
from rlco_policy.hub import write_weights
from rlco_policy.lora import merged_state
from rlco_policy.pi05.config import Pi05Config
from rlco_policy.pi05.model import EMBEDDING, LANGUAGE_HEAD
from rlco_policy.pi05.policy import Pi05
from rlco_trainer.config import StageTwoConfig, load_stage_config, roots
from rlco_trainer.dataset.lerobot_v21 import action_of, write_lerobot_v21
from rlco_trainer.rlinf_differences import RECIPE_GPUS, not_carried_over

RECIPE = "pi05_maniskill_sim_real_co_training"
ASSET_ID = "physical-intelligence/pick_and_place_real"
ENV_IDS = {"pick_place": "RlcoPickPlace-v1", "push_cube": "RlcoPushCube-v1", "open_drawer": "RlcoOpenDrawer-v1",
           "close_drawer": "RlcoCloseDrawer-v1"}
RECIPE_HORIZON, RECIPE_WIDTH, RECIPE_ENVS, RECIPE_MICRO_BATCH = 8, 32, 64, 40
LOGPROB_TYPES = {"chunk": "chunk_level", "action": "action_level"}
HEADER = """\
# RLinf configuration written by `rlco export rlinf`; every default is resolved, no other YAML is needed.
# Before it runs on a cluster:
# - put this folder where every node sees it, at the paths below (all are under {root});
# - register the environment {env} in RLinf's workers; its observations are main_images (the square crop that the data has),
#   states and task_descriptions, and its arm controller takes metres and radians per step, the gripper -1 (closed) to 1 (open);
# - start it with examples/embodiment/run_embodiment.sh and this file in the configuration folder.
# sft_loss_weight is beta * {width} / {dim}: RLinf averages the supervised loss over {width} padded dimensions, we over {dim}.
# Not carried over, because the recipe does it otherwise:
{differences}
"""


def export_rlinf(run: str, out: Path, *, cluster_root: str = "",
                 overrides: list[str] | None = None) -> tuple[Path, list[str]]:
    """Write the folder `out` (new) for a Stage II run: its directory, or its configuration before it has been started.

    cluster_root: where the folder will lie on the cluster. Returns the folder and what of the run's settings is not carried
    over (see rlinf_differences). Raises ConfigError naming what the recipe cannot do.
    """
    source = Path(run)
    config = load_stage_config(StageTwoConfig, str(source / "config.yaml") if source.is_dir() else run, overrides or [])
    contract = load_contract(config.contract)
    policy = load_policy(config.start, contract, config.policy_config)
    _require_recipe(policy, config)
    out = Path(out).absolute()
    with new_folder(out) as staging:
        frames = write_lerobot_v21(roots(config.real), contract, staging / "data")
        _write_model(policy, frames, staging / "model")
        root = cluster_root or str(out)
        content = rlinf_config(config, policy.config, contract, root, out.name)
        differences = not_carried_over(config, policy.config, content)
        text = HEADER.format(root=root, env=ENV_IDS[config.task], width=RECIPE_WIDTH, dim=contract.action.dim,
                             differences="\n".join(f"# - {line}" for line in differences))
        (staging / "rlinf.yaml").write_text(text + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return out, differences


def _require_recipe(policy, config: StageTwoConfig) -> None:
    """Refuse what the recipe's fixed model configuration would silently do otherwise."""
    if not isinstance(policy, Pi05):
        raise ConfigError(f"RLinf's co-training recipe is for pi05; {config.start} holds a {type(policy).__name__}")
    own = policy.config
    problems = [complaint for wrong, complaint in (
        (own.state_in_prompt, "the recipe's policy sees no proprioception: train with state_in_prompt: false"),
        (own.horizon != RECIPE_HORIZON, f"the recipe predicts {RECIPE_HORIZON} steps, the policy {own.horizon}"),
        (own.action_width != RECIPE_WIDTH, f"the recipe pads actions to {RECIPE_WIDTH}, the policy to {own.action_width}"),
        (policy.cameras != tuple(policy.contract.cameras)[:1], "the recipe reads the contract's first camera alone"),
        (own.statistics != "contract", "the recipe's statistics are written from the contract: use statistics: contract"),
        (not roots(config.real), "the real dataset is missing: give real=DATASET"),
        (config.task not in ENV_IDS, f"there is no environment for task '{config.task}'"),
    ) if wrong]
    if problems:
        raise ConfigError("cannot export to RLinf: " + "; ".join(problems))


def _write_model(policy: Pi05, frames: dict[str, np.ndarray], out: Path) -> None:
    folder = out / ASSET_ID
    folder.mkdir(parents=True)
    state = merged_state(policy.model)
    weights = {LANGUAGE_HEAD if name == EMBEDDING else name: tensor for name, tensor in state.items()}
    expected = openpi_names(policy.config)
    if weights.keys() != expected:
        raise DataError(f"the weights are not named as openpi names them: {sorted(weights.keys() ^ expected)[:5]}; RLinf would "
                        "skip them without a word")
    write_weights({name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}, out, shard_bytes=1 << 60)
    (folder / "norm_stats.json").write_text(json.dumps(norm_stats(policy, frames), indent=2) + "\n", encoding="utf-8")


def norm_stats(policy: Pi05, frames: dict[str, np.ndarray]) -> dict[str, Any]:
    """openpi's statistics: the quantiles of actions are the limits that the policy was trained with."""
    normalizer, contract = policy.normalizer, policy.contract
    assert policy.stored is None        # refused above
    limits = action_of(np.stack([normalizer.low.cpu().numpy(), normalizer.high.cpu().numpy()]), contract)
    state = frames["state"].astype(np.float64)
    quantiles = {"state": np.quantile(state, [0.01, 0.99], axis=0), "actions": limits}
    return {"norm_stats": {
        name: {"mean": values.mean(0).tolist(), "std": values.std(0).tolist(), "q01": quantiles[name][0].tolist(),
               "q99": quantiles[name][1].tolist()}
        for name, values in ((name, frames[name].astype(np.float64)) for name in ("state", "actions"))}}


def openpi_names(config: Pi05Config) -> set[str]:
    """Every weight that openpi's pi-0.5 reads from a file, written out from its published layout."""
    def both(*names):
        return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}

    vision = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
    names = both("action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out", f"{vision}embeddings.patch_embedding",
                 f"{vision}post_layernorm", "paligemma_with_expert.paligemma.model.multi_modal_projector.linear")
    names |= {f"{vision}embeddings.position_embedding.weight", LANGUAGE_HEAD}
    for i in range(config.vision.depth):
        names |= both(*(f"{vision}encoder.layers.{i}.{part}" for part in (
            "layer_norm1", "layer_norm2", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
            "mlp.fc1", "mlp.fc2")))
    projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                   "mlp.up_proj", "mlp.down_proj")
    for stem, adaptive in (("paligemma.model.language_model.", False), ("gemma_expert.model.", True)):
        stem = f"paligemma_with_expert.{stem}"
        norms = [f"{stem}norm"]
        for i in range(config.language.depth):
            names |= {f"{stem}layers.{i}.{projection}.weight" for projection in projections}
            norms += [f"{stem}layers.{i}.{norm}" for norm in ("input_layernorm", "post_attention_layernorm")]
        names |= both(*(f"{norm}.dense" for norm in norms)) if adaptive else {f"{norm}.weight" for norm in norms}
    return names


def rlinf_config(config: StageTwoConfig, policy: Pi05Config, contract: Contract, root: str, name: str) -> dict[str, Any]:
    """The resolved configuration, as plain data. Numbers that our run does not set are the released recipe's.

    policy: with the run's policy_config in it.
    """
    chunk, ppo = policy.chunk, config.ppo
    steps = -(-contract.tasks[config.task].max_steps // chunk) * chunk
    rollouts = max(1, round(config.episodes / RECIPE_ENVS))
    minibatch, micro, minibatches = _batches(RECIPE_ENVS * rollouts * steps // chunk, ppo.minibatch_size)
    model = _model(policy, f"{root}/model")
    return {
        "cluster": {"num_nodes": 1, "component_placement": {"actor,env,rollout": "all"}},
        "runner": {
            "task_type": "embodied",
            "logger": {"log_path": f"{root}/results", "project_name": "rlco", "experiment_name": name,
                       "logger_backends": ["tensorboard"]},
            "max_epochs": config.iterations, "max_steps": -1, "only_eval": False, "val_check_interval": config.measure_every,
            "save_interval": config.save_every, "resume_dir": None, "ckpt_path": None},
        "algorithm": {
            "normalize_advantages": True, "kl_penalty": "kl", "group_size": 1, "reward_coef": 1.0, "reward_type": "chunk_level",
            "logprob_type": LOGPROB_TYPES[ppo.level], "entropy_type": "chunk_level", "update_epoch": ppo.epochs,
            "adv_type": "gae", "loss_type": "actor_critic", "loss_agg_func": "token-mean", "kl_beta": 0.0,
            "entropy_bonus": ppo.entropy_weight, "clip_ratio_high": ppo.clip, "clip_ratio_low": ppo.clip, "clip_ratio_c": 3.0,
            "value_clip": ppo.value_clip, "huber_delta": ppo.huber_delta, "gamma": ppo.gamma, "gae_lambda": ppo.gae_lambda,
            "filter_rewards": False, "rewards_lower_bound": 0.0, "rewards_upper_bound": 1.0},
        "env": {"group_name": "EnvGroup", "enable_offload": False,
                "train": _env(config, steps, f"{root}/video/train", rollouts),
                "eval": _env(config, steps, f"{root}/video/eval", None)},
        "rollout": {"group_name": "RolloutGroup", "generation_backend": "huggingface", "recompute_logprobs": False,
                    "enable_offload": False, "pipeline_stage_num": 1,
                    "model": {"model_path": model["model_path"], "precision": None}},
        "actor": {
            "group_name": "ActorGroup", "training_backend": "fsdp", "micro_batch_size": micro, "global_batch_size": minibatch,
            "seed": config.seed, "enable_offload": False, "config_name": RECIPE, "enable_sft_co_train": config.beta > 0,
            "sft_loss_weight": config.beta * RECIPE_WIDTH / contract.action.dim, "sft_data_path": f"{root}/data",
            "model": model,
            "optim": {"lr": config.lr, "value_lr": config.value_lr, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-8,
                      "weight_decay": config.weight_decay, "clip_grad": config.max_grad_norm,
                      "critic_warmup_steps": config.critic_warmup * ppo.epochs * minibatches},
            "fsdp_config": _fsdp()},
        "weight_syncer": {"type": "patch", "patch": {
            "snapshot_device": "cpu", "delta_encoding": True, "compression": "none",
            "init_sync": {"enabled": True, "prefixes": None, "bucket_size": 1 << 27}}},
        "reward": {"use_reward_model": False}, "critic": {"use_critic_model": False},
    }


def _batches(samples: int, minibatch_size: int) -> tuple[int, int, int]:
    """(samples of an optimizer step, of a GPU's micro-batch, optimizer steps per epoch), as near to minibatch_size as divides
    what each of the recipe's GPUs has of an iteration's samples."""
    per_gpu = samples // RECIPE_GPUS
    step = min((size for size in range(1, per_gpu + 1) if per_gpu % size == 0),
               key=lambda size: abs(size - minibatch_size / RECIPE_GPUS))
    micro = max(size for size in range(1, RECIPE_MICRO_BATCH + 1) if step % size == 0)
    return step * RECIPE_GPUS, micro, per_gpu // step


def _model(policy: Pi05Config, path: str) -> dict[str, Any]:
    chunk, steps = policy.chunk, policy.denoise_steps
    return {
        "model_type": "openpi", "model_path": path, "precision": None, "num_action_chunks": chunk, "action_dim": 7,
        "is_lora": False, "lora_rank": 32, "use_proprio": True, "num_steps": steps, "add_value_head": True,
        "policy_setup": "panda_wristcam",
        "openpi": {
            "config_name": RECIPE, "num_images_in_input": 1, "noise_level": 0.5, "action_chunk": chunk, "num_steps": steps,
            "train_expert_only": policy.rl_trains == "expert", "action_env_dim": 7, "noise_method": "flow_noise",
            "noise_logvar_range": list(policy.noise_std), "noise_params": [0.16, 0.12, 200], "joint_logprob": True,
            "action_horizon": policy.horizon, "add_value_head": True, "value_after_vlm": True, "value_vlm_mode": "mean_token",
            "detach_critic_input": policy.value_detach, "use_dsrl": False},
    }


def _env(config: StageTwoConfig, steps: int, videos: str, rollouts: int | None) -> dict[str, Any]:
    """rollouts: how often all environments run in an iteration; None = they evaluate, once."""
    train = rollouts is not None
    return {
        "env_type": "maniskill", "total_num_envs": RECIPE_ENVS, "rollout_epoch": rollouts or 1,
        "auto_reset": True, "ignore_terminations": True, "use_rel_reward": False, "seed": config.seed, "group_size": 1,
        "is_eval": not train, "use_fixed_reset_state_ids": False, "max_steps_per_rollout_epoch": steps,
        "max_episode_steps": steps, "reward_mode": "raw", "wrap_obs_mode": "raw", "enable_offload": False,
        "video_cfg": {"save_video": not train, "info_on_video": True, "video_base_dir": videos},
        "init_params": {
            "id": ENV_IDS[config.task], "num_envs": None, "obs_mode": "rgb+segmentation",
            "control_mode": "pd_ee_body_target_delta_pose_real_root_frame", "sim_backend": "gpu",
            "sim_config": {"sim_freq": 500, "control_freq": 5}, "max_episode_steps": steps,
            "sensor_configs": {"shader_pack": "default"}, "render_mode": "rgb_array"},
    }


def _fsdp() -> dict[str, Any]:
    return {
        "strategy": "fsdp", "sharding_strategy": "no_shard", "gradient_checkpointing": False, "cpu_offload": False,
        "offload_pin_memory": False, "reshard_after_forward": True, "enable_gradient_accumulation": True,
        "forward_prefetch": False, "limit_all_gathers": False, "backward_prefetch": None, "use_orig_params": False,
        "use_liger_kernel": False, "fsdp_size": -1,
        "mixed_precision": {"param_dtype": None, "reduce_dtype": None, "buffer_dtype": None},
        "amp_autocast": {"enabled": False, "precision": "bf16"}, "grad_scaler": {"enabled": False},
    }
