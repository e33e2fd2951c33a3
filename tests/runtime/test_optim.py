"""Schedules against their closed forms, groups, masks, frozen leaves; Adam against numpy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from ns2_jax.runtime import optim
from ns2_jax.runtime.state import flatten


def config(by_key=None, frozen=(), steps=100, **numbers):
    base = dict(peak=0.1, warmup=10, schedule="constant", b1=0.9, b2=0.98, weight_decay=0.0, clip=0.0)
    return ml_collections.ConfigDict(dict(optim={**base, **numbers, "by_key": by_key or {}}, train=dict(steps=steps, frozen=frozen)))


def test_cosine():
    rate = optim.schedule("cosine", 2.0, 10, 110)
    assert float(rate(0)) == pytest.approx(0.2)
    assert float(rate(9)) == pytest.approx(2.0)
    assert float(rate(10)) == pytest.approx(2.0)
    assert float(rate(35)) == pytest.approx(1 + math.cos(math.pi / 4))
    assert float(rate(60)) == pytest.approx(1.0)
    assert float(rate(110)) == pytest.approx(0.0, abs=1e-6)
    assert float(rate(500)) == pytest.approx(0.0, abs=1e-6)


def test_linear():
    rate = optim.schedule("linear", 2.0, 10, 110)
    assert [float(rate(k)) for k in (0, 9, 10, 35, 110, 500)] == pytest.approx([0.2, 2.0, 2.0, 1.5, 0.0, 0.0], abs=1e-6)


def test_inverse_square_root_is_the_transformers():
    rate = optim.schedule("inverse_sqrt", 3.0, 4000, 0)
    for k in (0, 10, 3999, 4000, 16000, 299_999):
        expected = 3.0 * min((k + 1) / 4000, math.sqrt(4000 / (k + 1)))
        assert float(rate(k)) == pytest.approx(expected, rel=1e-6)


def test_constant_and_no_warm_up():
    assert float(optim.schedule("constant", 0.5, 0, 10)(0)) == 0.5
    assert float(optim.schedule("constant", 0.5, 2, 10)(0)) == 0.25
    assert float(optim.schedule("constant", 0.5, 2, 10)(1000)) == 0.5


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="schedule='exponential' does not exist"):
        optim.schedule("exponential", 1.0, 1, 1)
    with pytest.raises(ValueError, match="peak=0"):
        optim.schedule("cosine", 0.0, 1, 1)
    with pytest.raises(ValueError, match="optim.by_key.disc.lr does not exist"):
        optim.make(config({"disc": {"lr": 1.0}}))
    with pytest.raises(ValueError, match="by_key.judge names no top-level key"):
        optim.make(config({"judge": {"peak": 1.0}})).init({"gen": {"w": jnp.ones(2)}})
    with pytest.raises(ValueError, match="'params/nope/.\\*' matches no path"):
        optim.make(config(frozen=("params/nope/.*",))).init({"gen": {"w": jnp.ones(2)}})


def numpy_adamw(grads, w, rate, b1, b2, decay, clip):
    """Loshchilov & Hutter 2019, algorithm 2, with clipping by global norm in front."""
    m = v = np.zeros_like(w)
    for k, g in enumerate(grads):
        size = np.sqrt((g**2).sum())
        g = g * min(1.0, clip / size)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = (m / (1 - b1 ** (k + 1))) / (np.sqrt(v / (1 - b2 ** (k + 1))) + 1e-8)
        w = w - rate(k) * (step + decay * w)
    return w


def test_updates_are_adamw():
    rng = np.random.default_rng(0)
    w, grads = rng.normal(size=(4, 3)), rng.normal(size=(7, 4, 3))
    made = optim.make(config(weight_decay=0.2, clip=1.5, schedule="cosine"))
    params = {"net": {"kernel": jnp.asarray(w, jnp.float32)}}
    opt = made.init(params)
    for g in grads:
        updates, opt = made.update({"net": {"kernel": jnp.asarray(g, jnp.float32)}}, opt, params)
        params = jax.tree.map(jnp.add, params, updates)
    rate = lambda k: float(made.schedules["default"](k))
    np.testing.assert_allclose(params["net"]["kernel"], numpy_adamw(grads, w, rate, 0.9, 0.98, 0.2, 1.5), rtol=2e-5)


def test_decay_spares_vectors_gains_biases_and_tables():
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "table": jnp.ones((5, 2))}, "layers": {"scale": jnp.ones((3, 2))}}
    made = optim.make(config(weight_decay=0.5, warmup=0))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = made.update(zero, made.init(params), params)
    moved = {path for path, u in flatten(updates).items() if np.abs(u).max() > 0}
    assert moved == {"a/kernel"}
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1 * 0.5)


def test_each_key_has_its_own_chain_and_clips_alone():
    """A huge discriminator gradient must not shrink the generator's update, and its rate is its own."""
    params = {"gen": {"w": jnp.zeros(3)}, "extra": {"w": jnp.zeros(1)}, "disc": {"w": jnp.zeros(3)}}
    made = optim.make(config({"disc": {"peak": 0.001, "clip": 0.5}}, clip=1.0, warmup=0))
    assert made.labels(params) == {"gen": {"w": "default"}, "extra": {"w": "default"}, "disc": {"w": "disc"}}
    opt = made.init(params)
    grads = {"gen": {"w": jnp.array([3.0, 0, 0])}, "extra": {"w": jnp.array([4.0])}, "disc": {"w": jnp.full(3, 1e6)}}
    updates, opt = made.update(grads, opt, params)
    mu = {path: np.asarray(leaf) for path, leaf in flatten(opt).items() if "/mu/" in path}
    gen = next(v for p, v in mu.items() if p.endswith("gen/w"))
    disc = next(v for p, v in mu.items() if p.endswith("disc/w"))
    np.testing.assert_allclose(gen, 0.1 * np.array([0.6, 0, 0]), rtol=1e-6)  # norm of (3, 4) is 5
    np.testing.assert_allclose(np.linalg.norm(disc), 0.1 * 0.5, rtol=1e-6)
    assert float(updates["gen"]["w"][0]) == pytest.approx(-0.1, rel=1e-4)
    assert float(updates["disc"]["w"][0]) == pytest.approx(-0.001, rel=1e-4)
    assert {k: float(v) for k, v in made.rates(0).items()} == pytest.approx({"learning_rate": 0.1, "learning_rate/disc": 0.001})


def test_frozen_leaves_have_no_moments_and_no_updates():
    params = {"encoder": {"w": jnp.ones((4, 4))}, "head": {"w": jnp.ones((4, 4))}}
    made = optim.make(config(frozen=("params/encoder/.*",), weight_decay=0.1))
    opt = made.init(params)
    assert not [path for path in flatten(opt) if "encoder" in path]
    updates, _ = made.update(params, opt, params)
    assert np.abs(updates["encoder"]["w"]).max() == 0 and np.abs(updates["head"]["w"]).min() > 0


def test_everything_frozen_is_still_an_optimiser():
    params = {"a": {"w": jnp.ones(3)}}
    made = optim.make(config(frozen=(".*",), clip=1.0))
    updates, _ = made.update(params, made.init(params), params)
    assert np.abs(updates["a"]["w"]).max() == 0
