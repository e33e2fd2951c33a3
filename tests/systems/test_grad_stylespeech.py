"""Grad-StyleSpeech: sizes, style, padding, losses by hand, the aligner, guidance in closed form, programs, adaptation, one golden step."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import naturalspeech2 as ns2_config
from configs.grad_stylespeech import get_config
from ns2_jax import export, inference
from ns2_jax.layers import style, unet
from ns2_jax.runtime import checkpoints, optim, state, weights
from ns2_jax.runtime import step as steps
from ns2_jax.systems.system import make, shapes
from tests import goldens, meshes, tiny

HOP, MELS = 200, 20
SIZES = dict(b=8, t=24, p=8, u=10, v=10 * HOP, s=24 * HOP, c=MELS)
KEY = jax.random.key(1)
jit = functools.partial(jax.jit, compiler_options=meshes.FAST)  # most of these tests' time would be compiling
RNG = np.random.default_rng(0)


def system(arg: str = "smoke", **changes):
    return make("grad_stylespeech", {**get_config(arg).model.to_dict(), **changes})


def batch(one, b: int = 8, t: int = 24, p: int = 8, u: int = 10, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of chords, a chord a phone, with exact durations and another recording as a prompt, row 7 without one; the system's fields."""
    rng = np.random.default_rng(seed)
    audio, ids, durations, frames = np.zeros((b, t * HOP)), np.zeros((b, p), int), np.zeros((b, p), int), np.zeros(b, int)
    for row in range(b):
        n = int(rng.integers(p - 3, p + 1))
        spoken = [1, *rng.choice(np.arange(2, 11), n - 2, replace=False).tolist(), 1]
        lengths = rng.integers(1, max(t // n, 2), n)
        ids[row, :n], durations[row, :n], frames[row] = spoken, lengths, lengths.sum()
        s, at = np.arange(t * HOP) / 16000, 0
        for phone, length in zip(spoken, lengths):
            part = slice(at * HOP, (at + length) * HOP)
            audio[row, part] = 0.1 * (phone > 1) * sum(np.sin(2 * np.pi * 260 * k**1.3 * s[part]) for k in (phone, phone + 3))
            at += length
    audio += 0.003 * rng.normal(size=audio.shape)
    everything = {
        "audio": audio, "phones": ids, "durations": durations, "frames": frames, "weight": np.ones(b),
        "prompt_audio": np.roll(audio, 1, 0)[:, : u * HOP], "prompt_frames": np.where(np.arange(b) == 7, 0, np.minimum(np.roll(frames, 1), u))}
    return {name: np.asarray(everything[name], field.dtype) for name, field in one.fields.items()}


def stirred(tree, seed: int = 0, size: float = 0.05):
    """Params without a zero: gates and styled norms begin at nothing."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x) + np.float32(size) * rng.normal(size=x.shape).astype(np.float32), tree)


@functools.cache
def started(arg: str = "smoke"):
    one = system(arg)
    params, rest = jax.device_get(jit(one.init)(jax.random.key(0), batch(one)))
    return stirred(params), rest


@functools.cache
def grads(arg: str = "smoke"):
    return jit(system(arg).grads)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_base_has_the_rows_of_its_parts():
    """2.89 M a text block and 3.02 M a styled one, a U-Net of width 128 of 29.6 M, HiFi-GAN of 13.9 M; only attention's key biases, which softmax
    takes out again, are left out of the sources' layouts."""
    config = get_config("base")
    one = make("grad_stylespeech", config.model.to_dict())
    letters = state.bucket_sizes(config.data.buckets[0], one.sizes, config.data.hop)
    params, rest = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, letters))
    found = {name: count(tree) for name, tree in params.items()}
    text, styled = count(params["text"]["transformer"]), count(params["prior"]["transformer"])
    assert text == 4 * (2_886_912 - 256) and styled == 4 * (2_886_912 - 256 - 4 * 256 + 2 * (128 * 512 + 512))
    assert abs(found["score"] / 29.6e6 - 1) < 0.01
    assert found["style"] == 437_632 - 128 + 128  # no key bias, and a null style
    assert abs(sum(found.values()) / 55.4e6 - 1) < 0.01, found
    assert 13.9e6 < count(rest) < 14.0e6


def test_the_u_net_and_the_style_encoder_have_the_published_counts():
    mel, yes = jnp.zeros((1, 4, 80)), jnp.ones((1, 4), bool)
    like = jax.eval_shape(lambda key: unet.UNet(64).init(key, mel, jnp.zeros(1), mel, None, yes), KEY)
    assert count(like) == 7_634_887
    like = jax.eval_shape(lambda key: style.StyleEncoder().init(key, mel, yes, jnp.zeros(1, bool)), KEY)
    assert count(like) == 437_632 - 128 + 128


def test_small_has_seven_million_and_fits_beside_the_results(tmp_path):
    """As int8 without its vocoder, which has an export of its own: at most 8 MB."""
    one = system("small")
    params, rest = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, {**SIZES, "c": 80}))
    assert 7.0e6 < count(params) < 8.0e6 and count(rest) == 3_623_091
    weights.write_weights(tmp_path, {"params": jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)}, "int8")
    assert (tmp_path / weights.FILE).stat().st_size < 8e6


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="prediction='x0'"):
        system(prediction="x0")
    with pytest.raises(ValueError, match="score.kind='dit'"):
        system(score={"kind": "dit"})
    with pytest.raises(ValueError, match="given='z'"):
        system(given="z")
    with pytest.raises(ValueError, match="exclude each other"):
        get_config("small,align,exact")
    with pytest.raises(ValueError, match="give both"):
        get_config("small,preserve")
    for arg in ("base,unet", "base,hifigan", "base,align", "small,exact"):
        with pytest.raises(ValueError, match="leave the word out"):
            get_config(arg)
    with pytest.raises(ValueError, match="20 bands are not a multiple of 8"):
        unet.UNet(8, (1, 2, 2, 2)).init(KEY, *[jnp.zeros((1, 4, 20)), jnp.zeros(1), jnp.zeros((1, 4, 20)), None, jnp.ones((1, 4), bool)])


# Layers ---------------------------------------------------------------------------------------------------------------


def test_a_styled_norm_is_plain_layer_norm_at_first_and_gain_and_bias_of_the_style_later():
    x, s = RNG.normal(size=(2, 5, 16)).astype(np.float32), RNG.normal(size=(2, 4)).astype(np.float32)
    norm = style.SALN()
    params = jax.device_get(norm.init(KEY, x, s))["params"]
    params = {"style": {name: np.asarray(getattr(leaf, "value", leaf)) for name, leaf in params["style"].items()}}
    plain = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm.apply({"params": params}, x, s), plain, atol=1e-5)
    moved = stirred(params, size=0.5)
    gamma, beta = np.split((s @ moved["style"]["kernel"] + moved["style"]["bias"])[:, None], 2, -1)
    np.testing.assert_allclose(norm.apply({"params": moved}, x, s), (1 + gamma) * plain + beta, atol=1e-5)


NETS = {
    "unet": unet.UNet(8, (1, 2, 4), style_channel=True), "frames": unet.FrameNet(16, 2),
}


@pytest.mark.parametrize("kind", NETS)
def test_score_networks_do_not_see_padding(kind, valid=13):
    """Noise in the padding, and more of it: group norm, attention and convolutions give what they give for the row by itself."""
    net, t = NETS[kind], 24
    z, mu = RNG.normal(size=(2, 1, t, MELS)).astype(np.float32)
    time, s = np.float32([0.3]), RNG.normal(size=(1, 6)).astype(np.float32)
    cut = lambda x, n: x[:, :n]
    params = stirred(jax.tree.map(lambda x: getattr(x, "value", x), net.init(KEY, z, time, mu, s, np.ones((1, t), bool)),
                                  is_leaf=lambda x: hasattr(x, "value")))
    run = jit(lambda n, z, mu: net.apply(params, z, time, mu, s, jnp.arange(z.shape[1])[None] < n))
    alone = run(valid, cut(z, valid), cut(mu, valid))
    padded = run(valid, z, mu)
    np.testing.assert_allclose(padded[:, :valid], alone, atol=2e-5)
    assert not np.asarray(padded)[:, valid:].any()
    assert np.abs(np.asarray(run(t, z, mu)[:, :valid] - alone)).max() > 1e-3, "what is not padding is seen"


# Loss -----------------------------------------------------------------------------------------------------------------


def fixed_draws(one, b: int, t: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    size = min(one.crop or t, t)
    return {"t": np.linspace(0.05, 0.95, b, dtype=np.float32), "noise": rng.normal(size=(b, size, MELS)).astype(np.float32),
            "start": np.zeros(b, np.float32), "drop_style": np.arange(b) % 4 == 3, "dropout": None}


@functools.cache
def given_loss(arg: str = "smoke"):
    return jit(system(arg).loss_given)


def scores(one):
    """The score network itself, `(params, state, t, mu, style, mask)`: what the state is, is the caller's business."""
    run = jit(lambda params, *given: one.apply(params, "score", *given))
    return lambda *given: np.asarray(run(*given))


def test_losses_by_hand():
    """L_prior, L_diff and the duration term in numpy from what the networks say, each row's mean times its frames."""
    one, (params, rest), data = system(crop=0), started(), batch(system())
    draws = fixed_draws(one, 8, 24)
    _, (_, got) = jit(one.loss_given)(params, rest, data, draws, 0)
    mask = np.arange(24) < data["frames"][:, None]

    @jit
    def pieces(params, data):
        heard = jnp.arange(10) < data["prompt_frames"][:, None]
        s = one.styles(params, one.mels(data["prompt_audio"], heard), data["prompt_frames"], draws["drop_style"])
        h = one.apply(params, "text", data["phones"])
        mu, also = one.average(params, h, data["durations"], s, 24)
        log_duration = one.apply(params, "duration", h, data["phones"] > 0, s)
        return one.mels(data["audio"], jnp.asarray(mask)), s, mu, also, log_duration

    y, s, mu, also, log_duration = jax.device_get(pieces(params, data))
    np.testing.assert_array_equal(also, mask)
    frames = data["frames"]
    np.testing.assert_allclose(got["prior"], ((mu - y) ** 2).mean(-1).sum(), rtol=1e-4)
    t = draws["t"][:, None, None]
    integral = 0.05 * t + 0.5 * 19.95 * t * t
    g = np.exp(-0.5 * integral)
    noisy = (g * y + (1 - g) * mu + np.sqrt(1 - g * g) * draws["noise"]) * mask[..., None]  # Y_t, which the score network of this size hears
    predicted = scores(one)(params, noisy, draws["t"], mu, s, jnp.asarray(mask))
    error = ((predicted - draws["noise"]) ** 2).mean(-1) * mask
    np.testing.assert_allclose(got["diffusion"], error.sum(), rtol=1e-4)
    there = data["phones"] > 0
    off = ((log_duration - np.log1p(data["durations"])) ** 2 * there).sum(-1) / there.sum(-1)
    np.testing.assert_allclose(got["duration"], (off * frames).sum(), rtol=1e-4)
    assert float(got["weight"]) == frames.sum()


def test_the_network_is_given_what_the_forward_equation_makes(monkeypatch):
    """dY = 1/2 (mu - Y) beta dt + sqrt(beta) dW from one value, in 1000 steps of 20,000 samples: mean and deviation of Y_t in training."""
    y0, mu, steps, given = 0.7, -0.4, 1000, []
    rng, one, times = np.random.default_rng(0), system(crop=0), np.float32([0.1, 0.5, 1.0])
    y, found = np.full(20_000, y0), {}
    for i in range(steps):
        beta = 0.05 + 19.95 * (i + 0.5) / steps
        y = y + 0.5 * (mu - y) * beta / steps + np.sqrt(beta / steps) * rng.normal(size=y.shape)
        found[(i + 1) / steps] = y.mean(), y.std()

    monkeypatch.setattr(type(one), "apply", lambda self, params, name, state, t, mu, *rest: (given.append((state, mu)), state)[1])
    noise = rng.normal(size=(3, 100, MELS)).astype(np.float32)
    noise = (noise - noise.mean((1, 2), keepdims=True)) / noise.std((1, 2), keepdims=True)
    data, average = np.full(noise.shape, y0, np.float32), np.full(noise.shape, mu, np.float32)
    one.diffusion({}, data, average, None, np.full(3, 100), {"t": times, "noise": noise, "start": np.zeros(3, np.float32)})
    state, beside = np.asarray(given[0])
    np.testing.assert_allclose(beside, mu, rtol=1e-6)
    for row, t in zip(state, (0.1, 0.5, 1.0)):
        np.testing.assert_allclose((row.mean(), row.std()), found[t], atol=0.02)


def test_crops_cut_mels_and_averages_in_the_same_place():
    """L_diff of 8 frames against slices in numpy: from within long rows, their ends, and of rows that have no more, or fewer."""
    one, (params, _) = system(crop=8), started()
    assert one.draws(KEY, 8, 24)["noise"].shape == (8, 8, MELS)
    rng, draws, frames = np.random.default_rng(1), fixed_draws(one, 8, 24), np.array([24, 24, 24, 20, 13, 9, 8, 5])
    (y, mu), s = rng.normal(size=(2, 8, 24, MELS)).astype(np.float32), rng.normal(size=(8, 16)).astype(np.float32)
    draws["start"] = np.float32([0.1, 0.5, 0.99, 0.4, 0.7, 0.6, 0.9, 0.9])
    found = jit(lambda y, mu, draws: one.diffusion(params, y, mu, s, frames, draws))(y, mu, {k: v for k, v in draws.items() if k != "dropout"})
    at = [1, 8, 16, 5, 4, 1, 0, 0]  # of 17, 17, 17, 13, 6, 2, 1, 1 places
    cut = lambda x: np.stack([row[a : a + 8] for row, a in zip(x, at)])
    mask = np.arange(8) < frames[:, None]
    y, mu = cut(y) * mask[..., None], cut(mu) * mask[..., None]
    t = draws["t"][:, None, None]
    g = np.exp(-0.5 * (0.05 * t + 0.5 * 19.95 * t * t))
    noisy = (g * y + (1 - g) * mu + np.sqrt(1 - g * g) * draws["noise"]) * mask[..., None]
    error = np.square(scores(one)(params, noisy, draws["t"], mu, s, mask) - draws["noise"]).mean(-1)
    np.testing.assert_allclose(found, [row[:n].mean() for row, n in zip(error, frames)], rtol=1e-4)


def test_the_binarisation_loss_begins_at_its_step():
    """The loss of the step before and of the step differ by that term and nothing else; and by hand, with its weight."""
    one, (params, rest) = system("smoke,align"), started("smoke,align")
    data, draws = batch(one), fixed_draws(one, 8, 24)
    (before, (_, m)), (after, _) = (given_loss("smoke,align")(params, rest, data, draws, one.binarise_from + i) for i in (-1, 0))
    assert float(m["binarisation"]) > 0.01 * float(before)
    np.testing.assert_allclose(after - before, m["binarisation"], rtol=1e-3)
    terms = {"forward_sum": 1.0, "binarisation": 20.0, "duration": 300.0, "prior": 4000.0, "diffusion": 50_000.0}
    one = system(align_weight=0.25, duration_weight=2.0, prior_weight=3.0, binarise_from=7)
    assert [float(one.weighed(terms, step)) for step in (0, 6, 7, 8)] == [62_600.25, 62_600.25, 62_605.25, 62_605.25]


@pytest.mark.parametrize("prediction, weighting, weight", [("v", "v", lambda alpha: 1), ("v", "eps", lambda alpha: alpha**2)])
def test_velocity_is_what_it_is_and_may_weigh_as_noise_does(prediction, weighting, weight):
    """A network that says nothing: its error is the target itself, alpha eps - sigma x0."""
    one = system(prediction=prediction, weighting=weighting, crop=0)
    draws, mask = fixed_draws(one, 8, 24), np.ones((8, 24), bool)
    params = {"score": jax.tree.map(np.zeros_like, started()[0]["score"])}
    x0 = RNG.normal(size=(8, 24, MELS)).astype(np.float32)
    got = jit(one.diffusion)(params, x0, np.zeros_like(x0), np.zeros((8, 16), np.float32), np.full(8, 24), draws | {"dropout": jnp.zeros(())})
    alpha, sigma = one.process.levels(jnp.asarray(draws["t"]), x0)
    target = np.asarray(weight(alpha) * jnp.square(alpha * draws["noise"] - sigma * x0))
    np.testing.assert_allclose(got, (target.mean(-1) * mask).mean(-1), rtol=1e-4)


def test_the_loss_is_of_order_one_at_both_ends_of_time():
    one, (params, rest), data = system(), started(), batch(system())
    run = lambda t: given_loss()(params, rest, data, fixed_draws(one, 8, 24) | {"t": np.full(8, t, np.float32)}, 0)[1][1]
    for t in (1e-5, 1 - 1e-5):
        m = run(t)
        assert 0.3 < float(m["diffusion"] / m["weight"]) < 5


@pytest.mark.parametrize("arg", ["smoke", "smoke,align"])
def test_rows_are_the_same_alone_and_padded(arg):
    """A row's own loss in the batch, alone, and in a larger bucket with noise after its end."""
    one, (params, rest) = system(arg), started(arg)
    data, draws, run = batch(one), fixed_draws(one, 8, 24), given_loss(arg)
    value = lambda d, r: float(run(params, rest, d, r, 40)[0])
    row = 2
    only = data | {"weight": (np.arange(8) == row).astype(np.float32)}
    alone = {k: v[row : row + 1] for k, v in data.items()}
    pick = lambda d: {k: None if v is None else v[row : row + 1] for k, v in d.items()}
    rng = np.random.default_rng(1)
    grow = {"audio": (8, 0.0), "prompt_audio": (4, 0.0), "phones": (3, 0), "durations": (3, 0)}
    wide = {k: np.pad(v, ((0, 0), (0, grow[k][0] * (HOP if "audio" in k else 1)))) if k in grow else v for k, v in alone.items()}
    for name, count in (("audio", "frames"), ("prompt_audio", "prompt_frames")):
        after = np.arange(wide[name].shape[1]) >= wide[count][:, None] * HOP
        wide[name] = np.where(after, rng.normal(size=wide[name].shape), wide[name]).astype(np.float32)
    draw = pick(draws)
    wide_draw = draw | {"noise": np.pad(draw["noise"], ((0, 0), (0, 8), (0, 0)))}
    expected = value(only, draws)
    assert value(alone, draw) == pytest.approx(expected, rel=1e-4)
    assert value(wide, wide_draw) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("arg", [pytest.param("smoke,unet", marks=pytest.mark.slow), "smoke,align"])
def test_every_leaf_learns(arg):
    params, rest = started(arg)
    got, stats, metrics = grads(arg)(params, rest, batch(system(arg)), KEY, 40)
    assert stats == {} and set(got) == set(params) and all(np.isfinite(float(m)) for m in metrics.values())
    for path, g in jax.tree_util.tree_leaves_with_path(got):
        assert np.isfinite(g).all() and float(jnp.abs(g).max()) > 0, jax.tree_util.keystr(path)


def test_micro_batches_add_and_rows_without_weight_or_alignment_change_nothing():
    one, (params, rest), run = system("smoke,align"), started("smoke,align"), given_loss("smoke,align")
    data, draws = batch(one), fixed_draws(one, 8, 24)
    cut = lambda tree, rows: {k: None if v is None else v[rows] for k, v in tree.items()}
    whole = run(params, rest, data, draws, 40)[1][1]
    halves = [run(params, rest, cut(data, rows), cut(draws, rows), 40)[1][1] for rows in (slice(0, 4), slice(4, 8))]
    for name, value in whole.items():
        np.testing.assert_allclose(value, halves[0][name] + halves[1][name], rtol=1e-4)
    few = data | {"frames": np.where(np.arange(8) >= 6, 2, data["frames"]).astype(np.int32)}  # fewer frames than phones
    few["weight"] = np.where(np.arange(8) >= 4, 0, 1).astype(np.float32)
    few["weight"][6:] = 1
    value, (_, m) = run(params, rest, few, draws, 40)
    np.testing.assert_allclose(value, run(params, rest, cut(data, slice(0, 4)), cut(draws, slice(0, 4)), 40)[0], rtol=1e-4)
    assert float(m["weight"]) == data["frames"][:4].sum()


def test_diffusion_can_be_kept_from_the_average():
    """With `stop_prior` the text encoder's gradient is that of the prior loss alone."""
    one = system(stop_prior=True, duration_weight=0.0)
    params, rest = started()
    data, draws = batch(one), fixed_draws(one, 8, 24)
    slope = lambda one: jit(jax.grad(lambda p: one.loss_given(p, rest, data, draws, 0)[0]))(params)["text"]
    alone = slope(system(stop_prior=True, duration_weight=0.0, prior_weight=2.0))
    for x, y in zip(jax.tree.leaves(slope(one)), jax.tree.leaves(alone)):
        np.testing.assert_allclose(2 * np.asarray(x), y, atol=1e-4 * (1e-3 + float(np.abs(y).max())))


def test_golden_metrics_of_one_training_step():
    params, rest = started("smoke,align")
    got, _, metrics = grads("smoke,align")(params, rest, batch(system("smoke,align")), KEY, 40)
    found = {name: float(value / metrics["weight"]) for name, value in metrics.items() if name != "weight"}
    found |= {f"grad_norm/{k}": float(optax.global_norm(g) / metrics["weight"]) for k, g in got.items()}
    goldens.check("grad_stylespeech", found, 1e-3)


def train(one, params, rest, number: int, rate: float, fresh: bool, b: int = 8, p: int = 8, t: int = 24):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, 0.9, 0.98))

    @jax.jit
    def step(params, opt, data, key, i):
        slope, _, metrics = one.grads(params, rest, data, key, i)
        updates, opt = tx.update(jax.tree.map(lambda g: g / metrics["weight"], slope), opt, params)
        return optax.apply_updates(params, updates), opt, {k: v / metrics["weight"] for k, v in metrics.items()}

    opt, log = tx.init(params), []
    for i in range(number):
        params, opt, metrics = step(params, opt, batch(one, b, t, p, seed=fresh * i), jax.random.fold_in(KEY, i), i)
        log.append({k: float(v) for k, v in metrics.items()})
    return params, log


def test_it_learns_and_its_aligner_finds_the_exact_durations():
    """From texts and recordings alone, jointly with everything else: 60 small batches, and boundaries of texts not seen are right to a frame."""
    one, (_, rest) = system("smoke,align", dropout=0.0), started("smoke,align")
    params = jax.device_get(jit(one.init)(jax.random.key(0), batch(one)))[0]
    exact = batch(system(), 8, 48, 8, seed=10**6)
    run = jit(one.programs()["align"].bind({}))
    inputs = {name: exact[name] for name in ("audio", "phones", "frames")}
    off = lambda params: np.abs(np.cumsum(run(params, rest, inputs, KEY)["durations"], -1) - np.cumsum(exact["durations"], -1))[exact["phones"] > 0]
    before = off(params)
    params, log = train(one, params, rest, 60, 4e-3, True, t=48)
    after = off(params)
    np.testing.assert_array_equal(run(params, rest, inputs, KEY)["durations"].sum(-1), exact["frames"])
    assert np.median(after) == 0 and (after <= 1).mean() > 0.85 > (before <= 1).mean(), ((before <= 1).mean(), (after <= 1).mean())
    mean = lambda name, part: np.mean([m[name] for m in log[part]])
    for name, share in (("prior", 0.7), ("diffusion", 0.8), ("duration", 0.7)):
        assert mean(name, slice(-8, None)) < share * mean(name, slice(0, 4)), (name, [m[name] for m in log])


def test_the_same_on_every_mesh():
    """With blocks over frames; the U-Net is held to the meshes among the layers."""
    arg = "smoke,align"
    params, rest = started(arg)
    meshes.check_system(system(arg), params, rest, batch(system(arg)), KEY, step=40)


# Style ----------------------------------------------------------------------------------------------------------------


def test_whose_style_it_is_is_a_value_and_not_the_targets_by_default():
    transforms = {arg: get_config(f"smoke{arg}").data.transform for arg in ("", ",own_style", ",cut")}
    assert transforms == {"": "speaker_prompt", ",own_style": "whole", ",cut": "cut_prompt"}
    assert "prompt_audio" in system().fields and "prompt_audio" not in system("smoke,own_style").fields
    own = system("smoke,own_style")
    params, rest = started()
    data, draws = batch(system()), fixed_draws(own, 8, 24)
    mine = data | {"prompt_audio": data["audio"], "prompt_frames": data["frames"]}  # its own recording, given as a prompt
    as_prompt = given_loss()(params, rest, mine, draws, 0)[0]
    without = {k: v for k, v in data.items() if not k.startswith("prompt")}
    assert float(jit(own.loss_given)(params, rest, without, draws, 0)[0]) == pytest.approx(float(as_prompt), rel=1e-4)
    assert float(given_loss()(params, rest, data, draws, 0)[0]) != pytest.approx(float(as_prompt), rel=1e-3)


def test_style_moves_the_average_unless_it_is_ablated():
    data, (params, _) = batch(system()), started()
    s = RNG.normal(size=(2, 8, 16)).astype(np.float32)
    for arg, moves in (("smoke", True), ("smoke,unstyled", False)):
        one = system(arg)
        own = params if moves else {**params, "prior": started(arg)[0]["prior"]}
        run = jit(lambda x, one=one: one.average(own, one.apply(own, "text", data["phones"]), data["durations"], x, 24)[0])
        mu = [np.asarray(run(x)) for x in s]
        assert (np.abs(mu[0] - mu[1]).max() > 1e-3) == moves, arg


def test_a_long_prompt_is_heard_in_windows():
    """The mean of the windows' styles by their frames; without a frame, nobody's."""
    one, (params, _) = system(), started()
    mel, frames = RNG.normal(size=(3, 32, MELS)).astype(np.float32), np.array([25, 8, 0], np.int32)
    found = np.asarray(jit(lambda *given: one.styles(params, *given, window=8))(mel, frames, np.zeros(3, bool)))
    plain = jit(lambda *given: one.styles(params, *given))
    alone = [np.asarray(plain(mel[:, i : i + 8], np.clip(frames - i, 0, 8), np.zeros(3, bool))) for i in range(0, 32, 8)]
    share = np.array([8, 8, 8, 1]) / 25
    np.testing.assert_allclose(found[0], sum(w * x[0] for w, x in zip(share, alone)), atol=1e-5)
    np.testing.assert_allclose(found[1], alone[0][1], atol=1e-5)
    np.testing.assert_allclose(found[2], params["style"]["null"], atol=1e-6)


# Programs -------------------------------------------------------------------------------------------------------------


def prompted(one, data) -> dict:
    heard = np.arange(10) < data["prompt_frames"][:, None]
    mel = np.asarray(one.vocoder_network.encode(data["prompt_audio"])) * heard[..., None]
    return {"phones": data["phones"], "durations": data["durations"], "prompt_mel": mel, "prompt_frames": data["prompt_frames"]}


@functools.cache
def sampled(options: tuple = (), seed: int = 0, t: int = 24) -> dict:
    one = system("smoke")
    program = jit(one.programs()["sample"].bind({**SIZES, "t": t}, **{"steps": 4, **dict(options)}))
    return jax.device_get(program(*started(), prompted(one, batch(one)), jax.random.key(seed)))


def test_programs_have_the_shapes_they_promise():
    one = system("smoke,align")
    like = jax.eval_shape(one.init, KEY, shapes(one.fields, SIZES))
    assert set(one.programs()) == {"encode", "decode", "durations", "sample", "align"} and "align" not in system().programs()
    for name, program in one.programs().items():
        out = jax.eval_shape(program.bind(SIZES), *like, shapes(program.inputs, SIZES), KEY)
        promised = shapes(program.outputs, SIZES)
        assert {k: (v.shape, v.dtype) for k, v in out.items()} == {k: (v.shape, v.dtype) for k, v in promised.items()}, name


def test_samples_end_where_their_durations_end_and_follow_their_key():
    data, out, other = batch(system()), sampled(), sampled(seed=1)
    np.testing.assert_array_equal(out["frames"], data["frames"])
    for i, n in enumerate(data["frames"]):
        assert (out["audio"][i, n * HOP :] == 0).all() and np.isfinite(out["audio"][i]).all() and np.abs(out["audio"][i, : n * HOP]).max() > 0
        np.testing.assert_allclose(out["mel"][i, n:], np.log(1e-5), rtol=1e-5)
    assert np.abs(out["mel"] - other["mel"]).max() > 1e-3


def test_samples_do_not_depend_on_the_bucket():
    """Noise depends on the bucket, so start from none."""
    assert max(batch(system())["frames"]) == 16, "a row fills its bucket"
    narrow, wide = sampled((("temperature", 0.0),), t=16), sampled((("temperature", 0.0),))
    np.testing.assert_allclose(wide["mel"][:, :16], narrow["mel"], atol=1e-3)
    np.testing.assert_allclose(wide["audio"][:, : 16 * HOP], narrow["audio"], atol=1e-3)


@pytest.mark.parametrize("sampler, number, prediction, heard", [("dpm", 8, "eps", "y"), ("dpm", 8, "v", "r"), ("ml", 20, "eps", "y")])
def test_a_network_that_knows_a_gaussian_samples_it_round_the_average(sampler, number, prediction, heard, monkeypatch):
    """Residuals of deviation 1/2 and a score network that says their exact noise, or velocity, from what it hears: mels are mu plus what the solver
    makes of it, and temperature 0 leaves mu alone."""
    one, (params, rest) = system(prediction=prediction, given=heard), started()
    given, plain = prompted(one, batch(one)), type(one).apply

    def knows(self, params, name, *args, rng=None):
        if name != "score":
            return plain(self, params, name, *args, rng=rng)
        state, t, mu, _, mask = args
        integral = (0.05 * t + 0.5 * 19.95 * t * t)[:, None, None]
        alpha, sigma = jnp.exp(-0.5 * integral), jnp.sqrt(-jnp.expm1(-integral))
        z = (state - mu if heard == "y" else state) / (alpha**2 * 0.25 + sigma**2)
        return {"eps": sigma, "v": 0.75 * alpha * sigma}[prediction] * z * mask[..., None]  # x0 is alpha z / 4, v alpha eps - sigma x0

    monkeypatch.setattr(type(one), "apply", knows)
    run = lambda temperature: jit(one.programs()["sample"].bind(SIZES, steps=number, sampler=sampler, temperature=temperature))(
        params, rest, given, jax.random.key(3))["mel"]
    mask = np.arange(24) < batch(one)["frames"][:, None]
    mu = jit(lambda given: one._denoiser(params, given, 24, 1.0, 0)[1])(given)
    mu = np.asarray(mu) + one.mel_mean
    spread = (np.asarray(run(1.0)) - mu)[mask].std()
    expected = {"dpm": 0.5, "ml": 0.392}[sampler]
    assert spread == pytest.approx(expected, rel=0.1)
    if sampler == "dpm":
        np.testing.assert_allclose(np.asarray(run(0.0))[mask], mu[mask], atol=1e-4)


def test_guidance_has_a_null_average_of_its_own(monkeypatch):
    """Branches that each know their own point: residual `c - mu` with style, `u - mu_null` without. The guided sample is u + w (c - u), whatever
    the two averages are; factor 0 is the null model and 1 the plain one."""
    one, (params, rest) = system(), started()
    data = batch(one)
    given, asked = prompted(one, data), []
    point = {True: 0.8, False: -0.3}

    def knows(self, params, z, t, mu, s, mask):
        rows = given["phones"].shape[0]
        styled = jnp.arange(z.shape[0])[:, None, None] < rows
        asked.append(z.shape[0])
        return (jnp.where(styled, point[True], point[False]) - mu) * mask[..., None]

    monkeypatch.setattr(type(one), "_clean", knows)
    mask = np.arange(24) < data["frames"][:, None]
    for factor in (0.0, 1.0, 2.5):
        mel = np.asarray(jit(one.programs()["sample"].bind(SIZES, steps=3, guidance=factor))(params, rest, given, KEY)["mel"])[mask]
        np.testing.assert_allclose(mel - one.mel_mean, point[False] + factor * (point[True] - point[False]), atol=1e-4)
    assert set(asked) == {8, 16}


def test_the_null_branch_is_asked_about_the_same_noisy_mel():
    """R_t + alpha (mu - mu_null): what both residuals leave when their own averages are taken out again."""
    one, (params, _) = system(), started()
    given = prompted(one, batch(one))
    z = RNG.normal(size=(8, 24, MELS)).astype(np.float32)

    @jit
    def watched(given):
        seen = []
        spy = types.SimpleNamespace(apply=one.apply, average=one.average, _styles=one._styles, process=one.process, guided=False,
                                    _clean=lambda params, z, t, mu, s, mask: (seen.append((z, mu)), z)[1])
        denoise, *_ = type(one)._denoiser(spy, params, given, 24, 2.0, 0)
        denoise(z, jnp.float32(0.3))
        return seen[0]

    asked, averages = jax.device_get(watched(given))
    alpha = float(one.process.alpha(0.3))
    noisy = asked + alpha * averages  # alpha Y_0 + sigma eps of either branch
    np.testing.assert_allclose(noisy[:8], noisy[8:], atol=1e-4)
    assert np.abs(averages[:8] - averages[8:]).max() > 1e-3


def test_nearly_no_guidance_is_none():
    np.testing.assert_allclose(sampled((("guidance", 1.0 + 1e-6),))["mel"], sampled()["mel"], atol=2e-3)
    assert np.abs(sampled((("guidance", 2.0),))["mel"] - sampled()["mel"]).max() > 1e-3


def test_durations_are_whole_frames_scaled_before_they_are_rounded():
    one, data = system(), batch(system())
    inputs = {k: v for k, v in prompted(one, data).items() if k != "durations"}
    run = lambda **options: np.asarray(jit(one.programs()["durations"].bind(SIZES, **options))(*started(), inputs, KEY)["durations"])
    frames, slow = run(), run(speed=0.25)
    assert ((frames >= 1) == (data["phones"] > 0)).all() and frames.dtype == np.int32

    @jit
    def predicted(params, inputs):
        s = one._styles(params, inputs, np.zeros(8, bool), 0)
        return one.apply(params, "duration", one.apply(params, "text", inputs["phones"]), inputs["phones"] > 0, s)

    logs = np.asarray(predicted(started()[0], inputs))
    real = data["phones"] > 0
    np.testing.assert_array_equal(slow[real], np.maximum(np.round(np.expm1(logs[real]) / 0.25), 1))


@functools.cache
def speaker(folder):
    return inference.load(tiny.write_model("grad_stylespeech", folder))


def test_it_speaks_in_the_voice_of_a_prompt(tmp_path):
    """Through the one way to generated audio: frames times hop, another prompt another sound, prompts longer than any of training too."""
    model = speaker(tmp_path)
    assert model.speaks and model.unit == "mel"
    voice = lambda seconds, seed: (np.random.default_rng(seed).normal(size=int(16000 * seconds)).astype(np.float32) * 0.1, 16000)
    speech = model.speak("Yes.", voice(0.4, 0), steps=2)
    again, other = model.speak("Yes.", voice(0.4, 0), steps=2), model.speak("Yes.", voice(0.4, 5), steps=2)
    np.testing.assert_array_equal(speech.audio, again.audio)
    assert len(speech.audio) == speech.ends[-1] and len(speech.audio) % HOP == 0 and len(speech.f0) == 0
    n = min(len(speech.audio), len(other.audio))
    assert np.abs(speech.audio[:n] - other.audio[:n]).max() > 1e-5
    assert len(model.prompt(voice(1.2, 1))) == 96 > model.longest_prompt == 32
    assert np.isfinite(model.speak("Yes.", voice(1.2, 1), steps=2).audio).all()


def exported(folder, **options) -> tuple[list[str], str]:
    """(comparison of run and export, the export): the vocoder named by its hash, not contained."""
    run = tiny.write_model("grad_stylespeech", folder / "run")
    vocoder = weights.read_weights(run)["rest"]["vocoder"]
    weights.write_weights(folder / "vocoder", vocoder)
    return export.export(run, folder / "x", codec=str(folder / "vocoder"), **options), str(folder / "x")


def test_an_export_names_its_vocoder_and_is_the_run(tmp_path):
    for name in ("run", "vocoder"):
        (tmp_path / name).mkdir()
    lines, folder = exported(tmp_path, programs=False)
    assert [line.split(":")[0] for line in lines] == ["encode", "decode", "durations", "sample"] and all("dB" not in line for line in lines)
    assert not [path for path in state.flatten(weights.read_weights(folder)) if path.startswith("rest/")]
    tree, config = checkpoints.read_model(folder)
    assert config["codec"]["at"] == "vocoder" and list(tree["rest"]) == ["vocoder"]
    other = get_config("smoke")
    other.init_from = {"rest": folder}
    weights.check_borrowed(other, system().borrowed)
    other.model.vocoder.size = 400
    with pytest.raises(ValueError, match="model.vocoder.size is 400, the vocoder of init_from, .* with 800"):
        weights.check_borrowed(other, system().borrowed)
    (tmp_path / "codec").mkdir()
    other.init_from = {"rest/vocoder": tiny.write_model("codec", tmp_path / "codec")}
    with pytest.raises(ValueError, match="is of system 'codec' and has no vocoder"):
        weights.check_borrowed(other, system().borrowed)
    with pytest.raises(ValueError, match="has a vocoder of another run: say whose"):
        weights.check_borrowed(get_config("smoke"), system().borrowed)


# Adaptation -----------------------------------------------------------------------------------------------------------


def test_flow_matching_is_the_mean_square_of_the_velocity():
    """On the straight path of the residual, whatever it is; a network that says 0 pays for eps - R and nothing else."""
    one, (params, _) = system(objective="flow", crop=0), started()
    (y, mu), s = RNG.normal(size=(2, 8, 24, MELS)).astype(np.float32), np.zeros((8, 16), np.float32)
    frames, draws = np.array([24, 20, 7, 24, 3, 24, 24, 1]), one.draws(KEY, 8, 24)

    class Mute(type(one)):
        def heard(self, params, z, t, mu, s, mask):
            return 0 * z

    mute = Mute(**{**get_config("smoke").model.to_dict(), "objective": "flow", "crop": 0})
    found = mute.diffusion(params, y, mu, s, frames, draws)
    error = np.square(np.asarray(draws["noise"]) - (y - mu)).mean(-1)
    np.testing.assert_allclose(found, [row[:n].mean() for row, n in zip(error, frames)], rtol=1e-4)
    z, u, t = y, mu, np.full(8, 0.3, np.float32)
    np.testing.assert_allclose(one.clean(u, z, t), z - 0.3 * u, atol=1e-6)
    assert one.programs()["sample"].options["sampler"] == "sway" and system().programs()["sample"].options["sampler"] == "dpm"
    with pytest.raises(ValueError, match="objective='fm'"):
        system(objective="fm")


def test_adaptation_trains_what_its_pattern_names_and_nothing_else():
    config = get_config("smoke,adapt")
    one, (params, rest) = system("smoke,adapt"), started()
    optimiser = optim.make(config)
    begun = {"step": jnp.int32(0), "params": params, "rest": rest, "opt": optimiser.init(params), "ema": params}
    after, _ = jit(steps.make_step(one, optimiser, config))(begun, batch(one))
    moved = {path: bool(np.any(np.asarray(leaf) != np.asarray(state.flatten(params)[path]))) for path, leaf in state.flatten(after["params"]).items()}
    assert all(yes == (path.split("/")[0] in ("prior", "score", "duration", "style")) for path, yes in moved.items()), moved
    norms = get_config("smoke,adapt")
    norms.train.frozen = ("(?!params/prior/.*norm).*",)  # what the docstring shows
    labels = state.flatten(optim.make(norms).labels(params))
    trained = {path for path, label in labels.items() if label != optim.FROZEN}
    assert trained and trained == {path for path in labels if path.startswith("prior/") and "norm" in path}


@pytest.mark.parametrize("get", [get_config, ns2_config.get_config], ids=["grad_stylespeech", "naturalspeech2"])
def test_adapting_is_one_command_shape(get):
    plain, adapted, kept = get("small"), get("small,adapt"), get("small,adapt,preserve")
    assert adapted.train.steps == 100 and adapted.optim.peak == pytest.approx(plain.optim.peak / 10) and not adapted.data.weights
    assert kept.data.weights == ((0, (1, 1)),)
    assert adapted.model.to_dict() == plain.model.to_dict()
    (pattern,) = adapted.train.frozen
    frozen = lambda path: optim.matches((pattern,), path)
    names = ("aligner", "denoiser", "duration", "phase", "phones", "pitch", "prior", "prompt", "score", "style", "text", "voice")
    trained = {"grad_stylespeech": {"duration", "prior", "score", "style"},
               "naturalspeech2": {"denoiser", "duration", "phase", "pitch", "prompt", "voice"}}[plain.system]
    assert {name for name in names if not frozen(f"params/{name}/kernel")} == trained
    with pytest.raises(ValueError, match="give both"):
        get("small,preserve")


# Cost -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "frames"])
def test_flops_equal_the_compilers_count(kind):
    """Of the score networks, which are most of it; the transformers' are scanned, which the compiler counts once."""
    from ns2_jax.systems.grad_stylespeech import cost

    numbers = {"unet": dict(width=32, multipliers=(1, 2, 4)), "frames": dict(width=128, blocks=4)}[kind]
    net = unet.NETWORKS[kind](**numbers)
    mel = jax.ShapeDtypeStruct((1, 64, 80), jnp.float32)
    given = mel, jax.ShapeDtypeStruct((1,), jnp.float32), mel, jax.ShapeDtypeStruct((1, 128), jnp.float32), jax.ShapeDtypeStruct((1, 64), bool)
    params = jax.eval_shape(net.init, KEY, *given)
    compiled = jax.jit(net.apply).lower(params, *given).compile().cost_analysis()["flops"]
    ours = 2 * {"unet": cost.unet, "frames": cost.frame_net}[kind](numbers, 80, 64, 128)
    assert 0.85 < ours / compiled < 1.05, ours / compiled


def test_the_parts_add_up():
    """Twice the frames cost about twice as much, and rows add."""
    one = system("small")
    letters = dict(b=1, t=160, p=32, u=80)
    assert one.flops({**letters, "b": 3}) == pytest.approx(3 * one.flops(letters))
    whole = system("small", crop=0)
    assert 2.0 < whole.flops(letters | {"t": 320, "p": 64, "u": 160}) / whole.flops(letters) < 2.2
