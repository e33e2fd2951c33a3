"""Few-step distillation: losses that vanish where one evaluation does what a teacher does in many.

All of it happens in the coordinates of `process.Flow`, which every process has: `y = z / (alpha + sigma)` at the place
`p = sigma / (alpha + sigma)`, 1 being noise. There a data estimate is a velocity, `u = (y - x0_hat) / p`, the probability flow is
`dy/dp = u`, and one step of a student from p to q is `y + (q - p) u`, which is y itself where q = p whatever the network says: the boundary
condition of consistency models, `f(y, q) = y`, without their `c_skip` and `c_out`.

    trajectory   u of the student at p is the teacher's mean velocity from p to q (Salimans & Ho 2022; ZipVoice-Distill, 2506.13053)
    consistency  the student's step from p to the end of the segment is its step from q, where a step of the teacher leads (Song et al. 2023;
                 several segments: RapFlow-TTS, 2506.16741)
    rectified    u is the straight line between noise and what the teacher makes of it (Liu et al. 2022; ReFlow-TTS, 2309.17056)

Networks are `denoise(z [b, t, c], times [b]) -> x0_hat`; places are `[b]`; errors are elementwise, `[b, t, c]`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ns2_jax.maths.process import Process

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
KNEE = 0.2
"""Below this place an error counts as one of the data estimate: u = (y - x0_hat) / p would count that of a network which predicts x0 1 / p^2."""
HUBER = 0.00054
"""Times the root of a row's numbers the radius of the pseudo-Huber distance (Song & Dhariwal 2023, 2310.14189)."""


def state(process: Process, place_b: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(times `[b]`, sizes `[b, 1, ...]`): at that time `size * y` is the state of `process`."""
    inside = jnp.clip(place_b, 1e-6, 1 - 1e-6)
    t = jnp.where(place_b >= 1, 1.0, jnp.clip(process.time(jnp.log1p(-inside) - jnp.log(inside)), 0.0, 1.0))
    alpha, sigma = process.levels(t, like)
    return t, alpha + sigma


def _wide(place_b: jax.Array, like: jax.Array) -> jax.Array:
    return place_b.reshape(place_b.shape + (1,) * (like.ndim - 1))


def mixed(x0: jax.Array, noise: jax.Array, place_b: jax.Array) -> jax.Array:
    """y at a place, of data and noise."""
    p = _wide(place_b, x0)
    return (1 - p) * x0 + p * noise


def velocity(denoise: Denoise, process: Process, y: jax.Array, place_b: jax.Array) -> jax.Array:
    """u at y; 0 where the place is 0."""
    t, size = state(process, place_b, y)
    p = _wide(place_b, y)
    return jnp.where(p > 0, (y - denoise(size * y, t)) / jnp.where(p > 0, p, 1.0), 0.0)


def step(denoise: Denoise, process: Process, y: jax.Array, from_b: jax.Array, to_b: jax.Array) -> jax.Array:
    """One Euler step in these coordinates, which is DDIM's; y itself, exactly, where there is no way to go."""
    return y + _wide(to_b - from_b, y) * velocity(denoise, process, y, from_b)


def heun(denoise: Denoise, process: Process, y: jax.Array, from_b: jax.Array, to_b: jax.Array) -> jax.Array:
    """One of Heun's steps, two evaluations; Euler's where it ends at the data."""
    first = velocity(denoise, process, y, from_b)
    way = _wide(to_b - from_b, y)
    second = velocity(denoise, process, y + way * first, to_b)
    return y + way * jnp.where(_wide(to_b, y) > 0, 0.5 * (first + second), first)


def follow(denoise: Denoise, process: Process, y: jax.Array, path_nb: jax.Array, second_order: bool = False) -> jax.Array:
    """Where steps through the places `[n + 1, b]` lead from y at the first."""
    move = heun if second_order else step

    def one(y: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return move(denoise, process, y, *ends).astype(y.dtype), None

    if len(path_nb) == 2:
        return one(y, (path_nb[0], path_nb[1]))[0]
    return jax.lax.scan(one, y, (path_nb[:-1], path_nb[1:]))[0]


def _capped(error: jax.Array, place_b: jax.Array) -> jax.Array:
    return error * jnp.minimum(_wide(place_b, error) / KNEE, 1.0)


def trajectory(student: Denoise, teacher: Denoise, process: Process, y: jax.Array, path_nb: jax.Array) -> jax.Array:
    """Error of the student's velocity at the first place: that of one step for the teacher's several. No gradient goes to the teacher."""
    end = jax.lax.stop_gradient(follow(teacher, process, y, path_nb))
    way = _wide(path_nb[-1] - path_nb[0], y)
    return _capped(velocity(student, process, y, path_nb[0]) - (end - y) / way, path_nb[0])


def consistency(
    student: Denoise, teacher: Denoise, process: Process, y: jax.Array, from_b: jax.Array, to_b: jax.Array, end_b: jax.Array,
) -> jax.Array:
    """Error of the student's step from `from_b` to the end of the segment against its own from `to_b`, where one of Heun's steps of the teacher
    leads. At the end the target is the teacher's state itself. The target has no gradient."""
    near = follow(teacher, process, y, jnp.stack([from_b, to_b]), second_order=True)
    target = jax.lax.stop_gradient(step(student, process, near, to_b, end_b))
    return step(student, process, y, from_b, end_b) - target


def rectified(
    student: Denoise, teacher: Denoise, process: Process, start: jax.Array, path_nb: jax.Array, place_b: jax.Array,
) -> jax.Array:
    """Error of the student's velocity on the straight line between `start`, at the path's first place, and where the teacher's steps through
    the path lead, which must be data (place 0)."""
    made = jax.lax.stop_gradient(follow(teacher, process, start, path_nb))
    line = (start - made) / _wide(path_nb[0], start)
    return _capped(velocity(student, process, made + _wide(place_b, start) * line, place_b) - line, place_b)


def straight(student: Denoise, process: Process, x0: jax.Array, noise: jax.Array, place_b: jax.Array) -> jax.Array:
    """`rectified` of a real pair: the error of flow matching."""
    return _capped(velocity(student, process, mixed(x0, noise, place_b), place_b) - (noise - x0), place_b)


def pseudo_huber(error_btc: jax.Array, mask_bt: jax.Array) -> jax.Array:
    """`sqrt(|e|^2 + c^2) - c` of each row's valid frames, divided by the root of its numbers so that length does not count: `[b]`."""
    square = (jnp.square(error_btc).mean(-1) * mask_bt).sum(-1) / jnp.maximum(mask_bt.sum(-1), 1)
    return jnp.sqrt(square + HUBER**2) - HUBER
