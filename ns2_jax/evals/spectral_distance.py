"""How far the spectrum of resynthesised speech is from its recording's: the mel and STFT distances of DAC (Kumar et al. 2023).

`mel`: L1 of log10 mel magnitudes, summed over windows of 32 to 2048 samples with 5 to 320 bins, as in DAC's training loss (its
conf/base.yml). `stft`: L1 of log10 magnitudes, summed over its windows of 2048 and 512 (MultiScaleSTFTLoss, the magnitudes
themselves and their squaring left out). Hops are a quarter, frames centred with mirrored ends, magnitudes floored at 1e-5. Numbers
compare at one sample rate only: here always RATE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import statistics
from ns2_jax.maths import spectral

RATE = 16000
MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))  # (window, bins)
STFT_WINDOWS = (2048, 512)
FLOOR = 1e-5


def check() -> None:
    """Needs no package of its own."""


def magnitudes(audio: np.ndarray, size: int) -> np.ndarray:
    """|STFT| of `[s]`, float32 `[1 + s // hop, size // 2 + 1]`: Hann window, hop `size // 4`, frames centred, ends mirrored."""
    padded = np.pad(np.asarray(audio, np.float32), size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 4]
    return np.abs(np.fft.rfft(frames * spectral.hann(size))).astype(np.float32)


def logs(audio: np.ndarray) -> dict[str, list[np.ndarray]]:
    """log10 spectra `[t, bins]` of `[s]` at RATE, one for each window: `mel` and `stft`."""
    by_size = {size: magnitudes(audio, size) for size in dict.fromkeys((*(size for size, _ in MEL_SCALES), *STFT_WINDOWS))}
    log = lambda x: np.log10(np.maximum(x, FLOOR))
    return {"mel": [log(by_size[size] @ spectral.mel_filterbank(RATE, size, bins)) for size, bins in MEL_SCALES],
            "stft": [log(by_size[size]) for size in STFT_WINDOWS]}


def distance(reference: np.ndarray, estimate: np.ndarray | None) -> dict[str, Any]:
    """`mel` and `stft` distance (log10 units, 0 for a copy) of `[s]` from `[s]` at RATE, both cut to the shorter.

    A missing estimate, or one without signal, is as far as silence.
    """
    missing = not files.has_signal(estimate)
    estimate = np.zeros_like(reference) if missing else estimate
    length = min(len(reference), len(estimate))
    fill = max(0, max(STFT_WINDOWS) // 2 + 1 - length)  # what a mirror needs
    one, two = (logs(np.pad(x[:length], (0, fill))) for x in (reference, estimate))
    far = {name: float(sum(np.abs(a - b).mean() for a, b in zip(one[name], two[name]))) for name in one}
    return far | ({"missing": True} if missing else {})


def measure(references: Sequence[np.ndarray], audios: Sequence[np.ndarray | None], rate: int = RATE,
            progress: bool = True) -> list[dict[str, Any]]:
    """One row per item: `distance`."""
    pairs = zip(*(files.resample_all(x, rate, RATE) for x in (references, audios)), strict=True)
    return [distance(r, a) for r, a in tqdm.tqdm(pairs, "spectra", len(references), mininterval=2, disable=not progress)]


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `mel_distance_*` and `stft_distance_*` of one condition."""
    scales = {"mel": f"DAC's mel distance at {RATE} Hz, windows {MEL_SCALES[0][0]} to {MEL_SCALES[-1][0]}",
              "stft": f"DAC's log STFT distance at {RATE} Hz, windows {' and '.join(map(str, STFT_WINDOWS))}"}
    about = dict(unit="log10", seed=seed, missing=statistics.missing(rows), **fingerprint)
    return [statistics.score(
        f"{name}_distance_{condition}", [row[name] for row in rows], evaluator=f"{scale}, ns2_jax {statistics.code(spectral, __name__)}",
        averaging="sum over windows, mean over items; a missing output counts as silence", **about) for name, scale in scales.items()]
