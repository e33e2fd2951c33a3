"""Timed phones of synthetic speech: from a synthesiser's segments to inventory phones whose ends fit the waveform.

A segment list is `(names, ends)`: ends are samples, non-decreasing, the last one is the length of the waveform. Every
function keeps that, so phones stay exact through warping, trimming and resampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import soxr

from ns2_jax.text.phones import SILENCE, VOWELS

SHORTEST = 0.02  # seconds; a phone without time of its own takes half of a neighbour that is twice as long


def to_inventory(
    names: Sequence[str], ends: Sequence[int], translate: Callable[[str], Sequence[str]], rate: int
) -> tuple[list[str], np.ndarray]:
    """A synthesiser's segments -> (inventory phones, ends int64), every phone longer than zero, no two silences in a row.

    A segment that is several of our phones is split evenly (`A@` -> aa r); one that is none of them (a palatal mark)
    gives its time to the phone before it. A phone of zero length is audible inside its neighbour (espeak's l and r melt
    into the vowel), so it takes half of a neighbour long enough to share, else it is dropped.
    """
    items: list[list] = []  # [phone, samples]
    start = orphan = 0
    for name, end in zip(names, ends, strict=True):
        phones, length = list(translate(name)), int(end) - start
        if length < 0:
            raise ValueError(f"segment {name!r} ends at sample {end}, before the one in front of it ({start})")
        start = int(end)
        # The linking r after an r-coloured vowel (espeak's `e@ r-` in *vary*) is the same r: see phones.join_espeak.
        if items and phones == ["r"] and (items[-1][0] == "r" or name.strip("',%=") == "r-" and items[-1][0] == "er"):
            phones = []
        if not phones:
            if items:
                items[-1][1] += length
            else:
                orphan += length
            continue
        cuts = np.rint(np.linspace(0, length + orphan, len(phones) + 1)).astype(int)
        orphan = 0
        for phone, samples in zip(phones, np.diff(cuts)):
            if phone == SILENCE and items and items[-1][0] == SILENCE:
                items[-1][1] += int(samples)
            else:
                items.append([phone, int(samples)])
    _lend(items, int(2 * SHORTEST * rate))
    items = [item for item in items if item[1] > 0]
    if not items:
        raise ValueError("there is no phone with a length")
    merged: list[list] = []
    for phone, samples in items:  # dropping a phone may have brought two silences together
        if merged and phone == SILENCE == merged[-1][0]:
            merged[-1][1] += samples
        else:
            merged.append([phone, samples])
    return [phone for phone, _ in merged], np.cumsum([samples for _, samples in merged])


def _lend(items: list[list], enough: int) -> None:
    for i, (phone, samples) in enumerate(items):
        if samples or phone == SILENCE:
            continue
        around = [j for j in (i - 1, i + 1) if 0 <= j < len(items) and items[j][0] != SILENCE and items[j][1] >= enough]
        around.sort(key=lambda j: items[j][0] not in VOWELS)  # stable: vowels first, then the phone before
        if around:
            items[i][1] = items[around[0]][1] // 2
            items[around[0]][1] -= items[i][1]


def warp(audio: np.ndarray, ends: np.ndarray, source: int, target: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """`audio [s]` at `source` Hz -> float32 at `target` Hz with every frequency times `factor` and every time divided by it.

    Formants and pitch move together, as with a shorter or longer vocal tract. The caller asked the synthesiser for slower
    (and lower) speech by the same factor, so tempo and pitch come out as wanted. Ends scale exactly.
    """
    rate = int(round(source * factor))
    out = audio.astype(np.float32) if rate == target else soxr.resample(audio.astype(np.float32), rate, target, quality="HQ")
    scaled = np.rint(np.asarray(ends, np.float64) * target / rate).astype(np.int64)
    return out, fit(scaled, len(out))


def fit(ends: np.ndarray, length: int) -> np.ndarray:
    """Ends clipped to `length` samples, the last one made equal to it. Raises ValueError when a phone would lose all its time."""
    ends = np.minimum(ends, length)
    ends[-1] = length
    if (np.diff(ends, prepend=0) <= 0).any():
        raise ValueError(f"phones end behind the waveform of {length} samples")
    return ends


def set_silence(audio: np.ndarray, phones: list[str], ends: np.ndarray, lead: int, tail: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """The utterance with exactly `lead` samples of silence in front and `tail` behind, cut off or added as zeros; ends follow."""
    phones, ends = list(phones), np.asarray(ends, np.int64).copy()
    front = int(ends[0]) if phones[0] == SILENCE else 0
    back = int(ends[-1] - ends[-2]) if phones[-1] == SILENCE and len(phones) > 1 else 0
    if phones[0] != SILENCE:
        phones, ends = [SILENCE, *phones], np.concatenate([[0], ends])
    if phones[-1] != SILENCE:
        phones, ends = [*phones, SILENCE], np.concatenate([ends, ends[-1:]])
    ends = ends + (lead - front)
    ends[-1] = ends[-2] + tail
    body = audio[max(front - lead, 0) : len(audio) - max(back - tail, 0)]
    body = np.pad(body, (max(lead - front, 0), max(tail - back, 0)))
    if len(body) != ends[-1]:
        raise AssertionError(f"{len(body)} samples, but the last phone ends at {ends[-1]}")
    return body, phones, ends
