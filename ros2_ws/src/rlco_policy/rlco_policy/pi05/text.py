"""Instruction and proprioception -> prompt token ids, padded on the right."""

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from rlco_common.errors import DataError

PAD = 0
STATE_BINS = 256


class StatePrompt:
    """`Task: <instruction>, State: <one of 256 bins per element>;` as pi-0.5 reads it, or the instruction alone as pi-0."""

    def __init__(self, tokenizer: Tokenizer, length: int, with_state: bool):
        self._tokenizer, self._length, self._with_state = tokenizer, length, with_state
        self._edges = torch.linspace(-1, 1, STATE_BINS + 1, dtype=torch.float64)[:-1]

    def encode(self, instructions: list[str], state: Tensor) -> np.ndarray:
        """int32 [B, length]; state [B, S] normalised. Raises DataError on an empty or too long prompt."""
        return np.stack([self._pad(text, prompt) for text, prompt in zip(instructions, self.prompts(instructions, state),
                                                                          strict=True)])

    def prompts(self, instructions: list[str], state: Tensor) -> list[str]:
        texts = [text.strip().replace("_", " ").replace("\n", " ") for text in instructions]
        if not all(texts):
            raise DataError("an instruction with 0 words")
        if not self._with_state:
            return [f"{text}\n" for text in texts]
        bins = torch.bucketize(state.double().cpu(), self._edges, right=True) - 1
        return [f"Task: {text}, State: {' '.join(map(str, row))};\nAction: "
                for text, row in zip(texts, bins.tolist(), strict=True)]

    def _pad(self, text: str, prompt: str) -> np.ndarray:
        ids = self._tokenizer.encode(prompt).ids
        if len(ids) > self._length:
            raise DataError(f"instruction '{text}' needs {len(ids)} prompt tokens; max_prompt_tokens is {self._length}")
        row = np.full(self._length, PAD, np.int32)
        row[: len(ids)] = ids
        return row
