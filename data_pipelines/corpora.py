"""Corpora as they lie on disk: each layout is a generator of utterances, and of rejects for what is not one.

A layout reads lists and names, never audio (but TFDS's, which has no lists), so that planning ten million utterances takes minutes.
Everything it finds comes out exactly once, as an `Utterance` or as a `Reject` with its reason.

| layout | structure |
|---|---|
| `mls` | `<split>/transcripts.txt`, `segments.txt`, `audio/<speaker>/<book>/<id>.flac` (or .opus) |
| `libritts` | `<subset>/<speaker>/<chapter>/<id>.wav` beside `<id>.normalized.txt` |
| `vctk` | `wav48_silence_trimmed/<speaker>/<id>_mic1.flac` (0.92) or `wav48/<speaker>/<id>.wav`, `txt/<speaker>/<id>.txt` |
| `ljspeech` | `metadata.csv` of `id|text|normalised text`, `wavs/<id>.wav` |
| `manifest` | a CSV or TSV file with a header |
| `folder` | audio files, each beside a .txt or .lab of its name; or one file of `id|text` lines |
| `kaldi` | `wav.scp`, `text`, `utt2spk`, and `segments`, `utt2lang` where there are |
| `tfds` | a prepared data set of TensorFlow Datasets (`file_format=array_record`) |
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import pathlib
import re
import shlex
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A recording, or the part from `start` to `end` (seconds) of one, with its transcript.

    `path` is an audio file, or `tfds:NAME:SPLIT?...#i`. `split` is the corpus's own ("" where it has none), `source` says where
    the recording comes from.
    """

    utt_id: str
    path: str
    speaker: str
    text: str
    book: str = ""
    lang: str = "en"
    start: float | None = None
    end: float | None = None
    split: str = ""
    source: str = "recording"


@dataclasses.dataclass(frozen=True)
class Reject:
    """Something in the corpus that is no utterance; `reason` is one word."""

    item: str
    reason: str
    detail: str


Found = Iterator[Utterance | Reject]

# Reading lists ------------------------------------------------------------------------------------------------------


def _folder(root: str | os.PathLike, *parts: str) -> pathlib.Path:
    path = pathlib.Path(root, *parts)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder")
    return path


def _lines(path: str | os.PathLike) -> Iterator[tuple[str, str]]:
    """(`file:number`, line) of every line that is not blank. Raises FileNotFoundError, or ValueError for what is not UTF-8."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error


def _table(path: str | os.PathLike, wanted: bool = True) -> tuple[dict[str, str], list[Reject]]:
    """(Kaldi's `key value...` lines, rejects): a key's first line counts. Empty for a file that is neither there nor `wanted`."""
    table: dict[str, str] = {}
    rejects: list[Reject] = []
    if not wanted and not pathlib.Path(path).exists():
        return table, rejects
    for at, line in _lines(path):
        key, *value = line.split(None, 1)
        if key in table:
            rejects.append(Reject(at, "duplicate_id", f"{key} has a line before"))
        else:
            table[key] = value[0].strip() if value else ""
    return table, rejects


def _text(path: pathlib.Path) -> str | None:
    """The text of a small file, None where there is none. Raises ValueError for what is not UTF-8."""
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error


def _audio(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Audio files below `root`, in order of their paths."""
    for folder, names, files in os.walk(root):
        names.sort()
        yield from (pathlib.Path(folder, name) for name in sorted(files) if name.lower().endswith(SUFFIXES))


def read_transcripts(path: str | os.PathLike) -> tuple[dict[str, str | None], list[Reject]]:
    """(id -> text, rejects): the last column of each `id|text` line. Raises FileNotFoundError, or ValueError when no line is one.

    An id with two different texts is None, for either may be wrong.
    """
    texts: dict[str, str | None] = {}
    rejects = []
    for at, line in _lines(path):
        columns = [column.strip() for column in line.split("|")]
        name = columns[0]
        if len(columns) < 2 or not name:
            rejects.append(Reject(at, "bad_line", "expected id|text"))
            continue
        name = name[: -len(pathlib.Path(name).suffix)] if pathlib.Path(name).suffix.lower() in SUFFIXES else name
        text = next((column for column in reversed(columns[1:]) if column), "")
        if name in texts:
            rejects.append(Reject(at, "duplicate_id", f"{name} has a line before"))
            texts[name] = text if texts[name] == text else None
        else:
            texts[name] = text
    if not texts:
        raise ValueError(f"{path} has no line of the form id|text")
    return texts, rejects


# Layouts ------------------------------------------------------------------------------------------------------------


def transcribed(wavs: str | os.PathLike, transcripts: str | os.PathLike, speaker: str = "", lang: str = "en") -> Found:
    """Audio files below `wavs` and a file of `id|text` lines, where the id is a file's name or its path below `wavs`, without suffix.

    The speaker is `speaker`, else the first folder below `wavs`, else the folder around `wavs`.
    """
    root = _folder(wavs)
    texts, rejects = read_transcripts(transcripts)
    yield from rejects
    used: set[str] = set()
    for path in _audio(root):
        below = path.relative_to(root)
        long = below.with_suffix("").as_posix()
        name = long if long in texts else below.stem
        reason = (
            ("no_transcript", "no line in the transcripts has its id") if name not in texts
            else ("duplicate_id", "another file has the same id") if name in used
            else ("ambiguous_transcript", "two lines with different texts have its id") if texts[name] is None
            else ("empty_text", "its line has no text") if not texts[name]
            else None
        )  # fmt: skip
        used.add(name)
        if reason:
            yield Reject(str(path), *reason)
            continue
        who = speaker or (below.parts[0] if len(below.parts) > 1 else root.resolve().parent.name) or "speaker"
        yield Utterance(name, str(path), who, texts[name], lang=lang)
    yield from (Reject(name, "no_audio", "no file has its id") for name in sorted(set(texts) - used))


def ljspeech(root: str | os.PathLike, speaker: str = "LJ") -> Found:
    """LJSpeech 1.1, and every corpus of one speaker that is laid out like it."""
    return transcribed(_folder(root, "wavs"), pathlib.Path(root, "metadata.csv"), speaker)


def folder(root: str | os.PathLike, transcripts: str = "", speaker: str = "", lang: str = "en") -> Found:
    """Audio files below `root`; the text of each is in a .txt or .lab beside it, or in `transcripts` (see `transcribed`).

    The speaker is `speaker`, else the first folder below `root`, else `root`'s own name. A file without text has the text ""; the
    stage refuses it unless the config says `transcribed=False`.
    """
    if transcripts:
        yield from transcribed(root, transcripts, speaker, lang)
        return
    top = _folder(root)
    for path in _audio(top):
        below = path.relative_to(top)
        texts = (_text(path.with_suffix(suffix)) for suffix in (".txt", ".lab"))
        who = speaker or (below.parts[0] if len(below.parts) > 1 else top.resolve().name)
        yield Utterance(below.with_suffix("").as_posix(), str(path), who, next((text for text in texts if text), ""), lang=lang)


def _segments(path: pathlib.Path) -> Callable[[str], str]:
    """`id -> url#t=start,end` of MLS's segments.txt, "mls" where it says nothing. Asked in the file's order it remembers nothing."""
    rows = (line.split() for _, line in _lines(path)) if path.is_file() else iter(())
    passed: dict[str, str] = {}

    def source(utt_id: str) -> str:
        while utt_id not in passed and (words := next(rows, None)):
            if len(words) == 4:
                passed[words[0]] = f"{words[1]}#t={words[2]},{words[3]}"
        return passed.pop(utt_id, "mls")

    return source


MLS_SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def mls(root: str | os.PathLike, lang: str = "en", subsets: Sequence[str] = ("train", "dev", "test")) -> Found:
    """Multilingual LibriSpeech, FLAC or Opus. Its transcripts have no case and no punctuation.

    `segments.txt` says which part of which LibriVox chapter an utterance is; that becomes its source.
    """
    top = _folder(root)
    there = [name for name in subsets if (top / name / "transcripts.txt").is_file()]
    if not there:
        raise FileNotFoundError(f"{top} has none of {[f'{name}/transcripts.txt' for name in subsets]}; it is no language of MLS")
    for name in there:
        audio = _folder(top, name, "audio")
        kind = next((path.suffix for path in _audio(audio)), ".flac")
        source = _segments(top / name / "segments.txt")
        for at, line in _lines(top / name / "transcripts.txt"):
            utt_id, _, text = line.partition("\t")
            parts = utt_id.strip().split("_")
            if len(parts) != 3:
                yield Reject(at, "bad_line", "expected speaker_book_number, a tab and the text")
                continue
            path = f"{audio}/{parts[0]}/{parts[1]}/{utt_id}{kind}"
            yield Utterance(utt_id, path, parts[0], text.strip().lower(), parts[1], lang, split=MLS_SPLITS[name], source=source(utt_id))


def libritts(root: str | os.PathLike, subsets: Sequence[str] = (), text: str = "normalized") -> Found:
    """LibriTTS and LibriTTS-R: all subsets that are there, or `subsets`. `text` is `normalized` or `original`."""
    top = _folder(root)
    there = sorted(path.name for path in top.iterdir() if re.fullmatch(r"(train|dev|test)-(clean|other).*", path.name))
    if strange := [name for name in subsets if name.split("-")[0] not in ("train", "dev", "test")]:
        raise ValueError(f"config.layout.subsets has {strange[0]!r}; LibriTTS has names like train-clean-100 and dev-other (here: {there})")
    for name in subsets or there:
        split = {"train": "train", "dev": "valid", "test": "test"}[name.split("-")[0]]
        for path in _audio(_folder(top, name)):
            speaker, book = path.relative_to(top / name).parts[:2] if len(path.relative_to(top / name).parts) == 3 else ("", "")
            words = _text(path.with_suffix(f".{text}.txt"))
            if not speaker:
                yield Reject(str(path), "bad_place", "expected <subset>/<speaker>/<chapter>/<file>")
            elif words is None:
                yield Reject(str(path), "no_transcript", f"there is no {path.stem}.{text}.txt beside it")
            else:
                yield Utterance(path.stem, str(path), speaker, words, book, split=split, source="libritts")
    if not there:
        raise FileNotFoundError(f"{top} has no folder like train-clean-100 or dev-other; it is not LibriTTS")


def vctk(root: str | os.PathLike, microphones: Sequence[str] = ("mic1",)) -> Found:
    """VCTK 0.92 (two microphones, FLAC) and the releases before it (WAV). Recordings of other `microphones` are not part of it."""
    top = _folder(root)
    trimmed = top / "wav48_silence_trimmed"
    for path in _audio(trimmed if trimmed.is_dir() else _folder(top, "wav48")):
        speaker, name = path.parent.name, path.stem
        bare, _, microphone = name.rpartition("_") if re.search(r"_mic\d$", name) else (name, "", "")
        if microphone and microphone not in microphones:
            continue
        words = _text(top / "txt" / speaker / f"{bare}.txt")
        if words is None:
            yield Reject(str(path), "no_transcript", f"there is no txt/{speaker}/{bare}.txt (VCTK has none of p315)")
        else:
            yield Utterance(name, str(path), speaker, words, source=f"vctk {microphone}".strip())


def _rows(rows: csv.DictReader, file: pathlib.Path) -> Iterator[dict]:
    """Raises ValueError where the file cannot be read on."""
    try:
        yield from rows
    except csv.Error as error:
        raise ValueError(f"{file}:{rows.line_num}: {error}; is a quotation mark not closed?") from error


def _seconds(text: str) -> float:
    """Raises ValueError for what is no finite number."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


COLUMNS = ("path", "text", "id", "speaker", "book", "lang", "start", "end", "split")


def manifest(root: str | os.PathLike, columns: Mapping[str, str] | None = None, speaker: str = "speaker", lang: str = "en") -> Found:
    """A CSV or TSV file with a header; `columns` maps our names (COLUMNS) to the file's where they differ.

    Only `path` is needed; paths are below the file's folder unless absolute, `start` and `end` are in seconds. `speaker` and `lang` are
    for files without these columns.
    """
    file = pathlib.Path(root)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file; the manifest layout wants a .csv or .tsv")
    names = {**dict(zip(COLUMNS, COLUMNS)), **dict(columns or {})}
    if wrong := sorted(set(names) - set(COLUMNS)):
        raise ValueError(f"config.layout.columns has {wrong[0]!r}, which is none of {list(COLUMNS)}")
    with open(file, encoding="utf-8-sig", newline="") as stream:
        csv.field_size_limit(1 << 24)
        tabs = file.suffix.lower() == ".tsv"  # where a quotation mark is part of the text
        rows = csv.DictReader(stream, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
        if names["path"] not in (rows.fieldnames or ()):
            raise ValueError(f"{file} has the columns {rows.fieldnames}, none of them {names['path']!r}; say which holds the path in "
                             "config.layout.columns")
        for row in _rows(rows, file):
            at = f"{file}:{rows.line_num}"
            get = lambda name, usual="": (row.get(names[name]) or "").strip() or usual
            wrong = (
                "it has more columns than the header" if None in row
                else "it has no path" if not get("path")
                else "a field goes on in the next line: a quotation mark is not closed" if any("\n" in (value or "") for value in row.values())
                else None
            )  # fmt: skip
            if wrong:
                yield Reject(at, "bad_line", wrong)
                continue
            try:
                start, end = (_seconds(get(name)) if get(name) else None for name in ("start", "end"))
            except ValueError:
                yield Reject(at, "bad_line", f"start {get('start')!r} or end {get('end')!r} is not a number of seconds")
                continue
            name = get("id") or pathlib.PurePath(get("path")).with_suffix("").as_posix() + (f"@{start:.2f}" if start is not None else "")
            yield Utterance(name, str(file.parent / get("path")), get("speaker", speaker), get("text"), get("book"), get("lang", lang),
                            start, end, get("split"))  # fmt: skip


def _piped(value: str) -> str | None:
    """The file behind a line of `wav.scp`: itself, or what `flac -c -d` or `cat` would print; None for any other command."""
    if not value.endswith("|"):
        return value
    try:
        words = shlex.split(value[:-1])
    except ValueError:  # an open quotation
        return None
    files = [word for word in words[1:] if not word.startswith("-")]
    return files[0] if words and words[0] in ("flac", "cat") and len(files) == 1 else None


def kaldi(root: str | os.PathLike, lang: str = "en", lower: bool = False) -> Found:
    """A Kaldi data folder. Commands in `wav.scp` are not run, but for `flac -c -d FILE |` and `cat FILE |`; relative paths are below
    the working folder, as Kaldi has them. `lower` for transcripts in capitals, which would be read as abbreviations."""
    top = _folder(root)
    tables = {name: _table(top / name, wanted=name in ("wav.scp", "utt2spk")) for name in ("wav.scp", "text", "utt2spk", "utt2lang", "segments")}
    for _, rejects in tables.values():
        yield from rejects
    recordings, texts, speakers, languages, cut = (table for table, _ in tables.values())
    segments = cut or {name: name for name in recordings}
    for name, value in segments.items():
        words = value.split()
        where = recordings.get(words[0]) if words else None
        path = _piped(where) if where else None
        text = texts.get(name, "")
        try:
            start, end = (None, None) if not cut else (_seconds(words[1]), _seconds(words[2]))
            if cut and len(words) != 3:
                raise ValueError(value)
        except (ValueError, IndexError):
            yield Reject(f"{top}/segments: {name}", "bad_line", f"expected recording, start and end, not {value!r}")
            continue
        reason = (
            ("no_audio", "wav.scp has no such recording") if not where
            else ("pipe_command", f"wav.scp has a command, which is not run: {where[:60]}") if path is None
            else ("speaker_missing", "utt2spk has no such utterance") if name not in speakers
            else ("no_transcript", "text has no such utterance") if texts and name not in texts
            else None
        )  # fmt: skip
        if reason:
            yield Reject(name, *reason)
            continue
        yield Utterance(name, os.path.abspath(path), speakers[name], text.lower() if lower else text, lang=languages.get(name, lang), start=start,
                        end=end)  # fmt: skip
    yield from (Reject(name, "no_audio", "it has a text, but no segment and no recording") for name in sorted(set(texts) - set(segments)))


def tfds(
    root: str | os.PathLike, name: str = "", splits: Mapping[str, str] | None = None, columns: Mapping[str, str] | None = None,
    speaker: str = "speaker", lang: str = "en", rate: int = 0,
) -> Found:  # fmt: skip
    """A data set of TensorFlow Datasets, prepared as ArrayRecord below `root` (its `data_dir`); TensorFlow is not needed.

    `name` as in `tfds.data_source` ("libritts", "ljspeech:1.1.1"). `splits`: its split -> ours, "" for by the speaker's hash. `columns`
    maps `audio`, `text`, `id`, `speaker`, `book` to features; `rate` in Hz for audio that does not say it. Listing it reads all of it.
    """
    from data_pipelines import tfds_source

    names = {"audio": "audio", "text": "text", "id": "id", "speaker": "speaker", "book": "book", **dict(columns or {})}
    for theirs, ours in dict(splits or {"train": ""}).items():
        about = urllib.parse.urlencode({"data_dir": os.fspath(root), "audio": names["audio"], **({"rate": rate} if rate else {})})
        place = f"tfds:{name}:{theirs}?{about}"
        for i, row in enumerate(tfds_source.rows(place)):
            text = lambda key, usual: tfds_source.text(row[names[key]]) if names[key] in row else usual
            yield Utterance(text("id", f"{theirs}-{i:08d}"), f"{place}#{i}", text("speaker", speaker), text("text", ""), text("book", ""),
                            lang, split=ours, source=f"tfds {name}")  # fmt: skip


SPLITS = {"dev": "valid", "validation": "valid", "val": "valid", "eval": "test"}


def _named(found: Found) -> Found:
    """Rejects what has a name that is not UTF-8, and calls splits as we do."""
    for item in found:
        if isinstance(item, Utterance):
            try:
                f"{item.path}{item.utt_id}{item.speaker}{item.text}".encode()
                item = dataclasses.replace(item, split=SPLITS.get(item.split, item.split))
            except UnicodeEncodeError:
                item = Reject(item.path.encode("utf8", "backslashreplace").decode(), "bad_name", "its name is not UTF-8; rename it")
        else:
            item = dataclasses.replace(item, item=item.item.encode("utf8", "backslashreplace").decode())
        yield item


LAYOUTS: dict[str, Callable[..., Found]] = {
    "mls": mls, "libritts": libritts, "vctk": vctk, "ljspeech": ljspeech, "manifest": manifest, "folder": folder, "kaldi": kaldi,
    "tfds": tfds,
}  # fmt: skip


TIMED = ("kaldi", "manifest")  # layouts in which a text may come with its start and end


def find(layout: str, root: str | os.PathLike, **options) -> Found:
    """What the corpus at `root` has. Raises ValueError for an unknown layout, FileNotFoundError for one that is not there."""
    if layout not in LAYOUTS:
        raise ValueError(f"config.corpus={layout!r} is no layout; there are {sorted(LAYOUTS)}")
    if not str(root):
        raise ValueError("config.root is empty: say where the corpus is, e.g. --config.root=/data/LJSpeech-1.1")
    return _named(LAYOUTS[layout](root, **options))
