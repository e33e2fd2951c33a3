"""DNSMOS P.835 and P.808 (Reddy et al. 2021, 2022): opinion scores predicted by the networks in the speechmos wheel.

No reference is needed. They were trained on noisy calls: they hear noise and coding well, wrong words and voices not at all.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import statistics

RATE = 16000
KEYS = {"ovrl_mos": "dnsmos_overall", "sig_mos": "dnsmos_signal", "bak_mos": "dnsmos_background", "p808_mos": "dnsmos_p808"}
WORST = 1.0
PEAK = 0.9  # louder audio is brought down to it: the networks refuse samples beyond 1


def check() -> None:
    """Raises ImportError when a package that it needs is missing."""
    try:
        import onnxruntime
        import speechmos.dnsmos
    except ImportError as error:
        raise ImportError(f"DNSMOS needs the package {error.name}: pip install -e '.[eval]'") from error
    del onnxruntime, speechmos


def opinions(audio: np.ndarray | None) -> dict[str, float]:
    """The four scores (about 1 to 5) of `[s]` at RATE; short audio is repeated to nine seconds, as its authors do.

    Without a signal all are 1.
    """
    from speechmos import dnsmos

    if not files.has_signal(audio):
        return dict.fromkeys(KEYS.values(), WORST)
    audio = np.asarray(audio, np.float32)
    audio = audio * np.float32(min(1.0, PEAK / np.abs(audio).max()))
    found = dnsmos.run(audio, RATE)
    return {ours: float(found[theirs]) for theirs, ours in KEYS.items()}


def measure(audios: Sequence[np.ndarray | None], rate: int = RATE, progress: bool = True) -> list[dict[str, Any]]:
    """One row per item: the four scores."""
    watched = tqdm.tqdm(files.resample_all(audios, rate, RATE), "DNSMOS", mininterval=2, disable=not progress)
    return [opinions(audio) | ({"missing": True} if audio is None else {}) for audio in watched]


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `dnsmos_overall_*`, `_signal_*`, `_background_*`, `_p808_*` of one condition."""
    version = lambda package: f"{package} {importlib.metadata.version(package)}"
    about = dict(seed=seed, unit="MOS", evaluator=f"{version('speechmos')}, {version('onnxruntime')}",
                 averaging="mean over items; a missing output scores 1", missing=statistics.missing(rows), **fingerprint)
    return [statistics.score(f"{key}_{condition}", [row[key] for row in rows], **about) for key in KEYS.values()]
