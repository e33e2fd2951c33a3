"""Brings your recordings in: `python -m data_pipelines.ingest --wavs=DIR --transcripts=FILE --out=DIR`.

`FILE` has one `id|text` or `id|text|normalised text` a line (LJSpeech's format), where the id is a file's name or its
path below `--wavs`, without suffix. WAV, FLAC, OGG and MP3 files are found in all subfolders. Writes the groups `meta`,
`audio`, `align` (phones and their ends, `--align=pocketsphinx`, English) and `f0`.

What can't be used is never mended in silence: every file and every transcript line ends up in the data set or in
`DIR/rejects.jsonl` with its reason. Running the command again goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
from collections import Counter

import numpy as np
import soundfile
from absl import flags, logging

from data_pipelines import features, shards
from ns2_jax.audio import files
from ns2_jax.data import records
from ns2_jax.runtime import cluster
from ns2_jax.text import front, phones

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
ALIGNERS = ("pocketsphinx", "none")
FULL_SCALE, CLIPPED = 0.999, 1e-3  # a recording with more than this share of samples at full scale is distorted
PER_SHARD = 500


@dataclasses.dataclass(frozen=True)
class Item:
    """A recording with its transcript."""

    utt_id: str
    path: str
    speaker: str
    text: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a data set is made with; kept in `plan.json`, so that a run that goes on makes the same one."""

    rate: int = 16000  # Hz
    align: str = "pocketsphinx"
    min_seconds: float = 0.5
    max_seconds: float = 30.0
    valid: int = 20
    level: bool = True  # bring every recording to the level that prompts are brought to (audio.files.LEVEL)


def read_transcripts(path: str | os.PathLike) -> tuple[dict[str, str], list[dict[str, str]]]:
    """(id -> text, rejects): the last column of each line. Raises FileNotFoundError, or ValueError when no line is `id|text`.

    An id with two different texts is left out, for either may be wrong.
    """
    texts: dict[str, str] = {}
    rejects, ambiguous = [], set()
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--transcripts={path} is not UTF-8 text") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        columns = [column.strip() for column in line.split("|")]
        name, at = columns[0], f"{path}:{number}"
        if len(columns) < 2 or not name:
            rejects.append({"item": at, "reason": "bad_line", "detail": "expected id|text"})
            continue
        name = name[: -len(pathlib.Path(name).suffix)] if pathlib.Path(name).suffix.lower() in SUFFIXES else name
        text = next((column for column in reversed(columns[1:]) if column), "")
        if name in texts:
            rejects.append({"item": at, "reason": "duplicate_id", "detail": f"{name} has a line before"})
            if texts[name] != text:
                ambiguous.add(name)
        else:
            texts[name] = text
    if not texts:
        raise ValueError(f"--transcripts={path} has no line of the form id|text")
    return {name: "" if name in ambiguous else text for name, text in texts.items()} | {name: None for name in ambiguous}, rejects


def find(wavs: str | os.PathLike, transcripts: str | os.PathLike, speaker: str = "") -> tuple[list[Item], list[dict[str, str]], int]:
    """(items, rejects, inputs): files paired with texts, in order of their ids.

    `inputs` counts the files and the transcript lines without a file of their own. The speaker is `speaker`, else the first
    folder below `wavs`, else the folder around `wavs`. Raises FileNotFoundError for a missing folder or file, ValueError
    when the folder holds no audio file.
    """
    root = pathlib.Path(wavs)
    if not root.is_dir():
        raise FileNotFoundError(f"--wavs={wavs} is not a folder")
    if not pathlib.Path(transcripts).is_file():
        raise FileNotFoundError(f"--transcripts={transcripts} is not a file")
    texts, rejects = read_transcripts(transcripts)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"--wavs={wavs} has no audio files ({' '.join(SUFFIXES)})")
    inputs = len(paths) + len(rejects)
    items: list[Item] = []
    used: set[str] = set()
    for path in paths:
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
            rejects.append({"item": str(path), "reason": reason[0], "detail": reason[1]})
            continue
        who = speaker or (below.parts[0] if len(below.parts) > 1 else root.resolve().parent.name) or "speaker"
        items.append(Item(name, str(path), who, texts[name]))
    for name in sorted(set(texts) - used):
        inputs += 1
        rejects.append({"item": name, "reason": "no_audio", "detail": "no file has its id"})
    return sorted(items, key=lambda item: item.utt_id), rejects, inputs


def assign_splits(items: list[Item], valid: int) -> dict[str, list[Item]]:
    """`valid` items (at most a tenth) by the hash of their id: adding recordings keeps most of them where they were."""
    number = min(valid, len(items) // 10)
    chosen = set(sorted((hashlib.sha256(item.utt_id.encode()).digest(), item.utt_id) for item in items)[:number])
    held = {name for _, name in chosen}
    splits = {"train": [item for item in items if item.utt_id not in held], "valid": [item for item in items if item.utt_id in held]}
    return {split: members for split, members in splits.items() if members}


def prepare(item: Item, settings: Settings) -> dict[str, dict]:
    """Group -> record of one recording. Raises files.AudioError and `Rejected` with a reason."""
    audio = files.read(item.path, settings.rate, settings.min_seconds, settings.max_seconds)
    share = np.mean(np.abs(soundfile.read(item.path, dtype="float32")[0]) >= FULL_SCALE)  # before resampling rounds it off
    if share > CLIPPED:
        raise Rejected("clipped", f"{share:.1%} of the samples are at full scale")
    if settings.level:
        audio = files.match_loudness(audio, settings.rate)
    try:
        spoken = front.normalise(item.text)
        front.phonemise(item.text)
    except ValueError as error:
        raise Rejected("unpronounceable", str(error)) from error
    who = {"speaker": item.speaker, "source": "recording", "voice": item.speaker}
    values = {
        "meta": {"utt_id": item.utt_id, **who, "text": item.text, "text_norm": spoken},
        "audio": {"audio": np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)},
    }
    if settings.align == "pocketsphinx":
        from data_pipelines import align  # only this stage needs the recogniser

        try:
            ids, ends = align.align(audio, settings.rate, item.text)
        except ValueError as error:
            raise Rejected("align_failed", str(error)) from error
        values["align"] = {"phones": ids, "ends": ends}
    return values


class Rejected(ValueError):
    """A recording that is left out; `reason` is one word."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def _rejects_path(root: pathlib.Path, split: str, shard: int) -> pathlib.Path:
    return root / "rejects" / f"{split}-{shard:05d}.jsonl"


def process_shard(root: str, splits: dict[str, list[Item]], settings: Settings, k: int) -> None:
    """Writes shard `k` of all groups and its list of rejects; `k` counts through the shards of all splits."""
    for split, members in splits.items():
        count = shards.shards_for(len(members), PER_SHARD)
        if k < count:
            break
        k -= count
    groups = ["audio", "meta"] + (["align"] if settings.align != "none" else [])
    if shards.committed(root, groups, split, k, count):
        return
    tools = {"soundfile": soundfile.__version__}
    writers = {group: shards.ShardWriter(root, group, split, k, count, tools=tools) for group in groups}
    rejects = []
    try:
        for item in members[k::count]:
            try:
                values = prepare(item, settings)
            except (files.AudioError, Rejected) as error:
                rejects.append({"item": item.path, "reason": error.reason, "detail": str(error)})
                writers["meta"].reject(error.reason)
                continue
            samples = len(values["audio"]["audio"])
            for group, writer in writers.items():
                writer.write(values[group], samples)
        shards.write_lines(_rejects_path(pathlib.Path(root), split, k), rejects)
        for writer in writers.values():
            writer.commit()
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise


def ingest(
    wavs: str | os.PathLike,
    transcripts: str | os.PathLike,
    out: str | os.PathLike,
    *,
    speaker: str = "",
    settings: Settings = Settings(),
    workers: int = 1,
    f0: bool = True,
) -> dict[str, int]:
    """Makes the data set and returns {"in": ..., "out": ..., reason: count}, where in = out + all reasons.

    Raises FileNotFoundError for missing inputs; ImportError for a missing package; ValueError when `out` holds a data set of
    other recordings or settings, or when nothing is left.
    """
    if settings.align not in ALIGNERS:
        raise ValueError(f"--align={settings.align} is not one of {ALIGNERS}")
    front.phonemise("one")  # a package that is missing is no reason to reject every recording
    if settings.align == "pocketsphinx" and importlib.util.find_spec("pocketsphinx") is None:
        raise ImportError("--align=pocketsphinx needs the package pocketsphinx: pip install -e '.[eval]'; or give --align=none")
    items, rejects, inputs = find(wavs, transcripts, speaker)
    root = pathlib.Path(out)
    digest = hashlib.sha256(json.dumps([dataclasses.astuple(item) for item in items]).encode()).hexdigest()
    plan = {"command": "ingest", "items": digest, **dataclasses.asdict(settings)}
    path = root / "plan.json"
    if root.exists() and not path.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"--out={out} exists and was not made by this command; choose a new or empty folder")
    root.mkdir(parents=True, exist_ok=True)
    if path.exists() and json.loads(path.read_text()) != plan:
        raise ValueError(f"--out={out} was made from other recordings, transcripts or settings; choose another folder or delete it")
    records.write_atomic(path, json.dumps(plan, indent=1).encode() + b"\n")
    splits = assign_splits(items, settings.valid)
    total = sum(shards.shards_for(len(members), PER_SHARD) for members in splits.values())
    shards.run_shards(functools.partial(process_shard, str(root), splits, settings), total, workers, "recordings")
    for split, members in splits.items():
        for k in range(shards.shards_for(len(members), PER_SHARD)):
            rejects += [json.loads(line) for line in _rejects_path(root, split, k).read_text().splitlines()]
    shards.write_lines(root / "rejects.jsonl", rejects)
    reasons = Counter(row["reason"] for row in rejects)
    if not splits:
        raise ValueError(f"no recording can be used; see {root / 'rejects.jsonl'} ({dict(reasons)})")
    manifest = shards.write_manifest(
        root, name=root.name, sample_rate=settings.rate, f0_period=settings.rate // 100, phones=phones.inventory_hash(),
        needed=["align"] if settings.align != "none" else []
    )
    kept = sum(split["records"] for split in manifest["splits"].values())
    if inputs != kept + sum(reasons.values()):
        raise RuntimeError(f"{inputs} inputs but {kept} records and {dict(reasons)} rejects: a recording was lost")
    if not kept:
        raise ValueError(f"no recording can be used; see {root / 'rejects.jsonl'} ({dict(reasons)})")
    if f0:
        features.add_f0(root)
    return {"in": inputs, "out": kept, **reasons}


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    for name in ("wavs", "transcripts", "out"):
        if not given[name].value:
            raise ValueError(f"--{name} is empty; see --help")
    cluster.start(lambda line: None)
    settings = Settings(given.rate, given.align, given.min_seconds, given.max_seconds, given.valid, given.level)
    counts = ingest(given.wavs, given.transcripts, given.out, speaker=given.speaker, settings=settings, workers=given.workers, f0=given.f0)
    logging.info("%d in, %d out; rejects: %s", counts.pop("in"), counts.pop("out"), counts or "none")


if __name__ == "__main__":
    flags.DEFINE_string("wavs", "", "folder of recordings")
    flags.DEFINE_string("transcripts", "", "file of id|text or id|text|normalised text lines")
    flags.DEFINE_string("out", "", "the data set to make")
    flags.DEFINE_string("speaker", "", "who speaks; empty: the folder's name")
    flags.DEFINE_enum("align", "pocketsphinx", ALIGNERS, "how phone times are found")
    flags.DEFINE_integer("valid", 20, "utterances kept for validation (at most a tenth)", lower_bound=0)
    flags.DEFINE_integer("rate", 16000, "sample rate in Hz of the data set", lower_bound=8000)
    flags.DEFINE_float("min_seconds", 0.5, "shortest recording", lower_bound=0.05)
    flags.DEFINE_float("max_seconds", 30.0, "longest recording")
    flags.DEFINE_bool("level", True, "bring every recording to one loudness, that of prompts at synthesis")
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "processes", lower_bound=0)
    flags.DEFINE_bool("f0", True, "track F0 too")
    cluster.run(main)
