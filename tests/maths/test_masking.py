"""Masks of training by their statistics, and masked decoding by its counts, an oracle, and a network whose answers depend on what it sees."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.maths import masking

BLANK = 16
LEVELS = 3


@pytest.fixture(scope="module")
def drawn():
    """(codes, frames, draw, hidden codes, target, own) of many rows, numpy."""
    rng = np.random.default_rng(0)
    frames = rng.integers(1, 25, 20_000).astype(np.int32)
    codes = rng.integers(0, BLANK, (len(frames), 24, 4)).astype(np.uint16)
    share = jnp.asarray([0.4, 0.3, 0.2, 0.1])

    def run(codes, frames):
        given = masking.draw(jax.random.key(1), frames, 24, share, 0.25)
        return given, *masking.hide(codes, given, BLANK)

    return codes, frames, *jax.device_get(jax.jit(run)(codes, frames))


def test_the_share_that_is_hidden_is_cos_of_a_uniform_angle(drawn):
    """Mean 2/pi, mean square 1/2, and what is hidden in long targets has that share."""
    _, _, given, _, target, own = drawn
    assert given.ratio_b.mean() == pytest.approx(2 / np.pi, abs=0.008)
    assert np.square(given.ratio_b).mean() == pytest.approx(0.5, abs=0.01)
    assert np.mean(given.ratio_b < 0.5) == pytest.approx(1 / 3, abs=0.012)  # cos u < 1/2 where u > pi/3
    long = target.sum(1) >= 12
    assert own.sum(1)[long].mean() == pytest.approx((target.sum(1) * given.ratio_b)[long].mean(), rel=0.02)


def test_prompts_and_coarser_levels_stay_and_finer_ones_are_hidden(drawn):
    codes, frames, given, hidden, target, own = drawn
    at = np.arange(24)
    np.testing.assert_array_equal(target, (at >= given.begin_b[:, None]) & (at < given.end_b[:, None]))
    assert (given.end_b <= frames).all() and (given.begin_b >= 0).all() and (given.begin_b < given.end_b).all()
    gone = hidden == BLANK
    np.testing.assert_array_equal(hidden[~gone], codes[~gone])
    level = np.arange(4) - given.level_b[:, None]
    np.testing.assert_array_equal(gone, np.where(level[:, None] == 0, own[..., None], target[..., None] & (level[:, None] > 0)))
    assert (own <= target).all() and own.any(1).all()


def test_spans_and_levels_are_drawn_as_they_should_be(drawn):
    _, frames, given, *_ = drawn
    full = frames == 24
    assert np.bincount(given.begin_b[full], minlength=24) / full.sum() == pytest.approx(np.full(24, 1 / 24), abs=0.035)  # five deviations
    assert ((given.begin_b + 0.5) / frames).mean() == pytest.approx(0.5, abs=0.01)
    inner = given.begin_b < frames - 1  # an end uniform behind begin is the last frame's in one of (frames - begin) cases
    early = (given.end_b < frames)[inner].mean()
    assert early == pytest.approx(0.25 * (1 - 1 / (frames - given.begin_b)[inner]).mean(), abs=0.01)
    np.testing.assert_allclose(np.bincount(given.level_b) / len(frames), [0.4, 0.3, 0.2, 0.1], atol=1e-3)


def test_a_target_at_the_end_is_the_papers():
    draw = jax.jit(lambda key, frames: masking.draw(key, frames, 12, jnp.ones(2) / 2).end_b)
    assert (draw(jax.random.key(0), np.full(500, 9)) == 9).all()


def test_masked_spans_are_as_long_and_as_many_as_they_should_be():
    """A frame is masked unless none of the last ten draws begins a span: BEST-RQ's third of the frames."""
    found = np.asarray(jax.jit(lambda key: masking.spans(key, (400, 200), 0.04, 10))(jax.random.key(0)))
    assert found.mean() == pytest.approx(1 - 0.96**10, abs=0.01)
    assert found[:, 0].mean() == pytest.approx(1 - 0.96**10, abs=0.08)  # the first frame as often as any
    edges = np.diff(np.pad(found, ((0, 0), (1, 1))).astype(int), axis=1)
    inner = [row for row in edges[:, 1:-1] if row[row != 0][:1] == 1 and row[row != 0][-1:] == -1]  # no span cut off at an end
    lengths = np.concatenate([np.flatnonzero(row == -1) - np.flatnonzero(row == 1) for row in inner])
    assert lengths.min() == 10 and len(lengths) > 500


def test_counts_are_those_of_the_fact_sheet():
    """1,500 frames in 16 passes, and halves where the cosine is a half."""
    left = np.asarray(masking.remaining(jnp.int32(1500), jnp.arange(1, 17), 16))
    assert left.tolist() == [1492, 1471, 1435, 1385, 1322, 1247, 1159, 1060, 951, 833, 707, 574, 435, 292, 147, 0]
    assert np.diff(left, prepend=1500).tolist() == [
        -8, -21, -36, -50, -63, -75, -88, -99, -109, -118, -126, -133, -139, -143, -145, -147]
    assert int(masking.remaining(jnp.int32(1500), jnp.int32(2), 3)) == 750
    assert int(masking.remaining(jnp.int32(7), jnp.int32(1), 1)) == 0


def test_the_table_of_passes():
    steps = jnp.asarray([[3, 1, 2], [0, 0, 0], [1, 1, 1]], jnp.int32)
    level, i, of = (np.asarray(x).T.tolist() for x in masking.passes(steps, 6))
    assert level == [[0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 1, 2], [0, 1, 2, 2, 2, 2]]
    assert i == [[1, 2, 3, 1, 1, 2], [1, 2, 3, 4, 1, 1], [1, 1, 1, 2, 3, 4]]
    assert of == [[3, 3, 3, 1, 2, 2], [4, 4, 4, 4, 1, 1], [1, 1, 1, 1, 1, 1]]
    assert masking.passes(jnp.zeros((1, 12), jnp.int32), 27)[0].shape == (27, 1)  # (16, 1, ..., 1)


# Decoding -------------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
TABLE = RNG.normal(size=(LEVELS, BLANK + 1, 8)).astype(np.float32)
HEAD = RNG.normal(size=(LEVELS, 8, BLANK)).astype(np.float32)


def network(codes, level, head=HEAD):
    """Logits of a frame from the codes known in it, in its neighbours and everywhere in the row; padding (-1) is not seen."""
    there = (codes[..., :1] >= 0).astype(jnp.float32)
    x = sum(jnp.asarray(TABLE)[q][jnp.maximum(codes[..., q], 0)] for q in range(LEVELS)) * there
    near = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    x = jnp.tanh(x + near[:, :-2] - near[:, 2:] + x.sum(1, keepdims=True) / there.sum(1, keepdims=True))
    return jnp.einsum("btd,bdk->btk", x, jnp.asarray(head)[level])


def start(b: int = 3, t: int = 10, length=(10, 7, 4), prompt=(2, 3, 0)):
    codes = RNG.integers(0, BLANK, (b, t, LEVELS)).astype(np.int32)
    at = np.arange(t)
    codes = np.where((at < np.asarray(length)[:, None])[..., None], codes, -1)
    target = (at >= np.asarray(prompt)[:, None]) & (at < np.asarray(length)[:, None])
    return codes, target


KEYS = jax.random.split(jax.random.key(7), 3)
STEPS = np.asarray([[4, 1, 2]] * 3, np.int32)


@functools.partial(jax.jit, static_argnames=("total", "temperature", "top_p", "choice"))
def decode(codes, target, steps, keys, head=HEAD, total=7, temperature=1.0, top_p=0.9, choice=2.0):
    return masking.decode(lambda c, level: network(c, level, head), codes, target, steps, keys, blank=BLANK, total=total,
                          temperature=temperature, top_p=top_p, choice=choice)


def test_an_oracle_gets_its_answer_back():
    codes, target = start()
    truth = jnp.where(codes >= 0, codes, 0)
    oracle = lambda now, level: 50.0 * jax.nn.one_hot(jnp.take_along_axis(truth, level[:, None, None], -1)[..., 0], BLANK)
    run = jax.jit(lambda seen, steps: masking.decode(oracle, seen, target, steps, KEYS, blank=BLANK, total=7, choice=4.5))
    lost = np.where(target[..., None], 5, codes)
    for steps in (STEPS, np.asarray([[5, 1, 1]] * 3), np.zeros((3, 3), np.int32)):
        np.testing.assert_array_equal(run(lost, steps), codes)


def test_few_are_fixed_first_nothing_fixed_changes_and_prompts_stay():
    """Every pass is seen from inside."""
    codes, target = start()
    seen = []

    def spied(now, level):
        jax.debug.callback(lambda x, q: seen.append((np.array(x), int(q[0]))), now, level, ordered=True)
        return network(now, level)

    out = jax.jit(lambda *a: masking.decode(spied, *a, blank=BLANK, total=7, choice=2.0))(codes, target, STEPS, KEYS)
    out = np.asarray(out)
    jax.effects_barrier()
    assert [level for _, level in seen] == [0, 0, 0, 0, 1, 2, 2]
    states = [state for state, _ in seen] + [out]
    left = [(state == BLANK).sum(1) for state in states]  # rows x levels
    count = target.sum(1)
    cosine = lambda i, of: np.floor(count * np.cos(np.pi / 2 * i / of) + 1e-3) if i < of else 0 * count
    for n in range(1, 5):
        np.testing.assert_array_equal(left[n][:, 0], np.minimum(cosine(n, 4), left[n - 1][:, 0]))
    np.testing.assert_array_equal(left[6][:, 2], cosine(1, 2))
    assert (left[4][:, 1] == count).all() and (left[5][:, 1] == 0).all() and not (out == BLANK).any()
    for before, after in zip(states[:-1], states[1:]):
        np.testing.assert_array_equal(after[before != BLANK], before[before != BLANK])
    np.testing.assert_array_equal(out[~target], codes[~target])


def test_one_pass_a_level_is_the_likeliest_code_level_by_level():
    codes, target = start()
    found = np.asarray(decode(codes, target, np.ones((3, 3), np.int32), KEYS, total=3))
    now = np.where(target[..., None], BLANK, codes)
    for level in range(LEVELS):
        best = np.asarray(network(jnp.asarray(now), jnp.full(3, level))).argmax(-1)
        now[..., level] = np.where(target, best, now[..., level])
    np.testing.assert_array_equal(found, now)


def test_a_row_is_what_it_is_alone_and_at_any_padding():
    codes, target = start()
    together = np.asarray(decode(codes, target, STEPS, KEYS))
    for i, length in enumerate((10, 7, 4)):
        for size in (length, length + 5):
            row = np.full((1, size, LEVELS), -1, np.int32)
            row[0, :length] = codes[i, :length]
            wanted = np.zeros((1, size), bool)
            wanted[0, :length] = target[i, :length]
            np.testing.assert_array_equal(decode(row, wanted, STEPS[:1], KEYS[i : i + 1])[0, :length], together[i, :length])


def test_finer_levels_never_influence_coarser_ones():
    """Neither what stood there, nor how they are decoded, nor with what weights."""
    codes, target = start()
    plain = np.asarray(decode(codes, target, STEPS, KEYS))
    other = np.where(target[..., None] & (np.arange(LEVELS) > 0), (codes + 3) % BLANK, codes)
    np.testing.assert_array_equal(decode(other, target, STEPS, KEYS), plain)
    shared = np.asarray(decode(codes, target, np.asarray([[4, 2, 1]] * 3, np.int32), KEYS))
    np.testing.assert_array_equal(shared[..., 0], plain[..., 0])
    changed = np.asarray(decode(codes, target, STEPS, KEYS, head=np.concatenate([HEAD[:2], -HEAD[2:]])))
    np.testing.assert_array_equal(changed[..., :2], plain[..., :2])
    assert (changed[..., 2] != plain[..., 2]).any()


def test_settings_with_as_many_passes_share_what_is_compiled():
    codes, target = start()
    decode(codes, target, STEPS, KEYS)
    known = decode._cache_size()
    for steps in ([[5, 1, 1]], [[2, 2, 3]], [[0, 0, 0]]):
        decode(codes, target, np.asarray(steps * 3, np.int32), KEYS)
    assert decode._cache_size() == known


def test_randomness_is_the_keys_and_none_without_temperature():
    codes, target = start()
    run = lambda keys, **options: np.asarray(decode(codes, target, STEPS, keys, **options))
    other = jax.random.split(jax.random.key(8), 3)
    assert (run(KEYS) != run(other)).any()
    np.testing.assert_array_equal(run(KEYS, temperature=0.0, choice=0.0), run(other, temperature=0.0, choice=0.0))
