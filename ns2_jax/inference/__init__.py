"""Models that speak: load a run or an export, say a text in the voice of a prompt, turn audio into codes and back.

    model = inference.load("results/naturalspeech2/model")
    speech = model.speak("Good morning.", "voice.wav", seed=0, steps=16)
    inference.write("out.wav", speech)

Everything runs through the system's programs at the static shapes of `config.data.buckets`, one compilation a
bucket. Rows of a batch are independent: each has its own random key, so an utterance sounds the same alone and in a
batch; they are cut over this process's devices. Length is predicted first; a text over the largest bucket is spoken in pieces and the
pieces are reported. What is too long to hold, or comes live, goes through `Model.encode_stream` and `decode_stream`; `recordings` does so
with files. A `Speech` has a `score`: what was said when and at which pitch, which can be changed and spoken again. `write` is the only
function of this project that writes generated audio.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ns2_jax.audio import files
from ns2_jax.inference.checking import check, speak_checked
from ns2_jax.inference.conversion import PITCHES, convert_all
from ns2_jax.inference.dialogue import read as read_dialogue
from ns2_jax.inference.dialogue import speak as converse
from ns2_jax.inference.editing import edit, go_on
from ns2_jax.inference.model import ROWS, Model, ladder
from ns2_jax.inference.recordings import codec_hash
from ns2_jax.inference.revoicing import revoice
from ns2_jax.inference.score import WRITERS, Score
from ns2_jax.inference.score import read as read_score
from ns2_jax.inference.song import SUFFIXES as SONGS
from ns2_jax.inference.song import read as read_song
from ns2_jax.inference.song import score as sung
from ns2_jax.inference.speech import PAUSE, Prompt, Speech, split
from ns2_jax.runtime import checkpoints, weights
from ns2_jax.runtime import mesh as meshes
from ns2_jax.systems import system as systems
from ns2_jax.text import phones as inventory

__all__ = [
    "PAUSE", "PITCHES", "ROWS", "SONGS", "WRITERS", "Model", "Prompt", "Score", "Speech", "check", "codec_hash", "converse",
    "convert_all", "edit", "go_on", "inventory", "ladder", "load", "meshes", "phones_of",
    "read_dialogue", "read_score", "read_song", "revoice", "speak_checked", "split", "sung", "write", "write_text"]


def phones_of(model: Model) -> dict[str, Any]:
    """The phone inventory that the model's ids mean; empty for a system that takes no phones."""
    if not any("phones" in program.inputs for program in model.programs.values()):
        return {"phones": [], "hash": ""}
    return {"phones": list(inventory.PHONES), "hash": inventory.inventory_hash()}


def load(path: str | os.PathLike, step: int | None = None) -> Model:
    """A run being written (the averaged weights of checkpoint `step`, default the latest) or an export -> Model.

    Raises FileNotFoundError for a folder that is missing or is neither, ValueError for weights that don't fit it.
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
    return Model(system, tree["params"], tree["rest"], config, str(path), step)


def write(path: str | os.PathLike, speech: Speech | tuple[np.ndarray, int]) -> None:
    """Writes generated audio (.wav, .flac, .ogg), whole or not at all; too loud audio is scaled down, not clipped.

    Raises ValueError or FileNotFoundError for a name that can't be written.
    """
    audio, rate = (speech.audio, speech.rate) if isinstance(speech, Speech) else speech
    peak = float(np.abs(audio).max(initial=0.0))
    files.write(path, audio if peak <= 1.0 else audio * (files.PEAK / peak), rate)


def write_text(path: str | os.PathLike, text: str) -> None:
    """`text` as UTF-8, whole or not at all. Raises FileNotFoundError when the folder does not exist."""
    path = Path(path)
    with files.replacing(path, (path.suffix.lower(),)) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
