"""Copies of a recording are found whatever was done to them; other recordings, of the same text and voice too, are not taken for copies."""

from __future__ import annotations

import io
import pathlib
import time

import numpy as np
import pytest
import soundfile
import soxr

from data_pipelines import duplicates, flite

HERE = pathlib.Path(__file__).parent
RATE = 16000


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Fifteen recordings float32 at 16 kHz: three sentences, each by five voices (the same one, faster and higher or slower and lower)."""
    sentences = [soundfile.read(HERE / f"sentence{i}.flac", dtype="float32")[0] for i in range(3)]
    return [soxr.resample(audio, RATE, round(RATE * slower)) for slower in (1, 0.84, 0.92, 1.09, 1.19) for audio in sentences]


def coded(audio: np.ndarray, kind: str, subtype: str, level: float) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, audio, RATE, format=kind, subtype=subtype, compression_level=level)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def resampled(audio: np.ndarray, rate: int) -> np.ndarray:
    return soxr.resample(soxr.resample(audio, RATE, rate), rate, RATE)


COPIES = {
    "softer": lambda x: x * 0.3, "louder": lambda x: np.clip(x * 1.5, -1, 1), "of 22 kHz": lambda x: resampled(x, 22050),
    "of 8 kHz": lambda x: resampled(x, 8000), "mp3": lambda x: coded(x, "MP3", "MPEG_LAYER_III", 0.5),
    "low mp3": lambda x: coded(x, "MP3", "MPEG_LAYER_III", 0.9), "vorbis": lambda x: coded(x, "OGG", "VORBIS", 0.6),
    "opus": lambda x: coded(x, "OGG", "OPUS", 0.8), "without its first 50 ms": lambda x: x[800:],
    "cut at both ends": lambda x: x[1103:-877],
    "all at once": lambda x: coded(resampled(x[1103:-877], 22050) * 0.4, "MP3", "MPEG_LAYER_III", 0.5),
}  # fmt: skip


def pcm(audio: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)


def find(recordings: list[np.ndarray]) -> tuple[list[int], list[int]]:
    keys = np.zeros((len(recordings), duplicates.KEYS), np.uint32)
    for row, audio in zip(keys, recordings):
        found = duplicates.keys(audio, RATE)
        row[: len(found)] = found
    digests = np.array([hash(audio.tobytes()) & 0xFFFFFFFFFFFFFFF for audio in recordings], np.uint64)
    seconds = np.array([len(audio) / RATE for audio in recordings])
    measure = lambda i: duplicates.differences(recordings[i], RATE)
    kind, of, _ = duplicates.find(digests, keys, seconds, lambda pairs: duplicates.copies(pairs, measure))
    return kind.tolist(), of.tolist()


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_found(speech, change):
    """All fifteen, each as a copy of its own original."""
    n = len(speech)
    kind, of = find([pcm(audio) for audio in speech] + [pcm(COPIES[change](audio)) for audio in speech])
    assert kind == [0] * n + [1] * n and of == [*range(n), *range(n)]


def test_the_same_samples_are_an_exact_copy(speech):
    a, b, c = (pcm(audio) for audio in speech[:3])
    click = np.zeros(4000, np.int16)  # too short for keys
    kind, of = find([a, b, click, a, c, click, a, pcm(speech[1] * 0.5), b])
    assert kind == [0, 0, 0, 2, 0, 2, 2, 1, 2] and of == [0, 1, 2, 0, 4, 2, 0, 1, 1]


def test_a_copy_of_a_copy_counts_as_one_of_the_first(speech):
    a = speech[0]
    once = COPIES["without its first 50 ms"](a)
    assert find([pcm(a), pcm(once), pcm(once[800:]), pcm(speech[1])])[1] == [0, 0, 0, 3]


def test_what_is_no_copy(speech):
    """Other sentences and voices, half of a recording, silence and hums."""
    assert find([pcm(audio) for audio in speech])[0] == [0] * len(speech)
    t = np.arange(3 * RATE) / RATE
    hums = [pcm(0.2 * np.sin(2 * np.pi * pitch * t)) for pitch in (100, 150, 220)]
    assert find([*hums, pcm(speech[0]), pcm(speech[0][: len(speech[0]) // 2]), np.zeros(3 * RATE, np.int16)])[0] == [0] * 6


@pytest.mark.skipif(not flite.available(), reason="flite is not installed")
def test_another_take_of_the_same_text_by_the_same_voice_is_none():
    text = "The evening train arrives at seven and leaves again at nine."
    for voice in ("slt", "kal16"):
        ways = ((1, 1), (1.08, 1), (1.05, 1.05), (0.93, 1.04), (1.1, 1.1))
        takes = [flite.speak(text, voice, pitch, stretch)[0] for pitch, stretch in ways]
        assert find([pcm(audio) for audio in takes])[0] == [0] * len(takes)


def test_a_million_is_sorted_not_paired():
    """Keys as of a million recordings, among them a thousand pairs that share some: found, in seconds."""
    n, rng = 1_000_000, np.random.default_rng(0)
    keys, seconds = rng.integers(1, 1 << 32, (n, duplicates.KEYS), dtype=np.uint32), rng.uniform(2, 20, n)
    pairs = rng.permutation(n)[:2000].reshape(-1, 2)
    keys[pairs[:, 1], :6], seconds[pairs[:, 1]] = keys[pairs[:, 0], :6], seconds[pairs[:, 0]]
    keys[:, 20] = 7  # a sound that all have
    begin = time.process_time()
    found, shared = duplicates.candidates(keys, seconds)
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} <= {tuple(pair) for pair in found.tolist()} and len(found) < 1100 and shared == 2
    assert time.process_time() - begin < 60


def test_pairs_grow_no_faster_than_recordings():
    """Words that everybody says: pairs that share two keys by chance are many, those that share more are still found."""
    n, rng = 2000, np.random.default_rng(0)
    keys, seconds = rng.integers(1, 60, (n, duplicates.KEYS), dtype=np.uint32), rng.uniform(5, 5.01, n)
    pairs = rng.permutation(n)[:200].reshape(-1, 2)
    keys[pairs[:, 1], :24], seconds[pairs[:, 1]] = keys[pairs[:, 0], :24], seconds[pairs[:, 0]] + 1e-9
    found, shared = duplicates.candidates(keys, seconds)
    found = {tuple(pair) for pair in found.tolist()}
    assert 2 < shared <= 24 and len(found) <= duplicates.NEIGHBOURS * n and {tuple(sorted(pair)) for pair in pairs.tolist()} <= found
    alike, shared = duplicates.candidates(np.full((50, duplicates.KEYS), 7, np.uint32), np.ones(50))  # fifty copies of one recording
    assert len(alike) == 49 + 48 + 47 and shared == 2
