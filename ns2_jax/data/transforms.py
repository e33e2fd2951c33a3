"""From an utterance to a row: crop, prompt cut, gain. Pure functions of the utterance and a generator.

An utterance is a dict with any of `audio` float32 `[n]`, `phones` uint8 `[p]`, `durations` int32 `[p]` frames, `f0` float32 `[t]`
Hz, `codes` uint16 `[t, q]`, and always `frames` int. A row is the same after the transform, not yet padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Utterance = Mapping[str, Any]

CANDIDATES = 4  # crops to choose from
QUIET = 0.1  # a crop below a tenth of the utterance's RMS (-20 dB) is mostly pause


def _spans(utterance: Utterance, spans: list[tuple[int, int]], hop: int) -> dict[str, Any]:
    """The frame-level arrays and the audio of the concatenated frame ranges."""
    out: dict[str, Any] = {"frames": sum(end - start for start, end in spans)}
    for name in ("f0", "codes", "semantic", "audio"):
        if name in utterance:
            scale = hop if name == "audio" else 1
            out[name] = np.concatenate([utterance[name][start * scale : end * scale] for start, end in spans])
    return out


def crop(utterance: Utterance, t: int, hop: int, rng: np.random.Generator) -> dict[str, Any]:
    """At most `t` frames (`t * hop` samples) from a random place; a short utterance whole.

    Of a few random places the first that is not mostly silent is taken, else the loudest: a codec learns little from zeros.
    """
    frames = utterance["frames"]
    if frames <= t:
        return _spans(utterance, [(0, frames)], hop)
    starts = rng.integers(0, frames - t + 1, CANDIDATES)
    start = int(starts[0])
    if "audio" in utterance:
        audio = utterance["audio"]
        energy = np.array([np.mean(np.square(audio[s * hop : (s + t) * hop])) for s in starts])
        audible = np.flatnonzero(energy > QUIET**2 * np.mean(np.square(audio)))
        start = int(starts[audible[0] if len(audible) else np.argmax(energy)])
    return _spans(utterance, [(start, start + t)], hop)


def choose_cut(durations: np.ndarray, u: int, least: int, rng: np.random.Generator) -> tuple[int, int]:
    """Phones `[first, last)` that become the prompt, by NaturalSpeech 2's cut of a segment u:v, moved to phone boundaries.

    A prefix or suffix (45 % each) or a middle part (10 %) of 10-50 % of the frames, at most `u` frames and, where the utterance
    allows, at least `least`. At least one phone stays on either side of the cut. Needs two phones; when no cut has
    at most `u` frames the smallest is returned.
    """
    edges = np.concatenate([[0], np.cumsum(durations)])
    total, phones = int(edges[-1]), len(durations)
    share, kind, place = rng.uniform(0.1, 0.5), rng.uniform(), rng.uniform()  # always three draws
    wanted = min(max(share * total, min(least, total / 2)), u)
    if kind < 0.9 or phones < 3:
        inner = np.arange(1, phones)
        prefix = kind < 0.45
        lengths = edges[inner] if prefix else total - edges[inner]
        at = int(inner[_closest(lengths, wanted, u)])
        return (0, at) if prefix else (at, phones)
    first = int(np.argmin(np.abs(edges[1 : phones - 1] - place * (total - wanted)))) + 1
    lasts = np.arange(first + 1, phones)
    return first, int(lasts[_closest(edges[lasts] - edges[first], wanted, u)])


def _closest(lengths: np.ndarray, wanted: float, most: int) -> int:
    fits = (lengths > 0) & (lengths <= most)
    if not fits.any():
        return int(np.argmin(lengths))
    return int(np.argmin(np.where(fits, np.abs(lengths - wanted), np.inf)))


def cut_prompt(utterance: Utterance, u: int, hop: int, least: int, rng: np.random.Generator) -> dict[str, Any]:
    """Cuts a prompt out of the utterance; what remains, joined, is the target.

    Adds `prompt_codes` `[<= u, q]`, `prompt_f0`, `prompt_audio` for what the utterance has, and `prompt_frames`. Prompt and target
    share no frame, and together they are the utterance, unless the smallest possible cut is longer than `u`
    (then the prompt is its first `u` frames). `durations` of the target sum to its `frames`. An utterance of
    one phone cannot be cut: it is its own prompt and has `weight` 0.
    """
    durations = utterance["durations"]
    if len(durations) < 2:
        end = min(u, utterance["frames"])
        row = {**_spans(utterance, [(0, utterance["frames"])], hop), "weight": 0.0}
        return {**row, "phones": utterance["phones"], "durations": durations, **_prompt(utterance, 0, end, hop)}
    first, last = choose_cut(durations, u, least, rng)
    edges = np.concatenate([[0], np.cumsum(durations)])
    start, end = int(edges[first]), int(edges[last])
    return {**_without(utterance, first, last, hop), **_prompt(utterance, start, min(end, start + u), hop)}


def _without(utterance: Utterance, first: int, last: int, hop: int) -> dict[str, Any]:
    """The utterance without its phones `[first, last)`."""
    edges = np.concatenate([[0], np.cumsum(utterance["durations"])])
    row = _spans(utterance, [(0, int(edges[first])), (int(edges[last]), int(edges[-1]))], hop)
    for name in ("phones", "durations"):
        row[name] = np.concatenate([utterance[name][:first], utterance[name][last:]])
    return row


def _prompt(utterance: Utterance, start: int, end: int, hop: int) -> dict[str, Any]:
    return {f"prompt_{name}": value for name, value in _spans(utterance, [(start, end)], hop).items()}


def speaker_prompt(utterance: Utterance, other: Utterance, u: int, hop: int, rng: np.random.Generator) -> dict[str, Any]:
    """The utterance whole, prompted by at most `u` frames from a random place of `other`, by the same speaker.

    Adds `prompt_codes` `[<= u, q]`, `prompt_f0`, `prompt_audio` for what `other` has, and `prompt_frames`.
    """
    start = int(rng.integers(max(other["frames"] - u, 0) + 1))
    return {**utterance, **_prompt(other, start, min(start + u, other["frames"]), hop)}


def unprompted(utterance: Utterance, hop: int) -> dict[str, Any]:
    """The utterance whole, with a prompt of no frames."""
    return {**utterance, **_prompt(utterance, 0, 0, hop)}


def speaker_prefix(
    utterance: Utterance, other: Utterance | None, u: int, p: int, hop: int, least: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The utterance whole, after whole phones of `other` by the same speaker: a prompt with what it says, to be continued.

    Adds to what `speaker_prompt` adds `prompt_phones` `[<= p]` and `prompt_durations`, which sum to `prompt_frames`. Of `other` as many phones
    from a random place are taken as fit `u` frames and `p`; all of them, where they do. Without another utterance
    the prompt is cut out of this one (`cut_prompt`). One phone of more than `u` frames is cut at its end.
    """
    cut = other is None
    if cut and len(utterance["durations"]) < 2:  # it is its own prompt and has no weight
        row, other, first, last = {**utterance, "weight": 0.0}, utterance, 0, 1
    elif cut:
        first, last = choose_cut(utterance["durations"], u, least, rng)
        row, other = _without(utterance, first, last, hop), utterance
        last = min(last, first + p)
    else:
        durations = other["durations"]
        edges = np.concatenate([[0], np.cumsum(durations)])
        fits = [np.searchsorted(edges, edges[i] + u, side="right") - 1 for i in range(len(durations))]
        last_start = next(i for i, end in enumerate(fits) if min(end, i + p) >= len(durations) or i == len(durations) - 1)
        row, first = dict(utterance), int(rng.integers(last_start + 1))
        last = max(min(int(fits[first]), first + p), first + 1)
    edges = np.concatenate([[0], np.cumsum(other["durations"])])
    start, end = int(edges[first]), int(min(edges[last], edges[first] + u))
    lengths = np.diff(np.minimum(edges[first : last + 1], end))
    return {**row, **_prompt(other, start, end, hop), "prompt_phones": other["phones"][first:last], "prompt_durations": lengths}


def prefix(utterance: Utterance, u: int, hop: int, rng: np.random.Generator) -> dict[str, Any]:
    """The first quarter to half of the utterance, at most `u` frames, as the prompt of the rest; its text stays whole (VALL-E 2: no times are
    needed).

    Adds `prompt_codes` `[<= u, q]` and `prompt_frames`, and an empty `prompt_units`. One frame cannot be divided: it has `weight` 0.
    """
    frames = utterance["frames"]
    end = int(np.clip(round(rng.uniform(0.25, 0.5) * frames), 1, max(min(u, frames - 1), 1)))
    if frames < 2:
        return {**utterance, "weight": 0.0, **_prompt(utterance, 0, 1, hop), "prompt_units": utterance["units"][:0]}
    return {**utterance, **_spans(utterance, [(end, frames)], hop), **_prompt(utterance, 0, end, hop), "prompt_units": utterance["units"][:0]}


def whole(utterance: Utterance) -> dict[str, Any]:
    """The utterance as it is."""
    return dict(utterance)


def gain(audio: np.ndarray, decibels: float, rng: np.random.Generator) -> np.ndarray:
    """Audio made louder or softer by up to `decibels`, never beyond full scale; float32."""
    factor = 10 ** (rng.uniform(-decibels, decibels) / 20)
    peak = float(np.max(np.abs(audio), initial=0.0))
    return (audio * min(factor, 1 / max(peak, 1e-9))).astype(np.float32)
