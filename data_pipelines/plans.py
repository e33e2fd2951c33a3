"""The plan of a data set: what each of its shards is made of, written once and before anything is read.

`plan.json` has the settings and how many shards and utterances every split has, `plan/` a list of utterances for every shard. Both carry a
checksum: a corpus may have changed since, so a plan is never made again for a data set that is there.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines import corpora, shards
from data_pipelines.corpora import Reject, Utterance
from ns2_jax.data import records

PER_SHARD = 500
SPLITS = ("train", "valid", "test")


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def bucket(name: str) -> int:
    """A number from 0 to 999 that belongs to a name for ever: which split a speaker (or an utterance) is in."""
    return _digest(name) % 1000


def split_of(item: Utterance, by: str, valid: int, test: int) -> str:
    """The split of an utterance: `valid` thousandths of the speakers are in valid, the next `test` in test.

    `by` is what is hashed, "speaker" or "utterance" (for a corpus of one speaker), or "corpus": the corpus's own split, and the
    speaker's hash for what has none. Adding data moves nobody. Raises ValueError for a split that is not ours.
    """
    if by == "corpus" and item.split:
        if item.split not in SPLITS:
            raise ValueError(f"{item.utt_id}: the corpus puts it into split {item.split!r}, which is none of {SPLITS}")
        return item.split
    place = bucket(item.utt_id if by == "utterance" else item.speaker)
    return "valid" if place < valid else "test" if place < valid + test else "train"


_USUAL = {field.name: field.default for field in dataclasses.fields(Utterance)}


def _line(item: Utterance) -> str:
    return json.dumps({key: value for key, value in vars(item).items() if value != _USUAL[key]}) + "\n"


def _repeated(lines: Iterable[str], suspects: set[int], seen: dict[str, str], rejects: list[dict]) -> Iterator[str]:
    """`lines` without those whose id came before."""
    if not suspects:
        yield from lines
        return
    for line in lines:
        name = json.loads(line)["utt_id"]
        if _digest(name) in suspects:
            if name in seen:
                rejects.append({"item": json.loads(line)["path"], "reason": "duplicate_id", "detail": f"{name} is also {seen[name]}"})
                continue
            seen[name] = json.loads(line)["path"]
        yield line


def _plans(path: pathlib.Path) -> bool:
    """Whether a plan that was interrupted leaves this."""
    return path.name == "plan" or path.name.startswith(".plan.json.tmp-")


def list_path(root: str | os.PathLike, split: str, shard: int, total: int) -> pathlib.Path:
    """What a shard is made of, one utterance a line."""
    return pathlib.Path(root) / "plan" / f"{split}-{shard:05d}-of-{total:05d}.jsonl"


def _sum(lines: Iterable[str]) -> str:
    return json.dumps({"sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}) + "\n"


def _write_list(path: pathlib.Path, lines: list[str]) -> None:
    path.write_text("".join([*lines, _sum(lines)]), encoding="utf8")


def read_list(path: pathlib.Path) -> list[str]:
    """The lines of a list of the plan: of a shard (`list_path`), or `plan/rejects.jsonl`. Raises records.Corrupt when it is gone or they are
    not those that were written, as the last line tells."""
    try:
        *lines, last = path.read_text(encoding="utf8").splitlines(keepends=True)
    except (FileNotFoundError, ValueError):
        lines, last = [], ""
    if last != _sum(lines):
        raise records.Corrupt(f"{path} is not the list that was written; delete the whole data set and make it again, or put the list back")
    return lines


def read_plan(path: pathlib.Path) -> dict[str, Any]:
    """What `plan.json` says. Raises FileNotFoundError, and records.Corrupt when that is not what was written."""
    data = path.read_bytes()
    try:
        made = json.loads(data)
        del made["checksum"]
        whole = data == _plan_bytes(made)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise records.Corrupt(f"{path} is not the plan that was written; delete the whole data set and make it again, or put the plan back")
    return made


def _plan_bytes(made: Mapping[str, Any]) -> bytes:
    checksum = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    return json.dumps({**made, "checksum": checksum}, indent=1).encode() + b"\n"


def plan(
    out: str | os.PathLike, found: Iterable[Utterance | Reject], about: Mapping[str, Any], split: Callable[[Utterance], str],
    per_shard: int = PER_SHARD,
) -> dict[str, Any]:  # fmt: skip
    """Writes which utterances each shard holds (`<out>/plan/`), and `<out>/plan.json` last; returns what that says.

    The plan is written once. A later call with the same `about` returns it without looking at `found`, so that a run that goes on
    does not walk through the corpus again. Memory: 8 bytes an utterance. Raises ValueError when `out` holds something else.
    """
    root, path = pathlib.Path(out), pathlib.Path(out) / "plan.json"
    if root.exists() and not path.exists() and (not root.is_dir() or any(not _plans(child) for child in root.iterdir())):
        raise ValueError(f"{out} exists and was not made by this command, or has lost its {path.name}; choose a new or empty folder")
    if path.exists():
        old = read_plan(path)
        now = json.loads(json.dumps(about))
        if differing := sorted(key for key in {*old, *now} - {"splits", "inputs", "languages"} if old.get(key) != now.get(key)):
            differing = ["command"] if "command" in differing else differing  # then all else does too
            what = "; ".join(f"{key} was {old.get(key)!r:.60}, is {now.get(key)!r:.60}" for key in differing)
            raise ValueError(f"{out} was made from other recordings, transcripts or settings ({what}); choose another folder or delete it")
        return old
    folder = root / "plan"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        left.unlink()  # of a plan that was interrupted
    spools = {name: open(folder / f"{name}.spool", "w+", encoding="utf8") for name in SPLITS}
    ids, rejects, languages, inputs = array.array("Q"), [], set(), 0
    for item in found:
        inputs += 1
        if isinstance(item, Reject):
            rejects.append(dataclasses.asdict(item))
            continue
        ids.append(_digest(item.utt_id))
        languages.add(item.lang)
        spools[split(item)].write(_line(item))
    if not inputs:
        shutil.rmtree(folder)
        raise ValueError(f"{about.get('root', 'the corpus')} has no recordings ({' '.join(corpora.SUFFIXES)}) and no list that names any")
    values, counts = np.unique(np.frombuffer(ids, np.uint64) if ids else np.zeros(0, np.uint64), return_counts=True)
    suspects, seen, splits = {int(value) for value in values[counts > 1]}, {}, {}
    for name, spool in spools.items():
        spool.seek(0)
        total = sum(1 for _ in _repeated(spool, suspects, dict(seen), []))
        spool.seek(0)
        lines = _repeated(spool, suspects, seen, rejects)
        for k in range(shards.shards_for(total, per_shard) if total else 0):
            part = [line for _, line in zip(range(per_shard), lines)]
            _write_list(list_path(root, name, k, shards.shards_for(total, per_shard)), part)
        splits |= {name: {"shards": shards.shards_for(total, per_shard), "utterances": total}} if total else {}
        collections.deque(lines, maxlen=0)  # duplicates behind the last
        spool.close()
        os.unlink(spool.name)
    _write_list(folder / "rejects.jsonl", [json.dumps(row, sort_keys=True) + "\n" for row in rejects])
    made = {**about, "splits": splits, "inputs": inputs, "languages": sorted(languages)}
    records.write_atomic(path, _plan_bytes(made))
    return made
