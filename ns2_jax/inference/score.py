"""What is said, when, and at which pitch: to be looked at, changed, and spoken again.

As JSON, which a synthesis writes and reads:

    {"format": 1, "words": [{"text": "hello", "start": 0.1, "end": 0.41,
                             "phones": [{"phone": "hh", "seconds": 0.05, "hz": [0, 0]}, ...]}, ...]}

Words follow each other, pauses are words too (their phone is "sil"). `start` and `end` (seconds) are for readers: what counts is each
phone's `seconds` and its `hz`, the pitch along it at equal distances, 0 where it has none; stretched when `seconds` are changed. Without
`seconds` or `hz` a phone gets what the model predicts. TextGrids (Praat) and SRT captions are written only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ns2_jax.text import front, phones as inventory

FORMAT = 1
CAPTION = 42  # characters of a line of captions, as broadcasters have it
LONGEST = 60.0  # seconds of one phone but a pause
REST, EDGE = 2.0, 0.2  # seconds of a pause from which on it is plain silence, but for what stays at its ends
HIGHEST = 5000.0  # Hz


@dataclasses.dataclass(frozen=True)
class Score:
    """Words with their phones; for every phone its `seconds` and its `hz` (pitch at equal distances along it, 0 unvoiced), None where the
    model is to decide. The lists are as long as the phones of all words."""

    words: front.Words
    seconds: tuple[float | None, ...]
    hz: tuple[tuple[float, ...] | None, ...]

    def __post_init__(self):
        number = len(self.phones)
        if len(self.seconds) != number or len(self.hz) != number:
            raise ValueError(f"a score of {number} phones has {len(self.seconds)} lengths and {len(self.hz)} pitches; expected one each")
        for phone, seconds, hz in zip(self.phones, self.seconds, self.hz):
            if phone not in inventory.IDS or phone == inventory.PADDING:
                raise ValueError(f"{phone!r} is no phone of this model's inventory; see ns2_jax/text/phones.py")
            if seconds is not None and not 0 < seconds <= (3600 if phone == inventory.SILENCE else LONGEST):
                raise ValueError(f"phone {phone!r} is to last {seconds} s; expected more than 0 and at most {LONGEST:g}")
            if hz is not None and (wrong := next((value for value in hz if not 0 <= value <= HIGHEST), None if len(hz) else "none")) is not None:
                raise ValueError(f"phone {phone!r} is to have the pitch {wrong}; expected one or more of 0 to {HIGHEST:g} Hz")
        if all(phone == inventory.SILENCE for phone in self.phones):
            raise ValueError("the score has no phone but pauses")

    @property
    def phones(self) -> tuple[str, ...]:
        return tuple(phone for word in self.words for phone in word.phones)


def of_words(words: front.Words) -> Score:
    """A score of words whose times and pitch the model is to decide. Raises ValueError as `Score`."""
    number = sum(len(word.phones) for word in words)
    return Score(words, (None,) * number, (None,) * number)


def of_phones(phones: Sequence[str], seconds: Sequence[float | None], hz: Sequence[Sequence[float] | None]) -> Score:
    """A score of phones whose words are not known: what stands between two pauses counts as one word. Raises ValueError as `Score`."""
    words: list[front.Word] = []
    for phone in phones:
        if phone == inventory.SILENCE or not words or words[-1].phones == (inventory.SILENCE,):
            words.append(front.Word("", (phone,)))
        else:
            words[-1] = front.Word("", (*words[-1].phones, phone))
    return Score(words, tuple(seconds), tuple(hz))


def at_rests(score: Score) -> list[tuple[float, Score, float]]:
    """Cut at pauses whose length is given and over REST: (seconds of plain silence before, score, seconds after). Every part keeps EDGE of
    the pauses at its ends; nothing but silence is left out."""
    cuts = [i for i, (phone, length) in enumerate(zip(score.phones, score.seconds)) if phone == inventory.SILENCE and (length or 0) > REST]
    spans = {first: k for k, (_, first, _) in enumerate(_spans(score))}
    cuts = [i for i in cuts if i in spans and len(score.words[spans[i]].phones) == 1]
    parts, begin = [], 0
    for end in [*cuts, None]:
        if end is not None and (end == 0 or end == len(score.phones) - 1):
            continue  # trimmed below
        stop = len(score.phones) if end is None else end + 1
        words = score.words[spans[begin] : len(score.words) if end is None else spans[end] + 1]
        lengths, before, after = list(score.seconds[begin:stop]), 0.0, 0.0
        if begin in cuts:
            before, lengths[0] = (lengths[0] - 2 * EDGE if parts else lengths[0] - EDGE), EDGE
        if stop - 1 in cuts:
            after, lengths[-1] = (lengths[-1] - EDGE if end is None else 0.0), EDGE  # of a rest inside, the next part has it before
        parts.append((before, Score(words, tuple(lengths), score.hz[begin:stop]), after))
        begin = stop - 1
    return parts


def frames(seconds: Sequence[float | None], predicted: np.ndarray, period: float) -> np.ndarray:
    """Frames of `period` seconds of every phone, int64 `[p]`: the predicted ones where a phone has no length of its own. Given lengths are
    rounded together, so that their sum does not drift; none is shorter than a frame."""
    out, late = np.array(predicted, np.int64), 0.0
    for i, length in enumerate(seconds):
        if length is None:
            continue
        out[i] = max(1, math.floor(length / period + late + 0.5))
        late += length / period - out[i]
    if (over := math.floor(0.5 - late)) > 0:  # the last phones were shorter than a frame
        out[int(np.argmax([-1 if length is None else n for n, length in zip(out, seconds)]))] -= over
    return np.maximum(out, 1)


def contour(hz: Sequence[Sequence[float] | None], durations: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pitch of every frame, float32 `[t]` Hz: `hz` along its phone where there is one, the predicted elsewhere. Between two pitches on a
    straight line in log frequency; between a pitch and none, the nearer of the two."""
    out, at = np.array(predicted, np.float32), 0
    for values, length in zip(hz, durations.tolist()):
        if values is not None:
            known = np.asarray(values, np.float64)
            place = np.clip((np.arange(length) + 0.5) / length * len(known) - 0.5, 0, len(known) - 1)
            low, high = np.floor(place).astype(int), np.ceil(place).astype(int)
            with np.errstate(divide="ignore", invalid="ignore"):
                line = np.exp(np.log(known[low]) * (1 - place + low) + np.log(known[high]) * (place - low))
            both = (known[low] > 0) & (known[high] > 0)
            out[at : at + length] = np.where(both, line, known[np.floor(place + 0.5).astype(int)])
        at += length
    return out


def read(path: str | os.PathLike) -> Score:
    """A score from JSON. Raises FileNotFoundError, and ValueError that names what is wrong in it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    number = lambda value: float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise ValueError(f"format {said['format']!r}, this code reads {FORMAT}")
        words, seconds, hz = [], [], []
        for word in said["words"]:
            if not word["phones"]:
                raise ValueError(f"the word {word['text']!r} has no phones")
            words.append(front.Word(str(word["text"]), tuple(str(phone["phone"]) for phone in word["phones"])))
            for phone in word["phones"]:
                seconds.append(None if phone.get("seconds") is None else number(phone["seconds"]))
                if not isinstance(phone.get("hz") or [], list):
                    raise ValueError(f"hz of phone {phone['phone']!r} is {phone['hz']!r:.40}; expected a list of numbers")
                hz.append(None if phone.get("hz") is None else tuple(number(value) for value in phone["hz"]))
        return Score(words, tuple(seconds), tuple(hz))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not a score: {what}; ns2_jax/inference/score.py says how one looks") from error


def _starts(score: Score) -> list[float]:
    """Where each phone begins, and where the last ends. Raises ValueError for a score with lengths left open."""
    if None in score.seconds:
        raise ValueError("a phone of this score has no length yet")
    return [0.0, *np.cumsum(score.seconds).tolist()]


def _spans(score: Score) -> list[tuple[front.Word, int, int]]:
    """(word, its first phone, the phone behind its last)."""
    edges = np.cumsum([0, *(len(word.phones) for word in score.words)]).tolist()
    return list(zip(score.words, edges[:-1], edges[1:]))


def as_json(score: Score) -> str:
    """What `read` reads."""
    starts, words = _starts(score), []
    for word, first, end in _spans(score):
        sung = [{"phone": score.phones[i], "seconds": round(score.seconds[i], 6)}
                | ({} if score.hz[i] is None else {"hz": [round(value, 4) for value in score.hz[i]]}) for i in range(first, end)]
        words.append({"text": word.text, "start": round(starts[first], 4), "end": round(starts[end], 4), "phones": sung})
    lines = ",\n  ".join(json.dumps(word, ensure_ascii=False) for word in words)
    return f'{{"format": {FORMAT}, "seconds": {round(starts[-1], 4)}, "words": [\n  {lines}\n]}}\n'


def as_textgrid(score: Score) -> str:
    """Interval tiers `words` and `phones`, as Praat writes them; pauses are empty intervals."""
    starts = _starts(score)
    name = lambda text: "" if text == inventory.SILENCE else text.replace('"', '""')
    words = [(starts[first], starts[end], name(word.text) if word.phones != (inventory.SILENCE,) else "") for word, first, end in _spans(score)]
    phones = [(starts[i], starts[i + 1], name(phone)) for i, phone in enumerate(score.phones)]
    out = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {starts[-1]:.6f}", "tiers? <exists>", "size = 2", "item []:"]
    for number, (tier, rows) in enumerate((("words", words), ("phones", phones)), 1):
        out += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{tier}"', "        xmin = 0",
                f"        xmax = {starts[-1]:.6f}", f"        intervals: size = {len(rows)}"]
        for k, (begin, end, text) in enumerate(rows, 1):
            out += [f"        intervals [{k}]:", f"            xmin = {begin:.6f}", f"            xmax = {end:.6f}", f'            text = "{text}"']
    return "\n".join(out) + "\n"


def as_srt(score: Score) -> str:
    """Captions of at most CAPTION characters (one word may be longer), cut at pauses where there are any."""
    starts, captions, line = _starts(score), [], []

    def clock(seconds: float) -> str:
        whole = round(1000 * seconds)
        return f"{whole // 3600000:02}:{whole // 60000 % 60:02}:{whole // 1000 % 60:02},{whole % 1000:03}"

    def flush() -> None:
        if line:
            captions.append(f"{len(captions) + 1}\n{clock(line[0][1])} --> {clock(line[-1][2])}\n{' '.join(text for text, _, _ in line)}\n")
            line.clear()

    for word, first, end in _spans(score):
        if word.phones == (inventory.SILENCE,):
            if line and word.text:
                line[-1] = (line[-1][0] + word.text, *line[-1][1:])
                flush()
            continue
        if line and len(" ".join([*(text for text, _, _ in line), word.text])) > CAPTION:
            flush()
        line.append((word.text, starts[first], starts[end]))
    flush()
    return "\n".join(captions)


WRITERS: dict[str, Any] = {"json": as_json, "TextGrid": as_textgrid, "srt": as_srt}
