"""The shard engine: a stage is an idempotent function of a shard number, run by a pool with a fresh process per shard.

A fresh process because speech synthesisers keep state between utterances; so a shard is a pure function of its number, a
killed run loses only unfinished shards, and running twice wastes time but never changes a byte.
"""

from __future__ import annotations

import collections
import ctypes
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tqdm

from ns2_jax.data import records
from ns2_jax.data.manifest import manifest_of, write_manifest  # every command that makes a group ends with it
from ns2_jax.data.records import ShardWriter  # stages write through it; re-exported so that they need one import

__all__ = [
    "Rejected", "ShardWriter", "committed", "derive", "listed", "manifest_of", "rejects_path", "run_shards", "shards_for", "write_lines",
    "write_manifest"]


class Rejected(ValueError):
    """An utterance that is left out; `reason` is one word."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def committed(
    root: str | os.PathLike, groups: Iterable[str], split: str, shard: int, shards: int, *,
    info: Mapping[str, Any] | None = None, inputs: Mapping[str, str] | None = None,
) -> bool:  # fmt: skip
    """Whether every one of `groups` has finished this shard; a stage returns at once when it has.

    A shard whose file is gone or of another length is not finished, nor one whose index or marker is damaged, one in which
    `verify` has found damage since it was written, or one made with another `info` or from other `inputs` (group -> sha256),
    where these are given.
    """
    damaged = _damaged(root, split, shard)
    for group in groups:
        path = records.shard_path(root, group, split, shard, shards)
        try:
            marker = records.load_marker(records.marker_path(path).read_bytes(), path)
            whole = path.stat().st_size == marker["bytes"] and damaged.get(group) != path.stat().st_mtime_ns
            if (index := records.index_path(path)).exists():  # a lost one is rebuilt from the shard where it is needed
                records.load_index(index.read_bytes(), marker, index)
        except (FileNotFoundError, records.Corrupt):
            return False
        if not whole or info is not None and marker["info"] != info or inputs is not None and marker.get("inputs", inputs) != inputs:
            return False
    return True


def verified_path(root: str | os.PathLike, split: str, shard: int) -> pathlib.Path:
    """Where `verify` keeps what it found in a shard of all groups."""
    return pathlib.Path(root) / "verify" / f"{split}-{shard:05d}.json"


def _damaged(root: str | os.PathLike, split: str, shard: int) -> dict[str, int]:
    """Group -> modification time (ns) of the file in which `verify` found damage."""
    try:
        return json.loads(verified_path(root, split, shard).read_bytes())["damaged"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def rejects_path(root: str | os.PathLike, split: str, shard: int, group: str = "") -> pathlib.Path:
    """Where a shard's rejects are listed: of ingest, or of a `group` made from it."""
    return pathlib.Path(root) / "rejects" / group / f"{split}-{shard:05d}.jsonl"


def listed(root: str | os.PathLike, counted: str, split: str, shard: int, shards: int, group: str = "") -> bool:
    """Whether the list of a shard's rejects (of `rejects_path`) holds what the marker of the finished group `counted` counts."""
    marker = records.marker_path(records.shard_path(root, counted, split, shard, shards))
    try:
        reasons = [json.loads(line)["reason"] for line in rejects_path(root, split, shard, group).read_text(encoding="utf8").splitlines()]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    return collections.Counter(reasons) == records.load_marker(marker.read_bytes(), marker)["rejects"]


def derive(
    root: str | os.PathLike, group: str, split: str, shard: int, shards: int, make: Callable[..., Any], *, empty: Mapping[str, Any],
    sources: Sequence[str] = (), info: Mapping[str, Any] | None = None, tools: Mapping[str, str] | None = None, at_once: int = 0,
) -> int:  # fmt: skip
    """Writes one shard of `group` from the same shard of `meta` and `sources`, and returns how many records it had to leave empty.

    `make` takes group -> record and gives the new record or raises Rejected; with `at_once` it takes a list of so many and gives a
    list in which a Rejected may stand. A rejected record is `empty`, so that groups stay in step, the marker counts it and
    `rejects/<group>/` lists it. A finished shard is left alone unless `info` or the shards it was made from have changed. Raises
    FileNotFoundError when those are not finished.
    """
    def made(batch: list[dict[str, dict]]) -> list[Mapping[str, Any] | Rejected]:
        if at_once:
            return make(batch)
        try:
            return [make(batch[0])]
        except Rejected as error:
            return [error]

    readers = {name: records.ShardReader(records.shard_path(root, name, split, shard, shards), name) for name in ("meta", *sources)}
    inputs = {name: reader.marker["sha256"] for name, reader in readers.items()}
    if committed(root, [group], split, shard, shards, info=info or {}, inputs=inputs) and listed(root, group, split, shard, shards, group):
        return 0
    rejects = []
    try:
        with ShardWriter(root, group, split, shard, shards, info=info, tools=tools, inputs=inputs) as writer:
            count, step = len(readers["meta"].index), at_once or 1
            for start in range(0, count, step):
                batch = [{name: reader.read(i) for name, reader in readers.items()} for i in range(start, min(start + step, count))]
                for rows, values in zip(batch, made(batch), strict=True):
                    if isinstance(values, Rejected):
                        writer.reject(values.reason)
                        rejects.append({"item": rows["meta"]["utt_id"], "group": group, "reason": values.reason, "detail": str(values)})
                        values = empty
                    writer.write(values, rows["meta"]["num_samples"])
            write_lines(rejects_path(root, split, shard, group), rejects)
    finally:
        for reader in readers.values():
            reader.close()
    return len(rejects)


def shards_for(count: int, per_shard: int = 1000) -> int:
    """How many shards `count` records take; at least one."""
    return max(1, -(-count // per_shard))


def _die_with_parent() -> None:
    """Linux: a killed coordinator takes its workers along instead of leaving them writing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and os.getppid() != parent.pid:  # it was killed while this one started
            os._exit(1)


def _child(process_shard: Callable[[int], Any], shard: int, pipe: multiprocessing.connection.Connection) -> None:
    _die_with_parent()
    try:
        pipe.send((None, process_shard(shard)))
    except BaseException as error:  # reported to the coordinator, which raises it
        from ns2_jax.runtime import cluster  # imports jax, which a worker does without until it fails

        told = traceback.format_exc()
        kind = next((kind for kind in (ValueError, FileNotFoundError, ImportError) if isinstance(error, kind)), RuntimeError)
        pipe.send((kind, str(error)) if cluster.is_user_error(error) and kind is not RuntimeError else (RuntimeError, told))
    finally:
        pipe.close()


def run_shards(process_shard: Callable[[int], Any], n: int, workers: int, description: str = "shards") -> list[Any]:
    """`[process_shard(0), ..., process_shard(n - 1)]`, each in its own spawned process, `workers` at a time.

    `process_shard` must be picklable (a module's function or a `functools.partial` of one), idempotent, and return
    something small. `workers=0` runs in this process. Raises the ValueError, FileNotFoundError or ImportError of a worker, and
    RuntimeError with its traceback for anything else; the other workers are stopped, finished shards stay.
    """
    if workers == 0:
        with tqdm.tqdm(range(n), description, mininterval=2) as progress:  # closed before an error is told: a line of its own
            return [process_shard(shard) for shard in progress]
    context = multiprocessing.get_context("spawn")
    results: dict[int, Any] = {}
    running: dict[multiprocessing.connection.Connection, tuple[int, Any]] = {}
    waiting = iter(range(n))
    try:
        with tqdm.tqdm(total=n, desc=description, mininterval=2) as progress:
            while len(results) < n:
                while len(running) < workers and (shard := next(waiting, None)) is not None:
                    ours, theirs = context.Pipe(duplex=False)
                    process = context.Process(target=_child, args=(process_shard, shard, theirs), daemon=True)
                    process.start()
                    theirs.close()
                    running[ours] = shard, process
                for pipe in multiprocessing.connection.wait(list(running)):
                    shard, process = running[pipe]
                    try:
                        failed, value = pipe.recv()
                    except EOFError:
                        process.join()
                        failed, value = RuntimeError, f"the worker died with exit code {process.exitcode} (killed, or out of memory)"
                    if failed is RuntimeError:
                        raise RuntimeError(f"shard {shard} failed; run the same command again to continue after it is mended:\n{value}")
                    if failed:
                        raise failed(value)
                    process.join()
                    pipe.close()
                    del running[pipe]
                    results[shard] = value
                    progress.update()
    finally:
        for pipe, (_, process) in running.items():
            process.kill()
            process.join()
            pipe.close()
    return [results[shard] for shard in range(n)]


def write_lines(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, written atomically (e.g. `rejects.jsonl`)."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    records.write_atomic(pathlib.Path(path), "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())
