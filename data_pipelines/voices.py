"""The speakers of the default corpus: voice x vocal-tract warp x pitch x rate, and which split each belongs to.

The table is fixed, it does not depend on a corpus' seed or size: a model trained on any default corpus has never met a
test speaker of another. Smaller corpora take the first speakers of the same lists.

| split | speakers |
|---|---|
| train | flite slt, rms, kal16 with warps 0.85-1.15 (three in five within 0.93-1.08), pitch and rate; espeak-ng voices |
| valid, test | slt, rms, kal16 with warps 0.95-1.07 that no train speaker has: a recogniser understands these |
| heldout | flite awb, a voice no other split has |

Without flite the same splits are made of espeak-ng voices, four of them held out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines import espeak, flite

SPLITS = ("train", "valid", "test", "heldout")
MILD = (0.95, 1.07)  # warps in which pocketsphinx still understands the flite voices (measured)
APART = 0.006  # of log warp, or 0.06 of log pitch: how far a train speaker of the same voice stays from a valid or test speaker

_TRAIN_VOICES = ("slt", "rms", "kal16")
_HELDOUT_VOICE = "awb"
# Without robots, whispers, croaks, echoes, children and near-duplicates (of the 104 that espeak-ng 1.52 has).
_VARIANTS = """f3 m3 Annie Michael f1 m7 linda Reed f2 Gene Andrea paul belinda Diogo f5 m1 anika robert aunty Mario shelby m4 adam
grandma quincy Henrique steph m6 antonio Alex rob David max m5 sandro Mike benjamin Jacky gustave m8 edward miguel pedro Denis
marcelo Andy""".replace("David", "david").split()
_ACCENTS = ("en-us", "en-us", "en-us-nyc", "en-us", "en", "en-us", "en-gb-scotland", "en-us", "en-gb-x-rp")
_HELDOUT_VARIANTS = ("f3", "m7", "linda", "m4")


@dataclasses.dataclass(frozen=True)
class Speaker:
    """`warp` multiplies formant frequencies, `pitch` the voice's own median F0 (after the warp), `rate` its tempo; all 1 = untouched."""

    source: str  # flite or espeak
    voice: str  # slt; en-us+f3
    warp: float
    pitch: float
    rate: float

    @property
    def name(self) -> str:
        """Says everything about the speaker: `slt-w0.985-p1.10-r0.95`."""
        return f"{self.voice}-w{self.warp:.3f}-p{self.pitch:.2f}-r{self.rate:.2f}"


def _speaker(source: str, voice: str, warp: float, pitch: float, rate: float) -> Speaker:
    warp = round(warp * 200) / 200  # steps of 80 Hz in the rate of the resampler
    if source == "flite" and flite.VOICES[voice].pitch is None:
        pitch = warp  # nothing moves this voice's pitch but the warp
    return Speaker(source, voice, warp, round(pitch, 2), round(rate, 2))


def _between(low: float, high: float, u: float) -> float:
    return low * (high / low) ** u


def _near(a: Speaker, b: Speaker) -> bool:
    return a.voice == b.voice and abs(math.log(a.warp / b.warp)) < APART and abs(math.log(a.pitch / b.pitch)) < 0.06


Proposal = Callable[[int, int, np.ndarray], Speaker]


def _draw(key: int, count: int, propose: Proposal, apart: Sequence[Speaker], distinct: bool) -> list[Speaker]:
    """`count` speakers `propose(place, trial, u)`, u uniform `[3]`, away from `apart` and (`distinct`) from one another."""
    rng = np.random.Generator(np.random.Philox(key))
    out: list[Speaker] = []
    for trial in range(100 * count):
        candidate = propose(len(out), trial, rng.random(3))
        if candidate not in out and not any(_near(candidate, other) for other in [*apart, *(out if distinct else [])]):
            out.append(candidate)
            if len(out) == count:
                break
    return out


def _mild(key: int, source: str, voices: Sequence[str], count: int, apart: Sequence[Speaker] = ()) -> list[Speaker]:
    def propose(place: int, trial: int, u: np.ndarray) -> Speaker:
        return _speaker(source, voices[place % len(voices)], _between(*MILD, u[0]), _between(0.92, 1.1, u[1]), _between(0.93, 1.07, u[2]))

    return _draw(key, count, propose, apart, True)


def _train_flite(count: int, apart: Sequence[Speaker]) -> list[Speaker]:
    def propose(place: int, trial: int, u: np.ndarray) -> Speaker:
        low, high = (0.93, 1.08) if trial % 5 < 3 else (0.85, 1.15)
        voice = _TRAIN_VOICES[place % 3]
        return _speaker("flite", voice, _between(low, high, u[0]), _between(0.82, 1.22, u[1]), _between(0.88, 1.14, u[2]))

    return _draw(1, count, propose, apart, False)


def _train_espeak(count: int, variants: Sequence[str], apart: Sequence[Speaker] = ()) -> list[Speaker]:
    def propose(place: int, trial: int, u: np.ndarray) -> Speaker:
        voice = f"{_ACCENTS[place % len(_ACCENTS)]}+{variants[place % len(variants)]}"
        return _speaker("espeak", voice, _between(0.94, 1.07, u[0]), _between(0.85, 1.18, u[1]), _between(0.85, 1.1, u[2]))

    return _draw(2, count, propose, apart, False)


MOST = {"flite": 160, "espeak": 80, "valid": 6, "test": 12, "heldout": 6}


def table(sources: Sequence[str], hours: float) -> dict[str, dict[str, list[Speaker]]]:
    """split -> source -> speakers, for a corpus of `hours` from `sources` (`flite`, `espeak` or both).

    About one train speaker a minute, so that each has several utterances, and at most `MOST`. Raises ValueError for no or an
    unknown source.
    """
    if not sources or set(sources) - {"flite", "espeak"}:
        raise ValueError(f"sources {list(sources)} must be flite, espeak or both")
    share = lambda most, least: int(min(most, max(least, round(hours * 60 * most / (MOST["flite"] + MOST["espeak"])))))
    several = lambda most: int(min(most, max(3, math.ceil(hours * 12))))
    counts = {split: several(MOST[split]) for split in SPLITS[1:]}
    if "flite" in sources:
        test = _mild(11, "flite", _TRAIN_VOICES, MOST["test"])
        valid = _mild(12, "flite", _TRAIN_VOICES, MOST["valid"], test)
        untouched = Speaker("flite", _HELDOUT_VOICE, 1.0, 1.0, 1.0)
        heldout = [untouched, *_mild(13, "flite", [_HELDOUT_VOICE], MOST["heldout"] - 1, [untouched])]
        train = {"flite": _train_flite(MOST["flite"], [*test, *valid])[: share(MOST["flite"], 9)]}
        if "espeak" in sources:
            train["espeak"] = _train_espeak(MOST["espeak"], _VARIANTS)[: share(MOST["espeak"], 4)]
    else:
        kept = [variant for variant in _VARIANTS if variant not in _HELDOUT_VARIANTS]
        american = [f"en-us+{variant}" for variant in kept]
        test = _mild(21, "espeak", american[:12], MOST["test"])
        valid = _mild(22, "espeak", american[12:18], MOST["valid"])
        heldout = _mild(23, "espeak", [f"en-us+{variant}" for variant in _HELDOUT_VARIANTS], MOST["heldout"])
        train = {"espeak": _train_espeak(MOST["espeak"], kept, [*test, *valid])[: share(MOST["espeak"], 12)]}
    source = "flite" if "flite" in sources else "espeak"
    return {"train": train, **{name: {source: speakers[: counts[name]]} for name, speakers in zip(SPLITS[1:], (valid, test, heldout))}}


class Synthesiser:
    """Speaks as any speaker of `sources`; one per process, because espeak-ng repeats itself only in a fresh one."""

    def __init__(self, sources: Sequence[str], seed: int):
        self._espeak = espeak.Espeak(seed) if "espeak" in sources else None

    def tools(self) -> dict[str, str]:
        """Versions, for the shards' markers."""
        return {"espeak-ng": self._espeak.version} if self._espeak else {}

    def speak(self, speaker: Speaker, text: str):
        """(audio float32 `[s]`, rate, the synthesiser's phone names, ends in samples) *before* the warp.

        Slower and lower (for a warp above 1) than the speaker should be, by exactly what `segments.warp` will undo.
        """
        stretch, pitch = speaker.warp / speaker.rate, speaker.pitch / speaker.warp
        if speaker.source == "flite":
            return flite.speak(text, speaker.voice, pitch, stretch)
        return self._espeak.speak(text, speaker.voice, pitch, stretch)
