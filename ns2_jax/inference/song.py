"""Songs: notes of MusicXML or MIDI and their lyrics -> a `Score` to be sung.

A vowel begins on its note's beat and holds it, and further notes where the syllable has more; consonants take their time from what
stands before the beat, or from the end of the note. The text of the phones is that of the words; syllables only say where words go.
A song begins EDGE before its first note. Grace notes are left out, repeats are sung once, of chords the first note, of verses the first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from absl import logging

from ns2_jax.inference.score import Score
from ns2_jax.text import front, phones as inventory

SUFFIXES = (".musicxml", ".xml", ".mxl", ".mid", ".midi")
CONSONANT = 0.07  # seconds, where there is room; all of a syllable's take at most half of the note
EDGE = 0.2  # seconds of silence before and after
BREATH = 0.06  # seconds; a shorter rest is sung through
LONGEST = 3600.0  # seconds of a song
STEP = 0.0125  # seconds between two values of the pitch that is written
VOICELESS = frozenset("p t k f th s sh ch hh".split())
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


@dataclasses.dataclass
class Note:
    """From `start` to `end` in seconds at `hz`; `syllable` begins on it ("" or a sign such as "_" holds the one before), and `ends` its word or
    does not. `file` is named in errors."""

    start: float
    end: float
    hz: float
    syllable: str = ""
    ends: bool = True
    file: str = dataclasses.field(default="the song", compare=False)


def hertz(midi: float) -> float:
    """Of a MIDI note number; 69 is 440 Hz."""
    return 440.0 * 2 ** ((midi - 69) / 12)


def read(path: str | os.PathLike) -> list[Note]:
    """The melody of a file: the voice with the most syllables, else its first. Raises FileNotFoundError, ImportError for MIDI without mido,
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
    if notes[-1].end > LONGEST:
        raise ValueError(f"{path}: it ends at {notes[-1].end:g} s; expected at most {LONGEST:g}")
    return [dataclasses.replace(note, file=str(path)) for note in notes]


def _musicxml(path: Path) -> list[Note]:
    try:
        if path.suffix.lower() == ".mxl":
            with zipfile.ZipFile(path) as archive:
                container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
                inside = next(item.get("full-path") for item in container.iter() if item.tag.endswith("rootfile"))
                root = ElementTree.fromstring(archive.read(inside))
        else:
            root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError, StopIteration,  # LookupError and ValueError: encodings that it cannot read
            zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:  # RuntimeError: a password, or another compression
        raise ValueError(f"{path}: not MusicXML: {error}") from error
    if root.tag != "score-partwise":
        raise ValueError(f"{path}: its root is <{root.tag}>; expected <score-partwise>, as most programs export it")
    if root.find(".//repeat") is not None:
        logging.warning("%s has repeats, which are sung once", path)
    try:
        tempos: list[tuple[float, float]] = []
        voices = [voice for part in root.findall("part") for voice in _part(part, tempos)]
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{path}: damaged MusicXML: {error}") from error
    if wrong := [tempo for _, tempo in tempos if not 0 < tempo < 1e4]:
        raise ValueError(f"{path}: damaged MusicXML: a tempo of {wrong[0]:g} beats a minute")
    seconds = _clock([(beat, 60 / tempo) for beat, tempo in tempos], 0.5)
    notes = _most_sung(voices)
    return [dataclasses.replace(note, start=seconds(note.start), end=seconds(note.end)) for note in notes]


def _clock(changes: list[tuple[float, float]], usual: float) -> Callable[[float], float]:
    """Beats (or ticks) -> seconds, from (place, seconds of one from there on); of several at one place the last holds."""
    ordered = sorted([(0.0, usual), *changes], key=lambda change: change[0])

    def seconds(place: float) -> float:
        total = 0.0
        for (begin, each), (end, _) in itertools.pairwise([*ordered, (math.inf, 0.0)]):
            total += max(0.0, min(place, end) - begin) * each
        return total

    return seconds


def _most_sung(voices: Sequence[list[Note]]) -> list[Note]:
    """The voice with the most syllables, of equals the first; sorted by time."""
    chosen = max(voices, key=lambda notes: sum(bool(note.syllable) for note in notes), default=[])
    return sorted(chosen, key=lambda note: note.start)


def _part(part: ElementTree.Element, tempos: list[tuple[float, float]]) -> list[list[Note]]:
    """The voices of a part that have notes, in beats; (beat, beats per minute) are added to `tempos`. Of several verses the first."""
    divisions, beat, verse = 1.0, 0.0, None
    voices: dict[str, list[Note]] = {}
    for item in (item for measure in part.findall("measure") for item in measure):
        for sound in ([item] if item.tag == "sound" else item.findall("sound")):
            if sound.get("tempo"):
                tempos.append((beat, float(sound.get("tempo"))))
        if item.tag == "attributes" and item.find("divisions") is not None:
            divisions = float(item.findtext("divisions"))
        length = float(item.findtext("duration") or 0) / divisions
        if item.tag in ("forward", "backup"):
            beat += length if item.tag == "forward" else -length
        if item.tag != "note" or item.find("grace") is not None or item.find("chord") is not None:
            continue
        if (pitch := item.find("pitch")) is not None:
            notes = voices.setdefault(item.findtext("voice", "1"), [])
            midi = 12 * (int(pitch.findtext("octave")) + 1) + SEMITONES[pitch.findtext("step")] + float(pitch.findtext("alter") or 0)
            if not 0 <= midi <= 132:
                raise ValueError(f"a note in octave {pitch.findtext('octave')}; expected 0 to 9")
            if any(tie.get("type") == "stop" for tie in item.findall("tie")) and notes and notes[-1].hz == hertz(midi):
                notes[-1].end = beat + length
            else:
                lyrics = [lyric for lyric in item.findall("lyric") if lyric.find("text") is not None]
                verse = lyrics[0].get("number") if verse is None and lyrics else verse
                lyric = next((lyric for lyric in lyrics if lyric.get("number") == verse), None)
                text = "" if lyric is None else " ".join((text.text or "").strip() for text in lyric.findall("text")).strip()
                places = ["single"] if lyric is None else ["single", *(item.text for item in lyric.findall("syllabic"))]
                if places[-1] == "end" and not _spoken(text):  # a sign that holds the syllable before, which then ends the word
                    for before in [note for note in notes if _spoken(note.syllable)][-1:]:
                        before.ends = True
                notes.append(Note(beat, beat + length, hertz(midi), text, places[-1] in ("single", "end")))
        beat += length
    return list(voices.values())


def _midi(path: Path) -> list[Note]:
    try:
        import mido
    except ImportError as error:
        raise ImportError("MIDI files need the package mido: pip install -e '.[music]'") from error
    try:
        try:
            file = mido.MidiFile(path, charset="utf-8")
        except UnicodeDecodeError:
            file = mido.MidiFile(path, charset="latin1")
    except (OSError, EOFError, ValueError, IndexError, KeyError, mido.KeySignatureError) as error:
        raise ValueError(f"{path}: not a MIDI file: {error}") from error
    if not 0 < file.ticks_per_beat < 1 << 15:
        raise ValueError(f"{path}: its times are not in ticks of a beat; export it with a tempo")
    tempos, voices = [], {}
    words: dict[int, list[tuple[int, str]]] = {}  # track -> (tick, text)
    for number, track in enumerate(file.tracks):
        tick, sounding = 0, {}
        for message in track:
            tick += message.time
            if message.type == "set_tempo":
                tempos.append((tick, message.tempo / 1e6 / file.ticks_per_beat))
            elif message.type == "lyrics" and message.text.strip():
                words.setdefault(number, []).append((tick, message.text))
            elif message.type in ("note_on", "note_off"):
                key = (message.channel, message.note)
                if key in sounding:
                    sounding.pop(key).end = tick
                if message.type == "note_on" and message.velocity:
                    note = Note(tick, math.inf, hertz(message.note))
                    sounding[key] = note
                    voices.setdefault((number, message.channel), []).append(note)
        for note in sounding.values():  # never ended: at the end of its track
            note.end = tick
    for (number, _), notes in voices.items():
        if len(words) == 1 or number in words:
            _underlay(notes, words.get(number) or next(iter(words.values())), file.ticks_per_beat / 4)
    seconds = _clock(tempos, 0.5 / file.ticks_per_beat)
    ranked = sorted(voices, key=lambda voice: voice[0] not in words)  # of equals the one in the track of the lyrics
    return [dataclasses.replace(note, start=seconds(note.start), end=seconds(note.end)) for note in _most_sung([voices[key] for key in ranked])]


def _underlay(notes: list[Note], words: list[tuple[int, str]], near: float) -> None:
    """Puts (tick, text) under the notes that begin no further than `near` ticks away. A word goes on where a text ends with "-", or, in a
    file that parts words by spaces, where there is none between this text and the next."""
    joined: list[list[Any]] = []
    for tick, text in sorted(words, key=lambda word: word[0]):
        if joined and joined[-1][0] == tick:
            joined[-1][1] += text
        else:
            joined.append([tick, text])
    spaced = any(bare.strip(" ") != bare for bare in (text.strip("\r\n/\\") for _, text in joined))
    for k, (tick, text) in enumerate(joined):
        note = min(notes, key=lambda note: abs(note.start - tick))
        if abs(note.start - tick) > near or note.syllable:
            continue
        after = joined[k + 1][1] if k + 1 < len(joined) else " "
        bare = text.strip(" \r\n/\\")  # strokes and line ends begin a new line of text
        note.ends = text[-1] in " \r\n" or after[0] in " /\\\r\n" if spaced else not bare.endswith("-")
        note.syllable = bare.rstrip("-").strip()


def words_of(notes: Sequence[Note]) -> str:
    """The lyrics as text. Raises ValueError for numbers, and where a sign that holds a syllable has none before it."""
    out = ""
    for note in _one_word_each(notes):
        if note.syllable:
            out += note.syllable + (" " if note.ends else "")
    return out.strip()


def score(notes: Sequence[Note], text: str | None = None, lexicon: Any = None) -> Score:
    """The notes sung with the words of `text`, else with their own lyrics. English.

    A word takes the notes of its syllables in the file; with `text`, one note for each vowel of its phones, and the last word what is
    left. Raises ValueError where there are no lyrics, numbers in them, or more syllables than notes, and as `Score`.
    """
    own = text is None
    said = words_of(notes) if own else text
    if not said.strip():
        raise ValueError(f"{notes[0].file if notes else 'the song'}: no lyrics; give the words with --text")
    words = [word for word in front.words(said, lexicon) if word.phones != (inventory.SILENCE,)]
    groups = _by_syllable(notes, words) if own else _by_vowel(notes, words)
    try:
        return _timed(words, groups)
    except ValueError as error:
        raise ValueError(f"{notes[0].file}: {error}") from error


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
    for note in left:
        if note.start - groups[-1][-1][-1].end <= BREATH:
            groups[-1][-1].append(note)
    return groups


def _by_syllable(notes: Sequence[Note], words: Sequence[front.Word]) -> list[list[list[Note]]]:
    """Word -> vowel -> its notes, from the syllables that the file puts under them."""
    held: list[list[list[Note]]] = [[]]  # word -> syllable -> notes
    for note in _one_word_each(notes):
        if note.syllable:
            held[-1].append([note])
            if note.ends:
                held.append([])
        elif any(held) and note.start - (sung := (held[-1] or held[-2])[-1])[-1].end <= BREATH:
            sung.append(note)  # what stands alone after a rest has no vowel: it is left out
    held = [word for word in held if word]
    if len(held) != len(words):
        raise ValueError(f"{notes[0].file}: the lyrics are {len(held)} words under the notes, but {len(words)} spoken ones "
                         f"({' '.join(word.text for word in words)}); write numbers and abbreviations as words")
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


def _spoken(lyric: str) -> list[str]:
    """Its words less signs that nobody says: "-", "__" and "!" go, "&" stays."""
    def said(word: str) -> bool:
        try:
            return any(map(str.isalnum, word)) or bool(front.normalise(word))
        except ValueError:
            return False
    return [word for word in lyric.split() if said(word)]


def _one_word_each(notes: Sequence[Note]) -> Iterable[Note]:
    """Notes on which several words are sung ("of the"), divided between them. A verse number ("1." before a word) is left out, and a sign
    holds the syllable before. Raises ValueError for other numbers, which may be several words, and for a sign before the first word."""
    begun = False
    for note in notes:
        words = _spoken(note.syllable)
        words = words[1:] if len(words) > 1 and re.fullmatch(r"\d+\.", words[0]) else words
        if wrong := next((word for word in words if any(map(str.isnumeric, word)) and not any(map(str.isalpha, word))), None):
            raise ValueError(f"{note.file}: the lyric {wrong!r} at {note.start:.2f} s is a number; write numbers and abbreviations as words")
        if note.syllable and not words and not begun:
            raise ValueError(f"{note.file}: the lyric {note.syllable!r} at {note.start:.2f} s is a sign that holds the syllable before, and there is "
                             "none; begin with a word, or give the words with --text")
        begun = begun or bool(words)
        if len(words) < 2:
            yield dataclasses.replace(note, syllable=words[0] if words else "")
            continue
        each = (note.end - note.start) / len(words)
        for k, word in enumerate(words):
            start, end = note.start + k * each, note.start + (k + 1) * each
            yield dataclasses.replace(note, start=start, end=end, syllable=word, ends=k < len(words) - 1 or note.ends)


def _timed(words: Sequence[front.Word], groups: Sequence[Sequence[Sequence[Note]]]) -> Score:
    """Phones with their times: between two vowels stand a coda, perhaps a breath, and an onset."""
    phones, seconds, hz, spoken = [], [], [], []
    clock, joined = groups[0][0][0].start - EDGE, False

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
