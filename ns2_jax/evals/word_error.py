"""Word and character error by an independent recogniser that works offline: pocketsphinx with its stock US English models.

Weak next to Whisper (about 20 % on clean human speech), so its numbers never stand beside another recogniser's and
are read against the same recogniser's error on the recordings themselves. Both sides go through the same
normaliser. An output that is missing counts as all its words deleted.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import multiprocessing
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import statistics
from ns2_jax.text import figures, numerals, tables
from ns2_jax.text.normalise import normalise

RATE = 16000
_decoder = None  # one per worker process


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


def check() -> None:
    """Raises ImportError when a package that it needs is missing."""
    try:
        import jiwer
        import pocketsphinx
    except ImportError as error:
        raise ImportError(f"word error needs the package {error.name}: pip install -e '.[eval]'") from error
    del jiwer, pocketsphinx


def _start() -> None:
    global _decoder
    import pocketsphinx

    _decoder = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL")


def _hear(audio: np.ndarray | None) -> str | None:
    if audio is None:
        return None
    audio = np.pad(np.asarray(audio, np.float32), (RATE // 10, RATE // 10))  # it drops words that touch the ends
    pcm = (np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()
    try:
        _decoder.start_utt()
        _decoder.process_raw(pcm, no_search=False, full_utt=True)
        _decoder.end_utt()
    except RuntimeError:  # it gives up on some noise: then it has heard nothing, and a fresh decoder hears the next one
        _start()
        return ""
    heard = _decoder.hyp()
    return re.sub(r"\(\d+\)", "", heard.hypstr) if heard else ""


def transcribe(audios: Sequence[np.ndarray | None], processes: int = 2, progress: bool = True) -> list[str | None]:
    """What the recogniser hears in each `[s]` at 16 kHz (None stays None), in order; about a second each on one core."""
    check()
    # Spawned, not forked: a process that holds a JAX backend must not fork.
    with multiprocessing.get_context("spawn").Pool(max(1, min(processes, len(audios))), _start) as pool:
        heard = pool.imap(_hear, audios)
        return list(tqdm.tqdm(heard, "recognising", len(audios), disable=not progress, mininterval=2))


def recogniser() -> str:
    return f"pocketsphinx {importlib.metadata.version('pocketsphinx')} en-us, stock language model"


def normaliser() -> str:
    """Names the code that both sides are normalised by."""
    sources = "".join(inspect.getsource(module) for module in (inspect.getmodule(normalise), figures, numerals, tables))
    return f"{normalise.__module__} {hashlib.sha256(sources.encode()).hexdigest()[:8]}"


def evaluate(condition: str, texts: Sequence[str], audios: Sequence[np.ndarray | None], rate: int = RATE, seed: int = 0, processes: int = 2,
             progress: bool = True, **fingerprint: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Score lines `wer_*` and `cer_*` (all errors over all words or characters, in %), `wer_per_utterance_*` (the mean of
    the utterances' own rates), and one row per item: heard, errors, words and their kinds."""
    heard = transcribe(files.resample_all(audios, rate, RATE), processes, progress)
    rows = [{"heard": h, **count(t, h)} for t, h in zip(texts, heard, strict=True)]
    about = dict(unit="%", seed=seed, evaluator=recogniser(), normaliser=normaliser(), list=statistics.digest(words(t) for t in texts),
                 missing=sum(a is None for a in audios), **fingerprint)
    deleted = "a missing output counts as all words deleted"
    column = lambda key: np.array([float(row[key]) for row in rows])
    lines = [
        statistics.score(f"wer_{condition}", 100 * column("errors"), column("words"), averaging=f"all errors over all words; {deleted}", **about),
        statistics.score(f"wer_per_utterance_{condition}", 100 * column("errors") / column("words"),
                         averaging=f"mean of the utterances' own rates; {deleted}", **about),
        statistics.score(f"cer_{condition}", 100 * column("character_errors"), column("characters"),
                         averaging=f"all errors over all characters; {deleted}", **about)]
    return lines, rows
