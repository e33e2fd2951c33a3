"""The text side of a corpus: what is said (group `text`), its phones (group `phones`), and SentencePiece units learned from it.

These groups come from `meta` alone: another lexicon or another front end remakes them and touches no audio.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines import shards
from data_pipelines.shards import Rejected
from ns2_jax.data import records
from ns2_jax.text import espeak, front, phones, units

SENTENCES = 1_000_000  # as many as SentencePiece learns from; more change no unit


def _english(lang: str) -> bool:
    return lang.lower().split("-")[0] == "en"


def check_languages(languages: Iterable[str]) -> None:
    """Raises ValueError for a language that has no phones here, ImportError when espeak-ng is missing for one that needs it."""
    for lang in languages:
        if _english(lang):
            front.phonemise("one")
            continue
        try:
            espeak.text_to_phonemes("a", lang)
        except ValueError as error:
            raise ValueError(f"the corpus has utterances in {lang!r}, which can't be phonemised: {error}. Leave them out, correct the "
                             "language, or set config.transcribed=False to keep the audio alone") from error


def normalise(text: str, lang: str = "en", lexicon: Mapping[str, Any] | None = None) -> str:
    """What is said: English by the front end's normaliser; other languages get one space between words and one form of each letter.

    Raises Rejected for a text without a pronounceable word.
    """
    if not _english(lang):
        text = " ".join(unicodedata.normalize("NFC", text).split())
        if not any(letter.isalnum() for letter in text):
            raise Rejected("unpronounceable", f"there is no pronounceable word in the text {text[:60]!r}")
        return text
    try:
        return front.normalise(text, lexicon or ())
    except ValueError as error:
        raise Rejected("unpronounceable", str(error)) from error


def phonemise(text: str, lang: str = "en", lexicon: Mapping[str, Any] | None = None) -> list[str]:
    """The phones that the front end gives a model at synthesis. Raises Rejected when there are none."""
    try:
        return front.phonemise(text, lexicon, lang)
    except ValueError as error:
        raise Rejected("unpronounceable", str(error)) from error


def fingerprint(lexicon: str) -> str:
    """Twelve hex digits of the user lexicon's file, "" for none. Raises FileNotFoundError."""
    return hashlib.sha256(pathlib.Path(lexicon).read_bytes()).hexdigest()[:12] if lexicon else ""


def normalise_shard(root: str, lexicon: str, split: str, shard: int, total: int) -> int:
    """Writes one shard of `text`."""
    table = front.read_lexicon(lexicon or None)

    def make(rows: dict[str, dict]) -> dict[str, str]:
        meta = rows["meta"]
        return {"text_norm": normalise(meta["text"], meta["lang"], table) if meta["text"].strip() else ""}

    info = {"lexicon": fingerprint(lexicon)}
    return shards.derive(root, "text", split, shard, total, make, empty={"text_norm": ""}, info=info)


def phonemise_shard(root: str, lexicon: str, split: str, shard: int, total: int) -> int:
    """Writes one shard of `phones`; the phones of the text as it is written, because the lexicon wins before normalisation."""
    table = front.read_lexicon(lexicon or None)

    def make(rows: dict[str, dict]) -> dict[str, np.ndarray]:
        meta = rows["meta"]
        if not meta["text"].strip():
            raise Rejected("empty_text", "it has no text")
        return {"phones": phones.ids(phonemise(meta["text"], meta["lang"], table)).astype(np.uint8)}

    info = {"lexicon": fingerprint(lexicon), "phones": phones.inventory_hash()}
    return shards.derive(root, "phones", split, shard, total, make, empty={"phones": np.zeros(0, np.uint8)}, info=info)


def units_group(model: str | os.PathLike) -> str:
    """The group of units that this SentencePiece model writes."""
    return f"units-{fingerprint(os.fspath(model))}"


def units_shard(root: str, model: str, split: str, shard: int, total: int) -> int:
    """Writes one shard of units: the normalised text as the ids of a SentencePiece model."""
    own = units.load(model)

    def make(rows: dict[str, dict]) -> dict[str, np.ndarray]:
        text = rows["text"]["text_norm"]
        if not text:
            raise Rejected("empty_text", "it has no text")
        return {"units": own.encode(text).astype(np.uint16)}

    return shards.derive(root, units_group(model), split, shard, total, make, empty={"units": np.zeros(0, np.uint16)}, sources=["text"],
                         info={"units": fingerprint(model), "size": own.size})


def _sentences(root: str, total: int, every: int) -> Iterator[str]:
    for k in range(total):
        reader = records.ShardReader(records.shard_path(root, "text", "train", k, total), "text")
        for i in range(0, len(reader.index), every):
            if text := reader.read(i)["text_norm"]:
                yield text
        reader.close()


def train_tokenizer(root: str | os.PathLike, total: int, count: int, size: int, kind: str) -> pathlib.Path:
    """Trains `size` SentencePiece units on the normalised text of train (`total` shards, `count` records) and returns the model's path.

    Of more than SENTENCES every so-manieth is taken. Raises FileNotFoundError without the group `text`, ValueError when the text
    is too small.
    """
    model = units.train(_sentences(str(root), total, -(-count // SENTENCES) or 1), size, kind)
    path = pathlib.Path(root) / "tokenizer" / f"{kind}-{size}.model"
    path.parent.mkdir(exist_ok=True)
    records.write_atomic(path, model)
    return path
