"""NaturalSpeech 2: the paper's parameter rows, its losses against independent ones, invariances, training, sampling."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.fft

from configs.naturalspeech2 import get_config
from ns2_jax.layers import quantize
from ns2_jax.runtime import weights
from ns2_jax.systems.naturalspeech2 import System, rvq
from ns2_jax.systems.system import make, shapes
from tests import goldens, meshes
from tests.pulses import coherence

SIZES = {"b": 8, "t": 24, "p": 8, "u": 12}


def numbers(size: str = "smoke", **changes) -> dict:
    """A size's model numbers; a change whose value is a dict changes that network's numbers."""
    model = get_config(size).model.to_dict()
    merge = lambda old, new: {**old, **new} if isinstance(new, dict) else new
    return {**model, **{name: merge(model.get(name), value) for name, value in changes.items()}}


def system(size: str = "smoke", **changes) -> System:
    return make("naturalspeech2", numbers(size, **changes))


def predicted(one: System, rest) -> dict:
    """Of the codec in `rest`, what the model predicts: the smoke codec's coarse levels, the channels before those of its waveform."""
    own, net = rest["codec"]["rest"], one.codec_network
    c = net.channels - net.wave
    assert 0 < net.coarse < one.levels and c == one.sizes["c"] < net.channels
    books, axes = np.asarray(own["codebooks"][: net.coarse, :, :c], np.float64), np.eye(c)
    axes[: net.cepstrum, : net.cepstrum] = scipy.fft.dct(np.eye(net.cepstrum), norm="ortho")
    deviation = np.sqrt((books @ axes).var(1).sum(0))
    return {"codebooks": books, "mean": own["mean"][:c], "axes": axes, "deviation": deviation}


QUIET = {
    "encoder_dropout": 0.0, "denoiser": {"dropout": 0.0, "remat": ()}, "duration": {"dropout": 0.0, "attention_dropout": 0.0},
    "pitch": {"dropout": 0.0, "attention_dropout": 0.0}}


def still(**changes) -> System:
    """The smoke system without dropout, for comparisons between shapes."""
    merge = lambda name, value: QUIET.get(name, {}) | value if isinstance(value, dict) else value
    return system(**{name: merge(name, value) for name, value in (QUIET | changes).items()})


def batch(one: System, b: int = 8, t: int = 24, p: int = 8, u: int = 12, seed: int = 0) -> dict:
    """Random phones and codes; durations sum to frames; the first row is full, the others are shorter."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(t // 2, t + 1, b).astype(np.int32)
    frames[0] = t
    phones, durations = np.zeros((2, b, p), np.int32)
    for i, total in enumerate(frames):
        n = rng.integers(3, p + 1)
        phones[i, :n] = rng.integers(1, 50, n)
        cuts = np.sort(rng.choice(np.arange(1, total), n - 1, replace=False))
        durations[i, :n] = np.diff(np.r_[0, cuts, total])
    valid = np.arange(t) < frames[:, None]
    f0 = np.where(valid & (rng.random((b, t)) < 0.7), rng.uniform(80, 300, (b, t)), 0).astype(np.float32)
    codes = lambda n: rng.integers(0, one.codes, (b, n, one.levels)).astype(np.uint16)
    return {
        "phones": phones, "durations": durations, "f0": f0, "codes": codes(t), "frames": frames, "prompt_codes": codes(u),
        "prompt_frames": rng.integers(u // 2, u + 1, b).astype(np.int32), "weight": np.ones(b, np.float32)}


def pad(data: dict, t: int, p: int, u: int) -> dict:
    """The same rows in a larger bucket, with rubbish in the padding."""
    extra = {"codes": t, "f0": t, "phones": p, "durations": p, "prompt_codes": u}
    rubbish = {"codes": 3, "f0": 200.0, "prompt_codes": 5}
    wide = lambda name, x: np.pad(
        x, ((0, 0), (0, extra.get(name, 0))) + ((0, 0),) * (x.ndim - 2), constant_values=rubbish.get(name, 0)) if x.ndim > 1 else x
    return {name: wide(name, x) for name, x in data.items()}


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def started() -> tuple:
    """(params, rest) of the smoke system, with noise in every parameter: output layers start at zero."""
    one = system()
    params, rest = jax.device_get(jax.jit(one.init)(jax.random.key(0), batch(one)))
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda x: x + rng.normal(0, 0.05, x.shape).astype(x.dtype), params)
    own = rest["codec"]["rest"]
    own["mean"], own["deviation"] = rng.normal(0, 0.2, own["mean"].shape).astype(np.float32), np.full_like(own["deviation"], 1.3)
    return noisy, rest


@functools.cache
def smoke_grads():
    """The smoke system's gradients, compiled once for all tests."""
    return jax.jit(system().grads)


@functools.cache
def still_value_and_grad():
    one = still()
    fn = lambda params, rest, data, draws: one.loss_given(params, rest, data, draws)
    return one, jax.jit(jax.value_and_grad(fn, has_aux=True))


def fixed_draws(one: System, b: int, t: int) -> dict:
    draws = one.draws(jax.random.key(5), b, t) | {"dropout": None}
    return draws | {"drop_prompt": jnp.arange(b) % 4 == 1, "drop_text": jnp.arange(b) % 4 >= 2}


def assert_close(expected, found, tolerance: float = 2e-4) -> None:
    off = {k: v for k, v in meshes.differences(expected, found).items() if not v < tolerance}
    assert not off, sorted(off.items(), key=lambda x: -x[1])[:5]


# Size -----------------------------------------------------------------------------------------------------------------


def test_base_meets_every_parameter_row_of_the_paper():
    one = system("base")
    abstract = shapes(one.fields, {"b": 2, "t": 32, "p": 8, "u": 16, **one.sizes})
    params, rest = jax.eval_shape(one.init, jax.random.key(0), abstract)
    codec = count(rest["codec"]["params"]["gen"]) + rest["codec"]["rest"]["codebooks"].size
    rows = {"codec": (27e6, codec), "phones": (72e6, count(params["phones"])), "duration": (34e6, count(params["duration"])),
            "pitch": (50e6, count(params["pitch"])), "prompt": (69e6, count(params["prompt"])),
            "denoiser": (183e6, count(params["denoiser"]))}
    assert set(params) == set(rows) - {"codec"}
    off = {name: f"{found / wanted - 1:+.2%}" for name, (wanted, found) in rows.items() if abs(found / wanted - 1) > 0.01}
    assert not off
    assert abs(sum(found for _, found in rows.values()) / 435e6 - 1) < 0.01


def test_small_fits_an_int8_export_of_8_megabytes(tmp_path):
    one = system("small")
    params, _ = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, {"b": 2, "t": 32, "p": 8, "u": 16, **one.sizes}))
    rng = np.random.default_rng(0)
    name = weights.write_weights(tmp_path, {"params": jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)}, "int8")
    assert 4e6 < count(params) and (tmp_path / weights.FILE).stat().st_size < 8e6 and len(name) == 12


# CE-RVQ ---------------------------------------------------------------------------------------------------------------


@functools.cache
def quantised(levels: int = 6, codes: int = 64, channels: int = 16) -> tuple:
    """Latents, greedy codes and codebooks by k-means on the residuals (numpy)."""
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(3000, channels)) * np.linspace(1.5, 0.3, channels)).astype(np.float32)
    residual, books, ids = z.copy(), [], []
    for _ in range(levels):
        book = residual[rng.choice(len(z), codes, replace=False)]
        for _ in range(10):
            near = (np.square(book).sum(-1) - 2 * residual @ book.T).argmin(-1)
            book = np.stack([residual[near == k].mean(0) if (near == k).any() else book[k] for k in range(codes)])
        near = (np.square(book).sum(-1) - 2 * residual @ book.T).argmin(-1)
        books.append(book)
        ids.append(near)
        residual = residual - book[near]
    return np.stack(books).astype(np.float32), np.stack(ids, -1)


def euclidean(books) -> quantize.Books:
    return quantize.books({}, {"codebooks": jnp.asarray(books)})


def test_ce_rvq_with_true_codes_is_exact_at_the_last_level_and_nearly_so_above():
    books, ids = quantised()
    z = sum(books[j][ids[:, j]] for j in range(len(books)))
    _, right = rvq.ce_rvq(jnp.asarray(z)[None], jnp.asarray(ids)[None], euclidean(books))
    accuracy = np.asarray(right).mean((1, 2))
    assert accuracy[-1] == 1.0
    assert (accuracy >= 0.85).all()
    # and re-encoding the sum, the mistake it avoids, loses most of the fine codes
    residual, agree = z.copy(), []
    for j, book in enumerate(books):
        near = (np.square(book).sum(-1) - 2 * residual @ book.T).argmin(-1)
        residual, agree = residual - book[near], agree + [(near == ids[:, j]).mean()]
    assert agree[-1] < 0.8 < accuracy.min()


def numpy_ce(z, codes, books, level: int, scaled: bool = True):
    """Cross entropy of one level's codes `[b, t]`, given latents `z [b, t, c]` in the codec's units."""
    book = np.asarray(books[level], np.float64)
    gaps = [np.sort(np.square(one - book).sum(-1))[1] for one in book[:64]]
    residual = z - sum((books[j][codes[..., j]] for j in range(level)), np.zeros_like(z))
    logits = -np.square(residual[..., None, :] - book).sum(-1) / (np.mean(gaps) if scaled else 1.0)
    log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
    return -np.take_along_axis(log_p, codes[..., level, None].astype(int), -1)[..., 0]


@pytest.mark.parametrize("scaled", [True, False])
def test_ce_rvq_equals_numpy(scaled):
    books, ids = quantised()
    rng = np.random.default_rng(3)
    z = rng.normal(size=(2, 5, 16)).astype(np.float32)
    codes = ids[:10].reshape(2, 5, -1)
    loss, _ = rvq.ce_rvq(jnp.asarray(z), jnp.asarray(codes, jnp.uint16), euclidean(books), scaled=scaled)
    for level in range(len(books)):
        np.testing.assert_allclose(loss[level], numpy_ce(z, codes, books, level, scaled), rtol=1e-4, atol=1e-4)


def test_ce_rvq_of_factorised_codes_equals_numpy():
    """Logits are distances of unit vectors in each level's own space; the residual subtracts the true codes' vectors."""
    rng = np.random.default_rng(3)
    q, k, d, c = 3, 8, 2, 5
    own = {"codebooks": rng.normal(size=(q, k, d)), "down": rng.normal(size=(q, c, d)), "shift": rng.normal(size=(q, d)),
           "up": rng.normal(size=(q, d, c)), "lift": rng.normal(size=(q, c))}
    z, codes = rng.normal(size=(1, 7, c)), rng.integers(0, k, (1, 7, q))
    books = quantize.books({"quantiser": jax.tree.map(jnp.float32, own)}, {})
    loss, _ = rvq.ce_rvq(jnp.float32(z), jnp.asarray(codes), books)
    residual, unit = z, lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    for j in range(q):
        keys = unit(own["codebooks"][j])
        apart = np.square(keys[:, None] - keys).sum(-1)
        np.fill_diagonal(apart, np.inf)
        logits = -np.square(unit(residual @ own["down"][j] + own["shift"][j])[..., None, :] - keys).sum(-1) / apart.min(-1).mean()
        true = np.take_along_axis(logits, codes[..., j, None], -1)[..., 0]
        np.testing.assert_allclose(loss[j], np.log(np.exp(logits).sum(-1)) - true, atol=2e-4)
        residual = residual - own["codebooks"][j][codes[..., j]] @ own["up"][j] - own["lift"][j]


def test_ce_rvq_pulls_the_prediction_towards_the_codes():
    books, ids = (jnp.asarray(x) for x in quantised())
    codes = ids[None, :20]
    z = sum(books[j][codes[..., j]] for j in range(len(books)))
    grad = jax.grad(lambda x: rvq.ce_rvq(x, codes, euclidean(books))[0].mean(0).sum())(z + 0.3)
    assert ((z - (z + 0.3)) * -grad).sum() > 0
    few = rvq.ce_rvq(z, codes[..., :2], euclidean(books))[0]
    np.testing.assert_allclose(few, rvq.ce_rvq(z, codes, euclidean(books))[0][:2], rtol=1e-5, atol=1e-5)


# Loss -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction, whiten, ce", [
    ("x0", 1.0, {}), ("v", 0.5, {"ce_by_signal": True, "ce_levels": 1})], ids=["paper", "small"])
def test_loss_terms_are_the_papers_equations(prediction, whiten, ce):
    """Every term recomputed in numpy from what the networks predict."""
    changes = {"prediction": prediction, "whiten": whiten} | ce
    one = still(**changes)
    data, (params, rest) = batch(one), started()
    draws = fixed_draws(one, 8, 24)
    seen = {}

    class Spy(System):
        def apply(self, params, name, *args, rng=None):
            seen[name] = super().apply(params, name, *args, rng=rng)
            return seen[name]

    spy = Spy(**numbers(encoder_dropout=0.0, denoiser={"dropout": 0.0, "remat": ()}, duration={"dropout": 0.0}, pitch={"dropout": 0.0}, **changes))

    def run(params, rest, data, draws):
        seen.clear()
        loss, (_, metrics) = spy.loss_given(params, rest, data, draws)
        return loss, metrics, {k: seen[k] for k in ("denoiser", "duration", "pitch")}

    loss, metrics, out = jax.device_get(jax.jit(run)(params, rest, data, draws))
    own = predicted(one, rest)
    valid = np.arange(24) < data["frames"][:, None]
    z = sum(book[data["codes"][..., j]] for j, book in enumerate(own["codebooks"]))
    scale = own["deviation"] ** whiten
    x0 = (z - own["mean"]) @ own["axes"] / (scale * np.sqrt(np.mean((own["deviation"] / scale) ** 2)))
    alpha = np.exp(-0.5 * (0.05 * draws["t"] + 9.975 * draws["t"] ** 2))[:, None, None]
    sigma = np.sqrt(1 - alpha**2)
    x0_hat = out["denoiser"] if prediction == "x0" else alpha * (alpha * x0 + sigma * draws["noise"]) - sigma * out["denoiser"]
    error = np.where(valid[..., None], np.square(x0_hat - x0), 0).mean(-1)
    snr = 1 / np.expm1(np.float64(0.05 * draws["t"] + 9.975 * draws["t"] ** 2))
    expected = {"data": error.sum(), "score": (np.minimum(snr, 5)[:, None] * error).sum(), "weight": valid.sum()}
    per_phone = []
    for i in range(8):
        n = (data["phones"][i] > 0).sum()
        per_phone.append(np.abs(out["duration"][i, :n, 0] - np.log(1 + data["durations"][i, :n])).mean())
    expected["duration"] = (np.asarray(per_phone) * data["frames"]).sum()
    voiced = (data["f0"] > 0) & valid
    target = (np.log(np.where(voiced, data["f0"], 1)) - one.pitch_mean) / one.pitch_deviation
    expected["pitch"] = (np.abs(out["pitch"][..., 0] - target) * voiced).sum()
    p = 1 / (1 + np.exp(-out["pitch"][..., 1]))
    expected["voicing"] = -(np.log(np.where(voiced, p, 1 - p)) * valid).sum()
    kept = coherence(x0, np.where(valid, data["f0"], 0), np.asarray(params["phase"]["reader"]), one.codec_network.hop / one.codec_network.rate)
    assert min(kept) > 0.05
    expected["phase"] = ((1 - np.asarray(kept)) * data["frames"]).sum()
    said = (x0_hat * scale * np.sqrt(np.mean((own["deviation"] / scale) ** 2))) @ own["axes"].T + own["mean"]
    levels = range(one.codec_network.coarse)[: ce.get("ce_levels")]
    entropy = np.mean([numpy_ce(said, data["codes"], own["codebooks"], level) for level in levels], 0)
    expected["ce"] = (entropy * valid * (alpha[..., 0] ** 2 if ce else 1.0)).sum()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), name
    total = sum(expected[k] for k in ("data", "score", "duration", "pitch", "voicing", "phase")) + 0.1 * expected["ce"]
    assert loss == pytest.approx(total, rel=1e-3)


def test_bucket_padding_changes_neither_loss_nor_gradients():
    one, run = still_value_and_grad()
    data, state = batch(one), started()
    draws = fixed_draws(one, 8, 24)
    wide = draws | {"noise": jnp.pad(draws["noise"], ((0, 0), (0, 8), (0, 0)), constant_values=4.0)}
    assert_close(jax.device_get(run(*state, data, draws)), jax.device_get(run(*state, pad(data, 8, 3, 5), wide)))


def test_a_batch_is_the_sum_of_its_rows_and_weightless_rows_count_nothing():
    one, run = still_value_and_grad()
    data, state = batch(one), started()
    draws = fixed_draws(one, 8, 24)
    only = lambda rows: data | {"weight": np.isin(np.arange(8), rows).astype(np.float32)}
    whole, first, rest = (jax.device_get(run(*state, x, draws)) for x in (data, only([0, 3, 5]), only([1, 2, 4, 6, 7])))
    assert_close(whole, jax.tree.map(np.add, first, rest))
    rubbish = {name: np.where(np.isin(np.arange(8), [0, 3, 5]).reshape((8,) + (1,) * (x.ndim - 1)), x, x[:1]) for name, x in data.items()}
    assert_close(first, jax.device_get(run(*state, rubbish | {"weight": only([0, 3, 5])["weight"]}, draws)))
    nothing = jax.device_get(run(*state, only([]), draws))
    assert all((x == 0).all() for x in jax.tree.leaves(nothing))


def test_loss_and_gradients_are_those_of_one_device_on_every_mesh():
    one = system()
    meshes.check_system(one, *started(), batch(one), jax.random.key(3))


def test_every_parameter_has_a_finite_gradient_that_is_not_zero():
    data = batch(system())
    data["phones"] = np.where(data["phones"] > 0, 1 + np.arange(64).reshape(8, 8), 0).astype(np.int32)
    grads, _, metrics = smoke_grads()(*started(), data, jax.random.key(8), 0)
    for path, g in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
        assert np.isfinite(g).all(), path
        stacked = jax.tree_util.keystr(path).count("blocks']") or "groups']" in jax.tree_util.keystr(path)
        assert np.abs(g).max() > 1e-6, path
        if stacked:  # every layer of a scanned stack
            assert (np.abs(g).max(tuple(range(1, g.ndim))) > 1e-7).all(), path
    assert all(np.isfinite(m) for m in metrics.values())


def test_only_the_rows_that_are_dropped_lose_prompt_or_text():
    one, run = still_value_and_grad()
    data, state = batch(one), started()
    none = fixed_draws(one, 8, 24) | {"drop_prompt": jnp.zeros(8, bool), "drop_text": jnp.zeros(8, bool)}
    text, prompt = (data | {name: np.roll(data[name], 1, 1)} for name in ("phones", "prompt_codes"))
    value = lambda x, d: float(run(*state, x, d)[0][0])
    everything = {"drop_prompt": jnp.ones(8, bool), "drop_text": jnp.ones(8, bool)}
    assert value(prompt, none) != value(data, none)
    assert value(prompt, none | everything) == pytest.approx(value(data, none | everything), rel=1e-6)
    term = lambda x, d: float(run(*state, x, d)[0][1][1]["data"])
    assert term(text, none) != pytest.approx(term(data, none), rel=1e-5)
    assert term(text, none | everything) == pytest.approx(term(data, none | everything), rel=1e-6)


def test_conditions_are_dropped_as_often_as_they_should_be():
    draws = jax.vmap(lambda k: system().draws(k, 100, 2))(jax.random.split(jax.random.key(0), 200))
    prompt, text = np.asarray(draws["drop_prompt"]), np.asarray(draws["drop_text"])
    assert (prompt & text).mean() == pytest.approx(0.1, abs=0.01)
    assert (prompt & ~text).mean() == pytest.approx(0.1, abs=0.01)
    assert (text & ~prompt).mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("changes", [
    {"prompt_in_denoiser": False}, {"prompt_in_predictors": False}, {"denoiser": {"queries": 0}}, {"ce_weight": 0.0},
    {"score_loss": "literal"}, {"phone_position": False}, {"voice": {"hidden": 0}}, {"phase_harmonics": 0},
    {"ce_levels": 1}, {"ce_by_signal": True}, {"ce_scaled": False}, {"objective": "flow"}], ids=str)
def test_ablations_are_values(changes):
    """Each builds, and computes something else than the default."""

    def text(one: System) -> str:
        data = batch(one)
        state = jax.eval_shape(one.init, jax.random.key(0), data)
        return str(jax.make_jaxpr(one.loss_given)(*state, data, jax.eval_shape(lambda: fixed_draws(one, 8, 24))))

    assert text(still(**changes)) != text(still())


@pytest.mark.parametrize("deaf, terms", [
    ("prompt_in_denoiser", {"data", "score", "ce"}), ("prompt_in_predictors", {"duration", "pitch", "voicing"})])
def test_a_prompt_taken_from_one_listener_is_heard_by_the_other(deaf, terms):
    one = still(**{deaf: False})
    data, run = batch(one), jax.jit(one.loss_given)
    metrics = lambda x: jax.device_get(run(*started(), x, fixed_draws(one, 8, 24))[1][1])
    plain, other = metrics(data), metrics(data | {"prompt_codes": np.roll(data["prompt_codes"], 1, 0)})
    for name in ("data", "score", "ce", "duration", "pitch", "voicing"):
        assert (other[name] == plain[name]) == (name in terms), name


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_latents_have_mean_square_one_and_the_proportions_that_whiten_leaves(whiten):
    rng = np.random.default_rng(0)
    one = system(whiten=whiten)
    c = one.sizes["c"]
    deviation = np.geomspace(5.0, 0.1, c).astype(np.float32)
    books = (rng.normal(size=(1, 4000, c)) * deviation) @ one.codec_network.axes.T + 3.0
    own = {"codebooks": books.astype(np.float32), "mean": books[0].mean(0), "deviation": np.full(c, np.nan)}
    codec = {"codec": {"params": {"gen": {}}, "rest": own}}
    z = np.asarray(one.latents(codec, np.arange(4000)[None, :, None], np.ones((1, 4000), bool)))[0]
    assert np.square(z).mean() == pytest.approx(1.0, rel=1e-3)
    assert np.abs(z.mean(0)).max() < 1e-3
    np.testing.assert_allclose(z.std(0) / z.std(0)[0], (deviation / deviation[0]) ** (1 - whiten), rtol=0.1)
    np.testing.assert_allclose(one.restore(codec, z), books[0], rtol=1e-3, atol=1e-3)


def test_a_codec_without_bands_keeps_its_channels_and_their_stored_deviations():
    one = system("base")
    rng, c = np.random.default_rng(0), one.sizes["c"]
    own = {"codebooks": rng.normal(size=(one.levels, 8, c)), "mean": rng.normal(size=c), "deviation": rng.uniform(1, 2, c)}
    codec = {"codec": {"params": {"gen": {}}, "rest": jax.tree.map(jnp.float32, own)}}
    codes = rng.integers(8, size=(1, 5, one.levels))
    z = sum(own["codebooks"][j][codes[..., j]] for j in range(one.levels))
    found = one.latents(codec, codes, np.ones((1, 5), bool))
    np.testing.assert_allclose(found, (z - own["mean"]) / own["deviation"], atol=1e-5)
    np.testing.assert_allclose(one.restore(codec, found), z, atol=1e-4)


def test_pitch_bins_are_log_spaced_with_unvoiced_apart():
    one = system("base")
    ids = np.asarray(one.pitch_ids(jnp.asarray([[0.0, 50.0, 49.0, 1099.9, 2000.0, math.sqrt(50 * 1100)]])))[0]
    assert list(ids) == [0, 1, 1, 511, 511, 256]


def test_flow_matching_is_the_mean_square_of_the_velocity():
    """Of eps - x0 on the straight path, over valid frames, in place of the terms of data and score; durations, pitch and codes stay."""
    seen = {}

    class Spy(System):
        def apply(self, params, name, *args, rng=None):
            seen[name] = (*args[:2], super().apply(params, name, *args, rng=rng))
            return seen[name][-1]

    one, data, (params, rest) = Spy(**numbers(objective="flow", **QUIET)), batch(system()), started()
    draws = fixed_draws(one, 8, 24)

    def run(params, rest, data, draws):
        loss, (_, metrics) = one.loss_given(params, rest, data, draws)
        return loss, metrics, seen["denoiser"], one.latents(rest, data["codes"], np.ones((8, 24), bool))

    given = (params, rest, data, draws)
    loss, metrics, (z, t, u), x0 = jax.device_get(meshes.compiled(jax.jit(run), *given)(*given))
    valid, t = (np.arange(24) < data["frames"][:, None])[..., None], np.asarray(t)[:, None, None]
    np.testing.assert_allclose(z, ((1 - t) * x0 + t * np.asarray(draws["noise"])) * valid, atol=1e-5)
    expected = (np.square(u - (np.asarray(draws["noise"]) - x0)) * valid).mean(-1).sum()
    assert metrics["flow"] == pytest.approx(expected, rel=1e-4)
    assert metrics["data"] == pytest.approx((np.square(z - t * u - x0) * valid).mean(-1).sum(), rel=1e-3)
    assert loss == pytest.approx(expected + sum(metrics[k] for k in ("duration", "pitch", "voicing", "phase")) + 0.1 * metrics["ce"], rel=1e-4)
    options = one.programs()["sample"].options
    assert (options["steps"], options["sampler"]) == (32, "sway") and system().programs()["sample"].options["steps"] == 150


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="objective='fm'"):
        system(objective="fm")
    with pytest.raises(ValueError, match="score_loss='snr'"):
        system(score_loss="snr")
    with pytest.raises(ValueError, match="'depth' is not a number of Transformer"):
        system(phone_encoder={"depth": 3}).networks
    with pytest.raises(ValueError, match="'width' is not a number of Transformer"):
        system(prompt_encoder={"width": 3}).networks


# Training -------------------------------------------------------------------------------------------------------------


def test_golden_metrics_of_one_training_step():
    """Update golden_naturalspeech2.json (delete it and run twice) only when a change to the mathematics was intended."""
    one = system()
    params, rest = jax.jit(one.init)(jax.random.key(0), batch(one))
    grads, _, metrics = smoke_grads()(params, rest, batch(one), jax.random.key(1), 0)
    found = {name: float(value / metrics["weight"]) for name, value in metrics.items() if name != "weight"}
    found |= {f"grad_norm/{k}": float(optax.global_norm(g) / metrics["weight"]) for k, g in grads.items()}
    goldens.check("naturalspeech2", found, 1e-4)


def test_loss_falls_on_one_batch():
    one = still(drop_prompt=0.0, drop_text=0.0, drop_both=0.0)
    data = batch(one)
    params, rest = jax.jit(one.init)(jax.random.key(0), data)
    optimiser = optax.adam(4e-3)

    @jax.jit
    def step(params, opt, rng):
        grads, _, metrics = one.grads(params, rest, data, rng, 0)
        updates, opt = optimiser.update(jax.tree.map(lambda g: g / metrics["weight"], grads), opt)
        return optax.apply_updates(params, updates), opt, {k: m / metrics["weight"] for k, m in metrics.items()}

    opt, history = optimiser.init(params), []
    for key in jax.random.split(jax.random.key(2), 80):
        params, opt, metrics = step(params, opt, key)
        history.append(metrics)
    mean = lambda name, part: float(np.mean([m[name] for m in history[part]]))
    first, last = slice(0, 8), slice(-8, None)
    for name, share in (("loss", 0.7), ("data", 0.8), ("duration", 0.4), ("pitch", 0.8)):
        assert mean(name, last) < share * mean(name, first), (name, mean(name, first), mean(name, last))


# Programs -------------------------------------------------------------------------------------------------------------


@functools.cache
def sampled(options: tuple, seed: int = 0, t: int = 24) -> dict:
    one = system()
    program = jax.jit(one.programs()["sample"].bind({**SIZES, "t": t}, **dict(options)))
    data = batch(one)
    inputs = {name: data[name] for name in ("phones", "durations", "prompt_codes", "prompt_frames")}
    inputs["f0"] = np.pad(data["f0"], ((0, 0), (0, t - 24)))
    return jax.device_get(program(*started(), inputs, jax.random.key(seed)))


FEW = (("steps", 4),)


def test_programs_multiply_float32_as_float32():
    """Accelerators round operands of products unless told: every product of float32 arrays in every program says "highest"."""
    one = system()
    sizes = {**SIZES, **one.sizes, "s": SIZES["t"] * one.codec_network.hop}
    state = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, sizes))
    for name, program in one.programs().items():
        text = str(jax.make_jaxpr(program.bind(sizes))(*state, shapes(program.inputs, sizes), jax.random.key(0)))
        products = len(re.findall(r"= (?:dot_general|conv_general_dilated)\[", text))
        assert products and len(re.findall(r"precision=\(Precision.HIGHEST, Precision.HIGHEST\)", text)) == products, name


def test_programs_have_the_shapes_they_promise():
    one = system()
    sizes = {**SIZES, **one.sizes, "s": SIZES["t"] * one.codec_network.hop}
    state = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, sizes))
    for name, program in one.programs().items():
        out = jax.eval_shape(program.bind(sizes), *state, shapes(program.inputs, sizes), jax.random.key(0))
        promised = shapes(program.outputs, sizes)
        assert {k: (v.shape, v.dtype) for k, v in out.items()} == {k: (v.shape, v.dtype) for k, v in promised.items()}, name
    with pytest.raises(ValueError, match="unknown option 'step'"):
        one.programs()["sample"].bind(sizes, step=3)


def test_sampling_is_decided_by_its_key():
    one, again, other = sampled(FEW), jax.device_get(sampled.__wrapped__(FEW)), sampled(FEW, 1)
    np.testing.assert_array_equal(one["audio"], again["audio"])
    assert np.abs(one["latents"] - other["latents"]).max() > 1e-3


def test_the_contour_is_pitch_where_there_are_frames():
    one, data = system(), batch(system())
    inputs = {name: data[name] for name in ("phones", "durations", "prompt_codes", "prompt_frames")}
    f0 = {t: np.asarray(jax.jit(one.programs()["contour"].bind({**SIZES, "t": t}))(*started(), inputs, jax.random.key(0))["f0"]) for t in (24, 32)}
    assert f0[24].shape == (8, 24) and f0[24].dtype == np.float32 and (f0[24] > 0).any()
    assert ((f0[24] == 0) | ((f0[24] >= 50) & (f0[24] <= 1100))).all()
    assert all((f0[24][i, n:] == 0).all() for i, n in enumerate(data["frames"]))
    np.testing.assert_allclose(f0[32][:, :24], f0[24], rtol=1e-4)


def test_samples_follow_the_pitch_they_are_given():
    """What is past the end of the frames is not heard."""
    one, data = system(), batch(system())
    inputs = {name: data[name] for name in ("phones", "durations", "f0", "prompt_codes", "prompt_frames")}
    program = jax.jit(one.programs()["sample"].bind(SIZES, steps=4))
    run = lambda f0: np.asarray(program(*started(), inputs | {"f0": f0}, jax.random.key(0))["latents"])
    past = np.arange(24) >= data["frames"][:, None]
    plain, higher = run(data["f0"]), run(np.where(data["f0"] > 0, 2 * data["f0"], 0))
    assert np.abs(plain - higher).max() > 1e-3
    np.testing.assert_array_equal(run(np.where(past, 333.0, data["f0"])), plain)


def test_a_long_prompt_is_heard_in_windows():
    """Each window as it would be alone, empty ones not at all, and rows without a prompt as the unconditional model."""
    one, (params, rest), data = system(), started(), batch(system())
    u = SIZES["u"]
    codes = np.concatenate([data["prompt_codes"], np.roll(data["prompt_codes"], 1, 1), data["prompt_codes"], data["prompt_codes"]], 1)
    rows = {"prompt_codes": codes, "prompt_frames": np.array([2 * u, u + 1, u, 1, 4 * u, 0, 2 * u, 3], np.int32)}
    dropped = np.array([False] * 6 + [True, False])
    heard = jax.jit(lambda rows, dropped: one.prompts(params, rest, rows, dropped, window=u)["denoiser"])
    found, mask = (np.asarray(x) for x in heard(rows, dropped))
    assert found.shape == (8, 4 * u, one.width) and mask.sum(1).tolist() == [2 * u, u + 1, u, 1, 4 * u, 4 * u, 4 * u, 3]
    plain = jax.jit(lambda rows, dropped: one.prompts(params, rest, rows, dropped)["denoiser"])
    for part in range(4):
        alone = {"prompt_codes": codes[:, part * u : (part + 1) * u], "prompt_frames": np.clip(rows["prompt_frames"] - part * u, 0, u)}
        expected, said = plain(alone, dropped)
        for i in range(8):
            if alone["prompt_frames"][i] and not dropped[i]:
                valid = np.asarray(said)[i]
                np.testing.assert_allclose(found[i, part * u : (part + 1) * u][valid], np.asarray(expected)[i][valid], atol=1e-5)
    null = np.asarray(params["prompt"]["null"])
    for i in (5, 6):
        np.testing.assert_allclose(found[i], np.broadcast_to(null, found[i].shape), atol=1e-6)


def test_samples_end_where_their_durations_end():
    out, data = sampled(FEW), batch(system())
    np.testing.assert_array_equal(out["frames"], data["frames"])
    for i, n in enumerate(data["frames"]):
        assert (out["audio"][i, n * 200 :] == 0).all() and (out["latents"][i, n:] == 0).all()
        assert np.abs(out["audio"][i, : n * 200]).max() > 0 and np.isfinite(out["audio"][i]).all()


def test_sampled_latents_do_not_depend_on_the_bucket():
    """Noise depends on the bucket, so start from none: temperature 0."""
    options = FEW + (("temperature", 0.0),)
    narrow, wide = sampled(options), sampled(options, t=32)
    np.testing.assert_allclose(wide["latents"][:, :24], narrow["latents"], atol=1e-4)
    assert (wide["latents"][:, 24:] == 0).all()


@pytest.mark.parametrize("numbers, sampler", [({"prediction": "v"}, "euler_literal"), ({"objective": "flow"}, "sway")], ids=["v", "flow"])
def test_no_velocity_leaves_the_noise_where_it_is(numbers, sampler):
    """The probability flow of data that is white already stands still, as does a straight path without velocity: latents are the start in the
    codec's units."""
    one = system(**numbers)
    params, rest = started()
    params = {**params, "denoiser": {**params["denoiser"], "head2": jax.tree.map(np.zeros_like, params["denoiser"]["head2"])}}
    data = batch(one)
    inputs = {name: data[name] for name in ("phones", "durations", "f0", "prompt_codes", "prompt_frames")}
    program = jax.jit(one.programs()["sample"].bind(SIZES, steps=5, sampler=sampler, temperature=0.7))
    found = np.asarray(program(params, rest, inputs, jax.random.key(4))["latents"])
    start = 0.7 * np.asarray(jax.random.normal(jax.random.key(4), (8, 24, one.sizes["c"])))
    own, valid = predicted(one, rest), np.arange(24) < data["frames"][:, None]
    np.testing.assert_allclose(found, np.where(valid[..., None], (start * own["deviation"]) @ own["axes"].T + own["mean"], 0), atol=1e-4)


def test_conversion_to_the_same_voice_gives_the_source_back():
    """The ODE away from the data and back on one grid: the latents of the source, the nearer the finer the steps; another prompt moves them.
    Untrained, a network must say velocity: its data estimate of hardly noisy latents is then those."""
    one, data = system(prediction="v"), batch(system())
    (params, rest), p = started(), {name: batch(system())[name] for name in ("phones", "durations", "f0", "prompt_codes", "prompt_frames")}
    inputs = p | {"codes": data["codes"], "target_codes": p["prompt_codes"], "target_frames": p["prompt_frames"], "target_f0": p["f0"]}
    run = lambda steps, **other: np.asarray(jax.jit(one.programs()["convert"].bind(SIZES, steps=steps))(
        params, rest, inputs | other, jax.random.key(0))["latents"])
    books, mean, _ = one.coarse(rest)
    source = sum(np.asarray(books.codes)[j][data["codes"][..., j]] for j in range(len(books.codes)))
    valid = (np.arange(24) < data["frames"][:, None])[..., None]
    off = [np.sqrt(np.mean(np.square((run(steps) - source) * valid))) / np.std(source) for steps in (20, 100)]
    assert off[1] < 0.04 and off[1] < 0.3 * off[0], off
    away = lambda **other: np.sqrt(np.mean(np.square((run(20, **other) - source) * valid))) / np.std(source)
    assert away(target_codes=np.roll(p["prompt_codes"], 1, 0)) > 1.01 * off[0], "the way back hears the target"
    assert away(prompt_codes=np.roll(p["prompt_codes"], 1, 0)) > 1.01 * off[0], "the way to the noise hears the source's prompt,"
    assert away(f0=np.where(p["f0"] > 0, 1.5 * p["f0"], 0)) > 1.01 * off[0], "and has the source's pitch"


def test_conversion_keeps_the_offset_of_the_sources_phase_and_synthesis_has_none():
    seen = []

    class Spy(System):
        def pitched(self, params, c_btc, f0_bt, offset_bt2=None):
            seen.append(offset_bt2)
            return super().pitched(params, c_btc, f0_bt, offset_bt2)

    one, data, (params, rest) = Spy(**numbers()), batch(system()), started()
    inputs = {name: data[name] for name in ("phones", "durations", "f0", "prompt_codes", "prompt_frames")}
    jax.eval_shape(one.programs()["sample"].bind(SIZES, steps=2), params, rest, inputs, jax.random.key(0))
    assert seen == [None]
    seen.clear()
    inputs |= {"codes": data["codes"], "target_codes": data["prompt_codes"], "target_frames": data["prompt_frames"],
               "target_f0": np.full_like(data["f0"], 150.0)}  # voiced where the source is not
    run = one.programs()["convert"].bind(SIZES, steps=2)
    offsets = np.asarray(jax.jit(lambda *given: (run(*given), tuple(seen))[1])(params, rest, inputs, jax.random.key(0)))
    mask = np.arange(24) < data["frames"][:, None]
    read, _ = one.call(params, "phase", "read", one.latents(rest, data["codes"], mask), data["f0"] * mask)
    assert offsets.shape == (2, 8, 24, 2) and (np.abs(offsets[..., 1]) > 0.5).any()
    np.testing.assert_allclose(offsets[0], read, atol=1e-4)
    for row, f0 in enumerate(data["f0"] * mask):
        there = np.flatnonzero(f0)
        np.testing.assert_allclose(offsets[1, row], read[row, [there[np.abs(there - t).argmin()] for t in range(24)]], atol=1e-4)


def test_guidance_moves_samples_and_one_is_the_plain_model():
    plain, guided = sampled(FEW), sampled(FEW + (("guidance", 2.0),))
    assert np.abs(plain["latents"] - guided["latents"]).max() > 1e-3
    nearly = sampled(FEW + (("guidance", 1.0 + 1e-6),))
    np.testing.assert_allclose(nearly["latents"], plain["latents"], atol=1e-3)


def test_guidance_goes_from_the_model_that_hears_and_reads_nothing():
    """The total factor: 0 is the null model, of which neither prompt nor phones are a part; one step is linear in it."""
    one, data = system(), batch(system())
    inputs = {name: data[name] for name in ("phones", "durations", "f0", "prompt_codes", "prompt_frames")}
    programs = {factor: jax.jit(one.programs()["sample"].bind(SIZES, steps=1, guidance=factor)) for factor in (0.0, 1.0, 3.0)}
    run = lambda factor, **other: np.asarray(programs[factor](*started(), inputs | other, jax.random.key(0))["latents"])
    null, plain = run(0.0), run(1.0)
    for other in ({"prompt_codes": np.roll(data["prompt_codes"], 1, 0)}, {"phones": np.roll(data["phones"], 1, 1)}):
        np.testing.assert_allclose(run(0.0, **other), null, atol=1e-5)
        assert np.abs(run(1.0, **other) - plain).max() > 1e-3
    np.testing.assert_allclose(run(3.0), null + 3.0 * (plain - null), atol=1e-4)


def test_snapping_lands_on_the_nearest_codes():
    plain, out = sampled(FEW), sampled(FEW + (("snap", 1),))
    book = predicted(system(), started()[1])["codebooks"][0]
    first = slice(0, int(out["frames"][0]))
    nearest = np.square(plain["latents"][0, first, None] - book).sum(-1).argmin(-1)
    np.testing.assert_allclose(out["latents"][0, first], book[nearest], atol=1e-5)


def test_durations_are_whole_frames_of_real_phones():
    one, data = system(), batch(system())
    inputs = {name: data[name] for name in ("phones", "prompt_codes", "prompt_frames")}

    def run(**options) -> np.ndarray:
        program = jax.jit(one.programs()["durations"].bind(SIZES, **options))
        return np.asarray(program(*started(), inputs, jax.random.key(0))["durations"])

    frames = run()
    assert ((frames >= 1) == (data["phones"] > 0)).all() and frames.dtype == np.int32
    assert (run(speed=0.25) >= frames).all() and run(speed=0.25).sum() > frames.sum()


def test_encode_and_decode_are_the_codec():
    one, (params, rest) = system(), started()
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 2400)).astype(np.float32)
    codes = jax.jit(one.programs()["encode"].bind({}))(params, rest, {"audio": audio}, jax.random.key(0))["codes"]
    assert codes.shape == (2, 12, one.levels) and codes.dtype == jnp.int32
    decoded = jax.jit(one.programs()["decode"].bind({}))(params, rest, {"codes": codes}, jax.random.key(0))["audio"]
    net = one.codec_network
    z = sum(jnp.asarray(rest["codec"]["rest"]["codebooks"])[j][codes[..., j]] for j in range(one.levels))
    expected = jax.jit(functools.partial(net.apply, method="decode"))({"params": rest["codec"]["params"]["gen"]}, z)
    np.testing.assert_allclose(decoded, expected, atol=1e-5)


def test_flops_are_those_the_compiler_counts():
    """On wide, unrolled layers, where products outweigh elementwise work."""
    wide = dict(width=128, phone_encoder=dict(layers=2, hidden=256), prompt_encoder=dict(layers=1, hidden=256),
                duration=dict(width=128), pitch=dict(width=96), unroll=16,
                denoiser=dict(width=128, filters=256, blocks=5, queries=8, time_hidden=256))
    for film in ("conv", "linear"):
        one = still(**{**wide, "denoiser": wide["denoiser"] | {"film": film}})
        data = batch(one)
        state = jax.eval_shape(one.init, jax.random.key(0), data)
        draws = jax.eval_shape(lambda: fixed_draws(one, 8, 24))
        cost = jax.jit(one.loss_given).lower(*state, data, draws).compile().cost_analysis()
        assert one.flops({**SIZES, **one.sizes}) == pytest.approx(cost["flops"], rel=0.05), film
