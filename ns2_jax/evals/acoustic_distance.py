"""How far synthesised speech is from a recording of the same words, after their frames have been matched in time.

Mel-cepstral distortion (Kubichek 1993), F0 error and voicing error along one exact dynamic-time-warping path. The
cepstrum is the DCT of our log-mel spectrum, not WORLD's: numbers compare with each other and not with other papers'.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import statistics
from ns2_jax.maths import pitch, spectral

RATE, HOP, SIZE, BANDS, ORDER = 16000, 160, 640, 80, 24
LONGEST = 120.0
LEVEL = 0.05  # both sides are brought to this RMS: the floor of the log-mel spectrum then means the same


def cepstra(log_mel_tc: np.ndarray) -> np.ndarray:
    """Coefficients 1 to ORDER of `sum_k c_k cos(k w)`, which describes the log-mel spectrum `[t, bands]`: `[t, ORDER]`."""
    bands = log_mel_tc.shape[-1]
    return (log_mel_tc @ spectral.dct_matrix(bands))[..., 1 : ORDER + 1] * np.sqrt(2 / bands)


def distortion(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """dB between cepstra `[..., ORDER]`: `10 / ln 10 * sqrt(2 sum (a - b)^2)`, the RMS distance of the smoothed log spectra."""
    return 10 / np.log(10) * np.sqrt(2 * np.square(a - b).sum(-1))


def path(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cheapest monotonic pairing of frames `[t, c]` and `[u, c]`: int `[n, 2]`, both ends included (exact DTW, librosa)."""
    import librosa

    square = np.square(a).sum(-1)[:, None] + np.square(b).sum(-1)[None] - 2 * a @ b.T  # no [t, u, c]: half a minute would take gigabytes
    cost = 10 / np.log(10) * np.sqrt(2 * np.maximum(square, 0))
    return librosa.sequence.dtw(C=cost, backtrack=True)[1][::-1]


def tracks(audios: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(log-mel `[t, BANDS]`, F0 in Hz `[t]`, 0 unvoiced) of each `[s]` at RATE, silence at the ends trimmed."""
    trimmed = [files.match_loudness(files.trim_silence(audio, RATE), RATE, LEVEL) for audio in audios]
    f0 = pitch.track_all(trimmed, RATE, HOP)
    mels = [np.asarray(spectral.log_mel(_padded(audio)[None], RATE, SIZE, HOP, BANDS, floor=1e-4))[0, : len(hz)] for audio, hz in zip(trimmed, f0)]
    return list(zip(mels, f0))


def _padded(audio: np.ndarray) -> np.ndarray:
    """To whole seconds: few shapes to compile."""
    return np.pad(audio, (0, -len(audio) % RATE))


def compare(reference: tuple[np.ndarray, np.ndarray], estimate: tuple[np.ndarray, np.ndarray]) -> dict[str, float | None]:
    """`mcd` (dB), `f0_rmse` (Hz) and `f0_cents` over matched frames voiced on both sides (None without any), and
    `voicing_error` (% of matched frames)."""
    a, b = cepstra(reference[0]), cepstra(estimate[0])
    i, j = path(a, b).T
    f, g = reference[1][i].astype(np.float64), estimate[1][j].astype(np.float64)
    both = (f > 0) & (g > 0)
    root = lambda x: float(np.sqrt(np.mean(np.square(x))))
    return {
        "mcd": float(distortion(a[i], b[j]).mean()),
        "f0_rmse": root(f[both] - g[both]) if both.any() else None,
        "f0_cents": root(1200 * np.log2(f[both] / g[both])) if both.any() else None,
        "voicing_error": float(100 * np.mean((f > 0) != (g > 0)))}


def usable(audio: np.ndarray | None) -> bool:
    """Whether there is a signal to measure, of at most LONGEST seconds: the path takes memory with the square of the length."""
    return files.has_signal(audio, HOP + 1) and audio.size <= LONGEST * RATE


def measure(references: Sequence[np.ndarray], audios: Sequence[np.ndarray | None], rate: int = RATE,
            progress: bool = True) -> list[dict[str, Any] | None]:
    """One row per item: `compare`; None for an output without signal, which has no distance."""
    references, audios = (files.resample_all(x, rate, RATE) for x in (references, audios))
    good = [k for k, audio in enumerate(audios) if usable(audio)]
    sides = [tracks([side[k] for k in good]) for side in (references, audios)]
    found = dict(zip(good, (compare(r, e) for r, e in tqdm.tqdm(
        zip(*sides, strict=True), "distance", len(good), disable=not progress, mininterval=2))))
    return [found.get(k) for k in range(len(audios))]


def summarise(condition: str, rows: Sequence[dict[str, Any] | None], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `mcd_*`, `f0_rmse_*`, `f0_cents_*`, `voicing_error_*`; items without a row are left out of the means and counted as
    `missing`."""
    about = dict(
        seed=seed, missing=statistics.missing(rows), evaluator=f"ns2_jax {statistics.code(pitch, spectral, __name__)}, {BANDS} log-mel bands, order {ORDER}, exact DTW of librosa "
        f"{importlib.metadata.version('librosa')}", averaging="mean over items that have a signal", **fingerprint)
    lines = []
    for key, unit in (("mcd", "dB"), ("f0_rmse", "Hz"), ("f0_cents", "cents"), ("voicing_error", "%")):
        values = [row[key] for row in rows if row is not None and row[key] is not None]
        if values:
            lines.append(statistics.score(f"{key}_{condition}", values, unit=unit, **about))
    return lines
