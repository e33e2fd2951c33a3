"""Masked tokens: what training hides, and the order in which decoding fills it in (SoundStorm, sections 3.2 and 3.3; MaskGIT).

Codes are `[b, t, q]`, level 0 the coarsest; the id `blank`, one more than the last code, stands for a token that is not known.

Training: a span of frames is the target, the frames before it (the prompt) stay whole. Of a level drawn for the row, each target frame is
hidden with probability cos(u), u uniform on [0, pi/2] (2/pi on average, dense near 1); finer levels are hidden in the whole target, coarser
ones nowhere.

Decoding: level by level, I passes each. In pass i every unknown frame gets a candidate; those of lowest confidence become unknown again
until floor(N cos(pi/2 i/I)) of the N target frames are, so few are fixed first and many last. What is fixed stays. The last pass of a level
takes the likeliest code instead of a drawn one. The table (level, i, I) of all passes is an array: one compiled scan serves every
way of sharing so many passes among the levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ns2_jax.maths import tokens


def ratio(u: jax.Array) -> jax.Array:
    """The share of frames to hide, `cos(pi/2 u)`: of u uniform on [0, 1] in training, of u = i/I after pass i of I."""
    return jnp.cos(0.5 * jnp.pi * u)


class Draw(NamedTuple):
    """What is random in the masks of a batch, row by row."""

    begin_b: jax.Array  # the target's first frame
    end_b: jax.Array  # and the one after its last
    level_b: jax.Array
    ratio_b: jax.Array
    chance_bt: jax.Array  # hidden where it is under the ratio


def draw(rng: jax.Array, frames_b: jax.Array, size: int, share_q: jax.Array, infill: float = 0.0, longest: float = 1.0) -> Draw:
    """The masks of a batch: begin uniform on {0 .. frames - 1} (of the first `longest` of the frames), end at the last frame, or with probability
    `infill` uniform behind begin.

    `share_q` is how often each level is drawn; levels are spread evenly over the rows of the batch, everything else is independent.
    """
    keys, rows = jax.random.split(rng, 6), frames_b.shape[0]
    uniform = lambda key: jax.random.uniform(key, (rows,))
    inside = lambda key, length: jnp.minimum((uniform(key) * length).astype(jnp.int32), jnp.maximum(length - 1, 0))
    begin = inside(keys[0], jnp.ceil(frames_b * longest).astype(jnp.int32))
    end = jnp.where(uniform(keys[1]) < infill, begin + 1 + inside(keys[2], frames_b - begin), frames_b)
    even = (jax.random.uniform(keys[3]) + jnp.arange(rows) / rows) % 1.0
    level = jnp.minimum((even[:, None] >= jnp.cumsum(share_q)).sum(-1), share_q.shape[0] - 1)
    return Draw(begin, end, level, ratio(uniform(keys[4])), jax.random.uniform(keys[5], (rows, size)))


def hide(codes_btq: jax.Array, given: Draw, blank: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(codes int32 `[b, t, q]` with `blank` where they are hidden, target bool `[b, t]`, bool `[b, t]` where the row's level is hidden).

    At least one frame of a target that is not empty is hidden.
    """
    frame, level = jnp.arange(codes_btq.shape[1]), jnp.arange(codes_btq.shape[2])
    target = (frame >= given.begin_b[:, None]) & (frame < given.end_b[:, None])
    chance = jnp.where(target, given.chance_bt, 2.0)
    own = target & (chance <= jnp.maximum(given.ratio_b[:, None], chance.min(-1, keepdims=True)))
    of_row = given.level_b[:, None, None]
    hidden = jnp.where(level == of_row, own[..., None], target[..., None] & (level > of_row))
    return jnp.where(hidden, blank, codes_btq.astype(jnp.int32)), target, own


def spans(rng: jax.Array, shape: tuple[int, int], chance: float, length: int) -> jax.Array:
    """Bool `[b, t]`: a span of `length` frames begins at each frame with probability `chance`, on its own; spans may overlap."""
    begins = jax.random.uniform(rng, (shape[0], shape[1] + length - 1)) < chance
    begins = jnp.pad(jnp.cumsum(begins, -1), ((0, 0), (1, 0)))
    return begins[:, length:] > begins[:, :-length]  # one of the `length` frames up to this one


def remaining(count: jax.Array, i: jax.Array, of: jax.Array) -> jax.Array:
    """How many of `count` frames are still unknown after pass i (from 1) of `of`: floor(count cos(pi/2 i/of)), int32, 0 after the last."""
    left = jnp.floor(count * ratio(i / of) + 1e-3)  # float32 cosines: 1500 cos(pi/3) is 749.9999
    return jnp.where(i >= of, 0, left).astype(jnp.int32)


def passes(steps_bq: jax.Array, total: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The table of `total` passes: (level, i from 1, of), each int32 `[total, b]`, for `steps_bq` passes of every level.

    A row of zeros means one pass for each level but the first, which takes the others. Passes that a row has too many change nothing.
    """
    levels = steps_bq.shape[-1]
    first = jnp.where(jnp.arange(levels) == 0, total - (levels - 1), 1)
    steps = jnp.where(steps_bq.sum(-1, keepdims=True) == 0, first, steps_bq)
    ends, n = jnp.cumsum(steps, -1), jnp.arange(total)[:, None]
    level = jnp.minimum((n[..., None] >= ends).sum(-1), levels - 1)
    pick = lambda x: jnp.take_along_axis(x, level.T, -1).T
    return level, n - pick(ends - steps) + 1, pick(steps)


def decode(
    logits_of: Callable[[jax.Array, jax.Array], jax.Array], codes_btq: jax.Array, target_bt: jax.Array, steps_bq: jax.Array,
    keys_b: jax.Array, *, blank: int, total: int, temperature: float = 1.0, top_p: float = 1.0, choice: float = 0.0,
) -> jax.Array:
    """Fills in all levels of the target frames and returns the codes, int32 `[b, t, q]`; the other frames stay what they are.

    Args:
      logits_of: (codes with `blank` where unknown `[b, t, q]`, level `[b]`) -> logits `[b, t, k]` of that level.
      steps_bq: passes of every level and row; `total` how many are made (`passes`).
      keys_b: a random key a row: a row is decoded as it would be alone, and at any padding.
      temperature, top_p: of drawing candidates (of the passes that are not a level's last).
      choice: weight of the Gumbel noise in the confidence (log-probability), falling to 0 with i/I.
    """
    frames, levels = codes_btq.shape[1:]
    target, count = target_bt, target_bt.sum(-1)
    start = jnp.where(target[..., None], blank, codes_btq.astype(jnp.int32))

    def one(codes: jax.Array, given: tuple) -> tuple[jax.Array, None]:
        n, level, i, of = given
        unknown = target & (jnp.take_along_axis(codes, level[:, None, None], -1)[..., 0] == blank)
        logits = logits_of(codes, level).astype(jnp.float32)
        last = (i >= of)[:, None]
        keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, n)))(keys_b)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (frames, blank)))(keys[:, 0])
        drawn = jnp.argmax(tokens.nucleus(logits / temperature, top_p) + noise, -1) if temperature else jnp.argmax(logits, -1)
        candidate = jnp.where(last, jnp.argmax(logits, -1), drawn)
        confidence = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), candidate[..., None], -1)[..., 0]
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (frames,)))(keys[:, 1])
        confidence += choice * jnp.maximum(1 - i / of, 0.0)[:, None] * noise
        rank = jnp.argsort(jnp.argsort(jnp.where(unknown, confidence, jnp.inf), -1), -1)
        fixed = unknown & (rank >= remaining(count, i, of)[:, None])
        here = (jnp.arange(levels) == level[:, None, None]) & fixed[..., None]
        return jnp.where(here, candidate[..., None], codes), None

    table = passes(steps_bq, total)
    return jax.lax.scan(one, start, (jnp.arange(total), *table))[0]
