"""Code files: what goes in comes out, in the bits it needs; nothing that is cut or changed is taken for whole."""

from __future__ import annotations

import dataclasses
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ns2_jax.audio import codes

ONE = codes.Header(rate=16000, hop=200, levels=1, codes=1024, codec="0123456789ab", channels=1, source_rate=16000)
HEADER = codes.Header(rate=16000, hop=200, levels=3, codes=1024, codec="0123456789ab", channels=2, source_rate=44100)


def noise(header: codes.Header, frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, header.codes, (header.channels, frames, header.levels))


def write(path, header: codes.Header, array: np.ndarray, samples: int, step: int = 100) -> bytes:
    with codes.create(path, header) as file:
        for i in range(0, array.shape[1], step):
            file.write(array[:, i : i + step])
        file.finish(samples)
    return path.read_bytes()


def read(path) -> np.ndarray:
    with codes.Reader(path) as file:
        return np.concatenate(list(file.blocks()), 1)


@pytest.mark.parametrize("size,channels,levels,frames,short", [
    (1024, 1, 16, 1, 0), (1024, 2, 3, 255, 1), (1024, 6, 1, 256, 199), (1000, 1, 7, 257, 5), (2, 3, 5, 513, 0), (65536, 1, 1, 700, 1),
    (3, 1, 1, 5, 9)])
@pytest.mark.parametrize("step", [1, 100, 1000])
def test_round_trip(tmp_path, size, channels, levels, frames, short, step):
    header = dataclasses.replace(HEADER, codes=size, channels=channels, levels=levels)
    array, samples = noise(header, frames), frames * 200 - short
    data = write(tmp_path / "a.ns2", header, array, samples, step)
    with codes.Reader(tmp_path / "a.ns2") as file:
        assert file.header == header and (file.samples, file.frames, file.seconds) == (samples, frames, samples / 16000)
        for _ in range(2):  # it can be read again
            blocks = list(file.blocks())
            np.testing.assert_array_equal(np.concatenate(blocks, 1), array)
            assert {block.shape[1] for block in blocks[:-1]} <= {codes.BLOCK}
    # Bits, written out: magic and header, blocks of length, codes and CRC, the end.
    bits = int(np.ceil(np.log2(size)))
    text = len(json.dumps(dataclasses.asdict(header), separators=(",", ":")))
    counts = [min(codes.BLOCK, frames - i) for i in range(0, frames, codes.BLOCK)]
    assert len(data) == 20 + text + sum(8 + -(-n * channels * levels * bits // 8) for n in counts) + 16


@given(st.integers(1, 16), st.integers(1, 3), st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_packing_holds_every_size(bits, b, t, q, seed):
    array = np.random.default_rng(seed).integers(0, 2**bits, (b, t, q))
    data = codes.pack(array, bits)
    assert len(data) == -(-b * t * q * bits // 8)
    np.testing.assert_array_equal(codes.unpack(data, (b, t, q), bits), array)


def test_packing_is_as_the_docstring_says():
    array = np.array([[[1, 2]], [[1023, 0]]])  # two channels, one frame, two levels
    assert codes.pack(array, 10) == int("0000000001" "0000000010" "1111111111" "0000000000", 2).to_bytes(5, "big")


def test_the_same_codes_are_the_same_bytes_however_they_come(tmp_path):
    array = noise(HEADER, 600)
    made = {write(tmp_path / f"{step}.ns2", HEADER, array, 600 * 200, step) for step in (1, 7, 256, 600)}
    assert len(made) == 1


def test_only_the_levels_of_the_header_are_stored(tmp_path):
    array = noise(dataclasses.replace(HEADER, levels=16), 300)
    write(tmp_path / "a.ns2", HEADER, array, 300 * 200)
    np.testing.assert_array_equal(read(tmp_path / "a.ns2"), array[..., :3])


def test_every_changed_bit_is_found(tmp_path):
    data = write(tmp_path / "a.ns2", ONE, noise(ONE, 20), 20 * 200 - 3)
    for place in range(8 * len(data)):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "b.ns2").write_bytes(changed)
        with pytest.raises(ValueError, match=r"b\.ns2"):
            read(tmp_path / "b.ns2")


def test_every_cut_and_every_addition_is_found_at_opening(tmp_path):
    data = write(tmp_path / "a.ns2", ONE, noise(ONE, 300), 300 * 200)
    for length in range(len(data)):
        (tmp_path / "b.ns2").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"b\.ns2: (not a code file|cut short|damaged)"):
            codes.Reader(tmp_path / "b.ns2")
    (tmp_path / "b.ns2").write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=r"b\.ns2: cut short or damaged"):
        codes.Reader(tmp_path / "b.ns2")


def test_blocks_in_another_order_are_found(tmp_path):
    data = write(tmp_path / "a.ns2", HEADER, noise(HEADER, 512), 512 * 200)
    size = HEADER.size(codes.BLOCK) + 8
    first = len(data) - 16 - 2 * size
    one, two = data[first : first + size], data[first + size : first + 2 * size]
    (tmp_path / "b.ns2").write_bytes(data[:first] + two + one + data[-16:])
    with pytest.raises(ValueError, match="damaged: the block at 0.0 s"):
        read(tmp_path / "b.ns2")


def signed(header: bytes, version: int = 1) -> bytes:
    data = codes.MAGIC + struct.pack("<II", version, len(header)) + header
    return data + struct.pack("<I", zlib.crc32(data))


@pytest.mark.parametrize("data,message", [
    (b"", "not a code file"),
    (b"RIFF\0\0\0\0WAVEfmt and more of it", "not a code file"),
    (signed(b"{}", version=2), "version 2, while this program reads version 1"),
    (signed(b"[]"), "header that makes no sense"),
    (signed(b"\xff"), "header that makes no sense"),
    (signed(json.dumps(dataclasses.asdict(HEADER) | {"hop": 0}).encode()), "hop is 0"),
    (signed(json.dumps(dataclasses.asdict(HEADER) | {"rate": 16000.5}).encode()), "rate is 16000.5"),
    (signed(json.dumps(dataclasses.asdict(HEADER) | {"channels": True}).encode()), "channels is True"),
    (signed(json.dumps(dataclasses.asdict(HEADER) | {"codes": 1}).encode()), "codes is 1"),
    (signed(json.dumps(dataclasses.asdict(HEADER) | {"codec": "../../../etc"}).encode()), "codec is"),
    (signed(json.dumps(dataclasses.asdict(HEADER) | {"colour": 1}).encode()), "colour"),
    (signed(b" " * 5000), "header would be 5000 bytes"),
    (signed(json.dumps(dataclasses.asdict(HEADER)).encode()), "cut short"),
])
def test_what_is_no_code_file_is_refused_by_name(tmp_path, data, message):
    (tmp_path / "b.ns2").write_bytes(data)
    with pytest.raises(ValueError, match=r"b\.ns2: ") as error:
        codes.Reader(tmp_path / "b.ns2")
    assert message in str(error.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such code file"):
        codes.Reader(tmp_path / "nowhere.ns2")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        codes.Reader(tmp_path)


@pytest.mark.parametrize("array,samples,message", [
    (np.zeros((1, 5, 3), int), 1000, r"expected integers \[2, t, 3\]"),
    (np.zeros((2, 5, 2), int), 1000, r"expected integers \[2, t, 3\]"),
    (np.zeros((2, 5, 3)), 1000, "float64"),
    (np.full((2, 5, 3), 1024), 1000, "codes from 1024 to 1024, expected 0 to 1023"),
    (np.full((2, 5, 3), -1), 1000, "codes from -1"),
    (np.zeros((2, 5, 3), int), 1001, "1001 samples are not 5 frames of 200"),
    (np.zeros((2, 5, 3), int), 800, "800 samples are not 5 frames of 200"),
    (np.zeros((2, 0, 3), int), 0, "0 samples"),
])
def test_what_can_not_be_stored_is_refused_and_leaves_nothing(tmp_path, array, samples, message):
    with pytest.raises(ValueError, match=message), codes.create(tmp_path / "a.ns2", HEADER) as file:
        file.write(array)
        file.finish(samples)
    assert not list(tmp_path.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), codes.create(tmp_path / "a.ns2", HEADER) as file:
        file.write(noise(HEADER, 600))
        assert [path.name[:7] for path in tmp_path.iterdir()] == [".a.ns2."]  # only the hidden one so far
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="its end was never written"), codes.create(tmp_path / "a.ns2", HEADER) as file:
        file.write(noise(HEADER, 600))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="expected .ns2"), codes.create(tmp_path / "a.wav", HEADER):
        pass


def test_memory_does_not_grow_with_length(tmp_path):
    def peak(blocks: int) -> int:
        tracemalloc.start()
        with codes.create(tmp_path / "a.ns2", HEADER) as file:
            for i in range(blocks):
                file.write(noise(HEADER, 100, i))
            file.finish(blocks * 100 * 200)
        with codes.Reader(tmp_path / "a.ns2") as file:
            for _ in file.blocks():
                pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(2)
    assert peak(400) < 1.2 * peak(40)
