"""The codec system: the paper's size, gradients, invariances, statistics, one golden step."""

from __future__ import annotations

import dataclasses
import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.fft
import scipy.ndimage

from configs.codec import get_config
from ns2_jax.layers import discriminators, quantize
from ns2_jax.runtime import state
from ns2_jax.systems.codec import SURE
from ns2_jax.systems.system import make, shapes
from tests import goldens, meshes

jit = functools.partial(jax.jit, compiler_options=meshes.FAST)  # compiling is most of the time; judges in two dimensions run too slowly so


def system(size: str = "smoke", **changes):
    return make("codec", {**get_config(size).model, **changes})


def batch(b: int = 8, t: int = 16, seed: int = 0) -> dict:
    """Harmonic tones with some noise: `b` rows of `t` frames."""
    rng = np.random.default_rng(seed)
    s = np.arange(t * 200) / 16000
    f0 = rng.uniform(80, 300, (b, 1))
    tones = sum(np.sin(2 * np.pi * f0 * k * s + rng.uniform(0, 6, (b, 1))) / k for k in range(1, 8))
    audio = 0.05 * tones + 0.02 * rng.normal(size=(b, len(s)))
    return {"audio": jnp.asarray(audio, jnp.float32), "weight": jnp.ones((b,), jnp.float32)}


@pytest.fixture(scope="module")
def started():
    one = system()
    return one, *jit(one.init)(jax.random.key(0), batch())


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


def test_the_modern_configuration():
    """DAC's quantiser (16 levels of 8 channels with their projections) and its eight judges, by configuration alone."""
    one = system("base,modern")
    params, rest = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, {"b": 2, "t": 16, "s": 3200}))
    assert count(params["gen"]["quantiser"]) == 16 * (1024 * 8 + 256 * 8 + 8 + 8 * 256 + 256)
    assert "codebooks" not in rest and rest["counts"].shape == (16, 1024)
    assert abs(count(params["gen"]) / 27e6 - 1) < 0.02
    assert len([name for name in params["disc"] if name.startswith("Period")]) == 5
    assert len([name for name in params["disc"] if name.startswith("Bands")]) == 3


def test_the_causal_variants():
    """Of the paper's layout nothing to come is heard; of `small` what its windows are ahead, as configs/codec.py says: 2 frames and 4."""
    for arg, ahead in (("base,causal", (0, 0)), ("base,modern,causal", (0, 0)), ("small,causal", (2, 4)), ("small", (14, 27))):
        net = system(arg).network
        assert net.causal == arg.endswith("causal") and tuple(net.reach(part)[1] for part in ("encode", "decode")) == ahead, arg


def test_zero_padding_on_the_right_changes_only_the_edge():
    """The smoke codec sees (7 - 1) / 2 frames a block and two of STFT: five frames from the edge nothing changes."""
    one = system()
    net = one.network
    x = batch(1, 24)["audio"]
    params = net.init(jax.random.key(0), x)
    short = net.apply(params, x[:, : 16 * 200], method="encode")
    long = net.apply(params, x, method="encode")
    np.testing.assert_allclose(short[:, :11], long[:, :11], atol=1e-4)


def few_periods():
    """Two of DAC's five: the others differ by a number, and take a minute to compile."""
    return mock.patch.object(discriminators, "PERIODS", (2, 5))


@pytest.fixture(scope="module", params=["smoke", pytest.param("smoke,modern", marks=pytest.mark.slow)])  # whose judges compile for minutes
def either(request):
    """Euclidean and factorised codes, with their gradients compiled once for eight rows and once for four."""
    one = system(request.param, quantiser_dropout=0.0, balance=request.param != "smoke")
    with few_periods():
        yield one, *jax.jit(one.init)(jax.random.key(0), batch()), jax.jit(one.grads)


def rounding(one) -> float:
    """Of sums over rows in another order; DAC's six judges amplify it."""
    return 1e-3 if one.judge == "dac" else 4e-4


def test_a_row_of_weight_zero_changes_nothing(either):
    fixed, params, rest, grads = either
    full = batch(8)
    weight = jnp.ones(8).at[4:].set(0)
    noisy = full["audio"].at[4:].multiply(-3.0)
    step, key = jnp.int32(50), jax.random.key(3)
    a = grads(params, rest, {"audio": full["audio"], "weight": weight}, key, step)
    b = grads(params, rest, {"audio": noisy, "weight": weight}, key, step)
    c = grads(params, rest, {"audio": full["audio"][:4], "weight": weight[:4]}, key, step)
    for other in (b, c):
        for x, y in zip(jax.tree.leaves((a[0], a[1])), jax.tree.leaves((other[0], other[1]))):
            np.testing.assert_allclose(x, y, atol=rounding(fixed) * (1 + float(jnp.abs(x).max())))
    assert float(a[2]["weight"]) == 4


def test_micro_batches_add(either):
    one, params, rest, grads = either
    rest = rest | ({"balance": {name: {"norm": jnp.float32(0.5), "seen": jnp.float32(0.5)} for name in one.weights}} if one.balance else {})
    full, key, step = batch(8), jax.random.key(3), jnp.int32(50)
    whole = grads(params, rest, full, key, step)
    halves = [grads(params, rest, jax.tree.map(lambda x: x[i : i + 4], full), key, step) for i in (0, 4)]
    added = jax.tree.map(lambda a, b: a + b, *halves)
    for x, y in zip(jax.tree.leaves((whole[0], whole[1])), jax.tree.leaves((added[0], added[1]))):
        np.testing.assert_allclose(x, y, atol=rounding(one) * (1 + float(jnp.abs(x).max())))


def test_quantiser_dropout_trains_every_number_of_levels(either):
    """Half of the rows have all four levels; of the others each has 1 to 4 alike, but for half of them where there are two coarse levels: these."""
    fixed, params, rest, _ = either
    one, data = dataclasses.replace(fixed, quantiser_dropout=0.5), batch(2048, 1)
    counts = jax.jit(lambda key: one.grads(params, rest, data, key, jnp.int32(0))[1]["counts"].sum(-1))(jax.random.key(1))
    shares = (1, 15 / 16, 10 / 16, 9 / 16) if one.network.coarse else (1, 7 / 8, 6 / 8, 5 / 8)
    np.testing.assert_allclose(counts / 2048, shares, atol=4 * (0.25 / 2048) ** 0.5)


def test_every_leaf_learns_and_the_discriminator_waits(started):
    one, params, rest = started
    grads = jit(one.grads)
    before, _, quiet = grads(params, rest, batch(), jax.random.key(1), jnp.int32(0))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(before["disc"])) == 0 and float(quiet["adversarial"]) == 0
    after, _, _ = grads(params, rest, batch(), jax.random.key(1), jnp.int32(one.adversarial_from))
    for path, g in jax.tree_util.tree_leaves_with_path(after):
        assert np.isfinite(g).all() and float(jnp.abs(g).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.slow  # a minute of a core
def test_every_leaf_of_the_modern_codec_learns():
    one = system("smoke,modern")
    with few_periods():
        params, rest = jax.jit(one.init)(jax.random.key(0), batch())
        grads, stats, _ = jax.jit(one.grads)(params, rest, batch(), jax.random.key(1), jnp.int32(one.adversarial_from))
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all() and float(jnp.abs(g).max()) > 0, jax.tree_util.keystr(path)
    assert float(stats["counts"].sum()) > 0


def test_balanced_losses_pull_by_their_weights_alone(started):
    """EnCodec's balancer: each loss's gradient at the waveform over its own mean norm, times its share of the weights."""
    one, params, rest = started
    fair = system(balance=True)
    audio, fake, ones = batch(2)["audio"], batch(2, seed=1)["audio"], jnp.ones(2)
    yes = jnp.bool_(True)
    alone = {name: np.asarray(jax.grad(lambda x: one.losses(params["disc"], audio, x, yes)[name].sum())(fake)) for name in one.weights}
    length = {name: np.sqrt(np.square(g).sum(-1)) for name, g in alone.items()}
    fresh = {"balance": {name: {"norm": jnp.zeros(()), "seen": jnp.zeros(())} for name in one.weights}}
    got, _, norms = fair.pull(params["disc"], fresh, audio, fake, ones, yes)
    whole = sum(one.weights.values())
    want = sum(one.weights[name] / whole * alone[name] / length[name].mean() for name in alone)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())
    for name in norms:
        np.testing.assert_allclose(norms[name], length[name].sum(), rtol=1e-3)
    # With a history its decayed mean is what counts, and the discriminators leave none while they wait.
    known = {"balance": {name: {"norm": jnp.float32(6.0), "seen": jnp.float32(0.5)} for name in one.weights}}
    got, _, _ = fair.pull(params["disc"], known, audio, fake, ones, yes)
    np.testing.assert_allclose(got, sum(one.weights[name] / whole * alone[name] / 12 for name in alone), rtol=1e-3, atol=1e-5)
    _, _, quiet = fair.pull(params["disc"], fresh, audio, fake, ones, jnp.bool_(False))
    assert float(quiet["adversarial"]) == float(quiet["features"]) == 0 < float(quiet["mel"])
    stats = {"rows": jnp.float32(2), "mean": rest["mean"], "square": rest["square"], "counts": rest["counts"], "sums": rest["sums"], "balance": quiet}
    new = fair.update(params, rest | fresh, stats, jax.random.key(0), jnp.int32(0))["balance"]
    assert float(new["features"]["seen"]) == 0
    np.testing.assert_allclose(new["mel"]["norm"] / new["mel"]["seen"], float(quiet["mel"]) / 2, rtol=1e-5)


def test_collapse_is_named_per_level():
    one = system()
    counts = np.ones((4, 32), np.float32)
    counts[2, 1:] = 1e-4
    use = {name: float(value) for name, value in one.use(jnp.asarray(counts)).items()}
    assert abs(use["perplexity/01"] - 32) < 0.1 and use["perplexity/03"] < 1.2
    assert use["usage/01"] == 1 and use["usage/03"] == 1 / 32 and use["dead_codes"] == 31
    assert "level 3 has collapsed: perplexity 1.0 of 32" in one.alarm(use, 200)
    assert one.alarm(use, 50) == "", "the first steps are not judged"
    counts[2] = 1
    assert one.alarm({name: float(value) for name, value in one.use(jnp.asarray(counts)).items()}, 200) == ""


def test_mel_and_complex_losses_equal_librosa(started):
    import librosa

    one, _, _ = started
    real, fake = (np.asarray(batch(1, 24, seed)["audio"][0]) for seed in (0, 1))
    def frames(x, size):  # as many whole hops of a quarter as there are, a frame centred on each
        hop = size // 4
        padded = np.pad(x[: len(x) // hop * hop].astype(np.float64), size)
        starts = size + np.arange(len(x) // hop) * hop + hop // 2 - size // 2
        return np.stack([np.fft.rfft(padded[at : at + size] * librosa.filters.get_window("hann", size)) for at in starts])

    mels = lambda x, size, bins: np.log10(np.maximum(np.abs(frames(x, size)) @ librosa.filters.mel(sr=16000, n_fft=size, n_mels=bins).T, 1e-4))
    want = np.mean([np.abs(mels(real, *scale) - mels(fake, *scale)).mean() for scale in one.mel_scales])
    np.testing.assert_allclose(one.mel_loss(real[None], fake[None])[0], want, rtol=1e-3)
    total = 0.0
    for size in (512, 1024):
        edge = int(size * 160 / 16000)  # four MDCT coefficients of 40 Hz
        a, b = frames(real, size)[:, :edge], frames(fake, size)[:, :edge]
        total += 0.5 * np.mean(np.abs(a - b) * (np.square(np.abs(a)) + 1e-6) ** -0.35)
    np.testing.assert_allclose(one.complex_loss(real[None], fake[None])[0], total, rtol=1e-3)


def test_generator_gradient_is_the_derivative_of_its_loss():
    """Directional finite difference in float32 along the gradient itself, discriminators included."""
    one = system(quantise_from=10**6, commitment_weight=0.0, judge="2d", judge_sizes=(256,), judge_filters=4)  # a quantiser's jumps have no derivative
    params, rest = jax.jit(one.init)(jax.random.key(0), batch())
    grads = jax.jit(one.grads)
    at = lambda gen: grads({**params, "gen": gen}, rest, batch(4), jax.random.key(1), jnp.int32(20))
    slope = at(params["gen"])[0]["gen"]
    norm, h = optax.global_norm(slope), 4e-4
    moved = lambda sign: jax.tree.map(lambda p, g: p + sign * h * g / norm, params["gen"], slope)
    assert abs((at(moved(1))[2]["loss"] - at(moved(-1))[2]["loss"]) / (2 * h) / norm - 1) < 0.01


def test_the_generator_loss_does_not_move_the_discriminator(started):
    one, params, rest = started
    g, _, m = jit(one.grads)(params, rest, batch(4), jax.random.key(1), jnp.int32(20))
    def disc_loss(disc):
        return one.grads({**params, "disc": disc}, rest, batch(4), jax.random.key(1), jnp.int32(20))[2]["discriminator"]
    want = jit(jax.grad(disc_loss))(params["disc"])
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

    @jit
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
    _, stats, _ = jit(one.grads)(params, rest, data, jax.random.key(0), jnp.int32(0))
    new = one.update(params, rest, stats, jax.random.key(1), jnp.int32(0))
    z = np.asarray(one.network.apply({"params": params["gen"]}, data["audio"], method="encode"))[:7].reshape(-1, 16)
    mean = 0.995 * np.asarray(rest["mean"]) + 0.005 * z.mean(0)
    square = 0.995 * np.asarray(rest["square"]) + 0.005 * (z**2).mean(0)
    np.testing.assert_allclose(new["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(new["deviation"], np.sqrt(square - mean**2), atol=1e-4)


def test_golden_metrics_of_one_training_step(started):
    one, params, rest = started
    _, _, log = train(one, params, rest, 1, batch())
    grads, stats, _ = jit(one.grads)(params, rest, batch(), jax.random.key(0), jnp.int32(20))
    got = {**log[0], "gen_norm": float(optax.global_norm(grads["gen"])), "disc_norm": float(optax.global_norm(grads["disc"])),
           "counts": float(jnp.square(stats["counts"]).sum())}
    goldens.check("codec", got, 2e-3)


def test_the_same_on_every_mesh(started):
    one, params, rest = started
    meshes.check_system(one, params, rest, batch(), jax.random.key(5), step=50)


@pytest.mark.parametrize("changes", [{}, dict(wave=32, cepstrum=16)])
def test_flops_equal_the_compilers_count(changes):
    numbers = get_config("small").model.codec.to_dict()
    one = system("small", codec=numbers | changes)
    sizes = {"b": 2, "t": 16, "s": 3200}
    net, x = one.network, jnp.zeros((2, 3200))
    params = net.init(jax.random.key(0), x)
    compiled = jax.jit(lambda p, x: net.apply(p, x)).lower(params, x).compile().cost_analysis()["flops"]
    quantiser = 2.0 * 2 * 16 * one.levels * one.codes * net.channels
    # elementwise work and the FFT are in the compiler's count only
    assert 0.9 < (one.flops(sizes) - quantiser) / compiled < 1.02


def test_the_last_levels_go_on_with_the_coarse_channels():
    """Levels 1 and 2 code the 8 first channels, level 3 the waveform's, level 4 what the first two left."""
    one = system(refine=1)
    np.testing.assert_array_equal(one.task, [[1] * 12 + [0] * 4, [1] * 12 + [0] * 4, [0] * 12 + [1] * 4, [1] * 12 + [0] * 4])
    params, rest = one.init(jax.random.key(0), batch())
    books, z = np.asarray(rest["codebooks"]), np.asarray(one.network.apply({"params": params["gen"]}, batch()["audio"], method="encode"))
    assert not books[:2, :, 12:].any() and not books[2, :, :12].any() and not books[3, :, 12:].any() and books[3].any()
    codes = quantize.rvq_encode(z, quantize.Books(books, books))
    errors = [np.square(z - quantize.rvq_lookup(books, codes, levels)).mean((0, 1)) for levels in (2, 3, 4)]
    np.testing.assert_array_equal(errors[0][:12], errors[1][:12])
    np.testing.assert_array_equal(errors[1][12:], errors[2][12:])
    assert errors[2][:12].sum() < errors[1][:12].sum() and errors[1][12:].sum() < errors[0][12:].sum()
    for wrong in (dict(refine=2), dict(refine=3), dict(refine=1, codec=dict(one.codec) | dict(coarse=0))):
        with pytest.raises(ValueError, match=f"refine={wrong['refine']}: the last levels of 4"):
            system(**wrong)


def test_blurred_latents_are_smoothed_over_time_but_for_what_is_sure():
    one = system(blur=2.0)
    net = one.network
    c, axes = net.coarse_channels, np.eye(net.coarse_channels)
    axes[: net.cepstrum, : net.cepstrum] = scipy.fft.dct(np.eye(net.cepstrum), norm="ortho")
    z = np.random.default_rng(0).normal(size=(3, 40, net.channels)).astype(np.float32)
    found = np.asarray(one.blurred(jnp.asarray(z), jnp.asarray([0.0, 0.5, 2.0])))
    np.testing.assert_array_equal(found[0], z[0])
    np.testing.assert_array_equal(found[..., c:], z[..., c:])
    for row, deviation in ((1, 0.5), (2, 2.0)):
        expected = z[row, :, :c].astype(np.float64) @ axes
        for k in range(SURE, c):  # a filter that knows nothing beyond the ends, and divides by what it saw
            smooth = lambda x: scipy.ndimage.gaussian_filter1d(x, deviation, mode="constant", radius=40)
            expected[:, k] = smooth(expected[:, k]) / smooth(np.ones(40))
        np.testing.assert_allclose(found[row, :, :c], expected @ axes.T, atol=2e-5)
    np.testing.assert_allclose(one.blurred(jnp.ones_like(z), jnp.full(3, 2.0)), 1.0, atol=1e-5)
    with pytest.raises(ValueError, match="blur=2.0 is of latents of coarse levels, of which coarse=0 has none"):
        system(blur=2.0, codec=dict(one.codec) | dict(coarse=0))


def test_the_decoder_alone_learns_and_what_codes_are_made_of_stays(started):
    config = get_config("smoke,decoder")
    one, (_, params, rest) = make("codec", config.model), started
    kept = [path for path in state.flatten(params) if any(re.fullmatch(rule, f"params/{path}") for rule in config.train.frozen)]
    assert kept and all(path.startswith("gen/encoder/") for path in kept)
    gradients, stats, metrics = jit(one.grads)(params, rest, batch(), jax.random.key(1), jnp.int32(0))
    after = one.update(params, rest, stats, jax.random.key(2), jnp.int32(0))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), after, rest)) and after.keys() == rest.keys()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["gen"]["decoder"])) and float(metrics["adversarial"]) > 0
    plain = make("codec", {**config.model, "blur": 0.0}).grads(params, rest, batch(), jax.random.key(1), jnp.int32(0))[2]
    assert float(plain["mel"]) != pytest.approx(float(metrics["mel"]), rel=1e-6)
    assert float(plain["quantisation_error"]) == pytest.approx(float(metrics["quantisation_error"]), rel=1e-6)
