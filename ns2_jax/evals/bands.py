"""Known-good bands: between which values healthy runs of one recipe stay, step by step, and where another run lies.

Runs come as the lines of their `metrics.jsonl`. At a step a metric's value is the median of the last logged windows; bands and judged
runs are read alike. Positive metrics are compared in logarithms. A band reaches from the lowest to the highest run, widened
by SIGMAS standard errors (differences between seeds, pooled over neighbouring steps, and the scatter of windows) or
by FLOOR, whichever is more; twice that where only one run goes on. A judged run is held against all steps within a factor of
NEAR of its own: phases of a training start a little earlier or later with every seed. Of a log that is written more often than
the bands' runs, means are read; the windows of one that is written more seldom reach further back, and so do the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Lines = Sequence[Mapping[str, Any]]
Curve = tuple[np.ndarray, np.ndarray]  # steps, values

POINTS = 45  # steps of a band, on a logarithmic grid
LATE = 15  # more, on another from where a term joined the loss
SHARE, LEAST, MOST = 0.3, 3, 7  # windows that are one value: so much of the steps so far, at least and at most so many
SIGMAS, FLOOR, NEAR = 4.0, 0.05, 1.2
ALONE = 2.0  # margins where one run stands behind a step: how seeds differ there is not known
POOLED = 5  # neighbouring steps over which seeds' differences are averaged
ELSEWHERE = 3.0  # bands are so much wider for other data or another model
WINDOWS = 8  # logged lines without which there is no trend
SLOW = 3  # times as many after an adversary set in: the second seed of the small codec shows no trend in 12 lines
FALLING = -2.0  # standard errors of the trend, at most
GROWN, RISEN = 30.0, 1.5  # times the first gradient norm, the lowest loss: more is a fault
STILL, COLLAPSED = 1e-5, 0.02  # share by which perplexity moves, share of the codes in use: less is a fault
LITTLE, UNUSED = 1 / 3, 0.005  # share of the known use of text and prompt; without it, use itself: less is off
LEARNT = 0.1  # of the steps, after which a model without bands should listen
NOT_BANDED = ("step", "time", "weight", "learning_rate", "step_seconds", "data_seconds", "frames_per_second", "mfu")
BOTH_SIDES = ("grad_norm", "param_norm", "perplexity")
MORE_IS_BETTER = ("accuracy", "sharpness")


def curves(lines: Lines) -> dict[str, Curve]:
    """The logged curves by metric, without bookkeeping, groups (`a/b`) and numbers that were not finite."""
    names = {name for line in lines for name in line if "/" not in name and name not in NOT_BANDED}
    found = {}
    for name in sorted(names):
        pairs = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if pairs:
            found[name] = tuple(np.array(column, float) for column in zip(*pairs))
    return found


def interval(lines: Lines) -> int:
    """Steps between two lines of the log."""
    return int(np.median(np.diff([0, *(line["step"] for line in lines)])))


def spaced(lines: Lines, every: int) -> Lines:
    """A log that is written more often than every so many steps as means over so many; another as it is."""
    if not lines or interval(lines) >= every:
        return lines
    windows: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        windows.setdefault(-(-line["step"] // every), []).append(line)
    made = []
    for window in windows.values():
        names = dict.fromkeys(name for line in window for name in line)
        there = {name: [line[name] for line in window if line.get(name) is not None] for name in names}
        made.append({name: float(np.mean(some)) if some else None for name, some in there.items()} | {"step": window[-1]["step"]})
    return made


def recent(curve: Curve, at: float, every: int) -> float:
    """The metric at step `at`: the median of the windows before it. `every` are the steps of a window."""
    steps, values = curve
    chosen = values[(steps > at - _span(at, every)) & (steps <= at)]
    return float(np.median(chosen if len(chosen) else values[steps <= at][-1:]))


def _span(at: float, every: int) -> float:
    return min(max(SHARE * at, LEAST * every), MOST * every)


def _bend(x: Any, offset: float | None) -> np.ndarray:
    return np.asarray(x, float) if offset is None else np.log(np.maximum(np.asarray(x, float) + offset, 1e-12))


def _unbend(y: Any, offset: float | None) -> np.ndarray:
    return np.asarray(y) if offset is None else np.exp(y) - offset


def make(runs: Sequence[Lines]) -> dict[str, Any]:
    """`{"every", "steps" [n], "runs" [n], "metrics": {name: {"low" [n], "high" [n], "offset"}}}` of at least two healthy runs.

    `runs` says how many runs stand behind each step; past the last that all share, those that go on. `offset` is added before
    the logarithm (0 for positive metrics, a hundredth of the largest value for those that can be 0); null is a linear scale.
    Raises ValueError for fewer than two runs, or for runs too short.
    """
    ends = [lines[-1]["step"] if lines else 0 for lines in runs]
    if len(runs) < 2:
        raise ValueError("bands need at least two runs that differ in their seed: one cannot show how much seeds differ")
    every = max(interval(lines) if lines else 0 for lines in runs)
    if sorted(ends)[-2] < 2 * LEAST * every or not min(ends):
        raise ValueError(f"the runs end at steps {ends}; bands need at least two of {2 * LEAST} logged windows")
    grids = [np.geomspace(LEAST * every, max(ends), POINTS)]
    for lines in runs:
        if (begun := lines[phase(lines)]["step"]) > lines[0]["step"]:  # an adversary's first steps are not like those before
            grids.append(begun + np.geomspace(every, max(max(ends) - begun, every), LATE))
    grid = np.unique(np.round(np.concatenate(grids) / every).astype(int) * every)
    grid = grid[grid <= max(ends)]
    standing = np.array([sum(end >= at for end in ends) for at in grid])
    given = [curves(spaced(lines, every)) for lines in runs]
    metrics = {}
    for name in sorted(set.intersection(*map(set, given))):
        values = np.concatenate([curve[name][1] for curve in given])
        if not values.any():
            continue  # a term that the recipe does not use
        offset = 0.0 if values.min() > 0 else 0.01 * float(values.max()) if values.min() == 0 else None
        at = np.array([[_bend(recent(curve[name], step, every), offset) if step <= end else np.nan for step in grid]
                       for curve, end in zip(given, ends)])
        margin = SIGMAS * np.sqrt(_between(at, standing) + np.array([_within(given, name, step, every, offset) for step in grid]))
        margin = np.maximum(margin, FLOOR * (1.0 if offset is not None else float(values.std()))) * np.where(standing > 1, 1.0, ALONE)
        low, high = _unbend(np.nanmin(at, 0) - margin, offset), _unbend(np.nanmax(at, 0) + margin, offset)
        if values.min() >= 0:
            low = np.maximum(low, 0.0)
        short = lambda numbers: [float(f"{x:.4g}") for x in numbers]
        metrics[name] = {"low": short(low), "high": short(high), "offset": None if offset is None else float(f"{offset:.3g}")}
    return {"every": every, "steps": grid.tolist(), "runs": standing.tolist(), "metrics": metrics}


def _between(at: np.ndarray, standing: np.ndarray) -> np.ndarray:
    """Variance between seeds at each step, averaged over its neighbours; past the shared steps that of the last shared ones."""
    shared = int((standing >= 2).sum())
    variance = np.nanvar(at[:, :shared], axis=0, ddof=1)
    half = POOLED // 2
    pooled = [variance[max(min(i, shared - 1) - half, 0) : i + half + 1].mean() for i in range(shared)]
    return np.array(pooled + [variance[-POOLED:].mean()] * (at.shape[1] - shared))


def _within(given: Sequence[Mapping[str, Curve]], name: str, step: int, every: int, offset: float | None) -> float:
    """Variance of the median of the windows that are one value, from the steps between neighbouring windows, all runs together."""
    jumps = []
    for curve in given:
        steps, values = curve[name]
        jumps.append(np.diff(_bend(values[(steps > step / 2) & (steps <= 2 * step)], offset)))
    jumps = np.concatenate(jumps)
    if not len(jumps):
        return 0.0
    deviation = 1.4826 * np.median(np.abs(jumps - np.median(jumps))) / np.sqrt(2)  # of one window, whatever the tails
    return float(1.57 * deviation**2 * every / _span(step, every))  # pi / 2: a median of so many windows


def wrong(name: str, side: str) -> bool:
    """Whether being on this side ("high" or "low") of the band is a fault: a loss may be lower than known, a norm may not."""
    if name in BOTH_SIDES:
        return True
    return side == ("low" if any(word in name for word in MORE_IS_BETTER) else "high")


def judge(known: Mapping[str, Any], lines: Lines, elsewhere: bool = False) -> list[dict[str, Any]]:
    """A row per metric at the run's last step: metric, step, value, low, high and verdict ("ok", "high", "low", "ahead", "missing").

    "ahead" is outside on the side that is no fault. `elsewhere` (other data, another model) widens the bands by a factor; another
    model may lack metrics, but the loss. No rows where the log, written more seldom than the bands' runs, has only its first window.
    """
    steps, every = np.array(known["steps"]), known["every"]
    behind = max(interval(lines) - every, 0)
    lines = lines[1:] if behind else spaced(lines, every)  # the first window holds the very start
    if not lines:
        return []
    step = lines[-1]["step"]
    reach = min(line["step"] for line in lines if line["step"] > step - _span(step, every)) - behind if behind else step
    near = (steps >= min(step / NEAR, reach)) & (steps <= step * NEAR)
    place = int(np.clip(np.searchsorted(steps, step), 1, len(steps) - 1))
    near[[place - 1, place] if step < steps[-1] else [-1]] = True
    rows, found = [], curves(lines)
    for name, band in known["metrics"].items():
        if (curve := found.get(name)) is None:
            rows += [row(name, step, None, None, None, "missing")] if name == "loss" or not elsewhere else []
            continue
        value = recent(curve, step, every)
        low, high = _bend([np.array(band["low"])[near].min(), np.array(band["high"])[near].max()], band["offset"])
        if elsewhere:
            low, high = (low + high) / 2 + ELSEWHERE * (low - high) / 2, (low + high) / 2 + ELSEWHERE * (high - low) / 2
        low, high = (round(float(x), 9) for x in _unbend([low, high], band["offset"]))
        low = max(low, 0.0) if band["offset"] is not None else low
        side = "low" if value < low - 1e-9 else "high" if value > high + 1e-9 else ""
        verdict = "ok" if not side else side if wrong(name, side) else "ahead"
        rows.append(row(name, step, value, low, high, verdict))
    return rows


def at_step(points: Sequence[Sequence[float]], step: int) -> float | None:
    """The value at `step` of `[[step, value], ...]`, linear in the logarithm of the step; None before the first, the last one's after."""
    steps, values = np.array(sorted(points), float).T
    return None if step < steps[0] / NEAR else float(np.interp(np.log(max(step, 1)), np.log(steps), values))


# What holds for every training, with bands or without.


def row(metric: str, step: int, value: float | None, low: float | None, high: float | None, verdict: str = "") -> dict[str, Any]:
    """A row of the table; the verdict is given, or where `value` lies: "ok", "low", "high" or "not finite"."""
    if value is not None and not np.isfinite(value):
        value, verdict = None, "not finite"
    side = "" if value is None else "low" if low is not None and value < low else "high" if high is not None and value > high else "ok"
    return {"metric": metric, "step": step, "value": value, "low": low, "high": high, "verdict": verdict or side}


def phase(lines: Lines) -> int:
    """Lines until a term last joined the loss (left zero): an adversary that sets in lifts the loss, and that is no fault."""
    joined = [np.flatnonzero(values)[0] for name, (_, values) in curves(lines).items() if values.any() and name != "dead_codes"]
    return int(max(joined, default=0))


def trend(values: np.ndarray) -> float:
    """Mann-Kendall's z: how many standard errors a series rises (below zero: falls), whatever its scale and its outliers."""
    n = len(values)
    rising = np.sign(np.subtract.outer(values, values)[np.tril_indices(n, -1)]).sum()
    return float(rising / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))


def general(lines: Lines, trained: bool = False) -> list[dict[str, Any]]:
    """Without bands: the loss falls (with an adversary in it: at least one term does; from `trained` weights: does not rise) and stays
    low, the gradient does not explode."""
    start, step = phase(lines), lines[-1]["step"]
    found = {name: curve for name, curve in curves(lines[start:]).items() if len(curve[0]) == len(lines) - start}
    early = "early" if len(lines) - start < WINDOWS else ""
    rows = []
    terms = ["loss"] if not start else [name for name in found if not wrong(name, "low")]
    trends = [trend(found[name][1]) for name in terms if name in found and not early]
    if trends or early:
        what, limit = "the best term" if start else "loss", -FALLING if trained else FALLING
        short = "early" if start and len(lines) - start < SLOW * WINDOWS else early
        rows.append(row(f"trend of {what}, in standard errors", step, min(trends, default=None), None, limit, short))
    if "loss" in found and not early and (found["loss"][1] > 0).all():
        medians = np.median(np.lib.stride_tricks.sliding_window_view(found["loss"][1], LEAST), -1)
        rows.append(row("loss / its lowest", step, float(medians[-1] / medians.min()), None, RISEN))
    if "grad_norm" in found:
        norms = found["grad_norm"][1]
        ratio = float(np.median(norms[-LEAST:]) / max(np.median(norms[:LEAST]), 1e-12))
        rows.append(row("grad_norm / the first", step, ratio, None, GROWN, early))
    return rows


def codebooks(lines: Lines, codes: int | None) -> list[dict[str, Any]]:
    """Codebooks that learn keep moving and, of their `codes` (None: not asked, the bands say), use many."""
    if "perplexity" not in (found := curves(lines)):
        return []
    step, values = lines[-1]["step"], found["perplexity"][1][-MOST:]
    early = "early" if len(values) < LEAST else ""
    rows = [row("perplexity's movement", step, float(np.ptp(values) / values.mean()), STILL, None, early)]
    return [*rows, row("perplexity / codes", step, float(np.median(values)) / codes, COLLAPSED, None, early)] if codes else rows


def use_rows(found: Mapping[str, float], step: int, known: Mapping[str, Any], steps: int) -> list[dict[str, Any]]:
    """Use of text and prompt against a share of the known one at that step; without it against next to none at all.

    `known` is `{name: [[step, value], ...]}`, `steps` the length of the training.
    """
    rows = []
    for name, value in found.items():
        usual = at_step(known[name], step) if known.get(name) else None
        low = UNUSED if usual is None else LITTLE * usual
        unknown = usual is None and value < low and (known.get(name) or step < LEARNT * steps)
        rows.append(row(name, step, value, low, None, "early" if unknown else ""))
    return rows
