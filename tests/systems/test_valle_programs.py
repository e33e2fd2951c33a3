"""VALL-E speaks: cached decoding, how codes are drawn and redrawn, when speech ends, takes ranked, rows that do not touch each other."""

from __future__ import annotations

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ns2_jax.maths import tokens
from ns2_jax.systems.system import shapes
from ns2_jax.systems.valle import System
from ns2_jax.systems.valle.programs import row_keys
from tests.systems.test_valle import END, SIZES, batch, jit, numbers, random, started, system

ASKED = ("phones", "prompt_phones", "prompt_codes", "prompt_frames")


def program(one: System, name: str = "sample", t: int = 20, b: int = 8, **options):
    sizes = {**SIZES, "b": b, "t": t, "s": t * one.codec_network.hop, **one.sizes}
    return jit(one.programs()[name].bind(sizes, **options))


@functools.cache
def default(t: int = 20, b: int = 8, **options):
    """The smoke system's `sample`, compiled once for all tests."""
    return program(system(), t=t, b=b, **options)


def keys_of(seed: int) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(8))


@functools.cache
def sampled(seed: int = 0, t: int = 20, **options) -> dict:
    data = batch(system())
    return jax.device_get(default(t, **options)(*started(), {name: data[name] for name in ASKED}, keys_of(seed)))


# Drawing --------------------------------------------------------------------------------------------------------------


LOGITS = jnp.log(jnp.array([0.4, 0.05, 0.3, 0.15, 0.1]))
DRAWS = 20_000


def same_law(codes: np.ndarray, law: np.ndarray) -> float:
    """p of a chi-square test; 0 where something came that cannot."""
    seen, possible = np.bincount(codes, minlength=len(law)), law > 0
    if seen[~possible].any():
        return 0.0
    if possible.sum() == 1:
        return 1.0
    return scipy.stats.chisquare(seen[possible], law[possible] * len(codes)).pvalue


def drawn(p: float, recent: list[int], **options) -> tuple[np.ndarray, np.ndarray]:
    keys = jax.random.split(jax.random.key(7), DRAWS)
    given = jnp.broadcast_to(LOGITS, (DRAWS, 5)), jnp.broadcast_to(jnp.array(recent, jnp.int32), (DRAWS, len(recent)))
    return tuple(np.asarray(x) for x in jit(functools.partial(tokens.repetition_aware, p=p, share=0.1, **options))(keys, *given))


def nucleus_law(p: float) -> np.ndarray:
    law, order, total = np.zeros(5), np.argsort(-np.asarray(LOGITS)), 0.0
    for k in order:
        law[k] = np.exp(LOGITS[k])
        total += law[k]
        if total >= p - 1e-6:
            break
    return law / law.sum()


@pytest.mark.parametrize("p, kept", [(0.0, 1), (0.5, 2), (0.8, 3), (1.0, 5)])
def test_draws_follow_the_nucleus(p, kept):
    law = nucleus_law(p)
    codes, again = drawn(p, [])
    assert (law > 0).sum() == kept and same_law(codes, law) > 1e-3 and not again.any()
    assert same_law(codes, np.roll(law, 1)) < 1e-9  # the test can fail


@pytest.mark.parametrize("trigger, earlier", [("with_itself", 1), ("without_itself", 2)])
@pytest.mark.parametrize("redraw", ["all", "others"])
def test_the_law_of_redrawing(trigger, earlier, redraw):
    """In a window of ten code 0 came once, code 2 twice: P(c) = nucleus(c) where c does not trigger, plus what is redrawn of all (or of others)."""
    recent = [0, 2, 1, 2, 9, 9, 8, 8, 7, -1]
    codes, again = drawn(0.8, recent, trigger=trigger, redraw=redraw)
    first, full = nucleus_law(0.8), np.exp(np.asarray(LOGITS, np.float64))
    triggers = np.array([recent.count(c) >= earlier for c in range(5)])
    assert triggers[0] == (earlier == 1) and triggers[2]
    law = first * ~triggers
    for c in np.flatnonzero(triggers):
        other = np.where(np.arange(5) == c, redraw == "all", 1) * full
        law += first[c] * other / other.sum()
    assert same_law(codes, law) > 1e-3
    assert again.mean() == pytest.approx((first * triggers).sum(), abs=0.02)


def test_a_loop_is_left():
    """With 0.99 on one code, the nucleus repeats for ever; repetition-aware sampling leaves it as often as the law says."""
    logits = jnp.log(jnp.array([[0.99, 0.01]]))
    keys = jax.random.split(jax.random.key(1), 5000)
    codes, again = tokens.repetition_aware(keys, jnp.repeat(logits, 5000, 0), jnp.zeros((5000, 0), jnp.int32), 0.8, 0.1)
    assert not codes.any() and not again.any()
    codes, again = tokens.repetition_aware(keys, jnp.repeat(logits, 5000, 0), jnp.zeros((5000, 10), jnp.int32), 0.8, 0.1)
    assert again.all() and float(codes.mean()) == pytest.approx(0.01, abs=0.004)
    with pytest.raises(ValueError, match="trigger='twice'"):
        tokens.repetition_aware(keys, jnp.repeat(logits, 5000, 0), jnp.zeros((5000, 10), jnp.int32), 0.8, 0.1, "twice")


def test_rows_are_joined_without_a_gap():
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 9, (4, 3)), rng.integers(1, 9, (4, 5))
    n, m = np.array([3, 0, 2, 1]), np.array([5, 2, 0, 4])
    found, edge = (np.asarray(tokens.join(jnp.asarray(a), n, jnp.asarray(b), m, edge=e)) for e in (False, True))
    for i in range(4):
        whole = np.concatenate([a[i, : n[i]], b[i, : m[i]]])
        np.testing.assert_array_equal(found[i], np.pad(whole, (0, 8 - len(whole))))
        np.testing.assert_array_equal(edge[i], np.pad(whole, (0, 8 - len(whole)), mode="edge"))


# Speech ---------------------------------------------------------------------------------------------------------------


def test_programs_keep_their_promises():
    """Shapes, unknown options, and float32 products that accelerators must not round."""
    one = system()
    sizes = {**SIZES, **one.sizes, "s": SIZES["t"] * one.codec_network.hop}
    state = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, sizes))
    for name, spec in one.programs().items():
        inputs = shapes(spec.inputs, sizes)
        out = jax.eval_shape(spec.bind(sizes), *state, inputs, jax.random.key(0))
        assert {k: (v.shape, v.dtype) for k, v in out.items()} == {k: (v.shape, v.dtype) for k, v in shapes(spec.outputs, sizes).items()}, name
        text = str(jax.make_jaxpr(spec.bind(sizes))(*state, inputs, jax.random.key(0)))
        products = len(re.findall(r"= (?:dot_general|conv_general_dilated)\[", text))
        assert len(re.findall(r"precision=\(Precision.HIGHEST, Precision.HIGHEST\)", text)) == products, name
        assert products or name == "durations"
    with pytest.raises(ValueError, match="unknown option 'steps'"):
        one.programs()["sample"].bind(sizes, steps=3)


def test_without_its_cache_it_says_the_same():
    cached, again = sampled(), sampled(cache=False)
    assert cached["frames"].min() < 20 or not cached["ended"].all()
    for name in ("codes", "frames", "ended", "again", "durations"):
        np.testing.assert_array_equal(cached[name], again[name], err_msg=name)
    np.testing.assert_allclose(cached["audio"], again["audio"], atol=1e-5)


@pytest.mark.parametrize("group", [4])
def test_grouped_codes_are_those_that_the_whole_model_draws(group):
    """Greedy codes, teacher-forced through the loss's own pass, are its most likely ones: cache, positions and groups are right."""
    one = system(group=group)
    params, rest = random(one)
    data = batch(one)
    run = program(one, top_p=0.0, repetition_window=0, least=20)
    out = jax.device_get(run(params, rest, {name: data[name] for name in ASKED}, jax.random.key(0)))
    assert (out["frames"] == 20).all()
    whole = data | {"codes": out["codes"].astype(np.uint16), "frames": out["frames"]}
    text = one.joined_text(whole)
    level = tokens.join(whole["prompt_codes"], whole["prompt_frames"], whole["codes"], whole["frames"], edge=True)[..., 0]
    target = one.grouped(level, one.skipped(whole), whole["prompt_frames"] + whole["frames"], -(-30 // group) + 1)
    prompt = whole["prompt_frames"] // group
    logits, _ = jit(lambda *args: one.coarse.apply({"params": params["ar"]}, *args))(text, target[:, :-1], prompt + 20 // group)
    best = np.asarray(logits)[..., :END].argmax(-1)
    for i in range(8):
        np.testing.assert_array_equal(best[i, prompt[i] : prompt[i] + 20 // group].reshape(-1), out["codes"][i, :, 0])


def test_the_end_inside_a_group_keeps_the_codes_before_it():
    one = system(group=4)
    params, rest = random(one)
    data, places = batch(one), iter(range(1000))

    def script(keys, logits, recent, *_):
        """The first row ends at the third place of its first group, the second at the first of it, the others never."""
        place = next(places) % 4
        ends = (jnp.arange(8) == 0) & (place == 2) | (jnp.arange(8) == 1) & (place == 0)
        return jnp.where(ends, END, 3 + place), jnp.zeros(8, bool)

    with mock.patch.object(tokens, "repetition_aware", script):
        run = jit(lambda: one.generate(params["ar"], {n: data[n] for n in ASKED}, jax.random.split(jax.random.key(0), 8), 18, 1.0, 0.8, 10,
                                           0.1, "with_itself", "all", True, 0))
        out = jax.device_get(run())
    assert out["frames"].tolist() == [2, 0] + [18] * 6 and out["ended"].tolist() == [1, 1] + [0] * 6
    assert out["codes"][0].tolist() == [3, 4] + [0] * 16 and out["codes"][2].tolist() == ([3, 4, 5, 6] * 5)[:18]


def test_the_length_guard():
    """A model that would end at once speaks 0.3 of what is expected, and a frame a phone; one that never would, twice of it or 1.5 s."""
    one, data = system(tied=False), batch(system())
    params, rest = random(one)
    inputs = {name: data[name] for name in ASKED}
    call = program(one, t=150)

    def run(bias: float) -> dict:
        params["ar"]["head"]["bias"] = np.where(np.arange(END + 1) == END, bias, 0).astype(np.float32)
        return jax.device_get(call(params, rest, inputs, jax.random.key(0)))

    phones, said = (data["phones"] > 0).sum(1), (data["prompt_phones"] > 0).sum(1)
    expected = phones * np.clip(data["prompt_frames"] / said, 6.5 / 3, 3 * 6.5)
    soon, never = run(1e4), run(-1e4)
    np.testing.assert_array_equal(soon["frames"], np.maximum(np.ceil(0.3 * expected - 1e-4), phones))
    np.testing.assert_array_equal(never["frames"], np.minimum(np.maximum((2 * expected + 1e-4).astype(int), 120), 150))
    assert soon["ended"].all() and not never["ended"].any()
    room = jax.device_get(program(one, "durations")(params, rest, {n: inputs[n] for n in one.programs()["durations"].inputs}, jax.random.key(0)))
    np.testing.assert_array_equal((room["durations"] > 0), data["phones"] > 0)
    assert (room["durations"].sum(1) >= 1.5 * expected - 1e-3).all() and (room["durations"].sum(1) < 1.5 * expected + phones + 1).all()


def test_a_row_is_the_same_alone_in_a_batch_and_in_another_bucket():
    data, together, keys, alone = batch(system()), sampled(3), keys_of(3), default(b=1)
    assert (jax.random.key_data(row_keys(jax.random.key(3), 8)) == jax.random.key_data(keys)).all()
    for i in (1, 6):
        found = jax.device_get(alone(*started(), {name: data[name][i : i + 1] for name in ASKED}, keys[i : i + 1]))
        for name in ("codes", "frames", "durations"):
            np.testing.assert_array_equal(found[name][0], together[name][i], err_msg=name)
    seed = next(seed for seed in range(30) if sampled(seed)["ended"].any())
    narrow, wide = sampled(seed), sampled(seed, t=24)
    short = narrow["ended"] == 1  # the others were cut at the bucket
    np.testing.assert_array_equal(wide["codes"][short, :20], narrow["codes"][short])
    other = sampled(4)
    assert any((other["codes"][i] != together["codes"][i]).any() for i in range(8))


def test_speech_is_where_its_frames_are():
    out = sampled()
    for i, n in enumerate(out["frames"]):
        assert (out["audio"][i, n * 200 :] == 0).all() and (out["codes"][i, n:] == 0).all() and np.isfinite(out["audio"][i]).all()
        assert np.abs(out["audio"][i, : n * 200]).max() > 0
    there = batch(system())["phones"] > 0
    assert ((out["durations"] > 0) == there).all() and (out["durations"].sum(1) == out["frames"]).all()


@pytest.mark.parametrize("changes", [{"guide_weight": 0.0}])
def test_without_a_guided_head_times_are_even(changes):
    one = system(**changes)
    given = {"phones": np.array([[3, 4, 5, 0], [3, 4, 0, 0]]), "prompt_phones": np.array([[1, 0, 0, 0]] * 2)}
    found = one._durations(given, None, jnp.array([10, 3]), 12)
    assert np.asarray(found).tolist() == [[3, 3, 4, 0], [1, 2, 0, 0]]


def test_finer_levels_are_the_most_likely_ones_given_those_above():
    one, data, (params, _) = system(), batch(system()), started()
    out = sampled()
    inputs = data | {"codes": out["codes"].astype(np.uint16), "frames": out["frames"]}
    text = one.joined_text(inputs)
    codes = tokens.join(inputs["prompt_codes"], inputs["prompt_frames"], inputs["codes"], inputs["frames"])
    at = np.arange(30)[None]
    mask, prompted = at < (inputs["prompt_frames"] + inputs["frames"])[:, None], at < inputs["prompt_frames"][:, None]
    run = jit(lambda level: one.fine.apply({"params": params["nar"]}, text, codes, mask, prompted, level))
    total = np.zeros(8)
    for level in (1, 2):
        logits = np.asarray(run(jnp.full(8, level)))
        target = mask & ~prompted
        np.testing.assert_array_equal(logits.argmax(-1)[target], np.asarray(codes)[..., level][target])
        total += np.where(target, logits.max(-1) - np.asarray(jax.nn.logsumexp(logits, -1)), 0).sum(-1)
    np.testing.assert_allclose(out["likelihood"], total / (2 * out["frames"]), rtol=1e-3)


def test_of_several_takes_the_likeliest_that_ended_is_kept():
    data, keys, run = batch(system()), keys_of(0), default()
    inputs = {name: data[name] for name in ASKED}
    takes = [jax.device_get(run(*started(), inputs, jax.vmap(lambda key: jax.random.fold_in(key, k))(keys))) for k in range(3)]  # noqa: B023
    best = jax.device_get(default(best_of=3)(*started(), inputs, keys))
    chosen = set()
    for i in range(8):
        rank = [(take["ended"][i], take["likelihood"][i]) for take in takes]
        pick = max(range(3), key=lambda k: rank[k])  # noqa: B023
        chosen.add(pick)
        np.testing.assert_array_equal(best["codes"][i], takes[pick]["codes"][i])
        np.testing.assert_allclose(best["likelihood"][i], takes[pick]["likelihood"][i], rtol=1e-4)
    assert len(chosen) > 1


def test_the_cache_takes_the_memory_that_is_said():
    for changes in ({}, {"group": 2}):
        one = system(**changes)
        data = jax.eval_shape(lambda: {name: jnp.asarray(batch(one)[name]) for name in ASKED})  # noqa: B023
        params = jax.eval_shape(one.init, jax.random.key(0), batch(one))[0]
        seen = []
        stack = type(one.coarse.trunk(parent=None))
        plain = stack.cache

        def watched(self, kept, slots):
            made = plain(self, kept, slots)  # noqa: B023
            seen.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(made)))  # noqa: B023
            return made

        with mock.patch.object(stack, "cache", watched):
            jax.eval_shape(lambda params, data: one.generate(  # noqa: B023
                params["ar"], data, jax.random.split(jax.random.key(0), 8), 20, 1.0, 0.8, 10, 0.1, "with_itself", "all", True, 0), params, data)
        assert seen == [one.cache_bytes({**SIZES, **one.sizes})]
    base = make_base()
    assert base.cache_bytes({"b": 1, "t": 1600, "p": 400, "u": 800}) == 2 * 12 * (800 + 1 + 800 + 1600) * 1024 * 4


def make_base() -> System:
    return System(**numbers("base"))


def test_encode_and_decode_are_the_codec_of_the_first_levels():
    one, (params, rest) = system(), started()
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 2400)).astype(np.float32)
    codes = jit(one.programs()["encode"].bind({}))(params, rest, {"audio": audio}, jax.random.key(0))["codes"]
    assert codes.shape == (2, 12, one.levels) and codes.dtype == jnp.int32 and one.levels < one.codec_levels
    decoded = jit(one.programs()["decode"].bind({}))(params, rest, {"codes": codes}, jax.random.key(0))["audio"]
    net = one.codec_network
    z = sum(jnp.asarray(rest["codec"]["rest"]["codebooks"])[j][codes[..., j]] for j in range(one.levels))
    expected = jit(functools.partial(net.apply, method="decode"))({"params": rest["codec"]["params"]["gen"]}, z)
    np.testing.assert_allclose(decoded, expected, atol=1e-5)
