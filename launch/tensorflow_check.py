"""One line of JSON for every shard of a data set: its records, as our reader or as TensorFlow sees them. See tensorflow_check.sh."""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any


def digest(examples: Iterable[dict[str, list[Any]]]) -> dict[str, Any]:
    """How many records and fields, and a hash over every name and value: bytes, integers or floats."""
    sha, records, names = hashlib.sha256(), 0, set()
    for features in examples:
        records += 1
        names |= set(features)
        for name in sorted(features):
            for value in features[name]:
                text = value if isinstance(value, bytes) else repr(value).encode()
                sha.update(f"{name} {len(text)} ".encode() + text)
    return {"records": records, "fields": sorted(names), "sha256": sha.hexdigest()}


def ours(path: pathlib.Path) -> Iterator[dict[str, list[Any]]]:
    from ns2_jax.data import records

    with open(path, "rb") as file:
        for offset, length, _ in records.ShardReader(path, path.parent.name).index.tolist():
            found = records.decode_example(records.read_record(file.fileno(), offset, length, str(path)))
            yield {name: [bytes(v) if isinstance(v, memoryview) else v for v in values] for name, values in found.items()}


def tensorflow(path: pathlib.Path) -> Iterator[dict[str, list[Any]]]:
    """Raises ValueError when TensorFlow writes other bytes, or its parser finds other values than its protocol buffers."""
    import tensorflow as tf

    with tempfile.NamedTemporaryFile() as copy:
        with tf.io.TFRecordWriter(copy.name) as writer:
            for payload in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                writer.write(payload)
                example = tf.train.Example.FromString(payload)
                found = {name: list(getattr(f, f.WhichOneof("kind")).value) for name, f in example.features.feature.items()}
                kinds = {name: {bytes: tf.string, int: tf.int64, float: tf.float32}[type(v[0])] for name, v in found.items()}
                spec = {name: tf.io.FixedLenFeature([len(found[name])], kind) for name, kind in kinds.items()}
                parsed = tf.io.parse_single_example(payload, spec)
                if any(parsed[name].numpy().tolist() != values for name, values in found.items()):
                    raise ValueError(f"{path}: tf.io.parse_single_example finds other values")
                yield found
        if pathlib.Path(copy.name).read_bytes() != path.read_bytes():
            raise ValueError(f"{path}: TensorFlow writes other bytes")


def main(how: str, where: str) -> None:
    if how == "summary":
        shards = [json.loads(line) for line in pathlib.Path(where).read_text().splitlines()]
        groups = sorted({shard["shard"].split("/")[0] for shard in shards})
        print(f"{len(shards)} shards, {sum(shard['records'] for shard in shards)} records of {', '.join(groups)}")
        return
    read = {"ours": ours, "tensorflow": tensorflow}[how]
    for path in sorted(pathlib.Path(where).glob("*/*.tfrecord")):
        print(json.dumps({"shard": f"{path.parent.name}/{path.name}", **digest(read(path))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
