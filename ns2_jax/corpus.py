"""A corpus spoken by a model: every utterance of a data set again, in the voice of another recording of its speaker.

What `synthesize --batch=DATA --out=DIR` makes has the groups `meta`, `audio` and `align` (the phones with the times that the model gave
them) of every shard of DATA, in the same record format; F0, codes and the rest are added by `data_pipelines.run`. An utterance keeps its text,
speaker and split; its `source` says that it is synthetic, by which model, seed and prompt. A prompt is the next recording of the same speaker in
the shard, its own where there is no other.

A shard is finished or not there, and the same command goes on with those that are not; other weights, options or data make it anew. Hosts
share the shards of a split, a host's devices the rows of a batch.
"""

from __future__ import annotations

import json
import os
import pathlib
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

import ns2_jax
from ns2_jax import inference
from ns2_jax.data import dataset, manifest, records
from ns2_jax.runtime import cluster

GROUPS = ("meta", "audio", "align")
AT_ONCE = 64  # utterances given to the model together: eight for each of eight devices
PROMPT = 10.0  # seconds of a recording that are heard


def finished(out: str | os.PathLike, split: str, shard: int, shards: int, inputs: Mapping[str, str]) -> bool:
    """Whether every group of a shard has been made from these inputs."""
    for group in GROUPS:
        path = records.shard_path(out, group, split, shard, shards)
        try:
            marker = records.load_marker(records.marker_path(path).read_bytes(), path)
            empty = not marker["records"]  # what kept all of it from being spoken may have been mended
            if empty or marker.get("inputs") != dict(inputs) or path.stat().st_size != marker["bytes"]:
                return False
        except (FileNotFoundError, records.Corrupt):
            return False
    return True


def check_out(out: str | os.PathLike, work: Collection[tuple[str, int, int]]) -> None:
    """Raises ValueError where `out` holds records that are not from here, or of other shards (split, number, how many) than `work`."""
    for group in GROUPS:
        expected = {records.shard_path(out, group, *one) for one in work}
        for path in sorted(pathlib.Path(out).glob(f"{group}/*-of-*.tfrecord")):
            try:
                ours = records.load_marker(records.marker_path(path).read_bytes(), path)["tools"].get("synthetic") == "true"
            except (FileNotFoundError, records.Corrupt):
                ours = True  # was not finished, or is broken: its name must do
            if not ours or path not in expected:
                raise ValueError(f"--out={out} holds another data set ({path.relative_to(out)}), which would be overwritten; choose another folder")


def prompts_of(speakers: list[str]) -> list[int]:
    """For each place the next one of the same speaker, the first after the last; itself where there is no other."""
    places: dict[str, list[int]] = {}
    for i, speaker in enumerate(speakers):
        places.setdefault(speaker, []).append(i)
    following = {i: own[(k + 1) % len(own)] for own in places.values() for k, i in enumerate(own)}
    return [following[i] for i in range(len(speakers))]


def speak_shard(model: inference.Model, data: dataset.Dataset, out: str | os.PathLike, split: str, shard: int, seed: int,
                options: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
    """Writes one shard; returns why utterances could not be spoken, a reason each (they are left out and counted in the markers)."""
    shards = data.manifest["splits"][split]["shards"]
    counts = [data.marker("meta", split, k)["records"] for k in range(shard + 1)]
    begin, reasons = sum(counts[:-1]), []
    metas = [data.read(split, "meta", begin + i) for i in range(counts[-1])]
    prompts = prompts_of([str(meta["speaker"]) for meta in metas])
    tools = {"ns2_jax": ns2_jax.__version__, "model": model.hash, "synthetic": "true"}
    longest = None if model.continues else int(PROMPT * data.sample_rate)  # its text is that of all of it
    writers = {group: records.ShardWriter(out, group, split, shard, shards, base_hop=data.base_hop, tools=tools, inputs=inputs) for group in GROUPS}
    with records.committing(writers):
        for first in range(0, len(metas), AT_ONCE):
            part = range(first, min(first + AT_ONCE, len(metas)))
            languages = {str(metas[i]["lang"]) for i in part}
            for language in sorted(languages):
                rows = [i for i in part if metas[i]["lang"] == language]
                voices = [data.read(split, "audio", begin + prompts[i])["audio"][:longest] for i in rows]
                voices = [(voice.astype(np.float32) / 32768, data.sample_rate) for voice in voices]
                if model.continues:
                    voices = [inference.Said(voice, str(metas[prompts[i]]["text"]), PROMPT) for i, voice in zip(rows, voices)]
                requests = [(str(metas[i]["text"]), voice) for i, voice in zip(rows, voices)]
                seeds = [zlib.crc32(f"{seed} {metas[i]['utt_id']}".encode()) for i in rows]
                failures: dict[int, str] = {}
                made = model.speak_batch(requests, seeds, language=language, failures=failures, **options)
                reasons += [f"{metas[rows[k]]['utt_id']}: {why}" for k, why in sorted(failures.items())]
                for i, speech in zip(rows, made):
                    if speech is None:
                        writers["meta"].reject("not_spoken")
                        continue
                    pcm = np.frombuffer(inference.wav_samples(speech), "<i2")
                    text = {key: str(value) for key, value in metas[i].items() if key != "num_samples"}
                    made_by = f"synthetic, {speech.origin.system} {model.hash}, seed {speech.origin.seed}, voice of {metas[prompts[i]]['utt_id']}"
                    text |= {"utt_id": f"{text['utt_id']}-spoken", "source": f"{made_by}: {text['source']}"}
                    times = {"phones": inference.inventory.ids(list(speech.phones)).astype(np.uint8), "ends": speech.ends.astype(np.int32)}
                    for group, values in (("meta", text), ("audio", {"audio": pcm.astype(np.int16)}), ("align", times)):
                        writers[group].write(values, len(pcm))
    return reasons


def speak(model: inference.Model, source: str, out: str, seed: int = 0, options: Mapping[str, Any] | None = None,
          say: Callable[[str], Any] = cluster.say) -> dict[str, Any]:
    """The corpus at `out`; returns its manifest. Every host calls it, and all write to the same folder.

    Raises ValueError where `source` is of another sample rate than the model, where nothing in it could be spoken, or `out` is `source` or another
    corpus; FileNotFoundError where `source` is no data set.
    """
    data, options = dataset.Dataset.open(source), {key: value for key, value in (options or {}).items() if value is not None}
    if data.sample_rate != model.rate:
        raise ValueError(f"{source} has {data.sample_rate} Hz, {model.name} speaks at {model.rate} Hz; make the data set at that rate")
    if os.path.abspath(out) == os.path.abspath(source):
        raise ValueError(f"--out={out} is the data set that is read; choose another folder")
    pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    work = [(split, shard) for split in data.splits for shard in range(data.manifest["splits"][split]["shards"])]
    check_out(out, {(split, shard, data.manifest["splits"][split]["shards"]) for split, shard in work})
    shown = json.dumps({"seed": seed, **options}, sort_keys=True, default=str)
    told: list[tuple[int, str]] = []  # of each shard, how many utterances were spoken and why the first was not
    for split, shard in cluster.share(work):
        inputs = {"model": model.hash, "options": shown, **{group: data.marker(group, split, shard)["sha256"] for group in ("meta", "audio")}}
        shards = data.manifest["splits"][split]["shards"]
        if finished(out, split, shard, shards, inputs):
            say(f"{split} {shard + 1} of {shards} is there")
            told.append((1, ""))
            continue
        reasons = speak_shard(model, data, out, split, shard, seed, options, inputs)
        first = f"; {len(reasons)} utterances could not be spoken, the first: {reasons[0]}" if reasons else ""
        say(f"{split} {shard + 1} of {shards} is made{first}")
        told.append((data.marker("meta", split, shard)["records"] - len(reasons), reasons[0] if reasons else ""))
    told = cluster.gather(told)  # every host is done
    if (why := next((why for _, why in told if why), "")) and not any(spoken for spoken, _ in told):
        raise ValueError(f"{source}: none of its texts could be spoken; the first, {why}")
    if not cluster.is_first():
        return {}
    return manifest.write_manifest(out, name=f"{data.manifest['name']}, spoken", sample_rate=data.sample_rate, base_hop=data.base_hop,
                                   f0_period=data.f0_period, phones=inference.phones_of(model)["hash"], needed=["align"])  # fmt: skip
