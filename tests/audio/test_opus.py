"""Opus: rates, lengths and alignment of what comes back, and the bytes of an Ogg file accounted for to the last."""

from __future__ import annotations

import pathlib
import struct

import numpy as np
import pytest
import soundfile

from ns2_jax.audio import files, opus

SPEECH = pathlib.Path(__file__).parents[1] / "evals" / "sentence.flac"


@pytest.fixture(scope="module")
def speech():
    return files.read(SPEECH, 16000)


def pages(*tables: list[int], body: bytes = b"") -> bytes:
    """An Ogg stream with these segment tables; its bytes count up through the packets unless `body` is given."""
    data, at = b"", 0
    body = body or bytes(i % 251 for i in range(sum(map(sum, tables))))
    for number, table in enumerate(tables):
        data += b"OggS" + struct.pack("<BBqIIIB", 0, 0, 0, 7, number, 0, len(table)) + bytes(table) + body[at : at + sum(table)]
        at += sum(table)
    return data


def test_packets_by_their_segments():
    """A packet of exactly 255 bytes ends with an empty segment; one goes over three segments and two pages."""
    found = opus.packets(pages([19], [30], [255, 0, 255, 255], [10, 3]))
    assert list(map(len, found)) == [19, 30, 255, 520, 3]
    assert b"".join(found) == bytes(i % 251 for i in range(827))
    assert opus.payload(pages([19], [30], [255, 0, 255, 255], [10, 3])) == 778


@pytest.mark.parametrize("data", [b"RIFF" + bytes(40), pages([5])[:20], pages([50])[:-1], pages([50]) + b"x"])
def test_what_is_no_ogg_is_refused(data):
    with pytest.raises(ValueError, match="Ogg page"):
        opus.packets(data)


def test_the_file_is_pages_headers_and_payload(speech):
    """Counted from outside: 27 bytes and the table a page, the comment's padding; one packet each 20 ms."""
    data = opus.encode(speech, 16000, 16000)
    found = opus.packets(data)
    starts = [i for i in range(len(data)) if data.startswith(b"OggS\0", i)]
    tables = sum(data[i + 26] for i in starts)
    assert len(data) == 27 * len(starts) + tables + sum(map(len, found))
    assert opus.payload(data) == sum(map(len, found)) - len(found[0]) - len(found[1])
    assert found[0].startswith(b"OpusHead") and found[1].startswith(b"OpusTags")
    assert 0 <= len(found) - 2 - len(speech) / 320 < 3


@pytest.mark.parametrize("bitrate", [8000, 12800, 64000])
def test_the_rate_is_about_what_is_aimed_at(speech, bitrate):
    data = opus.encode(speech, 16000, bitrate)
    assert 8 * opus.payload(data) / (len(speech) / 16000) == pytest.approx(bitrate, rel=0.07)


@pytest.mark.parametrize("rate", [16000, 22050, 48000])
def test_what_comes_back_lies_where_it_was(speech, rate):
    audio = files.resample(speech, 16000, rate)
    back = opus.decode(opus.encode(audio, rate, 128000), rate)
    length = min(len(audio), len(back))
    assert abs(len(audio) - len(back)) <= 1
    error = [np.square(audio[k:length] - back[: length - k]).sum() for k in range(4)]
    assert min(error) == error[0] < 0.01 * np.square(audio).sum()


def test_limits_and_version(monkeypatch):
    with pytest.raises(ValueError, match="Opus at 5000 bit/s: this encoder aims at 6000"):
        opus.encode(np.zeros(160), 16000, 5000)
    assert opus.version().startswith("libopus ") and soundfile.__libsndfile_version__ in opus.version()
    opus.check()
    monkeypatch.setattr(soundfile, "available_subtypes", lambda kind: {"VORBIS": ""})
    with pytest.raises(ImportError, match="needs a libsndfile that writes it"):
        opus.check()
