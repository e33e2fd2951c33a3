"""The tasks that change recordings instead of saying their texts: who is changed into whom, by what, and what it is compared with.

    convert  every utterance in the voice of the next other speaker's prompt: the recordings are the sources
    enhance  utterances of a corpus in rooms and noise (`data_pipelines.rooms`) with a clean prompt of their speaker: the recordings are the
             utterances it was made of, and what is heard of it is the condition `noisy`
    sing     utterances of a sung corpus (`data_pipelines.singing`): their phones, times and pitch are the score, the recordings how PSOLA sings it
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.evaluate.material import Material, digest, read_audio
from ns2_jax.runtime import cluster

TASKS = ("convert", "enhance", "sing")
MADE = "-room"  # what `data_pipelines.rooms` adds to the names of utterances


def check(task: str, model: inference.Model, clean: str | None) -> None:
    """Raises ValueError for a task that the model does not do, and for a corpus that is missing or has no use."""
    needed = "contour" if task == "sing" else "convert"
    if needed not in model.programs:
        raise ValueError(f"--task={task}: {model.name} has no program {needed!r}; it offers {sorted(model.programs)}")
    if (task == "enhance") != bool(clean):
        raise ValueError("--task=enhance needs --clean=DIR, the data set that --data was made of" if task == "enhance" else
                         "--clean goes with --task=enhance")


def exchanged(material: Material) -> Material:
    """Every item with the prompt of the next item of another speaker, whose it becomes. Raises ValueError for a single speaker."""
    every = material.every
    if len({item["speaker"] for item in every}) < 2:
        raise ValueError("--task=convert needs two speakers at least")
    others = []
    for i, item in enumerate(every):
        others.append(next(j % len(every) for j in range(i + 1, i + len(every)) if every[j % len(every)]["speaker"] != item["speaker"]))
    taken = ("prompt", "prompt_index", "prompt_source", "speaker")
    new = [item | {name: every[j][name] for name in taken} | {"source_speaker": item["speaker"]} for item, j in zip(every, others)]
    mine = [dict(item) for item in cluster.share(new)]
    prompts = [read_audio(material.dataset, material.split, item["prompt_index"]) for item in mine]
    return dataclasses.replace(material, items=mine, prompts=prompts, every=new, about=material.about | {"items": digest(new)})


def cleaned(material: Material, root: str) -> Material:
    """Recordings and prompts from the data set at `root`, which the material's was made of; what the model hears are its `sources`.

    Raises ValueError for an utterance that `root` does not have, or has with another length."""
    clean = Dataset.open(root)
    clean.check_split(material.split)
    there = {clean.read(material.split, "meta", i)["utt_id"]: i for i in range(clean.records(material.split))}

    def find(name: str) -> np.ndarray:
        if (own := name.removesuffix(MADE)) not in there or own == name:
            raise ValueError(f"--clean={root} has no utterance {own!r} that {name!r} could be made of")
        return read_audio(clean, material.split, there[own])

    recordings, prompts = ([find(item[key]) for item in material.items] for key in ("id", "prompt"))
    for item, one, other in zip(material.items, recordings, material.recordings):
        if len(one) != len(other):
            raise ValueError(f"{item['id']} has {len(other)} samples and its clean recording {len(one)}; is --clean what it was made of?")
    return dataclasses.replace(material, recordings=recordings, prompts=prompts, sources=material.recordings,
                               about=material.about | {"clean": clean.fingerprint})


def scores(material: Material) -> list[inference.Score]:
    """How the recordings of a sung corpus go: pauses are words of their own, what is between two is one word."""
    found = []
    for align, item in zip(material.aligned("index"), material.items):
        f0 = material.dataset.read(material.split, "f0", item["index"])["f0"].astype(float)
        edges = np.concatenate([[0], align["ends"]])
        period, names = material.dataset.f0_period, inference.inventory.names(align["phones"])
        places = np.rint(edges / period).astype(int)
        hz = tuple(tuple(f0[a:b].tolist()) or (0.0,) for a, b in zip(places[:-1], places[1:]))
        found.append(inference.of_phones(names, tuple((np.diff(edges) / material.rate).tolist()), hz))
    return found


def make(task: str, model: inference.Model, aligner: inference.Model | None, material: Material, seed: int, options: Mapping[str, Any],
         failed: Any) -> tuple[list[inference.Speech | None], float]:
    """What the model makes of the items, None where it cannot (`failed(item, reason)` is told), and the seconds it took."""
    begun, made, rows = time.monotonic(), [], inference.ROWS * jax.local_device_count()
    songs = scores(material) if task == "sing" else []
    sources = material.recordings if material.sources is None else material.sources

    def some(places: Sequence[int]) -> list[inference.Speech | None]:
        seeds, prompts = [seed + material.places[k] for k in places], [(material.prompts[k], model.rate) for k in places]
        if task == "sing":
            failures: dict[int, str] = {}
            done = model.speak_batch([(songs[k], prompt) for k, prompt in zip(places, prompts)], seeds, failures=failures, **options)
            for place, reason in failures.items():
                failed(material.items[places[place]], reason)
            return done
        requests = [((sources[k], model.rate), material.items[k]["text"], prompt) for k, prompt in zip(places, prompts)]
        try:
            return inference.convert_all(model, aligner, requests, seeds, target_pitch="predicted" if task == "convert" else "kept", **options)
        except ValueError as error:
            if len(places) == 1:
                failed(material.items[places[0]], str(error))
                return [None]
            return [one for k in places for one in some([k])]

    for at in tqdm.tqdm(range(0, len(material.items), rows), task, mininterval=2, disable=not cluster.is_first()):
        made += some(range(at, min(at + rows, len(material.items))))
    return made, time.monotonic() - begun


def revoice(model: inference.Model, material: Material, seed: int, options: Mapping[str, Any], failed: Any) -> list[np.ndarray | None]:
    """The recordings said again from their own semantic tokens in the voices of their prompts: what speech by tokens can reach at best. None
    where the model cannot (`failed(item, reason)` is told)."""
    made: list[np.ndarray | None] = []
    own = {name: value for name, value in options.items() if name in (*model.programs["infill"].options, "schedule")}
    for k in tqdm.trange(len(material.items), desc="tokens", mininterval=2, disable=not cluster.is_first()):
        pair = [(audio, model.rate) for audio in (material.recordings[k], material.prompts[k])]
        try:
            made.append(inference.revoice(model, model.tokenizer, *pair, seed + material.places[k], **own).audio)
        except ValueError as error:
            failed(material.items[k], str(error))
            made.append(None)
    return made
