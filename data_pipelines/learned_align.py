"""Phone times by the learned aligner: no acoustic model, any language that has phones. Writes the group `align` of a data set.

    python -m data_pipelines.learned_align --data=DIR                   phones of every text with provisional times, to train an aligner on
    python -m ns2_jax.train --config=configs/aligner.py:small --config.data.path=DIR --workdir=runs/aligner
    python -m data_pipelines.learned_align --data=DIR --aligner=runs/aligner            their times

`--phones=text` (default) phonemises the text and lets every word be followed by a pause; pauses that are not there
are dropped from the records. `--phones=align` keeps the phones that the data set has and gives them new times. Interrupted, it
goes on where it stopped; another aligner replaces the group. What cannot be aligned keeps provisional times, so that all groups hold
the same utterances, and is listed in `DIR/rejects/align-*.jsonl` with its reason.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections import Counter
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from data_pipelines import batches, shards
from ns2_jax import inference
from ns2_jax.data import records
from ns2_jax.data.dataset import Dataset
from ns2_jax.inference import aligning
from ns2_jax.runtime import cluster
from ns2_jax.text import front, phones

PAUSE = phones.IDS[phones.SILENCE]
SOURCES = ("text", "align")
WORST = 1.0  # nats a frame; `small` gives right texts at least 1.8, those of other utterances at most 0.6, half of the text 0.1
AT_ONCE = 64  # utterances in memory


@dataclasses.dataclass(frozen=True)
class Reject:
    """Why an utterance has no alignment: one word, and a sentence."""

    reason: str
    detail: str


def offered(text: str, language: str = "en") -> np.ndarray:
    """Phone ids uint8 `[p]` of a text with a pause before, after and between all words. Raises ValueError for an unpronounceable one."""
    names = [phones.SILENCE]
    for word in front.words(text, language=language):
        if word.phones and word.phones != (phones.SILENCE,):
            names += [*word.phones, phones.SILENCE]
    return phones.ids(names).astype(np.uint8)


def provisional(ids: np.ndarray, samples: int) -> np.ndarray:
    """Evenly spaced ends int32 `[p]`, the last `samples`."""
    return (np.arange(1, len(ids) + 1, dtype=np.int64) * samples // len(ids)).astype(np.int32)


def align_rows(model: inference.Model, audios: list[np.ndarray], ids: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray] | Reject]:
    """(phones uint8 `[p]` without the pauses that are not there, ends int32 `[p]` in samples, the last the recording's) of recordings
    float32 `[s]` and offered phones, or why not. A shard of any stage is a list of these calls; a row does not depend on the others."""
    fits = []
    for audio, row in zip(audios, ids, strict=True):
        least, there = int((row != PAUSE).sum()), len(audio) // model.hop
        if there < max(least, 1):
            fits.append(Reject("too_few_frames", f"{there} frames of {model.hop} samples for {least} phones"))
        else:
            fits.append(None)
    good = [i for i, fit in enumerate(fits) if fit is None]
    out: list[Any] = list(fits)
    for i, found in zip(good, aligning.align_all(model, [audios[i] for i in good], [ids[i] for i in good])):
        if found.score < WORST:
            reason = "too_few_frames" if found.score < aligning.SHORTEST else "align_failed"
            out[i] = Reject(reason, f"score {found.score:.3g} a frame, at least {WORST:g} is expected: the text is not what was said")
        else:
            kept = found.durations > 0
            out[i] = ids[i][kept].astype(np.uint8), found.ends[kept]
    return out


def _committed(dataset: Dataset, split: str, shard: int, total: int, info: dict[str, Any]) -> bool:
    if not shards.committed(dataset.root, ["align"], split, shard, total):
        return False
    return records.ShardReader(records.shard_path(dataset.root, "align", split, shard, total), "align").marker["info"] == info


def align_shard(
    dataset: Dataset, model: inference.Model | None, info: dict[str, Any], source: str, split: str, shard: int
) -> dict[str, int]:
    """Writes one shard of `align` and returns its rejects by reason; without a model the times are provisional."""
    total = dataset.manifest["splits"][split]["shards"]
    listed = pathlib.Path(dataset.root) / "rejects" / f"align-{split}-{shard:05d}.jsonl"
    if _committed(dataset, split, shard, total, info):
        return {}
    rows, rejects = batches.shard_rows(dataset, split, shard), []
    tools = {"jax": jax.__version__}
    with shards.ShardWriter(dataset.root, "align", split, shard, total, base_hop=dataset.base_hop, info=info, tools=tools) as writer:
        for start in range(rows.start, rows.stop, AT_ONCE):
            part = range(start, min(start + AT_ONCE, rows.stop))
            metas = [dataset.read(split, "meta", i) for i in part]
            if source == "align":
                ids = [dataset.read(split, "align", i)["phones"] for i in part]
            else:
                ids = [offered(meta["text_norm"]) for meta in metas]
            if model is None:
                found: list[Any] = [(row, provisional(row, meta["num_samples"])) for row, meta in zip(ids, metas)]
            else:
                audios = [dataset.read(split, "audio", i)["audio"].astype(np.float32) / 32768 for i in part]
                found = align_rows(model, audios, ids)
            for meta, row, one in zip(metas, ids, found):
                if isinstance(one, Reject):
                    rejects.append({"item": meta["utt_id"], **dataclasses.asdict(one)})
                    one = row, provisional(row, meta["num_samples"])
                writer.write({"phones": one[0], "ends": one[1]}, meta["num_samples"])
    shards.write_lines(listed, rejects)
    return dict(Counter(row["reason"] for row in rejects))


def align(root: str | os.PathLike, model: inference.Model | None, source: str = "text") -> dict[str, int]:
    """Writes the group of every split and returns {"in": utterances, reason: count}.

    Raises FileNotFoundError without a data set; ValueError when `model` is no aligner or one for another sample rate, when `source` is not
    one of SOURCES, or when it is "align" and there is no such group.
    """
    dataset = Dataset.open(root)
    if source not in SOURCES:
        raise ValueError(f"--phones={source} is not one of {SOURCES}")
    if source == "align":
        dataset.check_group("align")
    if model is not None and model.rate != dataset.sample_rate:
        raise ValueError(f"{model.name} works at {model.rate} Hz, {root} is at {dataset.sample_rate} Hz")
    info = {"aligner": "none" if model is None else aligning.name_of(model), "phones": source}
    counts: Counter[str] = Counter()
    for split in dataset.splits:
        work = functools.partial(align_shard, dataset, model, info, source, split)
        for rejects in shards.run_shards(work, dataset.manifest["splits"][split]["shards"], 0, f"align {split}"):
            counts.update(rejects)
    shards.write_manifest(root, phones=phones.inventory_hash(), needed=["align"])
    return {"in": sum(dataset.records(split) for split in dataset.splits), **counts}


def main(argv: list[str]) -> None:
    del argv
    cluster.start(lambda line: None)
    model = inference.load(flags.FLAGS.aligner) if flags.FLAGS.aligner else None
    counts = align(flags.FLAGS.data, model, flags.FLAGS.phones)
    number = counts.pop("in")
    logging.info("%d utterances %s; not aligned: %s", number, "aligned" if model else "with provisional times", counts or "none")


if __name__ == "__main__":
    flags.DEFINE_string("data", "", "the data set (a folder with manifest.json)")
    flags.DEFINE_string("aligner", "", "the aligner, a run or an export; empty: provisional times to train one on")
    flags.DEFINE_enum("phones", "text", SOURCES, "of the text, or those that the data set has")
    cluster.run(main)
