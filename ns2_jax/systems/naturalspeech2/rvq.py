"""The cross entropy of codec codes given a continuous prediction: CE-RVQ (NaturalSpeech 2, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ns2_jax.layers import quantize


def level_scales(codebooks_qkc: jax.Array, sample: int = 64) -> jax.Array:
    """Mean squared distance to the nearest other code of the level, from the first `sample` codes `[q, k, d]`: float32 `[q]`."""

    def level(_: None, codebook: jax.Array) -> tuple[None, jax.Array]:
        some = codebook[:sample]
        distance = jnp.square(some[:, None] - codebook[None]).sum(-1)
        distance = jnp.where(jnp.eye(*distance.shape, dtype=bool), jnp.inf, distance)
        spread = jnp.square(codebook - codebook.mean(0)).sum(-1).mean()
        return None, jnp.maximum(distance.min(-1).mean(), 1e-3 * spread + 1e-12)

    return jax.lax.scan(level, None, codebooks_qkc)[1]


def ce_rvq(
    z_btc: jax.Array, codes_btq: jax.Array, books: quantize.Books, unroll: int = 1, scaled: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of the stored codes given a predicted latent (section 3.2): (loss, accuracy), each `[q, b, t]`.

    The residual of level j subtracts the *true* codes of the levels above; logits are negative squared distances to the
    level's codes where these are told apart (projected, at length 1, for factorised codes), if `scaled` divided by the level's scale.
    `z_btc` is in the codec's units, not normalised. float32; one level at a time, so that the logits of one level are all that is in memory.
    """
    b, t, c = z_btc.shape
    scales = level_scales(books.keys) if scaled else jnp.ones(books.keys.shape[0])

    def level(residual: jax.Array, inputs: tuple) -> tuple[jax.Array, tuple]:
        own, codes, scale = inputs
        query, true = own.query(residual), jnp.take(own.keys, codes, axis=0)
        logits = (2 * query @ own.keys.T - jnp.square(own.keys).sum(-1)) / scale  # |query|^2 cancels
        hit = (2 * (query * true).sum(-1) - jnp.square(true).sum(-1)) / scale
        best = jax.lax.stop_gradient(logits.max(-1))
        right = (hit >= best - 1e-4 * (1 + jnp.abs(best))).astype(jnp.float32)
        return residual - jnp.take(own.codes, codes, axis=0), (jax.nn.logsumexp(logits, -1) - hit, right)

    flat = jnp.moveaxis(codes_btq, -1, 0).reshape(-1, b * t).astype(jnp.int32)
    start = z_btc.astype(jnp.float32).reshape(b * t, c)
    inputs = (jax.tree.map(lambda x: x[: flat.shape[0]], books), flat, scales[: flat.shape[0]])
    _, (loss, right) = jax.lax.scan(jax.checkpoint(level), start, inputs, unroll=unroll)
    return loss.reshape(-1, b, t), right.reshape(-1, b, t)
