"""Brings your recordings in: `python -m data_pipelines.ingest --wavs=DIR --transcripts=FILE --out=DIR`.

`FILE` has one `id|text` or `id|text|normalised text` a line (LJSpeech's format), where the id is a file's name or its
path below `--wavs`, without suffix. WAV, FLAC, OGG and MP3 files are found in all subfolders. Writes the groups `meta`,
`audio`, `align` (phones and their ends, `--align=pocketsphinx`, English) and `f0`.

What can't be used is never mended in silence: every file and every transcript line ends up in the data set or in
`DIR/rejects.jsonl` with its reason. `--trim=40` cuts silence off both ends. Running the command again goes on where it stopped.

This is the short way in for a folder of recordings; `python -m data_pipelines.run` brings in whole corpora with the same functions:
`plans.plan` lists what each shard holds, `ingest_shard` makes one shard of `meta` and `audio`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import soundfile
from absl import flags, logging

from data_pipelines import corpora, pauses, plans, shards, transcripts
from data_pipelines.corpora import Reject, Utterance
from data_pipelines.shards import Rejected
from ns2_jax.audio import files
from ns2_jax.data import records
from ns2_jax.text import front, phones, sphinx

ALIGNERS = ("pocketsphinx", "none")
FULL_SCALE, CLIPPED = 0.999, 1e-3  # a recording with more than this share of samples at full scale is distorted
FEW = 10  # rejects for one reason that are never too many
OVERHANG = 0.05  # seconds that a segment may reach beyond its recording: lists are rounded


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a data set is made with; kept in `plan.json`, so that a run that goes on makes the same one."""

    rate: int = 16000  # Hz
    align: str = "pocketsphinx"  # in the same go, so that what can't be aligned is left out; "none" leaves it to the stage `align`
    min_seconds: float = 0.5
    max_seconds: float = 30.0
    valid: int = 20
    level: bool = True  # bring every recording to the level that prompts are brought to (audio.files.LEVEL)
    transcribed: bool = True  # whether a recording without text is refused
    lexicon: str = ""  # a file of `word  PH OW1 N Z` lines; it says which texts can be spoken, and may change
    trim: float = 0.0  # dB below the loudest 20 ms under which both ends are silence and cut, but for 50 ms; 0: nothing is cut
    split_seconds: float = 0.0  # longer recordings are cut at their pauses (pauses.py); 0: none


# Planning ------------------------------------------------------------------------------------------------------------


def settled(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan says of its settings: `trim` and `split_seconds` only where they are used, because older plans lack them."""
    return {key: value for key, value in about.items() if key != "lexicon" and (value or key not in ("trim", "split_seconds"))}


def check_seconds(least: float, most: float) -> None:
    """Raises ValueError where no recording can be as long as that."""
    if not 0 < least < most < math.inf:
        raise ValueError(f"min_seconds={least} and max_seconds={most}; expected 0 < min_seconds < max_seconds, and finite")


def find(wavs: str | os.PathLike, texts: str | os.PathLike, speaker: str = "") -> tuple[list[Utterance], list[dict[str, str]], int]:
    """(items, rejects, inputs): files paired with texts, in order of their ids; see `corpora.transcribed`.

    `inputs` counts the files and the transcript lines without a file of their own. Raises FileNotFoundError for a missing folder or
    file, ValueError when the folder holds no audio file.
    """
    found = list(corpora.transcribed(wavs, texts, speaker))
    items = sorted((item for item in found if isinstance(item, Utterance)), key=lambda item: item.utt_id)
    rejects = [dataclasses.asdict(item) for item in found if isinstance(item, Reject)]
    if not items and not any(row["item"].lower().endswith(corpora.SUFFIXES) for row in rejects):
        raise ValueError(f"--wavs={wavs} has no audio files ({' '.join(corpora.SUFFIXES)})")
    return items, rejects, len(found)


def assign_splits(items: list[Utterance], valid: int) -> list[Utterance]:
    """`valid` items (at most a tenth) by the hash of their id: adding recordings keeps most of them where they were."""
    number = min(valid, len(items) // 10)
    held = set(sorted((hashlib.sha256(item.utt_id.encode()).digest(), item.utt_id) for item in items)[:number])
    names = {name for _, name in held}
    return [dataclasses.replace(item, split="valid" if item.utt_id in names else "train") for item in items]


# One shard -----------------------------------------------------------------------------------------------------------


def read(item: Utterance, settings: Settings) -> tuple[np.ndarray, float]:
    """(audio float32 `[s]` at `settings.rate`, share of samples at full scale before resampling rounds them off).

    Raises files.AudioError, and Rejected for a segment that lies outside its recording.
    """
    if item.path.startswith("tfds:"):
        from data_pipelines import tfds_source

        samples, rate = tfds_source.read(item.path)
    else:
        with files.Recording(item.path) as recording:
            rate, frames = recording.rate, recording.frames
            start = 0 if item.start is None else round(item.start * rate)
            end = frames if item.end is None or item.end < 0 else round(item.end * rate)  # Kaldi writes -1 for the end
            begins_inside = 0 <= start < max(min(end, frames), 1)  # a recording that holds nothing is named below
            if not begins_inside or end > frames + OVERHANG * rate:
                raise Rejected("bad_segment", f"{item.path} has {frames / rate:.2f} s, the segment is {item.start} to {item.end}")
            if min(end, frames) - start > settings.max_seconds * rate:
                raise files.AudioError("long", f"{item.path}: {(end - start) / rate:.0f} s long, at most {settings.max_seconds:g} s are taken")
            samples = recording.read(start, end)
    audio = files.check(samples, rate, item.path, settings.min_seconds, settings.max_seconds)
    loudest = np.abs(samples.astype(np.float32) / (1 if samples.dtype.kind == "f" else -float(np.iinfo(samples.dtype).min)))
    return files.resample(audio, rate, settings.rate), float(np.mean(loudest >= FULL_SCALE))


@functools.lru_cache(maxsize=1)
def _lexicon(path: str) -> dict[str, tuple[str, ...]]:
    return front.read_lexicon(path or None)


def prepare(item: Utterance, settings: Settings) -> dict[str, dict]:
    """Group -> record of one recording. Raises files.AudioError and `Rejected` with a reason."""
    audio, share = read(item, settings)
    if settings.trim:
        before, audio = len(audio) / settings.rate, files.trim_silence(audio, settings.rate, settings.trim)
        if (left := len(audio) / settings.rate) < settings.min_seconds:
            raise files.AudioError("short", f"{item.path}: {left:.2f} s long (of {before:.2f} s, after trim={settings.trim:g}), at least "
                                   f"{settings.min_seconds:g} s are needed")  # fmt: skip
    if share > CLIPPED:
        raise Rejected("clipped", f"{share:.1%} of the samples are at full scale")
    if settings.level:
        audio = files.match_loudness(audio, settings.rate)
    spoken = ""
    if item.text.strip() or settings.transcribed:
        if not item.text.strip():
            raise Rejected("empty_text", "it has no text")
        table = _lexicon(settings.lexicon)
        spoken = transcripts.normalise(item.text, item.lang, table)
        transcripts.phonemise(item.text, item.lang, table)
    who = {"speaker": item.speaker, "source": item.source, "voice": item.speaker, "book": item.book, "lang": item.lang}
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


def ingest_shard(root: str, settings: Settings, split: str, shard: int, total: int) -> None:
    """Writes one shard of `meta` and `audio` (and `align`, when `settings` says so) and its list of rejects."""
    groups = ["audio", "meta"] + (["align"] if settings.align != "none" else [])
    lists = [shards.rejects_path(root, split, shard)] + ([pieces_path(root, split, shard)] if settings.split_seconds else [])
    if shards.committed(root, groups, split, shard, total) and _agree(root, groups, split, shard, total):
        if shards.listed(root, "meta", split, shard, total) and all(path.exists() for path in lists):
            return
    lines = plans.read_list(plans.list_path(root, split, shard, total))
    sphinx.restart()  # the recogniser adapts to what it hears: a shard must not depend on the shard before it
    tools = {"soundfile": soundfile.__version__}
    writers = {group: shards.ShardWriter(root, group, split, shard, total, tools=tools) for group in groups}
    rejects, pieces = [], []

    def refuse(item: Utterance, error: files.AudioError | Rejected) -> None:
        rejects.append({"item": item.path, "reason": error.reason, "detail": str(error)})
        writers["meta"].reject(error.reason)

    with records.committing(writers):
        for whole in (Utterance(**json.loads(line)) for line in lines):
            try:
                items = pauses.split(whole, settings.split_seconds, settings.min_seconds, settings.trim or pauses.BELOW_DB) if (
                    settings.split_seconds) else [whole]  # fmt: skip
            except (files.AudioError, Rejected) as error:
                refuse(whole, error)
                continue
            if len(items) > 1:
                pieces += [{"of": whole.utt_id, "utt_id": item.utt_id, "start": item.start, "end": item.end} for item in items]
            for item in items:
                try:
                    values = prepare(item, settings)
                except (files.AudioError, Rejected) as error:
                    refuse(item, error)
                    continue
                samples = len(values["audio"]["audio"])
                for group, writer in writers.items():
                    writer.write(values[group], samples)
        for path, rows in zip(lists, (rejects, pieces)):
            shards.write_lines(path, rows)


def _agree(root: str, groups: Iterable[str], split: str, shard: int, total: int) -> bool:
    """Whether the groups of a shard hold the same utterances: killed between two of them, one may be older."""
    paths = [records.marker_path(records.shard_path(root, group, split, shard, total)) for group in groups]
    markers = [records.load_marker(path.read_bytes(), path) for path in paths]
    return len({(marker["records"], marker["samples"]) for marker in markers}) == 1


def pieces_path(root: str | os.PathLike, split: str, shard: int) -> pathlib.Path:
    """Where the pieces of a shard's recordings that were split are listed, with their seconds."""
    return pathlib.Path(root) / "pieces" / f"{split}-{shard:05d}.jsonl"


def task(function: Callable[..., Any], root: str, settings: Any, splits: Mapping[str, int], k: int) -> Any:
    """`function(root, settings, split, shard, total)` for the `k`-th shard of all splits (split -> shards)."""
    for split, total in splits.items():
        if k < total:
            return function(root, settings, split, k, total)
        k -= total
    raise ValueError(f"there are {sum(splits.values())} shards")


def _rows(paths: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """Raises ValueError when `ingest` has not written all of them, and records.Corrupt when one is damaged."""
    found = []
    for path in paths:
        try:
            found += [json.loads(line) for line in path.read_text().splitlines()]
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename} is missing: ingest has not ended; run it again") from error
        except ValueError as error:
            raise records.Corrupt(f"{path} is damaged; delete it and run ingest again") from error
    return found


def balance(root: str | os.PathLike, made: Mapping[str, Any], needed: Iterable[str] = ()) -> dict[str, int]:
    """Writes `rejects.jsonl` and the manifest and returns {"in": ..., "out": ..., reason: count}, where in = out + all reasons.

    Where recordings were split, "split" and "pieces" are how many and into how many: in - split + pieces = out + all reasons. `made` is
    what `plan` returned. Raises ValueError when nothing is left, RuntimeError when something was lost.
    """
    root = pathlib.Path(root)
    numbers = [(split, k) for split, about in made["splits"].items() for k in range(about["shards"])]
    rejects = [json.loads(line) for line in plans.read_list(root / "plan" / "rejects.jsonl")]
    rejects += _rows(shards.rejects_path(root, *at) for at in numbers)
    pieces = _rows(pieces_path(root, *at) for at in numbers) if made.get("split_seconds") else []
    divided = len({row["of"] for row in pieces})
    shards.write_lines(root / "rejects.jsonl", rejects)
    reasons = collections.Counter(row["reason"] for row in rejects)
    if not made["splits"]:
        raise ValueError(f"no recording can be used; see {root / 'rejects.jsonl'} ({dict(reasons)})")
    rate = made["rate"]
    manifest = shards.write_manifest(root, name=root.name, sample_rate=rate, f0_period=rate // 100, phones=phones.inventory_hash(),
                                     needed=list(needed))  # fmt: skip
    kept = sum(split["records"] for split in manifest["splits"].values())
    if made["inputs"] - divided + len(pieces) != kept + sum(reasons.values()):
        parts = f", {divided} of them split into {len(pieces)}," if divided else ""
        raise RuntimeError(f"{made['inputs']} inputs{parts} but {kept} records and {dict(reasons)} rejects: a recording was lost")
    if not kept:
        raise ValueError(f"no recording can be used; see {root / 'rejects.jsonl'} ({dict(reasons)})")
    return {"in": made["inputs"], "out": kept, **({"split": divided, "pieces": len(pieces)} if pieces else {}), **reasons}


def too_many(count: int, inputs: int, most: float) -> bool:
    """Whether `count` rejects for one reason are more than `most` (a share) of the `inputs`, and more than FEW."""
    return count > max(most * inputs, FEW)


def check_rejects(root: str | os.PathLike, inputs: int, most: float) -> None:
    """Raises ValueError when a reason has `too_many` of the `inputs` in `rejects.jsonl`."""
    examples: dict[str, list[dict]] = collections.defaultdict(list)
    for line in (pathlib.Path(root) / "rejects.jsonl").read_text().splitlines():
        row = json.loads(line)
        examples[row["reason"]].append(row)
    for reason, rows in sorted(examples.items(), key=lambda item: -len(item[1])):
        if too_many(len(rows), inputs, most):
            raise ValueError(f"{len(rows)} of {inputs} utterances ({len(rows) / inputs:.0%}) were rejected as {reason!r}, more than "
                             f"config.max_rejects={most:g} allows; for example {rows[0]['item']}: {rows[0]['detail']}. See "
                             f"{pathlib.Path(root) / 'rejects.jsonl'}; mend the corpus and make the data set again in "
                             "another folder, or allow more to go on with the rest")


# The command ---------------------------------------------------------------------------------------------------------


def ingest(
    wavs: str | os.PathLike,
    texts: str | os.PathLike,
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
    if not 0 <= settings.trim < math.inf:
        raise ValueError(f"--trim={settings.trim}: expected a finite number of dB, e.g. 40, or 0 to cut nothing")
    check_seconds(settings.min_seconds, settings.max_seconds)
    front.phonemise("one")  # a package that is missing is no reason to reject every recording
    if settings.align == "pocketsphinx" and importlib.util.find_spec("pocketsphinx") is None:
        raise ImportError("--align=pocketsphinx needs the package pocketsphinx: pip install -e '.[eval]'; or give --align=none")
    items, rejects, _ = find(wavs, texts, speaker)
    digest = hashlib.sha256(json.dumps([dataclasses.astuple(item) for item in items]).encode()).hexdigest()
    about = {"command": "ingest", "items": digest, **settled(dataclasses.asdict(settings))}
    found = [*assign_splits(items, settings.valid), *(Reject(**row) for row in rejects)]
    made = plans.plan(out, found, about, lambda item: item.split)
    splits = {split: about["shards"] for split, about in made["splits"].items()}
    work = functools.partial(task, ingest_shard, str(out), settings, splits)
    shards.run_shards(work, sum(splits.values()), workers, "recordings")
    counts = balance(out, made, ["align"] if settings.align != "none" else [])
    if f0:
        from data_pipelines import features  # imports jax, which the workers do without

        features.add_f0(out)
    return counts


def main(argv: list[str]) -> None:
    del argv
    from ns2_jax.runtime import cluster

    given = flags.FLAGS
    for name in ("wavs", "transcripts", "out"):
        if not given[name].value:
            raise ValueError(f"--{name} is empty; see --help")
    cluster.start(lambda line: None)
    settings = Settings(given.rate, given.align, given.min_seconds, given.max_seconds, given.valid, given.level, trim=given.trim)
    counts = ingest(given.wavs, given.transcripts, given.out, speaker=given.speaker, settings=settings, workers=given.workers, f0=given.f0)
    logging.info("%d in, %d out; rejects: %s", counts.pop("in"), counts.pop("out"), counts or "none")


if __name__ == "__main__":
    from ns2_jax.runtime import cluster  # here, because it imports jax and every worker imports this module

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
    flags.DEFINE_float("trim", 0.0, "cut both ends where they are so many dB below the loudest 20 ms, e.g. 40; 0 cuts nothing", lower_bound=0.0)
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "processes", lower_bound=0)
    flags.DEFINE_bool("f0", True, "track F0 too")
    cluster.run(main)
