"""From a data set to batches: the step plan in front of Grain, one element one batch.

Grain costs 50-100 us per element, so an element is a whole batch; order, buckets, hosts and resume are the plan's, and no Grain
state is ever saved: a feed starts at `start_step`.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from ns2_jax.data import frames as frames_lib
from ns2_jax.data import transforms
from ns2_jax.data.dataset import Dataset
from ns2_jax.data.plan import PADDING, StepPlan

Batch = dict[str, np.ndarray]

ENDLESS = 1 << 40  # steps; Grain wants a length
MOST_LEFT_OUT = 0.5  # of the hours: a feed that leaves out more is a mistake
PROMPT_SECONDS = 0.5  # the least a prompt should have

# Field -> the group it comes from (None: known without reading); `prompt_` fields come from the same groups.
SOURCES = {
    "audio": "audio",
    "phones": "align",
    "durations": "align",
    "f0": "f0",
    "codes": "codes",
    "frames": None,
    "weight": None,
}
OFFERS = {
    "crop": ("audio", "f0", "codes", "frames", "weight"),
    "whole": tuple(SOURCES),
    "cut_prompt": (*SOURCES, "prompt_audio", "prompt_f0", "prompt_codes", "prompt_frames"),
}


def fingerprint(data: Mapping[str, Any]) -> str:
    """The fingerprint of the data set at `data.path`. Raises FileNotFoundError when there is none."""
    return Dataset.open(data["path"]).fingerprint


def codes_group(data: Mapping[str, Any], dataset: Dataset) -> str:
    """The group of codes that `data.codes` names. Raises ValueError when it names none."""
    if not data.get("codes"):
        there = [group for group in dataset.groups if group.startswith("codes-")]
        raise ValueError(
            "config.data.codes is empty: name the codec by its hash (12 hex digits) "
            f"or set init_from; {dataset.root} has {there or 'no codes'}"
        )
    return f"codes-{data['codes']}"


def groups_for(fields: Mapping[str, Any], data: Mapping[str, Any], dataset: Dataset) -> dict[str, str]:
    """Kind of group ("audio", "align", ...) -> the group to read. Raises ValueError for a field that no transform makes."""
    transform = data["transform"]
    if transform not in OFFERS:
        raise ValueError(f"config.data.transform={transform!r} is not one of {sorted(OFFERS)}")
    kinds = {"align"} if transform == "cut_prompt" else set()
    for name in fields:
        if name not in OFFERS[transform]:
            raise ValueError(f"field {name!r} does not come out of transform {transform!r}, which offers {sorted(OFFERS[transform])}")
        kind = SOURCES[name.removeprefix("prompt_")]
        kinds |= {kind} if kind else set()
    return {kind: codes_group(data, dataset) if kind == "codes" else kind for kind in sorted(kinds)}


def check(
    dataset: Dataset, data: Mapping[str, Any], groups: Mapping[str, str], constants: Mapping[str, int], inventory: str | None
) -> None:
    """Refuses a data set that is not what the config says. Raises ValueError."""
    if data["sample_rate"] != dataset.sample_rate:
        raise ValueError(
            f"config.data.sample_rate={data['sample_rate']} but {dataset.root} "
            f"is at {dataset.sample_rate} Hz; change one of them"
        )
    for kind, group in groups.items():
        dataset.check_group(group)
        about = dataset.manifest["groups"][group]
        if kind == "codes" and about.get("hop") != data["hop"]:
            raise ValueError(
                f"config.data.hop={data['hop']} but {dataset.root}/{group} was encoded "
                f"at hop {about.get('hop')}; use that hop or encode again"
            )
        if kind == "codes" and about.get("codec") != data["codes"]:
            raise ValueError(f"{dataset.root}/{group} was written by codec {about.get('codec')!r}, not {data['codes']!r}; encode again")
        if kind == "codes" and about.get("levels", 0) < constants.get("q", 0):
            raise ValueError(f"{dataset.root}/{group} has {about.get('levels')} codebooks, the system needs {constants['q']}")
        if kind == "align" and inventory is not None and dataset.manifest["phones"] != inventory:
            raise ValueError(
                f"{dataset.root} was made with phone inventory {dataset.manifest['phones']!r}, "
                f"this code has {inventory!r}; make the data set again"
            )


class StepSource:
    """Grain's random-access protocol over batches: `source[i]` is this host's rows of batch `start_step + i`."""

    def __init__(
        self, dataset: Dataset, plan: StepPlan, data: Mapping[str, Any], fields: Mapping[str, Any], constants: Mapping[str, int],
        groups: Mapping[str, str], *, split: str, start_step: int, parts: tuple[Sequence[int], int], epochs: int | None,
    ):  # fmt: skip
        self.dataset, self.plan, self.groups, self.split = dataset, plan, dict(groups), split
        self.transform, self.hop = data["transform"], int(data["hop"])
        self.gain_db = float(data.get("gain_db", 0.0))
        self.fields = {name: (field.axes, np.dtype(field.dtype)) for name, field in fields.items()}
        self.constants = dict(constants)
        self.start_step, (self.parts, self.total), self.epochs = start_step, parts, epochs

    def __len__(self) -> int:
        return ENDLESS if self.epochs is None else max(0, self.epochs * self.plan.steps_per_epoch - self.start_step)

    def __repr__(self) -> str:
        place = f"split={self.split!r}, start_step={self.start_step}, parts={list(self.parts)} of {self.total}"
        return f"StepSource({self.dataset!r}, {self.plan!r}, {place})"

    def utterance(self, i: int) -> dict[str, Any]:
        """What the transforms take, from the groups the fields need."""
        out: dict[str, Any] = {}
        lengths = set()
        for kind, group in self.groups.items():
            record = self.dataset.read(self.split, group, i)
            lengths.add(record["num_samples"])
            samples = record["num_samples"]
            frames = frames_lib.frame_count(samples, self.hop)
            if kind == "audio":
                out["audio"] = record["audio"].astype(np.float32) / 32768
            elif kind == "align":
                out["phones"] = record["phones"]
                out["durations"] = frames_lib.durations(record["ends"], samples, self.dataset.sample_rate, self.hop)
            elif kind == "f0":
                out["f0"] = frames_lib.f0_at_frames(record["f0"], self.dataset.f0_period, self.hop, frames)
            elif kind == "codes":
                if len(record["codes"]) != frames:
                    raise ValueError(
                        f"{self.dataset.root}/{group}: utterance {i} of {self.split!r} has "
                        f"{len(record['codes'])} code frames, its audio has {frames}"
                    )
                out["codes"] = record["codes"][:, : self.constants.get("q")]
        if len(lengths) != 1:
            raise ValueError(
                f"{self.dataset.root}: groups {list(self.groups.values())} disagree on the "
                f"length of utterance {i} of {self.split!r}: {sorted(lengths)}"
            )
        out["frames"] = frames
        return out

    def row(self, i: int, bucket: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
        """Utterance `i` after the transform, unpadded."""
        utterance = self.utterance(i)
        if "audio" in utterance and self.gain_db:
            utterance["audio"] = transforms.gain(utterance["audio"], self.gain_db, rng)
        if self.transform == "crop":
            return transforms.crop(utterance, bucket["t"], self.hop, rng)
        if self.transform == "cut_prompt":
            least = int(PROMPT_SECONDS * self.dataset.sample_rate / self.hop)
            return transforms.cut_prompt(utterance, bucket["u"], self.hop, least, rng)
        return transforms.whole(utterance)

    def __getitem__(self, index: int) -> Batch:
        if index < 0:
            raise IndexError("a feed has no end to count from")
        step = self.start_step + int(index)
        at, ids = self.plan.step(step)
        bucket = self.plan.buckets[at]
        size = len(ids) // self.total
        rows = [row for part in self.parts for row in range(part * size, (part + 1) * size)]
        sizes = {**self.constants, **bucket, "s": bucket["t"] * self.hop, "b": len(rows)}
        batch = {name: np.zeros([sizes[axis] for axis in axes], dtype) for name, (axes, dtype) in self.fields.items()}
        for place, row in enumerate(rows):
            if ids[row] == PADDING:
                continue
            values = {"weight": 1.0, **self.row(int(ids[row]), bucket, self.plan.row_rng(step, row))}
            for name, array in batch.items():
                value = np.asarray(values[name])
                if value.ndim:
                    value = value[: sizes["s"]] if name == "audio" else value  # the part of a frame at the end of a recording
                    array[place][tuple(map(slice, value.shape))] = value
                else:
                    array[place] = value
        return batch


def _worker(index: int, count: int) -> None:
    """A killed trainer takes its workers and their shared memory along. One that is asked to end, with its whole group, needs
    them until its last step: they end with it (`_end_workers`)."""
    del index, count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _end_workers() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def make_feed(
    data: Mapping[str, Any],
    fields: Mapping[str, Any],
    constants: Mapping[str, int],
    seed: int,
    start_step: int,
    split: str | None = None,
    parts: tuple[Sequence[int], int] = ((0,), 1),
    epochs: int | None = None,
    inventory: str | None = None,
) -> Iterator[Batch]:
    """Batches from step `start_step` on: exactly `fields`, each of its bucket's static shape.

    Args:
      data: `config.data`: path, split, transform ("crop", "cut_prompt" or "whole"), buckets, sample_rate (Hz), hop (samples), codes
        (hash), workers (processes; 0 = one thread), optional gain_db.
      fields: name -> anything with `.axes` and `.dtype`; axis letters get lengths from the bucket, `s` is `t * hop`, and
        `constants` fills the others (`q`).
      split: instead of `data.split`.
      parts: (which, of how many): every batch is cut into so many runs of rows, and these are this host's
        (`runtime.mesh.host_parts`). A row is the same row, with the same noise, on any number of hosts.
      epochs: stop after so many from step 0; None goes on for ever.
      inventory: hash of the phone inventory in use; compared with the data set's when phones are read.

    Raises FileNotFoundError without a data set; ValueError when it is not what the config says (rate, hop, codec, phones,
    groups, split) or when nothing fits a bucket.
    """
    dataset = Dataset.open(data["path"])
    split = split or data["split"]
    dataset.check_split(split)
    groups = groups_for(fields, data, dataset)
    check(dataset, data, groups, constants, inventory)
    buckets = [{axis: int(length) for axis, length in bucket.items()} for bucket in data["buckets"]]
    for bucket in buckets:
        needed = {axis for field in fields.values() for axis in field.axes} - set(constants) - {"s"} | {"b", "t"}
        needed |= {"u", "p"} if data["transform"] == "cut_prompt" else set()
        if missing := sorted(needed - set(bucket)):
            raise ValueError(f"config.data.buckets: {bucket} has no {missing[0]!r}, which {sorted(fields)} need")
        if bucket["b"] % parts[1]:
            raise ValueError(f"config.data.buckets: b={bucket['b']} does not divide into {parts[1]} parts")
    plan = StepPlan(
        dataset.frames(split, data["hop"]),
        buckets,
        fingerprint=f"{dataset.fingerprint} {split}",
        seed=seed,
        phones=dataset.phones(split) if "align" in groups else None,
        crop=data["transform"] == "crop",
    )
    if plan.left_out:
        lost = plan.left_out_frames / max(int(dataset.frames(split, data["hop"]).sum()), 1)
        about = f"{plan.left_out} of {dataset.records(split)} utterances of {split} ({100 * lost:.0f} % of its hours)"
        if lost > MOST_LEFT_OUT:
            raise ValueError(f"{about} fit no bucket of config.data.buckets; add a longer bucket (t frames, p phones)")
        logging.warning("%s fit no bucket of config.data.buckets and are left out", about)
    source = StepSource(
        dataset, plan, data, fields, constants, groups, split=split, start_step=start_step, parts=parts, epochs=epochs
    )
    feed = grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=3))
    if workers := int(data.get("workers", 0)):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its flags even in programs that have none
        atexit.register(_end_workers)  # before multiprocessing's own end, which would wait for them
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        feed = feed.mp_prefetch(options, worker_init_fn=_worker)
    return iter(feed)
