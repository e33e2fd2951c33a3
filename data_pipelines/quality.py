"""Measures what an utterance can be judged by, and flags duplicates: `python -m data_pipelines.quality --data=DIR [--workers=N]`.

Nothing is thrown away: the columns are kept, and a training cuts by them when it reads (`config.data.cut`).

| column | |
|---|---|
| `seconds` | length |
| `level_db`, `peak_db` | RMS of the 20 ms windows within 40 dB of the loudest, and the highest sample, in dB of full scale |
| `snr_db` | WADA-SNR (see below), -10 to 60 |
| `range_db` | between the 5th and the 95th percentile of the levels of 20 ms, as in NIST's STNR |
| `clipped` | share of samples on flat tops: four or more at 0.9 of the peak or above, within 0.2 % of each other |
| `bandwidth_hz` | highest frequency whose mean power is within 60 dB of the strongest: finds what came from a lower rate |
| `start_s`, `end_s`, `pauses` | seconds of silence (40 dB under the loudest window) before and after the speech; its share between |
| `chars_per_s`, `phones_per_s` | of the text and of `align` (else `phones`, silences left out) from the first to the last speech |
| `voiced`, `f0_hz` | share of the frames of `f0` that have a pitch, and their median |
| `rate_z` | log of phones (else characters) per second against the language's: far from 0, text and audio may not belong together |
| `duplicate` | 0; 1 for a copy at another gain, rate or coding or a little trimmed; 2 for the same samples (data_pipelines/duplicates.py) |

`rate_z` counts from the median in robust standard deviations (1.48 times the median absolute deviation).

WADA is of Kim and Stern, "Robust signal-to-noise ratio estimation based on waveform amplitude distribution analysis", Interspeech 2008;
LibriTTS was filtered by it. With white noise added to 40 utterances of the default corpus at 10, 20, 30 dB, `snr_db` says 7.8 ± 1.6,
16.6 ± 2.4, 24.7 ± 4.7 and `range_db` 15.5 ± 0.8, 25.3 ± 0.9, 35.2 ± 1.1: the first is the scale of published thresholds, the second is
the finer one where an utterance has a pause.

NaN where a group that it needs is missing. Of copies the one that counts is in the split that comes last, so that train is what is flagged
rather than valid, and valid rather than test. `duplicates.jsonl` lists them.

The group `quality` has what follows from the utterance itself, a shard at a time; `rate_z` and `duplicate` need all of them, and with
the rest become the columns of ns2_jax/data/quality.py.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import tqdm
from absl import flags, logging

from data_pipelines import batches, duplicates, ingest, shards
from ns2_jax.audio import files
from ns2_jax.data import atomic, quality, records
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import phones

OWN = ("seconds", "level_db", "peak_db", "snr_db", "range_db", "clipped", "bandwidth_hz", "start_s", "end_s", "pauses", "chars_per_s",
       "phones_per_s", "voiced", "f0_hz")  # fmt: skip
COLUMNS = (*OWN, "rate_z", "duplicate")
VERSION = 1  # of what is measured; another one makes the group again
PAIRS = 200  # likely copies that one worker compares at once: some seconds
Each = Callable[[Callable[[int], Any], int, str], Any]
BELOW = 40.0  # dB under the loudest window: silence
WADA = np.array([  # log E|z| - E log|z| at -10, -7.5, ... 60 dB, z Gamma(0.4) speech in Gaussian noise, integrated numerically
    0.4121, 0.4160, 0.4238, 0.4382, 0.4617, 0.4968, 0.5435, 0.6011, 0.6674, 0.7388, 0.8122, 0.8852, 0.9559, 1.0225, 1.0846, 1.1419, 1.1941,
    1.2414, 1.2842, 1.3227, 1.3573, 1.3882, 1.4159, 1.4408, 1.4628, 1.4826, 1.5002, 1.5160, 1.5300])  # fmt: skip
WADA_DB = np.linspace(-10, 60, len(WADA))


# One utterance -------------------------------------------------------------------------------------------------------


def decibels(value: float) -> float:
    return float(20 * np.log10(max(value, 1e-5)))


def snr_db(audio: np.ndarray) -> float:
    """WADA-SNR of `audio [s]` in [-1, 1]; samples under half a step of 16 bits count as that."""
    size = np.maximum(np.abs(np.asarray(audio, np.float64)), 0.5 / 32768)
    return float(np.interp(np.log(size.mean()) - np.log(size).mean(), WADA, WADA_DB))


def range_db(audio: np.ndarray, rate: int) -> float:
    """dB between the 5th and the 95th percentile of the RMS of whole windows of 20 ms; 0 where there is none."""
    levels = files.frame_rms(audio, rate)[: len(audio) // int(round(rate * 0.02))]
    low, high = np.percentile(levels, (5, 95)) if len(levels) else (1.0, 1.0)
    return decibels(high) - decibels(low)


def clipped(audio: np.ndarray) -> float:
    """Share of the samples on flat tops: runs of four or more at 0.9 of the peak or above, within 0.2 % of the peak of the one before."""
    peak = float(np.abs(audio).max())
    flat = (np.abs(audio[1:]) >= 0.9 * peak) & (np.abs(np.diff(audio)) <= 0.002 * peak)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(np.int8), [0]])))
    steps = edges[1::2] - edges[::2]
    return float((steps[steps >= 3] + 1).sum() / len(audio)) if peak else 0.0


def bandwidth_hz(audio: np.ndarray, rate: int) -> float:
    """Highest frequency whose power, averaged over the utterance in spectra of 32 ms, is within 60 dB of the strongest."""
    size = int(0.032 * rate)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, (0, max(0, size - len(audio)))), size)[:: size // 2]
    power = np.mean(np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32))) ** 2, 0)
    return float(np.flatnonzero(power >= power.max() * 1e-6)[-1] * rate / size)


def silences(audio: np.ndarray, rate: int) -> tuple[float, float, float]:
    """(seconds before, seconds after, share between) that are BELOW dB under the loudest 20 ms."""
    levels = files.frame_rms(audio, rate)
    speech = np.flatnonzero(levels >= levels.max() * 10 ** (-BELOW / 20))
    first, last = speech[0], speech[-1]
    step = int(round(rate * 0.02)) / rate
    end = max(0.0, len(audio) / rate - (last + 1) * step)
    return first * step, end, float(1 - len(speech) / (last - first + 1))


def measure(rows: dict[str, dict[str, Any]], rate: int) -> dict[str, float]:
    """Column -> value of an utterance: group -> record, `meta` and `audio` and what there is of `align`, `phones` and `f0`."""
    audio, text = rows["audio"]["audio"].astype(np.float32) / 32768, rows["meta"]["text_norm"] or rows["meta"]["text"]
    start, end, pauses = silences(audio, rate)
    seconds = len(audio) / rate
    spoken = max(seconds - start - end, 0.02)
    said = next((rows[group]["phones"] for group in ("align", "phones") if group in rows and len(rows[group]["phones"])), None)
    f0 = rows["f0"]["f0"].astype(np.float32) if "f0" in rows else np.zeros(0, np.float32)
    return {
        "seconds": seconds, "level_db": decibels(files.active_rms(audio, rate)), "peak_db": decibels(float(np.abs(audio).max())),
        "snr_db": snr_db(audio), "range_db": range_db(audio, rate), "clipped": clipped(audio), "bandwidth_hz": bandwidth_hz(audio, rate),
        "start_s": start, "end_s": end, "pauses": pauses, "chars_per_s": len(text) / spoken if text else np.nan,
        "phones_per_s": np.nan if said is None else float(np.sum(said != phones.ids([phones.SILENCE])[0])) / spoken,
        "voiced": float(np.mean(f0 > 0)) if len(f0) else np.nan, "f0_hz": float(np.median(f0[f0 > 0])) if (f0 > 0).any() else np.nan,
    }  # fmt: skip


def record(rows: dict[str, dict[str, Any]], rate: int) -> dict[str, Any]:
    """The record of an utterance: its columns, its language, the hash of its samples and the keys that find near copies."""
    measured, samples = measure(rows, rate), rows["audio"]["audio"]
    digest = hashlib.blake2b(np.ascontiguousarray(samples, "<i2").tobytes(), digest_size=8).digest()
    return {"values": np.array([measured[name] for name in OWN], np.float32), "lang": rows["meta"]["lang"],
            "digest": np.frombuffer(digest, "<u8"), "keys": duplicates.keys(samples, rate)}  # fmt: skip


def quality_shard(root: str, settings: None, split: str, shard: int, total: int) -> int:
    """Writes one shard of `quality`."""
    del settings
    dataset = batches.open_dataset(root)
    sources = ["audio", *(group for group in ("align", "phones", "f0") if group in dataset.groups)]
    info, tools = {"columns": list(OWN), "version": VERSION}, {"numpy": np.__version__}
    return shards.derive(root, "quality", split, shard, total, functools.partial(record, rate=dataset.sample_rate), empty={},
                         sources=sources, info=info, tools=tools)  # fmt: skip


# All of them ---------------------------------------------------------------------------------------------------------


def rate_z(values: dict[str, np.ndarray], langs: np.ndarray) -> np.ndarray:
    """The column of that name, float32 `[n]`; NaN where there is neither phone nor text, and in a language of fewer than ten."""
    out = np.full(len(langs), np.nan, np.float32)
    for column in ("chars_per_s", "phones_per_s"):  # the second where there are both
        for lang in np.unique(langs):
            rows = np.flatnonzero((langs == lang) & (values[column] > 0))
            if len(rows) >= 10:
                rate = np.log(values[column][rows])
                middle = np.median(rate)
                spread = 1.4826 * np.median(np.abs(rate - middle))  # of a normal distribution: its standard deviation
                out[rows] = (rate - middle) / max(spread, 0.01)
    return out


def _inputs(dataset: Dataset) -> str:
    about = dataset.manifest["splits"]
    shas = [dataset.marker("quality", split, k)["sha256"] for split in dataset.splits for k in range(about[split]["shards"])]
    return hashlib.sha256(" ".join(shas).encode()).hexdigest()


def whole(dataset: Dataset) -> bool:
    """Whether the columns and `duplicates.jsonl` are there, undamaged and of the shards of `quality` that are there."""
    inputs = _inputs(dataset)
    try:
        copies = hashlib.sha256(pathlib.Path(dataset.root, "duplicates.jsonl").read_bytes()).hexdigest()
        tables = {split: quality.table(dataset, split) for split in dataset.splits}
        for split, about in tables.items():
            quality.columns(dataset, split, about["columns"])
        return all((about["inputs"], about["listed"], tuple(about["columns"])) == (inputs, copies, COLUMNS) for about in tables.values())
    except (FileNotFoundError, ValueError, KeyError):
        return False


def _rows(dataset: Dataset) -> tuple[tuple[str, ...], np.ndarray]:
    """The splits in the order in which all utterances are counted, the last split first, and where each begins."""
    order = dataset.splits[::-1]  # the copy that comes first stays
    return order, np.cumsum([0, *(dataset.records(split) for split in order)])


def _place(order: tuple[str, ...], starts: np.ndarray, i: int) -> tuple[str, int]:
    part = int(np.searchsorted(starts, i, "right")) - 1
    return order[part], int(i - starts[part])


def _compare_some(root: str, scratch: str, at_once: int, k: int) -> None:
    """Writes which of the `k`-th `at_once` pairs in the folder `scratch` are copies."""
    dataset, folder = batches.open_dataset(root), pathlib.Path(scratch)
    rows = _rows(dataset)

    def bits(i: int) -> np.ndarray:
        split, row = _place(*rows, i)
        return duplicates.differences(dataset.read(split, "audio", row)["audio"], dataset.sample_rate)

    pairs = np.load(folder / "pairs.npy", mmap_mode="r")[k * at_once : (k + 1) * at_once]
    records.write_atomic(folder / f"{k}.npy", records.index_bytes(duplicates.copies(pairs, bits)))


def _compare(root: str | os.PathLike, each: Each, at_once: int, pairs: np.ndarray) -> np.ndarray:
    """Which pairs of rows are copies, bool `[pairs]`. What is between is in a folder of its own, gone afterwards."""
    scratch = atomic.beside(pathlib.Path(root) / "likely-copies")
    scratch.mkdir()
    try:
        np.save(scratch / "pairs.npy", pairs)
        n = -(-len(pairs) // at_once)
        each(functools.partial(_compare_some, str(root), str(scratch), at_once), n, "likely copies")
        return np.concatenate([np.load(scratch / f"{k}.npy") for k in range(n)])
    finally:
        shutil.rmtree(scratch)


def collect(root: str | os.PathLike, each: Each, at_once: int = PAIRS) -> dict[str, Any]:
    """Writes the columns of every split and `duplicates.jsonl` of the finished group `quality`; returns {"near": ..., "exact": ...}.

    Memory: about 400 bytes an utterance. Left alone when the shards are the same. `each(work, n, description)` calls `work(0)` to
    `work(n - 1)`, anywhere that reaches the data set: likely copies are compared so, `at_once` pairs a call. They are at most three to
    an utterance; of 15 s, one costs 17 ms on a server's core to measure and 3 ms to compare with another.
    """
    dataset, folder = Dataset.open(root), pathlib.Path(root)
    inputs = _inputs(dataset)
    if whole(dataset):
        return quality.table(dataset, dataset.splits[0])["copies"]
    order, starts = _rows(dataset)
    n = int(starts[-1])
    table, digests = np.empty((n, len(OWN)), np.float32), np.empty(n, np.uint64)
    keys, langs, at, codes = np.zeros((n, duplicates.KEYS), np.uint32), np.empty(n, np.int32), 0, {}
    for split in order:
        total = dataset.manifest["splits"][split]["shards"]
        for k in tqdm.trange(total, desc=f"quality of {split}", mininterval=2, leave=False):
            for row in records.read_all(records.shard_path(root, "quality", split, k, total), "quality"):
                table[at], digests[at], langs[at] = row["values"], row["digest"][0], codes.setdefault(row["lang"], len(codes))
                keys[at, : len(row["keys"])] = row["keys"]
                at += 1
    values = {name: table[:, i] for i, name in enumerate(OWN)}
    kind, of, shared = duplicates.find(digests, keys, values["seconds"], functools.partial(_compare, root, each, at_once))
    logging.info("likely copies were those that share %d of %d keys", shared, duplicates.KEYS)
    values |= {"rate_z": rate_z(values, langs), "duplicate": kind.astype(np.float32)}
    copies = []
    for i in np.flatnonzero(kind).tolist():
        (split, row), (other, first) = _place(order, starts, i), _place(order, starts, int(of[i]))
        name = lambda split, row: dataset.read(split, "meta", row)["utt_id"]
        copies.append({"item": name(split, row), "split": split, "of": name(other, first), "of_split": other,
                       "kind": "exact" if kind[i] == 2 else "near"})  # fmt: skip
    shards.write_lines(folder / "duplicates.jsonl", copies)
    listed = hashlib.sha256((folder / "duplicates.jsonl").read_bytes()).hexdigest()
    counts = {"near": int((kind == 1).sum()), "exact": int((kind == 2).sum())}
    (folder / "index").mkdir(exist_ok=True)
    names = {code: lang for lang, code in codes.items()}
    for split, start, end in zip(order, starts, starts[1:]):
        shas = {}
        for name in COLUMNS:
            data = records.index_bytes(np.ascontiguousarray(values[name][start:end], np.float32))
            records.write_atomic(folder / quality.column_path(split, name), data)
            shas[name] = hashlib.sha256(data).hexdigest()
        spoken = {names[code]: count for code, count in sorted(Counter(langs[start:end].tolist()).items())}
        about = {"fingerprint": dataset.fingerprint, "inputs": inputs, "records": int(end - start), "languages": spoken, "copies": counts,
                 "listed": listed, "shared_keys": shared, "columns": shas}  # fmt: skip
        records.write_atomic(folder / quality.table_path(split), json.dumps(about, indent=1).encode() + b"\n")
    return counts


def add_quality(root: str | os.PathLike, workers: int = 0) -> dict[str, Any]:
    """The stage, of any data set. Raises as `Dataset.open`."""
    splits = {split: about["shards"] for split, about in Dataset.open(root).manifest["splits"].items()}
    shards.run_shards(functools.partial(ingest.task, quality_shard, str(root), None, splits), sum(splits.values()), workers, "quality")
    shards.write_manifest(root, needed=["quality"])
    return collect(root, lambda work, n, description: shards.run_shards(work, n, workers, description))


def main(argv: list[str]) -> None:
    del argv
    counts = add_quality(flags.FLAGS.data, flags.FLAGS.workers)
    logging.info("duplicates: %d exact, %d near", counts["exact"], counts["near"])


if __name__ == "__main__":
    from ns2_jax.runtime import cluster  # here, because it imports jax, which the workers do without

    flags.DEFINE_string("data", "", "the data set (a folder with manifest.json)")
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "processes; 0 is this one", lower_bound=0)
    cluster.run(main)
