"""The wire format of `tf.train.Example`, written and read without protobuf (faster than it, and no TensorFlow).

Bytes are those of protobuf's deterministic serialisation with map keys in byte order, as C++ and pure Python write them (the
`upb` build alone puts a longer key before its own prefix). Anything protobuf writes is read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

Value = Any


def _varint(n: int) -> bytes:
    out = bytearray()
    n &= (1 << 64) - 1  # negative int64 is two's complement in ten bytes
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _delimited(field: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    return [_varint(field << 3 | 2) + _varint(sum(len(part) for part in parts)), *parts]


def _feature(name: str, value: Value) -> list[bytes | memoryview]:
    """One `Feature` message: a scalar or a list of bytes/str, int or float; an array becomes one raw little-endian string."""
    if isinstance(value, np.ndarray):
        value = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    kinds = {bytes if isinstance(v, (str, bytes, memoryview)) else int if isinstance(v, (int, np.integer)) else type(v) for v in values}
    if kinds <= {bytes}:
        items = [v.encode() if isinstance(v, str) else v for v in values]
        return _delimited(1, *[part for item in items for part in _delimited(1, item)])
    if kinds == {int}:
        if not all(-(2**63) <= v < 2**63 for v in values):
            raise ValueError(f"field {name!r}: an integer does not fit int64")
        return _delimited(3, *_delimited(1, b"".join(_varint(int(v)) for v in values)))
    if kinds <= {float, np.float32, np.float64}:
        return _delimited(2, *_delimited(1, struct.pack(f"<{len(values)}f", *values)))
    raise ValueError(f"field {name!r}: cannot store {type(value).__name__}; use bytes, str, int, float, a list of one kind, or an array")


def encode_example(features: Mapping[str, Value]) -> bytes:
    """`tf.train.Example` bytes of `features`: str, bytes, int, float, a list of one of these, or an array (stored raw).

    An empty list is stored as an empty bytes list. Raises ValueError for anything else.
    """
    parts: list[bytes | memoryview] = []
    for name in sorted(features, key=str.encode):
        entry = [*_delimited(1, name.encode()), *_merge(_delimited(2, *_feature(name, features[name])))]
        parts += _delimited(1, *entry)
    return b"".join(_delimited(1, *parts))


def _merge(parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """Small parts are joined so that a payload is copied once, at the end."""
    return parts if sum(len(part) for part in parts) > 1024 else [b"".join(parts)]


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    n = shift = 0
    while True:
        byte = data[at]
        n |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return n, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint is longer than ten bytes")


def _messages(data: memoryview) -> list[tuple[int, int, Any]]:
    """(field, wire type, value) of one message: a memoryview for strings, an int for varints, raw bytes for fixed."""
    out: list[tuple[int, int, Any]] = []
    at, end = 0, len(data)
    while at < end:
        key, at = (data[at], at + 1) if data[at] < 0x80 else _read_varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _read_varint(data, at)
        else:
            if wire == 2:
                size, at = (data[at], at + 1) if data[at] < 0x80 else _read_varint(data, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire} is not used by tf.train.Example")
            if at + size > end:
                raise ValueError("a field runs past the end of its message")
            value, at = data[at : at + size], at + size
        out.append((key >> 3, wire, value))
    return out


def _signed(n: int) -> int:
    return n - (1 << 64) if n >= 1 << 63 else n


def _values(feature: memoryview) -> list[Value]:
    out: list[Value] = []
    for kind, _, items in _messages(feature):
        for field, wire, value in _messages(items):
            if field != 1:
                continue
            if kind == 1:
                out.append(value)
            elif kind == 2:  # packed or not, the same little-endian floats
                out += struct.unpack(f"<{len(value) // 4}f", value)
            elif wire == 0:
                out.append(_signed(value))
            else:
                at = 0
                while at < len(value):
                    n, at = _read_varint(value, at)
                    out.append(_signed(n))
    return out


def decode_example(data: bytes | memoryview) -> dict[str, list[Value]]:
    """The features of a `tf.train.Example`: name -> list of memoryview (bytes), int or float. Raises ValueError if malformed."""
    out = {}
    try:
        for field, _, features in _messages(memoryview(data)):
            for inner, _, entry in _messages(features) if field == 1 else ():
                if inner == 1:
                    parts = {number: value for number, _, value in _messages(entry)}
                    out[bytes(parts.get(1, b"")).decode()] = _values(parts.get(2, memoryview(b"")))
    except (IndexError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a tf.train.Example: {error}") from error
    return out
