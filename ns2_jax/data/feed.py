"""From a data set to batches: the step plan in front of Grain, one element one batch.

Grain costs 50-100 us per element, so an element is a whole batch; order, buckets, hosts and resume are the plan's, and no Grain
state is ever saved: a feed starts at `start_step`.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from ns2_jax.data import frames as frames_lib
from ns2_jax.data import quality, speakers, transforms
from ns2_jax.data.dataset import Dataset
from ns2_jax.data.plan import PADDING, Mixture, Segment, StepPlan

Batch = dict[str, np.ndarray]

ENDLESS = 1 << 40  # steps; Grain wants a length
MOST_LEFT_OUT = 0.5  # of the hours: a feed that leaves out more is a mistake
PROMPT_SECONDS = 0.5  # the least a prompt should have
REMOTE_THREADS = 4  # batches of a URL that are read at the same time

# Field -> the group it comes from (None: known without reading); `prompt_` fields come from the same groups.
SOURCES = {
    "audio": "audio",
    "phones": "align",
    "durations": "align",
    "f0": "f0",
    "codes": "codes",
    "units": "units",
    "semantic": "semantic",
    "frames": None,
    "weight": None,
}
PROMPTED = (*(set(SOURCES) - {"units"}), "prompt_audio", "prompt_f0", "prompt_codes", "prompt_frames")
OFFERS = {
    "crop": ("audio", "f0", "codes", "frames", "weight"),
    "whole": tuple(SOURCES),
    "prefix": ("codes", "frames", "weight", "units", "prompt_codes", "prompt_frames", "prompt_units"),
    "cut_prompt": PROMPTED,
    "speaker_prompt": PROMPTED,
    "speaker_prefix": (*PROMPTED, "prompt_phones", "prompt_durations"),
}
ALIGNED = ("cut_prompt", "speaker_prompt", "speaker_prefix")  # cut between phones
OTHERS = ("speaker_prompt", "speaker_prefix")  # the prompt is of another utterance


def paths(data: Mapping[str, Any]) -> list[str]:
    """The data sets of `data.path`: one folder or URL, several with commas between them, or a list."""
    path = data["path"]
    return [part.strip() for part in os.fspath(path).split(",")] if isinstance(path, (str, os.PathLike)) else [os.fspath(p) for p in path]


def segments(data: Mapping[str, Any]) -> list[Segment]:
    """`data.weights`: ((from step, (a weight for each data set)), ...), or empty; no weights, (0, ()), are shares in proportion.

    Raises ValueError for anything else.
    """
    try:
        return [(int(start), tuple(map(float, weights))) for start, weights in data.get("weights") or ()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.data.weights={data['weights']}; expected ((0, (3, 1)), (50000, (1, 1))): from which step, "
                         "a weight for each data set of config.data.path") from error


def fingerprint(data: Mapping[str, Any]) -> str:
    """The fingerprint of the data set at `data.path`, or those of all with a space between. Raises FileNotFoundError."""
    return " ".join(Dataset.open(path).fingerprint for path in paths(data))


def order(data: Mapping[str, Any], fields: Mapping[str, Any] | None = None) -> Callable[[int], dict[str, Any]]:
    """`order(data, fields)(step)`: what decides, beside the data sets and the seed, which utterances the batches before `step` had, config
    field -> JSON value. A checkpoint keeps it.

    The data sets are asked once, as a feed asks them when it begins. Weights that begin at `step` or later are left out: they may still
    change. Where the `fields` of a batch need phones, how many each utterance has decides on its bucket.
    """
    sets = [Dataset.open(path) for path in paths(data)] if fields else []
    counted = [text_counts(groups_for(fields, data, dataset), dataset, data["split"]) for dataset in sets]
    counted = [counts for counts in counted if counts is not None]
    said: dict[str, Any] = {name: data[name] for name in ("split", "transform", "buckets", "sample_rate", "hop")}
    said["cut"] = cut = dict(data.get("cut") or {})
    if quality.bounds(cut):  # the bounds alone do not say what is left out: the columns may have been measured again
        said["cut"] = {**cut, "columns": [quality.fingerprint(Dataset.open(path), data["split"], cut) for path in paths(data)]}
    fixed = {f"config.data.{name}": json.loads(json.dumps(value, default=dict)) for name, value in said.items()}
    if counted:
        fixed["the alignment of config.data.path"] = hashlib.sha256(b"".join(counts.tobytes() for counts in counted)).hexdigest()[:12]
    served = segments(data)

    def before(step: int) -> dict[str, Any]:
        weights = [[start, list(shares)] for start, shares in served if start < step]
        return {**fixed, "config.data.weights": [] if weights == [[0, []]] else weights}

    return before


def codes_group(data: Mapping[str, Any], dataset: Dataset) -> str:
    """The group of codes that `data.codes` names. Raises ValueError when it names none."""
    if not data.get("codes"):
        there = [group for group in dataset.groups if group.startswith("codes-")]
        raise ValueError(
            "config.data.codes is empty: name the codec by its hash (12 hex digits) "
            f"or set init_from; {dataset.root} has {there or 'no codes'}"
        )
    return f"codes-{data['codes']}"


def units_group(data: Mapping[str, Any], dataset: Dataset) -> str:
    """The group of units that the SentencePiece model `data.units` wrote. Raises ValueError when there is no such file."""
    path = data.get("units") or ""
    if not os.path.isfile(path):
        there = [group for group in dataset.groups if group.startswith("units-")]
        raise ValueError(f"config.data.units={path!r} is no file; expected the SentencePiece model that stage `tokenizer` of "
                         f"data_pipelines.run wrote. {dataset.root} has {there or 'no units'}")
    with open(path, "rb") as file:
        return f"units-{hashlib.sha256(file.read()).hexdigest()[:12]}"


def tokens_group(data: Mapping[str, Any], dataset: Dataset) -> str:
    """The group of semantic tokens: that of the tokenizer `data.tokenizer` names, or the only one there is. Raises ValueError."""
    there = [group for group in dataset.groups if group.startswith("semantic-")]
    if data.get("tokenizer"):
        return f"semantic-{data['tokenizer']}"
    if len(there) != 1:
        raise ValueError(f"{dataset.root} has {there or 'no semantic tokens (data_pipelines.tokens makes them)'}; "
                         "name a tokenizer by its hash in config.data.tokenizer")
    return there[0]


def groups_for(fields: Mapping[str, Any], data: Mapping[str, Any], dataset: Dataset) -> dict[str, str]:
    """Kind of group ("audio", "align", ...) -> the group to read. Raises ValueError for a field that no transform makes."""
    transform = data["transform"]
    if transform not in OFFERS:
        raise ValueError(f"config.data.transform={transform!r} is not one of {sorted(OFFERS)}")
    kinds = {"align"} if transform in ALIGNED else set()
    for name in fields:
        if name not in OFFERS[transform]:
            raise ValueError(f"field {name!r} does not come out of transform {transform!r}, which offers {sorted(OFFERS[transform])}")
        kind = SOURCES[name.removeprefix("prompt_")]
        kinds |= {kind} if kind else set()
    named = {"codes": codes_group, "semantic": tokens_group, "units": units_group}
    return {kind: named[kind](data, dataset) if kind in named else kind for kind in sorted(kinds)}


def text_counts(groups: Mapping[str, str], dataset: Dataset, split: str) -> np.ndarray | None:
    """Phones or units of every utterance, int64 `[n]`, where a batch has them: what a bucket's `p` must hold."""
    group = groups.get("align") or groups.get("units")
    return dataset.counts(split, group) if group else None


def check(
    dataset: Dataset, data: Mapping[str, Any], groups: Mapping[str, str], fields: Mapping[str, Any], constants: Mapping[str, int],
    inventory: str | None,
) -> None:  # fmt: skip
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
        if kind == "align" and made_up_times(dataset, group):
            made_up = f"{dataset.root}/{group} has evenly spaced phone times, to train an aligner on"
            if {"durations", "prompt_durations"} & set(fields) or data["transform"] in ("cut_prompt", "speaker_prefix"):
                raise ValueError(f"{made_up}; for this, make real ones: python -m data_pipelines.learned_align --data={dataset.root} --aligner=DIR")
            if data["transform"] in ALIGNED:
                logging.warning("%s: a speaker's only utterance has no prompt, since nobody knows where to cut one out of it", made_up)


def made_up_times(dataset: Dataset, group: str) -> bool:
    """Whether phone times are only spread evenly, as `data_pipelines.learned_align` leaves them without an aligner."""
    return dataset.manifest["groups"][group].get("aligner") == "none"


class StepSource:
    """Grain's random-access protocol over batches: `source[i]` is this host's rows of batch `start_step + i`."""

    def __init__(
        self, datasets: Sequence[Dataset], plan: Mixture, data: Mapping[str, Any], fields: Mapping[str, Any],
        constants: Mapping[str, int], groups: Mapping[str, str], *, split: str, start_step: int, parts: tuple[Sequence[int], int],
        epochs: int | None,
    ):  # fmt: skip
        self.datasets, self.plan, self.groups, self.split = list(datasets), plan, dict(groups), split
        self.transform, self.hop = data["transform"], int(data["hop"])
        self.gain_db = float(data.get("gain_db", 0.0))
        self.fields = {name: (field.axes, np.dtype(field.dtype)) for name, field in fields.items()}
        self.constants = dict(constants)
        self.start_step, (self.parts, self.total), self.epochs = start_step, parts, epochs
        asked = {SOURCES[name.removeprefix("prompt_")] for name in fields if name.startswith("prompt_")} - {None}
        self.prompt_groups = {kind: self.groups[kind] for kind in asked or {"align"} & set(groups)}
        self.speakers = [kept_speakers(dataset, data, split) for dataset in self.datasets] if self.transform in OTHERS else []

    def __len__(self) -> int:
        return ENDLESS if self.epochs is None else max(0, self.epochs * self.plan.steps_per_epoch - self.start_step)

    def __repr__(self) -> str:
        place = f"split={self.split!r}, start_step={self.start_step}, parts={list(self.parts)} of {self.total}"
        return f"StepSource({self.datasets!r}, {self.plan!r}, {place})"

    def __getitem__(self, index: int) -> Batch:
        if index < 0:
            raise IndexError("a feed has no end to count from")
        step = self.start_step + int(index)
        source, at, ids = self.plan.step(step)
        dataset, bucket = self.datasets[source], self.plan.buckets[at]
        size = len(ids) // self.total
        rows = [row for part in self.parts for row in range(part * size, (part + 1) * size)]
        sizes = {**self.constants, **bucket, "s": bucket["t"] * self.hop, "v": bucket.get("u", 0) * self.hop, "b": len(rows)}
        batch = {name: np.zeros([sizes[axis] for axis in axes], dtype) for name, (axes, dtype) in self.fields.items()}
        real = [(place, int(ids[row])) for place, row in enumerate(rows) if ids[row] != PADDING]
        chance = self.transform != "whole" or self.gain_db
        rngs = [self.plan.row_rng(step, rows[place]) if chance else None for place, _ in real]
        others = [self.speakers[source].another(i, rng) for (_, i), rng in zip(real, rngs)] if self.speakers else [None] * len(real)
        for (place, _), row in zip(real, self.rows(dataset, [i for _, i in real], others, bucket, rngs)):
            values = {"weight": 1.0, **row}
            for name, array in batch.items():
                value = np.asarray(values[name])
                if value.ndim:
                    value = value[: sizes["s"]] if name == "audio" else value  # the part of a frame at the end of a recording
                    array[place][tuple(map(slice, value.shape))] = value
                else:
                    array[place] = value
        return batch

    def rows(
        self, dataset: Dataset, ids: Sequence[int], others: Sequence[int | None], bucket: Mapping[str, int],
        rngs: Sequence[np.random.Generator | None],
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """The utterances after the transform, unpadded; everything they need is read at once."""
        prompting = [i for i in others if i is not None]
        wanted = {group: [*ids, *(prompting if kind in self.prompt_groups else ())] for kind, group in self.groups.items()}
        found = dataset.read_many(self.split, wanted)
        prompts = iter(range(len(ids), len(ids) + len(prompting)))
        least = int(PROMPT_SECONDS * dataset.sample_rate / self.hop)
        for place, (i, other, rng) in enumerate(zip(ids, others, rngs)):
            utterance = self.utterance(dataset, i, {kind: found[group][place] for kind, group in self.groups.items()})
            if "audio" in utterance and self.gain_db:
                utterance["audio"] = transforms.gain(utterance["audio"], self.gain_db, rng)
            if self.transform == "crop":
                yield transforms.crop(utterance, bucket["t"], self.hop, rng)
            elif self.transform == "whole":
                yield transforms.whole(utterance)
            elif self.transform == "prefix":
                yield transforms.prefix(utterance, bucket["u"], self.hop, rng)
            else:
                prompt = None  # a speaker's only utterance
                if other is not None:
                    at = next(prompts)
                    prompt = self.utterance(dataset, other, {kind: found[group][at] for kind, group in self.prompt_groups.items()})
                if self.transform == "speaker_prefix":
                    if prompt is not None and "durations" not in prompt:
                        prompt = None  # nobody knows what it says
                    yield transforms.speaker_prefix(utterance, prompt, bucket["u"], bucket["p"], self.hop, least, rng)
                elif prompt is None and made_up_times(dataset, self.groups["align"]):
                    yield transforms.unprompted(utterance, self.hop)
                elif prompt is None:
                    yield transforms.cut_prompt(utterance, bucket["u"], self.hop, least, rng)
                else:
                    yield transforms.speaker_prompt(utterance, prompt, bucket["u"], self.hop, rng)

    def utterance(self, dataset: Dataset, i: int, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What the transforms take, from utterance `i`'s record of each group that the fields need (`found`: kind -> record)."""
        lengths = {record["num_samples"] for record in found.values()}
        if len(lengths) != 1:
            raise ValueError(
                f"{dataset.root}: groups {list(self.groups.values())} disagree on the "
                f"length of utterance {i} of {self.split!r}: {sorted(lengths)}"
            )
        samples = lengths.pop()
        frames = frames_lib.frame_count(samples, self.hop)
        out: dict[str, Any] = {"frames": frames}
        for kind, record in found.items():
            if kind == "audio":
                out["audio"] = record["audio"].astype(np.float32) / 32768
            elif kind == "align" and len(record["ends"]):  # a prompt need not be aligned
                out["phones"] = record["phones"]
                out["durations"] = frames_lib.durations(record["ends"], samples, dataset.sample_rate, self.hop)
            elif kind == "f0":
                out["f0"] = frames_lib.f0_at_frames(record["f0"], dataset.f0_period, self.hop, frames)
            elif kind == "units":
                out["units"] = record["units"]
            elif kind == "codes":
                if len(record["codes"]) != frames:
                    raise ValueError(
                        f"{dataset.root}/{self.groups[kind]}: utterance {i} of {self.split!r} has "
                        f"{len(record['codes'])} code frames, its audio has {frames}"
                    )
                out["codes"] = record["codes"][:, : self.constants.get("q")]
            elif kind == "semantic":
                period = dataset.manifest["groups"][self.groups[kind]]["hop"]
                out["semantic"] = frames_lib.tokens_at_frames(record["tokens"], period, self.hop, frames)
        return out


def _worker(index: int, count: int) -> None:
    """A killed trainer takes its workers and their shared memory along. One that is asked to end, with its whole group, needs
    them until its last step: they end with it (`_end_workers`)."""
    del index, count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # Python tells its resource tracker of shared memory a moment after making it; killed in between, it would stay. So: before.
    make = shared_memory._make_filename

    def told() -> str:
        name = make()
        resource_tracker.register(name, "shared_memory")
        return name

    shared_memory._make_filename = told


def _end_workers() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def kept_speakers(dataset: Dataset, data: Mapping[str, Any], split: str) -> speakers.Speakers:
    """Who speaks the utterances that `data.cut` keeps: a prompt is of them too."""
    everyone = speakers.load(dataset, split)
    return everyone.only(quality.keep(dataset, split, data["cut"])[0]) if data.get("cut") else everyone


def plan_of(
    dataset: Dataset, data: Mapping[str, Any], buckets: Sequence[Mapping[str, int]], split: str, seed: int, phones: np.ndarray | None
) -> StepPlan:
    """The plan of one data set, of what `data.cut` keeps. Raises ValueError when its utterances do not fit the buckets, warns when some
    do not, and raises as `quality.keep`."""
    frames, cut = dataset.frames(split, data["hop"]), 0
    if data.get("cut"):
        keep, outside = quality.keep(dataset, split, data["cut"])
        cut, lost = int((~keep).sum()), frames[~keep].sum() / max(int(frames.sum()), 1)
        about = f"{cut} of {len(keep)} utterances of {split} of {dataset.root} ({100 * lost:.0f} % of its hours); by column {outside}"
        if cut == len(keep):
            raise ValueError(f"config.data.cut leaves out {about}")
        logging.info("config.data.cut leaves out %s", about)
        frames = np.where(keep, frames, 0)  # what has no frame fits no bucket
    plan = StepPlan(
        frames,
        buckets,
        fingerprint=f"{dataset.fingerprint} {split}",
        seed=seed,
        phones=phones,
        crop=data["transform"] == "crop",
    )
    if unfit := plan.left_out - cut:
        lost = plan.left_out_frames / max(int(frames.sum()), 1)
        about = f"{unfit} of {dataset.records(split)} utterances of {split} ({100 * lost:.0f} % of its hours)"
        if lost > MOST_LEFT_OUT:
            raise ValueError(f"{about} fit no bucket of config.data.buckets; add a longer bucket (t frames, p phones)")
        logging.warning("%s fit no bucket of config.data.buckets and are left out", about)
    return plan


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
      data: `config.data`: path (of one or several data sets), split, transform ("crop", "whole", "cut_prompt", "speaker_prompt",
        "speaker_prefix" or "prefix"),
        buckets, sample_rate (Hz), hop (samples), codes (hash), workers (processes; 0 = one thread), optional gain_db, weights
        and cut (quality column -> (lowest, highest)).
      fields: name -> anything with `.axes` and `.dtype`; axis letters get lengths from the bucket, `s` is `t * hop`, `v` `u * hop`, and
        `constants` fills the others (`q`).
      split: instead of `data.split`.
      parts: (which, of how many): every batch is cut into so many runs of rows, and these are this host's
        (`runtime.mesh.host_parts`). A row is the same row, with the same noise, on any number of hosts.
      epochs: stop after so many from step 0; None goes on for ever.
      inventory: hash of the phone inventory in use; compared with the data set's when phones are read.

    Raises FileNotFoundError without a data set; ValueError when it is not what the config says (rate, hop, codec, phones,
    groups, split) or when nothing fits a bucket.
    """
    datasets = [Dataset.open(path) for path in paths(data)]
    split, weights = split or data["split"], segments(data)
    for dataset in datasets:
        dataset.check_split(split)
        groups = groups_for(fields, data, dataset)
        check(dataset, data, groups, fields, constants, inventory)
    if epochs is not None and weights:
        raise ValueError("a weighted mixture (config.data.weights) has no common epoch: its data sets come round at different times")
    buckets = [{axis: int(length) for axis, length in bucket.items()} for bucket in data["buckets"]]
    for bucket in buckets:
        needed = {axis for field in fields.values() for axis in field.axes} - set(constants) - {"s", "v"} | {"b", "t"}
        needed |= {"u", "p"} if data["transform"] in ALIGNED else set()
        if missing := sorted(needed - set(bucket)):
            raise ValueError(f"config.data.buckets: {bucket} has no {missing[0]!r}, which {sorted(fields)} need")
        if bucket["b"] % parts[1]:
            raise ValueError(f"config.data.buckets: b={bucket['b']} does not divide into {parts[1]} parts")
    plan = Mixture([plan_of(dataset, data, buckets, split, seed, text_counts(groups, dataset, split)) for dataset in datasets], weights)
    source = StepSource(
        datasets, plan, data, fields, constants, groups, split=split, start_step=start_step, parts=parts, epochs=epochs
    )
    threads = REMOTE_THREADS if any(dataset.remote for dataset in datasets) else 1
    feed = grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2))
    if workers := int(data.get("workers", 0)):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its flags even in programs that have none
        atexit.register(_end_workers)  # before multiprocessing's own end, which would wait for them
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        feed = feed.mp_prefetch(options, worker_init_fn=_worker)
    return iter(feed)
