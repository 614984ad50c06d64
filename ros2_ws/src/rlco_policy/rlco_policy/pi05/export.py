"""Writes a `pi05` policy as a LeRobot checkpoint: PI05Policy.from_pretrained and LeRobot's processors load it."""

import json
from pathlib import Path

import torch
from lerobot.configs import NormalizationMode
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    RelativeActionsProcessorStep,
    TokenizerProcessorStep,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.utils.constants import ACTION, OBS_STATE
from transformers import PreTrainedTokenizerFast

from rlco_common.folders import new_folder
from rlco_policy.hub import read_tokenizer, write_weights
from rlco_policy.lora import merged_state
from rlco_policy.pi05.model import EMBEDDING, EXPERT_HEAD, LANGUAGE_HEAD, lerobot_config
from rlco_policy.pi05.policy import Pi05
from rlco_policy.pi05.text import PAD

TOKENIZER = "tokenizer"
PUBLISHED_TOKENIZER = "google/paligemma-3b-pt-224"


def write_lerobot(policy: Pi05, directory: str | Path) -> Path:
    """Write config.json, model.safetensors, the processors with this policy's normalisation, and tokenizer/.

    Adapters are merged. The language head is the embedding that it is tied to; the expert's head, which pi-0.5 does not
    use and LeRobot asks for, is zero. Noise head and critic stay in our own checkpoint. `directory` must not exist yet.
    """
    directory = Path(directory).absolute()
    with new_folder(directory) as staging:
        (staging / TOKENIZER).mkdir()
        (staging / TOKENIZER / "tokenizer.json").write_bytes(policy.small_files["tokenizer.json"])
        config = lerobot_config(policy.config, policy.cameras, policy.spec.proprio_dim, policy.spec.action_dim)
        if policy.stored is not None:
            config.normalization_mapping = {kind: NormalizationMode(mode) for kind, mode in policy.stored.modes.items()}
        config.save_pretrained(staging)
        state = merged_state(policy.model)
        width = policy.config.expert.width
        state |= {LANGUAGE_HEAD: state[EMBEDDING].clone(),
                  EXPERT_HEAD: torch.zeros(policy.config.vocabulary, width, dtype=state[EMBEDDING].dtype)}
        write_weights({f"model.{name}": tensor for name, tensor in state.items()}, staging, shard_bytes=1 << 60)
        _write_processors(policy, config, staging)
    return directory


def statistics(policy: Pi05) -> dict[str, dict[str, torch.Tensor]]:
    """What the policy normalises by, as LeRobot's processors take it: the checkpoint's statistics, or limits as quantiles."""
    if policy.stored is not None:
        return policy.stored.statistics
    low, high = policy.state_quantiles()
    return {ACTION: {"q01": policy.normalizer.low.cpu(), "q99": policy.normalizer.high.cpu()},
            OBS_STATE: {"q01": low, "q99": high}}


def _write_processors(policy: Pi05, config, directory: Path) -> None:
    """LeRobot's pipelines of pi-0.5. Their file names the tokenizer on the hub, as LeRobot's own checkpoints do."""
    plain = read_tokenizer(directory / TOKENIZER)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=plain.id_to_token(PAD))
    tokenizer.save_pretrained(directory / TOKENIZER)
    steps = make_default_policy_processor_steps(config, statistics(policy))
    relative = RelativeActionsProcessorStep(enabled=False)
    text = TokenizerProcessorStep(tokenizer=tokenizer, max_length=config.tokenizer_max_length, padding_side="right",
                                  padding="max_length")
    inputs = [steps.rename_observations, steps.add_batch_dim, relative, steps.normalize,
              Pi05PrepareStateTokenizerProcessorStep(max_state_dim=config.max_state_dim), text, steps.to_device]
    outputs = [steps.unnormalize, AbsoluteActionsProcessorStep(enabled=False, relative_step=relative), steps.to_cpu]
    for pipeline in make_policy_processor_pipelines(input_steps=inputs, output_steps=outputs):
        pipeline.save_pretrained(directory)
    path = directory / "policy_preprocessor.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for step in content["steps"]:
        if step["registry_name"] == "tokenizer_processor":
            step["config"]["tokenizer_name"] = PUBLISHED_TOKENIZER
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
