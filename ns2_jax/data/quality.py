"""Columns that an utterance is judged by, one file each, so that a cut over ten million utterances opens no record.

`index/<split>-quality.json` says which there are, `index/<split>-quality-<column>.npy` is float32 `[n]` in the order of the records,
NaN where the column could not be measured. The stage `quality` (data_pipelines/quality.py) makes them and says what each means.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ns2_jax.data.dataset import Dataset

Cut = Mapping[str, tuple[float | None, float | None]]  # column -> (lowest, highest); None is open
MAKER = "python -m data_pipelines.quality --data={root}"


def table_path(split: str) -> str:
    """Relative to the data set's root."""
    return f"index/{split}-quality.json"


def column_path(split: str, column: str) -> str:
    return f"index/{split}-quality-{column}.npy"


def bounds(cut: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Column -> (lowest, highest) of `config.data.cut`. Raises ValueError for what is no such pair."""
    out = {}
    for column, pair in cut.items():
        try:
            low, high = pair
            out[column] = (-np.inf if low is None else float(low), np.inf if high is None else float(high))
            fine = out[column][0] <= out[column][1]
        except (TypeError, ValueError):
            fine = False
        if not fine:
            raise ValueError(f"config.data.cut: {column}={pair!r}; expected (lowest, highest), None where it is open, as in "
                             "'{\"snr_db\": (15, None)}'")
    return out


def table(dataset: Dataset, split: str) -> dict[str, Any]:
    """What the table of `split` says of itself. Raises ValueError, with the command to make it, where there is none of these recordings."""
    data, maker = dataset.file(table_path(split)), MAKER.format(root=dataset.root)
    if data is None:
        raise ValueError(f"{dataset.root} has no quality columns of {split!r} ({table_path(split)} is missing); make them with {maker}")
    try:
        about = json.loads(data)
        recordings, _ = about["fingerprint"], dict(about["columns"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{dataset.root}/{table_path(split)} is not the table that was written; make it again with {maker}") from error
    if recordings != dataset.fingerprint:
        raise ValueError(f"{dataset.root}/{table_path(split)} is of other recordings than the data set now has; make it again with {maker}")
    return about


def columns(dataset: Dataset, split: str, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Name -> float32 `[n]`. Raises ValueError for an unknown or damaged column and as `table`."""
    about, out = table(dataset, split), {}
    for name in names:
        if name not in about["columns"]:
            raise ValueError(f"{dataset.root} has no quality column {name!r}; it has {sorted(about['columns'])}")
        data = dataset.file(column_path(split, name))
        if data is None or hashlib.sha256(data).hexdigest() != about["columns"][name]:
            what = "is missing" if data is None else "is not the file that was written"
            raise ValueError(f"{dataset.root}/{column_path(split, name)} {what}; make it again with {MAKER.format(root=dataset.root)}")
        out[name] = np.load(io.BytesIO(data))
    return out


def keep(dataset: Dataset, split: str, cut: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, int]]:
    """(whether each utterance lies within all bounds, bool `[n]`; column -> how many lie outside).

    What could not be measured lies outside. Raises ValueError for a wrong cut and when a column was measured nowhere.
    """
    limits, mask, outside = bounds(cut), np.ones(dataset.records(split), bool), {}
    for name, values in columns(dataset, split, limits).items():
        if np.isnan(values).all():
            raise ValueError(f"config.data.cut: column {name!r} of {dataset.root} is empty, because what it is measured on (text, phones, "
                             f"f0) was not there; add that group, then {MAKER.format(root=dataset.root)}")
        within = (values >= limits[name][0]) & (values <= limits[name][1])
        outside[name] = int((~within).sum())
        mask &= within
    return mask, outside


def fingerprint(dataset: Dataset, split: str, cut: Mapping[str, Any]) -> str:
    """Twelve hex digits over the columns that `cut` uses: the same ones leave out the same utterances."""
    about = table(dataset, split)
    return hashlib.sha256(" ".join(about["columns"].get(name, "") for name in sorted(cut)).encode()).hexdigest()[:12]
