"""Phone times by the learned aligner: no acoustic model, any language that has phones. Writes the group `align` of a data set.

    python -m data_pipelines.learned_align --data=DIR                   phones of every text with provisional times, to train an aligner on
    python -m ns2_jax.train --config=configs/aligner.py:small --config.data.path=DIR --workdir=runs/aligner
    python -m data_pipelines.learned_align --data=DIR --aligner=runs/aligner            their times

The text is phonemised in its own language, and every word may be followed by a pause; pauses that are not there are dropped from the
records. Interrupted, it goes on where it stopped; another aligner replaces the group. What cannot be aligned stays empty, so that all groups
hold the same utterances (a feed leaves it out), and is listed in `DIR/rejects/align/` with its reason.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from data_pipelines import shards, transcripts
from data_pipelines.shards import Rejected
from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.inference import aligning
from ns2_jax.runtime import cluster
from ns2_jax.text import front, phones

PAUSE = phones.IDS[phones.SILENCE]
WORST = 1.0  # nats a frame; `small` gives right texts at least 1.8, those of other utterances at most 0.6, half of the text 0.1
HURRIED = 3  # spoken phones in a row of one frame each, `small` gives right texts at most 1; those with too many words have more
AT_ONCE = 64  # utterances in memory


def offered(text: str, language: str = "en", lexicon: Mapping[str, Any] | None = None) -> np.ndarray:
    """Phone ids uint8 `[p]` of a text with a pause before, after and between all words. Raises ValueError for an unpronounceable one."""
    names = [phones.SILENCE]
    for word in front.words(text, lexicon, language):
        if word.phones and word.phones != (phones.SILENCE,):
            names += [*word.phones, phones.SILENCE]
    return phones.ids(names).astype(np.uint8)


def provisional(ids: np.ndarray, samples: int) -> np.ndarray:
    """Evenly spaced ends int32 `[p]`, the last `samples`."""
    return (np.arange(1, len(ids) + 1, dtype=np.int64) * samples // len(ids)).astype(np.int32)


def longest_run(wanted: np.ndarray) -> int:
    """The most neighbours of a bool `[n]` that are all true."""
    apart = np.flatnonzero(np.concatenate([[True], ~wanted, [True]]))
    return int(np.diff(apart).max()) - 1


def align_rows(model: inference.Model, audios: list[np.ndarray], ids: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray] | Rejected]:
    """(phones uint8 `[p]` without the pauses that are not there, ends int32 `[p]` in samples, the last the recording's) of recordings
    float32 `[s]` and offered phones, or why not; a row does not depend on the others.

    A text that was not said is refused by its score (WORST), one that says more than the recording by phones that are squeezed into
    nothing (HURRIED). A recording that says more than its text is mostly not noticed: its phones are stretched.
    """
    out: list[Any] = []
    for audio, row in zip(audios, ids, strict=True):
        least, there = int((row != PAUSE).sum()), len(audio) // model.hop
        short = f"{there} frames of {model.hop} samples for {least} phones"
        out.append(Rejected("too_few_frames", short) if there < max(least, 1) else None)
    good = [i for i, wrong in enumerate(out) if wrong is None]
    for i, found in zip(good, aligning.align_all(model, [audios[i] for i in good], [ids[i] for i in good])):
        if found.score < WORST:
            reason = "too_few_frames" if found.score < aligning.SHORTEST else "align_failed"
            out[i] = Rejected(reason, f"score {found.score:.3g} a frame, at least {WORST:g} is expected: the text is not what was said")
        elif (hurried := longest_run(found.durations[ids[i] != PAUSE] == 1)) >= HURRIED:
            detail = f"{hurried} phones in a row have one frame each: the text says more than the recording"
            out[i] = Rejected("align_failed", detail)
        else:
            kept = found.durations > 0
            out[i] = ids[i][kept].astype(np.uint8), found.ends[kept]
    return out


@functools.lru_cache(maxsize=1)
def load(aligner: str) -> inference.Model:
    """The aligner of an export or a run, loaded once a process. Raises ValueError for another model."""
    model = inference.load(aligner)
    if "align" not in model.programs:
        raise ValueError(f"{aligner} does not align; give the run or export of an aligner (configs/aligner.py)")
    return model


def check(dataset: Dataset, model: inference.Model | None) -> None:
    """Raises ValueError for an aligner of another sample rate."""
    if model is not None and model.rate != dataset.sample_rate:
        raise ValueError(f"{model.name} works at {model.rate} Hz, {dataset.root} is at {dataset.sample_rate} Hz")


def keep_times(dataset: Dataset) -> None:
    """Raises ValueError when the data set's times are no aligner's and would be lost."""
    if "align" in dataset.groups and "aligner" not in dataset.manifest["groups"]["align"]:
        raise ValueError(f"{dataset.root}/align came with the data set and would be lost; move or delete that folder to have it made anew")


def align_shard(root: str, settings: tuple[str, str], split: str, shard: int, total: int) -> int:
    """Writes one shard of `align`; `settings` are the aligner's path and the lexicon's, "" for provisional times and for none.

    Returns how many utterances could not be aligned: they stay empty, and the marker counts them.
    """
    aligner, lexicon = settings
    model, table = load(aligner) if aligner else None, front.read_lexicon(lexicon or None)

    def make(batch: list[dict[str, dict]]) -> list[dict[str, np.ndarray] | Rejected]:
        out: list[Any] = []
        for meta in (rows["meta"] for rows in batch):
            try:
                out.append(offered(meta["text"], meta["lang"], table))
            except ValueError as error:
                out.append(Rejected("unpronounceable", str(error)))
        good = [i for i, ids in enumerate(out) if not isinstance(ids, Rejected)]
        ids = [out[i] for i in good]
        if model is None:
            found: list[Any] = [(row, provisional(row, batch[i]["meta"]["num_samples"])) for i, row in zip(good, ids)]
        else:
            found = align_rows(model, [batch[i]["audio"]["audio"].astype(np.float32) / 32768 for i in good], ids)
        for i, one in zip(good, found):
            out[i] = one if isinstance(one, Rejected) else {"phones": one[0], "ends": one[1]}
        return out

    info = {"aligner": "none" if model is None else inference.codec_hash(model), "lexicon": transcripts.fingerprint(lexicon),
            "phones": phones.inventory_hash()}  # fmt: skip
    sources, tools = ["audio"] if model is not None else [], {"jax": jax.__version__}
    empty = {"phones": np.zeros(0, np.uint8), "ends": np.zeros(0, np.int32)}
    return shards.derive(root, "align", split, shard, total, make, empty=empty, sources=sources, info=info, tools=tools, at_once=AT_ONCE)


def align(root: str | os.PathLike, aligner: str = "", lexicon: str = "") -> dict[str, int]:
    """Writes the group of every split and returns {"in": utterances, reason: count}.

    Raises FileNotFoundError without a data set or aligner, ValueError as `load`, `keep_times` and `check`.
    """
    if not str(root):
        raise ValueError("--data is empty: name a data set, e.g. one made by data_pipelines.run")
    dataset = Dataset.open(root)
    keep_times(dataset)
    check(dataset, load(aligner) if aligner else None)
    for split in dataset.splits:
        work = functools.partial(align_shard, str(root), (aligner, lexicon), split, total=dataset.manifest["splits"][split]["shards"])
        shards.run_shards(work, dataset.manifest["splits"][split]["shards"], 0, f"align {split}")
    manifest = shards.write_manifest(root, phones=phones.inventory_hash(), needed=["align"])
    return {"in": sum(dataset.records(split) for split in dataset.splits), **manifest["groups"]["align"]["rejects"]}


def main(argv: list[str]) -> None:
    del argv
    cluster.start(lambda line: None)
    counts = align(flags.FLAGS.data, flags.FLAGS.aligner, flags.FLAGS.lexicon)
    number, how = counts.pop("in"), "aligned" if flags.FLAGS.aligner else "given provisional times"
    logging.info("%d utterances %s; not aligned: %s", number, how, counts or "none")


if __name__ == "__main__":
    flags.DEFINE_string("data", "", "the data set (a folder with manifest.json)")
    flags.DEFINE_string("aligner", "", "the aligner, a run or an export; empty: provisional times to train one on")
    flags.DEFINE_string("lexicon", "", "a file of `word  PH OW1 N Z` lines")
    cluster.run(main)
