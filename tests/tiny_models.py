"""The large policies in sizes that tests can afford, built through the same classes, with tokenizers made here."""

import functools
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from rlco_common.contract import load_contract

EMPTY = "▁"
SPECIAL = ("<unk>", "<s>", "</s>")


@functools.cache
def openvla_tokenizer() -> Path:
    """A folder with a tokenizer.json like Llama's: BOS in front, a token for a single space; ids below 300."""
    return _train(SPECIAL, "<s>", 300)


def _train(special, bos, size) -> Path:
    contract = load_contract()
    texts = [text.lower() for task in contract.tasks.values() for text in task.instructions]
    texts += [value.lower() for task in contract.tasks.values() for values in task.slots.values() for value in values]
    texts += ["In: What action should the robot take to ?\nOut: ", "Task: , State: 0123456789-;\nAction: \n"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(EMPTY), normalizers.Replace(" ", EMPTY)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(EMPTY, "merged_with_next")
    tokenizer.decoder = decoders.Replace(EMPTY, " ")
    alphabet = sorted({letter for text in texts for letter in text} | {EMPTY})
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=list(special),
                                                             initial_alphabet=alphabet, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[
        (bos, tokenizer.token_to_id(bos))])
    folder = Path(tempfile.mkdtemp(prefix="rlco_tokenizer_"))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def openvla_config(**changes) -> dict:
    """Widths of 32, two encoders of two blocks, two language layers; 320 text tokens of which 256 are actions' rows."""
    folder = openvla_tokenizer()
    vocabulary = 300 + 256
    empty = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(EMPTY)
    return {
        "tokenizer": str(folder), "image_size": 56, "patch": 14, "empty_token": empty, "max_prompt_tokens": 40, "chunk": 2,
        "vision": [{"width": 32, "depth": 2, "heads": 4, "mlp": 64, "prefix_tokens": 5, "layer_scale": True},
                   {"width": 32, "depth": 2, "heads": 4, "mlp": 60, "attention_pool": True}],
        "language": {"vocab_size": vocabulary + 64, "pad_token_id": vocabulary, "hidden_size": 32, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "intermediate_size": 64},
        "lora": {"rank": 4}, "value_hidden": [16, 8],
    } | changes


@functools.cache
def pi05_tokenizer() -> Path:
    """A folder with a tokenizer.json like PaliGemma's: id 0 pads, BOS in front."""
    return _train(("<pad>", "<eos>", "<bos>", "<unk>"), "<bos>", 300)


def pi05_config(**changes) -> dict:
    """Two layers of width 32 in each part, 16 image tokens, 8 heads of 4."""
    return {
        "tokenizer": str(pi05_tokenizer()), "image_size": 56, "vocabulary": 300,
        "vision": {"width": 24, "depth": 2, "mlp": 48, "heads": 2, "patch": 14},
        "language": {"width": 32, "depth": 2, "mlp": 64, "head_dim": 4},
        "expert": {"width": 24, "depth": 2, "mlp": 48, "head_dim": 4}, "value_hidden": [16, 16, 8],
    } | changes
