"""How far found phone boundaries are from exact ones: median and mean absolute error, shares within 20 and 50 ms.

Every boundary inside an utterance counts once (the ends of all phones but the last, whose end is the recording's). The measure of
forced aligners since TIMIT; 20 ms is about what human labellers agree to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ns2_jax.evals import statistics
from ns2_jax.text import phones as inventory

TOLERANCES = (20, 50)  # ms


def errors(found: np.ndarray, exact: np.ndarray, rate: int) -> np.ndarray:
    """Signed errors in ms of the inner ends, `[p - 1]`, from ends `[p]` in samples; positive is late. Raises ValueError unless both are
    ends of as many phones."""
    if np.shape(found) != np.shape(exact):
        raise ValueError(f"{np.size(found)} found ends and {np.size(exact)} exact ones: both must be of the same phones")
    return (np.asarray(found, np.float64) - np.asarray(exact, np.float64))[:-1] * 1000 / rate


def measure(found: Sequence[np.ndarray | None], exact: Sequence[np.ndarray], rate: int) -> list[dict[str, Any]]:
    """One row per utterance: `errors` in ms, None counts as missing and every boundary of it as infinitely wrong."""
    return [{"errors": [float("inf")] * (len(b) - 1), "missing": True} if a is None else {"errors": errors(a, b, rate).tolist()}
            for a, b in zip(found, exact, strict=True)]


def median(rows: Sequence[dict[str, Any]]) -> float:
    """Of the absolute errors of all boundaries, ms."""
    return float(np.median(np.abs(np.concatenate([row["errors"] for row in rows]))))


def _interval(rows: Sequence[dict[str, Any]], seed: int) -> list[float]:
    """95 % percentile bootstrap over utterances of the pooled median."""
    rng, absolute = np.random.default_rng(seed), [np.abs(row["errors"]) for row in rows]
    picks = rng.integers(0, len(rows), (statistics.ROUNDS // 4, len(rows)))
    medians = [np.median(np.concatenate([absolute[i] for i in pick])) for pick in picks]
    return [float(x) for x in np.quantile(medians, [0.025, 0.975], method="inverted_cdf")]  # never between a number and infinity


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `boundary_median_*` (ms), `boundary_within_20_*` and `_50_*` (shares of all boundaries).

    Raises ValueError without a boundary."""
    counts = [len(row["errors"]) for row in rows]
    if not sum(counts):
        raise ValueError("no utterance has two phones: there is no boundary to score")
    common = dict(evaluator=f"ns2_jax {statistics.code(__name__)}", missing=statistics.missing(rows), **fingerprint)
    within = lambda ms: [int((np.abs(row["errors"]) <= ms).sum()) for row in rows]
    lines = [statistics.score(f"boundary_within_{ms}_{condition}", within(ms), counts, unit="share", seed=seed,
                              averaging="over all boundaries inside utterances", **common) for ms in TOLERANCES]
    first = statistics.score(f"boundary_median_{condition}", [0.0] * len(rows), counts, unit="ms", seed=seed,
                             averaging="median of absolute errors of all boundaries inside utterances", **common)
    first |= {"value": median(rows), "interval": _interval(rows, seed)}
    return [first, *lines]
