"""OpenVLA: equal to the official code, its checkpoints read and written unchanged, prompts and actions as it was trained."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from policies import BATCH, CONTRACT, actions, generator, make_policy, observations
from safetensors.torch import load_file, save_file
from tiny_models import EMPTY, openvla_config, openvla_tokenizer
from tokenizers import Tokenizer
from transformers import DynamicCache

from rlco_common.errors import ConfigError, DataError
from rlco_policy.checkpoint import WEIGHTS, load_policy, save_policy
from rlco_policy.hub import INDEX, ModelFolder, read_tokenizer
from rlco_policy.lora import LoraConfig, adapt, merged_state
from rlco_policy.openvla.actions import ActionBins
from rlco_policy.openvla.config import OpenVlaConfig, VitConfig
from rlco_policy.openvla.export import write_openvla
from rlco_policy.openvla.model import OpenVlaModel, llama_config
from rlco_policy.openvla.text import PromptTokenizer
from rlco_policy.quantiles import QuantileNormalizer

GOLDEN = Path(__file__).parent / "data" / "openvla_golden.npz"
GOLDEN_SIZES = {
    "vision": [{"width": 64, "depth": 3, "heads": 4, "mlp": 256, "prefix_tokens": 5, "layer_scale": True},
               {"width": 64, "depth": 3, "heads": 4, "mlp": 239}],
    "language": {"vocab_size": 32064, "pad_token_id": 32000, "hidden_size": 64, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "intermediate_size": 128},
}


@pytest.fixture(scope="module")
def golden():
    """What the official code computes from a tiny random checkpoint in its own key layout."""
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def published(golden, tmp_path_factory):
    """The golden checkpoint as a folder of the hub: two shards in bfloat16's place, config.json, tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    weights = {name.removeprefix("w::"): tensor for name, tensor in golden.items() if name.startswith("w::")}
    embedding, head = torch.zeros(32064, 64), torch.zeros(32064, 64)
    embedding[golden["rows"]], head[31744:32000] = golden["embed_rows"], golden["head_rows"]
    weights |= {"language_model.model.embed_tokens.weight": embedding, "language_model.lm_head.weight": head}
    names = sorted(weights)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, members in shards.items():
        save_file({name: weights[name].contiguous() for name in members}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, members in shards.items() for name in members}}
    (folder / INDEX).write_text(json.dumps(index))
    statistics = {"q01": golden["q01"].tolist(), "q99": golden["q99"].tolist(), "mask": [True] * 6 + [False]}
    (folder / "config.json").write_text(json.dumps({
        "model_type": "openvla", "text_config": {"model_type": "llama", **GOLDEN_SIZES["language"]},
        "norm_stats": {"bridge_orig": {"action": statistics}}, "n_action_bins": 256}))
    (folder / "tokenizer.json").write_bytes((openvla_tokenizer() / "tokenizer.json").read_bytes())
    return folder


def golden_policy(folder, **changes):
    config = {"pretrained": str(folder), "vision": GOLDEN_SIZES["vision"], "empty_token": 5, "max_prompt_tokens": 40} | changes
    return make_policy("openvla", config)


@pytest.fixture(scope="module")
def policy():
    return make_policy("openvla", openvla_config())


@pytest.fixture(scope="module")
def inputs(policy):
    return policy.preprocess(observations(size=56))


# -- the official code


def test_logits_log_probability_and_hidden_state_are_those_of_the_official_code(golden, published):
    model = golden_policy(published).model
    tokens, prompt = golden["action_tokens"], golden["prompt_ids"]
    with torch.no_grad():
        sequence = model.embed(golden["pixel_values"], prompt, torch.ones_like(prompt, dtype=torch.bool))
        hidden = model.hidden(sequence, tokens[:, :-1])
        logits = model.action_logits(hidden)[0]
        cache = DynamicCache()
        stepped = [model.hidden(sequence, cache=cache)[:, 0]]
        stepped += [model.step(tokens[:, i], sequence, cache) for i in range(6)]
    logprob = logits.log_softmax(-1).gather(-1, tokens[0, :, None] - 31744)[:, 0]
    pairs = ((logits, "action_logits"), (logprob, "logprob"), (hidden[0, 0], "hidden_a0"))
    for ours, name in pairs:
        official = golden[name]
        torch.testing.assert_close(ours, official, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.stack(stepped, 1), hidden, atol=1e-5, rtol=0)      # with and without the cache


def test_padding_after_bos_changes_nothing(golden, published):
    model = golden_policy(published).model
    prompt = golden["prompt_ids"]
    padded = torch.cat([prompt[:, :1], torch.full((1, 9), 32000), prompt[:, 1:]], 1)
    with torch.no_grad():
        plain, longer = (model.hidden(model.embed(golden["pixel_values"], ids, ids != 32000), golden["action_tokens"])
                         for ids in (prompt, padded))
    torch.testing.assert_close(longer, plain, atol=1e-5, rtol=0)


def test_the_last_bin_decodes_and_unnormalises_as_in_the_official_code(golden):
    """Its statistics reach beyond our contract's limits, to which the first two dimensions are clipped here."""
    statistics = {name: golden[name].tolist() for name in ("q01", "q99")} | {"mask": [True] * 6 + [False]}
    normalizer = QuantileNormalizer(CONTRACT.action, statistics, "test")
    physical = normalizer.denormalise(ActionBins(256).normalised_of(torch.zeros(7, dtype=torch.long)))
    limits = torch.tensor(CONTRACT.action.high)
    torch.testing.assert_close(physical, golden["greedy_action"].minimum(limits).float(), atol=1e-6, rtol=0)


def test_a_published_checkpoint_is_written_back_key_for_key(golden, published, tmp_path):
    written = write_openvla(golden_policy(published), tmp_path / "written", dtype=None, shard_bytes=9_000_000)
    before, after = dict(ModelFolder(published).tensors()), dict(ModelFolder(written).tensors())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(set(ModelFolder(written).shards.values())) > 1
    assert json.loads((written / INDEX).read_text())["metadata"]["total_size"] == sum(t.nbytes for t in after.values())
    assert (written / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (published, written))
    assert new["norm_stats"].pop("rlco_panda_tabletop")["action"]["q99"] == pytest.approx(CONTRACT.action.high)
    assert new == old


def test_the_key_layout_is_that_of_openvla_7b():
    """Names and shapes on the meta device, and the parameter count of the published model."""
    with torch.device("meta"):
        model = OpenVlaModel(OpenVlaConfig(tokenizer="unused"))
    state = model.state_dict()
    assert state["vision_backbone.featurizer.blocks.23.ls2.scale_factor"].shape == (1024,)
    assert state["vision_backbone.featurizer.reg_token"].shape == (1, 4, 1024)
    assert state["vision_backbone.fused_featurizer.attn_pool.kv.weight"].shape == (2304, 1152)
    assert state["projector.fc1.weight"].shape == (8704, 2176)
    assert state["language_model.lm_head.weight"].shape == (32064, 4096)
    count = {part: sum(tensor.numel() for name, tensor in state.items() if name.startswith(part) and "attn_pool" not in name)
             for part in ("vision_backbone.featurizer", "vision_backbone.fused", "projector", "language_model")}
    assert {part: round(number / 1e6, 1) for part, number in count.items()} == {
        "vision_backbone.featurizer": 303.2, "vision_backbone.fused": 412.4, "projector": 71.4, "language_model": 6738.9}


def test_the_language_model_is_configured_from_the_checkpoint_and_not_from_llama_2():
    llama = llama_config(OpenVlaConfig(tokenizer="unused"))
    assert (llama.rms_norm_eps, llama.hidden_size, llama.num_hidden_layers, llama.intermediate_size) == (1e-6, 4096, 32, 11008)
    other = llama_config(OpenVlaConfig(tokenizer="unused", language={"rms_norm_eps": 1e-5, "pad_token_id": 32000}))
    assert other.rms_norm_eps == 1e-5


def test_a_checkpoint_of_other_sizes_or_without_its_files_is_refused_by_name(published, tmp_path):
    with pytest.raises(DataError, match=r"in the model; give the model's sizes"):
        golden_policy(published, vision=[{"width": 128, "depth": 3, "heads": 4, "mlp": 256}] * 2)
    with pytest.raises(DataError, match=r"neither a folder here nor"):
        golden_policy(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"unnorm_key 'fractal'.*bridge_orig"):
        golden_policy(published, unnorm_key="fractal")
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    with pytest.raises(DataError, match=r"tokenizer.json: no such file"):
        golden_policy(tmp_path)


# -- actions


def test_tokens_are_the_published_formula():
    """token id = 32000 - digitize(a); here as rows from 31744 on."""
    values = np.concatenate([np.linspace(-1.2, 1.2, 1001), np.linspace(-1, 1, 256)])
    ids = 32000 - np.digitize(np.clip(values, -1, 1), np.linspace(-1, 1, 256))
    bins = ActionBins(256)
    rows = bins.rows_of(torch.from_numpy(values))
    assert np.array_equal(rows.numpy() + 31744, ids)
    centres = np.linspace(-1, 1, 256)[:-1] + 1 / 255
    decoded = centres[np.clip(32000 - ids - 1, 0, 254)]
    np.testing.assert_allclose(bins.normalised_of(rows).numpy(), decoded, atol=1e-6)
    inside = np.abs(values) <= 1
    assert np.abs(decoded - values)[inside].max() <= 0.004
    assert torch.equal(bins.normalised_of(torch.tensor([0])), bins.normalised_of(torch.tensor([1])))     # a known twin


def test_quantile_normalisation_passes_masked_dimensions_through(golden):
    statistics = {"q01": golden["q01"].tolist(), "q99": golden["q99"].tolist(), "mask": [True] * 6 + [False]}
    statistics["q99"][5] = statistics["q01"][5]
    normalizer = QuantileNormalizer(CONTRACT.action, statistics, "test")
    physical = torch.tensor([[0.05, -0.04, 0.01, 0.2, -0.2, 0.1, 0.25]])
    unit = normalizer.normalise(physical)
    torch.testing.assert_close(unit[0, :4], torch.tensor([1.0, -1.0, -0.2, 1.0]), atol=1e-4, rtol=0)
    assert unit[0, 5] == 0.0 and unit[0, 6] == 0.25
    torch.testing.assert_close(normalizer.denormalise(unit)[0, [0, 1, 2, 3, 4, 6]], physical[0, [0, 1, 2, 3, 4, 6]], atol=1e-6,
                               rtol=0)
    assert normalizer.denormalise(torch.full((1, 7), 5.0))[0, 6] == 1.0      # within the contract's limits
    with pytest.raises(ConfigError, match="7 numbers"):
        QuantileNormalizer(CONTRACT.action, {"q01": [0.0], "q99": [1.0]}, "test")


def test_the_statistics_of_the_checkpoint_are_used_and_kept(published, tmp_path):
    own = golden_policy(published, unnorm_key="bridge_orig", image_size=224)
    assert own.normalizer.q99[1] == pytest.approx(0.06)
    save_policy(own, tmp_path / "a", whole=True)
    assert torch.equal(load_policy(tmp_path / "a").normalizer.q99, own.normalizer.q99)


def test_the_statistics_of_the_checkpoint_are_written_back_as_they_were(published, tmp_path):
    """The whole entry: mean, std, proprioception and the last digit, and the other entries beside it."""
    base = shutil.copytree(published, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    entry = config["norm_stats"]["bridge_orig"]
    entry["action"] |= {"mean": [0.1] * 7, "std": [1 / 3] * 7, "min": [-0.7] * 7, "max": [0.9] * 7}
    entry["action"]["q01"] = [-0.1 + i / 1000 for i in range(7)]
    entry |= {"proprio": {"mean": [0.2] * 7, "std": [0.3] * 7}, "num_transitions": 5}
    (base / "config.json").write_text(json.dumps(config))
    (base / "dataset_statistics.json").write_text(json.dumps({"another": {"action": {}}}))
    own = load_policy(save_policy(golden_policy(base, unnorm_key="bridge_orig"), tmp_path / "saved"))
    written = write_openvla(own, tmp_path / "written")
    assert json.loads((written / "config.json").read_text()) == config
    assert json.loads((written / "dataset_statistics.json").read_text()) == {"another": {"action": {}}, "bridge_orig": entry}
    again = golden_policy(written, unnorm_key="bridge_orig")
    assert torch.equal(again.normalizer.q01, own.normalizer.q01) and torch.equal(again.normalizer.q99, own.normalizer.q99)


def test_the_limits_of_the_contract_are_written_to_the_last_digit(policy, tmp_path):
    written = write_openvla(policy, tmp_path / "written")
    for name, read in (("config.json", lambda content: content["norm_stats"]), ("dataset_statistics.json", dict)):
        entry = read(json.loads((written / name).read_text()))["rlco_panda_tabletop"]["action"]
        assert entry["q01"] == entry["min"] == list(CONTRACT.action.low)
        assert entry["q99"] == entry["max"] == list(CONTRACT.action.high) and entry["mask"] == [True] * 7


# -- prompts


def test_the_prompt_ends_with_the_token_of_a_space_and_bos_stays_in_front(policy, inputs):
    tokenizer = Tokenizer.from_file(str(openvla_tokenizer() / "tokenizer.json"))
    empty, row = policy.config.empty_token, inputs["tokens"][0].tolist()
    assert row[0] == 1 and row[-1] == empty == tokenizer.token_to_id(EMPTY) and 1 not in row[1:]
    pad = policy.config.language["pad_token_id"]
    text = tokenizer.decode([token for token in row[1:] if token != pad])
    assert text.strip() == "In: What action should the robot take to push the red cube?\nOut:"
    shouted = policy.preprocess(dataclasses.replace(observations(size=56), instruction=["PUSH the Red cube "] * BATCH))
    assert torch.equal(shouted["tokens"][0], inputs["tokens"][0])


def test_a_prompt_that_does_not_fit_is_refused():
    tokenizer = PromptTokenizer(read_tokenizer(openvla_tokenizer()), length=8, bos=1, pad=600, empty=5)
    with pytest.raises(DataError, match=r"max_prompt_tokens is 8"):
        tokenizer.encode(["push the red cube"])


# -- cost and memory


def test_only_the_action_rows_of_the_head_are_computed(policy, inputs, monkeypatch):
    def refuse(*_):
        raise AssertionError("the whole vocabulary was computed")

    monkeypatch.setattr(policy.model, "all_logits", refuse)
    handle = policy.model.language_model.lm_head.register_forward_hook(refuse)
    try:
        sampled = policy.sample(inputs, generator=generator())
        policy.evaluate(inputs, sampled.trace)
        policy.sft_loss(inputs, actions(policy), generator=generator())
    finally:
        handle.remove()


def test_the_loss_over_the_vocabulary_also_pushes_other_tokens_down(policy, inputs):
    whole = make_policy("openvla", openvla_config(loss="vocabulary"))
    losses = [own.sft_loss(inputs, actions(own), generator=generator()).loss for own in (policy, whole)]
    assert losses[1] > losses[0] + 0.1


def test_gradient_checkpointing_changes_memory_and_not_gradients(inputs):
    gradients = []
    for flag in (False, True):
        own = make_policy("openvla", openvla_config(gradient_checkpointing=flag, trains="all"))
        own.sft_loss(inputs, actions(own), generator=generator()).loss.backward()
        gradients.append([parameter.grad for parameter in own.param_groups()["policy"]])
        sampled = own.sample(inputs, generator=generator())
        assert (own.evaluate(inputs, sampled.trace).logprob - sampled.logprob).abs().max() < 1e-4
    assert len(gradients[0]) == len(gradients[1]) > 50
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


# -- adapters and checkpoints


def test_adapters_change_nothing_at_first_and_merge_into_the_plain_weights(tmp_path):
    plain = make_policy("openvla", openvla_config(trains="all", lora={"rank": 0}))
    adapted = make_policy("openvla", openvla_config())
    x = plain.preprocess(observations(size=56))
    assert torch.equal(plain.value(x), make_policy("openvla", openvla_config(trains="all", lora={"rank": 0})).value(x))
    before = {name: tensor.clone() for name, tensor in merged_state(adapted.model).items()}
    assert before.keys() == plain.model.state_dict().keys()
    with torch.no_grad():
        for parameter in adapted.param_groups()["policy"]:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(1)))
    merged = merged_state(adapted.model)
    assert not torch.equal(merged["projector.fc1.weight"], before["projector.fc1.weight"])
    plain.model.load_state_dict(merged)
    plain.value_head.load_state_dict(adapted.value_head.state_dict())
    trace = adapted.sample(x, generator=generator()).trace
    torch.testing.assert_close(plain.evaluate(x, trace).logprob, adapted.evaluate(x, trace).logprob, atol=1e-4, rtol=0)


def test_every_targeted_layer_that_computes_something_is_adapted():
    with torch.device("meta"):
        model = OpenVlaModel(OpenVlaConfig(tokenizer="unused"))
    count = adapt(model, LoraConfig(), lambda name: not model.unused(name + "."))
    assert count == 23 * 4 + 26 * 4 + 3 + 32 * 7 + 1     # all but the last block of each tower, and the pool
    trained = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert trained == pytest.approx(110e6, rel=0.02)


def test_a_checkpoint_leaves_the_base_out_and_finds_it_again(published, tmp_path):
    own = golden_policy(published)
    with torch.no_grad():
        for parameter in own.param_groups()["policy"]:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator()))
    saved = save_policy(own, tmp_path / "a")
    stored = load_file(saved / WEIGHTS)
    assert {name.rpartition(".")[2] for name in stored if name.startswith("model.")} == {"lora_a", "lora_b"}
    x = own.preprocess(observations(size=224))
    assert torch.equal(load_policy(saved, CONTRACT).value(x), own.value(x))
    again = save_policy(load_policy(saved), tmp_path / "b")       # a resumed run saves the same
    assert all(torch.equal(stored[name], tensor) for name, tensor in load_file(again / WEIGHTS).items())
    whole = save_policy(own, tmp_path / "whole", whole=True)
    shard = max(published.glob("*.safetensors"))
    content = shard.read_bytes()
    try:
        weights = load_file(shard)
        save_file({name: tensor + 1 for name, tensor in weights.items()}, shard)
        with pytest.raises(DataError, match="other weights"):
            load_policy(saved)
        assert torch.equal(load_policy(whole).value(x), own.value(x))
    finally:
        shard.write_bytes(content)


def test_an_altered_tokenizer_is_refused(policy, tmp_path):
    saved = save_policy(policy, tmp_path / "a")
    path = saved / "assets" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(DataError, match="altered after it was saved"):
        load_policy(saved)


def test_bfloat16_trains_float32_adapters_and_gives_float32_log_probabilities(policy, inputs):
    half = make_policy("openvla", openvla_config(dtype="bfloat16"))
    half.load_state_dict(policy.state_dict())
    assert all(parameter.dtype == torch.float32 for group in half.param_groups().values() for parameter in group)
    trace = policy.sample(inputs, generator=generator()).trace
    exact, rough = policy.evaluate(inputs, trace).logprob, half.evaluate(inputs, trace).logprob
    assert rough.dtype == torch.float32 and (rough - exact).abs().mean() < 0.02
    half.sft_loss(inputs, actions(half), generator=generator()).loss.backward()
    with pytest.raises(ConfigError, match="small steps"):
        make_policy("openvla", openvla_config(dtype="bfloat16", trains="all"))


def test_the_vision_towers_differ_in_what_the_checkpoint_says():
    with pytest.raises(ValueError, match="divisible by heads"):
        VitConfig(10, 3, 4, 20)
    with pytest.raises(ConfigError, match="tokenizer"):
        make_policy("openvla", {})
