"""Records on disk: `tf.train.Example` payloads in TFRecord files, with a side index and a checksum on every read.

A data set is a folder of *groups* (`meta`, `audio`, `align`, `f0`, `codes-<hash12>`, ...). All groups of a split have the
same shards and the same record order, so a group can be added or remade without touching another. One shard is three
files, written in this order and only complete when the last exists:

    <root>/<group>/<split>-00000-of-00004.tfrecord    records: u64 length, masked crc32c, payload, masked crc32c
    <root>/<group>/<split>-00000-of-00004.idx.npy     16 bytes a record, see INDEX
    <root>/<group>/<split>-00000-of-00004.json        commit marker: counts, sha256, rejects, tool versions

The payload holds tensors as raw little-endian bytes (never number lists, which decode 440 times slower), in the wire format
of `tf.train.Example` (`wire.py`), so every TensorFlow tool opens it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np

from ns2_jax.data import bits
from ns2_jax.data.atomic import beside, write_atomic
from ns2_jax.data.wire import Value, decode_example, encode_example

__all__ = [
    "BASE_HOP", "INDEX", "OVERHEAD", "SCHEMAS", "Corrupt", "ShardReader", "ShardWriter", "build_index", "check_record",
    "decode_example", "encode_example", "frame", "index_path", "load_index", "load_marker", "marker_path", "pack", "read_all",
    "read_record", "schema",
    "shard_path", "unfinished", "unpack", "write_atomic",
]

BASE_HOP = 200  # samples per base frame at the data set's rate; the unit of `count` in the index
INDEX = np.dtype([("offset", "<u8"), ("length", "<u4"), ("count", "<u4")])
"""`offset` of the record's header and `length` of its payload, in bytes. `count`: phones in `align` and `phones`, units in `units-*`,
elsewhere base frames (`num_samples // base_hop`); lengths are all that ordering and bucketing need, so a plan is made without opening a record."""

SCHEMAS: dict[str, dict[str, str]] = {
    "meta": {"utt_id": "utf8", "speaker": "utf8", "source": "utf8", "voice": "utf8", "text": "utf8", "text_norm": "utf8"},
    "audio": {"audio": "int16"},
    "text": {"text_norm": "utf8"},
    "phones": {"phones": "uint8"},
    "units": {"units": "uint16"},
    "align": {"phones": "uint8", "ends": "int32"},
    "f0": {"f0": "float16"},
    "codes": {"codes": "uint16"},
    "semantic": {"tokens": "uint16"},
    "quality": {"values": "float32", "lang": "utf8", "digest": "uint64", "keys": "uint32"},
}
"""Field -> "utf8" or the dtype of an array, by the part of the group's name before "-". Every record of every group also has
`num_samples` (int), so that a group can be checked against another and an index be rebuilt from the shard alone."""

DEFAULTS: dict[str, dict[str, str]] = {"meta": {"book": "", "lang": "en"}}
"""Fields that are stored only where they differ from this."""

# Groups --------------------------------------------------------------------------------------------------------------


def schema(group: str) -> dict[str, str]:
    """The fields of `group`. Raises ValueError for a group that is not in SCHEMAS."""
    kind = group.split("-")[0]
    if kind not in SCHEMAS:
        raise ValueError(f"group {group!r} has no schema; known groups are {sorted(SCHEMAS)}")
    return SCHEMAS[kind]


def pack(group: str, values: Mapping[str, Value], num_samples: int, packed: bool = False) -> bytes:
    """The payload of one record. Arrays of rank above one carry their shape; `packed` puts codes into ten bits each (`bits.py`).

    Raises ValueError for wrong fields or dtypes, and for codes of more than ten bits.
    """
    fields = schema(group)
    further = {name for name, usual in DEFAULTS.get(group, {}).items() if values.get(name, usual) != usual}
    if set(values) - {"num_samples"} - set(DEFAULTS.get(group, {})) != set(fields):
        raise ValueError(f"group {group!r} takes the fields {sorted(fields)}, not {sorted(values)}")
    features: dict[str, Value] = {"num_samples": int(num_samples)}
    for name, kind in {**fields, **dict.fromkeys(further, "utf8")}.items():
        value = values[name]
        if kind != "utf8":
            value = np.asarray(value)
            if value.dtype != np.dtype(kind):
                raise ValueError(f"{group}/{name} must be {kind}, not {value.dtype}; convert it where its range is known")
            if value.ndim > 1:
                features[f"{name}/shape"] = list(value.shape)
            if packed and name == "codes":
                features |= {"codes/bits": bits.BITS, "codes/shape": list(value.shape)}
                value = bits.pack(value)
        elif not isinstance(value, str):
            raise ValueError(f"{group}/{name} must be str, not {type(value).__name__}")
        features[name] = value
    return encode_example(features)


def unpack(group: str, payload: bytes | memoryview) -> dict[str, Value]:
    """What `pack` stored: str, read-only arrays and `num_samples`. Raises ValueError when a field is missing or ill-sized."""
    features = decode_example(payload)
    fields = schema(group)
    missing = sorted(({"num_samples"} | set(fields)) - set(features))
    if missing:
        raise ValueError(f"a record of group {group!r} has no field {missing[0]!r}")
    out: dict[str, Value] = {"num_samples": features["num_samples"][0]}
    out |= {name: bytes(features[name][0]).decode() if name in features else usual for name, usual in DEFAULTS.get(group, {}).items()}
    for name, kind in fields.items():
        raw = features[name][0]
        if kind == "utf8":
            out[name] = bytes(raw).decode()
        elif f"{name}/bits" in features:
            if features[f"{name}/bits"] != [bits.BITS]:
                raise ValueError(f"{group}/{name} has {features[f'{name}/bits']} bits a value; this code reads {bits.BITS}")
            out[name] = bits.unpack(raw, features[f"{name}/shape"])
        else:
            array = np.frombuffer(raw, np.dtype(kind).newbyteorder("<"))
            out[name] = array.reshape(features[f"{name}/shape"]) if f"{name}/shape" in features else array
    return out


# Shards --------------------------------------------------------------------------------------------------------------


def shard_path(root: str | os.PathLike, group: str, split: str, shard: int, shards: int) -> pathlib.Path:
    """`<root>/<group>/<split>-00000-of-00004.tfrecord`."""
    return pathlib.Path(root) / group / f"{split}-{shard:05d}-of-{shards:05d}.tfrecord"


def marker_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".json")


def index_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".idx.npy")


def _masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """The TFRecord framing of one payload: length, its masked crc32c, payload, its masked crc32c."""
    head = struct.pack("<Q", len(payload))
    return b"".join((head, struct.pack("<I", _masked(head)), payload, struct.pack("<I", _masked(payload))))


OVERHEAD = 16  # bytes of framing: u64 length, u32, and u32 after the payload


class Corrupt(ValueError):
    """A file whose bytes are not what was written."""


def read_record(fd: int, offset: int, length: int | None = None, name: str = "shard") -> bytes:
    """The payload of the record at `offset` of the open file `fd`, both checksums checked.

    `length` in bytes (from the index) saves a read and is compared with the header; None reads the header first. Uses pread:
    thread-safe, and a truncated file is an error, not a signal. Raises Corrupt.
    """
    if length is None:
        length, _ = _header(os.pread(fd, 12, offset), offset, name)
    return check_record(os.pread(fd, length + OVERHEAD, offset), offset, length, name)


def check_record(data: bytes, offset: int, length: int, name: str) -> bytes:
    """The payload in `data`, what was read of a record of `length` bytes and OVERHEAD at `offset`. Raises Corrupt."""
    stored, _ = _header(data[:12], offset, name)
    if stored != length:
        raise Corrupt(
            f"{name}: the index says {length} bytes at offset {offset}, the record "
            f"says {stored}; index and shard do not belong together"
        )
    if len(data) < length + OVERHEAD:
        raise Corrupt(f"{name}: truncated in the record at offset {offset}; make the shard again")
    payload = data[12 : 12 + length]
    if struct.unpack_from("<I", data, 12 + length)[0] != _masked(payload):
        raise Corrupt(f"{name}: checksum of the record at offset {offset} does not match; make the shard again")
    return payload


def _header(head: bytes, offset: int, name: str) -> tuple[int, int]:
    if len(head) < 12:
        raise Corrupt(f"{name}: truncated at offset {offset}; make the shard again")
    length, crc = struct.unpack("<QI", head)
    if crc != _masked(head[:8]):
        raise Corrupt(f"{name}: checksum of the record length at offset {offset} does not match; make the shard again")
    return length, crc


def count_of(group: str, values: Mapping[str, Value], base_hop: int = BASE_HOP) -> int:
    """The `count` column of the index for one record."""
    kind = group.split("-")[0]
    text = {"align": "phones", "phones": "phones", "units": "units"}.get(kind)
    return len(values[text]) if text else int(values["num_samples"]) // base_hop


def build_index(path: pathlib.Path, group: str, base_hop: int = BASE_HOP) -> np.ndarray:
    """The index of a shard from the shard alone, by hopping from header to header. Raises Corrupt."""
    entries, offset, size = [], 0, path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    try:
        while offset < size:
            payload = read_record(fd, offset, None, str(path))
            entries.append((offset, len(payload), count_of(group, unpack(group, payload), base_hop)))
            offset += len(payload) + OVERHEAD
    finally:
        os.close(fd)
    return np.array(entries, INDEX)


def _fsync(path: pathlib.Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _replace(path: pathlib.Path, data: bytes) -> None:
    """`write_atomic` unless `path` has these bytes already."""
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)


class ShardWriter:
    """Writes one shard of one group; a context manager that commits on a clean exit and leaves nothing otherwise.

    Temp file, fsync, rename data, rename index, and the commit marker last: a killed writer leaves no marker, so the shard is
    made again, and two writers of the same shard rename the same bytes. Of a shard made again, a file whose bytes are right
    stays. `info` (e.g. a codec's hash and hop, and `bits` where codes are packed) and `tools` (versions) go into the marker, and
    so do `inputs`, the sha256 of the shards that this one was derived from; `rejects` counts what was left out, by reason.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        group: str,
        split: str,
        shard: int,
        shards: int,
        *,
        base_hop: int = BASE_HOP,
        info: Mapping[str, Any] | None = None,
        tools: Mapping[str, str] | None = None,
        inputs: Mapping[str, str] | None = None,
    ):
        schema(group)
        if not 0 <= shard < shards:
            raise ValueError(f"shard {shard} of {shards} does not exist")
        self.path = shard_path(root, group, split, shard, shards)
        self.group, self.split, self.shard, self.shards = group, split, shard, shards
        self.base_hop, self.info, self.tools = base_hop, dict(info or {}), dict(tools or {})
        self.inputs = dict(inputs or {})
        self.rejects: dict[str, int] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temp = beside(self.path)
        self._file = open(self._temp, "wb")
        self._sha = hashlib.sha256()
        self._entries: list[tuple[int, int, int]] = []
        self._offset = self._samples = 0
        self._speakers: set[str] = set()

    def write(self, values: Mapping[str, Value], num_samples: int) -> None:
        """Appends one record; `num_samples` is the length of the utterance's audio at the data set's rate."""
        payload = pack(self.group, values, num_samples, "bits" in self.info)
        data = frame(payload)
        self._file.write(data)
        self._sha.update(data)
        self._entries.append((self._offset, len(payload), count_of(self.group, {**values, "num_samples": num_samples}, self.base_hop)))
        self._offset += len(data)
        self._samples += int(num_samples)
        if "speaker" in values:
            self._speakers.add(values["speaker"])

    def reject(self, reason: str, count: int = 1) -> None:
        """Counts records left out."""
        self.rejects[reason] = self.rejects.get(reason, 0) + count

    def commit(self) -> dict[str, Any]:
        """Makes the shard exist and returns its marker."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index = index_bytes(np.array(self._entries, INDEX))
        marker = {
            "group": self.group,
            "split": self.split,
            "shard": self.shard,
            "shards": self.shards,
            "records": len(self._entries),
            "samples": self._samples,
            "bytes": self._offset,
            "sha256": self._sha.hexdigest(),
            "index_sha256": hashlib.sha256(index).hexdigest(),
            "speakers": sorted(self._speakers),
            "rejects": dict(sorted(self.rejects.items())),
            "info": self.info,
            "tools": self.tools,
            **({"inputs": self.inputs} if self.inputs else {}),
        }
        if self.path.exists() and _sha256(self.path) == marker["sha256"]:
            self._temp.unlink()
        else:
            marker_path(self.path).unlink(missing_ok=True)  # which would say that other bytes are finished
            os.replace(self._temp, self.path)
        _replace(index_path(self.path), index)
        _fsync(self.path.parent)
        _replace(marker_path(self.path), _marker_bytes(marker))
        _fsync(self.path.parent)
        return marker

    def discard(self) -> None:
        self._file.close()
        self._temp.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, value, trace) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


@contextlib.contextmanager
def committing(writers: Mapping[str, ShardWriter]) -> Iterator[None]:
    """Commits the writers of one shard's groups when the block ends; discards them all where it raises."""
    try:
        yield
        for writer in writers.values():
            writer.commit()
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise



def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


MARKER = frozenset({
    "group", "split", "shard", "shards", "records", "samples", "bytes", "sha256", "index_sha256", "speakers", "rejects", "info", "tools",
    "inputs",
})  # fmt: skip


def _marker_bytes(marker: Mapping[str, Any]) -> bytes:
    checksum = hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()
    return json.dumps({**marker, "checksum": checksum}, indent=1, sort_keys=True).encode() + b"\n"


def load_marker(data: bytes, path: str | os.PathLike) -> dict[str, Any]:
    """What the marker at `path` says, from its bytes. Raises Corrupt when they are not those written (older ones have no checksum)."""
    try:
        marker = json.loads(data)
        checksum = marker.pop("checksum", None)
        whole = MARKER - {"inputs"} <= set(marker) <= MARKER and (checksum is None or data == _marker_bytes(marker))
    except (ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise Corrupt(f"{path} is not the marker that was written; run the command that makes its group again")
    return marker


def index_bytes(index: np.ndarray) -> bytes:
    """The `.npy` bytes of an index."""
    buffer = io.BytesIO()
    np.save(buffer, index)
    return buffer.getvalue()


def load_index(data: bytes, marker: Mapping[str, Any], path: str | os.PathLike) -> np.ndarray:
    """`[records]` of INDEX from the bytes of the file at `path`. Raises Corrupt when they are not what `marker` says."""
    if hashlib.sha256(data).hexdigest() != marker["index_sha256"]:
        raise Corrupt(f"{path} is not the index that was written; delete it and it will be rebuilt")
    return np.load(io.BytesIO(data))


def unfinished(path: str | os.PathLike, group: str) -> FileNotFoundError:
    """The error for a shard without the marker at `path`."""
    return FileNotFoundError(f"{path} does not exist: the shard was never finished; run the command that makes group {group!r} again")


class ShardReader:
    """Random access to one committed shard. Raises FileNotFoundError without a marker, Corrupt for damage."""

    def __init__(self, path: pathlib.Path, group: str, base_hop: int = BASE_HOP):
        self._file = None
        self.path, self.group, self.base_hop = path, group, base_hop
        if not marker_path(path).exists():
            raise unfinished(marker_path(path), group)
        self.marker = load_marker(marker_path(path).read_bytes(), marker_path(path))

    @functools.cached_property
    def index(self) -> np.ndarray:
        """`[records]` of INDEX; rebuilt from the shard when the file is gone, refused when it is not the file written."""
        path = index_path(self.path)
        if not path.exists():
            data = index_bytes(build_index(self.path, self.group, self.base_hop))
            try:
                write_atomic(path, data)
            except OSError:
                pass  # a read-only data set: the index lives in memory
        else:
            data = path.read_bytes()
        return load_index(data, self.marker, path)

    def read(self, i: int) -> dict[str, Value]:
        """Record `i` of the shard, checked and unpacked."""
        if self._file is None:
            self._file = open(self.path, "rb", buffering=0)
        offset, length, _ = self.index[i].item()
        return unpack(self.group, read_record(self._file.fileno(), offset, length, str(self.path)))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # an open file means nothing in another process


def read_all(path: pathlib.Path, group: str) -> Sequence[dict[str, Value]]:
    """Every record of a shard, in order."""
    reader = ShardReader(path, group)
    return [reader.read(i) for i in range(len(reader.index))]
