"""Can an acoustic model predict these latents? A table of means answers in seconds, without training.

Phone, third of the phone and voice are what an acoustic model knows when the noise is high; the share of variance
that a table of means over them explains on held-out speech foretells what a denoiser reaches (log-mel 0.75, a
learned latent 0.5, waveform-like latents 0.03).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from ns2_jax.evals import statistics
from ns2_jax.maths import spectral

SHRINK = 4.0  # pseudo-frames of the coarser table in each finer cell: rare cells fall back smoothly


def name() -> str:
    """What is measured by which code, for fingerprints."""
    return f"table of means per phone, third and voice, ns2_jax {statistics.code(spectral, __name__)}"


def log_mel(audio: np.ndarray, rate: int, hop: int, bins: int = 80) -> np.ndarray:
    """Natural-log mel `[s // hop, bins]` (window of four hops): the target that is easiest to predict, for scale."""
    frames = len(audio) // hop
    length = 1 << max(frames - 1, 63).bit_length()  # few lengths, so few compilations
    padded = np.pad(np.asarray(audio[: frames * hop], np.float32), (0, (length - frames) * hop))
    return np.asarray(_log_mel(padded[None], rate, 4 * hop, hop, bins))[0, :frames]


_log_mel = jax.jit(spectral.log_mel, static_argnums=(1, 2, 3, 4))


def thirds(ends: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Index of the phone and third of the phone (0, 1, 2) of each of `frames` frames, from phone ends in frames `[p]`."""
    ends = np.asarray(ends)
    begins = np.concatenate([[0], ends[:-1]])
    frame = np.arange(frames)
    phone = np.minimum(np.searchsorted(ends, frame, "right"), len(ends) - 1)
    length = np.maximum(ends[phone] - begins[phone], 1)
    return phone, np.clip(3 * (frame - begins[phone]) // length, 0, 2)


def _means(keys: np.ndarray, values: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique keys and their means, shrunk towards `prior` (one row per value) by SHRINK pseudo-frames."""
    unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    sums = np.zeros((len(unique), values.shape[1]))
    np.add.at(sums, inverse, values)
    priors = np.zeros_like(sums)
    priors[inverse] = prior
    return unique, (sums + SHRINK * priors) / (counts + SHRINK)[:, None]


def _look(keys: np.ndarray, unique: np.ndarray, means: np.ndarray, default: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(unique, keys), len(unique) - 1)
    return np.where((unique[place] == keys)[:, None], means[place], default)


def explained(fill: Sequence[tuple], test: Sequence[tuple]) -> dict[str, float | np.ndarray]:
    """Share of held-out variance of latents explained by the table.

    Args:
      fill, test: utterances as `(latents [t, c], phones [t] ints, third [t] ints, voice int)`, one phone and third a frame.

    Returns:
      `mean` over channels at unit deviation, `power` (share of all variance, strong channels counting more), `best` channel, `channels [c]`, `neighbours` (correlation of neighbouring
      frames), `rank90` (directions that hold 90 % of the variance) and `variances [c]`, by which `power` is weighed. A rotation
      of the latents changes `mean` and leaves `power` as it is.

    Raises:
      ValueError: no frames to fill or to test with.
    """
    if not fill or not test:
        raise ValueError(f"predictability needs utterances to fill the table and to test it, got {len(fill)} and {len(test)}")
    flat = lambda items: tuple(np.concatenate(x) for x in zip(*[
        (np.asarray(z, np.float64), np.asarray(p), np.asarray(h), np.full(len(p), v)) for z, p, h, v in items]))
    z, phone, third, voice = flat(fill)
    mean, deviation = z.mean(0), z.std(0) + 1e-9
    z = (z - mean) / deviation
    y, phone_y, third_y, voice_y = flat(test)
    y = (y - mean) / deviation
    # Coarse to fine: phone, phone and third, phone, third and voice. Each finer mean shrinks towards the coarser one.
    guess, guess_y = np.zeros_like(z), np.zeros_like(y)
    for fine in (lambda p, h, v: p, lambda p, h, v: p * 3 + h, lambda p, h, v: (p * 3 + h) * 4096 + v):
        unique, means = _means(fine(phone, third, voice), z, guess)
        guess_y = _look(fine(phone_y, third_y, voice_y), unique, means, guess_y)
        guess = _look(fine(phone, third, voice), unique, means, guess)
    channels = 1 - np.square(y - guess_y).mean(0) / np.maximum(np.square(y - y.mean(0)).mean(0), 1e-12)
    power = np.average(channels, weights=np.square(deviation))
    centred = [np.asarray(item[0], np.float64) - y_mean for item, y_mean in zip(test, [item[0].mean(0) for item in test])]
    product = sum((x[1:] * x[:-1]).sum(0) for x in centred)
    energy = sum((np.square(x[1:]).sum(0) + np.square(x[:-1]).sum(0)) / 2 for x in centred)
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(z.T)))[::-1] if z.shape[1] > 1 else np.ones(1)
    rank = int(np.searchsorted(np.cumsum(spectrum) / spectrum.sum(), 0.9) + 1)
    return {"mean": float(channels.mean()), "power": float(power), "best": float(channels.max()), "channels": channels,
            "variances": np.square(deviation), "neighbours": float((product / np.maximum(energy, 1e-12)).mean()), "rank90": rank}
