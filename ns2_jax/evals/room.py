"""Are the room and the noise of the prompt kept? Reverberation time and signal-to-noise ratio, estimated blind from each side.

VALL-E (section 4) claims that the acoustic environment of the prompt is kept, and shows examples only. Here both sides are measured.

Reverberation time: the distribution of decay rates (Wen, Habets and Naylor 2008). Speech falls silent at many rates but never
faster than the room does, so the steep side of the slopes in sub-bands narrows as the room gets livelier; their root mean square
over falling windows is turned into an RT60 by a curve measured on 32 flite sentences in rooms of exponentially decaying noise.
SNR: the quietest frames hold the noise alone, if the speaker pauses at all (percentile of frame energies; WADA-SNR of Kim and Stern
2008 was tried and reads 4 to 8 dB low on these voices, so it was left out).

Measured on 32 other sentences of four flite voices, 3 to 5 s each. RT60 0.2, 0.4, 0.8, 1.2 s: mean absolute error 0.03, 0.03, 0.06,
0.10 s; with white noise at 20 dB 0.04, 0.03, 0.07, 0.16; at 10 dB 0.10, 0.05, 0.09, 0.20; dry speech reads 0.05 s. In 24 shoebox
rooms (image sources and rays of pyroomacoustics, 0.2 to 1.4 s) the order is right (correlation 0.96 over rooms) and the value 0.2 s low:
direct sound falls faster than the room. SNR in white noise of 0 to 40 dB: within 1.2 dB on average; in babble 1 dB high at 20 dB, 3 at
10, 5 at 0, where babble has pauses of its own. What lies above MOST is noise-free as far as can be told. Without pauses (silence trimmed
off, RT60 0.8 s) tails pass for noise and the SNR reads at most 15 dB in a clean room. Read differences and correlations, not values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import recognisers, statistics

RATE = 16000
SHORTEST = 1.0  # seconds: less holds too few decays and no pause
HOP, SIZE = 256, 1024  # samples of the sub-band energies
BANDS, LOWEST, HIGHEST = 24, 300.0, 6000.0  # equal ratios, Hz
WINDOW = 9  # frames that a slope is fitted to: 0.144 s
RANGE = 35.0  # dB below the loudest window: what is quieter is no speech's decay
ABOVE = 10.0  # dB over a band's floor: below that the noise bends the slope
DEEPEST = 60.0  # dB below the loudest band and frame, where all energies end: digital silence has no slope
FEWEST = 100  # falling windows (of 24 bands) under which their spread is not known
CURVE = (  # RT60 in seconds, and the seconds that 60 dB take at the root mean square of the falling slopes
    (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3),
    (0.332, 0.366, 0.444, 0.535, 0.629, 0.800, 0.965, 1.090, 1.254))
FRAME = 0.02  # seconds of the frames whose energies give the SNR
PERCENTILE = 5.0  # of them, which is the noise
DIGITAL = 80.0  # dB below the loudest frame: a gate or padding, not the room
LEAST, MOST = -10.0, 40.0  # dB: beyond, an SNR can't be told
ITEMS = 5  # fewer give no correlation


def usable(audio: np.ndarray | None) -> bool:
    """Whether `[s]` at RATE is long enough and holds a signal."""
    return files.has_signal(audio, round(SHORTEST * RATE))


def sub_bands(audio: np.ndarray) -> np.ndarray:
    """Energies in dB, at most DEEPEST below the highest: `[BANDS, t]`."""
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(audio, np.float64), SIZE)[::HOP]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(SIZE), axis=-1)))
    hertz = np.fft.rfftfreq(SIZE, 1 / RATE)
    edges = np.searchsorted(hertz, np.geomspace(LOWEST, HIGHEST, BANDS + 1))
    energy = np.stack([power[:, a:b].sum(-1) for a, b in zip(edges[:-1], edges[1:])])
    level = 10 * np.log10(np.maximum(energy, 1e-30))
    return np.maximum(level, level.max() - DEEPEST)


def decay(audio: np.ndarray) -> float | None:
    """Seconds that 60 dB take at the root mean square slope of the falling windows; None where too few fall."""
    level = sub_bands(audio)
    if level.shape[1] < WINDOW:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(level, WINDOW, axis=-1)
    at = np.arange(WINDOW) - (WINDOW - 1) / 2
    slope, mean = windows @ at / np.square(at).sum() * RATE / HOP, windows.mean(-1)  # dB per second, dB
    sounding = np.where(mean > level.min() + 1, mean, np.nan)  # digital silence is not the floor of the room
    with np.errstate(all="ignore"):
        floor = np.array([np.nanpercentile(band, PERCENTILE) if np.isfinite(band).any() else np.inf for band in sounding])
    falling = slope[(mean > mean.max() - RANGE) & (mean > floor[:, None] + ABOVE) & (slope < 0)]
    return float(60 / np.sqrt(np.square(falling).mean())) if falling.size >= FEWEST else None


def reverberation(audio: np.ndarray) -> float | None:
    """RT60 in seconds, between 0 and 1.3, of speech `[s]` at RATE; None where too few windows fall."""
    found = decay(audio)
    return None if found is None else float(np.interp(found, CURVE[1], CURVE[0]))


def snr(audio: np.ndarray) -> float:
    """dB of speech over noise, between LEAST and MOST, of `[s]` at RATE: noise is the quietest frames that are not digital silence."""
    energy = np.square(files.frame_rms(audio, RATE, FRAME))
    energy = energy[energy > energy.max() * 10 ** (-DIGITAL / 10)]
    noise, all_of_it = np.percentile(energy, PERCENTILE), energy.mean()
    with np.errstate(divide="ignore"):
        return float(np.clip(10 * np.log10(max(all_of_it - noise, 0.0) / noise), LEAST, MOST))


def row(prompt: np.ndarray | None, audio: np.ndarray | None) -> dict[str, Any]:
    """Estimates of both sides, `reverberation*` in seconds and `snr*` in dB, and how far they are apart; None where a side has none."""
    if not usable(audio):
        return {} if recognisers.has_signal(audio) else {"missing": True}  # too short to tell, or nothing there
    out: dict[str, Any] = {}
    for name, estimate in (("reverberation", reverberation), ("snr", snr)):
        asked, kept = estimate(prompt) if usable(prompt) else None, estimate(audio)
        out |= {f"{name}_prompt": asked, name: kept, f"{name}_error": None if None in (asked, kept) else abs(kept - asked)}
    return out


def measure(prompts: Sequence[np.ndarray | None], audios: Sequence[np.ndarray | None], rate: int = RATE,
            progress: bool = True) -> list[dict[str, Any]]:
    """One row per item from prompts and outputs `[s]` at `rate` Hz; what holds no signal or under a second has no room."""
    pairs = tqdm.tqdm(zip(prompts, audios, strict=True), "room", len(audios), mininterval=2, disable=not progress)
    return [row(*files.resample_all(pair, rate, RATE)) for pair in pairs]


def correlation(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, list[float]] | None:
    """Pearson's correlation of `[n]` and `[n]` and its 95 % bootstrap interval over items; None without variance or with under ITEMS."""
    if len(a) < ITEMS or min(a.std(), b.std()) < 1e-6:
        return None
    picks = np.random.default_rng(seed).integers(0, len(a), (statistics.ROUNDS, len(a)))
    x, y = (side[picks] - side[picks].mean(1, keepdims=True) for side in (a, b))
    spread = np.sqrt(np.square(x).sum(1) * np.square(y).sum(1))
    drawn = (x * y).sum(1)[spread > 1e-9] / spread[spread > 1e-9]  # a draw of one item many times has no variance
    return float(np.corrcoef(a, b)[0, 1]), [float(q) for q in np.quantile(drawn, [0.025, 0.975])]


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `reverberation_error_*` (s), `snr_error_*` (dB), and where it is defined `reverberation_kept_*`, `snr_kept_*`: the
    correlation of the outputs with their prompts over items."""
    missing = sum(bool(one.get("missing")) for one in rows)
    judges = {"reverberation": ("s", f"decay rates of {BANDS} bands, 0 to {CURVE[0][-1]:g} s"),
              "snr": ("dB", f"percentile {PERCENTILE:g} of {1000 * FRAME:g} ms frames, {LEAST:g} to {MOST:g} dB")}
    lines = []
    for name, (unit, judge) in judges.items():
        there = [one for one in rows if one.get(f"{name}_error") is not None]
        if not there:
            continue
        about = dict(seed=seed, evaluator=f"ns2_jax {statistics.code(__name__)}, blind: {judge}", missing=missing,
                     without=len(rows) - missing - len(there), reference="prompt", **fingerprint)
        errors = [one[f"{name}_error"] for one in there]
        how = "over items in which both sides can be measured"
        lines.append(statistics.score(f"{name}_error_{condition}", errors, unit=unit, averaging=f"mean {how}", **about))
        found = correlation(*(np.array([one[key] for one in there]) for key in (f"{name}_prompt", name)), seed)
        if found:
            line = statistics.score(f"{name}_kept_{condition}", [found[0]], averaging=f"correlation {how}", **about)
            lines.append(line | {"interval": found[1], "n": len(there)})
    return lines
