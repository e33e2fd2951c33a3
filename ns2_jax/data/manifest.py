"""The manifest of a data set: what the commit markers under its root say together."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from absl import logging

from ns2_jax.data import atomic, records

FORMAT = 1


def _markers(root: pathlib.Path, needed: set[str]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(group, split) -> markers in shard order, of the groups that every split has whole.

    Another group is one whose command was interrupted or is at work: it is left out with a warning, and its own command
    finishes it. Raises ValueError for a `needed` one.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(root.glob("*/*-of-*.json")):
        try:
            marker = records.load_marker(path.read_bytes(), path)
        except records.Corrupt as error:
            logging.warning("%s", error)
            continue
        found.setdefault((marker["group"], marker["split"]), []).append(marker)
    if not found:
        raise ValueError(f"no finished shard under {root}")
    lacking = {}
    for (group, split), markers in found.items():
        if [m["shard"] for m in markers] != list(range(markers[0]["shards"])):
            lacking[group] = f"{root}/{group}: split {split!r} has {len(markers)} of {markers[0]['shards']} shards; run its command again"
    for group in {group for group, _ in found}:
        for split in {split for _, split in found}:
            if (group, split) not in found:
                lacking[group] = f"{root}/{group} has no split {split!r} although another group has; run its command again"
    for group in {group for group, _ in found}:
        infos = {json.dumps(m["info"], sort_keys=True) for (name, _), markers in found.items() if name == group for m in markers}
        if len(infos) > 1:
            lacking[group] = f"{root}/{group}: shards were made with different settings {sorted(infos)}; run its command again"
    for group, message in sorted(lacking.items()):
        if group in needed:
            raise ValueError(message)
        logging.warning("%s. It is left out until then", message)
    return {key: markers for key, markers in found.items() if key[0] not in lacking}


def manifest_of(
    root: str | os.PathLike,
    *,
    name: str | None = None,
    sample_rate: int | None = None,
    base_hop: int | None = None,
    f0_period: int | None = None,
    phones: str | None = None,
    needed: Sequence[str] = (),
    order: Sequence[str] = ("train", "valid", "test", "heldout"),
) -> dict[str, Any]:
    """What the commit markers under `root` say together.

    What is not given comes from the manifest already there (a stage that adds a group only says `write_manifest(root)`), else
    from the defaults (16 kHz, base hop 200 samples, F0 period 160 samples). `phones` is the hash of the phone inventory. The
    fingerprint is the SHA-256 over the hashes of `meta` and `audio`: what the utterances are, not what was derived from
    them, so adding codes changes no training order. Raises ValueError when groups disagree or shards of `meta`, `audio`
    or a `needed` group are missing; another unfinished group is left out with a warning.
    """
    root = pathlib.Path(root)
    found = _markers(root, {"meta", "audio", *needed})
    path = root / "manifest.json"
    given = {"name": name, "sample_rate": sample_rate, "base_hop": base_hop, "f0_period": f0_period, "phones": phones}
    try:
        old = {}
        if path.exists():
            old = json.loads(path.read_bytes())
            old["sample_rate"]  # noqa: B018  it has one
    except (ValueError, TypeError, KeyError) as error:
        if sample_rate is None:  # what nobody says but the command that made the data set
            raise records.Corrupt(f"{path} is damaged; run the command that made {root} again") from error
        old = {}
    defaults = {"name": root.name, "sample_rate": 16000, "base_hop": records.BASE_HOP, "f0_period": 160, "phones": ""}
    head = {key: old.get(key, defaults[key]) if value is None else value for key, value in given.items()}
    names = sorted({split for _, split in found}, key=lambda split: (order.index(split) if split in order else len(order), split))
    groups = sorted({group for group, _ in found})
    if not {"meta", "audio"} <= set(groups):
        raise ValueError(f"{root} has the groups {groups}; a data set needs at least 'meta' and 'audio'")
    splits, speakers = {}, {}
    digest = hashlib.sha256()
    for split in names:
        reference = found["meta", split]
        for group in groups:
            markers = found[group, split]
            if [(m["records"], m["samples"]) for m in markers] != [(m["records"], m["samples"]) for m in reference]:
                raise ValueError(
                    f"{root}: split {split!r} of group {group!r} does not hold the "
                    "same utterances as 'meta'; make the group again"
                )
        for group in ("meta", "audio"):
            digest.update(f"{group} {split} {' '.join(m['sha256'] for m in found[group, split])}\n".encode())
        splits[split] = {
            "shards": len(reference),
            "records": sum(m["records"] for m in reference),
            "seconds": sum(m["samples"] for m in reference) / head["sample_rate"],
        }
        speakers[split] = sorted({speaker for m in reference for speaker in m["speakers"]})
    about = {}
    for group in groups:
        markers = [m for split in names for m in found[group, split]]
        rejects: dict[str, int] = {}
        for m in markers:
            for reason, count in m["rejects"].items():
                rejects[reason] = rejects.get(reason, 0) + count
        tools = dict(sorted({key: value for m in markers for key, value in m["tools"].items()}.items()))
        about[group] = {**markers[0]["info"], "bytes": sum(m["bytes"] for m in markers), "rejects": rejects, "tools": tools}
    return {"format": FORMAT, **head, "splits": splits, "groups": about, "speakers": speakers, "fingerprint": digest.hexdigest()}


def write_manifest(root: str | os.PathLike, **given: Any) -> dict[str, Any]:
    """Writes `manifest_of(root, **given)` to `<root>/manifest.json`, clears what killed writers left, and returns it."""
    root, manifest = pathlib.Path(root), manifest_of(root, **given)
    records.write_atomic(root / "manifest.json", json.dumps(manifest, indent=1).encode() + b"\n")
    for left in list(root.rglob(".*.tmp-*")):
        if atomic.abandoned(left):  # what it began has been finished since, or its own command makes it again
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return manifest
