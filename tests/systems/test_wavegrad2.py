"""WaveGrad 2: counts, its loss against an independent one, invariances, training, windows, sampling."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.wavegrad2 import get_config
from ns2_jax.maths import schedules
from ns2_jax.runtime.state import count
from ns2_jax.systems.system import make, shapes
from ns2_jax.systems.wavegrad2 import KEYS, System
from tests import goldens, meshes

B, T, P, U = 8, 40, 8, 12
HOP = 200
SIZES = {"b": B, "t": T, "p": P, "u": U, "s": T * HOP, "v": U * HOP, "n": 3}
ALONE = SIZES | {"b": 2}


def numbers(size: str = "smoke", **changes) -> dict:
    """A size's model numbers; a change whose value is a dict changes that network's numbers."""
    model = get_config(size).model.to_dict()
    merge = lambda old, new: {**old, **new} if isinstance(new, dict) else new
    return {**model, **{name: merge(model.get(name), value) for name, value in changes.items()}}


def system(size: str = "smoke", **changes) -> System:
    return make("wavegrad2", numbers(size, **changes))


def still(**changes) -> System:
    """The smoke system without dropout and zoneout, for comparisons between shapes."""
    return system(**({"encoder": {"dropout": 0.0, "zoneout": 0.0}} | changes))


def batch(b: int = B, t: int = T, p: int = P, u: int = U, seed: int = 0) -> dict:
    """Random phones and noise for audio; durations sum to frames; the first row is full, the second shorter than a window."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(20, t + 1, b).astype(np.int32)
    frames[:2] = t, 12
    phones, durations = np.zeros((2, b, p), np.int32)
    for i, total in enumerate(frames):
        n = rng.integers(3, p + 1)
        phones[i, :n] = rng.integers(1, 50, n)
        cuts = np.sort(rng.choice(np.arange(1, total), n - 1, replace=False))
        durations[i, :n] = np.diff(np.r_[0, cuts, total])
    sound = lambda n: (0.1 * rng.normal(size=(b, n * HOP))).astype(np.float32)
    return {
        "audio": sound(t), "phones": phones, "durations": durations, "frames": frames, "prompt_audio": sound(u),
        "prompt_frames": rng.integers(u // 2, u + 1, b).astype(np.int32), "weight": np.ones(b, np.float32)}


def pad(data: dict, t: int, p: int, u: int) -> dict:
    """The same rows in a larger bucket, with rubbish in the padding of audio."""
    extra = {"audio": t * HOP, "prompt_audio": u * HOP, "phones": p, "durations": p}
    rubbish = {"audio": 0.3, "prompt_audio": -0.2}
    wide = lambda name, x: np.pad(x, ((0, 0), (0, extra[name])), constant_values=rubbish.get(name, 0)) if name in extra else x
    return {name: wide(name, x) for name, x in data.items()}


def quick(fn):
    """`fn` compiled with little optimisation, once for every shape of its arguments."""
    jitted, made = jax.jit(fn), {}

    def call(*args):
        key = str(jax.tree.map(jnp.shape, args))
        if key not in made:
            made[key] = meshes.compiled(jitted, *args)
        return made[key](*args)

    return call


@functools.cache
def initial() -> dict:
    """Params of the smoke system as training begins."""
    return jax.device_get(quick(system().init)(jax.random.key(0), batch()))[0]


@functools.cache
def started() -> dict:
    """The same with noise in every one."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.05, x.shape).astype(x.dtype), initial())


@functools.cache
def smoke_grads():
    """The smoke system's gradients, compiled once for all tests."""
    return quick(system().grads)


@functools.cache
def still_value_and_grad():
    one = still()
    return one, quick(jax.value_and_grad(one.loss_given, has_aux=True))


def fixed_draws(one: System, b: int = B, t: int = T) -> dict:
    draws = one.draws(jax.random.key(5), b, t) | {"dropout": None}
    return draws | {"drop_prompt": jnp.arange(b) % 4 >= 2, "drop_text": jnp.arange(b) % 4 == 3}


def assert_close(expected, found, tolerance: float = 2e-4) -> None:
    off = {k: v for k, v in meshes.differences(expected, found).items() if not v < tolerance}
    assert not off, sorted(off.items(), key=lambda x: -x[1])[:5]


# Size -----------------------------------------------------------------------------------------------------------------


def test_base_has_the_layouts_counts():
    """The fact sheet's: convolutions and LSTM of an encoder of 1024 channels, and by hand the predictors and what 1024 features instead of
    80 mel bins add to the decoder's 15,810,401 (tests/layers/test_wavegrad.py), whose FiLMs are told of the voice."""
    one = system("base")
    params, rest = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, SIZES))
    assert set(params) == set(KEYS) and not rest
    rows = {name: count(params[name]) for name in KEYS}
    table = 128 * 1024
    assert abs((rows["encoder"] - table) / 22.0e6 - 1) < 0.01
    lstm = lambda source, width: 2 * 4 * width * (source + width + 1)
    assert rows["duration"] == lstm(1024, 512) + lstm(1024, 512) + 1024 + 1
    assert rows["range"] == lstm(1025, 512) + lstm(1024, 512) + 1024 + 1
    told = sum(256 * width + width for width in (32, 128, 128, 256, 512))
    assert rows["decoder"] == 15_810_401 + (1024 - 80) * 3 * 768 + told
    assert one.networks["decoder"].hop == 300 and one.rate / one.hop == 80


def test_small_has_a_few_million():
    one = system("small")
    params, _ = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, SIZES))
    assert 4e6 < count(params) < 8e6


# Loss -----------------------------------------------------------------------------------------------------------------


def test_loss_terms_are_the_equations():
    """Every term recomputed in numpy from what the networks predict, the windows and noisy waveforms that they saw included."""
    one, seen = still(), {}
    data, draws = batch(), fixed_draws(still())

    class Spy(System):
        def apply(self, params, name, *args, rng=None):
            seen[name] = super().apply(params, name, *args, rng=rng)
            return seen[name]

        def call(self, params, name, method, *args):
            seen[method] = super().call(params, name, method, *args)
            return seen[method]

        @property
        def networks(self):
            nets = super().networks
            decoder = nets["decoder"]

            class Net:
                check, hop = decoder.check, decoder.hop

                def apply(self, variables, noisy, *args):
                    seen["noisy"], seen["eps"] = noisy, decoder.apply(variables, noisy, *args)
                    return seen["eps"]

            return nets | {"decoder": Net()}

    spy = Spy(**numbers(encoder={"dropout": 0.0, "zoneout": 0.0}))

    def run(params, data, draws):
        seen.clear()
        loss, (_, metrics) = spy.loss_given(params, {}, data, draws)
        return loss, metrics, {k: seen[k] for k in ("duration", "eps", "noisy", "mel")}

    loss, metrics, out = jax.device_get(quick(run)(started(), data, draws))
    size = one.window
    betas = np.linspace(1e-6, 0.01, 1000)
    grid = np.sqrt(np.cumprod(np.r_[1.0, 1 - betas]))
    draws = {name: np.asarray(x, np.float64) for name, x in draws.items() if name in ("window", "place", "noise")}
    total = dict(eps=0.0, duration=0.0, frames=0)
    for i in range(B):
        frames = int(data["frames"][i])
        first = int(draws["window"][i] * (max(frames - size, 0) + 1))
        valid = min(size, frames - first)
        n = int(draws["place"][i] * 1000)
        part = draws["place"][i] * 1000 - n
        level = grid[n] + part * (grid[n + 1] - grid[n])
        audio = np.where(np.arange(T * HOP) < frames * HOP, data["audio"][i], 0).astype(np.float64)
        clean = 4.0 * (audio - 0.9 * np.r_[0, audio[:-1]])[first * HOP : (first + valid) * HOP]
        noise = draws["noise"][i]
        np.testing.assert_allclose(out["noisy"][i, : valid * HOP], level * clean + np.sqrt(1 - level**2) * noise[: valid * HOP], atol=1e-4)
        total["eps"] += np.abs(out["eps"][i] - noise)[: valid * HOP].sum() / HOP
        k = (data["phones"][i] > 0).sum()
        total["duration"] += np.square(out["duration"][i, :k] - np.log1p(data["durations"][i, :k])).mean() * valid
        total["frames"] += valid
    assert metrics["weight"] == total["frames"]
    assert metrics["eps"] == pytest.approx(total["eps"], rel=1e-4)
    assert metrics["duration"] == pytest.approx(total["duration"], rel=1e-4)
    assert loss == pytest.approx(total["eps"] + total["duration"] + metrics["mel"], rel=1e-4)
    quarters = [metrics[f"eps_l{i}"] for i in range(4)]
    assert np.sum(quarters) / 4 == pytest.approx(metrics["eps"], rel=1e-5)


def test_bucket_padding_changes_neither_loss_nor_gradients():
    one, run = still_value_and_grad()
    data, draws = batch(), fixed_draws(one)
    assert_close(jax.device_get(run(started(), {}, data, draws)), jax.device_get(run(started(), {}, pad(data, 8, 3, 5), draws)))


def test_a_batch_is_the_sum_of_its_rows_and_weightless_rows_count_nothing():
    one, run = still_value_and_grad()
    data, draws = batch(), fixed_draws(one)
    only = lambda rows: data | {"weight": np.isin(np.arange(B), rows).astype(np.float32)}
    whole, first, rest = (jax.device_get(run(started(), {}, x, draws)) for x in (data, only([0, 3, 5]), only([1, 2, 4, 6, 7])))
    assert_close(whole, jax.tree.map(np.add, first, rest))
    rubbish = {name: np.where(np.isin(np.arange(B), [0, 3, 5]).reshape((B,) + (1,) * (x.ndim - 1)), x, x[:1]) for name, x in data.items()}
    assert_close(first, jax.device_get(run(started(), {}, rubbish | {"weight": only([0, 3, 5])["weight"]}, draws)))
    nothing = jax.device_get(run(started(), {}, only([]), draws))
    assert all((x == 0).all() for x in jax.tree.leaves(nothing))


def test_only_the_rows_that_are_dropped_lose_voice_or_text():
    one, run = still_value_and_grad()
    data, none = batch(), fixed_draws(one) | {"drop_prompt": jnp.zeros(B, bool), "drop_text": jnp.zeros(B, bool)}
    text, voice = data | {"phones": np.where(data["phones"] > 0, 1 + data["phones"] % 40, 0)}, data | {"prompt_audio": -3 * data["prompt_audio"]}
    term = lambda x, d: float(run(started(), {}, x, d)[0][1][1]["eps"])
    everything = none | {"drop_prompt": jnp.ones(B, bool), "drop_text": jnp.ones(B, bool)}
    for other in (text, voice):
        assert term(other, none) != pytest.approx(term(data, none), rel=1e-5)
        assert term(other, everything) == pytest.approx(term(data, everything), rel=1e-6)


def test_loss_and_gradients_are_those_of_one_device_on_every_mesh():
    meshes.check_system(system(), started(), {}, batch(), jax.random.key(3), tolerance=5e-4)  # ranges: sums of Gaussians that cancel


def test_every_parameter_has_a_finite_gradient_that_is_not_zero():
    data = batch()
    data["phones"] = np.where(data["phones"] > 0, 1 + np.arange(B * P).reshape(B, P), 0).astype(np.int32)
    drops = jax.jit(lambda k: (lambda d: (d["drop_text"].any(), (d["drop_prompt"] & ~d["drop_text"]).any()))(system().draws(jax.random.key(k), B, T)))
    both = next(k for k in range(100) if all(drops(k)))  # a step in which some row loses its text, another its voice only
    grads, _, metrics = smoke_grads()(started(), {}, data, jax.random.key(both), np.int32(0))
    for path, g in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
        assert np.isfinite(g).all() and np.abs(g).max() > 1e-6, path
    assert all(np.isfinite(m) for m in metrics.values())


# Training -------------------------------------------------------------------------------------------------------------


def test_golden_metrics_of_one_training_step():
    """Update golden_wavegrad2.json (delete it and run twice) only when a change to the mathematics was intended."""
    grads, _, metrics = jax.device_get(smoke_grads()(initial(), {}, batch(), jax.random.key(1), np.int32(0)))
    found = {name: float(value / metrics["weight"]) for name, value in metrics.items() if name != "weight"}
    norm = lambda tree: np.sqrt(sum(np.square(np.float64(x)).sum() for x in jax.tree.leaves(tree)))
    found |= {f"grad_norm/{k}": float(norm(g) / metrics["weight"]) for k, g in grads.items()}
    goldens.check("wavegrad2", found, 1e-3)


def test_loss_falls_on_one_batch():
    data, params, optimiser, history = batch(), initial(), optax.adam(4e-3), []

    @jax.jit
    def update(params, opt, grads, weight):
        updates, opt = optimiser.update(jax.tree.map(lambda g: g / weight, grads), opt)
        return optax.apply_updates(params, updates), opt

    opt = jax.jit(optimiser.init)(params)
    for key in jax.random.split(jax.random.key(2), 40):
        grads, _, metrics = smoke_grads()(params, {}, data, key, np.int32(0))
        params, opt = update(params, opt, grads, metrics["weight"])
        history.append({k: m / metrics["weight"] for k, m in jax.device_get(metrics).items()})
    mean = lambda name, part: float(np.mean([m[name] for m in history[part]]))
    first, last = slice(0, 5), slice(-5, None)
    for name, share in (("loss", 0.8), ("eps", 0.9), ("duration", 0.4), ("mel", 0.8)):
        assert mean(name, last) < share * mean(name, first), (name, mean(name, first), mean(name, last))


@pytest.mark.parametrize("changes", [
    {"window": 8}, {"window": 0}, {"mel_weight": 0.0}, {"mask_count": 2}, {"emphasis": 0.0, "gain": 1.0}, {"phone_position": False},
    {"decoder": {"fold": 1}}, {"decoder": {"repeats": 2}}, {"betas": (1e-4, 0.05, 50)}], ids=str)
def test_ablations_are_values(changes):
    """Each builds, and computes something else than the default."""

    def text(one: System) -> str:
        params, _ = jax.eval_shape(one.init, jax.random.key(0), batch())
        return str(jax.make_jaxpr(one.loss_given)(params, {}, batch(), jax.eval_shape(lambda: fixed_draws(one))))

    assert text(still(**changes)) != text(still())


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="patch 10 times up .* is 100 samples, but hop=200"):
        system(decoder={"patch": 10})
    with pytest.raises(ValueError, match="ends at abar 0.95"):
        system(schedules=((0.01, 0.04),))
    assert system(schedules=((0.01, 0.04),), most_signal=1.0).schedules


# Parts ----------------------------------------------------------------------------------------------------------------


def test_levels_are_continuous_between_the_steps_of_training():
    one = system()
    grid = np.sqrt(np.cumprod(np.r_[np.longdouble(1), 1 - np.linspace(1e-6, 0.01, 1000)]))
    level, sigma = (np.asarray(x) for x in one.level(jnp.asarray([0.0, 0.001, 0.0005, 0.5, 0.99951, 1.0])))
    expected = np.float64([grid[0], grid[1], (grid[0] + grid[1]) / 2, grid[500], 0.49 * grid[999] + 0.51 * grid[1000], grid[1000]])
    np.testing.assert_allclose(level, expected, atol=1e-6)
    np.testing.assert_allclose(sigma, np.sqrt(1 - expected**2), rtol=1e-3)  # a quarter of the smallest is not lost in rounding
    assert sigma[0] == 0 and sigma[1] == pytest.approx(1e-3, rel=1e-3)
    np.testing.assert_allclose(one.process.alpha(1.0), np.float64(grid[1000]), rtol=0.01)  # the continuous limit


def test_emphasis_and_gain_are_undone():
    one, audio = system(), batch()["audio"][:2]
    shaped = np.asarray(one.shaped(audio))
    np.testing.assert_allclose(shaped[:, 1:], 4.0 * (audio[:, 1:] - 0.9 * audio[:, :-1]), atol=1e-6)
    np.testing.assert_allclose(quick(one.unshaped)(shaped), audio, atol=1e-5)
    plain = system(emphasis=0.0, gain=1.0)
    np.testing.assert_array_equal(plain.unshaped(plain.shaped(jnp.asarray(audio))), audio)


def test_hidden_stretches_are_no_longer_than_said():
    one = system(mask_count=2, mask_frames=4, mask_channels=6)
    draws = one.draws(jax.random.key(0), 500, 16)
    kept = np.asarray(one.hide(jnp.ones((500, 16, 32)), draws))
    time, channels = (kept.max(2) == 0).sum(1), (kept.max(1) == 0).sum(1)
    assert time.max() <= 8 and channels.max() <= 12 and time.mean() == pytest.approx(2 * 2, abs=0.8)
    assert set(np.unique(kept)) == {0.0, 1.0} and (kept.max(2) == 0).any(0).all()


def test_durations_and_ranges_are_finite_under_extreme_input():
    """Prompts and weights far from anything trained: whole frames in bounds, ranges positive and finite, frames finite."""
    one, data = system(), batch()

    def run(params, data):
        out = one.durations(params, {}, data, jax.random.key(0), {}, 1.0)["durations"]
        real = data["phones"] > 0
        h = one.text(params, data["phones"], one.voices(params, data, jnp.zeros(B, bool)))
        ranges = one.ranges(params, h, out, real)
        return out, ranges, one.frames(params, h, out, real, T)[0]

    run, real = quick(run), data["phones"] > 0
    for scale in (1e3, 1e6):
        params = jax.tree.map(lambda x: x * np.float32(scale) if x.ndim > 1 else x, started())
        durations, ranges, frames = run(params, data | {"prompt_audio": data["prompt_audio"] * np.float32(scale)})
        assert ((durations >= 1) == real).all() and int(durations.max()) <= np.exp(7)
        assert np.isfinite(ranges).all() and (np.asarray(ranges) >= 0.3).all() and np.isfinite(frames).all()


# Programs -------------------------------------------------------------------------------------------------------------


RATIOS = schedules.grid(3, 5.0, -2.5)


@functools.cache
def program(name: str, t: int = T, **options):
    """A program of the smoke system, which has a schedule of three steps, for two rows."""
    one = system(schedules=(tuple(schedules.betas_of(RATIOS).tolist()),))
    return quick(one.programs()[name].bind(ALONE | {"t": t, "s": t * HOP}, **options))


def run(name: str, data: dict, seed: int = 0, t: int = T, **options) -> dict:
    inputs = {key: data[key] for key in system().programs()[name].inputs}
    return jax.device_get(program(name, t, **options)(started(), {}, inputs, jax.random.key(seed)))


def sampled(seed: int = 0, t: int = T, **options) -> dict:
    return run("sample", pad(batch(2), t - T, 0, 0), seed, t, **options)


QUIET = dict(steps=2, sampler="ddim", temperature=0.0)  # no noise: its shape is the bucket's


def test_windows_sound_like_the_whole():
    """Shared noise and an overlap of all that the decoder hears: no seams."""
    whole = sampled(**QUIET)["audio"]
    assert np.abs(sampled(**QUIET, chunk=16)["audio"] - whole).max() < 1e-4 * np.abs(whole).max()


def test_samples_do_not_depend_on_the_bucket_and_end_where_durations_end():
    narrow, wide = sampled(**QUIET), sampled(t=48, **QUIET)
    np.testing.assert_allclose(wide["audio"][:, : T * HOP], narrow["audio"], atol=1e-4 * np.abs(narrow["audio"]).max())
    np.testing.assert_array_equal(wide["frames"], batch(2)["frames"])
    for i, n in enumerate(batch(2)["frames"]):
        assert (wide["audio"][i, n * HOP :] == 0).all() and np.abs(wide["audio"][i, : n * HOP]).max() > 0


def test_sampling_is_decided_by_its_key():
    one, other = sampled(0, steps=3), sampled(1, steps=3)
    np.testing.assert_array_equal(one["audio"], sampled(0, steps=3)["audio"])
    assert np.isfinite(one["audio"]).all() and np.abs(one["audio"] - other["audio"]).max() > 1e-3


def test_schedules_are_listed_trained_or_even_and_never_begin_with_much_signal():
    one = system(schedules=(schedules.PUBLISHED["manual6"],))
    np.testing.assert_allclose(schedules.betas_of(one.schedule(6)), schedules.PUBLISHED["manual6"], rtol=1e-6)
    np.testing.assert_allclose(schedules.betas_of(one.schedule(1000)), np.linspace(1e-6, 0.01, 1000), rtol=1e-6)
    for steps in (1, 12, 25, 50):
        assert schedules.last_signal(one.schedule(steps)) < 0.01
    assert system("base").programs()["sample"].options["steps"] <= 50 and system("small").programs()["sample"].options["steps"] <= 50


def test_guidance_is_linear_between_without_text_and_with():
    one, data = system(clamp=0.0), batch(2)
    y = 0.3 * jax.random.normal(jax.random.key(0), (2, T * HOP))

    estimate = lambda factor: one._denoiser(started(), data, T, factor, 0, 0)[0](y, jnp.float32(0.5))
    plain, null, double = quick(lambda: tuple(map(estimate, (1.0, 1e-9, 2.0))))()
    np.testing.assert_allclose(double, 2 * plain - null, atol=1e-3 * float(jnp.abs(plain).max()))
    assert np.abs(plain - null).max() > 1e-3


def test_windows_of_training_are_the_whole_but_for_their_edges():
    """Frames from which the decoder hears no edge have the same loss; those at edges have another. Windows are as in training."""
    one, frames = still(), batch(2)["frames"]
    data = batch(2) | {"place": np.float32([0.3, 0.8])}
    whole, windowed = (run("score", data, 2, window=window)["loss"] for window in (0, 16))
    reach = one.networks["decoder"].reach()
    assert reach < 8
    inner = np.array([reach <= t % 16 < 16 - reach for t in range(T)])
    np.testing.assert_allclose(windowed[0, inner], whole[0, inner], rtol=1e-4)
    assert np.abs(windowed[0, [15, 16]] - whole[0, [15, 16]]).max() > 1e-4
    assert (whole[1, frames[1] :] == 0).all() and (whole[0] > 0).all()


def test_a_trial_follows_the_schedule_it_is_given():
    """The same as sampling by that schedule, measured against the recording; in any order."""
    one, data = system(), batch(2) | {"logsnr": np.float32(np.stack([RATIOS[[1, 0, 2]]] * 2))}
    out, made = run("trial", data), sampled(0, steps=3)["audio"]
    mask = np.arange(T) < data["frames"][:, None]
    off = np.abs(np.asarray(one.mel(made) - one.mel(data["audio"] * np.repeat(mask, HOP, 1)))).mean(-1) * 2.4
    np.testing.assert_allclose(out["distance"], (off * mask).sum(-1) / mask.sum(-1), rtol=1e-2)
    np.testing.assert_allclose(out["last_signal"], schedules.last_signal(RATIOS), rtol=1e-4)


def test_durations_are_whole_frames_of_real_phones():
    data, longer = batch(2), started()["duration"]["output"] | {"bias": np.float32([2.0])}
    inputs = {name: data[name] for name in system().programs()["durations"].inputs}
    params = started() | {"duration": started()["duration"] | {"output": longer}}
    said = lambda **options: np.asarray(program("durations", **options)(params, {}, inputs, jax.random.key(0))["durations"])
    frames, slow = said(), said(speed=0.25)
    assert ((frames >= 1) == (data["phones"] > 0)).all() and frames.dtype == np.int32
    assert (slow >= frames).all() and slow.sum() > 2 * frames.sum() > 0


def test_programs_have_the_shapes_they_promise_and_multiply_float32_as_float32():
    """Accelerators round operands of products unless told."""
    one = system()
    params, _ = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, SIZES))
    for name, program in one.programs().items():
        given = params, {}, shapes(program.inputs, SIZES), jax.random.key(0)
        out, promised = jax.eval_shape(program.bind(SIZES), *given), shapes(program.outputs, SIZES)
        assert {k: (v.shape, v.dtype) for k, v in out.items()} == {k: (v.shape, v.dtype) for k, v in promised.items()}, name
        text = str(jax.make_jaxpr(program.bind(SIZES))(*given))
        products = len(re.findall(r"= (?:dot_general|conv_general_dilated)\[", text))
        assert products and len(re.findall(r"precision=\(Precision.HIGHEST, Precision.HIGHEST\)", text)) == products, name
    with pytest.raises(ValueError, match="unknown option 'step'"):
        one.programs()["sample"].bind(SIZES, step=3)


def test_flops_are_those_the_compiler_counts():
    """On a wide decoder: loops over phones count once with the compiler, and spectra are not counted by us."""
    one = still(width=64, window=32, decoder=dict(widths=(128, 96), down=(128,), first=64, input=128, fold=1), mels=8, mel_weight=0.0)
    data = batch(p=3)
    params, _ = jax.eval_shape(one.init, jax.random.key(0), data)
    found = jax.jit(one.loss_given).lower(params, {}, data, jax.eval_shape(lambda: fixed_draws(one))).compile().cost_analysis()["flops"]
    assert one.flops(SIZES | {"p": 3}) == pytest.approx(found, rel=0.1)
