"""Norms and time embeddings against their formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ns2_jax.layers.linear import Dense, Embed, LayerNorm, constrain, rms_norm, sinusoid
from ns2_jax.runtime import mesh as runtime_mesh
from ns2_jax.systems import system as systems

X = np.random.default_rng(0).normal(3.0, 2.0, (2, 5, 16)).astype(np.float32)


def test_layer_norm_and_rms_norm():
    y = np.asarray(LayerNorm().init_with_output(jax.random.key(0), X)[0])
    np.testing.assert_allclose(y, (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5), atol=1e-5)
    np.testing.assert_allclose(rms_norm(X), X / np.sqrt((X**2).mean(-1, keepdims=True)), atol=1e-5)


def test_dense_and_embed():
    y, variables = Dense(7).init_with_output(jax.random.key(0), X)
    kernel = np.asarray(variables["params"]["kernel"].unbox())
    np.testing.assert_allclose(y, X @ kernel, atol=1e-4)
    assert abs(kernel.std() - 16**-0.5) < 0.05
    ids = np.array([[3, 0], [1, 3]])
    y, variables = Embed(4, 6).init_with_output(jax.random.key(0), ids)
    np.testing.assert_array_equal(y, np.asarray(variables["params"]["table"].unbox())[ids])


def test_sinusoid_has_unit_circles_and_tells_neighbouring_times_apart():
    t = np.linspace(0, 1, 101, dtype=np.float32)
    e = np.asarray(sinusoid(t, 64, scale=1000.0))
    np.testing.assert_allclose(e[:, :32] ** 2 + e[:, 32:] ** 2, 1, atol=1e-4)
    assert np.linalg.norm(np.diff(e, axis=0), axis=1).min() > 1.0
    raw = np.asarray(sinusoid(t, 64))
    assert np.linalg.norm(np.diff(raw, axis=0), axis=1).max() < 0.05  # what the scale of 1000 is for


def test_time_is_cut_where_the_mesh_has_a_sequence_axis_that_divides_it():
    """The rule table serves `act_time`; rows are cut as always, images along rows alone, and outside a mesh nothing happens."""
    def shards(*shape: int) -> tuple[int, ...]:
        return jax.jit(lambda x: constrain(x))(jnp.zeros(shape)).sharding.shard_shape(shape)  # a function of its own for each mesh

    assert shards(8, 12, 4) == (8, 12, 4)
    for wanted, rows, time in ((dict(fsdp=4, sequence=2), 2, 6), (dict(data=2, fsdp=1, sequence=4), 4, 3), (dict(fsdp=8), 1, 12)):
        mesh = runtime_mesh.make_mesh({"data": 1, "fsdp": 1} | wanted)
        with jax.set_mesh(mesh), systems.rules(runtime_mesh.RULES):
            assert shards(8, 12, 4) == (rows, time, 4) and shards(8, 13, 4) == (rows, 13, 4)
            assert shards(8, 4) == (rows, 4) and shards(8, 12, 4, 2) == (rows, 12, 4, 2)
