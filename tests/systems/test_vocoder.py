"""The vocoder: HiFi-GAN's size, lengths, what a frame depends on, losses by hand, invariances, one golden step, and copies that sound alike."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.vocoder import get_config
from ns2_jax import inference
from ns2_jax.layers.vocoder import Vocoder
from ns2_jax.systems.system import make, shapes
from tests import goldens, meshes, tiny

KEY = jax.random.key(1)
jit = functools.partial(jax.jit, compiler_options=meshes.FAST)  # most of these tests' time would be compiling
JUDGED = jnp.int32(10)


def system(arg: str = "smoke", **changes):
    return make("vocoder", {**get_config(arg).model.to_dict(), **changes})


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


@pytest.fixture(scope="module")
def grads(started):
    return jit(started[0].grads)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_base_is_hifi_gan_v1():
    """13,926,017 weights and biases, as the published code counts once weight norm is taken off; its five periods 41.1 M."""
    one = system("base")
    params, _ = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, {"b": 1, "s": 8192}))
    gains = lambda tree: sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if "gain" in jax.tree_util.keystr(path))
    assert count(params["gen"]) - gains(params["gen"]) == 13_926_017
    periods = {name: tree for name, tree in params["disc"].items() if name.startswith("Period")}
    scales = {name: tree for name, tree in params["disc"].items() if name.startswith("Scale")}
    assert len(periods) == 5 and len(scales) == 3
    one_period = sum(k * i * o + o for k, i, o in ((5, 1, 32), (5, 32, 128), (5, 128, 512), (5, 512, 1024), (5, 1024, 1024), (3, 1024, 1)))
    assert count(periods) - gains(periods) == 5 * one_period == 41_092_165


def test_small_is_of_the_size_it_says():
    one = system("small")
    params, _ = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, {"b": 1, "s": 12800}))
    assert count(params["gen"]) == 3_623_091


@pytest.mark.parametrize("arg", ["smoke", "smoke,hifigan", "base"])
@pytest.mark.parametrize("frames", [1, 7])
def test_lengths_are_frames_times_hop_exactly(arg, frames):
    net = system(arg).network
    audio, params = jax.eval_shape(lambda key, mel: net.init_with_output(key, mel), jax.random.key(0), jnp.zeros((2, frames, net.mels)))
    assert audio.shape == (2, frames * net.hop) and audio.dtype == jnp.float32
    mel = jax.eval_shape(lambda x: net.apply({}, x, method="encode"), jnp.zeros((2, frames * net.hop)))
    assert mel.shape == (2, frames, net.mels)


def test_judges_that_hear_from_the_first_step_say_the_same_as_those_that_waited(started, grads):
    one, params, rest = started
    always = jit(system(adversarial_from=0).grads)
    # two compilations round gradients of logarithms apart: 6e-5 of a leaf's largest value was seen
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-4 * float(jnp.abs(b).max() + 1)),
                 always(params, rest, batch(), KEY, jnp.int32(0)), grads(params, rest, batch(), KEY, JUDGED))
    text = jax.jit(system(adversarial_from=0).grads).lower(params, rest, batch(), KEY, jnp.int32(0)).as_text()
    assert "stablehlo.case" not in text and "stablehlo.if" not in text


@pytest.mark.parametrize("arg", ["smoke", pytest.param("smoke,hifigan", marks=pytest.mark.slow)])
def test_a_frame_depends_on_what_reach_says_and_not_more(arg):
    net = system(arg).network
    rng = np.random.default_rng(0)
    frames, at = 80, 40
    mel = rng.normal(size=(1, frames, net.mels)).astype(np.float32)
    params = net.init(jax.random.key(0), mel[:, :2])
    run = jit(lambda x: net.apply(params, x))
    changed = mel.copy()
    changed[0, at] += 1.0
    moved = np.abs(np.asarray(run(mel) - run(changed))).reshape(frames, net.hop).max(-1)
    left, right = net.reach("decode")  # frame i hears i - left ... i + right
    touched = np.flatnonzero(moved > 1e-7)
    assert at - right <= touched.min() and touched.max() <= at + left
    assert touched.min() <= at - right + 2 and touched.max() >= at + left - 2


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="multiply to 128, not to hop=256"):
        Vocoder(strides=(8, 8, 2)).init(jax.random.key(0), jnp.zeros((1, 2, 80)))
    with pytest.raises(ValueError, match="kind='vocos'"):
        Vocoder(kind="vocos").init(jax.random.key(0), jnp.zeros((1, 2, 80)))
    with pytest.raises(ValueError, match="reach of 'mel'"):
        Vocoder().reach("mel")


def test_the_input_is_the_hifi_gan_mel_of_librosa():
    """Natural log of Slaney bands to 8 kHz, floored at 1e-5; frames centred on their hop as everywhere here."""
    import librosa

    net = system("base").network
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.normal(size=256 * 12)).astype(np.float32)
    padded = np.pad(audio.astype(np.float64), (384, 384))
    spectra = np.stack([np.abs(np.fft.rfft(padded[i * 256 : i * 256 + 1024] * librosa.filters.get_window("hann", 1024))) for i in range(12)])
    bank = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    want = np.log(np.maximum(spectra @ bank.T, 1e-5))
    np.testing.assert_allclose(net.apply({}, audio[None], method="encode")[0], want, atol=2e-3)


def test_before_training_the_level_is_already_right():
    """The inverse STFT starts from the envelope that the mel describes: log-mels of noise that grows come back in step, a neper too low
    because phases that nobody chose cancel in part."""
    one = system("small")
    audio = np.random.default_rng(0).normal(size=(1, 200 * 64)).astype(np.float32) * np.linspace(0.02, 0.3, 200 * 64, dtype=np.float32)
    mel = one.network.encode(audio)
    made = one.network.apply(one.network.init(jax.random.key(0), mel), mel)
    off = np.asarray(one.network.encode(made) - mel)[:, 4:-4]
    assert abs(off.mean()) < 1.2 and np.corrcoef(np.asarray(mel)[0, 4:-4].mean(-1), (off + np.asarray(mel)[:, 4:-4])[0].mean(-1))[0, 1] > 0.95


def test_losses_by_hand(started, grads):
    """Equations 1 to 5 in numpy from the judges' outputs."""
    one, params, rest = started
    data = batch(4)
    _, _, got = grads(params, rest, data, KEY, JUDGED)
    fake = one.network.apply({"params": params["gen"]}, one.network.encode(data["audio"]))
    real, made = (one.judges.apply({"params": params["disc"]}, x) for x in (data["audio"], fake))
    assert len(real) == one.judges.number
    adversarial = sum(((1 - np.asarray(logits)) ** 2).mean(1) for logits, _ in made).sum()
    features = sum(np.abs(np.asarray(r) - np.asarray(f)).reshape(4, -1).mean(1) for (_, rs), (_, fs) in zip(real, made) for r, f in zip(rs, fs)).sum()
    judged = sum(((1 - np.asarray(r)) ** 2).mean(1) + (np.asarray(f) ** 2).mean(1) for (r, _), (f, _) in zip(real, made)).sum()
    want = {"adversarial": adversarial, "features": features, "discriminator": judged}
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-3)
    np.testing.assert_allclose(got["loss"], one.mel_weight * got["mel"] + adversarial + 2 * features, rtol=1e-3)


def test_the_judges_wait_and_then_every_leaf_learns(started, grads):
    one, params, rest = started
    before, stats, quiet = grads(params, rest, batch(), KEY, JUDGED - 1)
    assert stats == {} and rest == {} and float(quiet["adversarial"]) == float(quiet["discriminator"]) == 0
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(before["disc"])) == 0
    after, _, _ = grads(params, rest, batch(), KEY, JUDGED)
    for path, g in jax.tree_util.tree_leaves_with_path(after):
        assert np.isfinite(g).all() and float(jnp.abs(g).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.slow  # a minute of a core
def test_every_leaf_of_hifi_gan_learns():
    one = system("smoke,hifigan", judge_sizes=(1, 4))
    params, rest = jit(one.init)(jax.random.key(0), batch(2))
    got, _, _ = jit(one.grads)(params, rest, batch(2), KEY, JUDGED)
    for path, g in jax.tree_util.tree_leaves_with_path(got):
        assert np.isfinite(g).all() and float(jnp.abs(g).max()) > 0, jax.tree_util.keystr(path)


def test_micro_batches_add(started, grads):
    one, params, rest = started
    whole = grads(params, rest, batch(), KEY, JUDGED)
    halves = [grads(params, rest, jax.tree.map(lambda x: x[i : i + 4], batch()), KEY, JUDGED) for i in (0, 4)]
    for x, y in zip(jax.tree.leaves((whole[0], whole[2])), jax.tree.leaves(jax.tree.map(lambda a, b: a + b, *((h[0], h[2]) for h in halves)))):
        np.testing.assert_allclose(x, y, atol=1e-3 * (1e-3 + float(jnp.abs(x).max())))


def test_a_row_of_weight_zero_changes_nothing(started, grads):
    one, params, rest = started
    data = batch()
    data["weight"] = data["weight"].at[6:].set(0)
    a = grads(params, rest, data, KEY, JUDGED)
    b = grads(params, rest, data | {"audio": data["audio"].at[6:].multiply(-3.0)}, KEY, JUDGED)
    for x, y in zip(jax.tree.leaves((a[0], a[2])), jax.tree.leaves((b[0], b[2]))):
        np.testing.assert_allclose(x, y, atol=4e-4 * (1e-3 + float(jnp.abs(x).max())))
    assert float(a[2]["weight"]) == 6


def test_the_gradient_is_the_derivative_of_the_generators_loss(started, grads):
    one, params, rest = started
    at = lambda gen: grads({**params, "gen": gen}, rest, batch(), KEY, JUDGED)
    slope = at(params["gen"])[0]["gen"]
    norm, h = optax.global_norm(slope), 1e-3
    moved = lambda sign: jax.tree.map(lambda p, g: p + sign * h * g / norm, params["gen"], slope)
    assert abs((float(at(moved(1))[2]["loss"]) - float(at(moved(-1))[2]["loss"])) / (2 * h) / float(norm) - 1) < 0.01


def train(one, params, rest, steps: int, data):
    tx = optax.adam(2e-3, 0.8, 0.99)

    @jit
    def step(params, opt, i):
        grads, _, metrics = one.grads(params, rest, data, KEY, i)
        weight = metrics["weight"]
        updates, opt = tx.update(jax.tree.map(lambda g: g / weight, grads), opt, params)
        return optax.apply_updates(params, updates), opt, {k: v / weight for k, v in metrics.items()}

    opt, log = tx.init(params), []
    for i in range(steps):
        params, opt, metrics = step(params, opt, jnp.int32(i))
        log.append({k: float(v) for k, v in metrics.items()})
    return params, log


def test_it_learns(started):
    """Judges and all: they enter at step 10."""
    one, params, rest = started
    _, log = train(one, params, rest, 60, batch())
    assert np.mean([m["mel"] for m in log[-5:]]) < 0.6 * log[0]["mel"]


def test_golden_metrics_of_one_training_step(started, grads):
    one, params, rest = started
    got, _, metrics = grads(params, rest, batch(), KEY, JUDGED)
    found = {name: float(value / metrics["weight"]) for name, value in metrics.items() if name != "weight"}
    goldens.check("vocoder", found | {f"grad_norm/{k}": float(optax.global_norm(g) / metrics["weight"]) for k, g in got.items()}, 2e-3)


def test_the_same_on_every_mesh(started):
    one, params, rest = started
    meshes.check_system(one, params, rest, batch(), KEY, step=10)


def test_flops_equal_the_compilers_count():
    for arg in ("small", "small,hifigan"):
        one = system(arg)
        mel = jax.ShapeDtypeStruct((1, 64, 80), jnp.float32)
        params = jax.eval_shape(one.network.init, jax.random.key(0), mel)
        compiled = jax.jit(one.network.apply).lower(params, mel).compile().cost_analysis()["flops"]
        assert 0.85 < one.flops({"b": 1, "t": 64, "s": 12800}) / compiled < 1.02, arg


def test_a_loaded_vocoder_copies_audio_alone_in_a_batch_and_as_a_stream(tmp_path):
    """mel -> wav by itself: lengths exact, the same whatever runs beside it, and piece by piece as in one go."""
    model = inference.load(tiny.write_model("vocoder", tmp_path))
    assert model.unit == "mel" and not model.speaks
    rng = np.random.default_rng(0)
    audios = [rng.normal(size=n).astype(np.float32) * 0.1 for n in (4000, 5130, 12000)]
    mels = model.encode_all(audios)
    assert [mel.shape for mel in mels] == [(20, 20), (25, 20), (60, 20)] and mels[0].dtype == np.float32
    made = model.decode_all(mels)
    assert [len(audio) for audio in made] == [4000, 5000, 12000]
    np.testing.assert_allclose(model.decode(mels[1]), made[1], atol=1e-5)
    streamed = np.concatenate(list(model.decode_stream([mels[2][:7], mels[2][7:]], chunk=16)))
    np.testing.assert_allclose(streamed[400:-400], made[2][400:-400], atol=1e-4)
    again = np.concatenate(list(model.encode_stream([audios[2]], chunk=16)))
    np.testing.assert_allclose(again, mels[2], atol=1e-4)
