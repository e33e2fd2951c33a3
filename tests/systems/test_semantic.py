"""The tokenizer of speech: classes and loss by hand, k-means against numpy, what may be heard, meshes, one golden step of each stage."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.semantic import get_config
from ns2_jax.maths import masking, spectral
from ns2_jax.systems.system import make
from tests import goldens, meshes

HOP, T = 640, 24
jit = functools.partial(jax.jit, compiler_options=meshes.FAST)  # compiling is most of what these tests take


def system(words: str = "smoke", **changes):
    return make("semantic", {**get_config(words).model.to_dict(), **changes})


def quiet(words: str = "smoke"):
    return system(words, network={**get_config(words).model.network.to_dict(), "dropout": 0.0})


def batch(b: int = 8, seed: int = 0) -> dict:
    """Noise in bands that change every few frames; rows of several lengths."""
    rng = np.random.default_rng(seed)
    s = np.arange(T * HOP) / 16000
    band = lambda: np.sin(2 * np.pi * rng.uniform(100, 4000) * s) * (rng.random(T // 3) < 0.5).repeat(3 * HOP)
    audio = np.stack([sum(band() for _ in range(5)) for _ in range(b)])
    frames = rng.integers(T // 2, T + 1, b).astype(np.int32)
    frames[0] = T
    return {"audio": (0.1 * audio + 0.003 * rng.normal(size=audio.shape)).astype(np.float32), "frames": frames, "weight": np.ones(b, np.float32)}


@functools.cache
def started(words: str = "smoke") -> tuple:
    params, rest = jax.device_get(jit(system(words).init)(jax.random.key(0), batch()))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.03, x.shape).astype(x.dtype), params), rest


@functools.cache
def grads(words: str = "smoke"):
    return jit(system(words).grads)


def test_classes_are_the_nearest_random_codes_by_cosine():
    """From the mel spectrum on in numpy: mean of the utterance out, deviation of the first batch, projection, cosine."""
    one, data, (_, rest) = system(), batch(), started()
    mask = np.arange(T) < data["frames"][:, None]
    x, found = jax.device_get(jit(lambda audio: (lambda x: (x, one.classes(rest, x)))(one.features(rest, audio, mask)))(data["audio"]))
    rows = np.where(np.repeat(mask, HOP, 1), data["audio"], 0)
    mel = np.asarray(spectral.log_mel(rows, 16000, one.size, one.mel_hop, one.mels, one.floor))
    stacks, square = [], 0.0
    for row, n in enumerate(data["frames"]):
        own = mel[row, : n * 4] - mel[row, : n * 4].mean(0)
        square = square + np.square(own).sum(0)
        stacks.append(own)
    np.testing.assert_allclose(rest["deviation"], np.sqrt(square / (4 * data["frames"].sum())), rtol=1e-3)
    for row, own in enumerate(stacks):
        stack = (own / rest["deviation"]).reshape(-1, 4 * one.mels)
        np.testing.assert_allclose(x[row, : len(stack)], stack, atol=2e-3)
        low = stack @ rest["projection"]
        cosine = low @ rest["codes"].T / np.linalg.norm(low, axis=-1, keepdims=True)
        assert (cosine.argmax(-1) == found[row, : len(stack)]).mean() > 0.98
    assert len(np.unique(found[mask])) > 20


def test_the_loss_is_cross_entropy_where_the_input_was_masked():
    """Masked frames are those of `masking.spans`; what they held is not heard, what they are is asked for."""
    one, data, (params, rest) = quiet(), batch(), started()
    run = jit(one.grads)
    key = jax.random.key(4)
    _, _, plain = run(params, rest, data, key, 0)
    mask = np.arange(T) < data["frames"][:, None]
    where, noise, _ = jax.random.split(key, 3)
    hidden = np.asarray(masking.spans(where, mask.shape, one.mask_chance, one.mask_frames)) & mask

    def by_hand(audio):
        x = one.features(rest, audio, mask)
        classes = one.classes(rest, x)
        x = jnp.where(hidden[..., None], 0.1 * jax.random.normal(noise, x.shape), x)
        return one.net.apply({"params": params}, x, mask), classes

    logits, classes = (np.asarray(x, np.float64) for x in jit(by_hand)(data["audio"]))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ce = -np.take_along_axis(log_p, classes[..., None].astype(int), -1)[..., 0]
    assert 0.15 < hidden.sum() / mask.sum() < 0.55 and float(plain["weight"]) == hidden.sum()
    assert float(plain["loss"]) == pytest.approx(ce[hidden].sum(), rel=1e-4)
    only = data | {"weight": (np.arange(8) < 3).astype(np.float32)}
    assert float(run(params, rest, only, key, 0)[2]["loss"]) == pytest.approx(ce[:3][hidden[:3]].sum(), rel=1e-4)


def test_k_means_is_decayed_counts_and_sums_of_standardised_channels():
    one, data, (_, rest) = system("smoke,kmeans"), batch(), started("smoke,kmeans")
    rest = {**rest, "kmeans": {**rest["kmeans"], "codebooks": np.random.default_rng(2).normal(size=(1, 16, 32)).astype(np.float32)}}
    none, stats, metrics = jax.device_get(grads("smoke,kmeans")({}, rest, data, jax.random.key(0), 0))
    assert none == {}
    mask = np.arange(T) < data["frames"][:, None]
    h = np.asarray(jit(lambda audio: one.layer_output(rest["encoder"]["params"], rest["encoder"]["rest"], audio, mask))(data["audio"]))[mask]
    x, book = (h - rest["mean"]) / np.sqrt(rest["square"] - rest["mean"] ** 2), rest["kmeans"]["codebooks"][0]
    distance = np.square(x[:, None] - book).sum(-1)
    np.testing.assert_array_equal(stats["counts"][0], np.bincount(distance.argmin(-1), minlength=16))
    sums = np.stack([x[distance.argmin(-1) == k].sum(0) for k in range(16)])
    np.testing.assert_allclose(stats["sums"][0], sums, atol=1e-2)
    assert metrics["loss"] == pytest.approx(distance.min(-1).sum() / 32, rel=1e-3) and metrics["weight"] == mask.sum()
    new = jax.device_get(jit(one.update)({}, rest, stats, jax.random.key(1), 0))
    np.testing.assert_allclose(new["mean"], 0.99 * rest["mean"] + 0.01 * h.mean(0), atol=1e-4)
    np.testing.assert_allclose(new["square"], 0.99 * rest["square"] + 0.01 * np.square(h).mean(0), rtol=1e-4)
    live = stats["counts"][0] > 3
    merged = (0.99 * rest["kmeans"]["sums"][0] + 0.01 * sums) / (0.99 * rest["kmeans"]["counts"][0] + 0.01 * stats["counts"][0])[:, None]
    np.testing.assert_allclose(new["kmeans"]["codebooks"][0][live], merged[live], atol=1e-3)


def test_a_layer_in_the_middle_is_the_stack_up_to_it_and_tokens_do_not_hear_padding():
    one, data, (_, rest) = system("smoke,kmeans"), batch(), started("smoke,kmeans")
    call = jit(one.programs()["tokenise"].bind({"b": 8, "t": T, "s": T * HOP}))
    inputs = {name: data[name] for name in ("audio", "frames")}
    tokens = np.asarray(call({}, rest, inputs, jax.random.key(0))["tokens"])
    mask = np.arange(T) < data["frames"][:, None]
    loud = np.where(np.repeat(mask, HOP, 1), data["audio"], 0.7)
    np.testing.assert_array_equal(call({}, rest, inputs | {"audio": loud}, jax.random.key(0))["tokens"], tokens)
    assert (tokens[~mask] == 0).all() and len(np.unique(tokens[mask])) > 4
    whole = system("smoke,kmeans", layer=2)
    deep = jit(lambda audio: whole.layer_output(rest["encoder"]["params"], rest["encoder"]["rest"], audio, mask))(data["audio"])
    x = one.features(rest["encoder"]["rest"], data["audio"], mask)
    expected = jit(lambda x: one.net.apply({"params": rest["encoder"]["params"]}, x, mask, method="hidden"))(x)
    np.testing.assert_allclose(deep, expected, atol=1e-4)


@pytest.mark.parametrize("words", ["smoke", "smoke,kmeans"])
def test_the_same_on_every_mesh(words):
    """Of k-means no parameter is cut but the frozen encoder's."""
    meshes.check_system(system(words), *started(words), batch(), jax.random.key(3))


def test_golden_metrics_of_one_training_step():
    """Update golden_semantic.json (delete it and run twice) only when a change to the mathematics was intended."""
    found = {}
    for words, name in (("smoke", "encoder"), ("smoke,kmeans", "kmeans")):
        params, rest = jit(system(words).init)(jax.random.key(0), batch())
        own, stats, metrics = grads(words)(params, rest, batch(), jax.random.key(1), 0)
        found |= {f"{name}/{key}": float(value / metrics["weight"]) for key, value in metrics.items() if key != "weight"}
        found[f"{name}/grad_norm"] = float(optax.global_norm((own, stats)) / metrics["weight"])
    goldens.check("semantic", found, 2e-4)


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="stage='train'"):
        system(stage="train")
    with pytest.raises(ValueError, match="layer=3 of an encoder of 2 layers"):
        system(layer=3)
    with pytest.raises(ValueError, match="hop=500 is not a multiple"):
        system(hop=500)
