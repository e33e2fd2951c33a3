"""Reads everything back: every checksum, every invariant, every index against its data.

What it finds is kept in `verify/`. A shard in which it found damage counts as unfinished until it is written again, so the command that
made the data set makes this shard again and no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines import plans, quality, shards
from ns2_jax.data import records
from ns2_jax.data.dataset import Dataset
from ns2_jax.data.frames import frame_count
from ns2_jax.text.phones import PHONES


def _invariants(group: str, record: dict[str, Any], marker: dict[str, Any]) -> str:
    """What is wrong with a record, "" for nothing."""
    kind, samples = group.split("-")[0], record["num_samples"]
    if kind == "audio" and len(record["audio"]) != samples:
        return f"{len(record['audio'])} samples of audio, num_samples says {samples}"
    if kind == "align" and len(record["phones"]) != len(record["ends"]):
        return f"{len(record['phones'])} phones and {len(record['ends'])} ends"
    if kind == "align" and len(record["ends"]) and (record["ends"][-1] != samples or (np.diff(record["ends"], prepend=0) <= 0).any()):
        return f"phone ends must rise to num_samples={samples}, not to {record['ends'][-1]}"
    if kind in ("align", "phones") and len(record["phones"]) and not 0 < record["phones"].min() <= record["phones"].max() < len(PHONES):
        return f"phone ids from {record['phones'].min()} to {record['phones'].max()}; the inventory has 1 to {len(PHONES) - 1}"
    if kind == "units" and len(record["units"]) and record["units"].max() >= marker["info"]["size"]:
        return f"unit {record['units'].max()} of a model with {marker['info']['size']}"
    if kind == "f0" and (len(record["f0"]) != samples // marker["info"]["period"] or not (np.isfinite(record["f0"]) & (record["f0"] >= 0)).all()):
        return f"{len(record['f0'])} values of F0 for {samples} samples, or one that is not a frequency"
    if kind == "codes" and record["codes"].shape != (frame_count(samples, marker["info"]["hop"]), marker["info"]["levels"]):
        return f"codes {record['codes'].shape} for {samples} samples"
    if kind == "semantic" and len(record["tokens"]) != max(samples // marker["info"]["hop"], 1):
        return f"{len(record['tokens'])} tokens for {samples} samples"
    if kind == "quality" and len(record["values"]) != len(marker["info"]["columns"]):
        return f"{len(record['values'])} values for the columns {marker['info']['columns']}"
    return ""


def check_shard(path: pathlib.Path, group: str) -> tuple[list[str], list[int]]:
    """(problems, num_samples of every record) of one shard of `group`: its bytes, its index, its records."""
    problems, lengths = [], []
    try:
        reader = records.ShardReader(path, group)
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != reader.marker["sha256"]:
                return [f"{path}: its bytes are not those that were written"], []
        for i, count in enumerate(reader.index["count"].tolist()):
            record = reader.read(i)
            lengths.append(record["num_samples"])
            if what := _invariants(group, record, reader.marker):
                problems.append(f"{path}: record {i}: {what}")
            if count != (true := records.count_of(group, record)):
                problems.append(f"{records.index_path(path)}: record {i}: a count of {count}, its data say {true}")
        reader.close()
    except (ValueError, FileNotFoundError) as error:
        return [str(error)], []
    return problems, lengths


def groups(root: str | os.PathLike) -> list[str]:
    """All that a data set has or should have: what its manifest names, and what lies there."""
    top = pathlib.Path(root)
    there = {path.parent.name for kind in ("json", "tfrecord") for path in top.glob(f"*/*-of-*.{kind}")}
    try:
        there |= set(json.loads((top / "manifest.json").read_bytes())["groups"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        pass  # `collect` says so
    return sorted({"meta", "audio", *there})


def _settled(root: pathlib.Path) -> str:
    """What the manifest says wrong, "" for nothing. Raises as `shards.manifest_of`, and records.Corrupt for a damaged plan."""
    manifest, plan = root / "manifest.json", root / "plan.json"
    said = shards.manifest_of(root)  # a rate that only the manifest says is taken from there
    if not manifest.exists() or json.loads(manifest.read_text()) != said:
        return f"{manifest}: it does not say what the shards do; stage index writes it again"
    period = said["groups"].get("f0", {}).get("period", said["f0_period"])
    rate = said["sample_rate"]
    if plan.exists():
        plans.read_list(root / "plan" / "rejects.jsonl")
        rate = plans.read_plan(plan)["rate"]
    if (period, rate) != (said["f0_period"], said["sample_rate"]):
        return (f"{manifest}: a rate of {said['sample_rate']} Hz and F0 every {said['f0_period']} samples, but it was made with {rate} and "
                f"{period}; stage index writes it again")
    return ""


def verify_shard(root: str, settings: Sequence[str], split: str, shard: int, total: int) -> None:
    """Checks one shard of every group (`settings` are their names) and writes what it found to `verify/`."""
    problems, checked, lengths, damaged = [], {}, {}, {}
    path = shards.verified_path(root, split, shard)
    path.unlink(missing_ok=True)
    made: dict[str, dict[str, Any]] = {}
    for group in settings:
        data = records.shard_path(root, group, split, shard, total)
        found, lengths[group] = check_shard(data, group)
        problems += found
        if found and shards.committed(root, [group], split, shard, total):  # else it is made again anyway
            damaged[group] = data.stat().st_mtime_ns
        checked[group] = len(lengths[group])
        if not found:
            made[group] = records.load_marker(records.marker_path(data).read_bytes(), data)
    for group, marker in made.items():
        for source in sorted(name for name, sha in marker.get("inputs", {}).items() if name in made and made[name]["sha256"] != sha):
            problems.append(f"{records.shard_path(root, group, split, shard, total)}: it was made from another shard of {source!r}")
    if (pathlib.Path(root) / "plan").is_dir():
        try:
            plans.read_list(plans.list_path(root, split, shard, total))
        except records.Corrupt as error:
            problems.append(str(error))
    if not problems and len({tuple(samples) for samples in lengths.values()}) > 1:
        problems.append(f"{root}: the groups disagree on the lengths of the utterances of {split} {shard}")
    path.parent.mkdir(exist_ok=True)
    records.write_atomic(path, json.dumps({"problems": problems, "checked": checked, "damaged": damaged}).encode())


def collect(root: str) -> dict[str, int]:
    """Records checked, by group. Raises ValueError with the problems of all shards."""
    found = [json.loads(path.read_text()) for path in sorted((pathlib.Path(root) / "verify").glob("*.json"))]
    problems = [problem for shard in found for problem in shard["problems"]]
    if not problems and (wrong := _settled(pathlib.Path(root))):
        problems = [wrong]
    if not problems and "quality" in groups(root) and not quality.whole(Dataset.open(root)):
        problems = [f"{root}/index: the quality columns are not those of the records; stage quality writes them again"]
    if problems:
        listed = "\n  - ".join(problems[:20])
        raise ValueError(f"{len(problems)} problems in {root}; run the command that made it again, and only these shards are remade:\n  - {listed}")
    return dict(sum((Counter(shard["checked"]) for shard in found), Counter()))
