"""Long recordings cut at their pauses: where the cuts are, and an utterance for every piece.

A pause is at least PAUSE seconds of 20 ms windows that are all `below_db` under the recording's loudest; the cut is in its middle, so
the pieces together are the whole recording. It is read block by block: its length is bounded by the disk.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.corpora import Utterance
from data_pipelines.shards import Rejected
from ns2_jax.audio import files

PAUSE = 0.15  # seconds; the closure of a plosive is shorter
BELOW_DB = 40.0  # as files.trim_silence
WINDOW = 0.02  # seconds


def levels(path: str) -> tuple[np.ndarray, float]:
    """(RMS of every whole window of WINDOW seconds of a recording, channels averaged, `[n]`; its seconds). Raises files.AudioError."""
    with files.Recording(path) as recording:
        size = max(round(WINDOW * recording.rate), 1)
        rms, rest, total = [], np.zeros(0, np.float32), 0
        for block in recording.blocks(recording.rate):
            audio = np.concatenate([rest, block.mean(0)])
            whole = len(audio) // size * size
            rms.append(files.frame_rms(audio[:whole], recording.rate, WINDOW))
            rest, total = audio[whole:], total + block.shape[1]
        return np.concatenate(rms), total / recording.rate


def find(rms: np.ndarray, below_db: float) -> np.ndarray:
    """Pauses as half-open ranges of windows, int `[n, 2]`."""
    quiet = rms < rms.max(initial=0.0) * 10 ** (-below_db / 20)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]])))
    runs = edges.reshape(-1, 2)
    return runs[np.diff(runs, axis=1)[:, 0] >= round(PAUSE / WINDOW)]


def cuts(pauses: np.ndarray, count: int, longest: float, shortest: float) -> list[int]:
    """The windows before which `count` windows are cut: at the longest pause within whatever is longer than `longest`, again and again.

    No piece becomes shorter than `shortest` windows; where there is no pause, there is no cut. Of pauses as long as each other the one
    nearest the centre is taken.
    """
    middles, lengths = pauses.sum(1) // 2, np.diff(pauses, axis=1)[:, 0]
    found, waiting = [], [(0, count)]
    while waiting:
        start, end = waiting.pop()
        inside = slice(*np.searchsorted(pauses[:, 0], [start + 1, end]))
        fits = (middles[inside] >= start + shortest) & (middles[inside] <= end - shortest) & (pauses[inside, 1] < end)
        if end - start <= longest or not fits.any():
            continue
        off_centre = np.abs(2 * middles[inside] - start - end)
        best = int(middles[inside][np.lexsort((off_centre, -lengths[inside], ~fits))[0]])
        found.append(best)
        waiting += [(start, best), (best, end)]
    return sorted(found)


def split(item: Utterance, split_seconds: float, min_seconds: float, below_db: float) -> list[Utterance]:
    """`item`, or what becomes of a recording longer than `split_seconds`: `id#000`, `id#001`, ... whose source says which seconds it is.

    A segment of a recording and what comes from TFDS stay whole. Raises Rejected for a long recording with a text, which nobody can cut
    without knowing when its words are said, and files.AudioError.
    """
    if item.start is not None or item.end is not None or item.path.startswith("tfds:"):
        return [item]
    with files.Recording(item.path) as recording:
        seconds, window = recording.seconds, max(round(WINDOW * recording.rate), 1) / recording.rate
    if seconds <= split_seconds:
        return [item]
    if item.text.strip():
        raise Rejected("text_without_times", f"{item.path}: {seconds:.0f} s with a text that does not say when its words are spoken: it cannot "
                       f"be split at {split_seconds:g} s; give segments with start and end, or leave split_seconds out")  # fmt: skip
    rms, seconds = levels(item.path)
    at = cuts(find(rms, below_db), len(rms), split_seconds / window, min_seconds / window)
    if not at:
        return [item]
    edges = [0.0, *(round(i * window, 6) for i in at), seconds]
    return [
        dataclasses.replace(item, utt_id=f"{item.utt_id}#{k:03d}", start=start, end=end, source=f"{item.source}#t={start:.3f},{end:.3f}")
        for k, (start, end) in enumerate(zip(edges[:-1], edges[1:]))
    ]
