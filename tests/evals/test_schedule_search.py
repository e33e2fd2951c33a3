"""The search for schedules on a loss whose best schedule is known, and the numbers of window and whole."""

from __future__ import annotations

import numpy as np
import pytest

from ns2_jax.evals import schedule_search, window_mismatch
from ns2_jax.maths import schedules

BEST = np.array([4.0, 2.8, 1.0, -0.3, -1.2, -2.0])


def loss(ratios: np.ndarray) -> np.ndarray:
    """Two items; nothing is better than BEST."""
    off = np.square(ratios - np.interp(np.linspace(0, 1, len(ratios)), np.linspace(0, 1, 6), BEST)).mean()
    return np.array([0.5 + off, 1.0 + 2 * off])


@pytest.mark.parametrize("steps", [6, 25])
def test_fine_is_better_than_coarse_and_near_the_best(steps):
    said: list[str] = []
    found = schedule_search.search(loss, steps, -2.5, say=said.append)
    coarse = float(said[0].rsplit(" ", 1)[1])
    assert len(found.ratios) == steps and (np.diff(found.ratios) < 0).all()
    assert 0.75 <= found.losses.mean() < 0.75 + 0.6 * (coarse - 0.75) and found.tried < 60
    assert schedules.last_signal(found.ratios) <= schedule_search.MOST_SIGNAL + 1e-9
    again = schedule_search.search(loss, steps, -2.5)
    np.testing.assert_array_equal(again.ratios, found.ratios)


def test_the_guard_holds_where_the_loss_would_rather_begin_with_signal():
    greedy = lambda ratios: np.array([10 - ratios[-1]])
    found = schedule_search.search(greedy, 4, -2.5)
    assert schedules.last_signal(found.ratios) == pytest.approx(schedule_search.MOST_SIGNAL)
    schedules.check(schedules.logsnr(schedules.betas_of(found.ratios)), schedule_search.MOST_SIGNAL + 1e-6)


def test_broken_models_and_single_steps_are_refused():
    with pytest.raises(ValueError, match="2 or more"):
        schedule_search.search(loss, 1, -2.5)
    with pytest.raises(ValueError, match="finite loss"):
        schedule_search.search(lambda ratios: np.array([np.nan]), 6, -2.5)


def test_lines_have_the_betas():
    found = schedule_search.search(loss, 6, -2.5)
    lines = schedule_search.summarise(found, [1.0, 2.0], 0, data="x")
    assert [line["name"] for line in lines] == ["trial_distance_searched_6", "trial_distance_before_6"] and lines[1]["value"] == 1.5
    np.testing.assert_allclose(schedules.logsnr(lines[0]["betas"]), found.ratios, atol=1e-9)


def test_window_and_whole_are_compared_frame_by_frame():
    places = len(window_mismatch.PLACES)
    whole = [np.full((places, 4), 1.0), np.full((places, 12), 2.0)]
    lines = {line["name"]: line for line in window_mismatch.summarise({"whole": whole, "8": [1.1 * x for x in whole]}, 0, data="x")}
    assert lines["window_loss_whole"]["value"] == pytest.approx((4 * 1 + 12 * 2) / 16)
    assert lines["window_ratio_8"]["value"] == pytest.approx(1.1) and lines["window_ratio_8"]["by_place"] == pytest.approx([1.1] * places)
