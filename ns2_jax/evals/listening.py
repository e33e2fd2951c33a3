"""Listening tests: a static page that people answer in a browser, and what their answers say.

    mos      how natural is it, 1 to 5 (ITU-T P.800)
    smos     is it the same voice as the recording's, 1 to 5; that is played beside it
    cmos     is the second better than the first, -3 to 3
    abx      which of A and B is X
    mushra   0 to 100 for every system at once, with the recording, hidden and open, and an anchor low-passed at 3.5 kHz (ITU-R BS.1534)

The page holds its audio, matched in loudness, in an order of its own for every listener, under names that tell nothing: who is
who stands in `key.json`, which listeners do not get. Answers are saved as a file in the browser and survive a reload.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import html
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ns2_jax.audio import files
from ns2_jax.evals import scores, statistics

KINDS = ("mos", "smos", "cmos", "abx", "mushra")
RATE = 16000
LEVEL = 0.06
REFERENCE, ANCHOR = "recording", "anchor"
QUESTIONS = {
    "mos": "How natural does this sound?",
    "smos": "Is it the voice of the reference?",
    "cmos": "Compared with A, how natural is B?",
    "abx": "Which of the two is X?",
    "mushra": "How good is each one beside the reference?"}
SCALES = {
    "mos": ((1, "bad"), (2, "poor"), (3, "fair"), (4, "good"), (5, "excellent")),
    "smos": ((1, "certainly not"), (2, "probably not"), (3, "unsure"), (4, "probably"), (5, "certainly")),
    "cmos": ((-3, "much worse"), (-2, "worse"), (-1, "slightly worse"), (0, "the same"), (1, "slightly better"), (2, "better"),
             (3, "much better")),
    "abx": (("A", "A"), ("B", "B"))}


def _flac(audio: np.ndarray) -> str:
    return "data:audio/flac;base64," + base64.b64encode(files.encode(audio, RATE)).decode()


def level(audio: np.ndarray) -> np.ndarray:
    """At the one loudness of the test, no sample beyond 0.97."""
    audio = files.match_loudness(np.asarray(audio, np.float32), RATE, LEVEL)
    return audio * min(1.0, files.PEAK / max(float(np.abs(audio).max()), 1e-9))


def anchor(audio: np.ndarray) -> np.ndarray:
    """BS.1534's low anchor: nothing above 3.5 kHz (resampled down to 7 kHz and back)."""
    return files.resample(files.resample(audio, RATE, 7000), 7000, RATE)[: len(audio)]


def gather(folders: Mapping[str, str | os.PathLike], kind: str, limit: int) -> list[dict[str, Any]]:
    """Trials: utterances that every system has, with a signal. `folders`: system -> folder of scores with `audio/`; of each the
    condition `synthesis` where it has any, else `wavs`, else `codec`. Raises ValueError for an unknown kind, names or numbers of
    systems that do not go, and texts that differ; FileNotFoundError where nothing is left.
    """
    if kind not in KINDS:
        raise ValueError(f"--kind={kind} is not one of {', '.join(KINDS)}")
    if kind in ("cmos", "abx") and len(folders) != 2:
        raise ValueError(f"{kind} compares two systems, {len(folders)} are given")
    if {REFERENCE, ANCHOR} & set(folders):
        raise ValueError(f"a system can't be called {REFERENCE} or {ANCHOR}: those have a part in the test")
    there: dict[str, dict[str, pathlib.Path]] = {}
    texts: dict[str, str] = {}
    for system, folder in folders.items():
        rows = pathlib.Path(folder) / "items.jsonl"
        if not rows.is_file():
            raise FileNotFoundError(f"{folder} holds no items.jsonl; write it with evaluate --out={folder} --save_audio")
        items = [json.loads(line) for line in rows.read_text(encoding="utf8").split("\n") if line]
        place = lambda item, condition: rows.parent / "audio" / f"{item['id'].replace('/', '_')}-{condition}.flac"
        made = next((c for c in ("synthesis", "wavs", "codec") if any(place(item, c).is_file() for item in items)), None)
        if made is None:
            raise FileNotFoundError(f"{folder}/audio has no output of the system; evaluate it with --save_audio")
        for item in items:
            if texts.setdefault(item["id"], item["text"]) != item["text"]:
                raise ValueError(f"{item['id']} has another text in {folder}; the systems must speak one list")
            found = {system: place(item, made)} | ({REFERENCE: place(item, "recording")} if kind in ("smos", "mushra") else {})
            try:
                for path in found.values():
                    files.read(path, RATE)
            except files.AudioError as error:
                print(f"left out: {error}")
                continue
            there.setdefault(item["id"], {}).update(found)
    names = sorted(name for name, found in there.items() if set(folders) <= set(found))[: limit or None]
    if not names:
        raise FileNotFoundError(f"no utterance has audio of all of {sorted(folders)}; evaluate them on one list with --save_audio")
    return [{"item": name, "text": texts[name], "systems": {s: there[name][s] for s in folders}, "recording": there[name].get(REFERENCE)}
            for name in names]


def make(folders: Mapping[str, str | os.PathLike], out: str | os.PathLike, kind: str, limit: int = 20, seed: int = 0) -> pathlib.Path:
    """Writes OUT/index.html (for listeners) and OUT/key.json (for you); returns the page. Raises as `gather`."""
    trials = gather(folders, kind, limit)
    sound = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    test = statistics.digest([kind, seed, [(t["item"], sorted((s, sound(path)) for s, path in t["systems"].items())) for t in trials]])
    hidden = lambda *names: hashlib.sha256("/".join((test, str(seed), *names)).encode()).hexdigest()[:10]
    key: dict[str, Any] = {"test": test, "kind": kind, "systems": sorted(folders), "trials": {}, "stimuli": {}}
    shown = []
    for trial in trials:
        sounds = {system: level(files.read(path, RATE)) for system, path in trial["systems"].items()}
        recording = level(files.read(trial["recording"], RATE)) if kind in ("smos", "mushra") else None
        if kind == "mushra":
            sounds |= {REFERENCE: recording, ANCHOR: level(anchor(recording))}
        sets = [[system] for system in sounds] if kind in ("mos", "smos") else [list(sounds)]
        for systems in sets:
            name = hidden("trial", trial["item"], *systems)
            key["trials"][name] = trial["item"]
            stimuli = []
            for system in systems:
                stimulus = hidden(trial["item"], system)
                key["stimuli"][stimulus] = {"item": trial["item"], "system": system}
                stimuli.append({"id": stimulus, "src": _flac(sounds[system])})
            reference = _flac(recording) if recording is not None else None
            shown.append({"id": name, "text": trial["text"], "stimuli": sorted(stimuli, key=lambda s: s["id"]), "reference": reference})
    folder = pathlib.Path(out)
    data = json.dumps({"test": test, "kind": kind, "question": QUESTIONS[kind], "scale": SCALES.get(kind), "trials": shown})
    template = pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf8")
    text = template.replace("@TITLE@", html.escape(f"Listening test ({kind})")).replace("@DATA@", data.replace("<", "\\u003c"))
    for name, content in (("key.json", json.dumps(key, indent=1) + "\n"), ("index.html", text)):
        scores.put(folder / name, content)
    return folder / "index.html"


def _good(answer: Any, key: Mapping[str, Any]) -> bool:
    """Whether an answer has everything in its place and range."""
    known = key["stimuli"]
    if answer["trial"] not in key["trials"] or not answer["order"] or not all(s in known for s in answer["order"]):
        return False
    if key["kind"] == "mushra":
        return set(answer["scores"]) == set(answer["order"]) and all(0 <= value <= 100 for value in answer["scores"].values())
    if key["kind"] == "abx" and answer["x"] not in answer["order"]:
        return False
    return answer["score"] in [value for value, _ in SCALES[key["kind"]]]


def read_answers(key: Mapping[str, Any], paths: Sequence[str | os.PathLike]) -> list[dict[str, Any]]:
    """Answer files as dicts, one of each listener: the one with the most answers. Raises ValueError naming the file that is no
    file of answers, or of answers to another test."""
    sheets: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            sheet = json.loads(pathlib.Path(path).read_text(encoding="utf8"))
            if sheet["test"] != key["test"]:
                raise ValueError(f"it answers test {sheet['test']}, the key is of {key['test']}")
            if not all(_good(answer, key) for answer in sheet["answers"]):
                raise ValueError("an answer lacks a part, is out of range or is to no trial of the test")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} can't be read as answers: {error}") from error
        listener = str(sheet.get("listener") or path)
        if len(sheet["answers"]) >= len(sheets.get(listener, {"answers": ()})["answers"]):
            sheets[listener] = {**sheet, "listener": listener}
    return list(sheets.values())


def interval(values: Sequence[float], groups: Sequence[Sequence[Any]], seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean when whole groups are drawn (all ratings of a listener, of an item): the widest."""
    found = []
    for group in groups:
        sums: dict[Any, list[float]] = collections.defaultdict(list)
        for value, member in zip(values, group, strict=True):
            sums[member].append(value)
        found.append(statistics.bootstrap([sum(v) for v in sums.values()], [float(len(v)) for v in sums.values()], seed))
    return max(found, key=lambda ends: ends[1] - ends[0])


def binomial(right: int, total: int) -> float:
    """Probability of at least so many right by chance."""
    return sum(math.comb(total, k) for k in range(right, total + 1)) / 2**total


def analyse(key: Mapping[str, Any], sheets: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """A row per system (pair for cmos and abx): mean, 95 % interval (`interval` over listeners and items), ratings, listeners.

    mushra leaves out listeners who rate the hidden recording under 90 in more than 15 % of their trials (BS.1534, 4.1.2) and
    says how many. abx also has the binomial probability of as many right by chance, as if all its answers were independent.
    Raises ValueError when no answer is left.
    """
    system = lambda stimulus: key["stimuli"][stimulus]["system"]
    ratings: dict[str, list[tuple[float, str, str]]] = collections.defaultdict(list)
    screened = 0
    for sheet in sheets:
        if key["kind"] == "mushra":
            low = [answer["scores"][s] < 90 for answer in sheet["answers"] for s in answer["order"] if system(s) == REFERENCE]
            if low and np.mean(low) > 0.15:
                screened += 1
                continue
        for answer in sheet["answers"]:
            first, *rest = answer["order"]
            about = sheet["listener"], key["trials"][answer["trial"]]
            if key["kind"] in ("mos", "smos"):
                ratings[system(first)].append((answer["score"], *about))
            elif key["kind"] == "cmos":
                a, b = system(first), system(rest[0])
                ratings[" minus ".join(sorted((a, b), reverse=True))].append((answer["score"] if b > a else -answer["score"], *about))
            elif key["kind"] == "abx":
                ratings["right"].append((100.0 * (answer["order"]["AB".index(answer["score"])] == answer["x"]), *about))
            else:
                for stimulus, value in answer["scores"].items():
                    ratings[system(stimulus)].append((value, *about))
    if not ratings:
        raise ValueError(f"no answers are left of {len(sheets)} listeners ({screened} screened out)")
    rows = []
    for name, given in sorted(ratings.items()):
        values, listeners, items = zip(*given)
        low, high = interval(values, (listeners, items), seed)
        row = {"system": name, "mean": float(np.mean(values)), "interval": [low, high], "ratings": len(values), "listeners": len(set(listeners))}
        row |= {"screened": screened} if key["kind"] == "mushra" else {}
        row |= {"p": binomial(sum(v > 0 for v in values), len(values))} if key["kind"] == "abx" else {}
        rows.append(row)
    return rows
