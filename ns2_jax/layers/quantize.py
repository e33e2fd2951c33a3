"""Residual vector quantisation: Euclidean codebooks (SoundStream section III-C) or factorised ones (DAC).

Euclidean codebooks are state, not parameters: `rest["codebooks"] [q, k, c]`, learned as decayed means of what they were
nearest to. Factorised ones are parameters: each level projects the residual to a few channels, finds the nearest code by
cosine there, and projects that back. `Books` is what both look like to those who encode, look up or score codes.
Distances are float32, as `2 z.c - |c|^2`: one matrix product a level.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.linear import default_init, named


class Books(NamedTuple):
    """Codes and how they are found; every array has the level first.

    `codes [q, k, c]` are the vectors that add up to the latent. A residual's query, itself or `unit(residual @ down + shift)`, is held
    against `keys [q, k, d]`.
    """

    codes: jax.Array
    keys: jax.Array
    down: jax.Array | None = None  # [q, c, d]
    shift: jax.Array | None = None  # [q, d]

    def query(self, residual_nc: jax.Array) -> jax.Array:
        """Of one level (arrays without their first axis): `[n, d]`."""
        return residual_nc if self.down is None else unit(residual_nc @ self.down + self.shift)


def unit(x: jax.Array) -> jax.Array:
    """`x` at length 1 along its last axis, with a finite gradient at zero."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def books(gen: Any, rest: Any) -> Books:
    """The `Books` of a codec from its networks' parameters `params["gen"]` and its `rest`."""
    if "quantiser" not in gen:
        return Books(rest["codebooks"], rest["codebooks"])
    own = gen["quantiser"]
    codes = jnp.einsum("qkd,qdc->qkc", own["codebooks"], own["up"]) + own["lift"][:, None]
    return Books(codes, unit(own["codebooks"]), own["down"], own["shift"])


class Factorised(nn.Module):
    """Creates `levels` codebooks of `codes` vectors of `width` channels, with projections from and to `channels`."""

    levels: int
    codes: int
    width: int
    channels: int

    @nn.compact
    def __call__(self) -> None:
        q, k, d, c = self.levels, self.codes, self.width, self.channels
        each = lambda init: lambda rng, shape: jax.vmap(lambda key: init(key, shape[1:]))(jax.random.split(rng, shape[0]))
        self.param("codebooks", named(nn.initializers.normal(1.0), (None, "codebook", None)), (q, k, d))
        self.param("down", named(each(default_init), (None, "embed", None)), (q, c, d))
        self.param("shift", nn.initializers.zeros, (q, d))
        self.param("up", named(each(default_init), (None, None, "embed")), (q, d, c))
        self.param("lift", nn.initializers.zeros, (q, c))


def nearest(x_nc: jax.Array, codebook_kc: jax.Array) -> jax.Array:
    """Index of the nearest code in Euclidean distance, int32 `[n]`."""
    score = 2 * x_nc @ codebook_kc.T - jnp.square(codebook_kc).sum(-1)
    return jnp.argmax(score, -1).astype(jnp.int32)


def rvq_encode(z_btc: jax.Array, books: Books, levels: int | None = None) -> jax.Array:
    """Codes int32 `[b, t, q]` of the first `levels` levels (all by default), greedy from coarse to fine."""
    b, t, c = z_btc.shape

    def level(residual, own: Books):
        index = nearest(own.query(residual), own.keys)
        return residual - jnp.take(own.codes, index, axis=0), index

    _, codes = jax.lax.scan(level, z_btc.astype(jnp.float32).reshape(b * t, c), jax.tree.map(lambda x: x[:levels], books))
    return codes.T.reshape(b, t, -1)


def rvq_lookup(codebooks_qkc: jax.Array, codes_btq: jax.Array, levels: int | None = None) -> jax.Array:
    """The sum of the codes' vectors, float32 `[b, t, c]`; codes are any integer type `[b, t, >= levels]`."""
    levels = levels or min(codebooks_qkc.shape[0], codes_btq.shape[-1])

    def level(total, pair):
        codebook, index = pair
        return total + jnp.take(codebook, index.astype(jnp.int32), axis=0), None

    start = jnp.zeros((*codes_btq.shape[:2], codebooks_qkc.shape[-1]), jnp.float32)
    pairs = (codebooks_qkc[:levels], jnp.moveaxis(codes_btq[..., :levels], -1, 0))
    return jax.lax.scan(level, start, pairs)[0]


def rvq_train(z_btc: jax.Array, codebooks_qkc: jax.Array, depth_b: jax.Array, weight_b: jax.Array,
              task_qc: jax.Array | None = None) -> tuple[jax.Array, jax.Array, dict]:
    """Quantises with gradients: `(z_quantised [b, t, c], commitment [b], stats)`.

    A level sees and codes the channels where its row of `task_qc` is 1 (all of them by default), the others being left to the levels
    below: its codes are zero there, so that encoding and looking up need not know of it. `depth_b` is how many levels each row uses (quantiser dropout, SoundStream III-D). The residual subtracts
    `stop_gradient(code)`, so the commitment loss reaches every level (without it it reaches only the first:
    encodec issue 25); the straight-through estimator is applied once, to the sum. `commitment` is the squared
    distance to the code per channel, averaged over frames and the levels in use. The stats are sums over rows:
    `counts [q, k]` and `sums [q, k, c]` of the residuals each code was nearest to.
    """
    b, t, c = z_btc.shape
    z = z_btc.astype(jnp.float32)

    def level(carry, inputs):
        residual, total, commitment = carry
        codebook, index_of_level, task = inputs
        flat = (jax.lax.stop_gradient(residual) * task).reshape(b * t, c)
        active_b = (index_of_level < depth_b).astype(jnp.float32)
        hits = jax.nn.one_hot(nearest(flat, codebook), codebook.shape[0], dtype=jnp.float32)
        code = (hits @ codebook).reshape(b, t, c)
        hits = hits * jnp.repeat(active_b * weight_b, t)[:, None]
        commitment += active_b * jnp.square(task * residual - code).mean((1, 2))
        stats = {"counts": hits.sum(0), "sums": hits.T @ flat}
        return (residual - code, total + active_b[:, None, None] * code, commitment), stats

    start = (z, jnp.zeros_like(z), jnp.zeros((b,), jnp.float32))
    codebooks = jax.lax.stop_gradient(codebooks_qkc)
    task = jnp.ones((codebooks.shape[0], c)) if task_qc is None else task_qc
    (_, total, commitment), stats = jax.lax.scan(level, start, (codebooks, jnp.arange(codebooks.shape[0]), task))
    return z + jax.lax.stop_gradient(total - z), commitment / depth_b, stats


def factorised_train(z_btc: jax.Array, own: Any, depth_b: jax.Array, weight_b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, dict]:
    """Quantises by the parameters of `Factorised`: `(z_quantised [b, t, c], commitment [b], codebook [b], stats {counts [q, k]})`.

    Per level: project, nearest code by cosine, straight through in the projected space, project back (DAC). Both losses are
    squared distances there, per channel, averaged over frames and levels in use, each with its other side held fast. The residual
    subtracts `stop_gradient(code)`; DAC's code does not, so that a level also pushes those above it (descript-audio-codec issue 107).
    """
    b, t, c = z_btc.shape
    z = z_btc.astype(jnp.float32)
    still = jax.lax.stop_gradient

    def level(carry, inputs):
        residual, total, commitment, following = carry
        p, index_of_level = inputs
        low = residual.reshape(b * t, c) @ p["down"] + p["shift"]
        hits = jax.nn.one_hot(nearest(unit(still(low)), still(unit(p["codebooks"]))), p["codebooks"].shape[0], dtype=jnp.float32)
        code = hits @ p["codebooks"]
        active_b = (index_of_level < depth_b).astype(jnp.float32)
        distance = lambda x, y: active_b * jnp.square(x - y).reshape(b, -1).mean(-1)
        commitment += distance(low, still(code))
        following += distance(still(low), code)
        vector = ((low + still(code - low)) @ p["up"] + p["lift"]).reshape(b, t, c)
        counts = (hits * jnp.repeat(active_b * weight_b, t)[:, None]).sum(0)
        return (residual - still(vector), total + active_b[:, None, None] * vector, commitment, following), counts

    start = (z, jnp.zeros_like(z), jnp.zeros((b,), jnp.float32), jnp.zeros((b,), jnp.float32))
    (_, total, commitment, following), counts = jax.lax.scan(level, start, (dict(own), jnp.arange(own["codebooks"].shape[0])))
    return total, commitment / depth_b, following / depth_b, {"counts": counts}


def rvq_start(rng: jax.Array, z_btc: jax.Array, levels: int, codes: int, task_qc: jax.Array | None = None, rounds: int = 6) -> dict:
    """Codebooks from k-means on real latents, level by level: `{codebooks [q,k,c], counts [q,k], sums [q,k,c]}`; `task_qc` as in `rvq_train`.

    With fewer frames than codes the starting points are frames drawn with replacement and spread by a third of
    the deviation, so that no two codes coincide.
    """
    x = z_btc.astype(jnp.float32).reshape(-1, z_btc.shape[-1])

    def level(whole, inputs):
        key, task = inputs
        residual = whole * task
        draw, spread = jax.random.split(key)
        start = residual[jax.random.choice(draw, residual.shape[0], (codes,), replace=residual.shape[0] < codes)]
        start += 0.3 * residual.std(0) * jax.random.normal(spread, start.shape) * (residual.shape[0] < 4 * codes)

        def lloyd(codebook, _):
            hits = jax.nn.one_hot(nearest(residual, codebook), codes, dtype=jnp.float32)
            count = hits.sum(0)[:, None]
            return jnp.where(count > 0, (hits.T @ residual) / jnp.maximum(count, 1), codebook), None

        codebook = jax.lax.scan(lloyd, start, None, length=rounds)[0]
        return whole - jnp.take(codebook, nearest(residual, codebook), axis=0), codebook

    task = jnp.ones((levels, x.shape[-1])) if task_qc is None else task_qc
    _, codebooks = jax.lax.scan(level, x, (jax.random.split(rng, levels), task))
    counts = jnp.full((levels, codes), x.shape[0] / codes, jnp.float32)
    return {"codebooks": codebooks, "counts": counts, "sums": codebooks * counts[..., None]}


def rvq_update(rng: jax.Array, rest: dict, stats: dict, decay: float, dead: float) -> dict:
    """Decayed counts and sums, the codebooks they imply, and new places for dead codes.

    A code is dead when its decayed count is below `dead` times the level's mean count; each dead code moves with
    probability 1/16 a step (a batch of silence cannot empty a codebook) onto a live code drawn by its count, plus
    a tenth of the level's spread. Splitting busy codes replaces the random batch vectors of SoundStream III-C:
    it needs no vectors in the statistics, so micro-batches and meshes add up to the same update.
    """
    counts = decay * rest["counts"] + (1 - decay) * stats["counts"]
    sums = decay * rest["sums"] + (1 - decay) * stats["sums"]
    mean = counts.mean(-1, keepdims=True)
    codebooks = jnp.where((counts > 1e-3 * mean)[..., None], sums / jnp.maximum(counts, 1e-8)[..., None], rest["codebooks"])
    who, where, jitter = jax.random.split(rng, 3)
    moves = (counts < dead * mean) & (jax.random.uniform(who, counts.shape) < 1 / 16)
    share = jnp.cumsum(counts, -1) / counts.sum(-1, keepdims=True)
    source = jax.vmap(jnp.searchsorted)(share, jax.random.uniform(where, counts.shape))
    source = jnp.minimum(source, counts.shape[-1] - 1)
    drawn = jnp.take_along_axis(codebooks, source[..., None], axis=1)
    drawn += 0.1 * codebooks.std(1, keepdims=True) * jax.random.normal(jitter, codebooks.shape)
    codebooks = jnp.where(moves[..., None], drawn, codebooks)
    counts = jnp.where(moves, mean, counts)
    return {"codebooks": codebooks, "counts": counts, "sums": jnp.where(moves[..., None], drawn * mean[..., None], sums)}
