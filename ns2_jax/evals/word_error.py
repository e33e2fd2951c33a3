"""Word error by an independent recogniser that works offline: pocketsphinx with its stock US English models.

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
    """Word edits from `reference` to `hypothesis` (None: missing): substitutions, deletions, insertions, errors, words.

    Raises ValueError for a reference without words: it has no error rate.
    """
    import jiwer  # part of the eval extra

    truth, heard = words(reference), words(hypothesis or "")
    if not truth:
        raise ValueError(f"reference {reference!r} has no words to compare")
    if not heard:
        return {"substitutions": 0, "deletions": len(truth), "insertions": 0, "errors": len(truth), "words": len(truth)}
    edits = jiwer.process_words(" ".join(truth), " ".join(heard))
    counts = {"substitutions": edits.substitutions, "deletions": edits.deletions, "insertions": edits.insertions}
    return {**counts, "errors": sum(counts.values()), "words": len(truth)}


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


def evaluate(name: str, texts: Sequence[str], audios: Sequence[np.ndarray | None], rate: int = RATE, seed: int = 0, processes: int = 2,
             progress: bool = True, **fingerprint: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The score line `name` (errors over words, in %) and one row per item: heard, errors, words and their kinds."""
    heard = transcribe(files.resample_all(audios, rate, RATE), processes, progress)
    rows = [{"heard": h, **count(t, h)} for t, h in zip(texts, heard, strict=True)]
    line = statistics.score(
        name, [100.0 * row["errors"] for row in rows], [row["words"] for row in rows], unit="%", seed=seed,
        averaging="all errors over all words; a missing output counts as all words deleted", evaluator=recogniser(),
        normaliser=normaliser(), list=statistics.digest(words(t) for t in texts), missing=sum(a is None for a in audios), **fingerprint)
    return line, rows
