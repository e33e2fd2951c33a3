"""Bootstrap intervals against theory, and the lists' names."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

from ns2_jax.evals import scores, statistics


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(3).normal(2.0, 1.5, 400)
    low, high = statistics.bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert abs(low - (values.mean() - half)) < 0.15 * half and abs(high - (values.mean() + half)) < 0.15 * half


def test_interval_of_a_ratio_weighs_items_by_their_denominator():
    errors, words = np.array([0.0, 10.0]), np.array([90.0, 10.0])
    low, high = statistics.bootstrap(errors, words)
    assert low == 0.0 and high == 1.0  # resamples are {0/180, 10/100, 20/20}
    line = statistics.score("wer", errors, words, unit="%", evaluator="x")
    assert line["value"] == pytest.approx(0.1) and line["n"] == 2 and line["fingerprint"]["evaluator"] == "x"


def test_same_seed_same_interval_and_constant_has_no_width():
    values = np.random.default_rng(0).uniform(size=30)
    assert statistics.bootstrap(values, seed=4) == statistics.bootstrap(values, seed=4) != statistics.bootstrap(values, seed=5)
    assert statistics.bootstrap([0.25] * 9) == (0.25, 0.25)


@pytest.mark.parametrize("top,bottom", [([], None), ([1.0, 2.0], [1.0])])
def test_refuses_nothing_and_uneven(top, bottom):
    with pytest.raises(ValueError):
        statistics.bootstrap(top, bottom)


def test_digest_names_content_and_order():
    assert statistics.digest(["a", "b"]) == statistics.digest(iter(["a", "b"]))
    assert len({statistics.digest(x) for x in (["a", "b"], ["b", "a"], ["ab"], ["a"])}) == 4


def test_code_is_named_by_what_it_does_on_every_python(tmp_path, monkeypatch):
    def code(text: str) -> str:
        name = f"named_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return statistics.code(importlib.import_module(name))

    monkeypatch.syspath_prepend(tmp_path)
    text = '''"""About."""\n\nclass A:\n    """A."""\n\n    def f(self, *xs):\n        """F."""\n        return f"{xs}: {[]}"\n'''
    assert code(text) == "fd0670ac"  # as Python 3.11 names it, which named the published scores
    assert code(text.replace("F.", "What f does.") + "# said\n") == code(text)
    assert code(text.replace("xs", "ys")) != code(text)


def test_a_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    items = rng.normal(50, 20, 200)  # how hard each item is, for both
    a, b = items + rng.normal(1, 1, 200), items + rng.normal(0, 1, 200)
    found = statistics.paired(a, b)
    assert found["value"] == pytest.approx(np.mean(a - b)) and found["n"] == 200 and found["decided"]
    low, high = found["interval"]
    alone = statistics.bootstrap(a)
    assert high - low < 0.2 * (alone[1] - alone[0])
    half = 1.96 * np.std(a - b) / np.sqrt(200)  # the normal approximation
    assert low == pytest.approx(found["value"] - half, abs=0.05) and high == pytest.approx(found["value"] + half, abs=0.05)
    assert not statistics.paired(a, a[::-1])["decided"]


def test_paired_rates_are_pooled_and_lists_must_agree():
    assert statistics.paired([2, 0], [1, 1], [10, 30])["value"] == 0 and statistics.paired([4, 0], [0, 0], [10, 30])["value"] == 0.1
    with pytest.raises(ValueError, match="over 3 and 2 items"):
        statistics.paired([1, 2, 3], [1, 2])


def test_items_have_six_digits_of_what_is_not_whole(tmp_path):
    row = {"id": "a", "n": 1234567, "yes": True, "none": None, "x": [0.123456789, [2.0, {"y": np.float64(123456.789)}]]}
    scores.write(tmp_path, [statistics.score("x_synthesis", [0.123456789], unit="%", evaluator="e", averaging="a")], [row])
    text = (tmp_path / "items.jsonl").read_text()
    assert text == '{"id":"a","n":1234567,"yes":true,"none":null,"x":[0.123457,[2.0,{"y":123457.0}]]}\n'
    assert json.loads((tmp_path / "scores.jsonl").read_text())["value"] == 0.123456789
