"""Every config answers every size, its resolved numbers are pinned, and a misspelt word says what would have been right.

The snapshots in tests/golden/configs are what a run of today would train. When a change of numbers is meant, refresh them
with `UPDATE_GOLDEN=1 python -m pytest tests/test_configs.py` and let the diff be read with the change.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib

import ml_collections
import pytest

from configs import common
from ns2_jax.systems import system

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = pathlib.Path(__file__).parent / "golden" / "configs"
FILES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common"))
CASES = [(name, size) for name in FILES for size in common.SIZES]


def get(name: str, arg: str = "") -> ml_collections.ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(arg)


def plain(config: ml_collections.ConfigDict) -> dict:
    return json.loads(json.dumps(config.to_dict(), default=list, sort_keys=True))


def test_the_known_configs_are_found():
    assert {"codec", "naturalspeech2"} <= set(FILES)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_resolved_config_is_as_pinned(name, size):
    path, now = GOLDEN / f"{name}-{size}.json", plain(get(name, size))
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    assert path.is_file(), f"no snapshot; write it with UPDATE_GOLDEN=1 (see {__file__})"
    assert now == json.loads(path.read_text()), "config changed: if that is meant, refresh with UPDATE_GOLDEN=1"


@pytest.mark.parametrize("name", FILES)
def test_a_changed_number_is_seen(name):
    changed = plain(get(name, "smoke,optim.peak=0.5"))
    assert changed != json.loads((GOLDEN / f"{name}-smoke.json").read_text())
    assert changed["optim"]["peak"] == 0.5


def test_no_snapshot_is_left_over():
    assert {p.stem for p in GOLDEN.glob("*.json")} == {f"{name}-{size}" for name, size in CASES}


@pytest.mark.parametrize(("name", "size"), CASES)
def test_config_builds_its_system_and_has_what_it_needs(name, size):
    config = get(name, size)
    built = system.make(config.system, config.model.to_dict())
    assert config.size == size and config.data.buckets
    letters = {a for field in built.fields.values() for a in field.axes} - set(built.sizes)
    for bucket in config.data.buckets:
        given = set(bucket) | {samples for samples, frames in (("s", "t"), ("v", "u")) if frames in bucket}  # so many frames times hop
        assert letters <= given, f"bucket {dict(bucket)} says nothing about {letters - given}"
        assert all(isinstance(n, int) and n > 0 for n in bucket.values())
    assert config.train.steps > config.optim.warmup >= 0 and config.optim.peak > 0
    assert config.precision in ("float32", "bfloat16")


@pytest.mark.parametrize("name", FILES)
def test_base_is_the_default_size(name):
    assert plain(get(name)) == plain(get(name, "base"))


@pytest.mark.parametrize("name", FILES)
def test_docstring_gives_the_command(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"python -m ns2_jax.train --config=configs/{name}.py" in text
    assert all(size in text for size in common.SIZES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("arg", "message"), [
    ("smal", "'smal' is unknown.*smoke.*small.*base"),
    ("small,base", "two sizes"),
    ("smoke,optim.peek=1", "optim.peek.*not a field.*optim.peak"),
    ("smoke,seed=abc", "seed=abc.*expected int"),
    ("smoke,=3", "key is empty"),
    ("smoke,seed=1,seed=2", "given twice"),
])
def test_wrong_arguments_are_explained(name, arg, message):
    with pytest.raises(ValueError, match=message):
        get(name, arg)


@pytest.mark.parametrize("name", FILES)
def test_a_misspelt_field_is_refused(name):
    config = get(name, "smoke")
    for node in ("optim", "train", "data", "mesh", "model"):
        with pytest.raises((KeyError, AttributeError)):
            config[node].no_such_field = 1


def test_overrides_take_paths_unique_names_and_types():
    config = get("codec", "small,steps=12,optim.peak=1e-3,precision=bfloat16")
    assert (config.train.steps, config.optim.peak, config.precision) == (12, 1e-3, "bfloat16")
    assert isinstance(config.train.steps, int)
    assert get("codec", "smoke,steps=2e3").train.steps == 2000


def test_parse_orders_sizes_variants_and_overrides():
    assert common.parse("small,adapt,levels=8", ("adapt",)) == ("small", ("adapt",), {"levels": "8"})
    assert common.parse("", ()) == ("base", (), {})
    assert common.parse(None) == ("base", (), {})
