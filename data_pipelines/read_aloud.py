"""Has one untouched flite voice read a text file aloud: `python -m data_pipelines.read_aloud --texts=FILE --out=DIR --name=NAME`.

A line a recording, DIR/NAME-01.ogg and on, through the corpus' own normaliser, loudness and silences: 16 kHz, one channel.
The hard sentences' recordings are made so (`results/hard_sentences/README.md`).
"""

from __future__ import annotations

import pathlib

import numpy as np
import tqdm
from absl import flags

from data_pipelines import flite, synth, voices
from ns2_jax.audio import files
from ns2_jax.runtime import cluster
from ns2_jax.text.normalise import normalise


def read_aloud(texts: list[str], voice: str, seed: int = 0) -> list[np.ndarray]:
    """Each text as float32 `[s]` at `synth.RATE`. Raises ValueError for an unknown voice or a text without words,
    FileNotFoundError without flite."""
    rng = np.random.default_rng(seed)  # of the silences at the ends
    speaker, synthesiser = voices.Speaker("flite", voice, 1.0, 1.0, 1.0), voices.Synthesiser(("flite",), seed)
    spoken = (synth.utterance(speaker, synthesiser, normalise(text), rng)[0] for text in tqdm.tqdm(texts, "reading", mininterval=2))
    return [pcm.astype(np.float32) / 32768 for pcm in spoken]


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    for name in ("texts", "out", "name"):
        if not given[name].value:
            raise ValueError(f"--{name} is missing; --texts=FILE --out=DIR --name=NAME are needed")
    if not flite.available():
        raise FileNotFoundError(f"the program flite is not installed; {flite.INSTALL}")
    lines = pathlib.Path(given.texts).read_text(encoding="utf8").splitlines()
    out = pathlib.Path(given.out)
    audios = read_aloud(lines, given.voice)
    out.mkdir(parents=True, exist_ok=True)
    for k, audio in enumerate(audios, 1):
        files.write(out / f"{given.name}-{k:02d}.ogg", audio, synth.RATE)
    print(f"{len(audios)} recordings of {given.voice}, {sum(map(len, audios)) / synth.RATE:.0f} s, are in {out}")


if __name__ == "__main__":
    flags.DEFINE_string("texts", "", "file with a text a line")
    flags.DEFINE_string("out", "", "folder to write the recordings into")
    flags.DEFINE_string("name", "", "what the recordings' names begin with")
    flags.DEFINE_string("voice", "rms", f"one of {', '.join(flite.VOICES)}")
    cluster.run(main)
