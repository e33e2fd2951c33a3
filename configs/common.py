"""Every default once, and the parser of a config's string argument.

A config file is one `get_config(arg)` that starts from `defaults()`, fills in its numbers and ends with `finish`:

    WORDS = ("adapt",)                                    # the variants this file knows

    def get_config(arg: str = "") -> ml_collections.ConfigDict:
        size, variants, overrides = common.parse(arg, WORDS)
        config = common.defaults(system="valle", size=size)
        config.model = common.choose(size, smoke=dict(...), small=dict(...), base=dict(...))
        ...
        return common.finish(config, overrides)

The argument is bare words, one size (smoke | small | base, default base) then variants, and `key=value` overrides:
`configs/valle.py:small,adapt,levels=8`. A key is a dotted path (`optim.peak=1e-4`), a field of the model, or a
name that occurs once in the config (`levels=8`). On the command line `--config.optim.peak=1e-4` does the same, after the file is read.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

SIZES = ("smoke", "small", "base")


def parse(arg: str | None, variants: Sequence[str] = ()) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """`"small,adapt,levels=8"` -> `("small", ("adapt",), {"levels": "8"})`.

    `variants` are the words the config file knows besides the sizes. Raises ValueError for an unknown word, a second
    size, or a key given twice; the message names the word and what exists.
    """
    size, chosen, overrides = None, [], {}
    for word in (w.strip() for w in (arg or "").split(",")):
        if not word:
            continue
        key, equals, value = word.partition("=")
        if equals:
            if not key or key in overrides:
                raise ValueError(f"config argument {word!r}: the key is {'given twice' if key else 'empty'}")
            overrides[key] = value
        elif word in SIZES:
            if size is not None:
                raise ValueError(f"config argument {arg!r} names two sizes, {size!r} and {word!r}; give one of {list(SIZES)}")
            size = word
        elif word in variants:
            chosen.append(word)
        else:
            raise ValueError(f"config argument {word!r} is unknown; sizes are {list(SIZES)}, variants here are {list(variants)}")
    return size or "base", tuple(chosen), overrides


def check_needed(arg: str, words: Sequence[str], anyway: Sequence[str]) -> None:
    """Raises ValueError for a word that says what the size is `anyway`."""
    idle = [word for word in words if word in anyway]
    if idle:
        raise ValueError(f"config argument {arg!r}: without {idle[0]!r} it is the same; leave the word out")


def choose(size: str, **choices: Any) -> Any:
    """`choices[size]`: the numbers of one size, `choose(size, smoke=..., small=..., base=...)`."""
    if size not in choices:
        raise ValueError(f"size {size!r} does not exist here; sizes are {sorted(choices)}")
    return choices[size]


def defaults(system: str, size: str = "base") -> ml_collections.ConfigDict:
    """The whole config with every default; `model` and `data.buckets` are the file's to fill."""
    config = ml_collections.ConfigDict()
    config.system = system  # ns2_jax/systems/<system>.py
    config.size = size
    config.seed = 0  # of parameters, noise and data order
    config.precision = "float32" if size != "base" else "bfloat16"  # of the computation; parameters are float32

    config.model = ml_collections.ConfigDict()  # System(**model)

    config.data = data = ml_collections.ConfigDict()
    data.path = ""  # a data set: a folder with manifest.json, or its URL (gs://, s3://, http://); several with commas between them
    data.weights = ()  # of several: ((0, (3, 1)), (50000, (1, 1))), from which step each has which share; () shares by size
    data.split = "train"
    data.transform = "crop"  # crop | whole | cut_prompt | speaker_prompt | speaker_prefix | prefix
    data.buckets = ()  # dicts of static lengths: b rows (of all hosts), t frames, p phones, u prompt frames
    data.sample_rate = 16000  # Hz
    data.hop = 200  # samples a frame
    data.codes = ""  # which codec's codes, 12 hex digits; "" means the codec of init_from
    data.workers = 0  # processes that decode; 0 is this one
    data.cut = ml_collections.ConfigDict()  # by quality column: {"snr_db": (15, None), "duplicate": (None, 0)}, lowest and highest
    data.gain_db = 0.0  # audio is made louder or softer by up to so many decibels

    config.optim = optim = ml_collections.ConfigDict()
    optim.peak = 5e-4  # learning rate
    optim.warmup = 1000  # steps
    optim.schedule = "cosine"  # cosine | linear | inverse_sqrt | constant
    optim.b1 = 0.9
    optim.b2 = 0.98
    optim.weight_decay = 0.0  # on matrices and kernels; never on biases, gains and tables
    optim.clip = 1.0  # global gradient norm per chain; 0 is off
    optim.by_key = ml_collections.ConfigDict()  # per top-level key of params: {"disc": {"peak": 1e-4}}

    config.train = train = ml_collections.ConfigDict()
    train.steps = 100_000
    train.micro_batches = 1  # gradients of so many slices of the batch are added before an update
    train.ema = 0.999  # decay of the weights average
    train.log_every = 100
    train.save_every = 5000
    train.keep = 3  # checkpoints
    train.frozen = ()  # regexes of paths ("params/encoder/.*") that are not trained

    config.mesh = ml_collections.ConfigDict(dict(data=1, fsdp=-1, sequence=1, tensor=1))  # -1 takes what is left
    config.init_from = ml_collections.ConfigDict()  # {"rest/codec": "EXPORT"}
    return config


def adapt(config: ml_collections.ConfigDict, trained: Sequence[str], preserve: bool = False) -> None:
    """Turns a config into one that adapts a trained model to a voice, of which there are some twenty recordings: 100 steps at a tenth of the
    learning rate, on the params whose whole paths match one of the regexes `trained`; all others stay as they are.

    `preserve` keeps what the model knew about other voices: `data.path` then names two data sets, the voice and the old corpus, and every
    second batch is of the latter.
    """
    config.train.frozen = (f"(?!(?:{'|'.join(trained)})$).*",)
    config.optim.peak, config.optim.warmup, config.optim.schedule, config.optim.weight_decay = config.optim.peak / 10, 10, "constant", 0.0
    config.train.steps, config.train.ema, config.train.log_every, config.train.save_every = 100, 0.9, 10, 50
    config.data.weights = ((0, (1, 1)),) if preserve else ()


def override(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Applies `key=value` overrides. Raises ValueError as `finish`."""
    for key, value in overrides.items():
        path = _find(config, key)
        *parents, name = path.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        try:
            node[name] = _convert(value, node[name])
        except (ValueError, SyntaxError, TypeError) as error:
            expected = type(node[name]).__name__
            raise ValueError(f"config argument {key}={value}: expected {expected}, as in {key}={node[name]!r}") from error


def finish(config: ml_collections.ConfigDict, overrides: Mapping[str, str] | None = None) -> ml_collections.ConfigDict:
    """Applies `key=value` overrides and locks the config against misspelt fields.

    Raises ValueError for a key that does not exist or is not unique (naming those that do) and for a value of the
    wrong type.
    """
    override(config, overrides or {})
    config.lock()
    config.optim.by_key.unlock()
    config.init_from.unlock()
    config.data.cut.unlock()  # open dictionaries: their keys are paths and columns
    return config


def paths(config: ml_collections.ConfigDict) -> list[str]:
    """Every dotted path of the config's leaves."""
    found = []
    for name in config.keys():
        value = config[name]
        nested = isinstance(value, ml_collections.ConfigDict) and len(value)
        found.extend(f"{name}.{inner}" for inner in paths(value)) if nested else found.append(name)
    return found


def _find(config: ml_collections.ConfigDict, key: str) -> str:
    """The one path that `key` names: itself, the model's field of that name, or the only path that ends in it."""
    known = paths(config)
    if key in known:
        return key
    if f"model.{key}" in known:
        return f"model.{key}"
    matches = [path for path in known if path.endswith("." + key)]
    first = [path for path in matches if path.count(".") == min(p.count(".") for p in matches)]
    if len(first) == 1:
        return first[0]
    if matches:
        raise ValueError(f"config argument {key!r} could be any of {matches}; write the whole path")
    near = difflib.get_close_matches(key, known + [p.rsplit(".", 1)[-1] for p in known], n=3)
    raise ValueError(f"config argument {key!r} is not a field; {'close: ' + str(near) if near else 'fields: ' + str(known)}")


def _convert(text: str, old: Any) -> Any:
    """`text` as a value of the type of `old`."""
    if isinstance(old, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError("not a boolean")
        return text.lower() in ("true", "1")
    if isinstance(old, int):
        return int(text) if "e" not in text.lower() else int(float(text))
    if isinstance(old, float):
        return float(text)
    if isinstance(old, str) or old is None:
        return text
    value = ast.literal_eval(text)
    return type(old)(value) if isinstance(old, (tuple, list)) else value
