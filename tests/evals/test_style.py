"""Pitch's range and height against exact glides, and prompts in other surroundings against the evaluator that reads them."""

from __future__ import annotations

import numpy as np
import pytest

from ns2_jax.audio import files
from ns2_jax.evals import room, style, surroundings

RATE = 16000


def glide(low: float, high: float, seconds: float = 2.0) -> np.ndarray:
    """A buzz whose pitch runs evenly, in semitones, from `low` to `high` Hz."""
    hz = np.geomspace(low, high, int(seconds * RATE))
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, 15))).astype(np.float32)


def test_a_glide_reads_what_it_is():
    """An octave evenly passed through: 0.8 of its 12 semitones lie between the percentiles; the median is its middle."""
    rows = style.measure([glide(100, 200)], [glide(110, 140)], RATE)
    assert rows[0]["f0_range_prompt"] == pytest.approx(0.8 * 12, abs=0.3)
    assert rows[0]["f0_range"] == pytest.approx(0.8 * 12 * np.log2(140 / 110), abs=0.3)
    assert rows[0]["f0_height_prompt"] == pytest.approx(12 * np.log2(100 * 2**0.5 / 55), abs=0.2)
    assert rows[0]["f0_range_error"] == pytest.approx(rows[0]["f0_range_prompt"] - rows[0]["f0_range"])


def test_scores_tell_who_keeps_the_range_from_who_does_not():
    ranges = [1.05, 1.2, 1.4, 1.6, 1.8, 2.0]
    prompts = [glide(100, 100 * r) for r in ranges]
    kept = style.summarise("x", style.measure(prompts, [glide(120, 120 * r) for r in ranges], RATE))
    flat = style.summarise("x", style.measure(prompts, [glide(120, 120 * r) for r in ranges[3:] + ranges[:3]], RATE))
    value = lambda lines, name: next(line["value"] for line in lines if line["name"] == name)
    assert value(kept, "f0_range_error_x") < 0.3 and value(kept, "f0_range_kept_x") > 0.98
    assert value(flat, "f0_range_error_x") > 2 and value(flat, "f0_range_kept_x") < 0.5
    rows = style.measure([prompts[0]] * 2, [None, np.random.default_rng(0).normal(0, 0.01, RATE).astype(np.float32)], RATE)
    assert rows[0] == {"missing": True} and rows[1]["f0_range_error"] is None
    lines = style.summarise("x", rows + style.measure(prompts[:1], prompts[:1], RATE))
    assert lines[0]["fingerprint"]["missing"] == 1 and lines[0]["fingerprint"]["without"] == 1


def test_pace_is_phones_over_the_time_between_first_and_last_sound():
    quiet = np.zeros(RATE // 2, np.float32)
    prompts = [np.concatenate([quiet, glide(100, 120, seconds), quiet, quiet]) for seconds in (1.0, 2.0, 1.5) * 2]
    outputs = [glide(100, 120, seconds) for seconds in (2.0, 4.0, 3.0) * 2]
    rows = style.measure(prompts, outputs, RATE, phones=([10] * 6, [20, 24, 20] * 2))
    assert [row["pace_prompt"] for row in rows] == pytest.approx([10, 5, 20 / 3] * 2, rel=0.05)
    assert [row["pace"] for row in rows] == pytest.approx([10, 6, 20 / 3] * 2, rel=0.05)
    lines = {line["name"]: line for line in style.summarise("x", rows)}
    assert lines["pace_error_x"]["value"] == pytest.approx(1 / 3, abs=0.2) and lines["pace_error_x"]["unit"] == "phones/s"
    assert lines["pace_kept_x"]["value"] > 0.9 and not any("pace" in name for name in style.measure(prompts, outputs, RATE)[0])


@pytest.fixture(scope="module")
def speech():
    from pathlib import Path

    return files.read(Path(__file__).parent / "sentence.flac", RATE)


def test_surroundings_are_read_back(speech):
    """The evaluator finds the room and the noise that were put in; the level stays; the same prompt gets the same ones."""
    for seconds in (0.4, 0.8):
        made = surroundings.read(f"reverberant:{seconds}")(speech, RATE)
        assert room.reverberation(made) == pytest.approx(seconds, abs=0.2) and room.reverberation(speech) < 0.2
    made = surroundings.read("noisy:15")(speech, RATE)
    assert room.snr(made) == pytest.approx(15, abs=3) and room.snr(speech) > 25
    assert np.sqrt(np.mean(made**2)) == pytest.approx(np.sqrt(np.mean(speech**2)), rel=1e-4) and len(made) == len(speech)
    np.testing.assert_array_equal(made, surroundings.read("noisy:15")(speech, RATE))


@pytest.mark.parametrize("spec", ["wet:1", "noisy", "noisy:loud", "noisy:99", "reverberant:0"])
def test_wrong_surroundings_are_named(spec):
    with pytest.raises(ValueError, match=f"--prompts={spec}: expected reverberant:SECONDS"):
        surroundings.read(spec)
