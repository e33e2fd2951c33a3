"""The codec's coarse latents as systems hear and say them: centred, turned to axes that are less correlated, and scaled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.layers import quantize
from ns2_jax.layers.codec import Codec

Tree = Any  # the state of a system, with the codec in it


class CoarseLatents:
    """Methods of a system whose codec is in `rest`.

    `whiten` is the power of the axes' deviations by which latents are divided. 1 makes every axis count alike, which drowns a codec's few
    telling ones in its many faint ones; 0 keeps their proportions. Mean square 1 in any case, of all coarse levels: a system that models
    fewer hears them on a scale of their own.
    """

    codec_network: Codec
    whiten: float
    books: Any  # (rest) -> quantize.Books of the levels that are modelled

    def coarse(self, rest: Tree) -> tuple[quantize.Books, jax.Array, jax.Array]:
        """(the codes of its coarse levels, all where the codec has none of its own; mean and deviation of their channels `[c]`)."""
        books, own, c = self.books(rest), rest["codec"]["rest"], self.codec_network.coarse_channels
        if self.codec_network.coarse:
            books = jax.tree.map(lambda x: x[: self.codec_network.coarse, :, :c], books)
        return books, own["mean"][:c], jnp.maximum(own["deviation"][:c], 1e-4)

    def latents(self, rest: Tree, codes_btq: jax.Array, mask_bt: jax.Array) -> jax.Array:
        """Codes -> sum of their vectors, centred and scaled, zero outside the mask, float32 `[b, t, c]`."""
        books, mean, _ = self.coarse(rest)
        z, axes = quantize.rvq_lookup(books.codes, codes_btq) - mean, self.codec_network.axes
        return (z if axes is None else z @ axes) / self.scale(rest) * mask_bt[..., None]

    def restore(self, rest: Tree, z_btc: jax.Array) -> jax.Array:
        """Latents in the codec's units, the way back of `latents`."""
        _, mean, _ = self.coarse(rest)
        z, axes = z_btc * self.scale(rest), self.codec_network.axes
        return (z if axes is None else z @ axes.T) + mean

    def scale(self, rest: Tree) -> jax.Array:
        """What latents are divided by along each axis, `[c]`: deviation ** whiten, times what makes their mean square 1.

        The codec stores the deviations of its channels. Along other axes it is the codes' that count, as if all were used equally often and the
        levels independent of one another.
        """
        books, _, deviation = self.coarse(rest)
        if (axes := self.codec_network.axes) is not None:
            around = (books.codes - books.codes.mean(1, keepdims=True)) @ axes
            deviation = jnp.maximum(jnp.sqrt(jnp.square(around).mean(1).sum(0)), 1e-4)
        return deviation**self.whiten * jnp.sqrt(jnp.mean(deviation ** (2 - 2 * self.whiten)))
