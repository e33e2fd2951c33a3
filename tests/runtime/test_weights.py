"""Weights: round trips, agreement with the safetensors package, damage."""

from __future__ import annotations

import hashlib

import ml_collections
import numpy as np
import pytest
import safetensors.numpy

from ns2_jax.runtime import weights
from ns2_jax.runtime.state import flatten


def tree(seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        "params": {"gen": {"conv": {"kernel": normal(3, 32, 24), "bias": normal(24)}, "tiny": {"kernel": normal(4, 8)}}},
        "rest": {"codebooks": normal(2, 64, 16), "counts": np.arange(6, dtype=np.int32), "mean": normal(16)}}


def leaves(t, prefix=""):
    for key, value in t.items():
        yield from leaves(value, f"{prefix}{key}/") if isinstance(value, dict) else [(prefix + key, value)]


def test_none_is_exact(tmp_path):
    name = weights.write_weights(tmp_path, tree(), "none")
    back = dict(leaves(weights.read_weights(tmp_path)))
    for path, array in leaves(tree()):
        np.testing.assert_array_equal(back[path], array)
        assert back[path].dtype == array.dtype
    assert name == weights.weights_hash(tmp_path) == hashlib.sha256((tmp_path / weights.FILE).read_bytes()).hexdigest()[:12]


def test_the_same_weights_are_the_same_bytes(tmp_path):
    first = weights.write_weights(tmp_path / "a", tree())
    backwards = {key: tree()[key] for key in ("rest", "params")}
    assert weights.write_weights(tmp_path / "b", backwards) == first
    assert weights.write_weights(tmp_path / "c", tree(1)) != first


def test_bf16_rounds_matrices_only(tmp_path):
    weights.write_weights(tmp_path, tree(), "bf16")
    stored, metadata = weights.read_stored(tmp_path)
    assert metadata["quantize"] == "bf16"
    assert {p for p, a in stored.items() if a.dtype.name == "bfloat16"} == {"params/gen/conv/kernel", "params/gen/tiny/kernel", "rest/codebooks"}
    back = dict(leaves(weights.read_weights(tmp_path)))
    for path, array in leaves(tree()):
        np.testing.assert_allclose(back[path], array, rtol=2**-8)
        assert back[path].dtype == array.dtype
    np.testing.assert_array_equal(back["rest/mean"], tree()["rest"]["mean"])


def test_int8_has_one_scale_a_column(tmp_path):
    weights.write_weights(tmp_path, tree(), "int8")
    stored, _ = weights.read_stored(tmp_path)
    assert {p for p, a in stored.items() if a.dtype == np.int8} == {"params/gen/conv/kernel"}
    assert stored["params/gen/conv/kernel:scale"].shape == (3, 1, 24)
    back = dict(leaves(weights.read_weights(tmp_path)))
    assert set(back) == set(dict(leaves(tree())))
    kernel = tree()["params"]["gen"]["conv"]["kernel"]
    largest = np.abs(kernel).max(1, keepdims=True)
    assert np.all(np.abs(back["params/gen/conv/kernel"] - kernel) <= largest / 254 * (1 + 1e-5))  # half a step of 1/127
    again = weights.write_weights(tmp_path / "again", weights.read_weights(tmp_path), "int8")
    np.testing.assert_array_equal(weights.read_stored(tmp_path / "again")[0]["params/gen/conv/kernel"], stored["params/gen/conv/kernel"])
    assert len(again) == 12


def test_zero_columns_survive_int8(tmp_path):
    weights.write_weights(tmp_path, {"params": {"kernel": np.zeros((32, 4), np.float32)}}, "int8")
    np.testing.assert_array_equal(weights.read_weights(tmp_path)["params"]["kernel"], 0)


def test_the_safetensors_package_reads_it(tmp_path):
    weights.write_weights(tmp_path / "w.safetensors", tree(), "none")
    other = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    for path, array in leaves(tree()):
        np.testing.assert_array_equal(other[path], array)


def test_we_read_what_the_package_writes(tmp_path):
    flat = dict(leaves(tree()))
    safetensors.numpy.save_file(flat, tmp_path / weights.FILE)
    for path, array in leaves(weights.read_weights(tmp_path)):
        np.testing.assert_array_equal(flat[path], array)


@pytest.mark.parametrize("where", [3, 12, 40, 100, 300, -1, -1000])
def test_tampering_is_seen(tmp_path, where):
    weights.write_weights(tmp_path, tree(), "bf16")
    raw = bytearray((tmp_path / weights.FILE).read_bytes())
    raw[where] ^= 0x10
    (tmp_path / weights.FILE).write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        weights.read_weights(tmp_path)


def test_truncation_is_seen(tmp_path):
    weights.write_weights(tmp_path, tree())
    raw = (tmp_path / weights.FILE).read_bytes()
    (tmp_path / weights.FILE).write_bytes(raw[:-8])
    with pytest.raises(ValueError, match="damaged"):
        weights.read_weights(tmp_path)


def test_what_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected an export"):
        weights.read_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected an export"):
        weights.weights_hash(tmp_path)
    with pytest.raises(ValueError, match="roundings are"):
        weights.write_weights(tmp_path, tree(), "int4")
    with pytest.raises(ValueError, match="rest/mean holds numbers that are not finite"):
        weights.write_weights(tmp_path, {"rest": {"mean": np.array([np.nan])}})
    assert not list(tmp_path.iterdir())


def test_whose_codes_a_run_reads(tmp_path):
    name = weights.write_weights(tmp_path, tree())
    (tmp_path / "config.json").write_text('{"model": {"codec": {"hop": 200, "blocks": [1, 2]}}}')
    config = ml_collections.ConfigDict(dict(
        system="x", data=dict(codes=""), init_from={"rest/codec": str(tmp_path)}, model=dict(codec=dict(hop=200, blocks=(1, 2)))))
    assert weights.codec_of(config, {"audio": 0}) == ""
    assert weights.codec_of(config, {"codes": 0}) == name == config.data.codes
    with pytest.raises(ValueError, match="say whose"):
        weights.codec_of(ml_collections.ConfigDict(dict(system="x", data=dict(codes=""), init_from={})), {"prompt_codes": 0})
    config.model.codec.hop = 320  # every array still has its shape
    with pytest.raises(ValueError, match="config.model.codec.hop is 320, the codec of init_from.* was trained with 200"):
        weights.codec_of(config, {"codes": 0})
    config.data.codes = "deadbeef0000"
    with pytest.raises(ValueError, match=f"data.codes=deadbeef0000 but the codec of init_from, {tmp_path}, is {name}"):
        weights.codec_of(config, {"codes": 0})


def test_a_frozen_codec_is_never_rounded_again(tmp_path):
    inside = {"rest": {"codec": tree()}, "params": tree()["params"]}
    weights.write_weights(tmp_path, inside, "int8")
    read = flatten(weights.read_weights(tmp_path))
    kept = {path: leaf for path, leaf in flatten(inside).items() if path.startswith("rest/codec/")}
    assert kept and all(np.array_equal(read[path], leaf) for path, leaf in kept.items())
    assert any(not np.array_equal(read[path], leaf) for path, leaf in flatten(inside).items() if path.startswith("params/"))


def test_what_is_neither_trained_nor_given_is_refused():
    """A frozen leaf that no init_from fills would stay random."""
    params = {"text": {"kernel": np.zeros(2)}, "score": {"kernel": np.zeros(2)}}
    config = ml_collections.ConfigDict({"train": {"frozen": ("params/text/.*",)}, "init_from": {"rest/codec": "x"}})
    with pytest.raises(ValueError, match=r"keeps params/text/kernel and 0 more from training, and no init_from fills them.*\"params\": \"EXPORT\""):
        weights.check_frozen(config, params)
    weights.check_frozen(config, params, idle=("params/text/.*",))
    for key in ("params", "params/text"):
        config.init_from = ml_collections.ConfigDict({key: "x"})
        weights.check_frozen(config, params)
    config.init_from = ml_collections.ConfigDict({"params/score": "x"})
    with pytest.raises(ValueError, match="no init_from fills"):
        weights.check_frozen(config, params)
