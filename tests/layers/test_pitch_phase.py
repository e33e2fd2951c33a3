"""Pitch's phase: its closed form, exactness however long, and a reader that finds what turns with it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ns2_jax.layers import pitch_phase
from ns2_jax.layers.pitch_phase import PitchPhase, phase
from tests.pulses import coherence

PERIOD = 200 / 16000


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of angles."""
    return float(np.abs(np.angle(np.exp(1j * (np.asarray(a, np.float64) - b)))).max())


def glide(rng: np.random.Generator, rows: int, frames: int, voiced: float = 0.9) -> np.ndarray:
    """F0 that wanders about 120 Hz, with gaps."""
    hz = 120 * np.exp(np.cumsum(rng.normal(0, 0.02, (rows, frames)), 1))
    gaps = np.repeat(rng.random((rows, frames // 10 + 1)) > voiced, 10, 1)[:, :frames]
    return np.where(gaps, 0, hz).astype(np.float32)


def test_phase_of_a_constant_pitch_is_a_line_and_of_a_glide_its_integral():
    t = np.arange(400)
    steady = phase(jnp.full((1, 400), 123.4), PERIOD)[0]
    assert apart(steady, 2 * np.pi * np.float64(np.float32(123.4)) * PERIOD * t) < 1e-3
    glides = phase(jnp.float32(100 + 0.1 * t)[None], PERIOD)[0]  # trapezoids are exact on a line
    assert apart(glides, 2 * np.pi * PERIOD * (100 * t + 0.05 * t**2)) < 1e-3
    assert glides[0] == 0


def test_phase_is_exact_after_a_minute_and_does_not_see_padding():
    f0 = glide(np.random.default_rng(0), 2, 5000)
    steps = np.mod((f0[:, 1:] + f0[:, :-1]) * np.float32(0.5 * PERIOD), np.float32(1)).astype(np.float64)
    assert apart(phase(f0, PERIOD)[:, 1:], 2 * np.pi * np.cumsum(steps, 1)) < 1e-6
    np.testing.assert_array_equal(phase(np.pad(f0, ((0, 0), (0, 77))), PERIOD)[:, :5000], phase(f0, PERIOD))


@functools.cache
def pulses(noise: float = 0.5) -> tuple:
    """(latents, of which the second and fifth channel have the true pulses' phase, in noise; F0; the offset, constant in a row)."""
    rng = np.random.default_rng(1)
    f0, offset = glide(rng, 24, 200), rng.uniform(-np.pi, np.pi, 24)
    angle = np.asarray(phase(f0, PERIOD)) + offset[:, None]
    z = rng.normal(size=(24, 200, 6)) * noise
    z[..., 1] += np.cos(angle) * (f0 > 0)
    z[..., 4] += np.sin(angle) * (f0 > 0)
    return z.astype(np.float32), f0, offset


def net() -> PitchPhase:
    return PitchPhase(features=5, harmonics=3, channels=6, period=PERIOD)


def params(reader: np.ndarray, output: np.ndarray | None = None) -> dict:
    kernel = np.random.default_rng(2).normal(size=(6, 5)) if output is None else output
    return {"params": {"reader": jnp.float32(reader), "output": {"kernel": jnp.float32(kernel)}}}


def ideal() -> np.ndarray:
    reader = np.zeros((6, 2))
    reader[1, 0] = reader[4, 1] = 1
    return reader


def test_the_condition_is_sines_of_the_first_harmonics_where_voiced():
    _, f0, offset = pulses()
    kernel = np.random.default_rng(3).normal(size=(6, 5))
    turn = np.stack([np.cos(offset), np.sin(offset)], -1)[:, None].repeat(200, 1)
    found = net().apply(params(ideal(), kernel), f0, jnp.float32(turn))
    angle = np.asarray(phase(f0, PERIOD), np.float64) + offset[:, None]
    waves = np.concatenate([np.stack([np.cos(k * angle), np.sin(k * angle)], -1) for k in (1, 2, 3)], -1) * (f0 > 0)[..., None]
    np.testing.assert_allclose(found, waves @ kernel, atol=1e-4)
    none = net().apply(params(ideal(), kernel), f0)
    np.testing.assert_allclose(none, net().apply(params(ideal(), kernel), f0, jnp.broadcast_to(jnp.array([1.0, 0.0]), (24, 200, 2))), atol=1e-6)
    fresh = net().init(jax.random.key(0), *pulses()[:2], method="everything")
    assert (np.asarray(net().apply(fresh, f0)) == 0).all()


def test_a_reader_of_the_pulses_finds_their_offset():
    z, f0, offset = pulses()
    found, kept = net().apply(params(ideal()), z, f0, method="read")
    found = np.asarray(found)
    np.testing.assert_allclose(kept, coherence(z, f0, ideal(), PERIOD), rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    assert (found[f0 == 0] == [1, 0]).all()
    off = np.angle(np.exp(1j * (np.arctan2(found[..., 1], found[..., 0]) - offset[:, None])))[f0 > 0]
    assert np.abs(off).mean() < 0.2
    clean, full = net().apply(params(ideal()), pulses(0.0)[0], pulses(0.0)[1], method="read")
    assert (np.asarray(full) > 0.999).all() and (np.asarray(kept) < 0.85).all()


def test_reading_stays_within_a_voiced_stretch_and_does_not_see_padding():
    z, f0, _ = pulses()
    read = lambda z, f0: net().apply(params(ideal()), z, f0, method="read")
    whole, kept = read(z, f0)
    wide = np.pad(z, ((0, 0), (0, 9), (0, 0)), constant_values=7.0), np.pad(f0, ((0, 0), (0, 9)))
    padded, same = read(*wide)
    np.testing.assert_allclose(padded[:, :200], whole, atol=1e-6)
    np.testing.assert_allclose(same, kept, rtol=1e-5)
    row = int(np.argmax((f0 == 0).any(1) & (f0[:, -1] > 0)))
    last = np.flatnonzero(f0[row] == 0)[-1]
    other = z.copy()
    other[row, :last] = 9.0
    moved, _ = read(other, f0)
    np.testing.assert_allclose(moved[row, last:], whole[row, last:], atol=1e-6)
    nothing, none = read(z, np.zeros_like(f0))
    assert (np.asarray(nothing) == [1, 0]).all() and (np.asarray(none) == 0).all()


def test_an_offset_is_carried_from_what_is_known_of_a_stretch():
    z, f0, offset = pulses()
    f0 = np.where(f0 > 0, f0, 120.0).astype(np.float32)
    f0[:, 150:155] = 0
    angle = np.asarray(phase(f0, PERIOD)) + offset[:, None]
    z = np.zeros((24, 200, 6), np.float32)
    z[..., 1], z[..., 4] = np.cos(angle), np.sin(angle)
    known = np.broadcast_to(np.arange(200) < 40, (24, 200))
    found = np.asarray(net().apply(params(ideal()), np.where(known[..., None], z, 9.0), f0, jnp.asarray(known), method="read")[0])
    np.testing.assert_allclose(found[:, :150], np.stack([np.cos(offset), np.sin(offset)], -1)[:, None].repeat(150, 1), atol=1e-3)
    assert (found[:, 150:] == [1, 0]).all()


def test_the_reader_learns_the_phase_by_coherence_alone():
    z, f0, offset = pulses()
    state = net().init(jax.random.key(0), z, f0, method="everything")
    optimiser = optax.adam(0.02)
    kept = lambda p: net().apply(p, z, f0, method="read")[1].mean()

    @jax.jit
    def step(p, opt):
        updates, opt = optimiser.update(jax.grad(lambda p: -kept(p))(p), opt)
        return optax.apply_updates(p, updates), opt

    before, opt, learned = float(kept(state)), optimiser.init(state), state
    for _ in range(200):
        learned, opt = step(learned, opt)
    best = float(kept(params(ideal())))
    assert before < 0.7 * best and float(kept(learned)) == pytest.approx(best, abs=0.03)
    found = np.asarray(net().apply(learned, z, f0, method="read")[0])
    off = np.exp(1j * (np.arctan2(found[..., 1], found[..., 0]) - offset[:, None]))[f0 > 0]
    assert np.abs(off.mean()) > 0.95  # the true offset, but for a constant: the reader may call any phase 0


def test_only_coherence_trains_the_reader():
    z, f0, _ = pulses()

    def told(p, z):
        return jnp.square(net().apply(p, f0, net().apply(p, z, f0, method="read")[0])).sum()

    grads, of_z = jax.grad(told, (0, 1))(params(ideal()), z)
    assert (np.asarray(grads["params"]["reader"]) == 0).all() and (np.asarray(of_z) == 0).all()
    assert np.abs(grads["params"]["output"]["kernel"]).max() > 0
    of = jax.grad(lambda p, z: net().apply(p, z, f0, method="read")[1].sum(), (0, 1))(params(ideal()), z)
    assert np.abs(of[0]["params"]["reader"]).max() > 0 and (np.asarray(of[1]) == 0).all()


def test_an_offset_that_drifts_is_read_from_the_frames_around():
    """By 1 rad in 40 frames, as a tracker's error of 0.3 Hz makes it: a mean over all of the stretch would be far off at its ends."""
    f0 = np.full((2, 200), 130.0, np.float32)
    offset = np.arange(200) / 40 * np.array([[1], [-1]])
    angle = np.asarray(phase(f0, PERIOD)) + offset
    z = np.zeros((2, 200, 6), np.float32)
    z[..., 1], z[..., 4] = np.cos(angle), np.sin(angle)
    found = np.asarray(net().apply(params(ideal()), z, f0, method="read")[0])
    assert apart(np.arctan2(found[..., 1], found[..., 0]), offset) < 0.15


def test_an_offset_is_held_where_another_pitch_is_voiced():
    rng = np.random.default_rng(4)
    f0 = np.zeros((3, 30), np.float32)
    f0[0, 5:10], f0[0, 20:25], f0[1, 12] = 100, 100, 100
    offset = np.where(f0[..., None] > 0, rng.normal(size=(3, 30, 2)), [1, 0]).astype(np.float32)
    found = np.asarray(pitch_phase.held(offset, f0))
    for row in range(2):
        there = np.flatnonzero(f0[row])
        nearest = [there[np.abs(there - t).argmin()] for t in range(30)]
        np.testing.assert_array_equal(found[row], offset[row, nearest])
    assert (found[2] == [1, 0]).all()


def test_lengths_may_be_free_in_an_exported_program():
    b, t = jax.export.symbolic_shape("b, t")
    z, f0 = jax.ShapeDtypeStruct((b, t, 6), jnp.float32), jax.ShapeDtypeStruct((b, t), jnp.float32)
    told = lambda z, f0: net().apply(params(ideal()), z, f0, method="everything") + pitch_phase.held(net().apply(
        params(ideal()), z, f0, method="read")[0], f0).sum()
    program = jax.export.export(jax.jit(told))(z, f0)
    np.testing.assert_allclose(program.call(*pulses()[:2]), told(*pulses()[:2]), atol=1e-4)
