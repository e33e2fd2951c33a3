"""Sentences for the default corpus: a seeded grammar over word lists, and natural sentences written for this project.

The grammar draws every word of `data_pipelines/text/{nouns,verbs,adjectives,adverbs,names}.txt` evenly (more than 6,000
words of CMUdict), so rare phones and diphones are heard; its sentences are grammatical and mostly nonsense. Numbers,
dates, times, money, units and abbreviations are *written* forms (`$3.50`, `Dr.`, `5 km`): the normaliser has work to
do. `train_sentences.txt`, `valid_sentences.txt` and `test_sentences.txt` are natural English, disjoint; only the first
is ever drawn by `sentences`.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_FOLDER = pathlib.Path(__file__).parent / "text"
_LONGEST = 40  # spoken words: about 20 s at a slow voice
_NATURAL, _SEVERAL = 0.3, 0.2  # shares of natural sentences, and of utterances of several sentences

_PREPOSITIONS = """in on near behind under beside above across through toward against around beyond inside outside before without within
below over past""".split()
_BEFORE_PLURAL = """the some many most several few all these those our their your my his her two three four five six seven eight nine ten
eleven twelve twenty forty""".split()
_BEFORE_SINGULAR = "the a this that every each another one our their your my his her no".split()
_MODALS = "will can should may might must could would cannot shouldn't won't".split()
_WHEN = """yesterday, today, tomorrow, last night, last week, this morning, next year, every day, at noon, at midnight, once again,
in the end, for years, since then, as usual, on Monday, on Tuesday, on Wednesday, on Thursday, on Friday, on Saturday,
on Sunday""".replace("\n", " ").split(", ")
_JOINERS = ["and", "but", "so", "or", "yet", "while", "because", "although", "until", "whenever", "unless", "since", "after", "before"]
_MONTHS = "January February March April May June July August September October November December".split()
_SHORT_MONTHS = "Jan. Feb. Mar. Apr. Aug. Sept. Oct. Nov. Dec.".split()
_WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_TITLES = "Dr. Mr. Mrs. Ms. Prof. Capt. Lt. Sgt. Gen. Col. Sen. Gov. Rev.".split()
_ACRONYMS = "NASA FBI CIA BBC UN EU USA UK CEO TV PC DVD NATO GPS DNA UNESCO IBM MIT UCLA NBC".split()
_UNITS = "km kg cm mm m mph ft lb oz ml GB MB kHz MHz kW km/h mg".split()
_VOWEL_SOUND = ("hour", "honest", "honor", "heir")
_CONSONANT_SOUND = ("uni", "use", "usu", "eu", "one", "once", "uti", "ubi", "ura")


@functools.cache
def load_list(name: str) -> tuple[str, ...]:
    """The lines of `data_pipelines/text/<name>.txt` without comments and blanks; `train`, `valid` and `test` are the natural sentences.

    Raises FileNotFoundError naming the lists there are.
    """
    path = _FOLDER / f"{name}_sentences.txt"
    path = path if path.exists() else _FOLDER / f"{name}.txt"
    if not path.exists():
        known = sorted(file.stem.removesuffix("_sentences") for file in _FOLDER.glob("*.txt"))
        raise FileNotFoundError(f"there is no list {name!r}; the lists are {known}")
    lines = (line.strip() for line in path.read_text("utf8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


@functools.cache
def _rows(name: str, kinds: tuple[str, ...] = ()) -> tuple[tuple[str, ...], ...]:
    rows = (tuple(line.split()) for line in load_list(name))
    return tuple(row[1:] for row in rows if not kinds or row[0] in kinds)


class _Grammar:
    """One sentence at a time from a generator; every method returns words without a capital or a full stop."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.plain = (self.transitive, self.transitive, self.intransitive, self.intransitive, self.predicate, self.passive,
                      self.conditional, self.joined, self.listing)
        self.figures = (self.money, self.date, self.clock, self.percent, self.unit, self.titled, self.acronym, self.address, self.count,
                        self.telephone, self.abbreviated)

    def pick(self, options: Sequence) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def article(self, following: str) -> str:
        vowel = following[0] in "aeiouAEIOU" and not following.lower().startswith(_CONSONANT_SOUND)
        return "an" if vowel or following.lower().startswith(_VOWEL_SOUND) else "a"

    def adjective(self) -> str:
        return self.pick(load_list("adjectives"))

    def adverb(self) -> str:
        return self.pick(load_list("adverbs"))

    def name(self, kind: str) -> str:
        return self.pick(_rows("names", (kind,)))[0]

    def did(self, *kinds: str) -> str:
        """A past form."""
        return self.pick(_rows("verbs", kinds))[2]

    def phrase(self, plural: bool, person: bool | None = None) -> str:
        """A noun phrase; `person` None is anything."""
        kinds = () if person is None else ("person",) if person else ("thing",)
        noun = self.pick(_rows("nouns", kinds))[int(plural)]
        words = [self.adjective(), noun] if self.chance(0.5) else [noun]
        if len(words) == 2 and self.chance(0.08):
            words.insert(0, self.adverb())
        determiner = self.pick(_BEFORE_PLURAL if plural else _BEFORE_SINGULAR)
        return " ".join([self.article(words[0]) if determiner == "a" else determiner, *words])

    def some(self, share: float = 0.4, person: bool | None = None) -> str:
        """A noun phrase that is plural with probability `share`."""
        return self.phrase(self.chance(share), person)

    def verb(self, kinds: tuple[str, ...], plural: bool) -> str:
        """A finite verb group in any tense."""
        base, third, past, participle, gerund = self.pick(_rows("verbs", kinds))
        be = self.pick(("are", "were") if plural else ("is", "was"))
        return self.pick((past, past, base if plural else third, f"{self.pick(_MODALS)} {base}", f"{be} {gerund}",
                          f"{'have' if plural else 'has'} {participle}", f"had {participle}"))

    def place(self) -> str:
        return f"{self.pick(_PREPOSITIONS)} {self.some(0.3, False)}"

    def transitive(self) -> str:
        plural = self.chance(0.4)
        words = [self.phrase(plural, True if self.chance(0.6) else None), self.verb(("transitive", "both"), plural), self.some()]
        if self.chance(0.3):
            words.append(self.place())
        if self.chance(0.35):
            words.append(self.adverb())
        return " ".join(words)

    def intransitive(self) -> str:
        plural = self.chance(0.4)
        words = [self.phrase(plural), self.verb(("intransitive", "both"), plural)]
        if self.chance(0.5):
            words.append(self.adverb())
        return " ".join([*words, self.place()])

    def predicate(self) -> str:
        plural = self.chance(0.4)
        verb = self.pick(("are", "were", "seem", "became", "look") if plural else ("is", "was", "seems", "became", "looks"))
        degree = self.pick(("", "", "very ", "rather ", "too ", "quite ", "almost "))
        tail = f" and {self.adjective()}" if self.chance(0.4) else f" {self.place()}" if self.chance(0.3) else ""
        return f"{self.phrase(plural)} {verb} {degree}{self.adjective()}{tail}"

    def passive(self) -> str:
        plural = self.chance(0.4)
        auxiliary = self.pick(("are", "were", "have been") if plural else ("is", "was", "has been"))
        participle = self.pick(_rows("verbs", ("transitive",)))[3]
        return f"{self.phrase(plural)} {auxiliary} {participle} by {self.some(person=True)}"

    def conditional(self) -> str:
        opening = self.pick(("if", "when", "because", "although", "while", "after", "as soon as"))
        return f"{opening} {self.intransitive()}, {self.transitive()}"

    def joined(self) -> str:
        return f"{self.intransitive()}, {self.pick(_JOINERS)} {self.predicate()}"

    def listing(self) -> str:
        first, second, third = (self.some(0.5, False) for _ in range(3))
        return f"{self.phrase(False, True)} {self.did('transitive')} {first}, {second}, and {third}"

    def amount(self) -> str:
        symbol = self.pick("$$£€")
        return symbol + self.pick((f"{self.number(1, 999)}", f"{self.number(1, 99)}.{self.number(0, 99):02d}",
                                   f"{self.number(1000, 999999):,}", f"{self.number(1, 90)} million",
                                   f"{self.number(1, 9)}.{self.number(1, 9)} billion"))

    def money(self) -> str:
        if self.chance(0.5):
            return f"{self.phrase(False)} costs {self.amount()} {self.place()}"
        return f"{self.phrase(False, True)} paid {self.amount()} for {self.some(0.5, False)}"

    def day(self) -> str:
        month, day, year = self.pick(_MONTHS), self.number(1, 28), self.number(1700, 2039)
        return self.pick((
            f"{month} {day}, {year}", f"{day} {month} {year}", f"{self.pick(_SHORT_MONTHS)} {day}",
            f"{self.number(1, 12)}/{self.number(13, 28)}/{year}", f"the {self.number(4, 20)}th of {month}",
            f"{self.pick(_WEEKDAYS)}, {month} {day}"))

    def date(self) -> str:
        if self.chance(0.3):
            return f"in {self.number(1500, 2039)}, {self.intransitive()}"
        return f"{self.some()} {self.did('intransitive', 'both')} on {self.day()}"

    def clock(self) -> str:
        hour, minute = self.number(1, 12), self.number(0, 59)
        time = self.pick((f"{hour}:{minute:02d}", f"{hour}:{minute:02d} {self.pick(('a.m.', 'p.m.'))}", f"{hour} {self.pick(('am', 'pm'))}",
                          f"{self.number(13, 23)}:{minute:02d}"))
        return f"at {time} {self.transitive()}"

    def percent(self) -> str:
        value = self.pick((f"{self.number(1, 100)}%", f"{self.number(0, 99)}.{self.number(1, 9)}%"))
        return f"{value} of {self.phrase(True)} {self.did('intransitive', 'both')} {self.place()}"

    def unit(self) -> str:
        value = self.pick((f"{self.number(2, 900)}", f"{self.number(0, 60)}.{self.number(1, 9)}"))
        return f"{self.phrase(False)} is {value} {self.pick(_UNITS)} from {self.phrase(False, False)}"

    def person(self) -> str:
        first = self.name("given") if self.chance(0.35) else self.pick(_TITLES)
        return f"{first} {self.name('surname')}"

    def titled(self) -> str:
        return f"{self.person()} {self.did('transitive')} {self.some()} in {self.name('place')}"

    def acronym(self) -> str:
        return f"the {self.pick(_ACRONYMS)} {self.did('transitive')} {self.some()} {self.pick(_WHEN)}"

    def address(self) -> str:
        street = f"{self.number(2, 999)} {self.name('surname')} {self.pick(('St.', 'Ave.', 'Rd.', 'Blvd.'))}"
        return f"{self.person()} lives at {street} in {self.name('place')}"

    def count(self) -> str:
        value = self.pick((f"{self.number(2, 99)}", f"{self.number(100, 999)}", f"{self.number(1000, 999999):,}",
                           f"{self.number(2, 30)} million", f"{self.number(2, 40)}.{self.number(1, 9)}"))
        return f"{self.person()} counted {value} {self.pick(_rows('nouns'))[1]} {self.place()}"

    def telephone(self) -> str:
        return f"please call {self.number(200, 999)}-{self.number(200, 999)}-{self.number(0, 9999):04d} {self.pick(_WHEN)}"

    def abbreviated(self) -> str:
        noun = lambda: self.pick(_rows("nouns"))[0]
        return self.pick((
            f"{self.phrase(True)}, {self.phrase(True)}, etc. were {self.pick(_rows('verbs', ('transitive',)))[3]} {self.place()}",
            f"{self.person()} of {self.name('surname')} Inc. {self.did('transitive')} {self.phrase(False)}",
            f"the {self.number(4, 19)}th {noun()} vs. the {self.pick(('1st', '2nd', '3rd', '21st'))} {noun()}",
            f"{self.person()}, Ph.D., {self.did('transitive')} {self.phrase(False)} for the U.S. government",
            f"see vol. {self.number(1, 30)}, p. {self.number(1, 600)}, on {self.phrase(True)}"))

    def question(self) -> str:
        plural = self.chance(0.4)
        subject = self.phrase(plural, True)
        base = self.pick(_rows("verbs", ("transitive", "both")))[0]
        opening = self.pick(("did", "will", "can", "should", "why did", "when will", "how can", "where did", "would", "couldn't"))
        return self.pick((
            f"{opening} {subject} {base} {self.some()}", f"{opening} {subject} {base} {self.some()}",
            f"who {self.did('transitive')} {self.some()}",
            f"{'are' if plural else 'is'} {subject} {self.adjective()} {self.place()}",
            f"how many {self.pick(_rows('nouns'))[1]} did {subject} {base}"))

    def exclamation(self) -> str:
        singular, plural = self.pick(_rows("nouns"))
        adjective = self.adjective()
        return self.pick((
            f"what {self.article(adjective)} {adjective} {singular}", f"what {adjective} {plural}",
            f"how {self.adverb()} {self.phrase(False, True)} {self.did('intransitive')}",
            f"please {self.pick(_rows('verbs', ('transitive',)))[0]} {self.some()}"))

    def sentence(self) -> str:
        """One sentence with capital and full stop, question or exclamation mark."""
        kind = self.rng.random()
        make: Callable[[], str]
        if kind < 0.60:
            make, mark = self.pick(self.plain), "."
        elif kind < 0.80:
            make, mark = self.pick(self.figures), "."
        elif kind < 0.92:
            make, mark = self.question, "?"
        else:
            make, mark = self.exclamation, "!"
        text = make()
        if mark == "." and self.chance(0.12) and text.split()[0] not in ("at", "please", "see", "if", "when", "in"):
            text = f"{self.pick(_WHEN)}, {text}"
        return text[0].upper() + text[1:] + mark


def _length(text: str) -> float:
    """An upper estimate of the spoken words: a written figure counts as several."""
    figures = lambda word: 1.2 * sum(char.isdigit() for char in word) + (word[0] in "$£€")
    return sum(1 + figures(word) + 2 * (word.isupper() and len(word) > 1) for word in text.split())


def sentences(rng: np.random.Generator, n: int) -> list[str]:
    """`n` utterance texts, a pure function of the generator's state: one to four sentences, at most about 20 s of speech.

    Written text (figures, abbreviations, capitals, punctuation) for `ns2_jax.text.normalise`; none is in the `valid` or `test` list.
    """
    grammar = _Grammar(rng)
    natural = load_list("train")
    held_out = {*load_list("valid"), *load_list("test")}
    out: list[str] = []
    while len(out) < n:
        count = int(rng.integers(2, 5)) if rng.random() < _SEVERAL else 1
        parts: list[str] = []
        for _ in range(count):
            part = grammar.pick(natural) if rng.random() < _NATURAL else grammar.sentence()
            if parts and sum(map(_length, parts)) + _length(part) > _LONGEST:
                break
            parts.append(part)
        text = " ".join(parts)
        if _length(text) <= _LONGEST and text not in held_out:
            out.append(text)
    return out
