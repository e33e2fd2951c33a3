"""Text to semantic tokens: an independent network, who sees whom, cached decoding, how tokens are drawn and end, invariances, one golden step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.text_to_semantic import get_config
from ns2_jax.maths import tokens
from ns2_jax.systems.system import make, shapes
from ns2_jax.systems.text_to_semantic import System
from tests import goldens, meshes

END = 16  # the smoke model's number of the end
jit = functools.partial(jax.jit, compiler_options=meshes.FAST)


def system(size: str = "smoke", **changes) -> System:
    return make("text_to_semantic", get_config(size).model.to_dict() | changes)


def batch(one: System, b: int = 8, t: int = 12, p: int = 6, seed: int = 0) -> dict:
    """Random texts and tokens of unequal lengths, rubbish behind them; the first row is full."""
    rng = np.random.default_rng(seed)
    frames, phones = rng.integers(t // 2, t + 1, b).astype(np.int32), rng.integers(2, p + 1, b)
    frames[0], phones[0] = t, p
    text = np.where(np.arange(p) < phones[:, None], rng.integers(1, 60, (b, p)), 0).astype(np.int32)
    return {one.text_name: text, "semantic": rng.integers(0, one.tokens, (b, t)).astype(np.int32), "frames": frames, "weight": np.ones(b, np.float32)}


def random(one: System, seed: int = 1) -> dict:
    """Params that leave nothing at zero; nothing is compiled to get them."""
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, {"b": 2, "t": 4, "p": 3}))[0]
    params = jax.tree.map(lambda leaf: (rng.normal(size=leaf.shape) * (0.3 if leaf.ndim > 1 else 0.1)).astype(np.float32), abstract)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "scale":
            leaf += 1.0
    return params


@functools.cache
def still():
    """(system, params, loss and gradients without dropout, compiled once for a shape)."""
    one = system()
    return one, random(one), jit(jax.value_and_grad(lambda params, data: one.loss_given(params, data, None), has_aux=True))


@functools.cache
def writer(t: int = 12, **options):
    one = system()
    return jit(one.programs()["translate"].bind({"b": 8, "t": t, "p": 6, "u": 3}, **options))


def asked(prompted: bool = False) -> dict:
    data = batch(system())
    frames = np.array([0, 1, 2, 3] * 2, np.int32) * prompted
    return {"phones": data["phones"], "prompt_semantic": data["semantic"][:, :3], "prompt_frames": frames}


def keys() -> jax.Array:
    return jax.random.split(jax.random.key(5), 8)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_base_has_the_papers_layout():
    """ByT5-large: 1.2 B, of them 36 layers that read (864 M) and 12 that write (364 M); here with biases and the tokens' table."""
    one = system("base")
    params = jax.eval_shape(one.init, jax.random.key(0), shapes(one.fields, {"b": 2, "t": 4, "p": 3}))[0]
    attention, dense = 4 * 1536 * 1024, 3 * 1536 * 3840
    matrices = 36 * (attention + dense) + 12 * (2 * attention + dense) + 1536 * (512 + 4097)
    assert count(params) == pytest.approx(matrices, rel=1e-3) and round(count(params) / 1e7) == 123


def reference(params, one: System, text: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Logits `[n + 1, tokens + 1]` of one row, in numpy, without padding."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    d, half = one.width, one.width // 2

    def sinusoid(length):
        angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(half) / (half - 1))
        return np.concatenate([np.sin(angle), np.cos(angle)], -1)

    norm = lambda x, p: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
    dense = lambda x, p: x @ p["kernel"] + p.get("bias", 0)
    gelu = lambda h: 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))

    def attend(x, seen, p, heads, allowed):
        q, k, v = (dense(y, p[name]).reshape(len(y), heads, -1) for name, y in (("query", x), ("key", seen), ("value", seen)))
        logits = np.where(allowed, np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1]), -np.inf)
        weight = np.exp(logits - logits.max(-1, keepdims=True))
        return dense(np.einsum("hij,jhd->ihd", weight / weight.sum(-1, keepdims=True), v).reshape(len(x), -1), p["out"])

    def stack(x, p, numbers, allowed, memory=None):
        for layer in range(numbers["layers"]):
            own = jax.tree.map(lambda leaf: leaf[layer], p["blocks"])  # noqa: B023
            h = norm(x, own["norm1"])
            x = x + attend(h, h, own["attention"], numbers["heads"], allowed)
            if memory is not None:
                x = x + attend(norm(x, own["memory_norm"]), memory, own["memory"], numbers["heads"], True)
            h = dense(norm(x, own["norm2"]), own["widen"])
            if numbers.get("gated"):
                h, gate = np.split(h, 2, -1)
                h = gelu(gate) * h
            else:
                h = gelu(h)
            x = x + dense(h, own["narrow"])
        return norm(x, p["norm"])

    read = params["text_table"]["table"][text] * np.sqrt(d) + sinusoid(len(text))
    memory = stack(read, params["reader"], one.encoder, True)
    x = np.concatenate([params["begin"][None], params["table"]["table"][codes] * np.sqrt(d)]) + sinusoid(len(codes) + 1)
    return stack(x, params["layers"], one.decoder, np.tri(len(x), dtype=bool), memory) @ params["table"]["table"].T


def test_loss_is_that_of_an_independent_network():
    """Every token and the end, of rows of unequal lengths beside each other, from logits computed in numpy."""
    one, params, run = still()
    data = batch(one)
    (loss, (_, metrics)), _ = jax.device_get(run(params, data))
    total = right = ends = 0.0
    for i in range(8):
        codes, text = data["semantic"][i, : data["frames"][i]], data["phones"][i][data["phones"][i] > 0]
        logits, target = reference(params, one, text, codes), np.append(codes, END)
        nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(target)), target]
        total, right, ends = total + nats.sum(), right + (logits.argmax(-1) == target).sum(), ends + nats[-1]
    assert loss == pytest.approx(total, rel=1e-4) and metrics["accuracy"] == right and metrics["end"] == pytest.approx(ends, rel=1e-4)
    assert metrics["weight"] == data["frames"].sum() + 8


def test_padding_rows_and_weights():
    """A larger bucket with rubbish in it, and rows without weight, change neither loss nor gradients; a batch is the sum of its rows."""
    one, params, run = still()
    data = batch(one)
    only = lambda rows: data | {"weight": np.isin(np.arange(8), rows).astype(np.float32)}
    wide = {name: np.pad(x, ((0, 0), (0, {"semantic": 5, "phones": 3}[name])), constant_values=7 * (name == "semantic")) if x.ndim > 1 else x
            for name, x in data.items()}
    whole, wider, first, rest = (jax.device_get(run(params, x)) for x in (data, wide, only([0, 3, 5]), only([1, 2, 4, 6, 7])))
    for found in (wider, jax.tree.map(np.add, first, rest)):
        assert max(meshes.differences(whole, found).values()) < 2e-4
    for path, g in jax.tree_util.tree_leaves_with_path(whole[1]):
        layers = g if "blocks" in jax.tree_util.keystr(path) else g[None]
        assert np.isfinite(g).all() and all(np.abs(layer).max() > 1e-6 for layer in layers), path


def test_a_token_sees_the_text_and_the_past_by_gradient():
    """Through the embedding: every text place but padding, the begin vector and tokens before; nothing behind."""
    one = system()
    net, params = one.network, random(one)
    text, codes = jnp.array([[4, 5, 6, 0]]), jnp.array([[1, 2, 3, 4, 5]])

    def outputs(text_table, table):
        """Every id of text and every token occurs once, so a row of a table is one place."""
        own = params | {"text_table": {"table": text_table}, "table": {"table": table}}
        y, _, _ = net.apply({"params": own}, text, codes[..., None], jnp.array([5]), method="run")
        return y[0].sum(-1)

    by_text, by_code = jit(jax.jacobian(outputs, (0, 1)))(params["text_table"]["table"], params["table"]["table"])
    reach = lambda jacobian, ids: np.abs(np.asarray(jacobian))[:, ids].sum(-1) > 1e-7
    assert reach(by_text, [4, 5, 6]).all() and not reach(by_text, [0, 7]).any()
    np.testing.assert_array_equal(reach(by_code, [1, 2, 3, 4, 5]), np.arange(6)[:, None] > np.arange(5)[None])


@pytest.mark.parametrize("prompted", [False, True])
def test_cached_tokens_are_those_of_the_whole_model(prompted):
    """Greedy tokens, each from the cache, are the most likely ones of one pass over all of them: prompts of 0 to 3 tokens, texts of all lengths."""
    one, params, _ = still()
    given = asked(prompted)
    out = jax.device_get(writer(top_k=1)(params, {}, given, keys()))
    n = given["prompt_frames"]
    whole = np.asarray(tokens.join(jnp.asarray(given["prompt_semantic"]), n, jnp.asarray(out["semantic"]), out["frames"]))
    for i in range(8):
        made = out["semantic"][i, : out["frames"][i]]
        logits = reference(params, one, given["phones"][i][given["phones"][i] > 0], whole[i, : n[i] + out["frames"][i]])[n[i] :]
        np.testing.assert_array_equal(logits[:-1, :END].argmax(-1)[made < END], made)
        if out["ended"][i]:
            assert logits[-1].argmax() == END
    assert (out["semantic"][np.arange(12) >= out["frames"][:, None]] == 0).all() and out["frames"].min() >= 1


def test_without_its_cache_it_writes_the_same():
    _, params, _ = still()
    cached, again = (jax.device_get(writer(cache=cache)(params, {}, asked(True), keys())) for cache in (True, False))
    for name in cached:
        np.testing.assert_array_equal(cached[name], again[name], err_msg=name)
    assert len({tuple(row) for row in cached["semantic"].tolist()}) == 8


def test_a_row_is_the_same_in_another_batch_and_bucket():
    _, params, _ = still()
    given, out = asked(True), jax.device_get(writer()(params, {}, asked(True), keys()))
    turned = {name: np.roll(x, 3, 0) for name, x in given.items()}
    other = jax.device_get(writer()(params, {}, turned, jnp.roll(keys(), 3, 0)))
    for name in out:
        np.testing.assert_array_equal(np.roll(out[name], 3, 0), other[name], err_msg=name)


def test_the_length_guard():
    """A model that would end at once writes 0.3 of what is expected; one that never would, twice of it or 1.5 s."""
    one = system(tied=False)
    params = random(one)
    run = jit(one.programs()["translate"].bind({"b": 8, "t": 60, "p": 6, "u": 3}))
    expected = 2.0 * (asked()["phones"] > 0).sum(1)
    for bias, frames, ended in ((1e4, np.ceil(0.3 * expected - 1e-5), 1), (-1e4, np.maximum(2 * expected, 37), 0)):
        params["head"]["bias"] = np.where(np.arange(END + 1) == END, bias, 0).astype(np.float32)
        out = jax.device_get(run(params, {}, asked(), keys()))
        np.testing.assert_array_equal(out["frames"], frames)
        assert (out["ended"] == ended).all()


def test_draws_are_from_the_likeliest():
    logits = jnp.log(jnp.array([[0.4, 0.05, 0.3, 0.15, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]]))
    kept = lambda k: np.asarray(tokens.likeliest(logits, k) > -1e9)
    assert kept(2)[0].tolist() == [True, False, True, False, False] and kept(1)[0].tolist() == [True] + [False] * 4
    assert kept(2)[1].all() and kept(0).all() and kept(9).all()
    drawn = np.asarray(tokens.categorical(jax.random.split(jax.random.key(0), 4000), jnp.repeat(tokens.likeliest(logits[:1], 2), 4000, 0)))
    assert set(drawn.tolist()) == {0, 2} and (drawn == 0).mean() == pytest.approx(4 / 7, abs=0.03)


def test_loss_and_gradients_are_those_of_one_device_on_every_mesh():
    one = system(dropout=0.0)
    meshes.check_system(one, random(one), {}, batch(one), jax.random.key(3))


def test_text_in_units_is_text():
    """The same ids under the other name; the variant asks for the units' file."""
    one, params, _ = still()
    data, other = batch(one), system(text="bpe")
    assert set(other.fields) == set(data) - {"phones"} | {"units"} and "units" in other.programs()["translate"].inputs
    asked_for = jax.eval_shape(lambda: other.loss_given(params, batch(other), None))
    assert asked_for[0].shape == () and get_config("smoke,bpe").model.text == "bpe"
    for changes, message in (({"text": "bytes"}, "text='bytes'"), ({"encoder": {}}, "no layers")):
        with pytest.raises(ValueError, match=message):
            system(**changes)


def test_golden_metrics_of_one_training_step():
    """Update golden_text_to_semantic.json (delete it and run twice) only when a change to the mathematics was intended."""
    one, params, _ = still()
    grads, _, metrics = jit(one.grads)(params, {}, batch(one), jax.random.key(1), 0)
    found = {name: float(value / metrics["weight"]) for name, value in metrics.items() if name != "weight"}
    found |= {f"grad_norm/{k}": float(optax.global_norm(g) / metrics["weight"]) for k, g in grads.items()}
    goldens.check("text_to_semantic", found, 1e-4)


def test_tokens_are_learned():
    """One batch, again and again: from log(17) nats and a little (a tied table guesses, with logits of unit deviation and more) to a tenth."""
    one, _, run = still()
    data = batch(one)
    params, optimiser = jit(one.init)(jax.random.key(0), data)[0], optax.adam(1e-2)

    @jit
    def step(params, opt, grads):
        updates, opt = optimiser.update(jax.tree.map(lambda g: g / (data["frames"].sum() + 8), grads), opt)
        return optax.apply_updates(params, updates), opt

    opt, history = optimiser.init(params), []
    for _ in range(60):
        (loss, (_, metrics)), grads = run(params, data)
        params, opt = step(params, opt, grads)
        history.append(float(loss / metrics["weight"]))
    assert np.log(17) < history[0] < np.log(17) + 1 and history[-1] < 0.1 * np.log(17)


def test_flops_are_those_the_compiler_counts():
    stack = dict(hidden=384, heads=2, unroll=2, layers=2)
    for gated in (False, True):
        one = system(width=128, encoder=dict(stack, gated=gated), decoder=dict(stack, inner=64))
        data = batch(one, t=24, p=20)
        params = jax.eval_shape(one.init, jax.random.key(0), data)[0]
        cost = jit(lambda params: one.loss_given(params, data, None)).lower(params).compile().cost_analysis()  # noqa: B023
        assert one.flops({"b": 8, "t": 24, "p": 20}) == pytest.approx(cost["flops"], rel=0.08)
