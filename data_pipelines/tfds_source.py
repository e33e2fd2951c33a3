"""Recordings of a data set of TensorFlow Datasets, read at random places without TensorFlow (it must be prepared as ArrayRecord).

A place is `tfds:NAME:SPLIT?data_dir=DIR&audio=FEATURE#i`.
"""

from __future__ import annotations

import functools
import importlib.util
import types
import urllib.parse
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipelines.shards import Rejected


def _without_tensorflow() -> None:
    """TFDS 4.9 asks TensorFlow what a dtype is called when an audio feature is made, and for nothing else to read it as arrays."""
    from tensorflow_datasets.core.features import audio_feature

    if importlib.util.find_spec("tensorflow") is None:
        audio_feature.tf = types.SimpleNamespace(dtypes=types.SimpleNamespace(as_dtype=np.dtype))


@functools.lru_cache(maxsize=8)
def _open(place: str) -> tuple[Any, int]:
    """(records, sample rate in Hz). Raises FileNotFoundError, and ValueError for what it can't be read from."""
    import tensorflow_datasets as tfds

    _without_tensorflow()
    name, split, about = _parse(place)
    try:
        builder = tfds.builder(name, data_dir=about["data_dir"])
        source = builder.as_data_source(split)
    except tfds.core.DatasetNotFoundError as error:
        raise FileNotFoundError(f"TensorFlow Datasets has no {name} below {about['data_dir']}") from error
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"{name} below {about['data_dir']} has no split {split!r} to read at random places; prepare it with "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare(): {str(error).splitlines()[0]}") from error
    features = builder.info.features
    if about["audio"] not in features:
        raise ValueError(f"{name} has the features {sorted(features)}, none of them {about['audio']!r}; set config.layout.columns.audio")
    rate = getattr(features[about["audio"]], "sample_rate", None) or dict(builder.info.metadata or {}).get("sample_rate")
    if not rate and "rate" not in about:
        raise ValueError(f"{name} does not say its sample rate; give config.layout.rate in Hz")
    return source, int(about.get("rate") or rate)


def _parse(place: str) -> tuple[str, str, dict[str, str]]:
    """(name, split, options). A name may have a version: `ljspeech:1.1.1`."""
    head, _, query = place.partition("#")[0].partition("?")
    name, _, split = head.removeprefix("tfds:").rpartition(":")
    return name, split, dict(urllib.parse.parse_qsl(query))


def rows(place: str) -> Iterator[dict[str, Any]]:
    """Every record, in order."""
    source, _ = _open(place.partition("#")[0])
    return (source[i] for i in range(len(source)))


def text(value: Any) -> str:
    """A feature as text: bytes, str or a number."""
    return value.decode() if isinstance(value, bytes) else str(value)


def read(place: str) -> tuple[np.ndarray, int]:
    """(samples `[s]` or `[s, channels]`, int16 or float32, rate in Hz) of the recording at a place. Raises Rejected."""
    source, rate = _open(place.partition("#")[0])
    audio = np.asarray(source[int(place.rpartition("#")[2])][_parse(place)[2]["audio"]])
    if np.issubdtype(audio.dtype, np.integer):  # TFDS widens what was 16 bit
        if audio.size and (audio.min() < -32768 or audio.max() > 32767):
            raise Rejected("unreadable", f"{place}: integers up to {np.abs(audio).max()} are no 16 bit audio")
        return audio.astype(np.int16), rate
    return audio.astype(np.float32), rate

