"""The step plan: exactly once, the same for every host count, a pure function of the step."""

from __future__ import annotations

import pickle
import sys
import threading
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ns2_jax.data.plan import CYCLE, PADDING, Mixture, StepPlan, assign

lengths = st.lists(st.tuples(st.integers(0, 120), st.integers(1, 30)), min_size=1, max_size=80)
buckets = st.lists(
    st.fixed_dictionaries({"b": st.sampled_from([1, 2, 4, 8]), "t": st.integers(10, 100), "p": st.integers(5, 25)}), min_size=1, max_size=4
)


def make(pairs, shapes, seed=0, **kwargs):
    frames, phones = (np.array(column) for column in zip(*pairs))
    return StepPlan(frames, shapes, fingerprint="f", seed=seed, phones=phones, **kwargs), frames, phones


def fitting(frames, phones, shapes, crop):
    fits = [f > 0 and any((crop or f <= s["t"]) and p <= s["p"] for s in shapes) for f, p in zip(frames, phones)]
    return np.flatnonzero(fits)


@hypothesis.given(lengths, buckets, st.integers(0, 2**40), st.integers(0, 3))
def test_exactly_once_per_epoch(pairs, shapes, seed, epoch):
    frames, phones = (np.array(column) for column in zip(*pairs))
    expected = fitting(frames, phones, shapes, crop=False)
    if not len(expected):
        with pytest.raises(ValueError, match="no utterance fits"):
            make(pairs, shapes, seed)
        return
    plan, _, _ = make(pairs, shapes, seed)
    seen: Counter = Counter()
    for k in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        bucket, ids = plan.step(k)
        shape = shapes[bucket]
        assert ids.shape == (shape["b"],)
        real = ids[ids != PADDING]
        assert len(real) and (frames[real] <= shape["t"]).all() and (phones[real] <= shape["p"]).all()
        seen.update(real.tolist())
    assert seen == Counter(expected.tolist())
    assert plan.left_out == len(frames) - len(expected)


@hypothesis.given(lengths, buckets, st.integers(0, 200))
def test_step_is_a_pure_function(pairs, shapes, k):
    frames, phones = (np.array(column) for column in zip(*pairs))
    hypothesis.assume(len(fitting(frames, phones, shapes, False)))
    walked, _, _ = make(pairs, shapes)
    for i in range(k):
        walked.step(i)
    jumped = pickle.loads(pickle.dumps(make(pairs, shapes)[0]))  # as after a restart, or in a worker
    for a, b in ((walked, jumped),):
        assert a.step(k)[0] == b.step(k)[0]
        np.testing.assert_array_equal(a.step(k)[1], b.step(k)[1])
    assert jumped.row_rng(k, 3).integers(2**60) == walked.row_rng(k, 3).integers(2**60)


@hypothesis.given(st.lists(st.integers(1, 100), min_size=1, max_size=50))
def test_smallest_bucket_that_fits(frames):
    shapes = [{"b": 2, "t": 80, "p": 9}, {"b": 4, "t": 40, "p": 9}]
    where = assign(np.array(frames), shapes)
    assert where.tolist() == [1 if f <= 40 else 0 if f <= 80 else -1 for f in frames]
    assert assign(np.array(frames), shapes, crop=True).tolist() == [1 if f <= 40 else 0 for f in frames]
    assert assign(np.array(frames), shapes, phones=np.full(len(frames), 10)).tolist() == [-1] * len(frames)


def test_without_frames_or_phones_it_is_left_out():
    """A record without phones is one that could not be aligned."""
    assert assign(np.array([5, 5, 0]), [{"t": 8, "p": 4}], np.array([3, 0, 3])).tolist() == [0, -1, -1]


def test_order_depends_on_seed_epoch_and_data():
    frames = np.full(64, 10)
    shapes = [{"b": 8, "t": 10}]
    orders = set()
    for fingerprint, seed, epoch in (("f", 0, 0), ("f", 0, 1), ("f", 1, 0), ("g", 0, 0)):
        plan = StepPlan(frames, shapes, fingerprint=fingerprint, seed=seed)
        orders.add(tuple(int(i) for k in range(8) for i in plan.step(8 * epoch + k)[1]))
    assert len(orders) == 4


def test_shuffle_is_uniform():
    """Where utterance 0 lands: chi-square over 8 batches, 1600 epochs, 7 degrees of freedom (99.99 % point 29.9)."""
    plan = StepPlan(np.full(16, 5), [{"b": 2, "t": 5}], fingerprint="f", seed=0)
    counts = np.zeros(8)
    for k in range(8 * 1600):
        counts[k % 8] += 0 in plan.step(k)[1]
    assert counts.sum() == 1600
    assert ((counts - 200) ** 2 / 200).sum() < 29.9


def test_rows_have_streams_of_their_own():
    plan = StepPlan(np.full(4, 5), [{"b": 2, "t": 5}], fingerprint="f", seed=0)
    draws = {(k, r): plan.row_rng(k, r).integers(2**62) for k in range(50) for r in range(50)}
    assert len(set(draws.values())) == 2500


@pytest.mark.parametrize("bucket", [{"b": 0, "t": 5}, {"t": 5}, {"b": 2}])
def test_impossible_buckets(bucket):
    with pytest.raises(ValueError, match="config.data.buckets"):
        StepPlan(np.full(4, 5), [bucket], fingerprint="f", seed=0)


def test_ten_million_utterances_stay_small():
    """The plan of 44,000 hours: tables are numpy arrays, a look-up allocates nothing per utterance."""
    frames = np.random.default_rng(0).integers(400, 1600, 1_000_000)
    plan = StepPlan(frames, [{"b": 64, "t": t} for t in (600, 800, 1000, 1200, 1400, 1600)], fingerprint="f", seed=0)
    padding = sum((plan.step(k)[1] == PADDING).sum() for k in range(0, plan.steps_per_epoch))
    assert padding < 64 * 6 and plan.left_out == 0


def mixture(sizes, segments=(), seed=0):
    plans = [StepPlan(np.full(n, 10), [{"b": 2, "t": 10}], fingerprint=f"f{i}", seed=seed) for i, n in enumerate(sizes)]
    return Mixture(plans, segments)


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)
number = st.one_of(st.integers(0, 9), st.floats(0.01, 9))


@st.composite
def mixtures(draw):
    """Sizes of data sets with one to three segments of weights for them."""
    n = draw(sizes)
    weights = st.lists(number, min_size=len(n), max_size=len(n)).filter(lambda w: sum(w) > 0)
    starts = [0, *np.cumsum(draw(st.lists(st.integers(1, 60), max_size=2))).tolist()]
    return n, [(start, draw(weights)) for start in starts]


@hypothesis.given(sizes, st.integers(0, 3))
def test_a_mixture_without_weights_has_everything_once_an_epoch(n, epoch):
    plan = mixture(n)
    seen = Counter()
    for k in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        source, _, ids = plan.step(k)
        seen.update((source, i) for i in ids.tolist() if i != PADDING)
    assert seen == Counter({(source, i): 1 for source, size in enumerate(n) for i in range(size)})


@hypothesis.given(mixtures(), st.integers(1, 200))
def test_a_mixture_serves_each_data_set_in_its_own_order(mixed, steps):
    """Whatever the weights, its batches are those of the data set's own plan, one after the other: nothing is skipped or repeated."""
    plan = mixture(*mixed)
    served = Counter()
    for k in range(steps):
        source, bucket, ids = plan.step(k)
        alone = plan.plans[source].step(served[source])
        assert bucket == alone[0] and np.array_equal(ids, alone[1])
        served[source] += 1


@hypothesis.given(mixtures(), st.integers(1, 300))
def test_shares_are_kept_at_every_step(mixed, steps):
    n, segments = mixed
    plan = mixture(n, segments)
    ends = [start for start, _ in segments[1:]] + [steps]
    for (start, weights), end in zip(segments, ends):
        served, share = np.zeros(len(n)), np.array(weights) / sum(weights)
        for k in range(start, min(end, steps)):
            served[plan.turn(k)[0]] += 1
            assert (np.abs(served - share * served.sum()) <= (len(n) + 1) / 2 + served.sum() / CYCLE).all()
            assert not served[share == 0].any()


@hypothesis.given(mixtures(), st.integers(0, 300), st.integers(1, 100), st.data())
def test_new_weights_leave_the_past_alone(mixed, last, later, data):
    n, segments = mixed
    start = segments[-1][0] + later
    more = data.draw(st.lists(st.floats(0.01, 9), min_size=len(n), max_size=len(n)))
    before, after = mixture(n, segments), pickle.loads(pickle.dumps(mixture(n, [*segments, (start, more)])))
    for k in {min(last, start - 1), start - 1}:
        a, b = before.step(k), after.step(k)
        assert a[:2] == b[:2] and np.array_equal(a[2], b[2])
        assert before.row_rng(k, 1).integers(2**60) == after.row_rng(k, 1).integers(2**60)


def test_threads_share_a_plan():
    """Four threads, an epoch a batch: nobody finds the table gone that another has just pushed out."""
    plan, again = (StepPlan(np.full(4, 10), [dict(b=4, t=16)], fingerprint="x", seed=0) for _ in range(2))
    steps, wrong, expected = iter(range(20_000)), [], [again.step(k)[1].tolist() for k in range(5)]

    def ask() -> None:
        try:
            for k in steps:
                ids = plan.step(k)[1].tolist()
                assert k >= 5 or ids == expected[k]
        except BaseException as error:
            wrong.append(error)

    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    sys.setswitchinterval(often)
    assert not wrong


def test_no_weights_are_shares_in_proportion():
    """So a training that began without weights can get some."""
    one, two = mixture([30, 10]), mixture([30, 10], [(0, ()), (16, (0, 1))])
    assert [one.step(k)[0] for k in range(16)] == [two.step(k)[0] for k in range(16)] and {two.step(k)[0] for k in range(16, 30)} == {1}


def test_weights_far_into_a_training():
    """After a billion steps the shares are exact and the look-up has not become slow."""
    plan = mixture([30, 70, 11], [(0, (3, 1, 0)), (10**9, (1, 1, 2))])
    assert plan.turn(10**9)[1] in (750_000_000, 250_000_000, 0)
    counts = [max(n for source, n in (plan.turn(k) for k in range(10**9, 10**9 + 4)) if source == s) for s in range(3)]
    assert counts == [750_000_000, 250_000_000, 1]


@pytest.mark.parametrize("segments, words", [
    ([(5, (1, 1))], "the first begins at 0"),
    ([(0, (1, 1)), (0, (1, 2))], "each later than the one before"),
    ([(0, (1, 1, 1))], "3 weights from step 0 on, config.data.path names 2 data sets"),
    ([(0, (0, 0))], "not all 0"),
    ([(0, (-1, 2))], "at least 0"),
    ([(0, (float("nan"), 2))], "at least 0"),
    ([(0, (1e-6, 1.0))], "a weight below 1/10000 of the whole is never served"),
])
def test_impossible_weights(segments, words):
    with pytest.raises(ValueError, match="config.data.weights.*" + words):
        mixture([4, 4], segments)
