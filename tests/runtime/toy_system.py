"""A system small enough to check by hand: linear regression with a second player and a decayed mean in `rest`.

`gen` fits y = x w by least squares (summed over rows), `disc` (a second key, as in a GAN) fits the mean of y; noise
from the step's rng enters the loss so that a wrong rng shows. `rest["mean"]` follows the batch mean of x.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Shape:
    axes: str
    dtype: str

    def shape(self, sizes):
        return tuple(sizes[a] for a in self.axes)


@dataclasses.dataclass(frozen=True)
class Toy:
    inputs: int = 8
    outputs: int = 4
    noise: float = 0.1

    fields = {"x": Shape("bi", "float32"), "y": Shape("bo", "float32"), "weight": Shape("b", "float32")}

    @property
    def sizes(self):
        return {"i": self.inputs, "o": self.outputs}

    def init(self, rng, batch):
        i, o = self.inputs, self.outputs
        params = {
            "gen": {"kernel": jax.random.normal(rng, (i, o)) * i**-0.5, "bias": jnp.zeros((o,))},
            "disc": {"table": jnp.zeros((2, o))}}
        return params, {"mean": batch["x"].mean(0)}

    def axes(self, batch):
        return {"gen": {"kernel": ("embed", "mlp"), "bias": (None,)}, "disc": {"table": ("vocab", "embed")}}, {"mean": (None,)}

    def losses(self, params, rest, batch, rng):
        x = batch["x"] - rest["mean"]
        if self.noise:
            x = x + self.noise * jax.random.normal(rng, x.shape)
        error = x @ params["gen"]["kernel"] + params["gen"]["bias"] - batch["y"]
        gen = (0.5 * jnp.square(error).sum(1) * batch["weight"]).sum()
        disc = (0.5 * jnp.square(params["disc"]["table"][0] - batch["y"]).sum(1) * batch["weight"]).sum()
        return gen, disc

    def grads(self, params, rest, batch, rng, step):
        del step
        total = lambda p: sum(self.losses(p, rest, batch, rng))
        grads = jax.grad(total)(params)
        gen, disc = self.losses(params, rest, batch, rng)
        weight = batch["weight"].sum()
        stats = {"x": jnp.einsum("bi,b->i", batch["x"], batch["weight"]), "rows": weight}
        return grads, stats, {"loss": gen, "disc_loss": disc, "weight": weight}

    def update(self, params, rest, stats, rng, step):
        del params, rng, step
        return {"mean": 0.9 * rest["mean"] + 0.1 * stats["x"] / stats["rows"]}

    def flops(self, sizes):
        return 2.0 * sizes["b"] * sizes["i"] * sizes["o"]


def batch(rows=16, inputs=8, outputs=4, seed=0):
    key = jax.random.split(jax.random.key(seed), 2)
    x = jax.random.normal(key[0], (rows, inputs))
    return {"x": x, "y": x[:, :outputs] * 2 + 1, "weight": jnp.ones((rows,)).at[-1].set(0.0)}
