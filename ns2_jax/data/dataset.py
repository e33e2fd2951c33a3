"""A data set on disk, read by position."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ns2_jax.data import records, storage

MAKERS = {
    "text": "stage normalise of data_pipelines.run",
    "phones": "stage phonemise of data_pipelines.run",
    "align": "python -m data_pipelines.learned_align --data={root} --aligner=DIR (or stage align of data_pipelines.run)",
    "f0": "python -m data_pipelines.features --data={root}",
    "codes": "python -m data_pipelines.encode --data={root} --codec=CODEC_DIR",
    "semantic": "python -m data_pipelines.tokens --data={root} --tokenizer=DIR",
    "quality": "python -m data_pipelines.quality --data={root}",
}


class Dataset:
    """Random access to the records of every group. Make one with `Dataset.open(root)`.

    Attributes: `root` (a path, or a URL as str), `manifest` (dict), `fingerprint` (str), `groups` and `splits` (tuples of names),
    `sample_rate` (Hz), `base_hop` and `f0_period` (samples), `speakers` (split -> names), `remote` (bool).
    """

    def __init__(self, store: storage.Folder | storage.Bucket, manifest: dict[str, Any]):
        self.root, self.manifest, self._store = store.root, manifest, store
        self.remote = store.remote
        self.fingerprint: str = manifest["fingerprint"]
        self.groups, self.splits = tuple(manifest["groups"]), tuple(manifest["splits"])
        self.sample_rate: int = manifest["sample_rate"]
        self.base_hop: int = manifest["base_hop"]
        self.f0_period: int = manifest["f0_period"]
        self.speakers: dict[str, list[str]] = manifest["speakers"]
        self._indices: dict[tuple[str, str], np.ndarray] = {}
        self._names: dict[tuple[str, str], list[str]] = {}
        self._starts: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, root: str | os.PathLike) -> Dataset:
        """The data set in a folder or at a URL (gs://, s3://, http://).

        Raises FileNotFoundError when there is none at `root`, ValueError for one that this code cannot read.
        """
        if not str(root):
            raise ValueError(
                "config.data.path is empty, or --data of a pipeline: name a data set, e.g. one made by "
                "python -m data_pipelines.synth --out=DIR --hours=1"
            )
        store = storage.at(root)
        try:
            text = storage.at(root, storage.FEW_RETRIES).read(["manifest.json"])[0]
        except ConnectionError as error:
            raise FileNotFoundError(f"no data set at {root}: {error}") from error
        if text is None:
            several = "; to score or inspect one of several data sets, name it alone (--data)" if "," in str(root) else ""
            raise FileNotFoundError(
                f"no data set at {root} (manifest.json is missing); make one with "
                f"python -m data_pipelines.synth or .ingest --out={root}{several}"
            )
        path = f"{store.root}/manifest.json"
        try:
            manifest = json.loads(text)
            version = manifest["format"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a manifest: {error!r}") from error
        if version != 1:
            raise ValueError(f"{path} has format {version}; this code reads format 1")
        return cls(store, manifest)

    def check_split(self, split: str) -> None:
        """Raises ValueError for a split that does not exist."""
        if split not in self.splits:
            raise ValueError(f"{self.root} has no split {split!r}; it has {list(self.splits)}")

    def check_group(self, group: str) -> None:
        """Raises ValueError for a group that does not exist, naming the command that makes it."""
        if group not in self.groups:
            maker = MAKERS.get(group.split("-")[0], "the pipeline that made the data set").format(root=self.root)
            raise ValueError(f"{self.root} has no group {group!r} (it has {list(self.groups)}); make it with {maker}")

    def file(self, name: str) -> bytes | None:
        """A whole file by its name below the root; None when it is not there."""
        return self._store.read([name])[0]

    def marker(self, group: str, split: str, shard: int) -> dict[str, Any]:
        """What the marker of a shard says. Raises FileNotFoundError where it has none."""
        name = records.marker_path(pathlib.Path(records.shard_path("", group, split, shard, self.manifest["splits"][split]["shards"])))
        found = self.file(str(name))
        if found is None:
            raise records.unfinished(f"{self.root}/{name}", group)
        return records.load_marker(found, f"{self.root}/{name}")

    def contents(self, group: str) -> str:
        """A hash of what the shards of `group` hold, of all splits, from their markers. Raises as `marker` does."""
        held = [self.marker(group, split, k)["sha256"] for split in self.splits for k in range(self.manifest["splits"][split]["shards"])]
        return hashlib.sha256("".join(held).encode()).hexdigest()[:16]

    def records(self, split: str) -> int:
        """How many utterances `split` has."""
        self.check_split(split)
        return self.manifest["splits"][split]["records"]

    def index(self, split: str, group: str) -> np.ndarray:
        """`[n]` of records.INDEX for the whole split, its shards one after the other; all files are asked for at once."""
        if (split, group) not in self._indices:
            self.check_split(split)
            self.check_group(group)
            count = self.manifest["splits"][split]["shards"]
            names = self._names[split, group] = [records.shard_path("", group, split, k, count).as_posix() for k in range(count)]
            files = self._store.read([str(file(pathlib.Path(name))) for name in names for file in (records.marker_path, records.index_path)])
            columns = []
            for name, marker, index in zip(names, files[::2], files[1::2]):
                path = pathlib.Path(name)
                if marker is None:
                    raise records.unfinished(f"{self.root}/{records.marker_path(path)}", group)
                if index is not None:
                    said = records.load_marker(marker, f"{self.root}/{records.marker_path(path)}")
                    columns.append(records.load_index(index, said, f"{self.root}/{records.index_path(path)}"))
                elif self.remote:
                    raise FileNotFoundError(f"{self.root}/{records.index_path(path)} does not exist; copy the whole data set there")
                else:
                    columns.append(records.ShardReader(self.root / name, group, self.base_hop).index)  # made again from the shard
            starts = np.cumsum([0] + [len(column) for column in columns])
            if starts[-1] != self.records(split):
                raise ValueError(f"{self.root}/{group}: split {split!r} has {starts[-1]} records, the manifest says {self.records(split)}")
            if not np.array_equal(self._starts.setdefault(split, starts), starts):
                raise ValueError(f"{self.root}/{group}: the shards of split {split!r} are not cut as those of the other groups; make it again")
            self._indices[split, group] = np.concatenate(columns)
        return self._indices[split, group]

    def starts(self, split: str) -> np.ndarray:
        """Position of the first record of every shard, and at last how many there are, int64 `[shards + 1]`."""
        self.index(split, "meta")
        return self._starts[split]

    def counts(self, split: str, group: str) -> np.ndarray:
        """The `count` column of the whole split, int64 `[n]`: phones for `align`, base frames for any other group."""
        return self.index(split, group)["count"].astype(np.int64)

    def frames(self, split: str, hop: int | None = None) -> np.ndarray:
        """Lengths in frames, int64 `[n]`, from the index alone; exact at the base hop (the default), else an upper bound."""
        counts = self.counts(split, "meta")
        return counts if hop in (None, self.base_hop) else ((counts + 1) * self.base_hop - 1) // hop

    def phones(self, split: str) -> np.ndarray:
        """Phones per utterance, int64 `[n]`, from the index alone."""
        return self.counts(split, "align")

    def read(self, split: str, group: str, i: int) -> dict[str, Any]:
        """Record `i` of `group`: str, read-only arrays and `num_samples`; checksums checked.

        Raises ValueError for an unknown split or group and for a damaged file (`records.Corrupt`), IndexError for `i`.
        """
        return self.read_many(split, {group: [i]})[group][0]

    def read_many(self, split: str, wanted: Mapping[str, Sequence[int]]) -> dict[str, list[dict[str, Any]]]:
        """Records `wanted[group]` of each group, as `read` gives them, in the order asked for; all reads are under way at once."""
        payloads = self._payloads(split, wanted)
        return {group: [records.unpack(group, payload) for payload in payloads[group]] for group in wanted}

    def read_raw(self, split: str, group: str, rows: Sequence[int]) -> list[bytes]:
        """The payloads of records `rows`, checked and not decoded."""
        return self._payloads(split, {group: rows})[group]

    def _payloads(self, split: str, wanted: Mapping[str, Sequence[int]]) -> dict[str, list[bytes]]:
        asked, groups = [], []
        for group, rows in wanted.items():
            index = self.index(split, group)
            ids = np.asarray(rows, np.int64)
            if len(ids) and not 0 <= ids.min() <= ids.max() < len(index):
                raise IndexError(f"{self.root}: split {split!r} has records 0..{len(index) - 1}, not {ids[(ids < 0) | (ids >= len(index))][0]}")
            names = self._names[split, group]
            shards = np.searchsorted(self._starts[split], ids, "right") - 1
            groups += [group] * len(ids)
            asked += [(names[k], at, length + records.OVERHEAD) for k, (at, length, _) in zip(shards.tolist(), index[ids].tolist())]
        found: dict[str, list[bytes]] = {group: [] for group in wanted}
        try:
            for group, (name, at, length), data in zip(groups, asked, self._store.ranges(asked)):
                found[group].append(records.check_record(data, at, length - records.OVERHEAD, name))
        except records.Corrupt as error:
            raise records.Corrupt(f"{self.root}/{error}") from error
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indices": {}}  # read again in another process, not carried there

    def __repr__(self) -> str:
        return f"Dataset({str(self.root)!r}, fingerprint={self.fingerprint[:12]!r})"
