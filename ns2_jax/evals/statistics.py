"""Intervals and fingerprints: what a score carries besides its value."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

ROUNDS = 2000


def bootstrap(numerators: Sequence[float], denominators: Sequence[float] | None = None, seed: int = 0, rounds: int = ROUNDS,
              coverage: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of `sum(numerators) / sum(denominators)` over resampled items (Efron 1979).

    Without denominators it is the interval of the mean. Raises ValueError for no items or unequal lengths.
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, np.float64)
    if top.size == 0 or top.shape != bottom.shape:
        raise ValueError(f"bootstrap over {top.size} numerators and {bottom.size} denominators: expected equally many, at least one")
    picks = np.random.default_rng(seed).integers(0, top.size, (rounds, top.size))
    ratios = top[picks].sum(1) / np.maximum(bottom[picks].sum(1), 1e-12)
    low, high = np.quantile(ratios, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def paired(a: Sequence[float], b: Sequence[float], denominators: Sequence[float] | None = None, seed: int = 0,
           rounds: int = ROUNDS) -> dict[str, Any]:
    """The difference `a - b` of two systems on the same items, in their order, with its 95 % paired bootstrap interval.

    With denominators (words, say) it is the difference of the pooled rates. `decided` is whether the interval leaves out 0.
    Raises ValueError for unequal lengths: items that only one system has cannot be paired.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired difference over {a.size} and {b.size} items: both systems must be scored on the same list")
    bottom = np.ones_like(a) if denominators is None else np.asarray(denominators, np.float64)
    low, high = bootstrap(a - b, bottom, seed, rounds)
    return {"value": float((a - b).sum() / max(bottom.sum(), 1e-12)), "interval": [low, high], "n": int(a.size), "decided": not low <= 0 <= high}


def missing(rows: Iterable[Mapping[str, Any] | None]) -> int:
    """How many items had no output that could be judged: rows that are None or say so."""
    return sum(row is None or bool(row.get("missing")) for row in rows)


def digest(things: Iterable[Any]) -> str:
    """Twelve hex digits that name a list (sha256 of its JSON lines), for fingerprints."""
    sha = hashlib.sha256()
    for thing in things:
        sha.update((json.dumps(thing, sort_keys=True, ensure_ascii=False) + "\n").encode())
    return sha.hexdigest()[:12]


def code(*modules: types.ModuleType | str) -> str:
    """Eight hex digits of what modules (or those of these names) do, docstrings and comments apart: for fingerprints of what we
    compute ourselves."""
    sha = hashlib.sha256()
    for module in modules:
        tree = ast.parse(inspect.getsource(sys.modules[module] if isinstance(module, str) else module))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                body[0].value.value = ""
        text = ast.dump(tree, **({"show_empty": True} if sys.version_info >= (3, 13) else {}))
        sha.update(text.replace(", type_params=[]", "").encode())  # as Python 3.11 writes it, on every one
    return sha.hexdigest()[:8]


def score(name: str, numerators: Sequence[float], denominators: Sequence[float] | None = None, unit: str = "", averaging: str = "",
          seed: int = 0, **fingerprint: Any) -> dict[str, Any]:
    """One line of `scores.jsonl`: name, value, unit, 95 % interval, n and the fingerprint that says what was measured how."""
    top = np.asarray(numerators, np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, np.float64)
    low, high = bootstrap(top, bottom, seed)
    return {
        "name": name,
        "value": float(top.sum() / max(bottom.sum(), 1e-12)),
        "unit": unit,
        "interval": [low, high],
        "n": int(top.size),
        "fingerprint": {
            "averaging": averaging, "interval": f"95 % percentile bootstrap over items, {ROUNDS} rounds, seed {seed}", **fingerprint},
    }
