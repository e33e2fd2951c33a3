"""What every speaker's F0 is like: `index/f0.json`, added up from `index/f0/`, the sums of every shard."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ns2_jax.data import records


def _sums_path(root: str | os.PathLike, split: str, shard: int) -> pathlib.Path:
    return pathlib.Path(root) / "index" / "f0" / f"{split}-{shard:05d}.json"


def _told(inputs: dict[str, str], speakers: dict[str, list[float]]) -> bytes:
    said = {"inputs": inputs, "speakers": speakers}
    return json.dumps({**said, "checksum": hashlib.sha256(json.dumps(said).encode()).hexdigest()}).encode()


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The sums of a shard; {} where they are not those that were written."""
    try:
        data = path.read_bytes()
        said = json.loads(data)
        return said if data == _told(said["inputs"], said["speakers"]) else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def sum_shard(root: str, settings: None, split: str, shard: int, total: int) -> None:
    """Writes speaker -> [utterances, frames, voiced frames, sum, sum of squares] of natural log F0, of one shard."""
    del settings
    readers = {group: records.ShardReader(records.shard_path(root, group, split, shard, total), group) for group in ("meta", "f0")}
    inputs = {group: reader.marker["sha256"] for group, reader in readers.items()}
    path = _sums_path(root, split, shard)
    if _read(path).get("inputs") == inputs:
        return
    sums: dict[str, np.ndarray] = {}
    for i in range(len(readers["meta"].index)):
        f0 = readers["f0"].read(i)["f0"].astype(np.float64)
        log = np.log(f0[f0 > 0])
        row = [1, len(f0), len(log), log.sum(), np.square(log).sum()]
        speaker = readers["meta"].read(i)["speaker"]
        sums[speaker] = sums.get(speaker, np.zeros(5)) + row
    for reader in readers.values():
        reader.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {speaker: row.tolist() for speaker, row in sorted(sums.items())}
    records.write_atomic(path, _told(inputs, rows))


def write_speakers(root: str | os.PathLike, splits: Mapping[str, int]) -> dict[str, dict[str, dict[str, float]]]:
    """Adds up `index/f0/` of `splits` (name -> shards) and writes `index/f0.json`: split -> speaker -> statistics, which it returns.

    `utterances`, `frames`, `voiced` (share of the frames), and `mean` and `std` of the natural logarithm of F0 in Hz over voiced frames
    (None where a speaker has none). Raises records.Corrupt for a shard without its sums.
    """
    out: dict[str, dict[str, dict[str, float]]] = {}
    for split, shards_there in splits.items():
        sums: dict[str, np.ndarray] = {}
        for shard in range(shards_there):
            if not (said := _read(_sums_path(root, split, shard))):
                raise records.Corrupt(f"{_sums_path(root, split, shard)} is missing or damaged; run stage f0 again")
            for speaker, row in said["speakers"].items():
                sums[speaker] = sums.get(speaker, np.zeros(5)) + row
        out[split] = {}
        for speaker, (utterances, frames, voiced, total, squares) in sorted(sums.items()):
            mean = total / voiced if voiced else None
            std = float(np.sqrt(max(squares / voiced - mean**2, 0.0))) if voiced else None
            share = voiced / frames if frames else 0.0
            out[split][speaker] = {"utterances": int(utterances), "frames": int(frames), "voiced": share, "mean": mean, "std": std}
    records.write_atomic(pathlib.Path(root) / "index" / "f0.json", json.dumps(out, indent=1).encode() + b"\n")
    return out
