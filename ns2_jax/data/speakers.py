"""Who speaks where: the utterances of every speaker as one list, so that another one by the same speaker is found in O(1)."""

from __future__ import annotations

import io
import pathlib
import zipfile
from typing import Any

import numpy as np
import tqdm

from ns2_jax.data import records
from ns2_jax.data.dataset import Dataset

CHUNK = 1000  # records read at once


class Speakers:
    """Compressed rows: `members[starts[s] : starts[s + 1]]` are the utterances of speaker `names[s]`, in order.

    `names` `[speakers]`, `starts` int64 `[speakers + 1]`, `members` int64 `[n]`; derived from them `speaker` int32 `[n]`, whose
    utterance i is, and `place` int64 `[n]`, where in that speaker's list it stands.
    """

    def __init__(self, names: np.ndarray, starts: np.ndarray, members: np.ndarray, n: int | None = None):
        self.names, self.starts, self.members = names, starts, members
        n = len(members) if n is None else n  # more where some are left out: of those `speaker` is -1
        self.speaker = np.full(n, -1, np.int32)
        self.speaker[members] = np.repeat(np.arange(len(names)), np.diff(starts))
        self.place = np.zeros(n, np.int64)
        self.place[members] = np.arange(len(members)) - np.repeat(starts[:-1], np.diff(starts))

    @classmethod
    def of(cls, spoken_by: np.ndarray) -> Speakers:
        """From the name of every utterance's speaker, `[n]`."""
        names, speaker = np.unique(spoken_by, return_inverse=True)
        starts = np.concatenate([[0], np.cumsum(np.bincount(speaker, minlength=len(names)))])
        return cls(names, starts, np.argsort(speaker, kind="stable"))

    def only(self, keep: np.ndarray) -> Speakers:
        """The same without the utterances where `keep`, bool `[n]`, is False."""
        among = keep[self.members]
        starts = np.concatenate([[0], np.cumsum(among)])[self.starts]
        return Speakers(self.names, starts, self.members[among], len(self.speaker))

    def another(self, i: int, rng: np.random.Generator) -> int | None:
        """Any other utterance of the speaker of utterance `i`, each as likely; None when there is no other."""
        speaker = self.speaker[i]
        start, end = self.starts[speaker], self.starts[speaker + 1]
        if end - start < 2:
            return None
        place = int(rng.integers(end - start - 1))
        return int(self.members[start + place + (place >= self.place[i])])


def path(split: str) -> str:
    """Relative to the data set's root; made when it is first needed, and safe to delete."""
    return f"index/{split}-speakers.npz"


def load(dataset: Dataset, split: str) -> Speakers:
    """The speakers of `split`, from their file; without one, from the `meta` records (some 30 us each), and the file is written."""
    data = dataset.file(path(split))
    if data is not None:
        try:
            stored: Any = np.load(io.BytesIO(data))
            if str(stored["fingerprint"]) == dataset.fingerprint:
                return Speakers(stored["names"], stored["starts"], stored["members"])
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError, RuntimeError):  # RuntimeError: it seems encrypted, or packed otherwise
            pass  # not whole: made again like one of another data set
    spoken_by: list[str] = []
    for start in tqdm.trange(0, dataset.records(split), CHUNK, desc=f"speakers of {split}", mininterval=2, leave=False):
        rows = range(start, min(start + CHUNK, dataset.records(split)))
        spoken_by += [record["speaker"] for record in dataset.read_many(split, {"meta": rows})["meta"]]
    made = Speakers.of(np.array(spoken_by))
    if not dataset.remote:
        buffer, target = io.BytesIO(), pathlib.Path(dataset.root) / path(split)
        np.savez(buffer, fingerprint=dataset.fingerprint, names=made.names, starts=made.starts, members=made.members)
        try:
            target.parent.mkdir(exist_ok=True)
            records.write_atomic(target, buffer.getvalue())
        except OSError:
            pass  # a read-only data set: the lists live in memory
    return made
