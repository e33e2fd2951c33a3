"""Numbers as English words: cardinals, ordinals, years, decimals, digit strings, fractions and roman numerals.

American reading without "and" (`one hundred five`), words separated by single spaces, no hyphens.
"""

from __future__ import annotations

import re

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen""".split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = ["", *"thousand million billion trillion quadrillion quintillion sextillion septillion octillion nonillion decillion".split()]
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth", "twelve": "twelfth"}
_DENOMINATORS = {2: ("half", "halves"), 4: ("quarter", "quarters")}
_ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
ROMAN = r"(?=[MDCLXVI])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"


def _below_thousand(value: int) -> list[str]:
    words = []
    if value >= 100:
        words += [_ONES[value // 100], "hundred"]
        value %= 100
    if value >= 20:
        words.append(_TENS[value // 10])
        value %= 10
        if value == 0:
            return words
    if value or not words:
        words.append(_ONES[value])
    return words


def cardinal(value: int) -> str:
    """`1234` -> "one thousand two hundred thirty four"; beyond decillions digit by digit; negatives with "minus"."""
    if value < 0:
        return "minus " + cardinal(-value)
    if value >= 1000 ** len(_SCALES):
        return digits(str(value))
    groups = []
    rest = value
    while rest or not groups:
        rest, low = divmod(rest, 1000)
        groups.append(low)
    words: list[str] = []
    for scale in range(len(groups) - 1, -1, -1):
        if groups[scale] or (value == 0):
            words += _below_thousand(groups[scale]) + ([_SCALES[scale]] if scale else [])
    return " ".join(words)


def ordinal(value: int) -> str:
    """`21` -> "twenty first"."""
    head, _, last = cardinal(value).rpartition(" ")
    if last in _ORDINALS:
        last = _ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return f"{head} {last}".strip()


def digits(text: str, zero: str = "zero") -> str:
    """Each digit of `text` by name ("007" -> "zero zero seven"); other characters are skipped."""
    return " ".join(zero if char == "0" else _ONES[int(char)] for char in text if char in "0123456789")


def year(value: int) -> str:
    """`1905` -> "nineteen oh five", `2005` -> "two thousand five", `2024` -> "twenty twenty four", `1900` -> "nineteen hundred"."""
    high, low = divmod(value, 100)
    if not 10 <= high <= 99 or (high % 10 == 0 and low < 10):
        return cardinal(value)
    if low == 0:
        return cardinal(high) + " hundred"
    return f"{cardinal(high)} {'oh ' if low < 10 else ''}{cardinal(low)}"


def number(text: str) -> str:
    """A written number with commas, a sign or a decimal point: "1,234.50" -> "one thousand two hundred thirty four point five zero".

    A leading zero ("007") is read digit by digit, a bare point (".5") as "point five".
    """
    text = text.replace(",", "").replace(" ", "")
    sign = ""
    if text[:1] in "+-":
        sign, text = {"-": "minus ", "+": "plus "}[text[0]], text[1:]
    whole, _, decimals = text.partition(".")
    spoken = "" if not whole else digits(whole) if len(whole) > 1 and whole[0] == "0" else cardinal(int(whole))
    return sign + (f"{spoken} point {digits(decimals)}".strip() if decimals else spoken)


def fraction(top: int, bottom: int) -> str:
    """`3, 4` -> "three quarters", `1, 2` -> "one half", `5, 16` -> "five sixteenths"; large or zero denominators as "over"."""
    if bottom < 2 or bottom > 100 or top > 100:
        return f"{cardinal(top)} over {cardinal(bottom)}"
    single, several = _DENOMINATORS.get(bottom, (ordinal(bottom), ordinal(bottom) + "s"))
    return f"{cardinal(top)} {single if top == 1 else several}"


def roman(text: str) -> int | None:
    """The value of a canonical roman numeral in capitals, else None."""
    if not re.fullmatch(ROMAN, text):
        return None
    values = [_ROMAN[char] for char in text]
    return sum(-value if value < following else value for value, following in zip(values, values[1:] + [0]))


def plural(words: str) -> str:
    """The plural of a number word: "nineteen ninety" -> "nineteen nineties", "six" -> "sixes"."""
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith(("x", "s")) else "s")
