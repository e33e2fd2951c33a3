"""Models that speak: load a run or an export, say a text in the voice of a prompt, turn audio into codes and back.

    model = inference.load("results/naturalspeech2/model")
    speech = model("Good morning.", prompt="voice.wav", seed=0, steps=16)      # speech.audio, .rate, .word_times, .phone_times, .f0
    inference.write("out.wav", speech)
    for part in model.stream("One. Two.", prompt="voice.wav"): ...              # a Speech a sentence, as soon as it is made
    several = model.batch([("One.", "voice.wav"), ("Two.", "other.wav")])       # each as it sounds alone
    model.warm_up()                                                             # compiles every bucket before the first user waits

Everything runs through the system's programs at the static shapes of `config.data.buckets`, one compilation a
bucket. Rows of a batch are independent: each has its own random key, so an utterance sounds the same alone and in a
batch; they are cut over this process's devices. Length is predicted first; a text over the largest bucket is spoken in pieces and the
pieces are reported. What is too long to hold, or comes live, goes through `Model.encode_stream` and `decode_stream`; `recordings` does so
with files. A `Speech` has a `score`: what was said when and at which pitch, which can be changed and spoken again. Generated audio
leaves through `writing` alone (`write`, `encode`, `wav_stream`), which marks it as synthetic. A `Model` may be shared by threads.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ns2_jax.inference.checking import check, speak_checked
from ns2_jax.inference.conversion import PITCHES, convert_all
from ns2_jax.inference.model import ROWS, Model, ladder
from ns2_jax.inference.provenance import Consent, Heard, Origin, consent, read_consent, read_mark
from ns2_jax.inference.recordings import codec_hash
from ns2_jax.inference.score import WRITERS, Score, of_phones, of_words
from ns2_jax.inference.score import read as read_score
from ns2_jax.inference.sentences import joined
from ns2_jax.inference.song import SUFFIXES as SONGS
from ns2_jax.inference.song import read as read_song
from ns2_jax.inference.song import score as sung
from ns2_jax.inference.speech import PAUSE, Prompt, Speech, split
from ns2_jax.inference.writing import encode, sidecar_of, wav_samples, wav_stream, write, write_text
from ns2_jax.runtime import checkpoints, weights
from ns2_jax.runtime import mesh as meshes
from ns2_jax.systems import system as systems
from ns2_jax.text import phones as inventory
from ns2_jax.text.front import read_lexicon
from ns2_jax.text.front import words as spoken

__all__ = [
    "LEXICON",
    "PAUSE", "PITCHES", "ROWS", "SONGS", "WRITERS", "Consent", "Heard", "Model", "Origin", "Prompt", "Score", "Speech", "check", "codec_hash",
    "consent", "convert_all", "encode", "inventory", "joined", "ladder", "load", "meshes", "of_phones", "of_words", "phones_of", "read_consent",
    "read_lexicon", "read_mark", "read_score", "read_song", "sidecar_of", "speak_checked", "split", "spoken", "sung", "wav_samples", "wav_stream",
    "write", "write_text"]


LEXICON = "lexicon.txt"  # of an export: pronunciations that its speech needs


def phones_of(model: Model) -> dict[str, Any]:
    """The phone inventory that the model's ids mean; empty for a system that takes no phones."""
    if not any("phones" in program.inputs for program in model.programs.values()):
        return {"phones": [], "hash": ""}
    return {"phones": list(inventory.PHONES), "hash": inventory.inventory_hash()}


def load(path: str | os.PathLike, step: int | None = None) -> Model:
    """A run being written (the averaged weights of checkpoint `step`, default the latest) or an export -> Model.

    Every file of an export is compared with its SHA256SUMS. Raises FileNotFoundError for a folder that is missing or is neither, ValueError
    for weights that don't fit it and for an export that is torn or was changed, by the name of the file.
    """
    path = Path(path)
    if (path / weights.FILE).exists():
        step = None
    elif step is None:
        step = (checkpoints.steps(path) or [None])[-1]
    tree, config = checkpoints.read_model(path, step)
    known = path / "phones.json"
    if known.is_file() and (names := json.loads(known.read_text(encoding="utf-8"))["phones"]) != list(inventory.PHONES[: len(names)]):
        raise ValueError(f"{known}: made with another phone inventory than this code's; its ids would mean other phones")
    system = systems.make(config["system"], config["model"])
    model = Model(system, tree["params"], tree["rest"], config, str(path), step)
    if (path / LEXICON).is_file():
        model.lexicon = read_lexicon(path / LEXICON)
    return model
