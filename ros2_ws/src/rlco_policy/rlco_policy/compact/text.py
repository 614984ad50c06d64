"""A word tokenizer without a vocabulary file: a word's id is a hash, the same on every machine."""

import re
import zlib
from functools import lru_cache

import numpy as np

from rlco_common.contract import Contract
from rlco_common.errors import ConfigError, DataError

PAD = 0
_WORD = re.compile(r"[a-z0-9]+")


class WordTokenizer:
    """Words of an instruction -> int32 ids [max_words], padded with 0."""

    def __init__(self, vocabulary: int, max_words: int):
        self.vocabulary, self.max_words = vocabulary, max_words
        self._encode_one = lru_cache(maxsize=4096)(self._encode_one)

    def word_id(self, word: str) -> int:
        return 1 + zlib.crc32(word.encode()) % (self.vocabulary - 1)

    def encode(self, instructions: list[str]) -> np.ndarray:
        """int32 [B, max_words]. Raises DataError on an instruction without words or with too many."""
        return np.stack([self._encode_one(text) for text in instructions])

    def _encode_one(self, text: str) -> np.ndarray:
        words = _WORD.findall(text.lower())
        if not 1 <= len(words) <= self.max_words:
            raise DataError(f"instruction '{text}' has {len(words)} words; the policy takes 1 to {self.max_words}")
        ids = np.full(self.max_words, PAD, np.int32)
        ids[: len(words)] = [self.word_id(word) for word in words]
        return ids

    def require_distinct(self, contract: Contract) -> None:
        """Raise ConfigError when two words of the contract's instructions share an id."""
        owner: dict[int, str] = {}
        for task in contract.tasks.values():
            texts = [*task.instructions, *(value for values in task.slots.values() for value in values)]
            for word in {word for text in texts for word in _WORD.findall(re.sub(r"\{\w+\}", " ", text).lower())}:
                other = owner.setdefault(self.word_id(word), word)
                if other != word:
                    raise ConfigError(f"the words '{word}' and '{other}' share an id with encoder.vocabulary = "
                                      f"{self.vocabulary}; choose another value, for example {self.vocabulary + 1}")
