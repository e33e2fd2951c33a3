"""Puts a corpus into rooms and noise: `python -m data_pipelines.rooms --data=DIR --out=DIR --snr=5,25 --rt60=0.2,0.8`.

Every speaker is heard in ENVIRONMENTS places. A place is a reverberation time, a noise and its level, or both; speaker and place make a new
speaker (`anna@2`), so that a prompt from another recording of the same speaker has the same room and the same noise around it. Phone times
and pitch are those of the clean recording: the direct sound stays where it was.

Rooms and mixing are those of `ns2_jax.audio.acoustics`, at a ratio of direct to reverberant energy of 0 to 10 dB. Noise is white, pink or brown,
the hum of mains, or four to eight others of the split talking. SNR is of the powers of all speech and all noise.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import flags

from data_pipelines import remade
from data_pipelines.remade import Place, Utterance
from ns2_jax.audio import acoustics

ENVIRONMENTS = 4
NOISES = {"white": 0.0, "pink": -0.5, "brown": -1.0, "hum": 0.0, "babble": 0.0}
"""Kinds, and the power of frequency that their amplitudes follow."""
FLOOR = 40.0  # Hz under which coloured noise is flat: nobody hears it, and its power would be all there is
DIRECT = (0.0, 10.0)  # dB over the reverberation
MAINS = (50.0, 60.0)
VOICES = (4, 8)


def noise(kind: str, samples: int, place: Place, speaker: str, rng: np.random.Generator) -> np.ndarray:
    """So many samples of one of NOISES, at no particular level: float64."""
    if kind == "babble":
        voices = []
        for _ in range(int(rng.integers(VOICES[0], VOICES[1] + 1))):
            one = place.another(rng, speaker).astype(np.float64)
            one = np.roll(np.resize(one, samples), int(rng.integers(samples)))
            voices.append(one / np.sqrt(max(np.square(one).mean(), 1e-12)))
        return np.sum(voices, 0)
    if kind == "hum":
        base, t = rng.choice(MAINS), np.arange(samples) / place.rate
        parts = [np.sin(2 * np.pi * (base * k * t + rng.random())) / k for k in range(1, 16)]
        return np.sum(parts, 0) + 0.1 * rng.standard_normal(samples)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hz = np.maximum(np.fft.rfftfreq(samples, 1 / place.rate), FLOOR)
    return np.fft.irfft(spectrum * hz ** NOISES[kind], samples)


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where somebody speaks: `rt60` seconds, 0 for a dry one; `noise`, "" for none, at `snr` dB."""

    rt60: float
    direct: float
    noise: str
    snr: float

    def __str__(self) -> str:
        return ", ".join([f"rt60 {self.rt60:.2f} s"] * bool(self.rt60) + [f"{self.noise} noise {self.snr:.1f} dB"] * bool(self.noise))


@dataclasses.dataclass(frozen=True)
class Rooms:
    """SNR in dB and reverberation time in seconds, lowest and highest; the shares of environments that are `noisy` and `reverberant`. One that
    the draw leaves without either gets the likelier of the two."""

    snr: tuple[float, float]
    rt60: tuple[float, float]
    noisy: float
    reverberant: float
    command: str = "rooms"
    word: str = "room"
    refused: str = "no_signal"

    def environment(self, speaker: str, number: int) -> Environment:
        """The same for the same speaker and number."""
        rng = remade.drawn("environment", speaker, number)
        noisy, wet = rng.random() < self.noisy, rng.random() < self.reverberant
        if not noisy and not wet:
            noisy, wet = self.noisy >= self.reverberant, self.noisy < self.reverberant
        rt60, direct, kind, snr = rng.uniform(*self.rt60), rng.uniform(*DIRECT), str(rng.choice(list(NOISES))), rng.uniform(*self.snr)
        return Environment(rt60 if wet else 0.0, direct, kind if noisy else "", snr)

    def __call__(self, utterance: Utterance, place: Place, rng: np.random.Generator) -> Utterance | None:
        if not np.abs(utterance.audio).max() > 0:
            return None
        speaker, number = utterance.meta["speaker"], int(rng.integers(ENVIRONMENTS))
        where, audio = self.environment(speaker, number), utterance.audio
        if where.rt60:  # the room itself is the same for all that is said there
            audio = acoustics.reverberate(audio, acoustics.impulse(place.rate, where.rt60, where.direct, remade.drawn("room", speaker, number)))
        if where.noise:
            audio = acoustics.mix(audio, noise(where.noise, len(audio), place, speaker, rng), where.snr)
        meta = utterance.meta | {"speaker": f"{speaker}@{number}", "source": f"{where}: {utterance.meta['source']}"}
        return dataclasses.replace(utterance, audio=audio, meta=meta)


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    if not given.noisy + given.reverberant > 0:
        raise ValueError(f"--noisy={given.noisy:g} and --reverberant={given.reverberant:g} leave the recordings as they are")
    remade.command(Rooms(remade.between("snr", -20, 60), remade.between("rt60", 0.05, 3), given.noisy, given.reverberant))


if __name__ == "__main__":
    from ns2_jax.runtime import cluster  # here, because it imports jax, which the workers do without

    remade.define_flags()
    flags.adopt_module_key_flags(remade)  # in --help
    flags.DEFINE_list("snr", ["5", "25"], "LOW,HIGH: decibels of speech over noise")
    flags.DEFINE_list("rt60", ["0.2", "0.8"], "LOW,HIGH: reverberation time in seconds")
    flags.DEFINE_float("noisy", 0.7, "share of environments with noise", lower_bound=0, upper_bound=1)
    flags.DEFINE_float("reverberant", 0.5, "share of environments with reverberation", lower_bound=0, upper_bound=1)
    cluster.run(main)
