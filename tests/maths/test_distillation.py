"""Distillation's losses against a mixture whose flow is known: they vanish at the solution and nowhere near it; and a student that learns it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ns2_jax.maths import distillation, process, samplers

FLOW, VP = process.Flow(), process.VP()
PLACES, WIDTH = jnp.asarray([-1.0, 0.5]), 0.15
TABLE = jnp.linspace(-6.0, 6.0, 12_001)


def exact(one: process.Process, z, t):
    """E[x0 | z_t] of the mixture, the times `[b]` of rows `z [b, t, c]`."""
    a, s = one.levels(t, z)
    power = a**2 * WIDTH**2 + s**2
    share = jax.nn.softmax(-0.5 * jnp.square(z[..., None] - (a[..., None] * PLACES)) / power[..., None], -1)
    return (share * (PLACES + (a * WIDTH**2 / power)[..., None] * (z[..., None] - a[..., None] * PLACES))).sum(-1)


def cdf(y, place):
    """Of the mixture's marginal at a place of Flow's coordinates."""
    spread = jnp.sqrt(((1 - place) * WIDTH) ** 2 + place**2)[..., None]
    return jax.scipy.stats.norm.cdf((y[..., None] - (1 - place)[..., None] * PLACES) / spread).mean(-1)


def carried(y, from_b, to: float):
    """Where the probability flow takes y: it keeps quantiles. `to` is one number."""
    return jnp.interp(cdf(y, from_b[:, None, None]), cdf(TABLE, jnp.full(TABLE.shape, to)), TABLE)


def rows(seed: int = 0, b: int = 16) -> tuple:
    """(y at places spread over the way, the places)."""
    key = jax.random.split(jax.random.key(seed), 3)
    place = jnp.linspace(0.15, 1.0, b)
    x0 = jnp.where(jax.random.bernoulli(key[0], 0.5, (b, 40, 2)), PLACES[0], PLACES[1]) + WIDTH * jax.random.normal(key[1], (b, 40, 2))
    return distillation.mixed(x0, jax.random.normal(key[2], x0.shape), place), place


def mean_square(error) -> float:
    return float(jnp.square(error).mean())


def test_fine_steps_lead_where_the_flow_ends():
    y, place = rows()
    for one in (FLOW, VP):
        path = place * jnp.linspace(1, 0, 65)[:, None]
        found = distillation.follow(functools.partial(exact, one), one, y, path, second_order=True)
        assert float(jnp.abs(found - carried(y, place, 0.0)).mean()) < 4e-3


def test_the_boundary_holds_exactly_whatever_the_network_says():
    y, place = rows()
    wild = lambda z, t: 100 * jnp.sin(7 * z) + 3
    for where in (place, 0 * place):
        np.testing.assert_array_equal(distillation.step(wild, VP, y, where, where), y)
    at_the_end = distillation.consistency(lambda z, t: 0 * z, functools.partial(exact, FLOW), FLOW, y, place, 0 * place, 0 * place)
    led = distillation.heun(functools.partial(exact, FLOW), FLOW, y, place, 0 * place)
    np.testing.assert_allclose(at_the_end, -led, atol=1e-6)  # the student says 0, the target is the teacher's state itself
    grads = jax.grad(lambda y: distillation.step(wild, VP, y, 0 * place, 0 * place).sum())(y)
    assert np.isfinite(grads).all()


def test_consistency_vanishes_at_the_flows_end_and_not_at_the_teacher():
    """With an exact teacher the student f(y, p) = where the flow ends has no loss; the finer the stride the less of Heun's error is in it."""
    y, place = rows()
    teacher = functools.partial(exact, FLOW)
    ends = lambda z, t: carried(z, t, 0.0)
    loss = lambda student, stride: mean_square(
        distillation.consistency(student, teacher, FLOW, y, place, jnp.maximum(place - stride, 0), 0 * place))
    assert loss(ends, 0.02) < 2e-6 and loss(ends, 0.02) < 0.1 * loss(ends, 0.1)
    assert loss(teacher, 0.02) > 100 * loss(ends, 0.02)


def test_segments_are_consistent_with_their_own_ends():
    y, place = rows()
    teacher, end = functools.partial(exact, FLOW), jnp.where(place > 0.5, 0.5, 0.0)

    def student(z, t):  # the data estimate whose step to the end of the segment is the flow's
        to = jnp.where(t > 0.5, 0.5, 0.0)[:, None, None]
        at = jnp.where(to > 0, carried(z, t, 0.5), carried(z, t, 0.0))
        return z - t[:, None, None] * (at - z) / (to - t[:, None, None])

    found = distillation.consistency(student, teacher, FLOW, y, place, jnp.maximum(place - 0.02, end), end)
    assert mean_square(found) < 2e-6
    whole = distillation.consistency(student, teacher, FLOW, y, place, jnp.maximum(place - 0.02, 0), 0 * place)
    assert mean_square(whole) > 1e-5


@pytest.mark.parametrize("evaluations", [4, 2, 1])
def test_the_trajectory_loss_vanishes_for_the_student_of_few_evaluations(evaluations):
    """On its own places, with the flow's mean velocity; and that student samples the mixture in so many evaluations."""
    grid = samplers.places(FLOW, samplers.warped(evaluations, samplers.sway()))
    teacher = functools.partial(exact, FLOW)

    def student(z, t):
        ways = list(zip(grid[:-1].tolist(), grid[1:].tolist()))
        pieces = [jnp.where(jnp.abs(t - a)[:, None, None] < 1e-4, (carried(z, t, b) - z) / (b - a), 0.0) for a, b in ways]
        return z - t[:, None, None] * sum(pieces)

    noise, (begin, end) = jax.random.normal(jax.random.key(3), (evaluations, 2000, 2)), jnp.asarray((grid[:-1], grid[1:]), jnp.float32)
    x0 = jnp.where(noise[..., ::-1] > 0, PLACES[0], PLACES[1])
    y = distillation.mixed(x0, noise, begin)
    path = begin + jnp.linspace(0, 1, 129)[:, None] * (end - begin)
    found = mean_square(distillation.trajectory(student, teacher, FLOW, y, path))
    assert found < 2e-4 and mean_square(distillation.trajectory(teacher, teacher, FLOW, y, path)) > 30 * found
    start = jax.random.normal(jax.random.key(4), (1, 4000, 1))
    made = samplers.run(lambda z, t: student(z, t[None]), start, samplers.table("sway", FLOW, evaluations))
    np.testing.assert_allclose(made, carried(start, jnp.ones(1), 0.0), atol=0.02)


def test_of_a_point_every_loss_is_zero_for_the_teacher_itself():
    """Its paths are straight: one step does what many do."""
    y, place = rows()
    point = lambda z, t: jnp.full_like(z, 0.7)
    path = place * jnp.linspace(1, 0.2, 4)[:, None]
    for one in (FLOW, VP):
        assert mean_square(distillation.trajectory(point, point, one, y, path)) < 1e-10
        assert mean_square(distillation.consistency(point, point, one, y, place, 0.8 * place, 0 * place)) < 1e-10
        way = jnp.broadcast_to(jnp.linspace(0.99, 0, 5)[:, None], (5, len(place)))
        assert mean_square(distillation.rectified(point, point, one, y, way, 0.9 * place)) < 1e-10
        assert mean_square(distillation.straight(point, one, jnp.full_like(y, 0.7), y, place)) < 1e-10


def test_the_line_of_a_rectified_pair_is_what_the_student_learns():
    """Of one start and an exact teacher the only line through y ends where the flow does."""
    start, way = jax.random.normal(jax.random.key(0), (3, 50, 1)), jnp.broadcast_to(jnp.linspace(1, 0, 257)[:, None], (257, 3))
    end, place = carried(start, jnp.ones(3), 0.0), jnp.asarray([0.9, 0.5, 0.3])
    found = distillation.rectified(lambda z, t: end, functools.partial(exact, FLOW), FLOW, start, way, place)
    assert float(jnp.abs(found).mean()) < 0.02
    assert float(jnp.abs(distillation.rectified(lambda z, t: end + 0.1, functools.partial(exact, FLOW), FLOW, start, way, place)).mean()) > 0.05


def test_only_the_student_has_gradients():
    y, place = rows()
    scaled = lambda w: lambda z, t: w * exact(FLOW, z, t)
    to, path = 0.8 * place, place * jnp.linspace(1, 0.5, 3)[:, None]
    losses = {
        "trajectory": lambda s, f: distillation.trajectory(scaled(s), scaled(f), FLOW, y, path),
        "consistency": lambda s, f: distillation.consistency(scaled(s), scaled(f), FLOW, y, place, to, 0 * place),
        "rectified": lambda s, f: distillation.rectified(scaled(s), scaled(f), FLOW, y, path * 0 + jnp.linspace(1, 0, 3)[:, None], place)}
    for name, error in losses.items():
        student, teacher = jax.grad(lambda s, f, error=error: jnp.square(error(s, f)).mean(), (0, 1))(0.9, 0.8)
        assert abs(student) > 1e-4 and teacher == 0, name
    # and none through the target's own call: the derivative is that of the first call alone
    w = 0.9
    near = distillation.heun(scaled(0.8), FLOW, y, place, to)
    target = distillation.step(scaled(w), FLOW, near, to, 0 * place)
    alone = jax.grad(lambda w: jnp.square(distillation.step(scaled(w), FLOW, y, place, 0 * place) - target).mean())(w)
    assert jax.grad(lambda w: jnp.square(losses["consistency"](w, 0.8)).mean())(w) == pytest.approx(float(alone), rel=1e-5)


def test_the_pseudo_huber_distance_does_not_know_the_padding():
    error = jax.random.normal(jax.random.key(0), (2, 6, 3))
    mask = jnp.arange(6) < jnp.asarray([[4], [6]])
    wide = jnp.pad(error, ((0, 0), (0, 5), (0, 0)), constant_values=9.0)
    found = distillation.pseudo_huber(error, mask)
    np.testing.assert_allclose(found, distillation.pseudo_huber(wide, jnp.pad(mask, ((0, 0), (0, 5)))), rtol=1e-6)
    size, c = 12, 0.00054 * np.sqrt(12)
    np.testing.assert_allclose(found[0], (np.sqrt(np.square(error[0, :4]).sum() + c**2) - c) / np.sqrt(size), rtol=1e-5)


def test_a_state_is_that_of_the_process_at_its_place():
    place = jnp.asarray([0.0, 1e-3, 0.4, 0.9, 0.9933])
    t, size = distillation.state(VP, place, jnp.zeros((5, 1, 1)))
    a, s = VP.levels(jnp.maximum(t, 1e-6), jnp.zeros((5, 1, 1)))
    np.testing.assert_allclose((s / (a + s))[1:, 0, 0], place[1:], rtol=2e-3)
    np.testing.assert_allclose(size, a + s, rtol=1e-3)
    assert float(distillation.state(FLOW, jnp.ones(1), jnp.zeros((1, 1)))[0][0]) == 1.0


def test_a_student_learns_the_one_step_histogram():
    """Consistency distillation by Adam from an exact teacher: samples of one evaluation are near the mixture's (Wasserstein distance by sorting),
    those of one evaluation of the teacher are not."""
    teacher = functools.partial(exact, FLOW)
    keys, number = jax.random.split(jax.random.key(0), 2), 800
    params = {"a": jax.random.normal(keys[0], (2, 64)) * 1.5, "b": jnp.zeros(64), "c": jax.random.normal(keys[1], (64, 64)) * 0.15,
              "d": jnp.zeros(64), "e": jnp.zeros((64, 1))}

    def student(params, z, t):
        h = jnp.tanh(jnp.concatenate([z, jnp.broadcast_to(t[:, None, None], z.shape)], -1) @ params["a"] + params["b"])
        return jnp.tanh(h @ params["c"] + params["d"]) @ params["e"]

    optimiser = optax.adam(optax.cosine_decay_schedule(5e-3, number))

    def update(carry, key):
        params, opt = carry
        k = jax.random.split(key, 4)
        x0 = jnp.where(jax.random.bernoulli(k[0], 0.5, (64, 4, 1)), *PLACES) + WIDTH * jax.random.normal(k[1], (64, 4, 1))
        place = 1 - process.stratified(k[2], 64, 0.0)
        y = distillation.mixed(x0, jax.random.normal(k[3], x0.shape), place)

        def loss(params):
            error = distillation.consistency(functools.partial(student, params), teacher, FLOW, y, place, jnp.maximum(place - 0.05, 0), 0 * place)
            return jnp.square(error).mean()

        updates, opt = optimiser.update(jax.grad(loss)(params), opt)
        return (optax.apply_updates(params, updates), opt), None

    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(update, carry, jax.random.split(jax.random.key(1), number)))((params, optimiser.init(params)))
    start = jax.random.normal(jax.random.key(2), (1, 4000, 1))
    wanted = np.sort(np.asarray(carried(start, jnp.ones(1), 0.0)).ravel())
    distance = lambda made: float(np.abs(np.sort(np.asarray(made).ravel()) - wanted).mean())
    assert distance(student(params, start, jnp.ones(1))) < 0.1 < 0.5 < distance(teacher(start, jnp.ones(1)))
