"""Conversations: does everybody begin and end when the script says?

An aligner finds the phones of all turns in the audio. At every change of turn two times are compared with the script's: where the last phone of
one who stops ends, and where the first of one who begins begins; the silence between is nobody's. The recordings' own error is the aligner's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.evals import statistics
from ns2_jax.inference import aligning
from ns2_jax.text import phones as inventory

TOLERANCES = (100, 250)  # ms

Spans = list[tuple[float, float]]
"""(first, end) sample of what is said in each turn."""


class Script(NamedTuple):
    """Who is to say what when: ids of phones `[p]`, the samples where they end `[p]`, and whose turn each is of `[p]`, 0 the first."""

    phones: np.ndarray
    ends: np.ndarray
    turn: np.ndarray

    @property
    def spoken(self) -> np.ndarray:
        return self.phones != inventory.IDS[inventory.SILENCE]

    @property
    def spans(self) -> Spans:
        begins = np.concatenate([[0], self.ends[:-1]])
        return spans(begins[self.spoken], self.ends[self.spoken], self.turn[self.spoken])


def script(phones: np.ndarray, ends: np.ndarray, begins: Sequence[int]) -> Script:
    """From phones `[p]`, their ends `[p]` and the samples where turns begin, 0 the first."""
    return Script(np.asarray(phones), np.asarray(ends), np.searchsorted(begins, ends, "left") - 1)


def spans(begins: np.ndarray, ends: np.ndarray, turn: np.ndarray) -> Spans:
    """Of spoken phones. Raises ValueError for a turn without one."""
    if silent := sorted(set(range(int(turn.max(initial=-1)) + 1)) - set(turn.tolist())):
        raise ValueError(f"turn {silent[0]} says nothing")
    return [(float(begins[turn == k].min()), float(ends[turn == k].max())) for k in range(int(turn.max(initial=-1)) + 1)]


def heard(aligner: inference.Model, audios: Sequence[np.ndarray | None], scripts: Sequence[Script], rate: int) -> list[Spans | None]:
    """Where in `audios [s]` at `rate` Hz the turns are said, in samples; None for no audio, and for one too short for its phones."""
    there = [k for k, audio in enumerate(audios) if files.has_signal(audio)]
    asked = [scripts[k].phones[~inventory.doubled(scripts[k].phones)] for k in there]
    sounds = files.resample_all([audios[k] for k in there], rate, aligner.rate)
    found: list[Spans | None] = [None] * len(audios)
    for k, ids, one, sound in zip(there, asked, aligning.align_all(aligner, sounds, asked), sounds, strict=True):
        if one.score < aligning.SHORTEST:
            continue
        scale, spoken = len(audios[k]) / len(sound), ids != inventory.IDS[inventory.SILENCE]
        begins = np.concatenate([[0], one.ends[:-1]])
        found[k] = spans(begins[spoken] * scale, one.ends[spoken] * scale, scripts[k].turn[scripts[k].spoken])
    return found


def edges(found: Spans) -> np.ndarray:
    """Where one stops and where the next begins, at every change of turn."""
    return np.asarray([at for (_, end), (begin, _) in itertools.pairwise(found) for at in (end, begin)], np.float64)


def measure(found: Sequence[Spans | None], scripts: Sequence[Script], rate: int) -> list[dict[str, Any]]:
    """One row per conversation: `errors` in ms, positive is late, two for every change; where nothing was found infinite, and `missing`."""
    rows = []
    for one, told in zip(found, scripts, strict=True):
        exact = edges(told.spans)
        late = np.full(len(exact), np.inf) if one is None else (edges(one) - exact) * 1000 / rate
        rows.append({"errors": late.tolist()} | ({"missing": True} if one is None else {}))
    return rows


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `turn_within_100_*` and `turn_within_250_*`, shares of all times. Raises ValueError for conversations without a change of turn."""
    counts = [len(row["errors"]) for row in rows]
    if not sum(counts):
        raise ValueError("nobody answers: there is no change of turn to score")
    return [statistics.score(
        f"turn_within_{ms}_{condition}", [int((np.abs(row["errors"]) <= ms).sum()) for row in rows], counts, unit="share", seed=seed,
        averaging="over ends and beginnings at all changes of turn", evaluator=f"ns2_jax {statistics.code(__name__)}",
        missing=statistics.missing(rows), **fingerprint) for ms in TOLERANCES]
