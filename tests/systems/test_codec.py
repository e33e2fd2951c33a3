"""The codec system: the paper's size, gradients, invariances, statistics, one golden step."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.codec import get_config
from ns2_jax.layers.codec import Codec
from ns2_jax.systems.system import make, shapes
from tests import meshes

GOLDEN = pathlib.Path(__file__).parent / "golden_codec.json"


def system(size: str = "smoke", **changes):
    return make("codec", {**get_config(size).model, **changes})


def batch(b: int = 8, t: int = 16, seed: int = 0) -> dict:
    """Harmonic tones with a little noise: `b` rows of `t` frames."""
    rng = np.random.default_rng(seed)
    s = np.arange(t * 200) / 16000
    f0 = rng.uniform(80, 300, (b, 1))
    tones = sum(np.sin(2 * np.pi * f0 * k * s + rng.uniform(0, 6, (b, 1))) / k for k in range(1, 8))
    audio = 0.05 * tones + 0.002 * rng.normal(size=(b, len(s)))
    return {"audio": jnp.asarray(audio, jnp.float32), "weight": jnp.ones((b,), jnp.float32)}


@pytest.fixture(scope="module")
def started():
    one = system()
    return one, *jax.jit(one.init)(jax.random.key(0), batch())


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_base_has_the_papers_27_million():
    one = system("base")
    abstract = shapes(one.fields, {"b": 2, "t": 16, "s": 3200})
    params, rest = jax.eval_shape(one.init, jax.random.key(0), abstract)
    assert count(params["gen"]["encoder"]) == 4_202_528
    assert count(params["gen"]["decoder"]) == 17_055_297 + 1_575_936
    assert rest["codebooks"].shape == (16, 1024, 256)
    total = count(params["gen"]) + rest["codebooks"].size
    assert total == 27_028_065 and abs(total / 27e6 - 1) < 0.01


def test_the_50_hz_codec_of_soundstorm():
    config = get_config("base,hop=320,levels=12")
    one = make("codec", config.model)
    params, rest = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, {"b": 1, "t": 8, "s": 2560}))
    out = jax.eval_shape(one.programs()["encode"].bind({}), params, rest, {"audio": jnp.zeros((1, 16000))}, jax.random.key(0))
    assert out["codes"].shape == (1, 50, 12)


@pytest.mark.parametrize("numbers", [
    dict(kind="conv", channels=8, width=4, decoder_width=32),
    dict(kind="frame", channels=8, cepstrum=6, width=16, blocks=(1, 1), mels=20)])
def test_lengths_are_exact_and_rows_independent(numbers):
    net = Codec(**numbers)
    x = batch(3, 12)["audio"]
    params = net.init(jax.random.key(0), x)
    z = net.apply(params, x, method="encode")
    y = net.apply(params, z, method="decode")
    assert z.shape == (3, 12, 8) and y.shape == x.shape
    np.testing.assert_allclose(net.apply(params, x[1:2]), y[1:2], atol=1e-5)


def test_causal_codec_does_not_look_ahead():
    net = Codec(kind="conv", channels=8, width=4, decoder_width=32, causal=True)
    x = batch(1, 12)["audio"]
    params = net.init(jax.random.key(0), x)
    cut = 6 * 200
    later = x.at[:, cut:].add(0.1)
    np.testing.assert_array_equal(net.apply(params, x)[:, :cut], net.apply(params, later)[:, :cut])


def test_zero_padding_on_the_right_changes_only_the_edge():
    """The smoke codec sees (7 - 1) / 2 frames a block and two of STFT: five frames from the edge nothing changes."""
    one = system()
    net = one.network
    x = batch(1, 24)["audio"]
    params = net.init(jax.random.key(0), x)
    short = net.apply(params, x[:, : 16 * 200], method="encode")
    long = net.apply(params, x, method="encode")
    np.testing.assert_allclose(short[:, :11], long[:, :11], atol=1e-4)


def test_a_row_of_weight_zero_changes_nothing(started):
    one, params, rest = started
    full = batch(8)
    weight = jnp.ones(8).at[6:].set(0)
    noisy = full["audio"].at[6:].multiply(-3.0)
    step, key = jnp.int32(50), jax.random.key(3)
    fixed = system(quantiser_dropout=0.0)
    grads = jax.jit(fixed.grads)
    a = grads(params, rest, {"audio": full["audio"], "weight": weight}, key, step)
    b = grads(params, rest, {"audio": noisy, "weight": weight}, key, step)
    c = grads(params, rest, {"audio": full["audio"][:6], "weight": weight[:6]}, key, step)
    for other in (b, c):
        for x, y in zip(jax.tree.leaves((a[0], a[1])), jax.tree.leaves((other[0], other[1]))):
            np.testing.assert_allclose(x, y, atol=2e-4 * (1 + float(jnp.abs(x).max())))
    assert float(a[2]["weight"]) == 6


def test_micro_batches_add(started):
    _, params, rest = started
    one = system(quantiser_dropout=0.0)
    full, key, step = batch(8), jax.random.key(3), jnp.int32(50)
    grads = jax.jit(one.grads)
    whole = grads(params, rest, full, key, step)
    halves = [grads(params, rest, jax.tree.map(lambda x: x[i : i + 4], full), key, step) for i in (0, 4)]
    added = jax.tree.map(lambda a, b: a + b, *halves)
    for x, y in zip(jax.tree.leaves((whole[0], whole[1])), jax.tree.leaves((added[0], added[1]))):
        np.testing.assert_allclose(x, y, atol=2e-4 * (1 + float(jnp.abs(x).max())))


def test_every_leaf_learns_and_the_discriminator_waits(started):
    one, params, rest = started
    before, _, quiet = jax.jit(one.grads)(params, rest, batch(), jax.random.key(1), jnp.int32(0))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(before["disc"])) == 0 and float(quiet["adversarial"]) == 0
    after, _, _ = jax.jit(one.grads)(params, rest, batch(), jax.random.key(1), jnp.int32(one.adversarial_from))
    for path, g in jax.tree_util.tree_leaves_with_path(after):
        assert np.isfinite(g).all() and float(jnp.abs(g).max()) > 0, jax.tree_util.keystr(path)


def test_generator_gradient_is_the_derivative_of_its_loss(started):
    """Directional finite difference in float32 along the gradient itself."""
    _, params, rest = started
    one = system(quantise_from=10**6, commitment_weight=0.0)  # the quantiser's jumps have no derivative
    grads, _, _ = jax.jit(one.grads)(params, rest, batch(4), jax.random.key(1), jnp.int32(20))
    norm = optax.global_norm(grads["gen"])
    loss = jax.jit(lambda gen: one.grads({**params, "gen": gen}, rest, batch(4), jax.random.key(1), jnp.int32(20))[2]["loss"])
    h = 2e-3
    moved = lambda sign: jax.tree.map(lambda p, g: p + sign * h * g / norm, params["gen"], grads["gen"])
    assert abs((loss(moved(1)) - loss(moved(-1))) / (2 * h) / norm - 1) < 0.03


def test_the_generator_loss_does_not_move_the_discriminator(started):
    one, params, rest = started
    g, _, m = jax.jit(one.grads)(params, rest, batch(4), jax.random.key(1), jnp.int32(20))
    def disc_loss(disc):
        return one.grads({**params, "disc": disc}, rest, batch(4), jax.random.key(1), jnp.int32(20))[2]["discriminator"]
    want = jax.jit(jax.grad(disc_loss))(params["disc"])
    for x, y in zip(jax.tree.leaves(g["disc"]), jax.tree.leaves(want)):
        np.testing.assert_allclose(x, y, atol=1e-4 * (1 + float(jnp.abs(x).max())))


def test_programs_agree_with_each_other(started):
    one, params, rest = started
    programs, x, key = one.programs(), {"audio": batch(2)["audio"]}, jax.random.key(0)
    coded = programs["encode"].bind({})(params, rest, x, key)
    assert coded["codes"].dtype == jnp.int32 and coded["codes"].shape == (2, 16, 4)
    z = sum(rest["codebooks"][q][coded["codes"][..., q]] for q in range(4))
    by_codes = programs["decode"].bind({})(params, rest, coded, key)["audio"]
    by_latents = programs["decode_latents"].bind({})(params, rest, {"latents": z}, key)["audio"]
    np.testing.assert_allclose(by_codes, by_latents, atol=1e-6)
    two = programs["decode"].bind({}, levels=2)(params, rest, coded, key)["audio"]
    assert float(jnp.abs(two - by_codes).max()) > 1e-4


def train(one, params, rest, steps: int, data, seed: int = 0):
    tx = optax.adam(2e-3, 0.8, 0.99)

    @jax.jit
    def step(params, rest, opt, key, i):
        grads, stats, metrics = one.grads(params, rest, data, key, i)
        weight = metrics["weight"]
        updates, opt = tx.update(jax.tree.map(lambda g: g / weight, grads), opt, params)
        return optax.apply_updates(params, updates), one.update(params, rest, stats, key, i), opt, {k: v / weight for k, v in metrics.items()}

    opt, log = tx.init(params), []
    for i in range(steps):
        params, rest, opt, metrics = step(params, rest, opt, jax.random.fold_in(jax.random.key(seed), i), jnp.int32(i))
        log.append({k: float(v) for k, v in metrics.items()})
    return params, rest, log


def test_it_learns(started):
    one, params, rest = started
    quiet = system(adversarial_from=10**6)
    params, rest, log = train(quiet, params, rest, 60, batch())
    assert np.mean([m["mel"] for m in log[-5:]]) < 0.6 * np.mean([m["mel"] for m in log[:3]])
    assert log[-1]["quantisation_error"] < 0.5


def test_statistics_are_decayed_means_of_the_latent(started):
    """By hand: 0.995 of the old, 0.005 of the weighted mean (and mean square) over rows and frames; row 7 weighs nothing."""
    one, params, rest = started
    data = batch(seed=4) | {"weight": jnp.ones(8).at[7].set(0)}
    _, stats, _ = jax.jit(one.grads)(params, rest, data, jax.random.key(0), jnp.int32(0))
    new = one.update(params, rest, stats, jax.random.key(1), jnp.int32(0))
    z = np.asarray(one.network.apply({"params": params["gen"]}, data["audio"], method="encode"))[:7].reshape(-1, 16)
    mean = 0.995 * np.asarray(rest["mean"]) + 0.005 * z.mean(0)
    square = 0.995 * np.asarray(rest["square"]) + 0.005 * (z**2).mean(0)
    np.testing.assert_allclose(new["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(new["deviation"], np.sqrt(square - mean**2), atol=1e-4)


def test_golden_metrics_of_one_training_step(started):
    """Update golden_codec.json (delete it and run twice) only when a change to the mathematics was intended."""
    one, params, rest = started
    _, _, log = train(one, params, rest, 1, batch())
    grads, stats, _ = jax.jit(one.grads)(params, rest, batch(), jax.random.key(0), jnp.int32(20))
    got = {**log[0], "gen_norm": float(optax.global_norm(grads["gen"])), "disc_norm": float(optax.global_norm(grads["disc"])),
           "counts": float(jnp.square(stats["counts"]).sum())}
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(got, indent=1, sort_keys=True) + "\n")
        pytest.fail(f"{GOLDEN.name} was missing and has been written: look at it, commit it, run again")
    want = json.loads(GOLDEN.read_text())
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert abs(got[name] - value) < 2e-3 * (abs(value) + 1e-2), (name, got[name], value)


def test_the_same_on_every_mesh(started):
    one, params, rest = started
    meshes.check_system(one, params, rest, batch(), jax.random.key(5), step=50)


def test_flops_equal_the_compilers_count():
    one = system()
    sizes = {"b": 2, "t": 16, "s": 3200}
    net, x = one.network, jnp.zeros((2, 3200))
    params = net.init(jax.random.key(0), x)
    compiled = jax.jit(lambda p, x: net.apply(p, x)).lower(params, x).compile().cost_analysis()["flops"]
    quantiser = 2.0 * 2 * 16 * one.levels * one.codes * net.channels
    # elementwise work and the FFT are in the compiler's count only
    assert 0.5 < (one.flops(sizes) - quantiser) / compiled < 1.02
