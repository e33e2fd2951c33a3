"""SentencePiece units."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.sentences import load_list
from ns2_jax.text import units


@pytest.fixture(scope="module")
def model() -> bytes:
    return units.train(load_list("train"), size=200)


def test_round_trip(model, tmp_path):
    loaded = units.Units(model)
    assert loaded.size == 200
    for text in load_list("train")[:20]:
        ids = loaded.encode(text)
        assert ids.dtype == np.int32 and ids.min() > 1 and len(ids) < len(text)
        assert loaded.decode([*ids, 0, 0]) == text
    (tmp_path / "units.model").write_bytes(model)
    np.testing.assert_array_equal(units.load(tmp_path / "units.model").encode("a test"), loaded.encode("a test"))


def test_training_is_deterministic(model):
    assert units.train(load_list("train"), size=200) == model


def test_errors(model, tmp_path):
    with pytest.raises(ValueError, match="empty"):
        units.Units(model).encode(" ")
    with pytest.raises(ValueError, match="5000"):
        units.train(["too small"], size=5000)
    with pytest.raises(FileNotFoundError):
        units.load(tmp_path / "none.model")
