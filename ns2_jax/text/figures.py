"""Figures and addresses in running text: web addresses, files, dates, times, money, telephone numbers, units, ranges.

Each list holds (pattern, words) rules for `ns2_jax.text.normalise`, in the order in which they apply.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ns2_jax.text.numerals import cardinal, digits, fraction, number, ordinal, plural, year
from ns2_jax.text.tables import CODES, CURRENCIES, MAGNITUDES, MONTH_NAMES, MONTHS, UNITS, WEEKDAYS

N = r"(?:\d{1,3}(?:,\d{3})+|\d+)"  # a whole number
D = rf"(?:{N}(?:\.\d+)?|\.\d+)"  # with decimals
_LEFT = r"(?<![\w.,])"  # nothing numeric or wordy before
# Capitalised, or a whole name in lower case unless it is also a common word.
_MONTH = "|".join(sorted(
    {*(m.capitalize() for m in MONTHS), *(m.upper() for m in MONTHS), *(set(MONTH_NAMES) - {"may", "march"})}, key=len, reverse=True))
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"

Match = re.Match[str]
Rule = tuple[re.Pattern[str], Callable[[Match], str] | str]


def _int(text: str) -> int:
    return int(text.replace(",", ""))


def spell(text: str) -> str:
    """Letters and digits by name: "B2" -> "b two"; the letter A is `ay`."""
    return " ".join("ay" if char in "aA" else digits(char) if char.isdigit() else char.lower() for char in text if char.isalnum())


def _count(text: str, one: str, many: str) -> str:
    return f"{number(text)} {one if text == '1' else many}"


# --- web addresses, files, mail


def _address(match: Match) -> str:
    text = re.sub(r"^(https?|ftp)://", "", match[0], flags=re.I)
    text = text.rstrip("/")
    parts = re.findall(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]", text)
    names = {".": "dot", "/": "slash", "@": "at", "-": "dash", "_": "underscore", ":": "colon", "?": "question mark", "=": "equals",
             "&": "and", "#": "hash", "~": "tilde", "+": "plus", "%": "percent", "\\": "backslash"}
    spoken = []
    for part in parts:
        if part.isalpha():
            spoken.append(spell(part) if part.lower() in CODES or not re.search("[aeiouy]", part, re.I) else part.lower())
        else:
            spoken.append(number(part) if part.isdigit() and len(part) < 4 else digits(part) if part.isdigit() else names.get(part, ""))
    return f" {' '.join(spoken)} "


_TLD = r"(?:com|org|net|edu|gov|io|uk|de|fr|eu|ai|co|us|info|dev|app|tv|ch|ca|au)"
_EXTENSION = (
    r"(?:txt|py|wav|flac|mp3|mp4|pdf|jpg|jpeg|png|csv|tsv|json|html?|docx?|xlsx?|zip|tar|gz|exe|md|cc|cpp|sh|yaml|toml|xml|js|ini|log)")
WEB: list[Rule] = [
    (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"), _address),
    (re.compile(r"\b(?:https?|ftp)://[^\s<>\"]*[\w/]", re.I), _address),
    (re.compile(r"\bwww\.[\w-]+(?:\.[\w-]+)+(?:/[\w./?=&%#~-]*\w)?", re.I), _address),
    (re.compile(rf"\b(?:[a-z\d][a-z\d-]*\.)+{_TLD}\b(?!\.\w|')(?:/[\w./?=&%#~-]*\w)?", re.I), _address),
    (re.compile(rf"(?:[A-Za-z]:\\|~?/|\.\.?/)?(?:[\w-]+[\\/])*[\w-]+\.{_EXTENSION}\b", re.I), _address),
    (re.compile(r"(?<![\w/.])~?/(?:[\w.-]+/)+[\w.-]*\w|\b[A-Za-z]:\\[\w\\.-]*\w"), _address),
    (re.compile(r"(?<!\w)#([A-Za-z]\w*)"), r"hashtag \1"),
    (re.compile(r"(?<!\w)@([A-Za-z]\w*)"), r"at \1"),
]

# --- dates and times


def _month(text: str) -> str:
    return MONTHS.get(text.rstrip(".").lower(), text.lower())


def _date(match: Match) -> str:
    parts = match.groupdict()
    text = f"{_month(parts['month'])} {ordinal(int(parts['day']))}"
    return text + (f", {year(int(parts['year']))}" if parts.get("year") else "")


def _numeric_date(match: Match) -> str:
    first, second, when = int(match["a"]), int(match["b"]), match["year"]
    month, day = (second, first) if first > 12 else (first, second)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    full = int(when) if len(when) == 4 else 2000 + int(when) if int(when) < 50 else 1900 + int(when)
    return f"{MONTH_NAMES[month - 1]} {ordinal(day)}, {year(full)}"


def _iso(match: Match) -> str:
    month, day = int(match["month"]), int(match["day"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    return f"{MONTH_NAMES[month - 1]} {ordinal(day)}, {year(int(match['year']))}" + (" " if match[0].endswith("T") else "")


def _decade(match: Match) -> str:
    if match["short"]:
        return plural(cardinal(int(match["short"])))
    return plural(year(int(match["long"])))


def _half_day(text: str) -> str:
    return "ay m" if text.lower().startswith("a") else "p m"


def _time(match: Match) -> str:
    hour, minute, second, half = int(match["h"]), int(match["m"]), match["s"], match["half"]
    if hour > 24 or minute > 59:
        return match[0]
    words = [cardinal(hour)]
    if minute:
        words.append(("oh " if minute < 10 else "") + cardinal(minute))
    elif not half and hour > 12:
        words.append("hundred")
    elif not half and not second:
        words.append("o'clock")
    if second:
        words.append(f"and {cardinal(int(second))} second{'' if int(second) == 1 else 's'}")
    return " ".join(words + ([_half_day(half)] if half else []))


_HALF = r"(?P<half>[ap]\.?\s?m\b\.?)"
_AFTER = r"(?!\w|[,.]\d)"


_CAPITAL = re.compile(r"\s+[A-Z\"'(]")
STARTER = re.compile(r"\s+[\"'(]?(?:The|He|She|It|We|They|I|You|This|That|These|There|Those|But|And|So|In|On|At|A|An|If|When|What|Who|"
                     r"Why|How|My|Our|His|Her|Their|Then|Now|For|No|Yes|Please)\b")


def ends(match: Match, spoken: str, start: re.Pattern[str] = _CAPITAL) -> str:
    """Keeps the full stop of an abbreviation that also ends the sentence: at the end, or before what `start` matches."""
    rest = match.string[match.end():]
    return spoken + ("." if match[0].endswith(".") and (not rest.strip() or start.match(rest)) else "")


DATES: list[Rule] = [
    (re.compile(r"(?<!\d)(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)(?:T(?=\d)|(?!\d))"), _iso),
    (re.compile(r"(?<![\d/.])(?P<a>\d{1,2})(?P<x>[/.-])(?P<b>\d{1,2})(?P=x)(?P<year>\d{4}|\d\d)(?![\d/])"), _numeric_date),
    (re.compile(rf"\b(?P<month>(?:{_MONTH})\b)\.? {_DAY}(?!\d|[:/]\d)(?:,? (?P<year>\d{{4}})\b)?"), _date),
    (re.compile(rf"\b(?P<the>[Tt]he )?{_DAY} of (?P<month>(?:{_MONTH})\b)\.?(?:,? (?P<year>\d{{4}})\b)?"),
     lambda m: f"{m['the'] or 'the '}{ordinal(int(m['day']))} of {_month(m['month'])}{', ' + year(int(m['year'])) if m['year'] else ''}"),
    (re.compile(rf"\b(?:[Tt]he )?{_DAY} (?P<month>(?:{_MONTH})\b)\.?(?:,? (?P<year>\d{{4}})\b)?"),
     lambda m: ("the " if m[0].lower().startswith("the") else "") + _date(m)),
    (re.compile(rf"\b(?P<month>(?:{_MONTH})\b)\.?(?P<comma>,?) (?P<year>1\d{{3}}|20\d\d)\b"),
     lambda m: f"{_month(m['month'])}{m['comma']} {year(int(m['year']))}"),
    (re.compile(rf"\b(?P<day>{'|'.join(WEEKDAYS)})\.(?=,? (?:the )?\d|,? (?:{_MONTH})\b)", re.I), lambda m: WEEKDAYS[m["day"].lower()]),
    (re.compile(r"\b(?P<a>[Tt]he|his|her|their|my|our|your|and|or|early|late|mid)(?P<b>[ -])(?P<n>[2-9]0)s\b"),
     lambda m: m["a"] + m["b"] + plural(cardinal(int(m["n"])))),
    (re.compile(r"(?<![\w$])(?:(?P<long>1\d{2}0|20\d0)|'(?P<short>[1-9]0))'?s\b"), _decade),
    (re.compile(r"(?:(?<=\d[ap]m)|(?<=\d [ap]m)|(?<=[ap]\.m\.))\s?-\s?(?=\d)|(?<=\d:\d\d)\s?-\s?(?=\d{1,2}:\d\d)", re.I), " to "),
    (re.compile(rf"{_LEFT}(?P<h>\d{{1,2}}):(?P<m>\d\d)(?::(?P<s>\d\d))?(?:\s?{_HALF})?{_AFTER}", re.I),
     lambda m: ends(m, _time(m), STARTER)),
    (re.compile(rf"{_LEFT}(?P<h>\d{{1,2}})\s?{_HALF}{_AFTER}", re.I),
     lambda m: ends(m, f"{cardinal(int(m['h']))} {_half_day(m['half'])}", STARTER)),
]

# --- money


def _money(match: Match) -> str:
    sign, symbol, amount, scale = match["sign"] or "", match["symbol"], match["amount"], match["scale"]
    one, many, cent, cents = CURRENCIES[symbol]
    lead = "minus " if sign else ""
    if scale:
        return f"{lead}{number(amount)} {MAGNITUDES[scale.strip().lower().rstrip('.')]} {many}"
    whole, point, small = amount.partition(".")
    if not point or len(small) != 2 or not cent:
        return lead + _count(amount, one, many)
    spoken = []
    if _int(whole or "0") or not int(small):
        spoken.append(_count(str(_int(whole or "0")), one, many))
    if int(small):
        spoken.append(_count(str(int(small)), cent, cents))
    return lead + " and ".join(spoken)


_SYMBOL = "|".join(re.escape(symbol) for symbol in sorted(CURRENCIES, key=len, reverse=True))
_SCALE = r"(?P<scale>[ -]?(?:thousand|million|billion|trillion|bn|mn|[kKmMbB])\b)?"
MONEY: list[Rule] = [
    (re.compile(rf"(?P<low>(?:{_SYMBOL})\s?)(?P<a>{D})\s?-\s?(?:{_SYMBOL})?\s?(?P<b>{D})(?!\w)"), r"\g<a> to \g<low>\g<b>"),
    (re.compile(rf"(?P<sign>(?<!\w)-)?(?<![A-Za-z])(?P<symbol>{_SYMBOL})\s?(?P<amount>{D}){_SCALE}"), _money),
    (re.compile(rf"{_LEFT}(?P<sign>-)?(?P<amount>{D}){_SCALE}\s?(?P<symbol>{_SYMBOL})(?!\w)"), _money),
    (re.compile(rf"{_LEFT}(?P<n>{N})\s?¢"), lambda m: _count(m["n"], "cent", "cents")),
]

# --- telephone numbers, versions, ranges, units


def _telephone(match: Match) -> str:
    groups = re.findall(r"\d+", match[0])
    spoken = ", ".join("eight hundred" if group == "800" else digits(group) for group in groups)
    return " plus " + spoken if match[0].lstrip().startswith("+") else spoken


def _groups(match: Match) -> str:
    """1-2-3, 123-45-6789: long groups digit by digit."""
    parts = match[0].split("-")
    return " ".join(map(digits, parts)) if max(map(len, parts)) > 2 else " ".join(cardinal(int(part)) for part in parts)


def _unit(match: Match) -> str:
    amount, unit = match["amount"], match["unit"]
    per = ""
    if match["per"]:
        per = " per " + UNITS.get(match["per"], (match["per"], ""))[0]
    one, many = UNITS[unit]
    if match["power"]:
        word = {"2": "square ", "²": "square ", "3": "cubic ", "³": "cubic "}[match["power"]]
        one, many = word + one, word + many
    return ends(match, f"{number(amount)} {one if amount == '1' else many}{per}")


def _year_range(match: Match) -> str:
    first, second = match["a"], match["b"]
    last = year(int(second)) if len(second) == 4 else (("oh " if second[0] == "0" else "") + cardinal(int(second)))
    return f"{year(int(first))} to {last}"


def _fraction(match: Match) -> str:
    whole, top, bottom = match["whole"], int(match["top"]), int(match["bottom"])
    spoken = fraction(top, bottom)
    if whole:
        return f"{number(whole)} and {'a' + spoken[3:] if top == 1 and bottom in (2, 4) else spoken}"
    return spoken


_UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
_NEXT = r"(?![\w'])"
_PER = r"(?:/(?P<per>s|h|hr|min|kg|m|km|day|week|month|year|l|L))?"
_STOP = r"(?:(?<=min|sec|hrs|lbs)\.|(?<=ft|hr|kg|km|lb|oz|mi|yd|in|cm)\.)?"
_DEGREES = {"C": "celsius", "F": "fahrenheit", "K": "kelvin"}
NUMBERS: list[Rule] = [
    (re.compile(r"(?<![\w(])(?:\+?\d{1,3}[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\w)"), _telephone),
    (re.compile(r"(?<![\w(])\+\d{1,3}(?:[ -]?\d{2,4}){2,5}(?!\w)"), _telephone),
    (re.compile(r"(?<![\w-])(?:\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{4})(?![\w-])"), _telephone),
    (re.compile(r"\b(?P<v>[vV]\.?)?(?P<n>\d+(?:\.\d+){2,})\b"),
     lambda m: ("version " if m["v"] else "") + " point ".join(cardinal(int(p)) for p in m["n"].split("."))),
    (re.compile(r"\b[vV](?P<n>\d+(?:\.\d+)?)\b"), lambda m: f"version {number(m['n'])}"),
    (re.compile(r"\b24/7\b"), "twenty four seven"),
    (re.compile(r"\b50-50\b"), "fifty fifty"),
    (re.compile(r"(?<![\w.-])\d+(?:-\d+){2,}(?![\w-])"), _groups),
    (re.compile(r"\b(?P<n>\d{1,3}) 000\b"), r"\g<n>,000"),
    (re.compile(r"\b9/11\b"), "nine eleven"),
    (re.compile(r"\bWW(?P<n>II?|[12])\b"), lambda m: "world war " + ("two" if m["n"] in ("II", "2") else "one")),
    (re.compile(r"(?<=[A-Za-z]-)(?P<n>\d+)s\b"), lambda m: plural(cardinal(int(m["n"])))),
    (re.compile(r"\b(?P<n>[248])K\b(?!\s+(?:people|dollars|users|miles|race|run))"), lambda m: f"{cardinal(int(m['n']))} k"),  # screens
    (re.compile(rf"{_LEFT}(?P<n>{D})[eE](?P<e>[+-]?\d+)\b"),
     lambda m: f"{number(m['n'])} times ten to the power of {number(m['e'].lstrip('+'))}"),
    (re.compile(rf"{_LEFT}(?P<n>{D})x\b"), lambda m: f"{number(m['n'])} times"),
    (re.compile(r"\b(?P<in>[Ii]n|[Ss]ince|[Uu]ntil|[Yy]ear|[Cc]irca|[Bb]efore|[Aa]fter) (?P<y>10\d\d)\b(?![,.]\d)"),
     lambda m: f"{m['in']} {year(int(m['y']))}"),
    (re.compile(rf"{_LEFT}(?:(?P<whole>{N})[ -])?(?P<top>\d{{1,3}})/(?P<bottom>\d{{1,3}})(?![\w/])"), _fraction),
    (re.compile(rf"{_LEFT}(?P<a>1\d{{3}}|20\d\d)-(?P<b>1\d{{3}}|20\d\d|\d\d)(?![\w-])"), _year_range),
    (re.compile(rf"{_LEFT}(?P<a>-?{D})\s?(?:-|~)\s?(?P<b>{D})(?=\s?(?:%|°|[A-Za-z]|[\s,.;:?!)]|$))(?!-)"), r"\g<a> to \g<b>"),
    (re.compile(rf"{_LEFT}(?P<a>\d{{1,3}}):(?P<b>\d{{1,3}})(?![\w:])"), r"\g<a> to \g<b>"),
    (re.compile(r"(?<![\w.])(?P<ft>\d{1,2})'\s?(?P<in>\d{1,2})(?:\"|'')"),
     lambda m: f"{_count(m['ft'], 'foot', 'feet')} {_count(m['in'], 'inch', 'inches')}"),
    (re.compile(r"(?<![\w.])(?P<n>\d{1,3})'(?=\s(?:tall|high|long|wide|deep)\b)"), lambda m: _count(m["n"], "foot", "feet")),
    (re.compile(r"(?<![\w.])(?P<n>\d{1,3})\"(?=\s(?:tall|high|long|wide|deep|pipe|screen)\b)"), lambda m: _count(m["n"], "inch", "inches")),
    (re.compile(rf"(?P<n>-?{D})\s?°\s?(?P<s>[CFK])\b"), lambda m: f"{_count(m['n'], 'degree', 'degrees')} {_DEGREES[m['s']]}"),
    (re.compile(rf"(?P<n>-?{D})\s?°"), lambda m: _count(m["n"], "degree", "degrees")),
    (re.compile(rf"(?P<n>(?:(?<!\w)[-+])?{D})\s?(?P<s>%|‰)"), lambda m: f"{number(m['n'])} {'percent' if m['s'] == '%' else 'per mille'}"),
    (re.compile(rf"(?<![\w.,])(?<![A-Za-z]-)(?P<amount>[-+]?{D})\s?(?P<unit>{_UNIT})(?P<power>[23²³])?{_PER}{_NEXT}{_STOP}"), _unit),
    (re.compile(rf"(?<![\w.,])(?P<n>{N})(?:st|nd|rd|th)\b", re.I), lambda m: ordinal(_int(m["n"]))),
    (re.compile(rf"(?<![\w.,])(?P<n>{D})\s?(?P<s>K|k|bn|mn|M)\b(?!')"), lambda m: f"{number(m['n'])} {MAGNITUDES[m['s'].lower()]}"),
]
