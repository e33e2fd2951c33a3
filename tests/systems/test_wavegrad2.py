"""WaveGrad 2: counts, its loss against an independent one, invariances, training, windows, sampling."""

from __future__ import annotations

import functools

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


@functools.cache
def started() -> dict:
    """Params of the smoke system, with noise in every one."""
    params, _ = jax.device_get(jax.jit(system().init)(jax.random.key(0), batch()))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.05, x.shape).astype(x.dtype), params)


@functools.cache
def smoke_grads():
    """The smoke system's gradients, compiled once for all tests."""
    return jax.jit(system().grads)


@functools.cache
def still_value_and_grad():
    one = still()
    return one, jax.jit(jax.value_and_grad(one.loss_given, has_aux=True))


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

    loss, metrics, out = jax.device_get(jax.jit(run)(started(), data, draws))
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
    meshes.check_system(system(), started(), {}, batch(), jax.random.key(3))


def test_every_parameter_has_a_finite_gradient_that_is_not_zero():
    data = batch()
    data["phones"] = np.where(data["phones"] > 0, 1 + np.arange(B * P).reshape(B, P), 0).astype(np.int32)
    grads, _, metrics = smoke_grads()(started(), {}, data, jax.random.key(8), 0)
    for path, g in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
        assert np.isfinite(g).all() and np.abs(g).max() > 1e-6, path
    assert all(np.isfinite(m) for m in metrics.values())


# Training -------------------------------------------------------------------------------------------------------------


def test_golden_metrics_of_one_training_step():
    """Update golden_wavegrad2.json (delete it and run twice) only when a change to the mathematics was intended."""
    params, _ = jax.jit(system().init)(jax.random.key(0), batch())
    grads, _, metrics = smoke_grads()(params, {}, batch(), jax.random.key(1), 0)
    found = {name: float(value / metrics["weight"]) for name, value in metrics.items() if name != "weight"}
    found |= {f"grad_norm/{k}": float(optax.global_norm(g) / metrics["weight"]) for k, g in grads.items()}
    goldens.check("wavegrad2", found, 1e-3)
