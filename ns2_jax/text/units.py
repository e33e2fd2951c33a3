"""SentencePiece units: the other text mode, learned from text instead of written by phoneticians.

`sentencepiece` is imported at the first call. Id 0 is padding, 1 unknown, 2 and 3 begin and end.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def _sentencepiece() -> Any:
    import sentencepiece

    return sentencepiece


def train(sentences: Iterable[str], size: int = 512, kind: str = "unigram") -> bytes:
    """A serialised SentencePiece model with exactly `size` units. Raises ValueError when the text is too small for it."""
    model = io.BytesIO()
    try:
        _sentencepiece().SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=size, model_type=kind, pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            character_coverage=1.0, num_threads=1, minloglevel=2, shuffle_input_sentence=False)
    except RuntimeError as error:
        raise ValueError(f"cannot train {size} text units on this text: {str(error).splitlines()[-1]}") from error
    return model.getvalue()


class Units:
    """A loaded model: text to ids and back."""

    def __init__(self, source: bytes | str | os.PathLike):
        """`source`: the bytes of `train`, or a `.model` file. Raises FileNotFoundError for a missing file."""
        if not isinstance(source, bytes):
            with open(source, "rb") as file:
                source = file.read()
        self._processor = _sentencepiece().SentencePieceProcessor(model_proto=source)
        self.size: int = self._processor.vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """Ids `[p]` int32. Raises ValueError for empty text."""
        if not text.strip():
            raise ValueError("the text is empty; there is nothing to say")
        return np.asarray(self._processor.encode(text), np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; padding is ignored."""
        return self._processor.decode([int(index) for index in ids if int(index) > 0])


def load(source: bytes | str | os.PathLike) -> Units:
    """`Units(source)`."""
    return Units(source)
