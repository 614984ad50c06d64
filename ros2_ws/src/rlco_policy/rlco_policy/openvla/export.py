"""Writes an `openvla` policy as a checkpoint in OpenVLA's own layout, adapters merged in."""

import json
from pathlib import Path
from typing import Any

import torch

from rlco_common.folders import new_folder
from rlco_policy.hub import write_weights
from rlco_policy.lora import merged_state
from rlco_policy.openvla.policy import OpenVla

VISION_IDS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")


def write_openvla(policy: OpenVla, directory: str | Path, *, dtype: torch.dtype | None = torch.bfloat16,
                  shard_bytes: int = 7_000_000_000) -> Path:
    """Write weights, config.json with this policy's action statistics, tokenizer and the other files of its base.

    `unnorm_key` in OpenVLA's code is then the policy's own, whose entry stays as the base has it, or `rlco_<contract>` where
    the contract's limits are used.
    dtype: of the weights, the published one by default; None keeps the policy's. `directory` must not exist yet.
    """
    directory = Path(directory).absolute()
    with new_folder(directory) as staging:
        for name, content in policy.small_files.items():
            (staging / name).write_bytes(content)
        state = merged_state(policy.model)
        write_weights({name: tensor if dtype is None else tensor.to(dtype) for name, tensor in state.items()}, staging,
                      shard_bytes)
        _write_config(policy, staging)
    return directory


def _write_config(policy: OpenVla, directory: Path) -> None:
    """OpenVLA's code reads action statistics from config.json, or from dataset_statistics.json where there is one."""
    path, beside = directory / "config.json", directory / "dataset_statistics.json"
    content = _read(path) or _new_config(policy)
    own = _norm_stats(policy, content)
    content["norm_stats"] = content.get("norm_stats", {}) | own
    for file, written in ((path, content), (beside, _read(beside) | own)):
        file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _norm_stats(policy: OpenVla, config: dict[str, Any]) -> dict[str, Any]:
    """The policy's key and its entry: the base's as it is, or the contract's limits as quantiles."""
    key = policy.config.unnorm_key
    if key:
        return {key: config["norm_stats"][key]}
    low, high = policy.contract.action.low.tolist(), policy.contract.action.high.tolist()
    return {f"rlco_{policy.contract.name}": {
        "action": {"q01": low, "q99": high, "min": low, "max": high, "mask": [True] * len(low)}}}


def _new_config(policy: OpenVla) -> dict[str, Any]:
    config = policy.config
    return {
        "architectures": ["OpenVLAForActionPrediction"], "model_type": "openvla", "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px", "llm_backbone_id": "llama2-7b-pure",
        "image_resize_strategy": "resize-naive", "use_fused_vision_backbone": True,
        "timm_model_ids": list(VISION_IDS), "timm_override_act_layers": [None, None],
        "image_sizes": [config.image_size] * 2, "n_action_bins": config.bins,
        "pad_to_multiple_of": config.vocabulary_padding, "pad_token_id": config.language.get("pad_token_id"),
        "text_config": {"model_type": "llama", **config.language},
    }
