"""A corpus made of another one, utterance by utterance: what `singing`, `rooms` and `expressive` share.

The new corpus has the groups `meta`, `audio`, `align` and `f0` of at most `--utterances` of every split, chosen by a fixed draw; texts
and splits stay. It is made shard by shard like any other: killed, the same command goes on, and where the times or the pitch of the old
corpus have been made again, it makes the shards again. `corpus.json` says of what it was made, and how.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any, Protocol

import numpy as np
from absl import flags, logging

from data_pipelines import batches, ingest, shards
from ns2_jax.data import records
from ns2_jax.data.dataset import Dataset

PER_SHARD = 200
GROUPS = ("meta", "audio", "align", "f0")
PEAK = 0.97
FEW = 8  # recordings tried for one by somebody else


@dataclasses.dataclass(frozen=True)
class Utterance:
    """Strings of `meta`; audio float32 `[s]`; ids of phones `[p]` and their `ends` in samples `[p]`; `f0` Hz per period `[t]`, 0 unvoiced."""

    meta: dict[str, str]
    audio: np.ndarray
    phones: np.ndarray
    ends: np.ndarray
    f0: np.ndarray


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an utterance comes from: what a change may ask of its corpus."""

    dataset: Dataset
    split: str
    position: int

    @property
    def rate(self) -> int:
        """Hz."""
        return self.dataset.sample_rate

    @property
    def period(self) -> int:
        """Samples between two values of F0."""
        return self.dataset.f0_period

    def another(self, rng: np.random.Generator, speaker: str) -> np.ndarray:
        """Audio float32 `[s]` of an utterance of the split, by somebody else than `speaker` where a few draws find one."""
        for _ in range(FEW):
            i = int(rng.integers(self.dataset.records(self.split)))
            if self.dataset.read(self.split, "meta", i)["speaker"] != speaker:
                break
        return self.dataset.read(self.split, "audio", i)["audio"].astype(np.float32) / 32768


class Change(Protocol):
    """A frozen dataclass of numbers; they go into the markers, so that other numbers make other shards."""

    command: str  # whose it is, "singing"
    word: str  # of what was changed, "sung": in names and the bar
    refused: str  # the reason for rejects, "cannot_be_sung"

    def __call__(self, utterance: Utterance, place: Place, rng: np.random.Generator) -> Utterance | None:
        """The new utterance, or None where it cannot be made. `rng` is the same for the same position."""


def drawn(*names: Any) -> np.random.Generator:
    """A generator that is the same for the same names on every machine."""
    return np.random.default_rng(list(hashlib.sha256("/".join(map(str, names)).encode()).digest()))


def rounded(times: np.ndarray) -> np.ndarray:
    """`times [p + 1]` in samples, rising from 0, to whole ones, float64: the shortest phone keeps a sample."""
    places = np.arange(len(times))
    return np.maximum.accumulate(np.rint(times) - places) + places


def read(place: Place) -> Utterance:
    found = {group: place.dataset.read(place.split, group, place.position) for group in GROUPS}
    return Utterance({key: value for key, value in found["meta"].items() if key != "num_samples"}, found["audio"]["audio"].astype(np.float32) / 32768,
                     found["align"]["phones"], found["align"]["ends"], found["f0"]["f0"].astype(np.float64))  # fmt: skip


def values(made: Utterance) -> dict[str, dict[str, Any]]:
    """Its records; what is louder than full scale is made softer as a whole."""
    peak = max(float(np.abs(made.audio).max()) / PEAK, 1.0)
    return {"meta": made.meta, "audio": {"audio": np.clip(np.rint(made.audio / peak * 32768), -32768, 32767).astype(np.int16)},
            "align": {"phones": made.phones, "ends": made.ends}, "f0": {"f0": made.f0.astype(np.float16)}}


def remake_shard(out: str, settings: tuple[str, int, Change, dict[str, str]], split: str, shard: int, total: int) -> None:
    """Writes one shard of the new corpus and the list of what was left out. `settings`: the old corpus, how many utterances of a
    split, the change, and what the shards are made of."""
    root, count, change, made_of = settings
    dataset, rejects = batches.open_dataset(root), []
    if shards.committed(out, GROUPS, split, shard, total, inputs=made_of) and shards.listed(out, "meta", split, shard, total):
        return
    rows = np.random.default_rng([0, len(split)]).permutation(dataset.records(split))[:count][shard::total]
    times = dataset.manifest["groups"]["align"]
    info = {"f0": {"period": dataset.f0_period}, "align": {key: times[key] for key in ("aligner", "lexicon") if key in times}}
    writers = {group: shards.ShardWriter(out, group, split, shard, total, inputs=made_of, info=info.get(group)) for group in GROUPS}
    with records.committing(writers):
        for i in sorted(rows.tolist()):
            place = Place(dataset, split, i)
            old = read(place)
            made = change(old, place, np.random.default_rng([1, i]))
            if made is None:
                writers["meta"].reject(change.refused)
                rejects.append({"item": old.meta["utt_id"], "reason": change.refused, "detail": f"left out by {change.word}"})
                continue
            meta = made.meta | {"utt_id": f"{old.meta['utt_id']}-{change.word}", "source": f"{change.word} {made.meta['source']}"}
            made = dataclasses.replace(made, meta=meta, ends=made.ends.astype(old.ends.dtype))
            for group, value in values(made).items():
                writers[group].write(value, len(made.audio))
        shards.write_lines(shards.rejects_path(out, split, shard), rejects)


def _claim(out: pathlib.Path, asked: dict[str, str]) -> None:
    """Writes `corpus.json`, or checks that the folder holds what was asked for; where the old corpus lies does not matter. Raises ValueError."""
    path = out / "corpus.json"
    if path.exists():
        try:
            found = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise records.Corrupt(f"{path} is damaged; choose another --out, or delete the whole of {out} and make it again") from error
        if differing := sorted(key for key in {*found, *asked} - {"data"} if found.get(key) != asked.get(key)):
            what = "; ".join(f"{key} was {found.get(key)}, is {asked.get(key)}" for key in differing)
            raise ValueError(f"--out={out} was made from another corpus or with other flags ({what}); choose another folder or delete it")
        return
    begun = lambda child: child.name.startswith(f".{path.name}.tmp-")  # by a command that was killed
    if out.exists() and (not out.is_dir() or not all(map(begun, out.iterdir()))):
        raise ValueError(f"--out={out} exists and was not made by this command; choose a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    records.write_atomic(path, json.dumps(asked, indent=1).encode() + b"\n")


def build(data: str | os.PathLike, out: str | os.PathLike, change: Change, utterances: int, workers: int = 0) -> dict[str, Any]:
    """The corpus at `out` of at most so many utterances of every split of `data`; returns its manifest. Raises as `Dataset.open`, and
    ValueError where `data` has no phone times or pitch, where `out` holds something else, and where nothing can be made."""
    dataset = Dataset.open(data)
    for group in ("align", "f0"):
        dataset.check_group(group)
    made_of = {"command": change.command, "fingerprint": dataset.fingerprint, "utterances": str(utterances), "change": repr(change)}
    _claim(pathlib.Path(out), {**made_of, "data": str(data) if dataset.remote else os.path.abspath(data)})
    made_of |= {f"source {group}": dataset.contents(group) for group in ("align", "f0")}
    splits = {split: shards.shards_for(min(utterances, dataset.records(split)), PER_SHARD) for split in dataset.splits}
    work = functools.partial(ingest.task, remake_shard, str(out), (str(data), utterances, change, made_of), splits)
    shards.run_shards(work, sum(splits.values()), workers, change.word)
    left = [line for split, n in splits.items() for k in range(n) for line in shards.rejects_path(out, split, k).read_text().splitlines()]
    shards.write_lines(pathlib.Path(out) / "rejects.jsonl", map(json.loads, left))
    if left:
        logging.info("%d utterances were left out: %s", len(left), change.refused)
    about = {key: dataset.manifest[key] for key in ("sample_rate", "base_hop", "f0_period", "phones")}
    manifest = shards.write_manifest(out, name=f"{dataset.manifest['name']}, {change.word}", **about, needed=["align", "f0"])
    if not any(about["records"] for about in manifest["splits"].values()):
        raise ValueError(f"--data={data}: all of its utterances were left out, for {change.refused}")
    return manifest


def define_flags() -> None:
    """Those of every command of this kind."""
    flags.DEFINE_string("data", "", "the data set (with phone times and F0) to change")
    flags.DEFINE_string("out", "", "the data set to make")
    flags.DEFINE_integer("utterances", 2000, "at most so many of every split", lower_bound=1)
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "processes; 0 is this one", lower_bound=0)


def between(name: str, lowest: float, highest: float) -> tuple[float, float]:
    """The flag `name` as (low, high) within these bounds. Raises ValueError."""
    given = flags.FLAGS[name].value
    try:
        low, high = map(float, given)
    except ValueError:
        low, high = 1.0, 0.0
    if not lowest <= low <= high <= highest:
        raise ValueError(f"--{name}={','.join(given)}: expected two numbers LOW,HIGH with {lowest:g} <= LOW <= HIGH <= {highest:g}")
    return low, high


def command(change: Change) -> None:
    """What the flags ask for."""
    given = flags.FLAGS
    if not given.out:
        raise ValueError("--out is empty: the data set to make")
    if os.path.abspath(given.out) == os.path.abspath(given.data):
        raise ValueError("--out is --data; choose another folder")
    manifest = build(given.data, given.out, change, given.utterances, given.workers)
    logging.info("%s", {split: about["records"] for split, about in manifest["splits"].items()})
