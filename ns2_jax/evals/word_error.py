"""Word and character error by an independent recogniser that works offline: `recognisers` has which.

Numbers of one recogniser never stand beside another's and are read against its own error on the recordings. Both sides go
through the same normaliser, which is English: other languages can't be scored. An output that is missing or has no signal
counts as all its words deleted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ns2_jax.audio import files
from ns2_jax.evals import recognisers, statistics
from ns2_jax.text import figures, numerals, tables
from ns2_jax.text.normalise import normalise


def words(text: str) -> list[str]:
    """The words that are compared: normalised text without punctuation. `[]` where nothing can be spoken."""
    try:
        normal = normalise(text)
    except ValueError:
        return []
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", normal)


def count(reference: str, hypothesis: str | None) -> dict[str, int]:
    """Word edits from `reference` to `hypothesis` (None: missing): substitutions, deletions, insertions, errors, words; and
    `character_errors` of `characters`, the blanks between words included.

    Raises ValueError for a reference without words: it has no error rate.
    """
    import jiwer  # part of the eval extra

    truth, heard = words(reference), words(hypothesis or "")
    if not truth:
        raise ValueError(f"reference {reference!r} has no words to compare")
    said, understood = " ".join(truth), " ".join(heard)
    sizes = {"words": len(truth), "characters": len(said)}
    if not heard:
        return {"substitutions": 0, "deletions": len(truth), "insertions": 0, "errors": len(truth), "character_errors": len(said), **sizes}
    edits, letters = jiwer.process_words(said, understood), jiwer.process_characters(said, understood)
    counts = {"substitutions": edits.substitutions, "deletions": edits.deletions, "insertions": edits.insertions}
    return {**counts, "errors": sum(counts.values()), "character_errors": letters.substitutions + letters.deletions + letters.insertions, **sizes}


def check(recogniser: str = "pocketsphinx") -> None:
    """Raises ImportError when a package is missing, and what is wrong with the recogniser (see `recognisers`)."""
    try:
        import jiwer
    except ImportError as error:
        raise ImportError(f"word error needs the package {error.name}: pip install -e '.[eval]'") from error
    del jiwer
    recognisers.find(recogniser).check()


def normaliser() -> str:
    """Names the code that both sides are normalised by."""
    return f"{normalise.__module__} {statistics.code(normalise.__module__, figures, numerals, tables)}"


def measure(texts: Sequence[str], audios: Sequence[np.ndarray | None], rate: int = recognisers.RATE, recogniser: str = "pocketsphinx",
            processes: int = 2, progress: bool = True) -> list[dict[str, Any]]:
    """One row per item: `heard` (None where the output is missing) and `count`; `missing` where there is no signal to hear.

    Raises ValueError for a text without words.
    """
    audios = files.resample_all(audios, rate, recognisers.RATE)
    for text in texts:
        count(text, "")
    heard = recognisers.find(recogniser).transcribe(audios, processes, progress)
    return [{"heard": h, **count(text, h), **({} if recognisers.has_signal(audio) else {"missing": True})}
            for text, audio, h in zip(texts, audios, heard, strict=True)]


def summarise(condition: str, rows: Sequence[dict[str, Any]], texts: Sequence[str], recogniser: str = "pocketsphinx", seed: int = 0,
              **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `wer_*` and `cer_*` (all errors over all words or characters, in %) and `wer_per_utterance_*` (the mean of
    the utterances' own rates) of all rows, in the order of their texts."""
    if len(rows) != len(texts):
        raise ValueError(f"word error of {len(rows)} rows and {len(texts)} texts: expected a row for each text")
    about = dict(unit="%", seed=seed, evaluator=recognisers.find(recogniser).name(), normaliser=normaliser(),
                 list=statistics.digest(words(text) for text in texts), missing=statistics.missing(rows), **fingerprint)
    deleted = "a missing output counts as all words deleted"
    column = lambda key: np.array([float(row[key]) for row in rows])
    return [
        statistics.score(f"wer_{condition}", 100 * column("errors"), column("words"), averaging=f"all errors over all words; {deleted}", **about),
        statistics.score(f"wer_per_utterance_{condition}", 100 * column("errors") / column("words"),
                         averaging=f"mean of the utterances' own rates; {deleted}", **about),
        statistics.score(f"cer_{condition}", 100 * column("character_errors"), column("characters"),
                         averaging=f"all errors over all characters; {deleted}", **about)]
