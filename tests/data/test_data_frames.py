"""Time: phone ends from samples to frames, F0 from its grid to frames."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ns2_jax.data import frames

RATES = [(16000, 200, None), (16000, 320, None), (16000, 256, 22050), (16000, 300, 24000), (24000, 200, 16000), (16000, 80, None)]


@st.composite
def alignments(draw):
    gaps = draw(st.lists(st.integers(0, 4000), min_size=1, max_size=60))
    ends = np.cumsum(gaps)
    return ends.astype(np.int32), int(ends[-1])


@hypothesis.given(alignments(), st.sampled_from(RATES))
def test_durations_sum_to_frames_and_none_is_empty(alignment, rates):
    ends, samples = alignment
    rate, hop, target = rates
    total = frames.frame_count(samples, hop, rate, target)
    durations = frames.durations(ends, samples, rate, hop, target)
    assert durations.dtype == np.int32 and durations.sum() == total and (durations >= 0).all()
    if total >= len(ends):
        assert (durations >= 1).all()


@hypothesis.given(st.lists(st.integers(600, 4000), min_size=1, max_size=60), st.sampled_from(RATES))
def test_errors_do_not_add_up(gaps, rates):
    """Phones of at least 1.5 frames: every end but the last is the rounded one, half a frame from the truth."""
    rate, hop, target = rates
    ends = np.cumsum(gaps)
    exact = ends * (target or rate) / rate / hop
    hypothesis.assume((np.diff(exact, prepend=0) >= 1.5).all())
    got = frames.frame_ends(ends, int(ends[-1]), rate, hop, target)
    assert (np.abs(got - exact)[:-1] <= 0.5 + 1e-9).all()
    assert got[-1] == int(exact[-1] + 1e-9)


def test_frame_ends_by_hand():
    # 16 kHz, hop 200: 0.5, 1.5 round up; the last end is the frame count, 1099 // 200 = 5.
    assert frames.frame_ends(np.array([300, 700, 1099]), 1099, 16000, 200).tolist() == [2, 4, 5]
    # Three phones within one frame of a long pause borrow from it.
    assert frames.frame_ends(np.array([20, 40, 60, 2000]), 2000, 16000, 200).tolist() == [1, 2, 3, 10]
    assert frames.frame_ends(np.array([1940, 1960, 1980, 2000]), 2000, 16000, 200).tolist() == [7, 8, 9, 10]
    # More phones than frames: some get none.
    assert frames.durations(np.array([100, 200, 300, 400]), 400, 16000, 200).sum() == 2


@pytest.mark.parametrize("ends,samples", [([5, 3], 3), ([5], 6), ([], 0), ([-1, 4], 4)])
def test_ends_that_are_no_alignment(ends, samples):
    with pytest.raises(ValueError, match="phone ends"):
        frames.frame_ends(np.array(ends, int), samples, 16000, 200)


def test_f0_is_linear_in_log_between_voiced_neighbours():
    grid = 100 * 2 ** (np.arange(20) / 10)  # a tenth of an octave every 160 samples
    got = frames.f0_at_frames(grid, 160, 200, 15)
    centres = (np.arange(15) + 0.5) * 200 / 160 - 0.5
    np.testing.assert_allclose(got, 100 * 2 ** (centres / 10), rtol=1e-5)
    assert got.dtype == np.float32


def test_f0_voicing_is_the_nearest():
    grid = np.array([0, 0, 200, 0, 300, 300], np.float16)
    got = frames.f0_at_frames(grid, 160, 160, 6)
    np.testing.assert_allclose(got, grid)
    # Centres 0.75 and 3.25 of the grid: nearest unvoiced, and voiced with an unvoiced neighbour (not a mean with zero).
    assert frames.f0_at_frames(np.array([100, 0, 0, 200], np.float16), 160, 400, 1).tolist() == [0.0]
    np.testing.assert_allclose(frames.f0_at_frames(np.array([100, 0, 200, 0], np.float16), 160, 200, 2), [100, 0])
    assert frames.f0_at_frames(np.zeros(0, np.float16), 160, 200, 3).tolist() == [0, 0, 0]


def test_f0_beyond_the_grid_keeps_the_last_value():
    np.testing.assert_allclose(frames.f0_at_frames(np.array([100, 110], np.float16), 160, 200, 4)[1:], 110, rtol=1e-3)
