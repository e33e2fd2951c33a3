"""A noise schedule of few steps for a trained diffusion model, found by what it says.

Coarse to fine on a validation loss: the mean difference of log-mel between what the model says, with the true durations and always the same
noise, and the recording (WaveGrad chose its six steps in this way). A schedule is a few knots of log signal-to-noise ratios over its steps,
straight lines between them, so that fifty steps are not fifty unknowns. First all of a family: where it begins and ends and how it
bends; then each knot of the best is moved towards its neighbours, by half of the gap and then by a quarter. No candidate begins with
more signal than `most_signal` of its power: what seems well with a first step that is lied to is not well on other texts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ns2_jax.evals import statistics
from ns2_jax.maths import schedules

KNOTS = 6
MOST_SIGNAL = 0.05  # of the power, where sampling begins
CLEANEST = (3.0, 4.5, 6.0)  # log signal-to-noise ratios of the last step: -26, -39 and -52 dB of noise
BENDS = (0.7, 1.0, 1.5)
MOVES = (0.5, 0.25)  # of the gap to a neighbour


@dataclasses.dataclass(frozen=True)
class Found:
    """The best schedule: log signal-to-noise ratios `[n]` from clean to noisy, the loss of every item, how many were tried."""

    ratios: np.ndarray
    losses: np.ndarray
    tried: int


def spread(knots: Sequence[float], steps: int) -> np.ndarray:
    """The schedule of so many steps through the knots."""
    return np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(knots)), knots)


def noisiest(most_signal: float) -> float:
    """The log signal-to-noise ratio at which so much of the power is signal."""
    return 0.5 * math.log(most_signal / (1 - most_signal))


def search(loss: Callable[[np.ndarray], np.ndarray], steps: int, lowest: float, most_signal: float = MOST_SIGNAL,
           say: Callable[[str], None] = lambda line: None) -> Found:
    """The schedule of `steps` with the smallest mean of `loss(ratios [n]) -> [items]`.

    `lowest` is the ratio where training is noisiest; schedules begin there or where `most_signal` is left, whichever is nearer to noise or
    between. Raises ValueError for fewer than two steps, or where no candidate has a finite loss.
    """
    if steps < 2:
        raise ValueError(f"a schedule of {steps} step(s) has nothing to search: expected 2 or more")
    top = noisiest(most_signal)
    ends = sorted({min(lowest, top), top})
    tried: dict[tuple[float, ...], np.ndarray] = {}

    def mean(knots: tuple[float, ...]) -> float:
        if not (np.diff(knots) < -1e-3).all() or knots[-1] > top + 1e-9:
            return math.inf
        if knots not in tried:
            tried[knots] = np.asarray(loss(spread(knots, steps)), np.float64)
        value = float(tried[knots].mean())
        return value if math.isfinite(value) else math.inf

    number = min(KNOTS, steps)
    family = [tuple(schedules.grid(number, clean, end, bend).tolist()) for clean, end, bend in itertools.product(CLEANEST, ends, BENDS)]
    best = min(family, key=mean)
    if not math.isfinite(mean(best)):
        raise ValueError(f"no schedule of {steps} steps gives a finite loss: the model's weights are broken")
    say(f"{steps} steps: best of {len(tried)} coarse schedules {mean(best):.4f}")
    for move in MOVES:
        for i in range(number):
            gaps = [(best[j] - best[i]) * move for j in (i - 1, i + 1) if 0 <= j < number]
            near = [(*best[:i], best[i] + gap, *best[i + 1 :]) for gap in gaps]
            best = min([best, *near], key=mean)
        say(f"{steps} steps: {mean(best):.4f} after {len(tried)} schedules")
    return Found(spread(best, steps), tried[best], len(tried))


def summarise(found: Found, before: Sequence[float] | None, seed: int, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `trial_distance_searched_N` and, where there was one, `trial_distance_before_N` (nepers); the first has the betas."""
    steps = len(found.ratios)
    about = dict(unit="nepers", averaging="mean over items", seed=seed, evaluator=f"ns2_jax {statistics.code(schedules, __name__)}", **fingerprint)
    first = statistics.score(f"trial_distance_searched_{steps}", found.losses, **about)
    betas = schedules.betas_of(found.ratios).tolist()
    lines = [first | {"betas": betas, "last_signal": schedules.last_signal(found.ratios), "tried": found.tried}]
    return lines if before is None else [*lines, statistics.score(f"trial_distance_before_{steps}", before, **about)]
