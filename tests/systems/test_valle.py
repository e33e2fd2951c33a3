"""VALL-E: the paper's sizes, its losses and networks against independent ones, who sees whom, invariances, training, speaking."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.valle import get_config
from ns2_jax.layers.language import StageNorm
from ns2_jax.runtime import weights
from ns2_jax.systems.system import make, shapes
from ns2_jax.systems.valle import System
from tests import goldens, meshes

SIZES = {"b": 8, "t": 20, "p": 6, "u": 10}
jit = functools.partial(jax.jit, compiler_options=meshes.FAST)
END = 32  # the smoke model's number of the end


def numbers(size: str = "smoke", **changes) -> dict:
    """A size's model numbers; a change whose value is a dict changes that network's numbers."""
    model = get_config(size).model.to_dict()
    merge = lambda old, new: {**old, **new} if isinstance(new, dict) else new
    return {**model, **{name: merge(model.get(name), value) for name, value in changes.items()}}


def system(size: str = "smoke", **changes) -> System:
    return make("valle", numbers(size, **changes))


def batch(one: System, b: int = 8, t: int = 20, p: int = 6, u: int = 10, seed: int = 0) -> dict:
    """Random text and codes of unequal lengths; durations sum to frames; the first row is full, the second's prompt is."""
    rng = np.random.default_rng(seed)
    lengths = {"": rng.integers(t // 2, t + 1, b).astype(np.int32), "prompt_": rng.integers(u // 2, u + 1, b).astype(np.int32)}
    lengths[""][0], lengths["prompt_"][1] = t, u
    data = {"weight": np.ones(b, np.float32)}
    for kind, size in (("", t), ("prompt_", u)):
        phones, durations = np.zeros((2, b, p), np.int32)
        for i, total in enumerate(lengths[kind]):
            n = rng.integers(2, min(p, total) + 1)
            phones[i, :n] = rng.integers(1, 60, n)
            cuts = np.sort(rng.choice(np.arange(1, total), n - 1, replace=False))
            durations[i, :n] = np.diff(np.r_[0, cuts, total])
        data |= {f"{kind}phones": phones, f"{kind}durations": durations, f"{kind}frames": lengths[kind],
                 f"{kind}codes": rng.integers(0, one.codes, (b, size, one.levels)).astype(np.uint16)}
    return {name: data[name] for name in one.fields}


def pad(data: dict, t: int, p: int, u: int) -> dict:
    """The same rows in a larger bucket, with rubbish in the padding of codes."""
    extra = {"codes": t, "phones": p, "durations": p, "prompt_codes": u, "prompt_phones": p, "prompt_durations": p}
    wide = lambda name, x: np.pad(x, ((0, 0), (0, extra.get(name, 0))) + ((0, 0),) * (x.ndim - 2), constant_values=7 * name.endswith("codes"))
    return {name: wide(name, x) if x.ndim > 1 else x for name, x in data.items()}


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random(one: System, seed: int = 1) -> tuple:
    """(params, rest) of numbers that leave nothing at zero; nothing is compiled to get them."""
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(one.init, jax.random.key(0), batch(one))
    fill = lambda leaf: (rng.normal(size=leaf.shape) * (0.3 if leaf.ndim > 1 else 0.1)).astype(np.float32)
    params, rest = jax.tree.map(fill, abstract)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "scale":
            leaf += 1.0
    return params, rest


@functools.cache
def started() -> tuple:
    return random(system())


QUIET = {"level": jnp.array([1, 2] * 4), "ar": None, "nar": None}


@functools.cache
def still_value_and_grad():
    one = system()
    return one, jit(jax.value_and_grad(lambda params, data: one.loss_given(params, data, QUIET), has_aux=True))


def assert_close(expected, found, tolerance: float = 2e-4) -> None:
    off = {k: v for k, v in meshes.differences(expected, found).items() if not v < tolerance}
    assert not off, sorted(off.items(), key=lambda x: -x[1])[:5]


# Size -----------------------------------------------------------------------------------------------------------------


def abstract(one: System) -> tuple:
    return jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, {"b": 2, "t": 32, "p": 8, "u": 16, **one.sizes}))


def test_base_meets_the_papers_sizes():
    """AR 152.6 M, NAR 212 M, as computed from the paper's layout; without its 25 projections the NAR model has 160 M."""
    params, _ = abstract(system("base"))
    assert {name: round(count(tree) / 1e6) for name, tree in params.items()} == {"ar": 153, "nar": 212}
    assert abs(count(params["ar"]) / 152.6e6 - 1) < 0.01 and abs(count(params["nar"]) / 212e6 - 1) < 0.01
    change = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params["nar"]) if "change" in jax.tree_util.keystr(path)]
    assert sum(leaf.size for leaf in change) == 25 * (1024 * 2048 + 2048)
    assert sum(leaf.shape[0] if leaf.ndim == 3 else 1 for leaf in change if leaf.ndim > 1 and leaf.shape[-2:] == (1024, 2048)) == 25
    table, _ = abstract(system("base", norms="table"))
    assert abs(count(table["nar"]) / 160e6 - 1) < 0.01


def test_small_fits_an_int8_export_of_8_megabytes(tmp_path):
    params, _ = abstract(system("small"))
    rng = np.random.default_rng(0)
    weights.write_weights(tmp_path, {"params": jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)}, "int8")
    assert 6e6 < count(params) and (tmp_path / weights.FILE).stat().st_size < 8e6


# Networks -------------------------------------------------------------------------------------------------------------


def reference(params, one: System, text: np.ndarray, groups: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The AR model in numpy, one row: (logits of the first n + 1 groups, where the guided head looks), with no padding."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    text, groups = text[text > 0], groups[:n]
    d, heads = one.width, one.ar["heads"]

    def sinusoid(length):
        half = d // 2
        angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(half) / (half - 1))
        return np.concatenate([np.sin(angle), np.cos(angle)], -1)

    norm = lambda x, p: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]
    dense = lambda x, p: x @ p["kernel"] + p.get("bias", 0)
    codes = params["table"]["table"][groups] * np.sqrt(d)
    codes = codes[:, 0] if one.group == 1 else dense(codes.reshape(n, -1), params["gather"])
    audio = np.concatenate([params["begin"][None], codes]) + sinusoid(n + 1)
    x = np.concatenate([params["text_table"]["table"][text] * np.sqrt(d) + sinusoid(len(text)), audio])
    p, s = len(text), len(x)
    seen = np.array([[j < p if i < p else j <= i for j in range(s)] for i in range(s)])
    if not one.prefix:
        seen = np.tri(s, dtype=bool)
    looks = None
    for layer in range(one.ar["layers"]):
        own = jax.tree.map(lambda leaf: leaf[layer], params["layers"]["blocks"])
        h = norm(x, own["norm1"]["norm"])
        q, k, v = (dense(h, own["attention"][name]).reshape(s, heads, -1) for name in ("query", "key", "value"))
        logits = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(d // heads)
        if layer == one.ar["guided"]:
            own_logits = logits[0, p:, :p]
            looks = own_logits - np.log(np.exp(own_logits).sum(-1, keepdims=True))
        logits = np.where(seen, logits, -np.inf)
        weight = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = np.einsum("hij,jhd->ihd", weight / weight.sum(-1, keepdims=True), v).reshape(s, d)
        x = x + dense(mixed, own["attention"]["out"])
        h = dense(norm(x, own["norm2"]["norm"]), own["widen"])
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + dense(h, own["narrow"])
    y = norm(x, params["layers"]["norm"]["norm"])[p:]
    if one.group > 1:
        y = dense(y, params["spread"])
    return y.reshape(n + 1, one.group, d) @ params["table"]["table"].T, looks


@pytest.mark.parametrize("changes", [{}, {"group": 2, "prefix": False}], ids=str)
def test_the_ar_model_is_an_independent_one(changes):
    """Logits and the guided head's look, of rows of unequal lengths beside each other: padding is never seen, positions begin at 0 twice."""
    one = system(**changes)
    params, rng = random(one)[0]["ar"], np.random.default_rng(2)
    text = np.array([[3, 9, 4, 0, 0], [7, 8, 5, 2, 6]])
    groups = rng.integers(0, one.codes, (2, 7, one.group))
    n = np.array([7, 4])
    logits, looks = jit(lambda *args: one.coarse.apply({"params": params}, *args))(text, groups, n)
    for i in range(2):
        expected, seen = reference(params, one, text[i], groups[i], n[i])
        np.testing.assert_allclose(logits[i, : n[i] + 1], expected, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(looks[i, : n[i] + 1, : (text[i] > 0).sum()], seen, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_slot_sees_the_text_and_the_past_by_gradient(prefix):
    one = system(prefix=prefix)
    net, params = one.coarse, random(one)[0]["ar"]
    text, s, p = jnp.array([[4, 5, 6, 0]]), 9, 4  # the fourth is padding
    mask = net.apply({"params": params}, text, jnp.array([4]), 4, method="mask")
    x = jax.random.normal(jax.random.key(0), (1, s, one.width))
    run = lambda x: net.trunk(parent=None).apply({"params": params["layers"]}, x, mask)[0][0].sum(-1)
    reach = np.abs(np.asarray(jit(jax.jacobian(run))(x))[:, 0]).sum(-1) > 1e-7
    for i in range(s):
        for j in range(s):
            past = j <= i or (prefix and i < p and j < p) or j < p
            allowed = (past if i >= p or prefix else j <= i) and j != 3
            assert reach[i, j] == (allowed or i == j), (i, j)


def test_the_nar_model_sees_exactly_what_it_may():
    """All levels of the prompt, the target's below the one asked for, all text, everything valid both ways; nothing else."""
    one, params = system(), started()[0]["nar"]
    logits = jit(lambda *args: one.fine.apply({"params": params}, *args))
    rng = np.random.default_rng(0)
    codes, text = rng.integers(0, one.codes, (2, 9, one.levels)), np.array([[3, 4, 5, 0]] * 2)
    prompted, mask = np.arange(9)[None] < np.array([[3], [3]]), np.arange(9)[None] < np.array([[8], [8]])
    level = np.array([1, 2])
    plain = np.asarray(logits(text, codes, mask, prompted, level))

    def moved(frame: int, q: int) -> np.ndarray:
        other = codes.copy()
        other[:, frame, q] = (other[:, frame, q] + 5) % one.codes
        return np.abs(np.asarray(logits(text, other, mask, prompted, level)) - plain)[:, :8].max((1, 2))

    for q in range(one.levels):
        assert (moved(1, q) > 1e-5).all(), q  # in the prompt
        assert ((moved(5, q) > 1e-5) == (q < level)).all(), q  # in the target
        assert (moved(8, q) == 0).all()  # past the end
    for place, seen in ((0, True), (3, False)):
        other = text.copy()
        other[:, place] = 9 * seen
        changed = np.abs(logits(other, codes, mask, prompted, level) - plain).max((1, 2))
        assert ((changed > 1e-5) == seen).all()
    late = codes.copy()
    late[:, 7, 0] = (late[:, 7, 0] + 5) % one.codes
    assert np.abs(logits(text, late, mask, prompted, level) - plain)[:, 3].max() > 1e-5  # the future too


@pytest.mark.parametrize("kind", ["projected", "table"])
def test_norms_by_stage_are_the_papers(kind):
    """`a_i norm(x) + b_i`, a and b linear in the stage's vector, or its own row."""
    net, rng = StageNorm(kind, 3), np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 4)).astype(np.float32)
    stage = rng.normal(size=(2, 4)).astype(np.float32) if kind == "projected" else np.array([2, 0])
    born = nn.meta.unbox(jax.eval_shape(net.init, jax.random.key(0), x, stage))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), born)
    own = params["params"]["change"]
    change = stage @ own["kernel"] + own["bias"] if kind == "projected" else own["table"][stage]
    gain, bias = 1 + change[:, None, :4], change[:, None, 4:]
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(net.apply(params, x, stage), gain * normal + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", [1, 2])
def test_cached_steps_equal_the_whole_at_every_position(group):
    """Rows with prompts of 1 and 3 groups; six more groups, one at a time from the cache, against one pass over all."""
    one = system(group=group)
    net, params, rng = one.coarse, random(one)[0]["ar"], np.random.default_rng(3)
    text, n = np.array([[3, 9, 4, 0, 0], [7, 8, 5, 2, 6]]), np.array([1, 3])
    groups = rng.integers(0, one.codes, (2, 9, group))
    call = lambda method, *args, **more: net.apply({"params": params}, *args, method=method, **more)
    whole, _, looked = jit(functools.partial(call, "run"))(text, groups, n + 6)

    def steps(text, groups):
        y, kept, looks = call("run", text, groups[:, :3], n, keep=True)
        cache, stack = net.trunk(parent=None).cache(kept, 6), net.trunk(parent=None)
        seen = jnp.concatenate([text > 0, jnp.arange(4) <= n[:, None]], 1)
        out = [(y[jnp.arange(2), n], looks[jnp.arange(2), n])]
        for i in range(6):
            x = call("next", groups[jnp.arange(2), n + i], n + 1 + i)
            mask = jnp.concatenate([seen, jnp.broadcast_to(jnp.arange(6) <= i, (2, 6))], 1)
            y, cache, look = stack.step(params["layers"], x, cache, mask, 5 + 4 + i, text > 0)
            out.append((y, look))
        return out

    for i, (y, look) in enumerate(jit(steps)(jnp.asarray(text), jnp.asarray(groups))):
        for row in range(2):
            np.testing.assert_allclose(y[row], whole[row, n[row] + i], atol=1e-5, rtol=1e-5)
            valid = text[row] > 0
            np.testing.assert_allclose(look[row][valid], looked[row, n[row] + i][valid], atol=1e-5, rtol=1e-5)


# Loss -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"group": 2, "prompt_weight": 0.5}, {"group": 4, "tail": "clip", "guide_weight": 0.0}], ids=str)
def test_loss_terms_are_the_papers(changes):
    """Every term again from the rows themselves, without padding: the AR model's from the independent one, the NAR model's from its logits."""
    one = system(**changes)
    data, (params, _) = batch(one, b=3), random(one)
    level = np.array([1, 2, 2])
    loss, (_, metrics) = jax.device_get(jit(lambda params: one.loss_given(params, data, QUIET | {"level": level}))(params))
    g, expected, total = one.group, dict.fromkeys(("ar", "ar_accuracy", "guide", "nar", "nar_accuracy"), 0.0), 0.0
    for i in range(3):
        u, n = data["prompt_frames"][i], data["frames"][i]
        text = np.concatenate([row[row > 0] for row in (data["prompt_phones"][i], data["phones"][i])])
        codes = np.concatenate([data["prompt_codes"][i][:u], data["codes"][i][:n]]).astype(int)
        skip = (u + n) % g if one.tail == "clip" else u % g
        first = codes[skip:, 0]
        full = len(first) // g
        target = np.concatenate([first, np.full(g, END)])[: (full + 1) * g].reshape(full + 1, g)
        logits, looks = reference(params["ar"], one, text, target, full)
        log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
        nats = -np.take_along_axis(log_p, target[..., None], -1)[..., 0]
        begins = np.arange(full + 1) * g + skip
        own = (begins >= u)[:, None] & (target < END)
        expected["ar"] += (nats * own).sum()
        expected["ar_accuracy"] += ((logits.argmax(-1) == target) & own).sum()
        total += (nats * np.where(begins < u, one.prompt_weight, 1.0)[:, None]).sum()
        if one.guide_weight:
            spoken = np.repeat(np.arange(len(text)), np.concatenate(
                [data[f"{kind}durations"][i][data[f"{kind}phones"][i] > 0] for kind in ("prompt_", "")]))
            guide = -looks[np.arange(full + 1), [spoken[min(at, u + n - 1)] for at in begins]].sum()
            expected["guide"] += guide
            total += one.guide_weight * guide
        mask, prompted = np.ones((1, u + n), bool), (np.arange(u + n) < u)[None]
        fine = np.float64(one.fine.apply({"params": params["nar"]}, text[None], codes[None], mask, prompted, level[i : i + 1])[0, u:])
        right = codes[u:, level[i]]
        nar = (np.log(np.exp(fine).sum(-1)) - fine[np.arange(n), right]).sum()
        expected["nar"] += nar
        expected["nar_accuracy"] += (fine.argmax(-1) == right).sum()
        total += nar
    for name, value in expected.items():
        if name in metrics or value:
            assert metrics[name] == pytest.approx(value, rel=1e-3), name
    assert metrics["weight"] == data["frames"].sum() and loss == pytest.approx(total, rel=1e-3)


def test_bucket_padding_changes_neither_loss_nor_gradients():
    _, run = still_value_and_grad()
    data, params = batch(system()), started()[0]
    assert_close(jax.device_get(run(params, data)), jax.device_get(run(params, pad(data, 6, 3, 5))))


def test_a_batch_is_the_sum_of_its_rows_and_weightless_rows_count_nothing():
    _, run = still_value_and_grad()
    data, params = batch(system()), started()[0]
    only = lambda rows: data | {"weight": np.isin(np.arange(8), rows).astype(np.float32)}
    whole, first, rest = (jax.device_get(run(params, x)) for x in (data, only([0, 3, 5]), only([1, 2, 4, 6, 7])))
    assert_close(whole, jax.tree.map(np.add, first, rest))
    nothing = jax.device_get(run(params, only([])))
    assert all((x == 0).all() for x in jax.tree.leaves(nothing))


def test_loss_and_gradients_are_those_of_one_device_on_every_mesh():
    """Groups and projected norms, so that every kind of parameter is there."""
    one = system(group=2, norms="projected", dropout=0.0)
    meshes.check_system(one, *random(one), batch(one), jax.random.key(3))


def test_text_in_units_is_text():
    """The same ids under the other name: the same loss, but for the guide, which needs times."""
    one, plain = system(text="bpe", guide_weight=0.0), system(guide_weight=0.0)
    data, params = batch(plain), started()[0]
    names = {"units": "phones", "prompt_units": "prompt_phones"}
    assert set(one.fields) == set(data) - set(names.values()) | set(names)
    units = {name: data[names.get(name, name)] for name in one.fields}
    losses = [jit(lambda params, given: x.loss_given(params, given, QUIET)[0])(params, given) for x, given in ((one, units), (plain, data))]  # noqa: B023
    assert losses[0] == losses[1]


def test_every_parameter_has_a_finite_gradient_that_is_not_zero():
    one, run = still_value_and_grad()
    data = batch(one)
    grads = jax.device_get(run(started()[0], data)[1])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all(), path
        layers = g if "blocks" in jax.tree_util.keystr(path) else g[None]
        assert all(np.abs(layer).max() > 1e-6 for layer in layers), path


@pytest.mark.parametrize("part", ["ar", "nar"])
def test_each_part_can_be_trained_alone(part):
    """Its gradients are those of both together; the other's are nought. The config freezes the other."""
    _, run = still_value_and_grad()
    one, data = system(parts=(part,)), batch(system())
    alone = jax.device_get(jit(jax.grad(lambda params: one.loss_given(params, data, QUIET)[0]))(started()[0]))
    other = {"ar": "nar", "nar": "ar"}[part]
    assert all((x == 0).all() for x in jax.tree.leaves(alone[other]))
    assert_close(jax.device_get(run(started()[0], data)[1])[part], alone[part])
    config = get_config(f"smoke,{part}")
    assert config.model.parts == (part,) and config.train.frozen == (f"params/{other}/.*",)


def test_wrong_numbers_are_named():
    for changes, message in (({"tail": "cut"}, "tail='cut'"), ({"parts": ("xr",)}, "parts="), ({"levels": 9}, "levels=9"), ({"group": 0}, "group=0"),
                             ({"text": "letters"}, "text='letters'"), ({"text": "bpe"}, "guide_weight"), ({"ar": {"guided": 2}}, "guide_weight")):
        with pytest.raises(ValueError, match=message):
            system(**changes)


# Training -------------------------------------------------------------------------------------------------------------


def test_golden_metrics_of_one_training_step():
    """Update golden_valle.json (delete it and run twice) only when a change to the mathematics was intended."""
    one = system()
    grads, _, metrics = jit(one.grads)(*started(), batch(one), jax.random.key(1), 0)
    found = {name: float(value / metrics["weight"]) for name, value in metrics.items() if name != "weight"}
    found |= {f"grad_norm/{k}": float(optax.global_norm(g) / metrics["weight"]) for k, g in grads.items()}
    goldens.check("valle", found, 1e-4)


def test_loss_falls_on_one_batch():
    one, run = still_value_and_grad()
    data = batch(one)
    params, _ = jit(one.init)(jax.random.key(0), data)
    optimiser = optax.adam(4e-3)

    @jit
    def step(params, opt, grads):
        updates, opt = optimiser.update(jax.tree.map(lambda g: g / data["frames"].sum(), grads), opt)
        return optax.apply_updates(params, updates), opt

    opt, history = optimiser.init(params), []
    for _ in range(80):
        (_, (_, metrics)), grads = run(params, data)
        params, opt = step(params, opt, grads)
        history.append({name: float(m / metrics["weight"]) for name, m in metrics.items()})
    mean = lambda name, part: float(np.mean([m[name] for m in history[part]]))
    assert np.log(33) - 0.1 < mean("ar", slice(0, 3)) < np.log(33) + 1 and np.log(32) - 0.1 < mean("nar", slice(0, 3)) < np.log(32) + 1
    for name, share in (("ar", 0.5), ("nar", 0.7), ("guide", 0.5)):
        assert mean(name, slice(-8, None)) < share * mean(name, slice(0, 8)), (name, mean(name, slice(-8, None)))


def test_flops_are_those_the_compiler_counts():
    """On wide, unrolled layers, where products outweigh elementwise work."""
    wide = dict(width=128, ar=dict(hidden=384, unroll=2), nar=dict(hidden=384, unroll=2), levels=2)
    for changes in ({}, {"group": 2, "norms": "projected", "parts": ("ar",)}, {"parts": ("nar",), "norms": "projected"}):
        one = system(**wide | changes)
        data = batch(one)
        state = jax.eval_shape(one.init, jax.random.key(0), data)
        run = jit(lambda params, data: one.loss_given(params, data, QUIET | {"level": jnp.ones(8, int)}))  # noqa: B023
        cost = run.lower(state[0], data).compile().cost_analysis()
        assert one.flops({**SIZES, **one.sizes}) == pytest.approx(cost["flops"], rel=0.08), changes
