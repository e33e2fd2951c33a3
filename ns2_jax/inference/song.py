"""Songs: notes of MusicXML or MIDI and their lyrics -> a `Score` to be sung.

A vowel begins on its note's beat and holds it, and further notes where the syllable has more; consonants take their time from what
stands before the beat, or from the end of the note. The text of the phones is that of the words; syllables only say where words go.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ns2_jax.inference.score import Score
from ns2_jax.text import front, phones as inventory

SUFFIXES = (".musicxml", ".xml", ".mxl", ".mid", ".midi")
CONSONANT = 0.07  # seconds, where there is room; all of a syllable's take at most half of the note
EDGE = 0.2  # seconds of silence before and after
BREATH = 0.06  # seconds; a shorter rest is sung through
STEP = 0.0125  # seconds between two values of the pitch that is written
VOICELESS = frozenset("p t k f th s sh ch hh".split())
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


@dataclasses.dataclass
class Note:
    """From `start` to `end` in seconds at `hz`; `syllable` begins on it ("" holds the one before), and `ends` its word or does not."""

    start: float
    end: float
    hz: float
    syllable: str = ""
    ends: bool = True


def hertz(midi: float) -> float:
    """Of a MIDI note number; 69 is 440 Hz."""
    return 440.0 * 2 ** ((midi - 69) / 12)


def read(path: str | os.PathLike) -> list[Note]:
    """The melody of a file: its first voice with lyrics, else its first. Raises FileNotFoundError, ImportError for MIDI without mido,
    ValueError for another file or one without notes."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: expected a song as {' '.join(SUFFIXES)}")
    notes = _midi(path) if path.suffix.lower() in (".mid", ".midi") else _musicxml(path)
    if not notes:
        raise ValueError(f"{path}: there is no note in it")
    if not all(np.isfinite([note.start, note.end]).all() and note.end > note.start >= 0 for note in notes):
        raise ValueError(f"{path}: damaged: a note has no length")
    for before, after in itertools.pairwise(notes):
        before.end = min(before.end, after.start)
        if before.end <= before.start:
            raise ValueError(f"{path}: two notes begin at {before.start:.2f} s; a voice sings one at a time")
    return notes


def _musicxml(path: Path) -> list[Note]:
    try:
        if path.suffix.lower() == ".mxl":
            with zipfile.ZipFile(path) as archive:
                container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
                inside = next(item.get("full-path") for item in container.iter() if item.tag.endswith("rootfile"))
                root = ElementTree.fromstring(archive.read(inside))
        else:
            root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, zipfile.BadZipFile, KeyError, StopIteration) as error:
        raise ValueError(f"{path}: not MusicXML: {error}") from error
    if root.tag != "score-partwise":
        raise ValueError(f"{path}: its root is <{root.tag}>; expected <score-partwise>, as most programs export it")
    try:
        found = [_part(part) for part in root.findall("part")]
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: damaged MusicXML: {error}") from error
    return next((notes for notes in found if any(note.syllable for note in notes)), next((notes for notes in found if notes), []))


def _part(part: ElementTree.Element) -> list[Note]:
    """The notes of the first voice that has any, in seconds."""
    divisions, tempo, beat, notes, voice = 1.0, 120.0, 0.0, [], None
    changes = [(0.0, tempo)]  # (beat, beats per minute)
    last: Note | None = None
    for item in (item for measure in part.findall("measure") for item in measure):
        for sound in ([item] if item.tag == "sound" else item.findall("sound")):
            if sound.get("tempo"):
                changes.append((beat, float(sound.get("tempo"))))
        if item.tag == "attributes" and item.find("divisions") is not None:
            divisions = float(item.findtext("divisions"))
        length = float(item.findtext("duration") or 0) / divisions
        if item.tag in ("forward", "backup"):
            beat += length if item.tag == "forward" else -length
        if item.tag != "note" or item.find("grace") is not None or item.find("chord") is not None:
            continue
        pitch = item.find("pitch")
        mine = pitch is not None and voice in (None, item.findtext("voice", "1"))
        if mine:
            voice = item.findtext("voice", "1")
            midi = 12 * (int(pitch.findtext("octave")) + 1) + SEMITONES[pitch.findtext("step")] + float(pitch.findtext("alter") or 0)
            ties = {tie.get("type") for tie in item.findall("tie")}
            if "stop" in ties and last is not None and last.hz == hertz(midi):
                last.end = beat + length
            else:
                lyric = item.find("lyric")
                text = (lyric.findtext("text") or "").strip() if lyric is not None else ""
                ends = lyric is None or lyric.findtext("syllabic", "single") in ("single", "end")
                last = Note(beat, beat + length, hertz(midi), text, ends)
                notes.append(last)
        beat += length

    def seconds(beats: float) -> float:
        total = 0.0
        for (begin, bpm), (end, _) in itertools.pairwise([*changes, (float("inf"), 0.0)]):
            total += max(0.0, min(beats, end) - begin) * 60 / bpm
        return total

    return sorted((dataclasses.replace(note, start=seconds(note.start), end=seconds(note.end)) for note in notes), key=lambda note: note.start)


def _midi(path: Path) -> list[Note]:
    try:
        import mido
    except ImportError as error:
        raise ImportError("MIDI files need the package mido: pip install -e '.[music]'") from error
    try:
        file = mido.MidiFile(path)
    except (OSError, EOFError, ValueError, IndexError, KeyError, mido.KeySignatureError) as error:
        raise ValueError(f"{path}: not a MIDI file: {error}") from error
    if not 0 < file.ticks_per_beat < 1 << 15:
        raise ValueError(f"{path}: its times are not in ticks of a beat; export it with a tempo")
    changes = [(0, 500_000)]  # (tick, microseconds a beat)
    for track in file.tracks:
        tick = 0
        for message in track:
            tick += message.time
            if message.type == "set_tempo":
                changes.append((tick, message.tempo))
    changes.sort(key=lambda change: change[0])  # of several on one tick the last holds

    def seconds(tick: int) -> float:
        total = 0.0
        for (begin, tempo), (end, _) in itertools.pairwise([*changes, (float("inf"), 0)]):
            total += max(0.0, min(tick, end) - begin) * tempo / 1e6 / file.ticks_per_beat
        return total

    voices: dict[tuple[int, int], list[Note]] = {}
    lyrics: dict[int, str] = {}
    for number, track in enumerate(file.tracks):
        tick, sounding = 0, {}
        for message in track:
            tick += message.time
            if message.type == "lyrics":
                lyrics[tick] = message.text
            elif message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                if key in sounding:
                    sounding.pop(key).end = seconds(tick)
                if message.type == "note_on" and message.velocity:
                    note = Note(seconds(tick), float("inf"), hertz(message.note), str(tick))
                    sounding[key] = note
                    voices.setdefault((number, message.channel), []).append(note)
        for note in sounding.values():  # never ended: at the end of its track
            note.end = seconds(tick)
    sung = [notes for notes in voices.values() if any(int(note.syllable) in lyrics for note in notes)]
    chosen = (sung or list(voices.values()) or [[]])[0]
    for note in chosen:
        text = lyrics.get(int(note.syllable), "")
        note.ends = not text.rstrip().endswith("-")
        note.syllable = text.strip().rstrip("-").strip()
    return sorted(chosen, key=lambda note: note.start)


def words_of(notes: Sequence[Note]) -> str:
    """The lyrics as text."""
    out = ""
    for note in notes:
        if note.syllable and note.syllable != "_":
            out += note.syllable + (" " if note.ends else "")
    return out.strip()


def score(notes: Sequence[Note], text: str | None = None, lexicon: Any = None) -> Score:
    """The notes sung with the words of `text`, else with their own lyrics. English.

    A word takes the notes of its syllables in the file; with `text`, one note for each vowel of its phones, and the last word what is
    left. Raises ValueError where there are no lyrics, or more syllables than notes.
    """
    own = text is None
    said = words_of(notes) if own else text
    if not said.strip():
        raise ValueError("the song has no lyrics; give the words with --text")
    words = [word for word in front.words(said, lexicon) if word.phones != (inventory.SILENCE,)]
    groups = _by_syllable(notes, words) if own else _by_vowel(notes, words)
    return _timed(words, groups)


def _vowels(word: front.Word) -> list[int]:
    """Places of the vowels; a word without one holds its last phone."""
    return [i for i, phone in enumerate(word.phones) if phone in inventory.VOWELS] or [len(word.phones) - 1]


def _by_vowel(notes: Sequence[Note], words: Sequence[front.Word]) -> list[list[list[Note]]]:
    need = sum(len(_vowels(word)) for word in words)
    if need > len(notes):
        raise ValueError(f"the text has {need} syllables and the song {len(notes)} notes; give a shorter text, or a file with its own lyrics")
    left, groups = list(notes), []
    for word in words:
        groups.append([[left.pop(0)] for _ in _vowels(word)])
    groups[-1][-1] += left
    return groups


def _by_syllable(notes: Sequence[Note], words: Sequence[front.Word]) -> list[list[list[Note]]]:
    """Word -> vowel -> its notes, from the syllables that the file puts under them."""
    held: list[list[list[Note]]] = [[]]  # word -> syllable -> notes
    for note in notes:
        if note.syllable and note.syllable != "_":
            held[-1].append([note])
            if note.ends:
                held.append([])
        elif any(held):
            (held[-1] or held[-2])[-1].append(note)
    held = [word for word in held if word]
    if len(held) != len(words):
        raise ValueError(f"the lyrics are {len(held)} words under the notes, but {len(words)} spoken ones ({' '.join(word.text for word in words)}); "
                         "write numbers and abbreviations as words")
    groups = []
    for word, syllables in zip(words, held):
        number = len(_vowels(word))
        if len(syllables) > number:  # "fi-re": the last vowel has the rest
            syllables = [*syllables[: number - 1], [note for syllable in syllables[number - 1 :] for note in syllable]]
        while len(syllables) < number:  # "every" on two notes: the longest one is divided
            k = max(range(len(syllables)), key=lambda k: syllables[k][-1].end - syllables[k][-1].start)
            note = syllables[k].pop()
            middle = (note.start + note.end) / 2
            first, second = dataclasses.replace(note, end=middle), dataclasses.replace(note, start=middle)
            syllables[k : k + 1] = [[*syllables[k], first], [second]] if syllables[k] else [[first], [second]]
        groups.append(syllables)
    return groups


def _timed(words: Sequence[front.Word], groups: Sequence[Sequence[Sequence[Note]]]) -> Score:
    """Phones with their times: between two vowels stand a coda, perhaps a breath, and an onset."""
    phones, seconds, hz, spoken = [], [], [], []
    clock, joined = min(0.0, groups[0][0][0].start - EDGE), False

    def sing(phone: str, end: float, melody: Iterable[Note]) -> None:
        nonlocal clock
        melody, count = list(melody), max(1, round((end - clock) / STEP))
        at = [clock + (end - clock) * (i + 0.5) / count for i in range(count)]
        tone = lambda t: next((note.hz for note in reversed(melody) if note.start <= t), melody[0].hz) if melody else 0.0
        silent = phone == inventory.SILENCE or phone in VOICELESS
        phones.append(phone)
        seconds.append(end - clock)
        hz.append(tuple(0.0 if silent else tone(t) for t in at))
        clock = end

    flat = [(w, k, notes) for w, word in enumerate(groups) for k, notes in enumerate(word)]
    for place, (w, k, notes) in enumerate(flat):
        word, vowels = words[w], _vowels(words[w])
        if k == 0:
            before = list(word.phones[: vowels[0]])
            if not joined:
                each = min(CONSONANT, 0.5 * (notes[0].start - clock) / max(len(before), 1))
                spoken.append(front.Word("", (inventory.SILENCE,)))
                sing(inventory.SILENCE, notes[0].start - each * len(before), ())
            for i, phone in enumerate(before):
                sing(phone, clock + (notes[0].start - clock) / (len(before) - i), notes)
            spoken.append(word)
        following = flat[place + 1] if place + 1 < len(flat) else None
        between = list(word.phones[vowels[k] + 1 : vowels[k + 1] if k + 1 < len(vowels) else len(word.phones)])
        onset = list(words[following[0]].phones[: _vowels(words[following[0]])[0]]) if following and following[1] == 0 else []
        end = notes[-1].end
        joined = following is not None and following[2][0].start - end <= BREATH
        end = following[2][0].start if joined else end
        number = len(between) + (len(onset) if joined else 0)
        each = min(CONSONANT, 0.5 * (end - clock) / number) if number else 0.0
        sing(word.phones[vowels[k]], end - each * number, notes)
        for i, phone in enumerate(between):
            sing(phone, clock + each if joined and onset or i < len(between) - 1 else end, following[2] if joined and k + 1 < len(vowels) else notes)
    spoken.append(front.Word("", (inventory.SILENCE,)))
    sing(inventory.SILENCE, clock + EDGE, ())
    return Score(spoken, tuple(seconds), tuple(hz))
