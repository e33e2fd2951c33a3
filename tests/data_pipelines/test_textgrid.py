"""TextGrid import: both formats, both encodings, empty intervals, every reason to refuse; times that always add up."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines import textgrid
from ns2_jax.data import frames
from ns2_jax.text import front, phones

RATE = 16000
WORDS = [(0.0, 0.1, ""), (0.1, 0.4, "the"), (0.4, 0.9, "cat"), (0.9, 1.25, "")]
PHONES = [(0.0, 0.1, ""), (0.1, 0.2, "DH"), (0.2, 0.4, "AH0"), (0.4, 0.55, "K"), (0.55, 0.8, "AE1"), (0.8, 0.9, "T"), (0.9, 1.25, "")]


def grid(tiers: dict, short: bool = False, end: float = 1.25) -> str:
    """What Praat writes, or its short form."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    if short:
        lines += ["0", f"{end}", "<exists>", f"{len(tiers)}"]
        for name, rows in tiers.items():
            lines += ['"IntervalTier"', f'"{name}"', "0", f"{end}", f"{len(rows)}"]
            lines += [line for a, b, text in rows for line in (f"{a}", f"{b}", '"' + text.replace('"', '""') + '"')]
        return "\n".join(lines) + "\n"
    lines += ["xmin = 0", f"xmax = {end}", "tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for i, (name, rows) in enumerate(tiers.items(), 1):
        name = name.replace('"', '""')
        lines += [f"    item [{i}]:", '        class = "IntervalTier"', f'        name = "{name}"', "        xmin = 0", f"        xmax = {end}",
                  f"        intervals: size = {len(rows)}"]
        for j, (a, b, text) in enumerate(rows, 1):
            text = text.replace('"', '""')
            lines += [f"        intervals [{j}]:", f"            xmin = {a}", f"            xmax = {b}", f'            text = "{text}" ']
    return "\n".join(lines) + "\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str, encoding: str = "utf-8"):
        path = tmp_path / "one.TextGrid"
        path.write_bytes(text.encode(encoding))
        return path

    return write


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-bom"])
def test_every_format_says_the_same(write, short, encoding):
    text = grid({"words": WORDS, "phones": PHONES}, short)
    path = write("\ufeff" + text, "utf-16-be") if encoding == "utf-16-be-bom" else write(text, encoding)
    tiers = textgrid.read(path)
    assert {name: [(i.start, i.end, i.text) for i in rows] for name, rows in tiers.items()} == {"words": WORDS, "phones": PHONES}
    ids, ends = textgrid.align(path, 20000, RATE, texts=["The cat"])
    assert phones.names(ids) == ["sil", "dh", "ax", "k", "ae", "t", "sil"] and ids.dtype == np.uint8 and ends.dtype == np.int32
    np.testing.assert_array_equal(ends, [1600, 3200, 6400, 8800, 12800, 14400, 20000])
    assert frames.durations(ends, 20000, RATE, 200).sum() == 100


@pytest.mark.parametrize(("word", "labels"), [
    ("keep", "cʰ iː p"), ("day", "d ej"), ("boat", "b ow t"), ("five", "f aj v"), ("give", "ɟ ɪ v"), ("how", "h aw"), ("boy", "b ɔj"),
    ("news", "ɲ ʉː z"), ("few", "fʲ ʉː"), ("little", "ʎ ɪ ɾ ɫ̩"), ("you", "j ʉː"), ("happy", "h æ pʲ i"), ("queen", "kʷ iː n"),
    ("queen", "k w iː n"), ("father", "f ɑː d̪ ɚ"), ("bird", "b ɝ d"), ("human", "ç ʉː m ə n"), ("he", "ç iː"), ("teach", "tʲ iː tʃ"),
    ("cute", "cʰ ʉː t"), ("cool", "kʰ ʉː ɫ"), ("law", "ʎ ɒː"), ("cup", "kʰ ɐ p"), ("music", "mʲ ʉː z ɪ k"), ("button", "b ɐ ʔ n̩")])
def test_mfas_english_labels_are_the_phones_of_the_front_end(write, word, labels):
    rows = [(i / 10, (i + 1) / 10, label) for i, label in enumerate(labels.split())]
    ids, _ = textgrid.align(write(grid({"phones": rows}, end=len(rows) / 10)), 1600 * len(rows), RATE)
    assert phones.names(ids) == [name for name in front.phonemise(word) if name != "sil"]


def test_intervals_beyond_the_recording_or_too_short_keep_a_sample(write):
    rows = [(0.0, 0.00001, "k"), (0.00001, 0.00002, "t"), (0.00002, 1.0, "s"), (1.0, 1.01, "t"), (1.01, 1.02, "s")]
    _, ends = textgrid.align(write(grid({"phones": rows})), 16000, RATE)
    assert ends.tolist() == [1, 2, 15998, 15999, 16000]


def test_the_words_may_be_written_in_several_ways(write):
    rows = {"words": [(0.0, 0.4, "don't"), (0.4, 1.25, "well-known")], "phones": PHONES}
    for texts in (["Don't! Well known."], ["x", "don't well-known"], []):
        textgrid.align(write(grid(rows)), 20000, RATE, texts=texts)
    with pytest.raises(textgrid.Rejected, match="grid says \"don't well-known\", the transcript 'Do not"):
        textgrid.align(write(grid(rows)), 20000, RATE, texts=["Do not."])


def test_quotes_points_and_digits_do_not_confuse_it(write):
    rows = [(0.0, 0.5, 'he said "1 2 3"'), (0.5, 1.25, "<exists>")]
    text = grid({'a "tier" 5': rows, "phones": PHONES})
    text = text.replace("size = 2\n", "size = 3\n", 1) + '    item [3]:\n        class = "TextTier"\n        name = "marks"\n        xmin = 0\n' \
        '        xmax = 1.25\n        points: size = 1\n        points [1]:\n            number = 0.3\n            mark = "x"\n'
    tiers = textgrid.read(write("! Praat\n" + text))
    assert set(tiers) == {'a "tier" 5', "phones"} and [row.text for row in tiers['a "tier" 5']] == [row[2] for row in rows]


def test_ipa_gaps_and_diphthongs(write):
    """MFA's IPA models; a hole is a pause, two pauses are one, a label of two phones shares its time, one of no length is nothing."""
    rows = [(0.1, 0.1, "k"), (0.1, 0.3, "tʃ"), (0.3, 0.5, "aɪə"), (0.7, 0.8, ""), (0.8, 0.9, "sp"), (0.9, 1.25, "ʃ")]
    ids, ends = textgrid.align(write(grid({"anna - phones": rows})), 20000, RATE)
    assert phones.names(ids) == ["sil", "ch", "ay", "ax", "sil", "sh"]
    np.testing.assert_array_equal(ends, [1600, 4800, 6400, 8000, 14400, 20000])


def test_a_recording_a_little_longer_ends_in_a_pause_or_in_its_phone(write):
    path = write(grid({"phones": PHONES[:-1]}))
    ids, ends = textgrid.align(path, 14500, RATE)
    assert phones.names(ids)[-1] == "t" and ends[-1] == 14500
    ids, ends = textgrid.align(path, 18000, RATE)
    assert phones.names(ids)[-1] == "sil" and ends[-2:].tolist() == [14400, 18000]
    ids, ends = textgrid.align(write(grid({"phones": PHONES})), 19900, RATE)
    assert ends[-1] == 19900 and frames.durations(ends, 19900, RATE, 200).sum() == 99


spoken = lambda *rows: {"words": WORDS, "phones": [*PHONES[:3], *rows, *PHONES[5:]]}


@pytest.mark.parametrize(("reason", "text", "samples"), [
    ("word_mismatch", grid({"words": WORDS[:2], "phones": PHONES}), 20000),
    ("word_mismatch", grid({"words": [*WORDS[:2], (0.4, 0.9, "dog")], "phones": PHONES}), 20000),
    ("unknown_word", grid(spoken((0.4, 0.8, "spn"))), 20000),
    ("text_unpronounceable", grid(spoken((0.4, 0.8, "☃"))), 20000),
    ("no_alignment", grid({"words": WORDS}), 20000),
    ("no_alignment", grid({"words": WORDS, "a - phones": PHONES, "b - phones": PHONES}), 20000),
    ("no_alignment", grid({"words": WORDS, "phones": [(0.0, 1.25, "")]}), 20000),
    ("no_alignment", grid({"words": WORDS, "phones": []}), 20000),
    ("length_mismatch", grid({"words": WORDS, "phones": PHONES}), 12000),
    ("length_mismatch", grid({"words": WORDS, "phones": PHONES[:-1]}), 60000),
    ("decode_error", grid({"words": WORDS, "phones": PHONES})[:-60], 20000),
    ("decode_error", grid({"words": WORDS, "phones": [PHONES[1], PHONES[0]]}), 20000),
    ("decode_error", 'File type = "ooTextFile"\nObject class = "PitchTier"\n', 20000),
    ("decode_error", "", 20000),
])
def test_what_cannot_be_used_is_refused_with_its_reason(write, reason, text, samples):
    with pytest.raises(textgrid.Rejected) as error:
        textgrid.align(write(text), samples, RATE, texts=["The cat."])
    assert error.value.reason == reason and "one.TextGrid" in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "one.TextGrid"
    path.write_bytes(b"\xff\xfe\x00\xd8\x00")
    with pytest.raises(textgrid.Rejected, match="UTF-16"):
        textgrid.read(path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(textgrid.Rejected, match="neither"):
        textgrid.read(path)
    with pytest.raises(FileNotFoundError):
        textgrid.read(tmp_path / "none.TextGrid")
