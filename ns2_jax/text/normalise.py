"""English text as written -> words as spoken: lower-case words and the punctuation `, . ; : ? !`.

A fixed cascade of rules, most specific first, each a regular expression and a small function; the tables are at
the top of each group. American readings. `normalise` is deterministic and needs nothing but the standard library.

The letter A is written `ay` and the others as single letters: the one spelling that CMUdict and flite read as the
letter's name (a bare "a" is the article).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from ns2_jax.text.figures import DATES, D, MONEY, NUMBERS, STARTER, WEB, Match, Rule, ends, spell
from ns2_jax.text.numerals import ROMAN, cardinal, digits, number, ordinal, roman, year
from ns2_jax.text.tables import (
    ABBREVIATIONS, CARDINAL_HEADS, CODES, COMMON_CAPITALS, DOTTED, GREEK, NAME_PREFIXES, REGNAL, SYMBOLS, SYMBOLS_BETWEEN, TITLES, WORD_ACRONYMS)

_PLACEHOLDER = 0x20000  # words of a user lexicon travel through the rules as letters of a script that English does not use

# --- abbreviations, roman numerals, capitals


def _dotted(match: Match) -> str:
    letters = match[0].replace(".", "").replace(" ", "")
    known = DOTTED.get(letters.lower())
    tail = "'s" if letters.endswith("'s") else ""
    if letters.lower() in ("eg", "ie", "aka"):
        return known
    return ends(match, known or spell(letters.removesuffix("'s")) + tail, STARTER)  # "the U.S. Army" against "in the U.S. We"


def _abbreviation(match: Match) -> str:
    short = match[1].lower()
    return ABBREVIATIONS[short] if short in TITLES else ends(match, ABBREVIATIONS[short])


def _before_number(match: Match) -> str:
    if "." in match[0] or match[1] in ("vol", "fig", "pp", "p"):
        return ABBREVIATIONS[match[1].lower()] + " "
    return match[0]


def _after_name(match: Match) -> str:
    value = roman(match["roman"])
    head = match["head"].split()[-1]
    if value is None:
        return match[0]
    if head.lower().rstrip(".") in CARDINAL_HEADS:
        return f"{match['head']} {cardinal(value)}"
    if value > 39 or (len(match["roman"]) == 1 and (head not in REGNAL or value == 1)):
        return match[0]  # "Washington DC", "Malcolm X", "Then I"
    return f"{match['head']} the {ordinal(value)}"


def _capitals(match: Match) -> str:
    text, tail = match["text"], match["tail"] or ""
    if text in WORD_ACRONYMS or text in COMMON_CAPITALS:
        return text.lower() + tail
    if len(text) >= 4 and re.search("[AEIOUY]", text) and text not in CODES and text.lower() not in CODES:
        return text.lower() + tail
    return spell(text) + ("'s" if tail else "")


def _mixed(match: Match) -> str:
    """MP3, H2O, A380, 4K, COVID-19, R2D2: letters spelled unless they make a word, numbers read."""
    parts = re.findall(r"[A-Za-z]+|\d+", match[0])
    spoken = []
    for part in parts:
        if part.isdigit():
            spoken.append(digits(part) if part[0] == "0" and len(part) > 1 else cardinal(int(part)) if len(part) != 4 else year(int(part)))
        elif len(part) >= 4 or (len(part) == 3 and part.islower()) or part in WORD_ACRONYMS:
            spoken.append(part.lower())
        else:
            spoken.append(spell(part))
    return " ".join(spoken)


def _camel(match: Match) -> str:
    if match["head"] in NAME_PREFIXES:
        return match[0]
    return f"{match['head']} {match['tail']}"


# these are also words or names, so they need a number, a name or a capital beside them
_ALSO_WORDS = set("no fig mt ft co art sat sun mar mon wed thu fri dec est gal max min col rep gen sec ch p ext al ca ed temp fl apt hon".split())
_ABBREVIATION = "|".join(re.escape(key) for key in sorted(set(ABBREVIATIONS) - _ALSO_WORDS, key=lambda key: (-len(key), key)))
_BEFORE_NUMBER = "no|nos|fig|figs|p|pp|ch|sec|art|vol|ext|ca|para|est|apt|fl"
_BEFORE_NAME = "mt|ft|col|rep|gen|sen|gov|st"
_WORDS: list[Rule] = [
    (re.compile(r"\bC#(?!\w)"), "c sharp"),
    (re.compile(r"\bA(?=[+/&]|'s\b| to Z\b)|(?<=\b[Aa]n )A\b|(?<=[a-z,.] )A(?=[.,;:?!]|$)"), "ay"),  # the letter, not the article
    (re.compile(r"\b[Nn]o\.(?=\d)"), "number "),
    (re.compile(r"(?P<a>\d(?:st|nd|rd|th)?\s+(?:[NSEW]\.?\s+)?(?:(?!May|June|March|August)[A-Z][a-z]+\s+)+)(?P<s>Dr|St)\b\.?"),
     lambda m: m["a"] + ends(m, {"Dr": "drive", "St": "street"}[m["s"]])),
    (re.compile(r"\bDr\.?\s+(?=[A-Z])"), "doctor "),
    (re.compile(r"\bDr\b\.?"), lambda m: ends(m, "drive")),
    (re.compile(r"\bSt\.?\s+(?=[A-Z][a-z])"), "saint "),
    (re.compile(r"\bSt\b\.?"), lambda m: ends(m, "street")),
    (re.compile(rf"\b({_BEFORE_NUMBER})\.?\s(?=\d)", re.I), _before_number),
    (re.compile(rf"\b({_BEFORE_NAME})\.\s(?=[A-Z])", re.I), lambda m: ABBREVIATIONS[m[1].lower()] + " "),
    (re.compile(r"\b(Co|co|al|max|min|Mon|Wed|Thu|Fri|Dec)\.(?=\s|[,;:?!)]|$)"), _abbreviation),
    (re.compile(rf"(?<![\w.])({_ABBREVIATION})\.(?!\w)", re.I), _abbreviation),
    (re.compile(r"\b(Mr|Mrs|Ms|Prof|Jr|Sr|vs|etc|Mx|Messrs)\b(?!\.)"), lambda m: ABBREVIATIONS[m[1].lower()]),
    (re.compile(r"(?<![\w'])(?:w/o)\b"), "without"),
    (re.compile(r"(?<![\w'])w/\s?(?=\w)"), "with "),
    (re.compile(r"(?<![\w.'])(?:[A-Za-z]\.){2,}(?:[A-Za-z]\b(?!\.))?(?:'s\b)?|\bPh\.\s?D\b\.?"), _dotted),
    (re.compile(r"(?<![\w.'])(?P<i>[A-HJ-Z])\.(?=\s*[A-Z])"), lambda m: spell(m["i"]) + " "),
    (re.compile(rf"\b(?P<head>[A-Z][a-z]+\.?)\s(?P<roman>{ROMAN})\b(?!['.][a-z])"), _after_name),
    (re.compile(rf"\b(?P<head>(?i:{'|'.join(CARDINAL_HEADS)}))\s(?P<roman>{ROMAN})\b"), _after_name),
    (re.compile(r"\b(?P<text>[A-Z]{2,})s\b(?!')"),
     lambda m: spell(m["text"]) + "'s" if m["text"] not in WORD_ACRONYMS else m["text"].lower() + "s"),
    (re.compile(r"\b(?P<text>[A-Z]{2,})(?P<tail>'s)?(?![\w])(?!-?\d)"), _capitals),
    (re.compile(r"\b(?P<head>[A-Za-z]*[a-z])(?P<tail>[A-Z][A-Za-z]*)\b"), _camel),
    (re.compile(r"(?<![\w'])[A-Za-z]+-?\d+[A-Za-z\d]*\b|(?<![\w'.,])\d+[A-Za-z]{1,4}\d*\b"), _mixed),
]

# --- what is left: plain numbers and symbols


_COUNTED = re.compile(r"\s+(?!was\b|is\b|has\b|this\b|as\b|its\b|it's\b)(?:[a-z]+s|people|men|women|children|feet)\b")


def _plain(match: Match) -> str:
    text = match["n"]
    sign = "minus " if match["sign"] else ""
    if re.fullmatch(r"1[1-9]\d\d|20\d\d", text) and not sign:
        if not _COUNTED.match(match.string[match.end():]):  # "1850 people" is a count; "in 1850 people came" is not worth the guess
            return year(int(text))
    return sign + number(text)


_PLAIN: list[Rule] = [
    (re.compile(rf"(?:(?<![\w)])(?P<sign>-(?=[\d.])))?(?<![\w.])(?P<n>{D})(?:(?=[^\w])|$|(?=[A-Za-z]))"), lambda m: _plain(m) + " "),
    (re.compile(r"\d+"), lambda m: f" {number(m[0])} "),
]


def _apply(text: str, rules: Iterable[Rule]) -> str:
    for pattern, spoken in rules:
        text = pattern.sub(spoken, text)
    return text


def _unicode(text: str) -> str:
    """Typographic characters to ASCII, accents off Latin letters, fractions and powers kept readable."""
    text = re.sub("[\u2018\u2019\u201b\u02bc\u2032`´]", "'", text)
    text = re.sub("[\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033]", '"', text)
    text = re.sub("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff\ufe0e\ufe0f]", "", text)
    for char, plain in {"\u2026": "...", "\u2044": "/", "№": "No. ", "℃": "°C", "℉": "°F", "™": "", "℠": ""}.items():
        text = text.replace(char, plain)
    text = re.sub("([\u00bc-\u00be\u2150-\u215e])", lambda m: " " + unicodedata.normalize("NFKC", m[1]).replace("\u2044", "/") + " ", text)
    text = re.sub("(?<=[A-Za-z])²", " squared", re.sub("(?<=\\d\\s[A-Za-z])²|(?<=\\d[A-Za-z])²|(?<=[kcm]m)²", "\uf8f2", text))
    text = re.sub("(?<=[A-Za-z])³", " cubed", re.sub("(?<=\\d\\s[A-Za-z])³|(?<=\\d[A-Za-z])³|(?<=[kcm]m)³", "\uf8f3", text))
    text = text.replace("\uf8f2", "2").replace("\uf8f3", "3").replace("²", " squared ").replace("³", " cubed ")
    text = re.sub("[\u2010\u2011\u2212\u2012]", "-", text)
    text = re.sub(r"(?<=[\dmM%.])\s?\u2013\s?(?=[\d$£€])", "-", text)
    text = re.sub(r"\s*[\u2013\u2014\u2015]\s*|\s+--?\s+|(?<=\w)--(?=\w)", ", ", text)
    text = "".join(GREEK.get(char, char) for char in text)
    kept = []
    latin = {"ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "Oe",
             "ł": "l", "Ł": "L", "đ": "d", "ð": "th", "þ": "th", "ı": "i"}
    for char in unicodedata.normalize("NFKD", text):
        if unicodedata.combining(char):
            continue
        kept.append(latin.get(char, char))
    return "".join(kept)


def _symbols(text: str) -> str:
    for pattern, spoken in SYMBOLS_BETWEEN:
        text = re.sub(pattern, spoken, text)
    for symbol, spoken in SYMBOLS.items():
        text = text.replace(symbol, f" {spoken} ")
    return text


def _tidy(text: str) -> str:
    """Lower case, pauses at brackets, one space between words, one punctuation mark in a row."""
    text = re.sub(r"\.{2,}(?=\s*(?:[A-Z]|$))", ".", text)
    text = re.sub(r"\.{2,}", ",", text)
    text = re.sub(r"\s*[(\[{]\s*", ", ", text)
    text = re.sub(r"\s*[)\]}]", ",", text)
    text = re.sub(r"(?<![^\W\d_])'|'(?![^\W\d_])", " ", re.sub(r"(?<![A-Za-z])'(tis|twas|em|til|cause|bout)\b", r"\1", text, flags=re.I))
    text = re.sub(r"[^\w\s',.;:?!]|_", " ", text)
    text = text.lower()
    text = re.sub(r"\s+([,.;:?!])", r"\1", text)
    text = re.sub(r"(?<=[a-z])([.:])(?=[a-z])", r"\1 ", text)
    text = re.sub(r"([,;:])[,;:]*([.?!])", r"\2", text)
    text = re.sub(r"([.?!])[,;:.?!]+", lambda m: "?" if "?" in m[0] else m[1], text)
    text = re.sub(r"([,;:])[,;:]+", r"\1", text)
    text = re.sub(r"([,;:?!])(?=\w)", r"\1 ", text)
    text = re.sub(r"^[\s,.;:?!]+", "", text)
    return re.sub(r"[,;:]$", ".", " ".join(text.split()))


def protect(text: str, keep: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Replaces every occurrence of a word in `keep` (any case, whole words) by one letter that no rule touches.

    Returns the text and letter -> lower-case word. This is how a user lexicon wins over every rule.
    """
    words = sorted({word.lower() for word in keep if word.strip()}, key=lambda word: (-len(word), word))
    if not words:
        return text, {}
    table = {chr(_PLACEHOLDER + index): word for index, word in enumerate(words)}
    letters = {word: letter for letter, word in table.items()}
    pattern = re.compile("(?<![^\\W_])(?:" + "|".join(re.escape(word) for word in words) + ")(?![^\\W_])", re.I)
    return pattern.sub(lambda m: letters[m[0].lower()], text), table


def speakable(text: str, keep: Iterable[str] = ()) -> tuple[str, Mapping[str, str]]:
    """`normalise`, with the words of `keep` still standing as placeholder letters, and their table."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the text is empty; there is nothing to say")
    spoken, table = protect(unicodedata.normalize("NFC", text), keep)
    spoken = " ".join(_unicode(spoken).split())
    letters = re.findall(r"[A-Za-z]+", spoken)
    if len(letters) >= 3 and not re.search("[a-z]", spoken) and sum(map(len, letters)) >= 12:
        spoken = spoken.lower()  # shouting, not initialisms
    spoken = re.sub(r"(?<=\w)\s?'n'\s?(?=\w)|(?<=\w) 'n (?=\w)", " and ", spoken)
    for rules in (WEB, DATES, MONEY, NUMBERS, _WORDS, _PLAIN):
        spoken = _apply(spoken, rules)
    spoken = _tidy(_symbols(spoken))
    if not re.search(r"[^\W\d_]", spoken):
        raise ValueError(f"there is no pronounceable word in the text {text[:60]!r}")
    return spoken, table


def normalise(text: str, keep: Iterable[str] = ()) -> str:
    """English text -> the words that are said, in lower case, with the punctuation `, . ; : ? !`.

    `keep` holds words that no rule may touch (the user lexicon's). Raises ValueError for an empty text and for one
    without a pronounceable word.

    >>> normalise("Dr. Smith paid $12.50 on 3/4/2021.")
    'doctor smith paid twelve dollars and fifty cents on march fourth, twenty twenty one.'
    """
    spoken, table = speakable(text, keep)
    for letter, word in table.items():
        spoken = spoken.replace(letter, word)
    return spoken
