"""Phone times from Praat's TextGrid files, as the Montreal Forced Aligner writes them.

Long and short format, UTF-8 and UTF-16 (with a byte order mark, as Praat writes it), intervals and points. Phones are mapped by
ns2_jax.text.phones: ARPAbet (MFA's `english_us_arpa`) or IPA (its other models; English has MFA's own signs, see MFA_ENGLISH). An
interval without text is a pause.
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipelines import shards
from data_pipelines.shards import Rejected
from ns2_jax.text import phones

SILENT = frozenset(("", "sil", "sp", "pau", "<eps>", "<p>"))
UNSPOKEN = frozenset(("spn", "<unk>", "[bracketed]", "<unknown>", "<cutoff>"))
SLACK = 0.05  # seconds by which a grid may be longer or shorter than its recording, or intervals apart


@dataclasses.dataclass(frozen=True)
class Interval:
    """From `start` to `end` in seconds, what is written there."""

    start: float
    end: float
    text: str


_TOKENS = re.compile(r'"((?:[^"]|"")*)"|<(exists|absent)>|(?<![\w."])([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?![\w.\]])')


def _decode(path: pathlib.Path) -> str:
    data = path.read_bytes()
    for mark, name in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig")):
        if data.startswith(mark):
            break
    else:
        name = "utf-8"
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        raise Rejected("decode_error", f"{path} is neither UTF-8 nor UTF-16 text") from error


def read(path: str | os.PathLike) -> dict[str, list[Interval]]:
    """Tier name -> its intervals in order of time; tiers of points are left out.

    Both formats are the same strings and numbers in the same order, so what is between them is not read. Raises FileNotFoundError, and
    Rejected (`decode_error`) for another file, one cut short, or intervals that overlap or run backwards.
    """
    path = pathlib.Path(path)
    text = _decode(path)
    tokens = [(string.replace('""', '"') if number == "" and not flag else flag or float(number))
              for string, flag, number in _TOKENS.findall(re.sub(r"^\s*!.*$", "", text, flags=re.M))]
    at = 0

    def take(kind: type, what: str):
        nonlocal at
        if at >= len(tokens) or not isinstance(tokens[at], kind):
            raise Rejected("decode_error", f"{path}: expected {what}, found {'the end' if at >= len(tokens) else repr(tokens[at])}")
        at += 1
        return tokens[at - 1]

    if [token for token in tokens[:2]] != ["ooTextFile", "TextGrid"]:
        raise Rejected("decode_error", f"{path} is not a TextGrid")
    at = 2
    take(float, "the start"), take(float, "the end")
    tiers: dict[str, list[Interval]] = {}
    if take(str, "<exists>") == "absent":
        return tiers
    for _ in range(int(take(float, "the number of tiers"))):
        kind, name = take(str, "a tier's class"), take(str, "a tier's name")
        take(float, "a tier's start"), take(float, "a tier's end")
        rows = []
        for _ in range(int(take(float, "the number of intervals"))):
            if kind == "TextTier":
                take(float, "a time"), take(str, "a mark")
                continue
            rows.append(Interval(take(float, "a start"), take(float, "an end"), take(str, "a text").strip()))
        for a, b in zip(rows, rows[1:]):
            if a.end > b.start + 1e-6 or b.end < b.start:
                place = f"an interval from {b.start} to {b.end} after one that ends at {a.end}"
                raise Rejected("decode_error", f"{path}: tier {name!r} has {place}")
        if kind == "IntervalTier":
            tiers[name] = rows
    return tiers


def _tier(tiers: dict[str, list[Interval]], wanted: str, path: str | os.PathLike) -> list[Interval]:
    """The tier called `wanted`, also as MFA names those of several speakers (`anna - phones`). Raises Rejected unless there is one."""
    found = [name for name in tiers if name.lower() == wanted or name.lower().endswith(f"- {wanted}")]
    if len(found) != 1:
        raise Rejected("no_alignment", f"{path} has {len(found)} tiers of {wanted} (tiers: {sorted(tiers)}); one is expected")
    return tiers[found[0]]


MFA_ENGLISH = {unicodedata.normalize("NFD", label): tuple(names.split()) for label, names in {
    "aj": "ay", "aw": "aw", "ej": "ey", "ow": "ow", "ɔj": "oy", "əw": "ow", "ɐ": "ah", "ɒ": "ao", "ɛː": "eh r", "ʉ": "uw", "ɫ̩": "ax l",
    "c": "k", "ɟ": "g", "ɲ": "n", "ʎ": "l", "ç": "hh", "d̪": "dh", "t̪": "th", "ɾ̃": "n", "ʋ": "v"}.items()}
"""The labels of MFA's `english_mfa` and `english_us_mfa` that IPA does not write so, without length, aspiration, [ʲ] and [ʷ]."""
GLIDE = frozenset("p b m f v k g hh".split())  # American English has few, cute, human with [j], but no new


def _mfa_english(label: str, following: str) -> list[str]:
    """The phones of one of MFA's labels: [kʷ] is k w, and a palatal before [ʉ] is followed by y."""
    bare = unicodedata.normalize("NFD", label).translate(dict.fromkeys(map(ord, "ʰʲʷː")))
    names = list(MFA_ENGLISH.get(bare) or phones.from_ipa(label, "en"))
    if "ʷ" in label and following != "w":
        names.append("w")
    palatal = "ʲ" in label or label[0] in "cɟç"
    if palatal and names[-1] in GLIDE and following.startswith("ʉ"):
        names.append("y")
    return names


def _names(rows: Sequence[Interval], language: str) -> list[list[str]]:
    """The phones of every interval."""
    alphabet, out = _alphabet(rows), []
    for row, following in zip(rows, [*(row.text for row in rows[1:]), ""]):
        if row.text.lower() in SILENT:
            out.append([phones.SILENCE])
        elif row.text.lower() in UNSPOKEN:
            out.append([phones.UNKNOWN])
        elif alphabet == "arpabet":
            out.append(phones.from_arpabet([row.text]))
        else:
            english = language.lower().split("-")[0] == "en"
            out.append(_mfa_english(row.text, following) if english else phones.from_ipa(row.text, language))
    return out


def _letters(words: Iterable[str]) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFC", "".join(words)).lower()))


def _alphabet(rows: Sequence[Interval]) -> str:
    """ "arpabet" when every label is one of its symbols, else "ipa"."""
    for row in rows:
        if row.text.lower() not in SILENT | UNSPOKEN:
            try:
                phones.from_arpabet([row.text])
            except ValueError:
                return "ipa"
    return "arpabet"


def align(
    path: str | os.PathLike, samples: int, rate: int, language: str = "en", texts: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """(phone ids uint8 `[p]`, ends int32 `[p]` in samples, the last `samples`) of a recording of `samples` at `rate` Hz.

    Gaps between intervals become pauses, neighbouring pauses one; a label of two phones (a diphthong of another inventory) shares
    its time. Where the grid has a tier of words, their letters and digits must be those of one of `texts`, the ways to write what is said.

    Raises FileNotFoundError, and Rejected with a reason: `decode_error`; `no_alignment` without a tier of phones; `unknown_word` for
    what MFA could not pronounce; `word_mismatch` and `length_mismatch`; `text_unpronounceable` for a label of no inventory.
    """
    tiers = read(path)
    rows = _tier(tiers, "phones", path)
    if texts and any(name.lower().endswith("words") for name in tiers):
        spoken = [row.text for row in _tier(tiers, "words", path) if row.text.lower() not in SILENT]
        if _letters(spoken) not in map(_letters, texts):
            raise Rejected("word_mismatch", f"{path}: the grid says {' '.join(spoken)[:60]!r}, the transcript {texts[0][:60]!r}")
    seconds = samples / rate
    if not rows or all(row.text.lower() in SILENT for row in rows):
        raise Rejected("no_alignment", f"{path}: the tier of phones says nothing")
    if rows[-1].end > seconds + SLACK or (rows[-1].text.lower() not in SILENT and rows[-1].end < seconds / 2):
        raise Rejected("length_mismatch", f"{path} ends at {rows[-1].end:.3f} s, its recording at {seconds:.3f} s")
    spans: list[tuple[str, float]] = []  # (phone, end in seconds)

    def add(phone: str, end: float) -> None:
        if phone == phones.SILENCE and spans and spans[-1][0] == phone:
            spans[-1] = (phone, end)
        else:
            spans.append((phone, end))

    at = 0.0
    for row, names in zip(rows, _names(rows, language)):
        if row.end <= row.start:
            continue  # an interval of no length says nothing
        if row.start > at + 1e-6:
            add(phones.SILENCE, row.start)
        if phones.UNKNOWN in names:
            reason = "unknown_word" if row.text.lower() in UNSPOKEN else "text_unpronounceable"
            raise Rejected(reason, f"{path}: {row.text!r} at {row.start:.2f} s is no phone of the inventory")
        for i, name in enumerate(names):
            add(name, row.start + (row.end - row.start) * (i + 1) / len(names))
        at = row.end
    if seconds - at > SLACK:
        add(phones.SILENCE, seconds)
    if len(spans) > samples:
        raise Rejected("length_mismatch", f"{path} has {len(spans)} phones for {samples} samples")
    ends, place = np.rint(np.asarray([end for _, end in spans]) * rate).astype(np.int64), np.arange(len(spans))
    ends = np.maximum.accumulate(np.maximum(ends, 1) - place) + place  # each phone has a sample at least,
    ends = np.minimum(ends, samples - place[::-1]).astype(np.int32)  # and the last ends with the recording
    ends[-1] = samples
    return phones.ids([name for name, _ in spans]).astype(np.uint8), ends


def of(folder: str | os.PathLike, utt_id: str, speaker: str) -> pathlib.Path:
    """The grid of an utterance: `<utt_id>.TextGrid`, or below its speaker's folder, as MFA mirrors a corpus. Raises Rejected (`no_alignment`)."""
    name = pathlib.PurePath(utt_id).name
    for place in (utt_id, f"{speaker}/{utt_id}", f"{speaker}/{name}", name):
        if (path := pathlib.Path(folder, f"{place}.TextGrid")).exists():
            return path
    raise Rejected("no_alignment", f"{folder} has no {utt_id}.TextGrid, nor one in {speaker}/")


def listing(folder: str | os.PathLike) -> str:
    """Twelve hex digits of the names, sizes and times of all grids below `folder`, in whatever order: others have others."""
    total, waiting = 0, [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                elif entry.name.endswith(".TextGrid"):
                    about = entry.stat()
                    said = f"{os.path.relpath(entry.path, folder)} {about.st_size} {about.st_mtime_ns}".encode("utf8", "surrogateescape")
                    total += int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")
    return f"{total % (1 << 48):012x}"


def align_shard(root: str, settings: tuple[str, str, int], split: str, shard: int, total: int) -> int:
    """Writes one shard of `align`; `settings` are the folder of the grids, its `listing`, and the data set's rate in Hz.

    What has no grid that can be used stays empty, and its marker counts it.
    """
    folder, known, rate = settings

    def make(rows: dict[str, dict]) -> dict[str, np.ndarray]:
        meta = rows["meta"]
        grid = of(folder, meta["utt_id"], meta["speaker"])
        ids, ends = align(grid, meta["num_samples"], rate, meta["lang"], [meta["text_norm"], meta["text"]])
        return {"phones": ids, "ends": ends}

    empty = {"phones": np.zeros(0, np.uint8), "ends": np.zeros(0, np.int32)}
    info = {"aligner": "textgrid", "grids": known, "phones": phones.inventory_hash()}
    return shards.derive(root, "align", split, shard, total, make, empty=empty, info=info)
