"""What is to be scored: utterance lists, read from published files or drawn by the papers' protocols, and finished WAVs.

Nothing is downloaded: the user has the audio. A list is a sequence of `Item`; its digest (`statistics.digest`) is in every
fingerprint, so two scores on different draws never pass for each other.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ns2_jax.audio import files

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
RECORDINGS = pathlib.Path(__file__).parents[2] / "results" / "hard_sentences"
LENGTHS = {"short": (4.0, 10.0), "mid": (10.0, 20.0), "long": (20.0, 30.0)}  # seconds; SoundStorm, section 4


@dataclasses.dataclass(frozen=True)
class Item:
    """A sentence to say and the voice to say it in. `audio` is the recording of it, where there is one."""

    id: str
    text: str
    prompt: str
    prompt_text: str = ""
    audio: str = ""
    speaker: str = ""
    prompt_seconds: float = 0.0  # how much of the prompt, from its beginning; 0 is all


def _audio(stem: pathlib.Path) -> pathlib.Path | None:
    """The audio file of this name without its suffix, or None."""
    return next((p for suffix in SUFFIXES if (p := stem.with_name(stem.name + suffix)).is_file()), None)


def _columns(path: str | os.PathLike, separator: str, counts: Sequence[int]) -> Iterable[list[str]]:
    """The fields of every line that is not empty. Raises ValueError naming the line whose number of fields is another."""
    with open(path, encoding="utf8") as file:
        for at, line in enumerate(file, 1):
            if not line.strip():
                continue
            fields = line.rstrip("\r\n").split(separator)
            if len(fields) not in counts:
                raise ValueError(f"{path} line {at} has {len(fields)} fields between {separator!r}, expected {' or '.join(map(str, counts))}")
            yield fields


def seed_tts(path: str | os.PathLike) -> list[Item]:
    """Seed-TTS's `meta.lst`: `name|prompt text|prompt wav|text[|recording]`, paths relative to the list."""
    folder = pathlib.Path(path).parent
    items = []
    for name, prompt_text, prompt, text, *audio in _columns(path, "|", (4, 5)):
        truth = folder / (audio[0] if audio else f"wavs/{name}.wav")
        there = str(truth) if truth.is_file() else ""
        items.append(Item(name, text, str(folder / prompt), prompt_text, there, pathlib.Path(prompt).stem))
    return _checked(path, items)


def librispeech_pc(path: str | os.PathLike, root: str | os.PathLike) -> list[Item]:
    """F5-TTS's `librispeech_pc_test_clean_cross_sentence.lst` (six columns between tabs: prompt utterance, its seconds, its
    text, utterance, its seconds, its text) over a LibriSpeech folder `root` (`SPEAKER/CHAPTER/ID.flac`)."""

    def place(name: str) -> str:
        speaker, chapter, _ = name.split("-")
        return str(pathlib.Path(root) / speaker / chapter / f"{name}.flac")

    rows = list(_columns(path, "\t", (6,)))
    return _checked(path, [Item(row[3], row[5], place(row[0]), row[2], place(row[3]), row[3].split("-")[0]) for row in rows])


def hard(prompt: str | os.PathLike, recordings: str | os.PathLike | None = None) -> list[Item]:
    """Fifty sentences of ours that make systems skip and repeat (letters, digits, doubled words, tongue twisters), in the manner
    of FastSpeech's list, all in the voice of one recording.

    RECORDINGS/hard-01.ogg (or .wav, .flac, .mp3) and so on, said by a synthesiser that does not skip, are the floor of the
    robustness evaluator. By default they are flite's in results/hard_sentences, or none where this package is installed without
    its repository: then the judge's own errors count. On flite's it flags 8 of 551 words in 4 sentences (25, 42, 44, 47); it is
    easily moved there: inaudible noise (the lowest 4 of 16 bits gone) makes it 15. Raises FileNotFoundError for a folder that
    lacks one of them.
    """
    lines = pathlib.Path(__file__).with_name("hard_sentences.txt").read_text(encoding="utf8").splitlines()
    names = [f"hard-{k:02d}" for k in range(1, len(lines) + 1)]
    folder = pathlib.Path(recordings) if recordings else RECORDINGS if RECORDINGS.is_dir() else None
    said = [str(_audio(folder / name) or folder / f"{name}.wav") if folder else "" for name in names]
    voice = pathlib.Path(prompt).stem
    return _checked("hard", [Item(name, text, str(prompt), audio=audio, speaker=voice) for name, text, audio in zip(names, lines, said)])


def _checked(path: str | os.PathLike, items: list[Item]) -> list[Item]:
    """The items. Raises ValueError for no or repeated items, FileNotFoundError for audio that is not there."""
    if not items:
        raise ValueError(f"{path} has no items")
    twice = [name for name, count in collections.Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has {twice[0]!r} more than once")
    for item in items:
        for file in (item.prompt, item.audio):
            if file and not os.path.isfile(file):
                raise FileNotFoundError(f"{path} names {file} for {item.id}, which is not there")
    return items


@dataclasses.dataclass(frozen=True)
class Recording:
    """An utterance of a corpus."""

    id: str
    speaker: str
    text: str
    path: str
    seconds: float


def librispeech(root: str | os.PathLike) -> list[Recording]:
    """All utterances of a LibriSpeech split: `SPEAKER/CHAPTER/*.trans.txt` and the FLAC files beside them."""
    found = []
    for transcript in sorted(pathlib.Path(root).glob("*/*/*.trans.txt")):
        for line in transcript.read_text(encoding="utf8").splitlines():
            name, _, text = line.partition(" ")
            path = transcript.parent / f"{name}.flac"
            if path.is_file():
                found.append(Recording(name, name.split("-")[0], text, str(path), files.seconds(path)))
    if not found:
        raise FileNotFoundError(f"{root} holds no LibriSpeech (nothing matches SPEAKER/CHAPTER/*.trans.txt with its FLAC files)")
    return found


def vctk(root: str | os.PathLike) -> list[Recording]:
    """All utterances of VCTK 0.80 (`wav48/`) or 0.92 (`wav48_silence_trimmed/`, first microphone) that have a transcript."""
    root, found = pathlib.Path(root), []
    for transcript in sorted(root.glob("txt/*/*.txt")):
        speaker, name = transcript.parent.name, transcript.stem
        places = (root / f"wav48_silence_trimmed/{speaker}/{name}_mic1.flac", root / f"wav48/{speaker}/{name}.wav")
        path = next((place for place in places if place.is_file()), None)
        text = transcript.read_text(encoding="utf8").strip()
        if path and text:
            found.append(Recording(name, speaker, text, str(path), files.seconds(path)))
    if not found:
        raise FileNotFoundError(f"{root} holds no VCTK (nothing matches txt/SPEAKER/*.txt with its audio)")
    return found


def _rank(seed: int, *names: str) -> str:
    return hashlib.sha256("/".join((str(seed), *names)).encode()).hexdigest()


def draw(recordings: Sequence[Recording], per_speaker: int = 0, seconds: tuple[float, float] = (0.0, 1e9), prompt_seconds: float = 3.0,
         seed: int = 0) -> list[Item]:
    """Items of `seconds` in length, `per_speaker` of each (0: all), prompted by the first `prompt_seconds` of another utterance of
    the speaker. The draw depends on the names and the seed alone. Raises ValueError when nothing is left."""
    people: dict[str, list[Recording]] = {}
    for one in recordings:
        people.setdefault(one.speaker, []).append(one)
    items = []
    for speaker in sorted(people):
        mine = sorted((one for one in people[speaker] if seconds[0] <= one.seconds <= seconds[1]), key=lambda one: _rank(seed, "item", one.id))
        for one in mine[: per_speaker or None]:
            others = [other for other in people[speaker] if other.id != one.id and other.seconds >= prompt_seconds]
            if others:
                prompt = min(others, key=lambda other: _rank(seed, "prompt", one.id, other.id))
                items.append(Item(one.id, one.text, prompt.path, prompt.text, one.path, speaker, prompt_seconds))
    if not items:
        raise ValueError(f"no utterance of {seconds[0]:g} to {seconds[1]:g} s has another of {prompt_seconds:g} s by its speaker to prompt with")
    return items


PROTOCOLS = {  # name -> (reader of the corpus, numbers of the draw)
    "naturalspeech2_librispeech": (librispeech, dict(per_speaker=15)),  # 40 speakers: 600
    "naturalspeech2_vctk": (vctk, dict(per_speaker=5)),  # 108 speakers: 540
    "valle": (librispeech, dict(seconds=LENGTHS["short"])),
    **{f"soundstorm_{name}": (librispeech, dict(seconds=seconds)) for name, seconds in LENGTHS.items()},
}


def protocol(name: str, root: str | os.PathLike, seed: int = 0) -> list[Item]:
    """The list of a paper over the corpus at `root`. The papers publish no lists: ours is one draw by their rules.

    Raises ValueError for an unknown protocol.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r} is not one of {', '.join(PROTOCOLS)}")
    read, numbers = PROTOCOLS[name]
    return draw(read(root), seed=seed, **numbers)


def load(spec: str, seed: int = 0) -> list[Item]:
    """`KIND:PATH`, KIND being tsv (what `write` writes), seed_tts, hard (PATH is the prompt) or a protocol over a corpus, or
    `librispeech_pc:LIST:CORPUS`, or `hard:PROMPT:RECORDINGS`. Raises ValueError for another spec, and as the readers do."""
    kind, *paths = spec.split(":")
    readers = {"tsv": read, "seed_tts": seed_tts, "librispeech_pc": librispeech_pc, "hard": hard}
    wanted = {"librispeech_pc": (2,), "hard": (1, 2)}.get(kind, (1,))
    if kind not in (*readers, *PROTOCOLS) or len(paths) not in wanted or not all(paths):
        raise ValueError(f"{spec!r} is not tsv:FILE, seed_tts:FILE, librispeech_pc:FILE:FOLDER, hard:PROMPT[:FOLDER] or PROTOCOL:FOLDER with a "
                         f"protocol of {', '.join(PROTOCOLS)}")
    return readers[kind](*paths) if kind in readers else protocol(kind, paths[0], seed)


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """The first `limit` (0: all) in turn over the speakers, in their order."""
    turns: dict[str, int] = collections.Counter()
    ranked = []
    for place, item in enumerate(items):
        ranked.append((turns[item.speaker], place, item))
        turns[item.speaker] += 1
    return [item for _, _, item in sorted(ranked, key=lambda one: one[:2])][: limit or None]


def write(path: str | os.PathLike, items: Sequence[Item]) -> None:
    """The list as tab-separated values with a header line; `read` takes it back."""
    with open(path, "w", encoding="utf8", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in dataclasses.fields(Item)], delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(dataclasses.asdict(item) for item in items)


def read(path: str | os.PathLike) -> list[Item]:
    """A list that `write` wrote. Raises ValueError for another header, and as the other readers do."""
    with open(path, encoding="utf8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t")
        wanted = [field.name for field in dataclasses.fields(Item)]
        if table.fieldnames != wanted:
            raise ValueError(f"{path} begins with the columns {table.fieldnames}, expected {wanted}")
        return _checked(path, [Item(**{**row, "prompt_seconds": float(row["prompt_seconds"])}) for row in table])


def audio(path: str | os.PathLike, rate: int, seconds: float = 0.0) -> np.ndarray:
    """A file of a list as float32 `[s]` at `rate` Hz, its first `seconds` (0: all). Raises AudioError naming it when it, or that part
    of it, can't be used."""
    cut = files.read(path, rate)[: int(seconds * rate) or None]
    if np.abs(cut).max(initial=0.0) < files.SILENT:
        raise files.AudioError("silent", f"{path}: its first {seconds:g} s are silent")
    return cut


def wavs(folder: str | os.PathLike, ids: Sequence[str], rate: int) -> tuple[list[np.ndarray | None], Mapping[str, str]]:
    """(audio of FOLDER/<id>.<suffix> at `rate`, `/` in an id being `_`; None where it is missing or unusable, id -> why)."""
    found: list[np.ndarray | None] = []
    failures: dict[str, str] = {}
    for name in ids:
        stem = pathlib.Path(folder) / name.replace("/", "_")
        path = _audio(stem)
        audio = None
        try:
            if path is None:
                failures[name] = f"{stem}: no file with one of the suffixes {' '.join(SUFFIXES)}"
            else:
                audio = files.read(path, rate)
        except files.AudioError as error:
            failures[name] = str(error)
        found.append(audio)
    return found, failures
