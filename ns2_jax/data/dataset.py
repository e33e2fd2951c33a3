"""A data set on disk, read by position."""

from __future__ import annotations

import collections
import json
import os
import pathlib
from typing import Any

import numpy as np

from ns2_jax.data import records

OPEN_SHARDS = 256  # file descriptors kept; the least recently used is closed first

MAKERS = {
    "align": "python -m data_pipelines.ingest --align=pocketsphinx (or data_pipelines.synth)",
    "f0": "python -m data_pipelines.features --data={root}",
    "codes": "python -m data_pipelines.encode --data={root} --codec=CODEC_DIR",
}


class Dataset:
    """Random access to the records of every group. Make one with `Dataset.open(root)`.

    Attributes: `root`, `manifest` (dict), `fingerprint` (str), `groups` and `splits` (tuples of names), `sample_rate` (Hz),
    `base_hop` and `f0_period` (samples), `speakers` (split -> names).
    """

    def __init__(self, root: pathlib.Path, manifest: dict[str, Any]):
        self.root, self.manifest = root, manifest
        self.fingerprint: str = manifest["fingerprint"]
        self.groups, self.splits = tuple(manifest["groups"]), tuple(manifest["splits"])
        self.sample_rate: int = manifest["sample_rate"]
        self.base_hop: int = manifest["base_hop"]
        self.f0_period: int = manifest["f0_period"]
        self.speakers: dict[str, list[str]] = manifest["speakers"]
        self._counts: dict[tuple[str, str], np.ndarray] = {}
        self._starts: dict[str, np.ndarray] = {}
        self._readers: collections.OrderedDict[tuple[str, str, int], records.ShardReader] = collections.OrderedDict()

    @classmethod
    def open(cls, root: str | os.PathLike) -> Dataset:
        """Raises FileNotFoundError when there is no data set at `root`, ValueError for one that this code cannot read."""
        if not str(root):
            raise ValueError(
                "config.data.path is empty: name a data set, e.g. one made by "
                "python -m data_pipelines.synth --out=DIR --hours=1"
            )
        path = pathlib.Path(root).expanduser() / "manifest.json"
        if not path.exists():
            raise FileNotFoundError(
                f"no data set at {root} ({path.name} is missing); make one with "
                f"python -m data_pipelines.synth or .ingest --out={root}"
            )
        try:
            manifest = json.loads(path.read_text())
            version = manifest["format"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a manifest: {error!r}") from error
        if version != 1:
            raise ValueError(f"{path} has format {version}; this code reads format 1")
        return cls(path.parent, manifest)

    def check_split(self, split: str) -> None:
        """Raises ValueError for a split that does not exist."""
        if split not in self.splits:
            raise ValueError(f"{self.root} has no split {split!r}; it has {list(self.splits)}")

    def check_group(self, group: str) -> None:
        """Raises ValueError for a group that does not exist, naming the command that makes it."""
        if group not in self.groups:
            maker = MAKERS.get(group.split("-")[0], "the pipeline that made the data set").format(root=self.root)
            raise ValueError(f"{self.root} has no group {group!r} (it has {list(self.groups)}); make it with {maker}")

    def records(self, split: str) -> int:
        """How many utterances `split` has."""
        self.check_split(split)
        return self.manifest["splits"][split]["records"]

    def reader(self, group: str, split: str, shard: int) -> records.ShardReader:
        """The open shard `shard` of `group`."""
        key = group, split, shard
        if key not in self._readers:
            self.check_split(split)
            self.check_group(group)
            path = records.shard_path(self.root, group, split, shard, self.manifest["splits"][split]["shards"])
            self._readers[key] = records.ShardReader(path, group, self.base_hop)
            while len(self._readers) > OPEN_SHARDS:
                self._readers.popitem(last=False)[1].close()
        self._readers.move_to_end(key)
        return self._readers[key]

    def counts(self, split: str, group: str) -> np.ndarray:
        """The `count` column of the whole split, int64 `[n]`: phones for `align`, base frames for any other group."""
        if (split, group) not in self._counts:
            self.check_split(split)
            shards = self.manifest["splits"][split]["shards"]
            columns = [self.reader(group, split, shard).index["count"] for shard in range(shards)]
            counts = np.concatenate(columns).astype(np.int64)
            if len(counts) != self.records(split):
                raise ValueError(f"{self.root}/{group}: split {split!r} has {len(counts)} records, the manifest says {self.records(split)}")
            self._counts[split, group] = counts
            self._starts.setdefault(split, np.cumsum([0] + [len(column) for column in columns]))
        return self._counts[split, group]

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
        if split not in self._starts:
            self.counts(split, "meta")
        starts = self._starts[split]
        if not 0 <= i < starts[-1]:
            raise IndexError(f"{self.root}: split {split!r} has records 0..{starts[-1] - 1}, not {i}")
        shard = int(np.searchsorted(starts, i, "right")) - 1
        return self.reader(group, split, shard).read(int(i - starts[shard]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": collections.OrderedDict()}

    def __repr__(self) -> str:
        return f"Dataset({str(self.root)!r}, fingerprint={self.fingerprint[:12]!r})"
