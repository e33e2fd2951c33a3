"""What plan and feed can do on this machine, measured on records like those of Multilingual LibriSpeech.

Utterances of 14.9 +- 2.9 s, at most 20 s, with 16 codes a frame of 12.5 ms (38 KB), phones and pitch; the contents are noise.
Every rate is the best of several short runs, because other programs only ever make it worse; `per_core` is per second of processor time.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from array_record.python import array_record_data_source, array_record_module

from ns2_jax.data import range_server, records
from ns2_jax.data.dataset import Dataset
from ns2_jax.data.feed import make_feed
from ns2_jax.data.plan import Mixture, StepPlan

RATE, HOP, LEVELS, CODEC, F0_PERIOD = 16000, 200, 16, "0" * 12, 160
UTTERANCES = 10_800_000  # 44,000 hours, in the plan
RECORDED = 3000  # in the records
BUCKETS, ROWS = 8, 64
DELAY_MS = 30.0
REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Field:
    """What a feed needs to know of a field."""

    axes: str
    dtype: str


FIELDS = {
    "phones": Field("bp", "int32"), "durations": Field("bp", "int32"), "f0": Field("bt", "float32"), "codes": Field("btq", "uint16"),
    "frames": Field("b", "int32"), "weight": Field("b", "float32"),
}  # fmt: skip


def lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples of `count` utterances, int64 `[n]`."""
    return (np.clip(rng.normal(14.9, 2.9, count), 1.0, 20.0) * RATE).astype(np.int64)


def buckets(frames: np.ndarray) -> list[dict[str, int]]:
    """BUCKETS buckets that hold a like share of the utterances each, bounds rounded up to a multiple of eight frames."""
    bounds = np.quantile(frames, np.arange(1, BUCKETS + 1) / BUCKETS)
    return [dict(b=ROWS, t=int(-(-bound // 8) * 8), p=320) for bound in bounds]


def write_corpus(root: pathlib.Path, utterances: int, shards: int = 4, seed: int = 0) -> None:
    """A data set of noise with everything but recordings: their records say how long they are and are empty."""
    rng = np.random.default_rng(seed)
    groups, codes = ("meta", "audio", "align", "f0"), f"codes-{CODEC}"
    for shard in range(shards):
        writers = {group: records.ShardWriter(root, group, "train", shard, shards) for group in (*groups, codes)}
        for i, samples in enumerate(lengths(len(range(shard, utterances, shards)), rng).tolist()):
            phones = samples // 1300
            ends = np.append(np.sort(rng.choice(np.arange(1, samples), phones - 1, replace=False)), samples).astype(np.int32)
            text = dict.fromkeys(records.SCHEMAS["meta"], "") | {"utt_id": f"{shard}-{i}", "speaker": f"{i % 50}"}
            writers["meta"].write({name: text[name] for name in records.SCHEMAS["meta"]}, samples)
            writers["audio"].write({"audio": np.zeros(0, np.int16)}, samples)
            writers["align"].write({"phones": rng.integers(1, 40, phones).astype(np.uint8), "ends": ends}, samples)
            pitch = np.where(rng.random(samples // F0_PERIOD) < 0.6, rng.uniform(80, 300, samples // F0_PERIOD), 0.0)
            writers["f0"].write({"f0": pitch.astype(np.float16)}, samples)
            writers[codes].write({"codes": rng.integers(0, 1024, (samples // HOP, LEVELS)).astype(np.uint16)}, samples)
        for writer in writers.values():
            writer.commit()
    about = {**{group: {} for group in groups}, codes: {"codec": CODEC, "hop": HOP, "levels": LEVELS}}
    write_manifest(root, about, shards, utterances, f"measure-{utterances}-{seed}")


def write_manifest(root: pathlib.Path, groups: dict[str, Any], shards: int, utterances: int, fingerprint: str) -> None:
    """As the pipelines write it, of one split by fifty speakers."""
    manifest = {
        "format": 1, "name": "measure", "fingerprint": fingerprint, "sample_rate": RATE, "base_hop": HOP, "f0_period": F0_PERIOD,
        "phones": "", "groups": groups, "splits": {"train": {"shards": shards, "records": utterances}},
        "speakers": {"train": [str(k) for k in range(50)]}}  # fmt: skip
    records.write_atomic(root / "manifest.json", json.dumps(manifest).encode())


def spent(run: Callable[[], Any]) -> tuple[float, float]:
    """(seconds, seconds of processor) of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def plan() -> dict[str, float]:
    """Building the plan with its first epoch, looking steps up anywhere in it, padding among the frames of an epoch."""
    rng = np.random.default_rng(0)
    frames = lengths(UTTERANCES, rng) // HOP
    shapes = buckets(frames[:200_000])
    shapes[-1]["t"] = max(shapes[-1]["t"], int(frames.max()))
    made: list[Mixture] = []

    def build() -> None:
        made.append(Mixture([StepPlan(frames, shapes, fingerprint="measure", seed=0)]))
        made[-1].step(0)

    build_s, build_cpu_s = spent(build)
    whole = made[0]
    steps = rng.integers(0, whole.steps_per_epoch, 20_000).tolist()
    cuts = [steps[at : at + 500] for at in range(0, len(steps), 500)]
    whole.step(whole.steps_per_epoch - 1)
    best = np.median([spent(lambda cut=cut: [whole.step(k) for k in cut]) for cut in cuts], 0)  # of bits so short that nobody interrupts
    batches = np.array(whole.plans[0].batches)
    room = int((batches * [bucket["b"] * bucket["t"] for bucket in shapes]).sum())
    return {"plan_utterances": UTTERANCES, "plan_build_s": build_s, "plan_build_cpu_s": build_cpu_s,
            "plan_lookup_us": best[0] / 500 * 1e6, "padding": 1 - int(frames.sum()) / room}


def open_feed(root: str) -> Iterator[dict[str, np.ndarray]]:
    """Whole utterances with all groups, in one thread (several for a URL)."""
    shapes = buckets(np.minimum(lengths(10_000, np.random.default_rng(0)) // HOP, 1600))
    data = dict(path=root, split="train", transform="whole", buckets=shapes, sample_rate=RATE, hop=HOP, codes=CODEC, workers=0)
    return make_feed(data, FIELDS, {"q": LEVELS}, seed=0, start_step=0)


def feed_rate(root: str, batches: int = 24) -> dict[str, float]:
    """Utterances and records (three to an utterance) made into batches, per second and per second of processor time."""
    source = open_feed(root)
    for _ in range(4):
        next(source)
    rates, per_core = [], []
    for _ in range(REPEATS):
        rows: list[float] = []
        wall, cpu = spent(lambda: rows.extend(float(next(source)["weight"].sum()) for _ in range(batches)))
        rates.append(sum(rows) / wall)
        per_core.append(sum(rows) / cpu)
    kinds = 3  # align, f0 and codes
    return {"utterances_per_s": max(rates), "records_per_s": kinds * max(rates), "utterances_per_s_per_core": max(per_core),
            "records_per_s_per_core": kinds * max(per_core)}


def against_array_record(root: str, folder: str, count: int = 2000) -> dict[str, float]:
    """Payloads of codes in random order, checksums on, against array_record without compression: the same bytes in the same run.

    Its faster way, record by record or in batches of ROWS (which it reads in threads of its own), is compared. The ways take turns
    at every batch, each a millisecond or two, and the median batch counts.
    """
    data, group = Dataset.open(root), f"codes-{CODEC}"
    paths = sorted(pathlib.Path(root, group).glob("*.tfrecord"))
    copies = []
    for path in paths:
        copies.append(f"{folder}/{path.stem}.array_record")
        writer = array_record_module.ArrayRecordWriter(copies[-1], "group_size:1,uncompressed")
        for offset, length, _ in np.load(records.index_path(path)).tolist():
            with open(path, "rb") as file:
                writer.write(records.read_record(file.fileno(), offset, length, path.name))
        writer.close()
    theirs = array_record_data_source.ArrayRecordDataSource(copies)
    ids = np.random.default_rng(1).permutation(data.records("train"))[:count].tolist()
    sizes = [sum(map(len, data.read_raw("train", group, ids))), sum(len(theirs[i]) for i in ids)]
    if sizes[0] != sizes[1]:
        raise AssertionError(f"the two hold different records: {sizes} bytes")
    ways: dict[str, Callable[[list[int]], Any]] = {  # what was read is let go, as after a batch
        "tfrecord": lambda cut: data.read_raw("train", group, cut),
        "array_record": lambda cut: sum(len(theirs[i]) for i in cut),
        "array_record_batches": theirs.__getitems__}  # fmt: skip
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for cut in (ids[at : at + ROWS] for _ in range(REPEATS) for at in range(0, len(ids) - ROWS + 1, ROWS)):
        for name, run in ways.items():
            runs[name].append(spent(lambda run=run, cut=cut: run(cut)))
    wall, cpu = ({name: float(np.median(times, 0)[which]) for name, times in runs.items()} for which in (0, 1))
    rates = {f"{name}_reads_per_s": ROWS / seconds for name, seconds in wall.items()}
    ratios = {name: min(seconds["array_record"], seconds["array_record_batches"]) / seconds["tfrecord"]
              for name, seconds in (("ratio_to_array_record", wall), ("ratio_to_array_record_per_core", cpu))}
    return rates | ratios


def http_rate(root: str, batches: int = 12) -> dict[str, float]:
    """Records fed from a web server on this machine that takes DELAY_MS over every answer."""
    with range_server.running(root, DELAY_MS) as url:
        source = open_feed(url)
        for _ in range(8):  # what was made while the bench waited
            next(source)
        best = 0.0
        for _ in range(REPEATS):
            rows: list[float] = []
            wall, _ = spent(lambda: rows.extend(float(next(source)["weight"].sum()) for _ in range(batches)))
            best = max(best, 3 * sum(rows) / wall)
        source.close()
    return {"http_delay_ms": DELAY_MS, "http_records_per_s": best, "http_utterances_per_s": best / 3}


def everything() -> dict[str, float]:
    """All of the above, on a corpus made in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="ns2_jax-measure-") as folder:
        root = pathlib.Path(folder, "corpus")
        write_corpus(root, RECORDED)
        parts = (plan, functools.partial(feed_rate, str(root)), functools.partial(against_array_record, str(root), folder),
                 functools.partial(http_rate, str(root)))  # fmt: skip
        return {name: value for part in parts for name, value in part().items()}
