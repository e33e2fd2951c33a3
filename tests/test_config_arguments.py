"""The string argument of a config."""

from __future__ import annotations

import pytest

from configs import common


def test_words_sizes_and_overrides():
    assert common.parse("") == ("base", (), {}) == common.parse(None)
    assert common.parse("small") == ("small", (), {})
    assert common.parse("small,adapt,levels=8,optim.peak=1e-4", ("adapt",)) == ("small", ("adapt",), {"levels": "8", "optim.peak": "1e-4"})


@pytest.mark.parametrize("arg, message", [
    ("smal", r"'smal' is unknown; sizes are \['smoke', 'small', 'base'\], variants here are \['adapt'\]"),
    ("small,base", "names two sizes, 'small' and 'base'"),
    ("levels=8,levels=9", "given twice"),
    ("=8", "the key is empty"),
])
def test_wrong_arguments(arg, message):
    with pytest.raises(ValueError, match=message):
        common.parse(arg, ("adapt",))


def finished(**overrides):
    config = common.defaults("toy", "smoke")
    config.model = dict(levels=4, width=1.5, name="a", flag=True, sizes=(1, 2), steps=7, a=dict(depth=1), b=dict(depth=2))
    return common.finish(config, overrides)


def test_overrides_take_the_type_of_what_they_replace():
    config = finished(levels="8", width="2", name="3", flag="false", sizes="(3, 4)", **{"optim.peak": "1e-4", "train.steps": "2e3"})
    assert (config.model.levels, config.model.width, config.model.name) == (8, 2.0, "3")
    assert config.model.flag is False and config.model.sizes == (3, 4)
    assert finished(steps="9").model.steps == 9  # the model's field comes first
    assert config.optim.peak == 1e-4 and config.train.steps == 2000
    assert type(config.model.levels) is int and type(config.model.width) is float


@pytest.mark.parametrize("key, value, message", [
    ("levelz", "8", r"'levelz' is not a field; close: \['levels'\]"),
    ("depth", "8", r"could be any of \['model.a.depth', 'model.b.depth'\]"),
    ("levels", "many", "levels=many: expected int"),
    ("flag", "perhaps", "expected bool"),
    ("sizes", "(1,", "expected tuple"),
])
def test_wrong_overrides(key, value, message):
    with pytest.raises(ValueError, match=message):
        finished(**{key: value})


def test_misspelt_fields_are_refused_and_open_dictionaries_are_open():
    config = finished()
    with pytest.raises((AttributeError, KeyError)):
        config.train.stepz = 3
    config.init_from["rest/codec"] = "somewhere"
    config.optim.by_key["disc"] = {"peak": 1.0}
    assert config.init_from.to_dict() == {"rest/codec": "somewhere"}


def test_choose():
    assert common.choose("small", smoke=1, small=2, base=3) == 2
    with pytest.raises(ValueError, match=r"size 'small' does not exist here; sizes are \['base'\]"):
        common.choose("small", base=3)
