"""Distillation as a system: what it starts from, what it learns and leaves alone, and a student that becomes a model of its teacher's kind."""

from __future__ import annotations

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.distill import get_config
from ns2_jax import export, inference
from ns2_jax.maths import samplers
from ns2_jax.runtime import checkpoints, optim, state, weights
from ns2_jax.runtime import step as steps
from ns2_jax.systems import system as systems
from ns2_jax.systems.distill import System, merged
from tests import goldens, meshes, tiny
from tests.systems import test_grad_stylespeech as grad
from tests.systems import test_naturalspeech2 as ns2

KEY = jax.random.key(1)
SMALLER = {"student": {"phone_encoder": {"hidden": 24}, "denoiser": {"width": 16, "filters": 32}}, "whole": True, "teacher_steps": 1}


def system(arg: str = "smoke", **changes) -> System:
    return systems.make("distill", merged(get_config(arg).model.to_dict(), changes))


@functools.cache
def started() -> tuple:
    """(params, rest): the student is its teacher, whose weights are the noisy ones of NaturalSpeech 2's tests, and does not hear the factor yet."""
    params, rest = ns2.started()
    boxed = system().learner.networks["guidance"].init(jax.random.key(2), jnp.ones(1))["params"]
    strength = jax.device_get(nn.meta.unbox(boxed))
    return {**params, "guidance": strength}, {**rest, "teacher": {"params": params}}


def run(call, *args):
    return jax.device_get(meshes.compiled(jax.jit(call), *args)(*args))


def quiet(one: System, b: int = 8, t: int = 24, step: int = 0, **changes) -> dict:
    return one.draws(jax.random.key(5), b, t, jnp.int32(step)) | {"dropout": None} | changes


# What it starts from --------------------------------------------------------------------------------------------------


def test_the_student_begins_as_its_teacher_and_its_teacher_guided_is_another():
    """One step of one evaluation: nothing to learn where the factor is 1, and something where it is not."""
    one, data = system(teacher_steps=1), ns2.batch(ns2.system())

    def losses(params, rest, draws):
        return [one.loss_given(params, rest, data, draws | {"factor": jnp.full(8, w)})[1][1]["match"] for w in (1.0, 2.0)]

    plain, guided = run(losses, *started(), quiet(one))
    assert abs(plain) < 1e-6 * guided and guided > 0


def test_init_from_fills_teacher_and_student_and_leaves_what_is_fresh(tmp_path):
    one, (params, rest) = system(), started()
    tiny.write_model("naturalspeech2", tmp_path)
    source = weights.read_weights(tmp_path)
    empty = {"params": params, "rest": rest, "ema": params}
    filled = checkpoints.fill(jax.tree.map(jnp.asarray, empty), {"params": str(tmp_path), "rest/teacher": str(tmp_path)}, one.fresh)
    for tree in ({k: v for k, v in filled["params"].items() if k != "guidance"}, filled["rest"]["teacher"]["params"]):
        assert max(meshes.differences(source["params"], tree).values()) == 0
    assert max(meshes.differences(params["guidance"], filled["params"]["guidance"]).values()) == 0
    with pytest.raises(checkpoints.Mismatch, match="params/guidance"):
        checkpoints.fill(jax.tree.map(jnp.asarray, empty), {"params": str(tmp_path)})


def test_a_teacher_of_other_numbers_is_refused(tmp_path):
    one, config = system(), get_config("smoke")
    folder = tiny.write_model("naturalspeech2", tmp_path)
    with pytest.raises(ValueError, match="has a teacher of another run"):
        weights.check_borrowed(config, one.borrowed)
    config.init_from = {"rest/teacher": folder, "rest/codec": folder}
    weights.check_borrowed(config, one.borrowed)
    weights.codec_of(config, one.fields)  # whose numbers are among the teacher's
    config.model.teacher.whiten = 0.25
    with pytest.raises(ValueError, match="model.teacher.whiten is 0.25, the teacher of init_from, .* with 1.0"):
        weights.check_borrowed(config, one.borrowed)
    config.model.of = "grad_stylespeech"
    with pytest.raises(ValueError, match="is of system 'naturalspeech2' and is no grad_stylespeech"):
        weights.check_borrowed(config, one.borrowed)


def test_a_config_reads_its_teacher(tmp_path):
    """Numbers, data and what fills the state, from the folder alone; a smaller student does not begin with the teacher's params."""
    folder = tiny.write_model("naturalspeech2", tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    about["model"]["whiten"], about["init_from"] = 0.25, {"rest/codec": "CODEC"}
    (tmp_path / "config.json").write_text(json.dumps(about))
    config = get_config(f"smoke,few,teacher={folder}")
    assert config.model.teacher.whiten == 0.25 and config.init_from.to_dict() == {"rest/teacher": folder, "params": folder, "rest/codec": "CODEC"}
    assert config.model.evaluations == 4 and systems.make("distill", config.model.to_dict()).becomes["model"]["whiten"] == 0.25
    assert "params" not in get_config(f"smoke,compress,teacher={folder}").init_from
    other = get_config(f"smoke,teacher={tiny.write_model('grad_stylespeech', tmp_path)}")  # whose kind the folder says
    assert other.model.of == "grad_stylespeech" and other.optim.b2 == 0.99 and other.data.transform == "speaker_prompt"
    with pytest.raises(ValueError, match="there is no nowhere/config.json"):
        get_config("smoke,teacher=nowhere")


@pytest.mark.parametrize("changes, message", [
    ({"objective": "mean"}, "objective='mean'"), ({"teacher_steps": 0}, "teacher_steps=0"), ({"sampler": "dpm"}, "sampler='dpm'"),
    ({"student": {"objective": "flow"}}, "different processes")])
def test_wrong_numbers_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        system(**changes)


def test_a_teacher_that_predicts_noise_is_refused():
    with pytest.raises(ValueError, match="cannot be distilled"):
        system("smoke,grad_stylespeech", teacher={"prediction": "eps", "weighting": "eps"})


# Draws ----------------------------------------------------------------------------------------------------------------


def test_few_evaluations_are_learned_where_they_are_made():
    """On the sampler's own times, from each to the next; the teacher's steps between are those of a student of twice the evaluations."""
    one = system("smoke,few", teacher_steps=2)
    path = np.asarray(one.draws(KEY, 64, 2, 0)["path"])
    rows = samplers.table("sway", one.learner.process, 4)
    alpha, sigma = one.learner.process.alpha(np.float64(rows["t"])), one.learner.process.sigma(np.float64(rows["t"]))
    places = np.append(sigma / (alpha + sigma), 0.0)
    where = np.abs(path[0][:, None] - places).argmin(1)
    assert np.bincount(where).tolist() == [16] * 4
    np.testing.assert_allclose(path[0], places[where], atol=1e-4)
    np.testing.assert_allclose(path[2], places[where + 1], atol=1e-4)
    twice = samplers.table("sway", one.learner.process, 8)
    alpha, sigma = one.learner.process.alpha(np.float64(twice["t"])), one.learner.process.sigma(np.float64(twice["t"]))
    np.testing.assert_allclose(path[1], (sigma / (alpha + sigma))[2 * where + 1], atol=1e-4)
    np.testing.assert_allclose(path[0], (sigma / (alpha + sigma))[2 * where], atol=1e-4)


def test_steps_from_anywhere_reach_the_noisy_end_and_never_turn_back():
    one = system()
    drawn = jax.vmap(lambda key: one.draws(key, 16, 2, 0))(jax.random.split(KEY, 50))
    path, noise = np.moveaxis(np.asarray(drawn["path"]), 1, 0).reshape(3, -1), np.asarray(drawn["noise"])
    top = float(one.grid(1)[0])
    assert path[0].max() > 0.99 * top and 0.02 <= path[0].min() < 0.05 and (np.diff(path, axis=0) < 0).all() and (path >= 0).all()
    assert -np.diff(path, axis=0).max() <= 0.3 and np.histogram(path[0], 4, (0.02, top))[0].min() > 150
    factor = np.asarray(drawn["factor"])
    assert 1 <= factor.min() < 1.1 and 2.9 < factor.max() <= 3
    size = np.sqrt(np.square(noise).mean((-1, -2)))
    cool = get_config("smoke").model.coolest
    assert size.min() < cool + 0.1 and size.max() > 0.95


def test_consistency_strides_shrink_and_stop_at_the_end_of_their_segment():
    one = system("smoke,consistency", evaluations=2, strides=(0.1, 0.02, 100))
    for step, stride in ((0, 0.1), (50, 0.06), (100, 0.02), (1000, 0.02)):
        begin, near, end = np.asarray(one.draws(KEY, 64, 2, jnp.int32(step))["path"])
        np.testing.assert_allclose(np.unique(end), one.grid(2)[:0:-1], atol=1e-6)
        assert (near >= end).all() and (begin > near).all()
        inside = near > end
        np.testing.assert_allclose((begin - near)[inside], stride, atol=1e-5)
        assert inside.any() and (begin - near <= stride + 1e-5).all()
        assert begin.max() > 0.98 * one.grid(2)[0]


def test_lines_begin_as_sampling_does_and_real_pairs_are_without_guidance():
    """A quarter of the rows, told factor 1 and shown all of the noise; the teacher's way is the sampler's."""
    one = system("smoke,rectified")
    drawn = jax.vmap(lambda key: one.draws(key, 16, 2, 0))(jax.random.split(KEY, 50))
    real, factor = np.asarray(drawn["real"]), np.asarray(drawn["factor"])
    assert 0.18 < real.mean() < 0.32 and (factor[real] == 1).all() and (factor[~real] > 1).all()
    size = np.sqrt(np.square(np.asarray(drawn["noise"])).mean((-1, -2)))
    assert size[real].mean() > 0.95 > size[~real].mean()
    rows = samplers.table("sway", one.learner.process, 8)
    alpha, sigma = one.learner.process.alpha(np.float64(rows["t"])), one.learner.process.sigma(np.float64(rows["t"]))
    np.testing.assert_allclose(drawn["path"][0, :-1, 0], sigma / (alpha + sigma), atol=1e-4)


@pytest.mark.parametrize("arg, sampler, steps", [
    ("smoke", "sway", 8), ("smoke,few", "sway", 4), ("smoke,consistency", "renoise", 1), ("smoke,few,consistency", "sway", 4)])
def test_a_student_samples_as_it_has_learned(arg, sampler, steps):
    """A consistency student of one segment knows the way to the data alone; one of several the way to the end of each."""
    for word in ("", ",flow", ",flow,grad_stylespeech"):
        assert system(arg + word).learner.objective == ("flow" if word else "paper")
    options = system(arg).learner.programs()["sample"].options
    assert (options["sampler"], options["steps"], options["guidance"]) == (sampler, steps, 2.0)


# Loss -----------------------------------------------------------------------------------------------------------------


def test_the_denoiser_that_is_distilled_is_the_one_that_samples():
    """Guided, at one time, of the mels themselves; the sampler's is of what is left of them without the average."""
    one, data = grad.system(prediction="v", weighting="v"), grad.batch(grad.system())
    data["prompt_audio"] *= np.repeat(np.arange(10) < data["prompt_frames"][:, None], grad.HOP, 1)
    params, rest = grad.started()
    z, w = np.random.default_rng(0).normal(size=(8, 24, grad.MELS)).astype(np.float32), 2.0

    def both(params, data):
        seen = one.denoising(params, rest, data)
        denoise, mu, mask = one._denoiser(params, data | {"prompt_mel": one.vocoder_network.encode(data["prompt_audio"])}, 24, w, 0)
        t = jnp.float32(0.4)
        residual = denoise(z * mask[..., None] - one.process.alpha(t) * mu, t)
        return seen.denoise(z * mask[..., None], jnp.full(8, t), jnp.full(8, w)), (residual + mu) * mask[..., None], seen.x0

    found, expected, mels = run(both, params, data)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert mels.shape == found.shape and np.abs(found).max() > 0.1


@pytest.mark.parametrize("guided", [False, True])
def test_the_latents_that_are_distilled_are_those_that_are_sampled(guided):
    one, data = system().learner if guided else ns2.system(), ns2.batch(ns2.system())
    params, rest = started() if guided else ns2.started()
    params, z = grad.stirred(params), np.random.default_rng(0).normal(size=(8, 24, ns2.system().sizes["c"])).astype(np.float32)

    def both(params, rest, data):
        seen = one.denoising(params, rest, data)
        valid = jnp.arange(24) < data["frames"][:, None]  # those of training know the offset of the pitch's phase
        offset, _ = one.call(params, "phase", "read", one.latents(rest, data["codes"], valid), data["f0"] * valid)
        denoise, mask = one._denoiser(params, rest, data, 24, 2.5, 0, offset)
        z_in = z * mask[..., None]
        return seen.denoise(z_in, jnp.full(8, 0.4), jnp.full(8, 2.5)), denoise(z_in, jnp.float32(0.4)), seen.weight

    found, expected, weight = run(both, params, rest, data)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert weight.sum() == data["frames"].sum()


def test_both_calls_of_a_consistency_student_drop_out_the_same():
    """Where the teacher does not move the state, the student's two steps are one and the same, dropout or not."""
    one, data, given = system("smoke,consistency"), ns2.batch(ns2.system()), started()
    loss = lambda params, rest, draws: one.loss_given(params, rest, data, draws)[1][1]["square"]
    draws = quiet(one, dropout=jax.random.key(6))
    begin, near, end = draws["path"]
    call = meshes.compiled(jax.jit(loss), *given, draws)
    still, moved = float(call(*given, draws | {"path": jnp.stack([begin, begin, end])})), float(call(*given, draws))
    assert still < 1e-6 * moved
    assert moved != pytest.approx(float(call(*given, draws | {"dropout": jax.random.key(7)})), rel=1e-4)


def test_bucket_padding_changes_neither_loss_nor_gradients():
    one, data = system("smoke,consistency"), ns2.batch(ns2.system())
    draws = quiet(one)
    wide = draws | {"noise": jnp.pad(draws["noise"], ((0, 0), (0, 8), (0, 0)), constant_values=4.0)}
    call = jax.value_and_grad(lambda params, rest, data, draws: one.loss_given(params, rest, data, draws)[0])
    ns2.assert_close(run(call, *started(), data, draws), run(call, *started(), ns2.pad(data, 8, 3, 5), wide))


def test_loss_and_gradients_are_those_of_one_device_on_every_mesh():
    meshes.check_system(system(), *started(), ns2.batch(ns2.system()), jax.random.key(3))


def test_golden_metrics_of_one_training_step():
    """Update golden_distill.json (delete it and run twice) only when a change to the mathematics was intended."""
    grads, _, metrics = run(lambda *x: system().grads(*x, jax.random.key(1), jnp.int32(0)), *started(), ns2.batch(ns2.system()))
    found = {name: float(value / metrics["weight"]) for name, value in metrics.items() if name != "weight"}
    found |= {f"grad_norm/{key}": float(optax.global_norm(grads[key]) / metrics["weight"]) for key in ("denoiser", "guidance")}
    goldens.check("distill", found, 1e-3)


def test_one_step_trains_the_denoiser_and_the_strength_alone():
    """What the config's pattern freezes stays as it is, and so does the teacher."""
    config = get_config("smoke")
    one, (params, rest) = system(), started()
    optimiser = optim.make(config)
    begun = {"step": jnp.int32(0), "params": params, "rest": rest, "opt": optimiser.init(params), "ema": params}
    after, metrics = run(steps.make_step(one, optimiser, config), begun, ns2.batch(ns2.system()))
    old, new = state.flatten(params), state.flatten(after["params"])
    moved = {path.split("/")[0] for path, leaf in new.items() if np.any(leaf != np.asarray(old[path]))}
    assert moved == {"denoiser", "guidance"}
    assert max(meshes.differences(rest, after["rest"]).values()) == 0
    assert metrics["match"] > 0 and metrics["grad_norm"] > 0 and not metrics["halted"]


@pytest.mark.parametrize("arg, changes", [
    pytest.param("smoke,rectified", {}, marks=pytest.mark.slow), pytest.param("smoke", SMALLER, marks=pytest.mark.slow),
    ("smoke,grad_stylespeech", {})], ids=str)
def test_every_objective_and_kind_has_finite_gradients(arg, changes):
    """Of a student that learns everything in every network, of the others where they learn."""
    one = system(arg, **changes)
    data = (grad if one.of == "grad_stylespeech" else ns2).batch(one.taught)
    params, rest = run(one.init, KEY, data)
    params = grad.stirred(params)
    grads, _, metrics = run(lambda *x: one.grads(*x, jax.random.key(8), jnp.int32(3)), params, rest, data)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((grads, metrics))) and metrics["match"] > 0
    learning = params if one.whole else [key for key in ("denoiser", "score", "guidance") if key in params]
    assert all(float(optax.global_norm(grads[key])) > 1e-6 for key in learning)


# The student ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, lowest, highest", [("small", 0.2, 0.32), ("base", 0.09, 0.13)])
def test_a_compressed_student_has_the_size_it_says(size, lowest, highest):
    """A quarter of small, and an eighth of base with the codec: 435 M become 53 M."""
    one = system(f"{size},compress")
    params, rest = jax.eval_shape(one.init, KEY, systems.shapes(one.fields, {"b": 2, "t": 16, "p": 6, "u": 8, **one.sizes}))
    codec = state.count(rest["codec"]) if size == "base" else 0
    share = (state.count(params) + codec) / (state.count(rest["teacher"]) + codec)
    assert lowest < share < highest
    if size == "base":
        assert 52e6 < state.count(params) + codec < 54e6


def test_the_export_of_a_student_is_a_model_of_its_teachers_kind(tmp_path, monkeypatch):
    """Without the teacher, with the student's numbers of sampling, and it speaks in one evaluation a step whatever the guidance."""
    run_folder = tiny.write_model("distill", tmp_path / "run")
    monkeypatch.setattr(export, "compare", lambda *args: [])  # of every program, which is proved with other systems
    export.export(run_folder, tmp_path / "x", programs=False)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["system"] == "naturalspeech2" and config["model"]["guided"] and config["model"]["evaluations"] == 8
    stored = weights.read_weights(tmp_path / "x")
    assert set(stored["rest"]) == {"codec"} and set(stored["params"]) == {*ns2.started()[0], "guidance"}
    run_model, model = inference.load(run_folder), inference.load(tmp_path / "x")
    assert type(model.system).__module__ == "ns2_jax.systems.naturalspeech2"
    voice = (np.random.default_rng(0).normal(size=6400).astype(np.float32) * 0.1, 16000)
    speak = lambda model, **options: model.speak("Yes.", voice, steps=2, **options).audio
    np.testing.assert_array_equal(speak(run_model), speak(model))
    assert np.abs(speak(model, guidance=3.0) - speak(model)).max() > 1e-5
    assert "convert" not in model.programs
    again = get_config(f"smoke,few,teacher={tmp_path / 'x'}").model.teacher  # and it can teach
    assert systems.make("distill", get_config(f"smoke,few,teacher={tmp_path / 'x'}").model.to_dict()).taught.guided and again.evaluations == 8
