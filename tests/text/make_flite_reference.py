"""Writes flite_reference.txt: what flite says for natural and for grammar sentences (run where `flite` is installed).

    python tests/text/make_flite_reference.py
"""

from __future__ import annotations

import pathlib
import subprocess

import numpy as np

from data_pipelines.sentences import load_list, sentences
from ns2_jax.text.front import normalise

NATURAL, GRAMMAR = 60, 40
PATH = pathlib.Path(__file__).with_name("flite_reference.txt")


def flite_phones(text: str) -> str:
    """flite's segments of normalised `text`, by the diphone voice (all voices share one lexicon, this one is fastest)."""
    done = subprocess.run(["flite", "-voice", "kal16", "-ps", "-t", text, "none"], capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


def main() -> None:
    texts = [*load_list("test")[:NATURAL], *sentences(np.random.default_rng(3), GRAMMAR)]
    lines = [f"{text}\t{flite_phones(normalise(text))}\n" for text in texts]
    PATH.write_text("# flite 2.2, voice kal16: sentence, tab, segments of the normalised sentence\n" + "".join(lines), "utf8")


if __name__ == "__main__":
    main()
