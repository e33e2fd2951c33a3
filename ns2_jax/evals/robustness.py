"""Skipped and repeated words, by forced alignment with a grammar in which every word may be left out or said again.

pocketsphinx searches the best path through the sentence's own words: a word not on it was skipped, one on it twice was
repeated. Costs were set on recordings. Over 100 recordings of flite (945 words) nothing is flagged as skipped and 3 words as
repeated; with one word of each cut out, 97 % are caught, with one doubled, 97 % (what escapes is "a"). Because the judge errs
on recordings too, a word counts only where the recording of the same sentence is not flagged at it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import recognisers, statistics, word_error
from ns2_jax.text import front, phones, sphinx

RATE = sphinx.RATE
SAY, SKIP, AGAIN = 1e-2, 1.0, 1e-4  # weights of the grammar's arcs; the acoustic scores are per frame and far larger
BACK = 3  # words at most between a word and what is said again
USER = "robustness"
KINDS = ("skipped", "repeated")
_floors: dict[tuple[bytes, str], dict[str, Any]] = {}  # verdicts on recordings: the same for every condition


def check() -> None:
    """Raises ImportError when a package that it needs is missing."""
    try:
        import pocketsphinx
    except ImportError as error:
        raise ImportError(f"robustness needs the package {error.name}: pip install -e '.[eval]'") from error
    del pocketsphinx


def spoken_words(text: str) -> list[front.Word]:
    """The words of a text that have sounds. Raises ValueError for a phone that the English acoustic model lacks."""
    words = [word for word in front.words(text) if word.phones and tuple(word.phones) != (phones.SILENCE,)]
    for word in words:
        strange = [phone for phone in word.phones if phone not in phones.ENGLISH]
        if strange:
            raise ValueError(f"{text!r}: phone {strange[0]!r} of {word.text!r} is not in the English acoustic model")
    return words


def path(audio: np.ndarray, pronunciations: Sequence[tuple[str, ...]], skip: float = SKIP,
         again: float = AGAIN) -> list[tuple[int, int, int]]:
    """(place of the word, first sample, end) along the best path through `[s]` at RATE; empty where the search fails."""
    arcs: list[tuple] = []
    for place, pronunciation in enumerate(pronunciations):
        # A place in the sentence is a word of its own, or repeats could not be told.
        arcs += [(place, place + 1, SAY, sphinx.word(USER, f"w{place}", tuple(pronunciation))), (place, place + 1, skip)]
        arcs += [(place + 1, place - back, again) for back in range(min(BACK, place + 1))]
    decoder, name = sphinx.decoder(USER), "sentence"
    decoder.add_fsg(name, decoder.create_fsg(name, 0, len(pronunciations), arcs))
    decoder.activate_search(name)
    pcm = (np.clip(np.pad(np.asarray(audio, np.float32), RATE // 10), -1, 1) * 32767).astype("<i2").tobytes()
    decoder.reinit_feat()  # or its estimate of the noise goes on from the utterance before
    try:
        decoder.start_utt()
        decoder.process_raw(pcm, full_utt=True)
        decoder.end_utt()
        segments = list(decoder.seg()) if decoder.hyp() else []
    except RuntimeError:  # it gives up on some noise; a fresh decoder serves the next one
        sphinx.restart()
        return []
    found = [(one.word, one.start_frame, one.end_frame + 1) for one in segments if one.word.startswith("w")]
    at = lambda frame: min(max(frame * RATE // 100 - RATE // 10, 0), len(audio))
    return [(int(word[1:].split("_")[0]), at(first), at(end)) for word, first, end in found]


def verdict(audio: np.ndarray | None, text: str) -> dict[str, Any]:
    """`skipped` and `repeated`: places of words (from 0), and `words`: how many there are. Without a signal all are skipped."""
    words = spoken_words(text)
    if not recognisers.has_signal(audio):
        return {"skipped": list(range(len(words))), "repeated": [], "words": len(words)}
    seen = [place for place, _, _ in path(audio, [tuple(word.phones) for word in words])]
    skipped, repeated = ([k for k in range(len(words)) if test(seen.count(k))] for test in (lambda n: n == 0, lambda n: n > 1))
    return {"skipped": skipped, "repeated": repeated, "words": len(words)}


def floor_of(rows: Sequence[dict[str, Any]]) -> str:
    """Names the floor for fingerprints by what the judge flags in it, so that systems compare only against the same one."""
    floors = [row["floor"] for row in rows]
    there = [one for one in floors if one is not None]
    if not there:
        return "none"
    many = "recordings" if len(there) == len(floors) else f"{len(there)} recordings of {len(floors)}"
    return f"{many}, {sum(len(one[key]) for one in there for key in KINDS)} words flagged in them, {statistics.digest(floors)}"


def measure(texts: Sequence[str], audios: Sequence[np.ndarray | None], recordings: Sequence[np.ndarray | None] | None = None,
            rate: int = RATE, progress: bool = True) -> list[dict[str, Any]]:
    """One row per item: `verdict`, and `said`, which names text and phones.

    With `recordings`, a word that is flagged there too does not count: a row's `floor` is what is flagged in the recording (None
    without one) and `excused` how many words that spares. Where the judge can't follow the recording at all, or there is none,
    all count.
    """
    check()
    audios = files.resample_all(audios, rate, RATE)
    floor = files.resample_all(recordings, rate, RATE) if recordings is not None else [None] * len(audios)
    rows = []
    watched = tqdm.tqdm(zip(texts, audios, floor), "words", len(texts), mininterval=2, disable=not progress)
    for text, audio, recording in watched:
        row = verdict(audio, text) | {"floor": None, "excused": 0}
        if recording is not None:
            name = (hashlib.sha256(recording.tobytes()).digest(), text)
            known = _floors[name] = _floors.get(name) or verdict(recording, text)
            row["floor"] = {key: known[key] for key in KINDS}
            if recognisers.has_signal(audio) and len(known["skipped"]) < known["words"]:
                left = {key: [k for k in row[key] if k not in known[key]] for key in KINDS}
                row |= left | {"excused": sum(len(row[key]) - len(left[key]) for key in KINDS)}
        row |= {"said": statistics.digest([text, *(word.phones for word in spoken_words(text))])}
        rows.append(row | ({"missing": True} if audio is None else {}))
    return rows


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `skips_*` and `repeats_*` (% of words) and `bad_sentences_*` (% with either)."""
    judge = f"pocketsphinx {importlib.metadata.version('pocketsphinx')} en-us, skip-and-repeat grammar {SAY:g} {SKIP:g} {AGAIN:g} {BACK}, ns2_jax {statistics.code(sphinx, __name__)}"
    about = dict(unit="%", seed=seed, evaluator=judge, normaliser=word_error.normaliser(), list=statistics.digest(row["said"] for row in rows),
                 floor=floor_of(rows), excused=sum(row["excused"] for row in rows), missing=statistics.missing(rows), **fingerprint)
    words = [float(row["words"]) for row in rows]
    share = "all flagged words over all words; a missing output counts as all skipped"
    lines = [statistics.score(f"{name}_{condition}", [100.0 * len(row[key]) for row in rows], words, averaging=share, **about)
             for name, key in (("skips", "skipped"), ("repeats", "repeated"))]
    bad = [100.0 * bool(row["skipped"] or row["repeated"]) for row in rows]
    lines.append(statistics.score(
        f"bad_sentences_{condition}", bad, averaging="share of sentences with a skipped or repeated word", **about))
    return lines
