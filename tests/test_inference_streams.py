"""Streams: pieces of any length, coded window by window, are what the whole is at once, without a seam and in constant memory."""

from __future__ import annotations

import tracemalloc
from unittest import mock

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.inference import streams
from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import state
from ns2_jax.systems import system as systems

CODECS = {
    "frame": dict(kind="frame", rate=800, hop=8, channels=6, width=16, blocks=(2, 2), size=32, mels=6, cepstrum=4),
    "waves": dict(kind="frame", rate=800, hop=8, channels=8, width=16, blocks=(2, 2), size=32, mels=6, cepstrum=4, wave=2, coarse=1, causal=True),
    "conv": dict(kind="conv", rate=800, hop=6, channels=6, width=4, decoder_width=16, strides=(2, 3)),
    "causal": dict(kind="conv", rate=800, hop=6, channels=6, width=4, decoder_width=16, strides=(2, 3), causal=True),
}
CHUNK = 24


def make(name: str) -> inference.Model:
    """A codec whose weights are as random as those of tests/tiny.py: what is far away counts."""
    numbers = CODECS[name]
    judge = dict(judge="1d", judge_sizes=(32,), judge_filters=4, mel_scales=((32, 4),))
    system = systems.make("codec", dict(codec=numbers, levels=3, codes=16, **judge))
    shapes = systems.shapes(system.fields, {**system.sizes, "b": 1, "t": 64, "s": 64 * numbers["hop"]})
    params, rest = jax.eval_shape(system.init, jax.random.key(0), shapes)
    rng = np.random.default_rng(1)
    flat = {path: tiny._fill(path, leaf.shape, rng) for path, leaf in state.flatten({"params": params, "rest": rest}).items()}
    tree = state.nest(flat)
    config = {"system": "codec", "model": {}, "data": {"sample_rate": 800, "hop": numbers["hop"], "buckets": [{"b": 1, "t": 64}]}}
    with mock.patch.object(meshes, "local_mesh", lambda: meshes.make_mesh({"fsdp": 1}, jax.devices()[:1])):
        return inference.Model(system, tree["params"], tree["rest"], config)


@pytest.fixture(scope="module", params=CODECS)
def model(request):
    return make(request.param)


def sound(samples: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, (rows, samples)).astype(np.float32)


def cut(array: np.ndarray, axis: int, seed: int = 0) -> list[np.ndarray]:
    """Pieces of `array` along `axis`, some empty, some long."""
    places = np.sort(np.random.default_rng(seed).integers(0, array.shape[axis] + 1, 9))
    return np.split(array, places, axis)


@pytest.fixture
def one_length(monkeypatch):
    """The whole is padded to one static length, which is compiled once."""
    monkeypatch.setattr("ns2_jax.inference.model.ladder", lambda frames: 384)


def lengths(model: inference.Model, part: str) -> list[int]:
    """Frames around every place where the windows change."""
    left, right = model.reach(part)
    edges = {1, right, CHUNK, CHUNK + right, left + CHUNK, left + CHUNK + right, 3 * CHUNK, 5 * CHUNK + right}
    return sorted({edge + step for edge in edges for step in (-1, 0, 1) if edge + step > 0})


def test_the_network_hears_as_far_as_it_says_and_no_farther(model):
    """Every output frame far inside, by changing one input frame at a time."""
    hop = model.hop
    for part in ("encode", "decode"):
        left, right = model.reach(part)
        frames, place = 2 * (left + right) + 9, left + right + 4
        z = np.random.default_rng(0).normal(size=(frames, model.system.sizes["c"])).astype(np.float32)
        x = {"encode": sound(frames * hop)[0], "decode": z}[part]
        method, key, wide = ("encode", "audio", hop) if part == "encode" else ("decode_latents", "latents", 1)

        def run(array):
            (out,) = model.run(method, [{key: array}], sizes={"t": frames, "s": frames * hop})
            return out["latents"] if part == "encode" else out["audio"].reshape(frames, hop)

        changed = x.copy()
        changed[place * wide : (place + 1) * wide] += np.random.default_rng(1).normal(size=changed[place * wide : (place + 1) * wide].shape)
        heard = np.flatnonzero(np.abs(run(changed) - run(x)).max(-1) > 0)
        assert heard.min() >= place - right and heard.max() <= place + left
        assert heard.max() - heard.min() >= left + right - 4  # the outermost taps may round to nothing
        if model.system.network.causal and part == "encode":
            assert right == (2 if model.system.network.kind == "frame" else 0)  # of a transform's window


def test_encoding_in_windows_is_encoding_at_once(model, one_length):
    for frames in lengths(model, "encode"):
        audio = sound(frames * model.hop)
        whole = model.encode(audio[0])
        pieces = list(model.encode_stream(cut(audio, 1, frames), CHUNK))
        assert [piece.shape[1] for piece in pieces] == [min(CHUNK, frames - i) for i in range(0, frames, CHUNK)]
        got = np.concatenate(pieces, 1)
        assert got.shape == (1, *whole.shape) and got.dtype == np.int32
        assert (got[0] == whole).all(-1).mean() >= 1 - 1 / frames  # ties of rounding would change single frames


def test_decoding_in_windows_is_decoding_at_once(model, one_length):
    for frames in lengths(model, "decode"):
        codes = np.random.default_rng(frames).integers(0, 16, (1, frames, 3))
        whole = model.decode(codes[0])
        got = np.concatenate(list(model.decode_stream(cut(codes, 1, frames), chunk=CHUNK)), 1)
        assert got.shape == (1, frames * model.hop) and np.abs(whole).max() > 1e-3
        np.testing.assert_allclose(got[0], whole, atol=1e-5)


def test_the_whole_does_not_depend_on_how_it_is_padded(model, monkeypatch):
    """Silence follows a recording, however much of it the static length holds: no more than is heard, or much."""
    audio, codes = sound(63 * model.hop)[0], np.random.default_rng(0).integers(0, 16, (63, 3))
    monkeypatch.setattr("ns2_jax.inference.model.ladder", lambda frames: frames)
    one = model.encode(audio), model.decode(codes)
    monkeypatch.setattr("ns2_jax.inference.model.ladder", lambda frames: 384)
    other = model.encode(audio), model.decode(codes)
    assert (one[0] == other[0]).all(-1).mean() > 0.98
    np.testing.assert_allclose(one[1], other[1], atol=1e-5)
    # And it is not what the network makes of the bare length, whose border it hears.
    (bare,) = model.run("decode", [{"codes": codes}], sizes={"t": 63, "s": 63 * model.hop})
    left, right = model.reach("decode")
    np.testing.assert_allclose(bare["audio"][: (63 - right) * model.hop], one[1][: (63 - right) * model.hop], atol=1e-5)
    if right:
        assert np.abs(bare["audio"] - one[1]).max() > 1e-4


def test_rows_are_coded_side_by_side_and_levels_can_be_fewer():
    model = make("frame")
    audio = sound(100 * 8, rows=3)
    codes = np.concatenate(list(model.encode_stream([audio], CHUNK)), 1)
    assert codes.shape == (3, 100, 3)
    for row, alone in zip(codes, audio):  # without the axis of rows too
        np.testing.assert_array_equal(np.concatenate(list(model.encode_stream([alone], CHUNK))), row)
    for levels in (1, 2):
        whole = model.decode(codes[0], levels)
        for given, asked in ((codes[0], levels), (codes[0, :, :levels], None), (codes[0, :, :levels], levels)):
            np.testing.assert_allclose(np.concatenate(list(model.decode_stream([given], asked, CHUNK))), whole, atol=1e-5)
    assert np.abs(model.decode(codes[0], 1) - model.decode(codes[0])).max() > 1e-4


def test_the_last_frame_is_completed_with_zeros():
    model = make("frame")
    audio = sound(50 * 8 + 3)
    got = np.concatenate(list(model.encode_stream(cut(audio, 1), CHUNK)), 1)
    assert got.shape[1] == 51
    np.testing.assert_array_equal(got[0], model.encode(np.pad(audio[0], (0, 5))))
    assert np.concatenate(list(model.encode_stream([audio[:, :1]], CHUNK)), 1).shape == (1, 1, 3)


def test_live_a_frame_comes_as_soon_as_what_it_needs():
    """Of the causal codec: the chunk and nothing more; else the chunk and the reach to the right."""
    for name in ("causal", "conv"):
        model, given = make(name), []
        right = model.reach("encode")[1]
        assert (right == 0) == (name == "causal")

        def microphone():
            for frame in np.split(sound(40 * 6)[0], 40):
                given.append(frame)
                yield frame

        for count, _ in enumerate(model.encode_stream(microphone(), 4), 1):
            assert len(given) == min(4 * count + right, 40)


@pytest.mark.parametrize("blocks,message", [
    ([], "without audio"),
    ([np.zeros(0, np.float32)], "without audio"),
    ([np.zeros((1, 2, 3), np.float32)], "expected"),
    ([np.zeros((2, 8), np.float32), np.zeros((3, 8), np.float32)], "before"),
    ([np.zeros((2, 8), np.float32), np.zeros(8, np.float32)], "before"),
])
def test_streams_of_other_shapes_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        list(tiny.toy().encode_stream(blocks, 8))
    with pytest.raises(ValueError, match="chunk=0"):
        list(tiny.toy().encode_stream([np.ones(8, np.float32)], 0))
    with pytest.raises(ValueError, match="without codes"):
        list(tiny.toy().decode_stream([]))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 6), st.integers(0, 6))
def test_windows_hold_every_frame_once_with_its_neighbours(sizes, chunk, left, right):
    total = sum(sizes)
    frames = np.arange(1, total + 1).reshape(1, -1, 1)
    blocks = np.split(frames, np.cumsum(sizes)[:-1], 1)
    got = []
    for window, begin, end in streams.windows(blocks, chunk, (left, right), "constant"):
        assert window.shape == (1, left + chunk + right, 1)
        row = window[0, :, 0]
        got += row[begin:end].tolist()
        # What a new frame hears is in the window, and the window begins with the stream or early enough.
        assert begin >= left or row[0] == 1
        assert end + right <= len(row)
        for place in range(begin, end):
            expected = np.clip(np.arange(row[place] - min(left, begin), row[place] + right + 1), 0, None)
            np.testing.assert_array_equal(row[place - min(left, begin) : place + right + 1], np.where(expected > total, 0, expected))
    assert got == list(range(1, total + 1))


def test_an_hour_takes_the_memory_of_seconds():
    """Of the toy, 3,600 s whose two channels are 23 MB: in blocks that are made when they are asked for, few alive at any time."""
    model = tiny.toy()
    alive, most, frames = 0, 0, 0

    def blocks(seconds: int):
        nonlocal alive, most
        for i in range(seconds):
            alive += 800
            most = max(most, alive)
            yield np.full((2, 800), 0.001 * (i % 100), np.float32)

    list(model.decode_stream(model.encode_stream(blocks(9))))  # compiles
    alive = most = 0
    tracemalloc.start()
    for audio in model.decode_stream(model.encode_stream(blocks(3600))):
        frames += audio.shape[1] // 4
        alive -= audio.shape[1]
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames == 3600 * 200 and most < 3 * 512 * 4 + 800
    assert size < 1e6


@pytest.mark.parametrize("codes, levels, message", [
    (np.zeros((9, 4), int), None, "codes have 4 levels; expected 1 to 3"), (np.zeros((9, 3)), None, "codes are float64"),
    (np.full((9, 3), 16), None, "codes go from 16 to 16; expected 0 to 15"), (np.full((9, 3), -1), None, "codes go from -1"),
    (np.zeros((9, 3), int), 0, "levels=0; expected 1 to 3"), (np.zeros((9, 3), int), -1, "levels=-1; expected 1 to 3")])
def test_codes_that_the_codec_does_not_have_are_refused(codes, levels, message):
    codec = make("causal")
    for call in (lambda: codec.decode(codes, levels), lambda: list(codec.decode_stream([codes], levels))):
        with pytest.raises(ValueError, match=message):
            call()


def test_audio_that_is_none_is_refused_and_codes_of_fewer_levels_are_decoded():
    codec = make("causal")
    for audio, message in ((np.zeros(999, np.int16), "audio is int16"), (np.full(999, np.nan, np.float32), "NaN or infinite")):
        for call in (lambda: codec.encode(audio), lambda: list(codec.encode_stream([audio]))):
            with pytest.raises(files.AudioError, match=message):
                call()
    codes = codec.encode(sound(600)[0])
    np.testing.assert_allclose(codec.decode(codes[:, :1]), codec.decode(codes, levels=1), atol=1e-6)
