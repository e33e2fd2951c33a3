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
from ns2_jax.evals import statistics

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
    """Trials: utterances that every system has. `folders`: system -> folder of scores with `audio/` (the condition `synthesis`, else
    `wavs`, else `codec`). Raises ValueError for an unknown kind or too few systems, FileNotFoundError where audio is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"--kind={kind} is not one of {', '.join(KINDS)}")
    if kind in ("cmos", "abx") and len(folders) != 2:
        raise ValueError(f"{kind} compares two systems, {len(folders)} are given")
    there: dict[str, dict[str, pathlib.Path]] = {}
    texts: dict[str, str] = {}
    for system, folder in folders.items():
        rows = pathlib.Path(folder) / "items.jsonl"
        if not rows.is_file():
            raise FileNotFoundError(f"{folder} holds no items.jsonl; write it with evaluate --out={folder} --save_audio")
        for row in map(json.loads, rows.read_text(encoding="utf8").splitlines()):
            stem = str(rows.parent / "audio" / row["id"].replace("/", "_"))
            path = next((p for c in ("synthesis", "wavs", "codec") if (p := pathlib.Path(f"{stem}-{c}.flac")).is_file()), None)
            recording = pathlib.Path(f"{stem}-recording.flac")
            if path is not None and (kind not in ("smos", "mushra") or recording.is_file()):
                there.setdefault(row["id"], {})[system] = path
                there[row["id"]].setdefault(REFERENCE, recording)
                texts[row["id"]] = row["text"]
    names = sorted(name for name, found in there.items() if set(folders) <= set(found))[: limit or None]
    if not names:
        raise FileNotFoundError(f"no utterance has audio of all of {sorted(folders)}; evaluate them on one list with --save_audio")
    return [{"item": name, "text": texts[name], "systems": {s: there[name][s] for s in folders}, "recording": there[name][REFERENCE]}
            for name in names]


def make(folders: Mapping[str, str | os.PathLike], out: str | os.PathLike, kind: str, limit: int = 20, seed: int = 0) -> pathlib.Path:
    """Writes OUT/index.html (for listeners) and OUT/key.json (for you); returns the page. Raises as `gather`."""
    trials = gather(folders, kind, limit)
    test = statistics.digest([kind, seed, [(t["item"], sorted(t["systems"])) for t in trials]])
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
    folder.mkdir(parents=True, exist_ok=True)
    data = json.dumps({"test": test, "kind": kind, "question": QUESTIONS[kind], "scale": SCALES.get(kind), "trials": shown})
    template = pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf8")
    text = template.replace("@TITLE@", html.escape(f"Listening test ({kind})")).replace("@DATA@", data.replace("</", "<\\/"))
    for name, content in (("key.json", json.dumps(key, indent=1) + "\n"), ("index.html", text)):
        (folder / f"{name}.part").write_text(content, encoding="utf8")
        os.replace(folder / f"{name}.part", folder / name)
    return folder / "index.html"


def read_answers(key: Mapping[str, Any], paths: Sequence[str | os.PathLike]) -> list[dict[str, Any]]:
    """Answer files as dicts. Raises ValueError naming the file that is no answer, or is one to another test."""
    sheets = []
    for path in paths:
        try:
            sheet = json.loads(pathlib.Path(path).read_text(encoding="utf8"))
            test, _ = sheet["test"], [answer["trial"] for answer in sheet["answers"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a file of answers: {error}") from error
        if test != key["test"]:
            raise ValueError(f"{path} answers test {test}, the key is of {key['test']}")
        sheets.append({**sheet, "file": str(path)})
    return sheets


def binomial(right: int, total: int) -> float:
    """Probability of at least so many right by chance."""
    return sum(math.comb(total, k) for k in range(right, total + 1)) / 2**total


def analyse(key: Mapping[str, Any], sheets: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """A row per system (pair for cmos and abx): mean, 95 % interval (bootstrap over ratings), ratings, listeners.

    mushra leaves out listeners who rate the hidden recording under 90 in more than 15 % of their trials (BS.1534, 4.1.2) and
    says how many. Raises ValueError when no answer is left.
    """
    system = lambda stimulus: key["stimuli"][stimulus]["system"]
    ratings: dict[str, list[float]] = collections.defaultdict(list)
    used, screened = set(), 0
    for sheet in sheets:
        answers = [answer for answer in sheet["answers"] if answer["trial"] in key["trials"]]
        if key["kind"] == "mushra":
            low = [answer["scores"][s] < 90 for answer in answers for s in answer["order"] if system(s) == REFERENCE]
            if low and np.mean(low) > 0.15:
                screened += 1
                continue
        used.add(sheet.get("listener", sheet["file"]))
        for answer in answers:
            first, *rest = answer["order"]
            if key["kind"] in ("mos", "smos"):
                ratings[system(first)].append(answer["score"])
            elif key["kind"] == "cmos":
                a, b = system(first), system(rest[0])
                ratings[" minus ".join(reversed(sorted((a, b))))].append(answer["score"] if b > a else -answer["score"])
            elif key["kind"] == "abx":
                ratings["right"].append(100.0 * (answer["order"]["AB".index(answer["score"])] == answer["x"]))
            else:
                for stimulus, value in answer["scores"].items():
                    ratings[system(stimulus)].append(value)
    if not ratings:
        raise ValueError(f"no answers are left of {len(sheets)} files ({screened} screened out)")
    rows = []
    for name, values in sorted(ratings.items()):
        low, high = statistics.bootstrap(values, seed=seed)
        row = {"system": name, "mean": float(np.mean(values)), "interval": [low, high], "ratings": len(values), "listeners": len(used)}
        row |= {"screened": screened} if key["kind"] == "mushra" else {}
        row |= {"p": binomial(sum(v > 0 for v in values), len(values))} if key["kind"] == "abx" else {}
        rows.append(row)
    return rows
