"""Boundary errors by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ns2_jax.evals import boundaries
from ns2_jax.text import phones

EXACT = [np.asarray([1600, 3200, 4800, 8000]), np.asarray([800, 2400])]
FOUND = [np.asarray([1600 + 160, 3200 - 480, 4800 + 1120, 8000]), np.asarray([800, 2400])]  # 10 late, 30 early, 70 late, 0 ms


def test_errors_are_signed_ms_of_inner_ends():
    np.testing.assert_allclose(boundaries.errors(FOUND[0], EXACT[0], 16000), [10, -30, 70])
    with pytest.raises(ValueError, match="3 found ends and 4 exact"):
        boundaries.errors(FOUND[0][:3], EXACT[0], 16000)


def test_scores_pool_all_boundaries():
    rows = boundaries.measure(FOUND, EXACT, 16000)
    lines = {line["name"]: line for line in boundaries.summarise("aligner", rows, split="test")}
    assert lines["boundary_median_aligner"]["value"] == 20.0  # of 0, 10, 30, 70
    assert lines["boundary_within_20_aligner"]["value"] == 0.5 and lines["boundary_within_50_aligner"]["value"] == 0.75
    assert lines["boundary_median_aligner"]["interval"] == [0.0, 30.0] and lines["boundary_median_aligner"]["fingerprint"]["split"] == "test"
    assert lines["boundary_median_aligner"]["n"] == 2


def test_a_missing_alignment_counts_as_wrong_everywhere():
    rows = boundaries.measure([None, FOUND[1]], EXACT, 16000)
    lines = boundaries.summarise("aligner", rows)
    assert lines[2]["value"] == 0.25 and lines[0]["value"] == float("inf") and lines[0]["fingerprint"]["missing"] == 1
    with pytest.raises(ValueError, match="no boundary"):
        boundaries.summarise("aligner", boundaries.measure([EXACT[1][:1]], [EXACT[1][:1]], 16000))
