"""Instruction -> prompt token ids, all of one length: `[BOS][padding][prompt]`."""

from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer

from rlco_common.errors import DataError

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"


class PromptTokenizer:
    """The prompt of OpenVLA v0.2 on. BOS stays in front, where the patches follow it; padding stands after it, masked."""

    def __init__(self, tokenizer: Tokenizer, *, length: int, bos: int, pad: int, empty: int):
        self._tokenizer, self._length, self._bos, self._pad, self._empty = tokenizer, length, bos, pad, empty
        self._encode_one = lru_cache(maxsize=4096)(self._encode_one)

    def encode(self, instructions: list[str]) -> np.ndarray:
        """int32 [B, length]. Raises DataError on an empty or too long instruction."""
        return np.stack([self._encode_one(text) for text in instructions])

    def _encode_one(self, text: str) -> np.ndarray:
        instruction = text.lower().strip()
        if not instruction:
            raise DataError("an instruction with 0 words")
        ids = self._tokenizer.encode(PROMPT.format(instruction=instruction)).ids
        body = ids[1:] if ids[:1] == [self._bos] else ids
        if body[-1] != self._empty:     # the prompts of training end with a space
            body = [*body, self._empty]
        if 1 + len(body) > self._length:
            raise DataError(f"instruction '{text}' needs {1 + len(body)} prompt tokens; max_prompt_tokens is {self._length}")
        row = np.full(self._length, self._pad, np.int32)
        row[0], row[-len(body):] = self._bos, body
        return row
