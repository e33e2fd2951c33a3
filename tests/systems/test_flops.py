"""FLOPs counted by hand are those of the traced networks within 2 %, and the count of what is traced is the compiler's own on an unrolled model."""

from __future__ import annotations

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import pytest

from ns2_jax.layers.transformer import Transformer
from ns2_jax.runtime import flops
from ns2_jax.runtime import state as states
from ns2_jax.systems import system as systems


def made(name: str, size: str):
    """(system, shapes of params and rest, of a batch, sizes), nothing computed."""
    config = importlib.import_module(f"configs.{name}").get_config(size)
    one = systems.make(config.system, config.model.to_dict())
    sizes = states.bucket_sizes(config.data.buckets[0], one.sizes, config.data.hop)
    batch = systems.shapes(one.fields, sizes)
    return one, *jax.eval_shape(one.init, jax.random.key(0), batch), batch, sizes


def traced(call, *shapes) -> float:
    return flops.count(jax.make_jaxpr(call)(*shapes))


def test_naturalspeech2():
    one, params, rest, batch, sizes = made("naturalspeech2", "smoke")
    key = jax.random.key(0)
    forward = traced(lambda p, r, b: one.loss(p, r, b, key, jnp.int32(0)), params, rest, batch)
    assert one.flops(sizes) == pytest.approx(forward, rel=0.02)
    one, params, rest, batch, sizes = made("naturalspeech2", "small")  # keeps its activations: nothing is computed twice
    step = traced(lambda p, r, b: one.grads(p, r, b, key, jnp.int32(0)), params, rest, batch)
    assert 3 * one.flops(sizes) == pytest.approx(step, rel=0.02)


@pytest.mark.parametrize("name", ["naturalspeech2", "soundstorm"])
def test_what_the_phase_costs(name):
    """Reader, two products with what is near, sines to the condition."""
    one, _, _, _, sizes = made(name, "small")
    b, t, c, w = sizes["b"], sizes["t"], one.sizes["c"], one.width
    expected = 2 * b * t * (2 * c + 2 * 2 * t + 2 * 4 * w)
    assert one.flops(sizes) - dataclasses.replace(one, phase_harmonics=0).flops(sizes) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name, size", [
    ("valle", "base"), ("soundstorm", "base"), ("text_to_semantic", "base"), ("grad_stylespeech", "base"), ("wavegrad2", "small")])
def test_systems_with_one_loss(name, size):
    """Of WaveGrad 2's base the traced count has zeros, too: what folding multiplies with them."""
    one, params, rest, batch, sizes = made(name, size)
    forward = traced(lambda p, r, b: one.loss(p, r, b, jax.random.key(0), jnp.int32(0)), params, rest, batch)
    assert one.flops(sizes) == pytest.approx(forward, rel=0.02)


def test_semantic():
    one, params, rest, batch, sizes = made("semantic", "small")
    step = traced(lambda p, r, b: one.grads(p, r, b, jax.random.key(0), jnp.int32(0)), params, rest, batch)
    assert 3 * one.flops(sizes) == pytest.approx(step, rel=0.02)


@pytest.mark.parametrize("arg", ["smoke", "smoke,consistency"])
def test_distill_is_bounded_from_above(arg):
    """Encoders and predictors are counted with student and teacher, though not all of it is differentiated: up to 15 % too many at this size."""
    one, params, rest, batch, sizes = made("distill", arg)
    step = traced(lambda p, r, b: one.grads(p, r, b, jax.random.key(0), jnp.int32(0)), params, rest, batch)
    assert 1 <= 3 * one.flops(sizes) / step < 1.15


@pytest.mark.parametrize("arg", ["base", "small", "small,hifigan"])
def test_vocoder(arg):
    """Of the network; mels and discriminators are beside it."""
    one, _, _, _, sizes = made("vocoder", arg)
    mel = jax.ShapeDtypeStruct((sizes["b"], sizes["t"], one.network.mels), jnp.float32)
    params = jax.eval_shape(one.network.init, jax.random.key(0), mel)
    assert one.flops(sizes) == pytest.approx(traced(one.network.apply, params, mel), rel=0.02)


def test_codec():
    """Of the networks; the step's discriminators and the quantiser's distances are beside them."""
    one, params, _, batch, sizes = made("codec", "small")
    net, latents = one.network, jax.ShapeDtypeStruct((sizes["b"], sizes["t"], one.network.channels), jnp.float32)
    there = traced(lambda p, x: net.apply({"params": p["gen"]}, x, method="encode"), params, batch["audio"])
    back = traced(lambda p, z: net.apply({"params": p["gen"]}, z, method="decode"), params, latents)
    quantiser = 2.0 * sizes["b"] * sizes["t"] * one.levels * one.codes * net.channels
    assert one.flops(sizes) - quantiser == pytest.approx(there + back, rel=0.02)


def test_aligner():
    one, params, _, _, sizes = made("aligner", "small")
    b, t, p = sizes["b"], sizes["t"], sizes["p"]
    shape = jax.ShapeDtypeStruct
    given = shape((b, t, one.mels), jnp.float32), shape((b, t), bool), shape((b, p), jnp.int32)
    variables = jax.eval_shape(one.net.init, jax.random.key(0), *given)
    assert one.flops({"b": b, "t": t, "p": p}) == pytest.approx(traced(lambda v, *x: one.net.apply(v, *x), variables, *given), rel=0.02)


def test_what_is_traced_is_what_is_compiled():
    """Two unrolled layers so wide that products outweigh the rest, which only the compiler counts."""
    net = Transformer(layers=2, width=384, hidden=1024, heads=2, kernel=3, unroll=2, dropout=0.0)
    x, mask = jnp.zeros((2, 32, 384)), jnp.ones((2, 32), bool)
    params = net.init(jax.random.key(0), x, mask)
    call = lambda p, x: net.apply(p, x, mask)
    compiled = jax.jit(call).lower(params, x).compile().cost_analysis()["flops"]
    assert traced(call, params, x) == pytest.approx(compiled, rel=0.02)
