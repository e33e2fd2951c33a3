"""How close resynthesised speech is to its recording: PESQ (ITU-T P.862.2, wideband), STOI and SI-SDR."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import statistics

RATE = 16000


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB of `[s]` against `[s]` (Le Roux et al. 2019, equation 3)."""
    reference, estimate = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (reference, estimate))
    target = (estimate @ reference) / max(reference @ reference, 1e-20) * reference
    return float(10 * np.log10(max(target @ target, 1e-20) / max(np.square(estimate - target).sum(), 1e-20)))


def check() -> None:
    """Raises ImportError when a package that it needs is missing."""
    try:
        import pesq
        import pystoi
    except ImportError as error:
        raise ImportError(f"codec quality needs the package {error.name}: pip install -e '.[eval]'") from error
    del pesq, pystoi


def quality(reference: np.ndarray, estimate: np.ndarray | None) -> dict[str, float]:
    """PESQ-WB (1.0 to 4.64), STOI (0 to 1), SI-SDR (dB) of `estimate [s]` against `reference [s]` at 16 kHz.

    Both are cut to the shorter. A missing estimate, or one too short for PESQ or without an utterance, scores the scale's lowest.
    """
    import pesq  # part of the eval extra
    import pystoi

    worst = {"pesq": 1.0, "stoi": 0.0, "si_sdr": -30.0}
    if not files.has_signal(estimate):
        return worst | {"missing": True}
    length = min(len(reference), len(estimate))
    reference, estimate = np.asarray(reference[:length], np.float32), np.asarray(estimate[:length], np.float32)
    try:
        heard = float(pesq.pesq(RATE, reference, estimate, "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        heard = worst["pesq"]
    intelligibility = float(pystoi.stoi(reference, estimate, RATE))
    return {"pesq": heard, "stoi": intelligibility, "si_sdr": max(si_sdr(reference, estimate), worst["si_sdr"])}


def measure(references: Sequence[np.ndarray], audios: Sequence[np.ndarray | None], rate: int = RATE, progress: bool = True) -> list[dict[str, Any]]:
    """One row per item: `quality`."""
    pairs = zip(*(files.resample_all(x, rate, RATE) for x in (references, audios)), strict=True)
    return [quality(r, a) for r, a in tqdm.tqdm(pairs, "quality", len(references), mininterval=2, disable=not progress)]


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `pesq_*`, `stoi_*`, `si_sdr_*` of one condition."""
    version = lambda package: f"{package} {importlib.metadata.version(package)}"
    evaluators = {"pesq": (version("pesq") + " wideband", "MOS-LQO"), "stoi": (version("pystoi"), ""), "si_sdr": ("ns2_jax", "dB")}
    return [statistics.score(
        f"{key}_{condition}", [row[key] for row in rows], unit=unit, seed=seed, evaluator=evaluator, missing=statistics.missing(rows),
        averaging="mean over items; a missing output scores the scale's lowest", **fingerprint) for key, (evaluator, unit) in evaluators.items()]
