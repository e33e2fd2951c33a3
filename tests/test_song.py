"""Songs: files written here by hand or by mido, and what is to be sung of them."""

from __future__ import annotations

import re
import zipfile

import numpy as np
import pytest
import tiny

from ns2_jax import inference
from ns2_jax.inference import song
from ns2_jax.text import front

VOICE = (np.sin(np.arange(4000) * 0.7).astype(np.float32) * 0.3, 800)
A4, B4, C5 = 440.0, song.hertz(71), song.hertz(72)


def note(step: str, octave: int, length: int, text: str = "", syllabic: str = "single", alter: int = 0, tie: str = "", more: str = "") -> str:
    lyric = f"<lyric><syllabic>{syllabic}</syllabic><text>{text}</text></lyric>" if text else ""
    sharp = f"<alter>{alter}</alter>" if alter else ""
    return (f"<note>{more}<pitch><step>{step}</step>{sharp}<octave>{octave}</octave></pitch><duration>{length}</duration>"
            f"{f'<tie type={chr(34)}{tie}{chr(34)}/>' if tie else ''}<voice>1</voice>{lyric}</note>")


REST = "<note><rest/><duration>2</duration><voice>1</voice></note>"
MEASURES = (
    '<attributes><divisions>2</divisions></attributes><direction><sound tempo="60"/></direction>'
    + note("A", 4, 2, "Lit", "begin") + note("B", 4, 2, "tle", "end") + note("C", 5, 4, "star") + note("C", 5, 1, more="<chord/>"),
    REST + note("A", 4, 2, "shine", tie="start") + '<sound tempo="120"/>' + note("A", 4, 2, tie="stop") + note("F", 4, 2, alter=1),
)
PIECE = f"<score-partwise><part>{''.join(f'<measure>{m}</measure>' for m in MEASURES)}</part></score-partwise>"


@pytest.fixture()
def xml(tmp_path):
    path = tmp_path / "song.musicxml"
    path.write_text(PIECE)
    return path


def test_musicxml_is_notes_in_seconds(xml, tmp_path):
    """Sixty beats a minute, then twice as fast; a tie is one note, a chord's upper notes are left out, an F sharp has no syllable."""
    notes = song.read(xml)
    assert [(n.start, n.end) for n in notes] == [(0, 1), (1, 2), (2, 4), (5, 6.5), (6.5, 7)]
    np.testing.assert_allclose([n.hz for n in notes], [A4, B4, C5, A4, song.hertz(66)])
    assert [(n.syllable, n.ends) for n in notes] == [("Lit", False), ("tle", True), ("star", True), ("shine", True), ("", True)]
    with zipfile.ZipFile(tmp_path / "song.mxl", "w") as archive:
        archive.writestr("META-INF/container.xml", '<container><rootfiles><rootfile full-path="a.xml"/></rootfiles></container>')
        archive.writestr("a.xml", PIECE)
    assert song.read(tmp_path / "song.mxl") == notes
    whole = (tmp_path / "song.mxl").read_bytes()
    (tmp_path / "song.mxl").write_bytes(whole.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"))
    with pytest.raises(ValueError, match="song.mxl: not MusicXML: .*encrypted"):
        song.read(tmp_path / "song.mxl")


def test_midi_is_the_same_song(xml, tmp_path):
    mido = pytest.importorskip("mido")
    file = mido.MidiFile(ticks_per_beat=480)
    conductor, voice = mido.MidiTrack(), mido.MidiTrack()
    conductor += [mido.MetaMessage("set_tempo", tempo=400_000, time=0), mido.MetaMessage("set_tempo", tempo=1_000_000, time=0),
                  mido.MetaMessage("set_tempo", tempo=500_000, time=480 * 6)]
    events = []  # (tick, order, message)
    for start, end, number, text in ((0, 1, 69, "Lit-"), (1, 2, 71, "tle"), (2, 4, 72, "star"), (5, 7, 69, "shine"), (7, 8, 66, "")):
        events.append((480 * start, 1, mido.Message("note_on", note=number, velocity=90)))
        events.append((480 * end, 0, mido.Message("note_on", note=number, velocity=0)))
        events += [(480 * start, 2, mido.MetaMessage("lyrics", text=text))] if text else []
    now = 0
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        voice.append(message.copy(time=tick - now))
        now = tick
    file.tracks += [conductor, voice]
    file.save(tmp_path / "song.mid")
    for mine, theirs in zip(song.read(tmp_path / "song.mid"), song.read(xml), strict=True):
        assert (mine.start, mine.end) == pytest.approx((theirs.start, theirs.end)) and mine.hz == theirs.hz
        assert (mine.syllable, mine.ends) == (theirs.syllable, theirs.ends)


def musicxml(tmp_path, *parts: str):
    (tmp_path / "a.musicxml").write_text(f"<score-partwise>{''.join(f'<part><measure>{part}</measure></part>' for part in parts)}</score-partwise>")
    return tmp_path / "a.musicxml"


def test_a_tempo_of_any_part_is_that_of_all_and_the_sung_voice_is_taken(tmp_path):
    slow = '<attributes><divisions>1</divisions></attributes><sound tempo="60"/>'
    piano, voice = note("A", 2, 1) + note("B", 2, 1), note("A", 4, 1, "go") + note("B", 4, 1, "on")
    notes = song.read(musicxml(tmp_path, slow + piano, voice))
    assert [(n.start, n.end, n.syllable) for n in notes] == [(0, 1, "go"), (1, 2, "on")]
    second = voice.replace("<voice>1", "<voice>2")
    notes = song.read(musicxml(tmp_path, slow + piano + "<backup><duration>2</duration></backup>" + second))
    assert [n.syllable for n in notes] == ["go", "on"] and notes[0].hz == A4
    late = slow + note("A", 4, 2, "go") + '<sound tempo="120"/><backup><duration>1</duration></backup><sound tempo="30"/>' + note("B", 4, 4, "on")
    assert [(n.start, n.end) for n in song.read(musicxml(tmp_path, late))] == [(0, 1), (1, 1 + 2 + 3 * 0.5)]


def test_verses_elisions_and_notes_behind_a_rest(tmp_path):
    two = note("A", 4, 1, "one").replace("<lyric>", '<lyric number="1">').replace("</note>", '<lyric number="2"><text>two</text></lyric></note>')
    only = note("B", 4, 1, "second").replace("<lyric>", '<lyric number="2">')
    elided = note("C", 5, 2, "the").replace("</lyric>", "<elision/><syllabic>single</syllabic><text>end</text></lyric>").replace("<lyric>", '<lyric number="1">')
    alone = REST + note("A", 4, 4)
    score = song.score(song.read(musicxml(tmp_path, two + only + elided + alone)))
    assert [w.text for w in score.words if w.text] == ["one", "the", "end"]
    assert sum(score.seconds) == pytest.approx(2 + 2 * song.EDGE)  # 4 beats of 0.5 s; the note behind the rest has no vowel


def sung(tmp_path, *lyrics: str) -> inference.Score:
    return song.score(song.read(musicxml(tmp_path, "".join(note("A", 4, 1, *lyric.split("|")) for lyric in lyrics))))


@pytest.mark.parametrize("lyrics,wrong", [
    (["21", "go"], "21"), (["7", "go"], "7"), (["go", "1."], "1."), (["1. 21", "go"], "21"), (["go 3 times"], "3"), (["1 go"], "1"), (["½"], "½"),
    (["1. -", "go"], "1."),
])
def test_numbers_are_refused_not_left_out(tmp_path, lyrics, wrong):
    with pytest.raises(ValueError, match=rf"a\.musicxml: the lyric '{re.escape(wrong)}' at .* is a number; write numbers and abbreviations as words"):
        sung(tmp_path, *lyrics)
    assert song.score(song.read(tmp_path / "a.musicxml"), "go")  # other words are sung to the same notes


def test_a_verse_number_before_a_word_is_not_sung(tmp_path):
    assert [w.text for w in sung(tmp_path, "1. Lit|begin", "tle|end", "12.\N{NO-BREAK SPACE}star").words] == ["", "little", "star", ""]


def test_the_file_of_lyrics_that_cannot_be_sung_is_named(tmp_path):
    for lyrics, message in ((["B4"], "1 words under the notes, but 2 spoken ones"), ([""], "no lyrics; give the words with --text")):
        with pytest.raises(ValueError, match=rf"a\.musicxml: .*{message}"):
            sung(tmp_path, *lyrics)
    notes = song.read(musicxml(tmp_path, note("A", 9, 1, "go")))
    with pytest.raises(ValueError, match=r"a\.musicxml: .*expected one or more of 0 to 5000 Hz"):
        song.score(notes)


@pytest.mark.parametrize("sign", ["-", "_", "__", "!", "…", "-|end"])
def test_a_sign_holds_the_syllable_before(tmp_path, sign):
    plain, signed = sung(tmp_path, "go", "", "on"), sung(tmp_path, "go" + "|begin" * sign.endswith("end"), sign, "on !")
    assert [w.text for w in plain.words] == ["", "go", "on", ""] and [w.text for w in signed.words] == ["", "go", "on", ""]
    assert signed.seconds == plain.seconds and signed.hz == plain.hz
    with pytest.raises(ValueError, match=rf"a\.musicxml: the lyric '{re.escape(sign[0])}.* is a sign that holds the syllable before, and there is"):
        sung(tmp_path, sign, "go")


def test_a_sign_that_is_said_is_sung(tmp_path):
    assert [w.text for w in sung(tmp_path, "rock", "&amp;", "roll").words if w.text] == ["rock", "and", "roll"]


@pytest.mark.parametrize("lyrics,ends", [
    (["Lit", "tle ", "star ", "shine"], [False, True, True, True]), (["Lit-", "tle", "star", "shine"], [False, True, True, True]),
    (["Lit", "tle", " star", " shine"], [False, True, True, True]), (["\\Lit", "tle ", "/star ", "shine\r"], [False, True, True, True]),
])
def test_midi_lyrics_in_their_several_ways(tmp_path, lyrics, ends):
    mido = pytest.importorskip("mido")
    file, bass, voice, text = mido.MidiFile(ticks_per_beat=480), mido.MidiTrack(), mido.MidiTrack(), mido.MidiTrack()
    bass += [mido.Message("note_on", note=40, velocity=90, time=0), mido.Message("note_on", note=40, velocity=0, time=1920)]
    for k, number in enumerate((69, 71, 72, 69)):
        voice += [mido.Message("note_on", note=number, velocity=90, time=0), mido.Message("note_off", note=number, time=480)]
        text += [mido.MetaMessage("lyrics", text=lyrics[k].encode().decode("unicode_escape"), time=3 if k == 0 else 480)]
        text += [mido.MetaMessage("lyrics", text="\r", time=0)] if k == 1 else []
    file.tracks += [bass, voice, text]
    file.save(tmp_path / "a.mid")
    notes = song.read(tmp_path / "a.mid")
    assert [n.syllable for n in notes] == ["Lit", "tle", "star", "shine"] and [n.ends for n in notes] == ends
    assert notes[0].hz == A4 and [(n.start, n.end) for n in notes] == [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2)]


def spans(score: inference.Score) -> list[tuple[str, float, float, tuple[float, ...]]]:
    ends = np.cumsum(score.seconds)
    return [(phone, float(end - length), float(end), hz) for phone, end, length, hz in zip(score.phones, ends, score.seconds, score.hz)]


def test_vowels_are_on_the_beat_and_hold_their_notes(xml):
    """Times count from the silence before the first note."""
    score = song.score(song.read(xml))
    rows = spans(score)
    assert [w.text for w in score.words] == ["", "little", "star", "", "shine", ""]
    assert [phone for phone, *_ in rows] == ["sil", *front.phonemise("little star")[1:-1], "sil", *front.phonemise("shine")[1:-1], "sil"]
    vowels = [row for row in rows if row[0] in ("ih", "ax", "aa", "ay")]
    np.testing.assert_allclose([start - song.EDGE for _, start, _, _ in vowels], [0, 1, 2, 5], atol=1e-6)
    for (_, _, _, hz), tone in zip(vowels, (A4, B4, C5)):
        assert set(hz) == {tone}
    last = vowels[3]
    assert last[2] - song.EDGE <= 7 and set(last[3]) == {A4, song.hertz(66)}  # a melisma
    change = last[1] + (last[2] - last[1]) * (last[3].index(song.hertz(66)) / len(last[3]))
    assert abs(change - song.EDGE - 6.5) < 2 * song.STEP
    consonants = [row for row in rows if row[0] not in ("sil", "ih", "ax", "aa", "ay")]
    assert all(0 < end - start <= song.CONSONANT + 1e-9 for _, start, end, _ in consonants)
    assert all(set(hz) == {0.0} for phone, _, _, hz in rows if phone in ("sil", "s", "t", "sh"))


def test_words_given_as_text_take_a_note_for_every_vowel(xml):
    notes = song.read(xml)
    for n in notes:
        n.syllable = ""
    with pytest.raises(ValueError, match="no lyrics; give the words with --text"):
        song.score(notes)
    score = song.score(notes, "Away we go")
    vowels = [row for row in spans(score) if row[3][-1] and row[0] in ("ax", "ey", "iy", "ow")]
    np.testing.assert_allclose([start - song.EDGE for _, start, _, _ in vowels], [0, 1, 2, 5], atol=1e-6)
    with pytest.raises(ValueError, match="6 syllables and the song 5 notes"):
        song.score(notes, "incomprehensible")


def test_syllables_and_vowels_need_not_be_as_many():
    """"fire" written as two syllables and "every" as two of three."""
    make = lambda *rows: [song.Note(i, i + 1, A4 + i, text, ends) for i, (text, ends) in enumerate(rows)]
    fire = song.score(make(("fi", False), ("re", True)), lexicon={"fire": "f ay r"})
    (vowel,) = [row for row in spans(fire) if row[0] == "ay"]
    assert set(vowel[3]) == {A4, A4 + 1}
    every = song.score(make(("eve", False), ("ry", True)), lexicon={"every": "eh v ax r iy"})
    assert [row[0] for row in spans(every) if row[3][0]][0] == "eh" and every.phones == ("sil", "eh", "v", "ax", "r", "iy", "sil")
    assert sum(every.seconds) == pytest.approx(2 + 2 * song.EDGE)


def test_it_is_sung_as_it_is_written(xml):
    """The toy's pitch follows the notes; the whole is as long as the song."""
    score = song.score(song.read(xml))
    made = tiny.toy(buckets=(dict(b=1, t=1600, p=40, u=30),)).speak(score, VOICE)
    assert made.seconds == pytest.approx(7 + 2 * song.EDGE, abs=0.02)
    at = lambda second: made.f0[int((second + song.EDGE) * 200)]
    np.testing.assert_allclose([at(0.5), at(1.4), at(3), at(5.5), at(6.8)], [A4, B4, C5, A4, song.hertz(66)], rtol=1e-6)


@pytest.mark.parametrize("name,content,message", [
    ("a.musicxml", "<score-partwise>", "not MusicXML"), ("a.xml", "<score-timewise/>", "expected <score-partwise>"),
    ("a.mxl", "no archive", "not MusicXML"), ("a.mid", "no midi", "not a MIDI file"), ("a.abc", "X:1", "expected a song as .musicxml"),
    ("a.musicxml", "<score-partwise><part><measure/></part></score-partwise>", "there is no note in it"),
    ("a.musicxml", PIECE.replace("<duration>4", "<duration>four"), "damaged MusicXML"),
    ("a.musicxml", PIECE.replace("<octave>5", "<octave>99999"), "damaged MusicXML: a note in octave 99999; expected 0 to 9"),
    ("a.musicxml", PIECE.replace("<octave>5", f"<octave>{'9' * 400}"), "damaged MusicXML"),
    ("a.musicxml", PIECE.replace("<duration>4", "<duration>1e12"), "it ends at 5e.11 s; expected at most 3600"),
    ("a.xml", '<?xml version="1.0" encoding="foo"?>' + PIECE, "not MusicXML: unknown encoding"),
    ("a.xml", '<?xml version="1.0" encoding="utf-7"?>' + PIECE, "not MusicXML: multi-byte encodings"),
])
def test_what_is_no_song_is_refused(tmp_path, name, content, message):
    if name.endswith(".mid"):
        pytest.importorskip("mido")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / name))}: .*{message}"):
        song.read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        song.read(tmp_path / ("no" + name))
