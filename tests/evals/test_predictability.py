"""The table of means: a latent made of means and noise is explained to the share that its making says."""

from __future__ import annotations

import numpy as np
import pytest

from ns2_jax.evals import predictability


def corpus(rng, means, noise: float, utterances: int = 60, frames: int = 120):
    phones, voices, channels = means.shape[0], means.shape[2], means.shape[3]
    items = []
    for i in range(utterances):
        ends = np.cumsum(rng.integers(3, 12, 40))
        phone_at, third = predictability.thirds(ends, frames)
        phone = rng.integers(0, phones, 40)[phone_at]
        z = means[phone, third, i % voices] + noise * rng.normal(size=(frames, channels))
        items.append((z, phone, third, i % voices))
    return items


@pytest.mark.parametrize("noise,expected", [(0.0, 1.0), (0.5, 0.8), (1.0, 0.5), (3.0, 0.1)])
def test_share_is_that_of_the_making(noise, expected):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(10, 3, 2, 8))
    means = (means - means.mean((0, 1, 2))) / means.std((0, 1, 2))
    items = corpus(rng, means, noise)
    result = predictability.explained(items[:40], items[40:])
    assert result["mean"] == pytest.approx(expected, abs=0.06)  # share of variance 1 / (1 + noise^2)
    assert result["best"] >= result["mean"] and result["channels"].shape == (8,)


def test_white_noise_is_not_explained_and_has_full_rank():
    rng = np.random.default_rng(1)
    items = corpus(rng, np.zeros((10, 3, 2, 20)), 1.0)
    result = predictability.explained(items[:40], items[40:])
    assert abs(result["mean"]) < 0.05 and abs(result["neighbours"]) < 0.05 and result["rank90"] == 18  # 90 % of 20


def test_power_counts_channels_by_their_variance():
    rng = np.random.default_rng(2)
    means = rng.normal(size=(10, 3, 2, 2)) * [10.0, 0.0]  # one loud channel that is known, one faint one that is not
    items = [(z * [1.0, 0.01], *keys) for z, *keys in corpus(rng, means, 1.0)]
    result = predictability.explained(items[:40], items[40:])
    assert result["mean"] == pytest.approx(0.5, abs=0.06) and result["power"] > 0.97


def test_a_rotation_changes_the_mean_over_channels_and_not_the_share_of_all_variance():
    rng = np.random.default_rng(3)
    items = [(z * [3.0, 0.3], *keys) for z, *keys in corpus(rng, rng.normal(size=(10, 3, 2, 2)) * [3.0, 0.0], 1.0)]
    turn = np.array([[1, 1], [1, -1]]) * 0.5**0.5
    straight, turned = (predictability.explained(some[:40], some[40:]) for some in (items, [(z @ turn, *keys) for z, *keys in items]))
    assert turned["power"] == pytest.approx(straight["power"], abs=0.01) and turned["mean"] > straight["mean"] + 0.2
    assert straight["variances"].sum() == pytest.approx(turned["variances"].sum()) and straight["variances"].shape == (2,)


def test_thirds():
    phone, third = predictability.thirds(np.array([3, 9]), 10)
    assert phone.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]  # a frame after the last end belongs to the last phone
    assert third.tolist() == [0, 1, 2, 0, 0, 1, 1, 2, 2, 2]


def test_refuses_nothing():
    with pytest.raises(ValueError, match="fill"):
        predictability.explained([], [])
