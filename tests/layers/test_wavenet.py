"""The denoiser: the paper's 183 M, its reach, what it listens to, and that preparing once changes nothing."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.layers.wavenet import WaveNet

NET = WaveNet(channels=4, width=16, filters=24, blocks=5, dilations=(1, 2), heads=2, queries=3, time_hidden=8, dropout=0.0)
FRAMES = jnp.asarray([9, 14])


def mask(size: int) -> jax.Array:
    return jnp.arange(size)[None] < FRAMES[:, None]


def arguments(size: int = 14) -> dict:
    keys = jax.random.split(jax.random.key(0), 3)
    return dict(z_btc=jax.random.normal(keys[0], (2, size, 4)), t_b=jnp.asarray([0.2, 0.8]), c_btc=jax.random.normal(keys[1], (2, size, 6)),
                prompt_buc=jax.random.normal(keys[2], (2, 5, 10)), prompt_mask_bu=jnp.arange(5)[None] < jnp.asarray([[5], [3]]),
                mask_bt=mask(size))


@functools.cache
def run(net: WaveNet):
    return jax.jit(net.apply)


@functools.cache
def start(net: WaveNet) -> dict:
    """Parameters with random outputs in the place of zeros, and FiLM loud enough to be heard."""
    variables = nn.meta.unbox(jax.jit(net.init)(jax.random.key(1), **arguments()))
    noise = lambda path, x: x + 0.3 * jax.random.normal(jax.random.key(len(jax.tree_util.keystr(path))), x.shape)
    return jax.tree_util.tree_map_with_path(noise, variables)


@functools.cache
def gradient(net: WaveNet) -> dict:
    return jax.jit(jax.grad(lambda v: jnp.square(net.apply(v, **arguments())).sum()))(start(NET))


@pytest.fixture(scope="module")
def variables():
    return start(NET)


def test_the_papers_layout_has_184_001_792_parameters_less_inert_key_biases():
    x, c, yes = jnp.zeros((1, 2, 256)), jnp.zeros((1, 2, 512)), jnp.ones((1, 2), bool)
    shape = jax.eval_shape(WaveNet(channels=256).init, jax.random.key(0), x, jnp.zeros((1,)), c, c, yes, yes)
    total = sum(leaf.size for leaf in jax.tree.leaves(shape))
    assert total == 184_001_792 - 14 * 512 and abs(total / 183e6 - 1) < 0.01


def test_starts_at_zero():
    variables = nn.meta.unbox(jax.jit(NET.init)(jax.random.key(1), **arguments()))
    assert (run(NET)(variables, **arguments()) == 0).all()


@pytest.mark.parametrize("changes", [{}, {"film": "linear"}, {"queries": 0}], ids=["conv", "linear", "no_queries"])
def test_padding_and_batch_do_not_matter(changes):
    net = NET.clone(**changes)
    variables, args = start(net), arguments()
    out = run(net)(variables, **args)
    far = lambda x, extra: jnp.pad(x, ((0, 0), (0, extra), (0, 0)), constant_values=3.0)
    wide = dict(args, z_btc=far(args["z_btc"], 6), c_btc=far(args["c_btc"], 6), mask_bt=mask(20), prompt_buc=far(args["prompt_buc"], 2),
                prompt_mask_bu=jnp.pad(args["prompt_mask_bu"], ((0, 0), (0, 2))))
    found = run(net)(variables, **wide)
    np.testing.assert_allclose(found[:, :14], out, atol=2e-5)
    assert (found[:, 14:] == 0).all() and (out[0, 9:] == 0).all() and jnp.abs(out[0, :9]).min() > 0
    one = run(net)(variables, **jax.tree.map(lambda x: x[:1], args))
    np.testing.assert_allclose(one[0], out[0], atol=2e-5)


def test_listens_to_time_condition_and_visible_prompt(variables):
    args = arguments()
    out = run(NET)(variables, **args)
    differs = lambda **new: float(jnp.abs(run(NET)(variables, **(args | new)) - out).max())
    assert differs(t_b=args["t_b"] + 1e-3) > 1e-3  # the time scale: neighbouring steps must be told apart
    assert differs(c_btc=args["c_btc"].at[:, 3].add(1.0)) > 1e-2
    assert differs(prompt_buc=args["prompt_buc"].at[:, 1].add(1.0)) > 1e-3
    assert differs(prompt_buc=args["prompt_buc"].at[1, 3:].add(1.0)) == 0.0


def reach(net: WaveNet, size: int) -> tuple[int, int]:
    """First and last of `size` frames that the middle one's output depends on."""
    args, variables = arguments(size), start(net)
    args["mask_bt"] = jnp.ones((2, size), bool)
    slope = jax.jit(jax.grad(lambda z: net.apply(variables, **(args | {"z_btc": z}))[:, size // 2].sum()))(args["z_btc"])
    touched = np.flatnonzero(np.asarray(jnp.abs(slope).max((0, 2))))
    return touched.min() - size // 2, touched.max() - size // 2


@pytest.mark.parametrize("changes,frames", [
    ({"film": "linear"}, 1 + 2 * (2 + 4) + 2),  # two groups, and a block left over
    ({"dilations": (2, 1)}, 1 + 2 * (4 + 4) + 4),  # FiLM's convolutions see further than the block's own
    ({"dilations": (2, 2, 2), "blocks": 7}, 1 + 2 * 3 * 4 + 4),  # as `base` of NaturalSpeech 2, whose 40 blocks make 161 frames
], ids=["linear", "short", "base"])
def test_receptive_field_is_as_documented(changes, frames):
    assert reach(NET.clone(**changes), frames + 20) == (-(frames // 2), frames // 2)


@pytest.mark.parametrize("changes", [{}, {"queries": 0}], ids=["queries", "prompt"])
def test_preparing_once_changes_nothing(changes):
    net = NET.clone(**changes)
    variables, args = start(net), arguments()

    @jax.jit
    def twice(variables, z_btc, t_b, c_btc, prompt_buc, prompt_mask_bu, mask_bt):
        prepared = net.apply(variables, c_btc, prompt_buc, prompt_mask_bu, method="prepare")
        return net.apply(variables, z_btc, t_b, prepared, mask_bt, method="step")

    found = twice(variables, **args)
    np.testing.assert_allclose(found, run(net)(variables, **args), atol=1e-5)


@pytest.mark.parametrize("changes", [{"remat": ("gate",)}, {"unroll": 8}], ids=["gate", "unrolled"])
def test_remat_and_unrolling_change_nothing(changes):
    for a, b in zip(jax.tree.leaves(gradient(NET)), jax.tree.leaves(gradient(NET.clone(**changes)))):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()) + 1e-6)


def test_an_unknown_film_is_refused():
    with pytest.raises(ValueError, match="film='cubic'"):
        NET.clone(film="cubic").init(jax.random.key(0), **arguments())
