"""The aligner: its loss by hand, gradients, invariances, durations that add up, one golden step, and that it finds boundaries by itself."""

from __future__ import annotations


import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.aligner import get_config
from ns2_jax.maths import alignment
from ns2_jax.systems.aligner import share_twins
from ns2_jax.systems.system import make
from tests import goldens, meshes

HOP = 200


def system(size: str = "smoke", **changes):
    return make("aligner", {**get_config(size).model.to_dict(), **changes})


def speak(phones: list[int], durations: list[int], rng: np.random.Generator) -> np.ndarray:
    """A tongue of tones: every phone from 2 on has its own chord, phone 1 is silence; a little noise over all."""
    s, out = np.arange(sum(durations) * HOP) / 16000, []
    for phone, frames in zip(phones, durations):
        at, n = sum(map(len, out)), frames * HOP
        chord = sum(np.sin(2 * np.pi * 260 * k**1.3 * s[at : at + n]) for k in (phone, phone + 3)) if phone > 1 else np.zeros(n)
        out.append(0.1 * chord)
    return np.concatenate(out) + 0.003 * rng.normal(size=len(s))


def batch(b: int = 8, t: int = 64, p: int = 10, seed: int = 0) -> tuple[dict, np.ndarray]:
    """(a batch, its exact durations `[b, p]`): texts of tones between pauses."""
    rng = np.random.default_rng(seed)
    audio, ids = np.zeros((b, t * HOP), np.float32), np.zeros((b, p), np.int32)
    durations, frames = np.zeros((b, p), np.int32), np.zeros(b, np.int32)
    for row in range(b):
        n = int(rng.integers(p - 4, p + 1))
        phones = [1, *rng.choice(np.arange(2, 11), n - 2, replace=False).tolist(), 1]
        lengths = rng.integers(2, 8, n).tolist()
        while sum(lengths) > t:
            lengths[int(np.argmax(lengths))] -= 1
        sound = speak(phones, lengths, rng)
        audio[row, : len(sound)] = sound
        ids[row, :n], durations[row, :n], frames[row] = phones, lengths, sum(lengths)
    made = {"audio": audio, "phones": ids, "frames": frames, "weight": np.ones(b, np.float32)}
    return {name: jnp.asarray(value) for name, value in made.items()}, durations


@pytest.fixture(scope="module")
def started():
    one = system()
    return one, *jax.jit(one.init)(jax.random.key(0), batch()[0])


@pytest.fixture(scope="module")
def grads(started):
    return jax.jit(started[0].grads)


KEY, LATE = jax.random.key(1), jnp.int32(30)


def test_the_loss_is_forward_sum_plus_binarisation_by_hand(started, grads):
    """From the network's distances in numpy: over their mean of all frames, with the prior, all alignments by recursion in float64."""
    import scipy.special
    import scipy.stats

    one, params, rest = started
    data, _ = batch(2, seed=5)
    _, _, early = grads(params, rest, data, KEY, jnp.int32(29))
    _, _, late = grads(params, rest, data, KEY, LATE)
    mask = alignment.length_mask(data["frames"], 64)
    raw = np.asarray(one.net.apply({"params": params}, one.features(data["audio"], mask), mask, data["phones"]), np.float64)
    total = best = 0.0
    for row in range(2):
        m, n = int(data["frames"][row]), int((data["phones"][row] > 0).sum())
        prior = np.stack([scipy.stats.betabinom(n - 1, i + 1, m - i).logpmf(np.arange(n)) for i in range(m)])
        ratio = raw[row, :m, :n] - np.log(np.exp(raw[row, :m, :n]).mean(0))
        a = ratio + prior
        optional = np.asarray(data["phones"][row, :n]) == 1
        alpha = np.full(n, -np.inf)
        alpha[0] = a[0, 0]
        alpha[1] = a[0, 1] if optional[0] else -np.inf
        top = alpha.copy()
        for i in range(1, m):
            moves = lambda x: np.stack([x, np.r_[-np.inf, x[:-1]], np.r_[-np.inf, -np.inf, np.where(optional[1:-1], x[:-2], -np.inf)]])
            alpha, top = scipy.special.logsumexp(moves(alpha), 0) + a[i], moves(top).max(0) + a[i]
        total -= np.logaddexp(alpha[-1], alpha[-2])  # the last phone is a pause
        best -= max(top[-1], top[-2])
    np.testing.assert_allclose(early["forward_sum"], total, rtol=1e-4)
    np.testing.assert_allclose(early["binarisation"], best, rtol=1e-4)
    np.testing.assert_allclose(early["loss"], total, rtol=1e-4)
    np.testing.assert_allclose(late["loss"], total + best, rtol=1e-4)
    assert float(early["weight"]) == float(data["frames"].sum())


def test_every_leaf_learns(started, grads):
    one, params, rest = started
    got, stats, _ = grads(params, rest, batch()[0], KEY, LATE)
    assert stats == {} and rest == {}
    for path, g in jax.tree_util.tree_leaves_with_path(got):
        assert np.isfinite(g).all() and float(jnp.abs(g).max()) > 0, jax.tree_util.keystr(path)


def test_the_gradient_is_the_derivative_of_the_loss(started, grads):
    one, params, rest = started
    data, h = batch(4, seed=2)[0], 3e-3
    slope, _, _ = grads(params, rest, data, KEY, jnp.int32(0))
    norm = optax.global_norm(slope)
    at = lambda sign: float(grads(jax.tree.map(lambda p, g: p + sign * h * g / norm, params, slope), rest, data, KEY, jnp.int32(0))[2]["loss"])
    assert abs((at(1) - at(-1)) / (2 * h) / float(norm) - 1) < 0.01


def test_rows_without_weight_and_rows_that_cannot_be_aligned_change_nothing(started, grads):
    one, params, rest = started
    data, _ = batch()
    few = data | {"frames": data["frames"].at[6:].set(3), "weight": data["weight"].at[5].set(0), "audio": data["audio"].at[5:].multiply(-9)}
    a, _, m = grads(params, rest, few, KEY, LATE)
    b, _, _ = grads(params, rest, jax.tree.map(lambda x: x[:5], data), KEY, LATE)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(x, y, atol=2e-4 * (1 + float(jnp.abs(y).max())))
    assert float(m["weight"]) == float(data["frames"][:5].sum()) and np.isfinite(float(m["loss"]))


def test_micro_batches_add(started, grads):
    one, params, rest = started
    data, _ = batch()
    whole, _, m = grads(params, rest, data, KEY, LATE)
    halves = [grads(params, rest, jax.tree.map(lambda x: x[i : i + 4], data), KEY, LATE) for i in (0, 4)]
    for x, y in zip(jax.tree.leaves((whole, m)), jax.tree.leaves(jax.tree.map(lambda a, b: a + b, *((h[0], h[2]) for h in halves)))):
        np.testing.assert_allclose(x, y, atol=2e-4 * (1 + float(jnp.abs(x).max())))


@pytest.fixture(scope="module")
def run(started):
    return jax.jit(started[0].programs()["align"].bind({}))


def test_a_row_is_aligned_alike_alone_padded_and_in_a_batch(started, run):
    """Cut to itself, and in a larger bucket with noise where its padding is."""
    one, params, rest = started
    data, _ = batch(3, seed=4)
    together = run(params, rest, data, KEY)
    for row in range(3):
        m, n = int(data["frames"][row]), int((data["phones"][row] > 0).sum())
        sound, frames = data["audio"][row : row + 1, : m * HOP], data["frames"][row : row + 1]
        alone = {"audio": sound, "phones": data["phones"][row : row + 1, :n], "frames": frames}
        padded = {"audio": jnp.pad(sound, ((0, 0), (0, (70 - m) * HOP)), constant_values=0.7),
                  "phones": jnp.pad(data["phones"][row : row + 1], ((0, 0), (0, 5))), "frames": frames}
        for other in (alone, padded) if row == 0 else (padded,):
            found = run(params, rest, other, KEY)
            np.testing.assert_array_equal(found["durations"][0, :n], together["durations"][row, :n])
            np.testing.assert_allclose(found["score"][0], together["score"][row], rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_durations_sum_to_the_frames(started, run, seed):
    """An untrained network on noise: whatever it thinks, every phone but a pause has a frame and the sum is exact."""
    one, params, rest = started
    rng = np.random.default_rng(seed)
    frames, number = rng.integers(12, 65, 8), rng.integers(1, 13, 8)
    ids = np.where(np.arange(12) < number[:, None], rng.integers(1, 40, (8, 12)), 0)
    given = {"audio": rng.normal(size=(8, 64 * HOP)).astype(np.float32), "phones": jnp.asarray(ids, jnp.int32), "frames": jnp.asarray(frames, jnp.int32)}
    out = run(params, rest, given, KEY)
    durations = np.asarray(out["durations"])
    np.testing.assert_array_equal(durations.sum(-1), frames)
    assert (durations[ids > 1] > 0).all() and not durations[ids == 0].any() and (np.asarray(out["score"]) > -1e3).all()


def test_twins_share_their_frames():
    ids = jnp.asarray([[1, 5, 5, 7, 7, 7, 1, 1], [5, 5, 1, 1, 2, 2, 0, 0]])
    durations = jnp.asarray([[3, 8, 1, 1, 6, 2, 4, 0], [1, 1, 0, 5, 1, 4, 0, 0]])
    shared = share_twins(durations, ids, 1)
    np.testing.assert_array_equal(shared, [[3, 5, 4, 4, 3, 2, 4, 0], [1, 1, 0, 5, 3, 2, 0, 0]])


def train(one, params, rest, steps: int, seed: int = 0, fresh: bool = True):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3, 0.9, 0.98))

    @jax.jit
    def step(params, opt, data, i):
        grads, _, metrics = one.grads(params, rest, data, KEY, i)
        updates, opt = tx.update(jax.tree.map(lambda g: g / metrics["weight"], grads), opt, params)
        return optax.apply_updates(params, updates), opt, {k: v / metrics["weight"] for k, v in metrics.items()}

    opt, log = tx.init(params), []
    for i in range(steps):
        params, opt, metrics = step(params, opt, batch(seed=seed + fresh * i)[0], jnp.int32(i))
        log.append({k: float(v) for k, v in metrics.items()})
    return params, log


def test_it_finds_the_boundaries_of_texts_it_has_not_seen(started, run):
    """Nobody tells it where a tone begins; 60 small batches are enough, and a pause that is not there gets no frame."""
    one, params, rest = started
    data, exact = batch(8, seed=10**6)
    off = lambda params: np.abs(np.cumsum(run(params, rest, data, KEY)["durations"], -1) - np.cumsum(exact, -1))[np.asarray(data["phones"]) > 0]
    before = off(params)
    params, log = train(one, params, rest, 60)
    after = off(params)
    assert log[-1]["forward_sum"] < log[0]["forward_sum"] - 0.5, (log[0], log[-1])
    assert np.median(before) >= 1 and np.median(after) == 0 and (after <= 1).mean() > 0.9, (np.median(before), np.median(after), (after <= 1).mean())
    middle = np.asarray(data["phones"]).copy()
    middle = np.insert(middle, 3, 1, axis=1)
    found = run(params, rest, data | {"phones": jnp.asarray(middle)}, KEY)["durations"]
    assert (np.asarray(found)[:, 3] == 0).mean() > 0.5
    np.testing.assert_array_equal(found.sum(-1), data["frames"])


def test_golden_metrics_of_one_training_step(started):
    one, params, rest = started
    _, log = train(one, params, rest, 2, fresh=False)
    got = {**log[0], "second": log[1]["loss"], "norm": float(optax.global_norm(jax.jit(one.grads)(params, rest, batch()[0], KEY, LATE)[0]))}
    goldens.check("aligner", got, 2e-3)


def test_the_same_on_every_mesh(started):
    one, params, rest = started
    meshes.check_system(one, params, rest, batch(8, 32, 8)[0], KEY, step=30)


def test_flops_equal_the_compilers_count():
    one = system("small")
    net, (b, t, p) = one.net, (2, 160, 40)
    given = jnp.zeros((b, t, one.mels)), jnp.ones((b, t), bool), jnp.ones((b, p), jnp.int32)
    params = net.init(KEY, *given)
    compiled = jax.jit(lambda v, *x: net.apply(v, *x)).lower(params, *given).compile().cost_analysis()["flops"]
    assert 0.9 < one.flops({"b": b, "t": t, "p": p}) / compiled < 1.02
