"""Bootstrap intervals against theory, and the lists' names."""

from __future__ import annotations

import numpy as np
import pytest

from ns2_jax.evals import statistics


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(3).normal(2.0, 1.5, 400)
    low, high = statistics.bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert abs(low - (values.mean() - half)) < 0.15 * half and abs(high - (values.mean() + half)) < 0.15 * half


def test_interval_of_a_ratio_weighs_items_by_their_denominator():
    errors, words = np.array([0.0, 10.0]), np.array([90.0, 10.0])
    low, high = statistics.bootstrap(errors, words)
    assert low == 0.0 and high == 1.0  # resamples are {0/180, 10/100, 20/20}
    line = statistics.score("wer", errors, words, unit="%", evaluator="x")
    assert line["value"] == pytest.approx(0.1) and line["n"] == 2 and line["fingerprint"]["evaluator"] == "x"


def test_same_seed_same_interval_and_constant_has_no_width():
    values = np.random.default_rng(0).uniform(size=30)
    assert statistics.bootstrap(values, seed=4) == statistics.bootstrap(values, seed=4) != statistics.bootstrap(values, seed=5)
    assert statistics.bootstrap([0.25] * 9) == (0.25, 0.25)


@pytest.mark.parametrize("top,bottom", [([], None), ([1.0, 2.0], [1.0])])
def test_refuses_nothing_and_uneven(top, bottom):
    with pytest.raises(ValueError):
        statistics.bootstrap(top, bottom)


def test_digest_names_content_and_order():
    assert statistics.digest(["a", "b"]) == statistics.digest(iter(["a", "b"]))
    assert len({statistics.digest(x) for x in (["a", "b"], ["b", "a"], ["ab"], ["a"])}) == 4
