"""Residual quantiser against numpy; gradients and statistics against their definitions."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.layers import quantize

RNG = np.random.default_rng(0)
Q, K, C = 4, 16, 6
BOOKS = (RNG.normal(size=(Q, K, C)) * 0.5 ** np.arange(Q)[:, None, None]).astype(np.float32)
EUCLIDEAN = quantize.books({}, {"codebooks": BOOKS})
Z = RNG.normal(size=(3, 10, C)).astype(np.float32)


def greedy(z, books):
    """(codes, sum, residual before each level) in numpy, float64, by full distances."""
    residual, codes, befores = z.astype(np.float64), [], []
    for book in books.astype(np.float64):
        befores.append(residual)
        distance = ((residual[..., None, :] - book) ** 2).sum(-1)
        codes.append(distance.argmin(-1))
        residual = residual - book[codes[-1]]
    return np.stack(codes, -1), z - residual, befores


def test_codes_and_lookup_equal_numpy():
    codes, total, _ = greedy(Z, BOOKS)
    np.testing.assert_array_equal(quantize.rvq_encode(Z, EUCLIDEAN), codes)
    np.testing.assert_allclose(quantize.rvq_lookup(BOOKS, codes.astype(np.uint16)), total, atol=1e-5)
    two, total_two, _ = greedy(Z, BOOKS[:2])
    np.testing.assert_array_equal(quantize.rvq_encode(Z, EUCLIDEAN, levels=2), two)
    np.testing.assert_allclose(quantize.rvq_lookup(BOOKS, codes, levels=2), total_two, atol=1e-5)


def test_training_form_equals_encoding_and_counts():
    codes, _, befores = greedy(Z, BOOKS)
    depth, weight = jnp.array([4, 2, 1]), jnp.array([1.0, 1.0, 0.0])
    quantised, commitment, stats = quantize.rvq_train(Z, BOOKS, depth, weight)
    for row, n in enumerate(depth):
        _, want, _ = greedy(Z[row : row + 1], BOOKS[:n])
        np.testing.assert_allclose(quantised[row], want[0], atol=1e-5)
        errors = [((befores[j][row] - BOOKS[j][codes[row, :, j]]) ** 2).mean() for j in range(n)]
        np.testing.assert_allclose(commitment[row], np.mean(errors), rtol=1e-4)
    counts, sums = np.zeros((Q, K)), np.zeros((Q, K, C))
    for row in range(2):  # the third row weighs nothing
        for j in range(int(depth[row])):
            np.add.at(counts[j], codes[row, :, j], 1)
            np.add.at(sums[j], codes[row, :, j], befores[j][row])
    np.testing.assert_allclose(stats["counts"], counts)
    np.testing.assert_allclose(stats["sums"], sums, atol=1e-4)


def test_a_level_codes_only_the_channels_of_its_task():
    """From start through training and update to encoding: codes of the first two levels are zero outside their channels, and what they
    leave there reaches the third level whole."""
    task = np.ones((Q, C), np.float32)
    task[:2, 4:] = 0
    many = RNG.normal(size=(1, 200, C)).astype(np.float32)
    rest = quantize.rvq_start(jax.random.key(0), many, Q, K, task)
    for step in range(3):
        quantised, commitment, stats = quantize.rvq_train(many, rest["codebooks"], jnp.full(1, Q), jnp.ones(1), task)
        rest = quantize.rvq_update(jax.random.key(step), rest, stats, 0.5, 0.5)  # half of the codes are dead: they move
    books = np.asarray(rest["codebooks"])
    assert not books[:2, :, 4:].any() and books[:2, :, :4].std() > 0.1 and books[2:, :, 4:].std() > 0.1
    quantised, commitment, stats = quantize.rvq_train(many, books, jnp.full(1, Q), jnp.ones(1), task)
    codes, total, befores = greedy(many, books)
    np.testing.assert_allclose(quantised, total, atol=1e-5)  # encoding knows nothing of tasks
    np.testing.assert_array_equal(quantize.rvq_encode(many, quantize.books({}, rest)), codes)
    np.testing.assert_allclose(befores[2][..., 4:], many[..., 4:], atol=1e-6)
    errors = [np.square(task[q] * befores[q] - books[q][codes[..., q]]).mean() for q in range(Q)]
    np.testing.assert_allclose(commitment[0], np.mean(errors), rtol=1e-4)


def test_straight_through_gradient_is_one():
    grad = jax.grad(lambda z: quantize.rvq_train(z, BOOKS, jnp.full(3, Q), jnp.ones(3))[0].sum())(jnp.asarray(Z))
    np.testing.assert_allclose(grad, 1.0, atol=1e-6)


def test_commitment_gradient_reaches_every_level():
    """With the residual's `stop_gradient(code)` each level adds 2 (r_j - e_j); without it only the first would."""
    codes, _, befores = greedy(Z, BOOKS)
    grad = jax.grad(lambda z: quantize.rvq_train(z, BOOKS, jnp.full(3, Q), jnp.ones(3))[1].sum())(jnp.asarray(Z))
    per_level = [2 * (befores[j] - BOOKS[j][codes[..., j]]) / (10 * C) / Q for j in range(Q)]
    np.testing.assert_allclose(grad, sum(per_level), atol=1e-6)
    assert all(np.abs(level).max() > 1e-4 for level in per_level)


def test_k_means_start_finds_separated_clusters():
    centres = RNG.normal(size=(8, C)).astype(np.float32) * 10
    points = (centres[RNG.integers(0, 8, (4, 400))] + 0.01 * RNG.normal(size=(4, 400, C))).astype(np.float32)
    start = quantize.rvq_start(jax.random.key(0), points, 2, 32, rounds=10)
    found = np.asarray(start["codebooks"][0])
    error = np.sqrt(((points.reshape(-1, 1, C) - found) ** 2).sum(-1).min(-1))
    assert np.median(error) < 0.1
    np.testing.assert_allclose(start["sums"], start["codebooks"] * start["counts"][..., None], rtol=1e-5)


def test_update_is_the_decayed_mean_and_dead_codes_move_onto_live_ones():
    counts = np.full((1, K), 10.0, np.float32)
    rest = {"codebooks": BOOKS[:1], "counts": counts, "sums": BOOKS[:1] * 10}
    stats = {"counts": np.full((1, K), 2.0, np.float32), "sums": RNG.normal(size=(1, K, C)).astype(np.float32)}
    new = quantize.rvq_update(jax.random.key(0), rest, stats, decay=0.9, dead=0.01)
    np.testing.assert_allclose(new["codebooks"], (0.9 * rest["sums"] + 0.1 * stats["sums"]) / (9 + 0.2), rtol=1e-4, atol=1e-5)
    rest["counts"] = counts * np.where(np.arange(K) < 4, 1e-6, 1.0).astype(np.float32)
    rest["sums"] = BOOKS[:1] * rest["counts"][..., None]
    silent = {"counts": np.zeros((1, K), np.float32), "sums": np.zeros((1, K, C), np.float32)}
    moved, key = dict(rest), jax.random.key(1)
    for i in range(60):
        moved = quantize.rvq_update(jax.random.fold_in(key, i), moved, silent, decay=1.0, dead=0.01)
    assert (np.asarray(moved["counts"]) > 1).all(), "after 60 steps at 1/16 a step every dead code has moved"
    spread = BOOKS[0].std(0)
    live, new_codes = BOOKS[0, 4:], np.asarray(moved["codebooks"][0, :4])
    offset = np.abs((new_codes[:, None] - live[None]) / spread).max(-1).min(1)
    assert (offset < 0.6).all(), "a moved code lies a tenth of the spread from a busy one"
    np.testing.assert_allclose(moved["codebooks"][0, 4:], live, rtol=1e-5)


@pytest.fixture(scope="module")
def factorised():
    """Parameters of a factorised quantiser with nothing left at zero."""
    params = quantize.Factorised(Q, K, 3, C).init(jax.random.key(0))["params"]
    params = nn.meta.unbox(params)
    return {name: value + 0.1 * jax.random.normal(jax.random.key(i), value.shape) for i, (name, value) in enumerate(sorted(params.items()))}


def by_hand(z, own, levels=Q):
    """(codes, sum, projected residuals, their codes) of the factorised quantiser in numpy, float64, by the angle between vectors."""
    p = {name: np.asarray(value, np.float64) for name, value in own.items()}
    residual, codes, total, lows, found = z.astype(np.float64), [], 0.0, [], []
    for j in range(levels):
        low = residual @ p["down"][j] + p["shift"][j]
        cosine = low @ p["codebooks"][j].T / np.linalg.norm(low, axis=-1)[..., None] / np.linalg.norm(p["codebooks"][j], axis=-1)
        codes.append(cosine.argmax(-1))
        found.append(p["codebooks"][j][codes[-1]])
        lows.append(low)
        vector = found[-1] @ p["up"][j] + p["lift"][j]
        residual, total = residual - vector, total + vector
    return np.stack(codes, -1), total, lows, found


def test_factorised_codes_equal_numpy(factorised):
    codes, total, lows, found = by_hand(Z, factorised)
    own = quantize.books({"quantiser": factorised}, {})
    np.testing.assert_array_equal(quantize.rvq_encode(Z, own), codes)
    np.testing.assert_allclose(quantize.rvq_lookup(own.codes, codes), total, atol=1e-5)
    depth, weight = jnp.array([4, 2, 1]), jnp.array([1.0, 1.0, 0.0])
    quantised, commitment, following, stats = quantize.factorised_train(Z, factorised, depth, weight)
    for row, n in enumerate(depth):
        np.testing.assert_allclose(quantised[row], by_hand(Z[row], factorised, n)[1], atol=1e-5)
        want = np.mean([np.square(lows[j][row] - found[j][row]).mean() for j in range(n)])
        np.testing.assert_allclose([commitment[row], following[row]], want, rtol=1e-4)
    counts = np.zeros((Q, K))
    for row in range(2):
        for j in range(int(depth[row])):
            np.add.at(counts[j], codes[row, :, j], 1)
    np.testing.assert_allclose(stats["counts"], counts)


def test_factorised_gradients_reach_every_level_and_stay_on_their_side(factorised):
    full, ones = jnp.full(3, Q), jnp.ones(3)
    for which, moved, still in ((1, {"down", "shift"}, {"codebooks", "up", "lift"}), (2, {"codebooks"}, {"up", "lift", "down", "shift"})):
        grads = jax.grad(lambda own: quantize.factorised_train(Z, own, full, ones)[which].sum())(factorised)
        for name in moved:
            assert (np.abs(grads[name]).reshape(Q, -1).max(-1) > 1e-5).all(), (which, name)
        for name in still:
            assert np.abs(grads[name]).max() == 0, (which, name)
    grads = jax.grad(lambda own: quantize.factorised_train(Z, own, full, ones)[0].sum())(factorised)
    assert all((np.abs(grads[name]).reshape(Q, -1).max(-1) > 1e-5).all() for name in ("down", "shift", "up", "lift"))
    assert np.abs(grads["codebooks"]).max() == 0, "straight through: the reconstruction moves the projections, not the codes"
    # The commitment at the input: each level pulls by its own projection alone, because the residual subtracts fixed codes.
    _, _, lows, found = by_hand(Z, factorised)
    want = sum(2 * (lows[j] - found[j]) @ np.asarray(factorised["down"][j], np.float64).T for j in range(Q)) / (10 * 3) / Q
    got = jax.grad(lambda z: quantize.factorised_train(z, factorised, full, ones)[1].sum())(jnp.asarray(Z))
    np.testing.assert_allclose(got, want, atol=1e-5)
