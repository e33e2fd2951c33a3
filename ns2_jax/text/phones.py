"""The one phone inventory, and the map of every source onto it.

Ids 0-2 are padding, silence and unknown; then the 40 stressless ARPAbet phones of English in lower case
(CMUdict's 39 and the schwa `ax`, which CMUdict writes AH0); then phones of other languages, written as IPA
between slashes so that `/y/` (French *tu*) cannot be taken for `y` (English *you*). The index of a name in
`PHONES` is its id. Ids are stored in records and in checkpoints: names are only ever appended, and a model's
table has `SLOTS` rows so that appending does not change its shape.

Sources and their maps: CMUdict's ARPAbet (`from_arpabet`), flite's segments (`from_flite`), espeak-ng's
mnemonics as in its events (`from_espeak`, English) and IPA (`from_ipa`, any language).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

PADDING, SILENCE, UNKNOWN = "_", "sil", "spn"
ENGLISH = tuple("""aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh""".split())
VOWELS = frozenset("aa ae ah ao aw ax ay eh er ey ih iy ow oy uh uw".split())
_OTHER = """
a e o y ø œ ɒ ɐ ɨ ʉ ɯ ɤ ɵ ʏ ɘ ɜ aː eː iː oː uː yː øː ɛː ɔː œː æː ɑː ɑ̃ ɛ̃ ɔ̃ œ̃ ɐ̃ ĩ ũ ẽ õ
ʔ ɾ r ʁ ʀ x ç ɣ χ ɕ ʑ ʂ ʐ ts dz tɕ dʑ tʂ dʐ pf ɲ ʎ ɫ ɬ ɭ ɳ ʈ ɖ c ɟ q β ɸ ʝ ħ ʕ ɦ ʋ ɥ ɰ ɽ ɓ ɗ
""".split()
PHONES: tuple[str, ...] = (PADDING, SILENCE, UNKNOWN, *ENGLISH, *(f"/{unicodedata.normalize('NFC', ipa)}/" for ipa in _OTHER))
SLOTS = 128
IDS: dict[str, int] = {phone: index for index, phone in enumerate(PHONES)}

# flite 2.2 (voices slt, rms, awb, kal): ARPAbet in lower case; silences have several names.
_FLITE = {"pau": SILENCE, "ssil": SILENCE, "h#": SILENCE, "brth": SILENCE, "axr": "er", "el": "ax l", "em": "ax m", "en": "ax n"}

# espeak-ng 1.52, English voices. The mnemonic names a base phone in every accent (`A@` in *garden* is rhotic or not
# by voice), so it maps onto the American phones and accent stays a property of the speaker.
_ESPEAK = {
    "0": "aa", "0#": "aa", "A": "aa", "A:": "aa", "A~": "aa n", "A@": "aa r", "a": "ae", "aa": "ae", "a#": "ax", "a2": "ae",
    "aI": "ay", "aI2": "ay", "aI@": "ay ax", "aI3": "ay er", "aU": "aw", "aU@": "aw er", "E": "eh", "E2": "eh", "e": "eh", "eI": "ey",
    "e@": "eh r", "I": "ih", "I2": "ih", "I#": "ih", "IR": "er", "i": "iy", "i:": "iy", "i@": "iy ax", "i@3": "ih r", "V": "ah",
    "VR": "er", "V2": "ah", "V3": "ah", "O": "ao", "O2": "ao", "O:": "ao", "O@": "ao r", "O~": "ao n", "OI": "oy", "o": "ow",
    "o:": "ow", "o@": "ao r", "oU": "ow", "oU#": "ow", "U": "uh", "U@": "uh r", "u": "uw", "u:": "uw", "@": "ax", "@2": "ax",
    "@5": "ax", "@-": "ax", "@L": "ax l", "3": "er", "3:": "er", "b": "b", "b#": "b", "p": "p", "d": "d", "d#": "d", "t": "t",
    "t#": "t", "t2": "t", "t[": "th", "d[": "dh", "?": "t", "k": "k", "k#": "k", "x": "k", "g": "g", "f": "f", "v": "v", "v#": "v",
    "T": "th", "D": "dh", "s": "s", "z": "z", "z#": "z", "S": "sh", "Z": "zh", "h": "hh", "tS": "ch", "dZ": "jh", "m": "m",
    "m-": "ax m", "n": "n", "n-": "ax n", "N": "ng", "l": "l", "l#": "l", "L": "l", "l-": "ax l", "r": "r", "r-": "r", "R": "r",
    "w": "w", "w#": "w", "j": "y", ";": "", ":": "", "!": "", "|": "", "": "", "_": "sil", "_:": "sil", "_!": "", "_|": "",
}

# IPA. `_SHARED` holds for every language; English adds diphthongs and r-coloured vowels and ignores length.
_SHARED = {
    "ɑ": "aa", "æ": "ae", "ʌ": "ah", "ɔ": "ao", "ə": "ax", "ɛ": "eh", "ɪ": "ih", "i": "iy", "ʊ": "uh", "u": "uw", "b": "b",
    "tʃ": "ch", "d": "d", "ð": "dh", "f": "f", "ɡ": "g", "g": "g", "h": "hh", "dʒ": "jh", "k": "k", "l": "l", "m": "m", "n": "n",
    "ŋ": "ng", "p": "p", "ɹ": "r", "s": "s", "ʃ": "sh", "t": "t", "θ": "th", "v": "v", "w": "w", "j": "y", "z": "z", "ʒ": "zh",
    "ɚ": "er", "ɝ": "er", "ᵻ": "ih", "ʍ": "w", "ɱ": "m", "ɧ": "sh", "ɻ": "r", "ɴ": "ng", "ʙ": "b", "ɞ": "/ɜ/", "ɶ": "/œ/", "ɢ": "g",
    "ɮ": "l", "ʟ": "l", "ɠ": "g", "n̩": "ax n", "l̩": "ax l", "m̩": "ax m", "r̩": "ax /r/", "ɹ̩": "er",
}
_ENGLISH_IPA = {
    "aʊ": "aw", "aɪ": "ay", "eɪ": "ey", "oʊ": "ow", "əʊ": "ow", "ɔɪ": "oy", "ɜː": "er", "ɜ": "er", "aɪɚ": "ay er", "aɪə": "ay ax",
    "ɐ": "ax", "ɒ": "aa", "a": "ae", "e": "eh", "eə": "eh r", "ʊə": "uh r", "iə": "iy ax", "o": "ow", "oː": "ow", "eː": "ey",
    "r": "r", "ɾ": "t", "ʔ": "t", "x": "k", "ɬ": "l", "ɑ̃": "aa n", "ɔ̃": "ao n", "ɫ": "l", "ɑː": "aa", "ɔː": "ao", "iː": "iy",
    "uː": "uw",
}
_MARKS = "ˈˌːˑʰʲʷˠˤˀ'’.‿|‖-_˥˦˧˨˩12345↑↓ʼ"


def _table(pairs: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {unicodedata.normalize("NFD", key): tuple(value.split()) for key, value in pairs.items()}


_OTHERS = {phone.strip("/"): phone for phone in PHONES if phone.startswith("/")}
_IPA = {True: _table({**_OTHERS, **_SHARED, **_ENGLISH_IPA}), False: _table({**_OTHERS, **_SHARED})}
_ESPEAK_TABLE = {key: tuple(value.split()) for key, value in _ESPEAK.items()}


def inventory_hash() -> str:
    """SHA-256 (64 hex digits) of the names in order: records and checkpoints carry it, and a mismatch is refused."""
    return hashlib.sha256("\n".join(PHONES).encode()).hexdigest()


def ids(phones: Sequence[str]) -> np.ndarray:
    """Ids `[p]` int32 of phone names. Raises ValueError naming the first unknown phone."""
    for phone in phones:
        if phone not in IDS:
            raise ValueError(f"unknown phone {phone!r}; the inventory is ns2_jax.text.phones.PHONES, e.g. {' '.join(PHONES[1:8])}")
    return np.asarray([IDS[phone] for phone in phones], np.int32)


def doubled(indices: np.ndarray) -> np.ndarray:
    """Of phone ids `[p]`, which are a silence before a silence, bool `[p]`; without these, silences that meet are one."""
    silent = np.asarray(indices) == IDS[SILENCE]
    return silent & np.append(silent[1:], False)


def turns(indices: np.ndarray) -> np.ndarray:
    """Of a conversation's phone ids `[p]`, the places of those with which a turn ends: a silence before a silence, and the last phone."""
    ends = doubled(indices)
    ends[-1:] = True
    return np.flatnonzero(ends)


def names(indices: Iterable[int]) -> list[str]:
    """Phone names of ids; padding is dropped. Raises ValueError for an id outside the inventory."""
    out = []
    for index in indices:
        if not 0 <= int(index) < len(PHONES):
            raise ValueError(f"phone id {int(index)} is outside 0..{len(PHONES) - 1}")
        if index:
            out.append(PHONES[int(index)])
    return out


def from_arpabet(symbols: Iterable[str]) -> list[str]:
    """CMUdict's ARPAbet with or without stress (`AH0`, `ER1`, `b`) -> inventory; AH0 and AX are the schwa `ax`.

    Raises ValueError for a symbol that is no ARPAbet phone.
    """
    out = []
    for symbol in symbols:
        phone = "ax" if symbol.upper() == "AH0" else symbol.rstrip("012").lower()
        if phone not in IDS or phone == PADDING or phone.startswith("/"):
            raise ValueError(f"{symbol!r} is not an ARPAbet phone; expected one of {' '.join(ENGLISH)}")
        out.append(phone)
    return out


def from_flite(name: str) -> tuple[str, ...]:
    """One flite segment name -> inventory (`pau` -> `sil`). Raises ValueError for an unknown name."""
    phone = _FLITE.get(name, name)
    if not all(part in IDS for part in phone.split()) or not phone:
        raise ValueError(f"unknown flite phone {name!r}")
    return tuple(phone.split())


def from_espeak(name: str) -> tuple[str, ...]:
    """One espeak-ng mnemonic of an English voice (`'oU`, `A@`, `_:`) -> zero, one or two phones.

    Two where espeak's one segment covers two of ours (`A@` -> `aa r`): the caller splits its time. An event name
    outside the table is read as IPA, and becomes `spn` when that fails too.
    """
    bare = name if name.startswith("_") else name.strip("',%=\"")
    if bare in _ESPEAK_TABLE:
        return _ESPEAK_TABLE[bare]
    return tuple(from_ipa(bare)) or (UNKNOWN,)


def join_espeak(names_: Iterable[str]) -> list[str]:
    """A sequence of mnemonics -> phones; the linking r after an r-coloured vowel (`e@ r-` in *vary*) counts once."""
    out: list[str] = []
    for name in names_:
        for phone in from_espeak(name):
            if phone == "r" and out and (out[-1] == "r" or name.strip("',%=") == "r-" and out[-1] == "er"):
                continue
            out.append(phone)
    return out


def from_ipa(text: str, language: str = "en") -> list[str]:
    """An IPA string -> phones by longest match; stress, tone and secondary articulation are dropped.

    Length is kept outside English for vowels that have a long phone. A symbol nobody knows becomes `spn`.
    """
    english = language.lower().startswith("en")
    table = _IPA[english]
    text = unicodedata.normalize("NFD", text.replace("\u0361", "").replace("\u035c", ""))
    out: list[str] = []
    at = 0
    while at < len(text):
        for size in (4, 3, 2, 1):
            found = table.get(text[at : at + size]) if at + size <= len(text) else None
            if found is not None:
                out.extend(found)
                at += size
                break
        else:
            char = text[at]
            at += 1
            if not (char in _MARKS or char.isspace() or unicodedata.combining(char) or unicodedata.category(char) in ("Lm", "Sk", "Mn")):
                out.append(UNKNOWN)
    return out
