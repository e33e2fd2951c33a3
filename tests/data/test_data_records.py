"""The wire format against protobuf, and integrity: every flipped bit and every truncation is found."""

from __future__ import annotations

import hashlib
import json
import os

import google_crc32c
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from noise_corpus import write_corpus
from tensorflow_datasets.proto import tf_example_pb2

from ns2_jax.data import bits, records, wire
from ns2_jax.data.dataset import Dataset

int64 = st.integers(-(2**63), 2**63 - 1)
float32 = st.floats(width=32, allow_nan=False)
values = st.one_of(
    st.binary(max_size=300), st.text(max_size=50), int64, float32,
    st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.lists(int64, min_size=1, max_size=20),
    st.lists(float32, min_size=1, max_size=9),
)  # fmt: skip


def as_list(value):
    items = value if isinstance(value, list) else [value]
    return [item.encode() if isinstance(item, str) else item for item in items]


def protobuf(features) -> tf_example_pb2.Example:
    message = tf_example_pb2.Example()
    message.features.SetInParent()
    for name, value in features.items():
        feature, items = message.features.feature[name], as_list(value)
        kind = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}[type(items[0])]
        kind.value.extend(items)
    return message


@hypothesis.given(st.dictionaries(st.text("abAz/_", min_size=3, max_size=3), values, max_size=6))
def test_bytes_are_those_of_protobuf(features):
    # Names of one length: protobuf's builds disagree on the order of a name and its own prefix.
    assert wire.encode_example(features) == protobuf(features).SerializeToString(deterministic=True)


@hypothesis.given(st.dictionaries(st.text(max_size=8), values, max_size=6))
def test_each_feature_in_byte_order_is_protobufs(features):
    single = [protobuf({name: features[name]}).features.SerializeToString() for name in sorted(features, key=str.encode)]
    joined = tf_example_pb2.Example()
    joined.features.MergeFromString(b"".join(single))  # messages concatenate
    joined.features.SetInParent()
    ours = wire.encode_example(features)
    assert tf_example_pb2.Example.FromString(ours) == joined
    assert ours.endswith(b"".join(single)) and len(ours) == len(joined.SerializeToString())


@hypothesis.given(st.dictionaries(st.text(max_size=8), values, max_size=6))
def test_reads_what_protobuf_writes(features):
    decoded = wire.decode_example(protobuf(features).SerializeToString())
    assert {name: [bytes(v) if isinstance(v, memoryview) else v for v in items] for name, items in decoded.items()} == {
        name: as_list(value) for name, value in features.items()
    }


def test_reads_unpacked_numbers():
    """Old writers put each number in a field of its own."""
    integers = b"\x1a\x05\x08\x05\x08\xac\x02"  # int64_list { 5, 300 }
    floats = b"\x12\x05\x0d\x00\x00\x80\x3f"  # float_list { 1.0 }
    entries = b"".join(b"\x0a" + bytes([len(e)]) + e for e in (b"\x0a\x01i\x12\x07" + integers, b"\x0a\x01x\x12\x07" + floats))
    data = b"\x0a" + bytes([len(entries)]) + entries
    assert tf_example_pb2.Example.FromString(data).features.feature["i"].int64_list.value == [5, 300]
    assert wire.decode_example(data) == {"i": [5, 300], "x": [1.0]}


@hypothesis.given(st.binary(max_size=60))
def test_garbage_is_decoded_or_refused(data):
    try:
        wire.decode_example(data)
    except ValueError:
        pass  # the only exception a reader may see


@pytest.mark.parametrize("value", [None, {"a": 1}, [1, "a"], 2**63, [1.0, 2]])
def test_values_that_cannot_be_stored(value):
    with pytest.raises(ValueError, match="x"):
        wire.encode_example({"x": value})


def test_arrays_come_back_with_dtype_shape_and_bytes():
    codes = np.arange(12, dtype=np.uint16).reshape(4, 3)
    out = records.unpack("codes-0", records.pack("codes-0", {"codes": codes}, 801))
    assert out["num_samples"] == 801 and out["codes"].dtype == np.uint16
    np.testing.assert_array_equal(out["codes"], codes)
    audio = np.array([-32768, 1, 32767], np.int16)
    payload = records.pack("audio", {"audio": audio}, 3)
    assert audio.tobytes() in payload  # raw little endian, not a list of numbers
    np.testing.assert_array_equal(records.unpack("audio", payload)["audio"], audio)


def test_pack_refuses_wrong_fields_and_dtypes():
    with pytest.raises(ValueError, match="int16, not float32"):
        records.pack("audio", {"audio": np.zeros(3, np.float32)}, 3)
    with pytest.raises(ValueError, match="takes the fields"):
        records.pack("align", {"phones": np.zeros(3, np.uint8)}, 3)
    with pytest.raises(ValueError, match="no schema"):
        records.pack("latents", {}, 3)
    with pytest.raises(ValueError, match="must be str"):
        records.pack("meta", dict.fromkeys(records.SCHEMAS["meta"], 3), 3)


def test_framing_is_tfrecord():
    """Length, masked crc of the length, payload, masked crc of the payload; the check value of CRC-32C is RFC 3720's."""
    assert google_crc32c.value(b"123456789") == 0xE3069283
    data = records.frame(b"123456789")
    assert data[:8] == (9).to_bytes(8, "little") and data[12:21] == b"123456789" and len(data) == 25
    rotated = (0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8
    assert int.from_bytes(data[21:], "little") == rotated & 0xFFFFFFFF


def small_shard(root) -> tuple:
    path = records.shard_path(root, "codes-0", "train", 0, 1)
    with records.ShardWriter(root, "codes-0", "train", 0, 1) as writer:
        for n in (3, 1):
            writer.write({"codes": np.arange(2 * n, dtype=np.uint16).reshape(n, 2)}, 200 * n + 7)
    return path, path.read_bytes(), records.read_all(path, "codes-0")


def damaged(path) -> bool:
    """Whether reading every record of the shard, with its index, fails."""
    try:
        records.read_all(path, "codes-0")
    except records.Corrupt:
        return True
    return False


def test_every_flipped_bit_is_found(tmp_path):
    path, data, _ = small_shard(tmp_path)
    assert not damaged(path)
    missed = []
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        if not damaged(path):
            missed.append(bit)
    assert missed == [] and len(data) > 100


def test_two_thousand_flipped_bits_of_a_data_set_are_found(tmp_path):
    """Any bit of any record or index of any group, as the feed reads them."""
    write_corpus(tmp_path, utterances=4, shard_count=2, splits=("train",))
    groups = Dataset.open(tmp_path).groups
    files = [path for path in sorted(tmp_path.glob("*/*")) if path.suffix in (".tfrecord", ".npy")]
    rng = np.random.default_rng(0)
    missed = []
    for _ in range(2000):
        path = files[rng.integers(len(files))]
        data = path.read_bytes()
        at, bit = int(rng.integers(len(data))), int(rng.integers(8))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        try:
            Dataset.open(tmp_path).read_many("train", {path.parent.name: range(4)})
            missed.append((path, at, bit))
        except records.Corrupt:
            pass
        path.write_bytes(data)
    assert missed == []
    Dataset.open(tmp_path).read_many("train", {group: range(4) for group in groups})  # and all is well again


def test_every_truncation_is_found(tmp_path):
    path, data, _ = small_shard(tmp_path)
    for size in range(len(data)):
        path.write_bytes(data[:size])
        assert damaged(path), size


def test_every_flipped_bit_of_the_index_is_found(tmp_path):
    path, _, _ = small_shard(tmp_path)
    index = records.index_path(path)
    data = index.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        index.write_bytes(flipped)
        assert damaged(path), bit


def test_a_lost_index_is_rebuilt(tmp_path):
    path, _, before = small_shard(tmp_path)
    index = records.index_path(path)
    data = index.read_bytes()
    index.unlink()
    after = records.read_all(path, "codes-0")
    assert index.read_bytes() == data
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a["codes"], b["codes"])
        assert a["num_samples"] == b["num_samples"]


def test_an_index_of_another_shard_is_refused(tmp_path):
    path, _, _ = small_shard(tmp_path)
    fd = os.open(path, os.O_RDONLY)
    try:
        length = records.ShardReader(path, "codes-0").index[0]["length"]
        with pytest.raises(records.Corrupt, match="do not belong together"):
            records.read_record(fd, 0, int(length) + 1)
    finally:
        os.close(fd)


def test_index_counts_frames_or_phones(tmp_path):
    with records.ShardWriter(tmp_path, "align", "train", 0, 1) as writer:
        writer.write({"phones": np.arange(1, 6, dtype=np.uint8), "ends": np.arange(1, 6, dtype=np.int32) * 100}, 500)
    index = records.ShardReader(records.shard_path(tmp_path, "align", "train", 0, 1), "align").index
    assert index["count"].tolist() == [5] and index.dtype.itemsize == 16
    path, _, _ = small_shard(tmp_path)
    assert records.ShardReader(path, "codes-0").index["count"].tolist() == [3, 1]


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        with records.ShardWriter(tmp_path, "audio", "train", 0, 1) as writer:
            writer.write({"audio": np.zeros(5, np.int16)}, 5)
            raise KeyError
    assert list((tmp_path / "audio").iterdir()) == []
    with pytest.raises(FileNotFoundError, match="never finished"):
        records.ShardReader(records.shard_path(tmp_path, "audio", "train", 0, 1), "audio")


def test_marker_tells_what_is_in_the_shard(tmp_path):
    path, data, _ = small_shard(tmp_path)
    marker = json.loads(records.marker_path(path).read_text())
    assert marker["records"] == 2 and marker["samples"] == 600 + 200 + 14 and marker["bytes"] == len(data)
    assert marker["sha256"] == hashlib.sha256(data).hexdigest()


# Codes in ten bits ---------------------------------------------------------------------------------------------------


def in_bits(codes: np.ndarray) -> bytes:
    """The definition: all codes as one number, the first in its lowest ten bits, in whole groups of four."""
    number = sum(int(code) << 10 * i for i, code in enumerate(codes.reshape(-1)))
    return number.to_bytes(-(-codes.size // 4) * 5, "little")


@hypothesis.given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9), elements=st.integers(0, 1023)))
def test_packed_codes_come_back(codes):
    assert bits.pack(codes) == in_bits(codes)
    payload = records.pack("codes-0", {"codes": codes}, 77, packed=True)
    assert in_bits(codes) in payload
    out = records.unpack("codes-0", payload)
    assert out["codes"].dtype == np.uint16 and out["codes"].shape == codes.shape and out["num_samples"] == 77
    np.testing.assert_array_equal(out["codes"], codes)


def test_codes_that_cannot_be_packed_or_unpacked():
    for wrong in (np.array([[3, 1024]], np.uint16), np.array([65535, 0], np.uint16)):
        with pytest.raises(ValueError, match=f"codes from {wrong.min()} to {wrong.max()} do not fit 10 bits"):
            records.pack("codes-0", {"codes": wrong}, 1, packed=True)
    assert bits.pack(np.array([1023] * 4, np.uint16)) == b"\xff" * 5
    for shape in ([5], [2, 4], [-1], [3, -1]):
        with pytest.raises(ValueError, match="bytes are not"):
            bits.unpack(b"\0" * 5, shape)
    features = wire.decode_example(records.pack("codes-0", {"codes": np.zeros(4, np.uint16)}, 1, packed=True))
    with pytest.raises(ValueError, match=r"has \[11\] bits"):
        records.unpack("codes-0", wire.encode_example(features | {"codes/bits": 11}))


def test_a_packed_group_says_so_and_reads_like_any_other(tmp_path):
    """Five eighths of the bytes, as the data set reads them."""
    write_corpus(tmp_path, utterances=4, shard_count=1, splits=("train",))
    dataset = Dataset.open(tmp_path)
    (group,) = [name for name in dataset.groups if name.startswith("codes-")]
    plain = dataset.read_many("train", {group: range(4)})[group]
    marker = dataset.marker(group, "train", 0)
    with records.ShardWriter(tmp_path, group, "train", 0, 1, info={**marker["info"], "bits": 10}) as writer:
        for record in plain:
            writer.write({"codes": record["codes"]}, record["num_samples"])
    again = Dataset.open(tmp_path)
    packed = again.read_many("train", {group: range(4)})[group]
    assert again.marker(group, "train", 0)["info"]["bits"] == 10
    for a, b in zip(plain, packed, strict=True):
        np.testing.assert_array_equal(a["codes"], b["codes"])
        assert a["num_samples"] == b["num_samples"]
    codes = sum(record["codes"].size for record in plain)
    assert again.marker(group, "train", 0)["bytes"] - codes * 1.25 < marker["bytes"] - codes * 2 + 4 * 40
