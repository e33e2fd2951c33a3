"""Models that speak: load a run or an export, say a text in the voice of a prompt, turn audio into codes and back.

    model = inference.load("results/naturalspeech2/model")
    speech = model("Good morning.", prompt="voice.wav", seed=0, steps=16)      # speech.audio, .rate, .word_times, .phone_times, .f0
    inference.write("out.wav", speech)
    for part in model.stream("One. Two.", prompt="voice.wav"): ...              # a Speech a sentence, as soon as it is made
    several = model.batch([("One.", "voice.wav"), ("Two.", "other.wav")])       # each as it sounds alone
    model.warm_up()                                                             # compiles every bucket before the first user waits

A model that goes on from its prompt (VALL-E) must know what that says: `prompt=inference.Said("voice.wav", "What is said in it.")` in all of these.

Everything runs through the system's programs at the static shapes of `config.data.buckets`, one compilation a
bucket. Rows of a batch are independent: each has its own random key, so an utterance sounds the same alone and in a
batch; they are cut over this process's devices. Length is predicted first; a text over the largest bucket is spoken in pieces and the
pieces are reported. What is too long to hold, or comes live, goes through `Model.encode_stream` and `decode_stream`; `recordings` does so
with files. A `Speech` has a `score`: what was said when and at which pitch, which can be changed and spoken again. Generated audio
leaves through `writing` alone (`write`, `encode`, `wav_stream`), which marks it as synthetic. A `Model` may be shared by threads.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from ns2_jax.audio.files import seconds as seconds_of
from ns2_jax.inference import chain
from ns2_jax.inference.checking import check, speak_checked
from ns2_jax.inference.continuation import continue_all
from ns2_jax.inference.conversion import PITCHES, convert_all
from ns2_jax.inference.dialogue import read as read_dialogue
from ns2_jax.inference.dialogue import speak as converse
from ns2_jax.inference.dialogue import speak_at_once as converse_at_once
from ns2_jax.inference.editing import edit, go_on
from ns2_jax.inference.model import ROWS, Model, ladder
from ns2_jax.inference.prompts import Heard, Said
from ns2_jax.inference.provenance import Consent, Origin, consent, read_consent, read_mark
from ns2_jax.inference.recordings import codec_hash
from ns2_jax.inference.revoicing import revoice
from ns2_jax.inference.score import WRITERS, Score, of_phones, of_words
from ns2_jax.inference.score import read as read_score
from ns2_jax.inference.sentences import joined
from ns2_jax.inference.song import SUFFIXES as SONGS
from ns2_jax.inference.song import read as read_song
from ns2_jax.inference.song import score as sung
from ns2_jax.inference.speech import PAUSE, Prompt, Speech, split
from ns2_jax.inference.writing import encode, sidecar_of, wav_samples, wav_stream, write, write_text
from ns2_jax.runtime import checkpoints, cluster, weights
from ns2_jax.runtime import mesh as meshes
from ns2_jax.systems import system as systems
from ns2_jax.text import phones as inventory
from ns2_jax.text import units
from ns2_jax.text.front import read_lexicon
from ns2_jax.text.front import words as spoken

__all__ = [
    "ALIGNER", "FOUND", "LEXICON", "PAUSE", "PITCHES", "ROWS", "SONGS", "UNITS", "WRITERS", "Consent", "Heard", "Model", "Origin", "Prompt", "Said",
    "Score", "Speech", "check", "codec_hash", "consent", "continue_all", "converse", "converse_at_once", "convert_all", "edit", "encode", "go_on",
    "inventory", "joined", "ladder", "load", "meshes", "of_phones", "of_words", "options_of", "phones_of", "read_consent", "read_dialogue",
    "read_lexicon", "read_mark", "read_score", "read_song", "revoice", "seconds_of", "sidecar_of", "speak_checked", "split", "spoken", "sung",
    "wav_samples", "wav_stream", "write", "write_text"]

UNITS = "units.model"
"""Of a run or an export that takes text in SentencePiece units: the file that says which."""
LEXICON = "lexicon.txt"
"""Of an export: pronunciations that its speech needs."""
ALIGNER = Path(__file__).parents[2] / "results" / "aligner" / "model"
"""The aligner of the repository: what finds words in recordings, unless another is given."""


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """`["top_p=0.9", "redraw=others"]` -> `{"top_p": 0.9, "redraw": "others"}`: options of program `sample`, from a command line.

    Raises ValueError for a word without a name and a value, or a name given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name.isidentifier() or not equals or name in found:
            raise ValueError(f"--option={word}: expected NAME=VALUE, each name once, as in --option=top_p=0.9")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


FOUND = "found.json"
"""Numbers of a run's model that an evaluation has found: `{"schedules": [...]}`. An export takes them along when it is made."""


def phones_of(model: Model) -> dict[str, Any]:
    """The phone inventory that the model's ids mean; empty for a system that takes no phones."""
    if not any("phones" in program.inputs for program in model.programs.values()):
        return {"phones": [], "hash": ""}
    return {"phones": list(inventory.PHONES), "hash": inventory.inventory_hash()}


def load(path: str | os.PathLike, step: int | None = None, mesh: Any = None) -> Model:
    """A run being written (the averaged weights of checkpoint `step`, default the latest) or an export -> Model; several with commas between
    them, the stages of a speaker by semantic tokens (`chain`), one. The rows of a batch are cut over `mesh`, this process's devices if left out.

    What is compiled for it is kept for the next process, as the commands keep it (NS2_JAX_CACHE=off for not), unless the program has chosen a cache
    of JAX's itself. Numbers of the model that were found after its training (`FOUND`, beside the config of a run) are part of it, which is logged.
    Every file of an export is compared with its SHA256SUMS, and none that speech depends on may have come to it later. Raises FileNotFoundError for
    a folder that is missing or is neither, or has no units where the model reads them, ValueError for weights that don't fit it and for an export
    that is torn or was changed, by the name of the file.
    """
    if "," in os.fspath(path) and not os.path.exists(path):
        return chain.join([load(part.strip(), mesh=mesh) for part in os.fspath(path).split(",")], os.fspath(path))
    if jax.config.jax_compilation_cache_dir is None:
        cluster.keep_compiled()
    path = Path(path)
    if (path / weights.FILE).exists():
        step = None
    elif step is None:
        step = (checkpoints.steps(path) or [None])[-1]
    tree, config = checkpoints.read_model(path, step)
    weights.check_named(path, (LEXICON, UNITS, FOUND, "phones.json"))
    if (path / FOUND).is_file():
        try:
            found = dict(json.loads((path / FOUND).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path / FOUND} is no JSON object of numbers of the model: {error}") from error
        logging.warning("%s: %s of the model come from it, not from the training", path / FOUND, ", ".join(sorted(found)))
        config["model"] |= found
    known = path / "phones.json"
    if known.is_file() and (names := json.loads(known.read_text(encoding="utf-8"))["phones"]) != list(inventory.PHONES[: len(names)]):
        raise ValueError(f"{known}: made with another phone inventory than this code's; its ids would mean other phones")
    system = systems.make(config["system"], config["model"])
    model = Model(system, tree["params"], tree["rest"], config, str(path), step, mesh)
    if model.unit_text:
        model.units = units.load(path / UNITS)
    if (path / LEXICON).is_file():
        model.lexicon = read_lexicon(path / LEXICON)
    if step is None:
        model.hash = weights.weights_hash(path)  # now: the folder may hold another when somebody asks
    return model
