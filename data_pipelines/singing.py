"""Makes singing-like speech of a corpus: `python -m data_pipelines.singing --data=DIR --out=DIR --utterances=2000`.

Nobody sings in it: every utterance is said on a random melody near its speaker's pitch. Vowels are held for notes of a quarter to a whole
second, with a glide into each and vibrato, consonants keep their length; pitch and length are changed by TD-PSOLA (Moulines and
Charpentier, "Pitch-synchronous waveform processing techniques for text-to-speech synthesis using diphones", Speech Communication 9,
1990). The new corpus has the groups `meta`, `audio`, `align` and `f0`, the last two being what was imposed. Mixed with speech
(`--config.data.path=speech,singing`) it teaches a model to hold a note; it does not teach it to sing like a singer.

Of twelve utterances of the default corpus, 98 % of the voiced frames are within 50 cents of what was imposed. pocketsphinx hears 5 % of
the words of the recordings wrong, 7 % with a melody but the old lengths, 10 % half as slow again, and 78 % of held vowels, which its
model of English does not know.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import flags

from data_pipelines import remade
from data_pipelines.remade import Place, Utterance
from ns2_jax.text import phones

STEP = 0.005  # seconds between pitch marks where nothing is voiced
SCALE = (0, 2, 4, 7, 9)  # semitones of a major pentatonic
RANGE = 7  # semitones from the speaker's median, up and down
NOTES = (0.25, 0.375, 0.5, 0.75, 1.0)  # seconds, and how often:
OFTEN = (0.3, 0.2, 0.3, 0.15, 0.05)
GLIDE, VIBRATO, DEPTH, ONSET = 0.05, 5.5, 0.3, 0.25  # seconds; Hz; semitones; seconds into a note
LONGEST = 9.9  # seconds


def marks(audio: np.ndarray, rate: int, f0: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitch marks of `audio [s]`: (places in samples, distance to the neighbours in samples, whether voiced), each `[m]`.

    `f0` Hz per `period` samples, 0 unvoiced. In a voiced stretch the first mark is its loudest sample and the others are the loudest near
    one pitch period further on; elsewhere they are STEP apart.
    """
    voiced = np.concatenate([[0], (f0 > 0).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(voiced)).reshape(-1, 2)
    loud, found = np.abs(audio), []
    length_at = lambda s: rate / f0[min(max(int(s) // period, 0), len(f0) - 1)]
    for first, last in edges:
        begin, end = first * period, min(last * period, len(audio))
        if end - begin < 2:
            continue
        top = begin + int(np.argmax(loud[begin:end]))
        stretch = [top]
        for direction in (-1, 1):
            at = top
            while True:
                inside = min(max(at, begin), end - 1)
                length = length_at(inside)
                if not np.isfinite(length):
                    break
                aim, slack = at + direction * length, max(int(0.15 * length), 1)
                low, high = int(aim) - slack, int(aim) + slack + 1
                if low < begin or high > end:
                    break
                sign = audio[top] >= 0
                part = audio[low:high] if sign else -audio[low:high]
                at = low + int(np.argmax(part - 0.2 * np.abs(part).max() * np.abs(np.arange(low, high) - aim) / slack))
                stretch.append(at)
        found.append(np.sort(stretch))
    places = np.concatenate(found) if found else np.zeros(0, int)
    lengths = np.concatenate([[length_at(s) for s in part] for part in found]) if found else np.zeros(0)
    kind = np.ones(len(places), bool)
    step = round(STEP * rate)
    grid = np.arange(0, len(audio), step)
    free = grid[f0[np.minimum(grid // period, len(f0) - 1)] == 0]
    order = np.argsort(np.concatenate([places, free]), kind="stable")
    return (np.concatenate([places, free])[order], np.concatenate([lengths, np.full(len(free), float(step))])[order],
            np.concatenate([kind, np.zeros(len(free), bool)])[order])


def psola(audio: np.ndarray, rate: int, f0: np.ndarray, period: int, old: np.ndarray, new: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`audio [s]` with every part between two of the samples `old` stretched to lie between those of `new`, at the pitch `target`.

    `f0` is the pitch of `audio` and `target` that of the result, Hz per `period` samples, 0 unvoiced. float32 `[new[-1]]`.
    """
    places, lengths, voiced = marks(audio, rate, f0, period)
    out, weight = np.zeros(int(new[-1])), np.full(int(new[-1]), 1e-3)
    padded, edge = np.pad(np.asarray(audio, np.float64), int(rate / 40) + 1), int(rate / 40) + 1
    at = 0.0
    while at < len(out):
        source = np.interp(at, new, old)
        k = min(int(np.searchsorted(places, source)), len(places) - 1)
        if k and abs(places[k - 1] - source) <= abs(places[k] - source):
            k -= 1
        wanted = target[min(int(at) // period, len(target) - 1)]
        size = int(min(lengths[k], edge - 1))
        window = np.hanning(2 * size + 1)
        begin = int(round(at)) - size
        low, high = max(0, -begin), min(2 * size + 1, len(out) - begin)
        if high > low:
            out[begin + low : begin + high] += (window * padded[places[k] - size + edge : places[k] + size + 1 + edge])[low:high]
            weight[begin + low : begin + high] += window[low:high]
        at += rate / wanted if voiced[k] and wanted > 0 else lengths[k]
    return (out / np.maximum(weight, 0.3)).astype(np.float32)


def melody(count: int, middle: float, rng: np.random.Generator) -> np.ndarray:
    """`count` notes in semitones (MIDI numbers): a random walk over SCALE around `middle`."""
    tonic = round(middle) - int(rng.integers(0, 12))
    degrees = np.array(sorted(tonic + 12 * octave + step for octave in range(-2, 4) for step in SCALE))
    degrees = degrees[np.abs(degrees - middle) <= RANGE]
    at, notes = int(np.argmin(np.abs(degrees - middle))), []
    for _ in range(count):
        at = int(np.clip(at + rng.choice([-2, -1, -1, 0, 1, 1, 2]), 0, len(degrees) - 1))
        notes.append(degrees[at])
    return np.array(notes, float)


@dataclasses.dataclass(frozen=True)
class Singing:
    """Every utterance on a melody of its own; what cannot be held, or would be longer than LONGEST, is left out."""

    command: str = "singing"
    word: str = "sung"
    refused: str = "cannot_be_sung"

    def __call__(self, utterance: Utterance, place: Place, rng: np.random.Generator) -> Utterance | None:
        rate, period, f0 = place.rate, place.period, utterance.f0
        names = [phones.PHONES[i] for i in utterance.phones]
        vowels = [i for i, name in enumerate(names) if name in phones.VOWELS]
        if not vowels or not (f0 > 0).any():
            return None
        old = np.concatenate([[0], utterance.ends]).astype(float)
        lengths = np.diff(old) / rate
        for i in vowels:
            lengths[i] = max(lengths[i], rng.choice(NOTES, p=OFTEN) - 0.08)
        new = remade.rounded(np.concatenate([[0], np.cumsum(lengths)]) * rate)
        if new[-1] > LONGEST * rate:
            return None
        middle = 69 + 12 * np.log2(np.median(f0[f0 > 0]) / 440)
        notes = melody(len(vowels), middle, rng)
        frames = int(new[-1]) // period
        centre = (np.arange(frames) + 0.5) * period
        starts = new[vowels]
        which = np.maximum(np.searchsorted(starts, centre, "right") - 1, 0)
        since = np.maximum(centre - starts[which], 0) / rate
        before = notes[np.maximum(which - 1, 0)]
        tone = notes[which] + (before - notes[which]) * np.exp(-3 * since / GLIDE)
        tone += DEPTH * np.sin(2 * np.pi * VIBRATO * since) * np.clip((since - ONSET) / 0.1, 0, 1)
        source = np.minimum((np.interp(centre, new, old) // period).astype(int), len(f0) - 1)
        target = np.where(f0[source] > 0, 440 * 2 ** ((tone - 69) / 12), 0.0)
        if not (target > 0).any():
            return None
        audio = psola(utterance.audio, rate, f0, period, old, new, target)
        return Utterance(utterance.meta, audio, utterance.phones, new[1:].astype(np.int64), target)


def main(argv: list[str]) -> None:
    del argv
    remade.command(Singing())


if __name__ == "__main__":
    from ns2_jax.runtime import cluster  # here, because it imports jax, which the workers do without

    remade.define_flags()
    flags.adopt_module_key_flags(remade)  # in --help
    cluster.run(main)
