"""Files whose length libsndfile does not know, or tells wrong: each is read whole, or refused by a reason."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import soundfile

from ns2_jax.audio import files, lengths

RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
KINDS = {".ogg": ("OGG", "VORBIS"), ".opus": ("OGG", "OPUS"), ".mp3": ("MP3", "MPEG_LAYER_III")}
ID3 = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)


def encoded(kind: str, seconds: float, rate: int = 24000, channels: int = 1, **how) -> bytes:
    """Noise, its first half loud: a guess from the first frame of what has a variable bit rate is far off."""
    audio = np.random.default_rng(0).normal(0, 0.2, (int(seconds * rate), channels))
    audio[len(audio) // 2 :] *= 0.003
    file = io.BytesIO()
    form, subtype = KINDS[kind]
    soundfile.write(file, audio, rate, format=form, subtype=subtype, **how)
    return file.getvalue()


def places(data: bytes) -> list[int]:
    """Where the frames of an MP3 without a tag begin, and where the last ends."""
    at = [0]
    while at[-1] < len(data):
        at.append(at[-1] + lengths._frame(data[at[-1] : at[-1] + 4])[0])
    return at


def bare(data: bytes) -> bytes:
    return data[places(data)[1] :]


def read(tmp_path, kind: str, data: bytes) -> int:
    """How many samples are read, whole and block by block."""
    path = tmp_path / f"a{kind}"
    path.write_bytes(data)
    with files.Recording(path) as file:
        count, promised = len(file.read()), round(file.seconds * file.rate)
        assert sum(block.shape[1] for block in file.blocks(file.rate)) == count == promised
    return count


def refused(tmp_path, kind: str, data: bytes, words: str) -> None:
    path = tmp_path / f"a{kind}"
    path.write_bytes(data)
    for use in (files.read, files.seconds):
        with pytest.raises(files.AudioError, match=words) as info:
            use(path)
        assert info.value.reason == "unreadable" and str(path) in str(info.value)


# Ogg -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".ogg", ".opus"])
def test_ogg_is_read_whole_or_refused(tmp_path, kind):
    data = encoded(kind, 4)
    junk = np.random.default_rng(1).bytes(3000)
    for behind in (b"", bytes(200_000), b"OggS" + bytes(20), b"OggS" + junk, b"OggS\0\2" + junk, b"TAG" + bytes(125)):
        assert read(tmp_path, kind, data + behind) == 4 * 24000
    for cut in (1, 20, 1000, len(data) // 3):
        refused(tmp_path, kind, data[:-cut], r"cut short: its last page does not end the stream; [123]\.\d\d s can be read")
    middle = data.index(b"OggS", len(data) // 2)
    refused(tmp_path, kind, data[: middle - 50] + data[middle:], "cut short")
    for second in (data, encoded(kind, 1), bytes(3000) + data):
        refused(tmp_path, kind, data + second, r"holds several streams one after the other; convert it to \.wav or \.flac")
    last = data.rindex(b"OggS")
    unended = data[: last + 5] + bytes([data[last + 5] & ~lengths.END]) + data[last + 6 :]  # as a server that is cut off leaves it
    refused(tmp_path, kind, unended + data, "several streams")
    refused(tmp_path, kind, unended, "cut short")


# MP3 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_a_header_is_read_whole(tmp_path, rate, mode):
    """From any frame on, whatever libsndfile guesses: all that is decoded of the frames, less the decoder's own delay of 529."""
    for channels, level in ((1, 0.0), (1, 0.6), (2, 0.95)):
        data = encoded(".mp3", 5, rate, channels, bitrate_mode=mode, compression_level=level)
        at = places(data)
        for first in (1, 2, 9):
            frames = len(at) - 1 - first
            assert read(tmp_path, ".mp3", data[at[first] :]) == frames * (1152 if rate >= 32000 else 576) - 529


@pytest.mark.parametrize("rate", [11025, 24000, 44100])
def test_mp3_in_all_conditions(tmp_path, rate):
    rng, n, size = np.random.default_rng(1), 5 * rate, 1152 if rate >= 32000 else 576
    data = encoded(".mp3", 5, rate, bitrate_mode="VARIABLE")
    plain, tag = bare(data), data.index(b"Xing")
    for front in (b"", ID3, 2 * ID3, b"ID3\x04\x00\x10" + ID3[6:] + b"3DI" + ID3[3:10], rng.bytes(3000)):
        assert read(tmp_path, ".mp3", front + data) == n  # its header is right, and says what the coder added
    all_of_it = (len(places(plain)) - 1) * size - 529
    untold = data[: tag + 4] + bytes(4) + data[tag + 8 :]
    too_few = data[: tag + 8] + (9).to_bytes(4, "big") + data[tag + 12 :]
    for changed in (plain, plain + plain[:100], plain + b"ID3\x04", bytes(5000) + plain, rng.bytes(3000) + plain, ID3 + plain, plain + b"TAG" + bytes(125), untold, too_few,
                    plain + b"APETAGEX" + (2000).to_bytes(4, "little") + rng.bytes(20000) + b"TAG" + bytes(125)):  # fmt: skip
        assert read(tmp_path, ".mp3", changed) == all_of_it
    twice = 2 * (len(places(plain)) - 1) * size - 529
    for between in (b"", b"TAG" + bytes(125), ID3):
        assert read(tmp_path, ".mp3", plain + between + plain) == twice
        assert read(tmp_path, ".mp3", data + between + data) == twice + size  # the second header is decoded, to silence
    for cut in (1, 20, len(data) // 2):
        refused(tmp_path, ".mp3", data[:-cut], r"damaged or cut short: [2-5]\.\d\d s of 5\.\d\d s can be read")
    refused(tmp_path, ".mp3", ID3 + data[: -len(data) // 4], "cut short")
    (tmp_path / "a.mp3").write_bytes(data[: len(data) // 2] + bytes(4000) + data[len(data) // 2 :])
    with pytest.raises(files.AudioError, match="damaged or cut short|Unspecified internal error"):  # a hole stops the decoder
        files.read(tmp_path / "a.mp3")


def test_an_mp3_that_changes_is_refused(tmp_path):
    slow, fast, two = (encoded(".mp3", 1, *how) for how in ((22050,), (44100,), (44100, 2)))
    refused(tmp_path, ".mp3", bare(slow) + bare(fast), r"changes from 22050 to 44100 Hz at 1\.\d\d s; convert it to \.wav")
    refused(tmp_path, ".mp3", fast + slow, "changes from 44100 to 22050 Hz")
    refused(tmp_path, ".mp3", fast + two, "changes from 1 to 2 channels")
    free = bytearray(bare(encoded(".mp3", 1, 48000)))
    for at in places(bytes(free))[:-1]:
        free[at + 2] &= 0x0F
    refused(tmp_path, ".mp3", bytes(free), "no frame of MPEG layer III whose length is known|not an audio file")


@pytest.mark.parametrize("headed", [True, False])
def test_a_part_of_an_mp3_is_what_the_whole_has_there(tmp_path, headed):
    """At low rates a frame holds bits of many frames before it; a decoder that begins there lacks them."""
    for rate, channels, level in ((24000, 2, 0.95), (22050, 1, 0.95), (44100, 1, 0.95), (16000, 1, 0.5)):
        data = encoded(".mp3", 6, rate, channels, bitrate_mode="CONSTANT", compression_level=level)
        (tmp_path / "a.mp3").write_bytes(data if headed else data[places(data)[1] :])
        with files.Recording(tmp_path / "a.mp3") as file:
            whole = file.read()
            for start in (0, 77, 2 * rate + 5, 4 * rate):
                np.testing.assert_allclose(file.read(start, start + rate), whole[start : start + rate], atol=1e-6)


def test_counting_is_fast_and_remembered(tmp_path, monkeypatch):
    path = tmp_path / "a.mp3"
    plain = bare(encoded(".mp3", 20, 44100))
    path.write_bytes(plain + b"\xff" * 4_000_000)
    begin = time.process_time()
    count = lengths.mpeg(path).samples
    assert time.process_time() - begin < 0.5
    monkeypatch.setattr(lengths, "_frames", lambda data: 1 / 0)
    assert lengths.mpeg(path).samples == count == (len(places(plain)) - 1) * 1152
    path.write_bytes(plain + plain)
    with pytest.raises(ZeroDivisionError):  # another file
        lengths.mpeg(path)


# Others --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
def test_a_cut_wav_is_refused(tmp_path, form):
    soundfile.write(tmp_path / "b.wav", np.random.default_rng(0).normal(0, 0.1, 96000), 24000, format=form, subtype="PCM_16")
    data = (tmp_path / "b.wav").read_bytes()
    assert read(tmp_path, ".wav", data) == 96000
    for cut in (1, 1000, len(data) // 2):
        refused(tmp_path, ".wav", data[:-cut], r"damaged or cut short: [234]\.\d\d s of 4\.00 s can be read")


@pytest.mark.parametrize("form", ["AIFF", "W64", "CAF", "AU"])
def test_formats_whose_length_nobody_checks_are_refused(tmp_path, form):
    soundfile.write(tmp_path / "b.wav", np.random.default_rng(0).normal(0, 0.1, 96000), 24000, format=form, subtype="PCM_16")
    refused(tmp_path, ".wav", (tmp_path / "b.wav").read_bytes(), rf"{form} is no format that we can read \(wav, flac, ogg, mp3\); convert it")
