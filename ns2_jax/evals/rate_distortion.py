"""Codecs over their rates: a table and a picture of the scores whose lines say their kbit/s. Made by the tool, never by hand.

`comparison` decides what may share a column.
"""

from __future__ import annotations

import io
import os
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ns2_jax.evals import comparison, markdown, pictures, scores, statistics

NAMES = {  # measure -> how its column is named; those after which less is better
    "pesq": "PESQ-WB", "stoi": "STOI", "si_sdr": "SI-SDR dB", "mel_distance": "mel distance", "stft_distance": "STFT distance",
    "wer": "word error %", "secs_own": "SECS"}
LESS = ("mel_distance", "stft_distance", "wer")
ALIKE = 0.1  # share by which two rates may differ to be held against each other
Line = Mapping[str, Any]


def rates(result: comparison.Result) -> dict[str, float]:
    """Condition -> kbit/s, in the order of the curves: ours first, then by rate."""
    found = {scores.split(line["name"])[1]: float(line["kbps"]) for line in result.last if line.get("kbps")}
    return dict(sorted(found.items(), key=lambda item: (curve(item[0]) != "codec", curve(item[0]), item[1])))


def curve(condition: str) -> str:
    """`codec_8` -> "codec", `opus_12.8` -> "opus": the conditions that one curve goes through."""
    return condition.partition("_")[0]


def label(condition: str) -> str:
    kind, _, rest = condition.partition("_")
    if kind != "codec":
        return condition if condition == "recording" else kind
    return "all levels" if not rest else "not quantised" if rest == "unquantised" else f"{rest} level{'s' * (rest != '1')}"


def read(folders: Iterable[str | os.PathLike]) -> tuple[list[comparison.Result], list[str]]:
    """(results with rates, what was skipped and why). Raises ValueError when there is none."""
    found, skipped = comparison.find(folders)
    results = [result for result in found if rates(result)]
    skipped += [f"{result.given}: no score in it says its kbit/s; score a codec with --task=codec" for result in found if result not in results]
    if not results:
        raise ValueError("no rates: " + ("; ".join(skipped) or "no folder is given"))
    return results, skipped


def columns(results: Sequence[comparison.Result]) -> list[tuple[str, str, Line]]:
    """(measure, key, one of its lines) that some condition with a rate has, in the order of NAMES."""
    judged = {(scores.split(line["name"])[0], comparison.key(line)) for result in results for line in result.last if line.get("kbps")}
    chosen = [column for column in comparison.columns(results) if column[0] in NAMES and column[:2] in judged]
    return sorted(chosen, key=lambda column: list(NAMES).index(column[0]))


def difference(result: comparison.Result, measure: str, a: str, b: str, seed: int = 0) -> dict[str, Any] | None:
    """Condition `a` minus `b` of one result, paired over the utterances that have both (`comparison.PAIRED` says of what); None without."""
    evaluator, _, _, _, value, size = comparison.PAIRED[measure]
    rows = [(item.get(evaluator, {}).get(a), item.get(evaluator, {}).get(b)) for item in result.items.values()]
    both = [pair for pair in rows if all(pair)]
    if not both:
        return None
    sides = ([value(pair[side]) for pair in both] for side in (0, 1))
    return {"a": f"{label(a)}", "b": label(b), "measure": measure, "left": len(rows) - len(both),
            **statistics.paired(*sides, [size(pair[0]) for pair in both], seed)}


def _more_errors(result: comparison.Result, condition: str, seed: int) -> str:
    """Cell: word error of a condition minus the recordings'."""
    found = difference(result, "wer", condition, "recording", seed)
    if found is None or condition == "recording":
        return ""
    few = f", only {found['n']} utterances" if found["n"] < comparison.FEWEST else ""
    low, high = found["interval"]
    return f"{found['value']:+.1f}<br><sub>{low:+.1f} to {high:+.1f}{few}</sub>"


def _against(result: comparison.Result, seed: int) -> list[str]:
    """Sentences: ours against each rival of about the same rate, measure by measure, paired."""
    known = rates(result)
    said = []
    for theirs in (c for c in known if curve(c) != "codec"):
        near = [c for c in known if curve(c) == "codec" and abs(known[c] / known[theirs] - 1) <= ALIKE]
        if not near:
            continue
        ours = min(near, key=lambda c: abs(known[c] / known[theirs] - 1))
        for measure in (m for m in NAMES if m in comparison.PAIRED):
            pair = difference(result, measure, ours, theirs, seed)
            if pair:
                named = pair | {"a": f"{pair['a']} ({known[ours]:.3g} kbit/s)", "b": f"{pair['b']} ({known[theirs]:.3g} kbit/s)"}
                text, verdict = comparison.difference(named)
                said.append(f"* {markdown.safe(text)}" + (f", {verdict}" if verdict else ""))
    return said


OF = {"latents": "latents", "quantised": "latents, quantised", "coarse": "latents of the coarse levels, which acoustic models predict",
      "log_mel": "log-mel, for scale"}


def _predictability(results: Sequence[comparison.Result], heads: Sequence[str]) -> list[str]:
    """The share of the latents' variance that text and voice explain, as a table."""
    rows = []
    for result, head in zip(results, heads):
        found = {scores.split(line["name"]): line for line in result.last}
        for of, name in OF.items():
            cells = [markdown.cell(found.get((measure, of))) for measure in ("predictability", "predictability_power")]
            if any(cells):
                rows.append(f"| {head} | {name} | {cells[0]} | {cells[1]} |")
    return rows and [
        "", "## Predictability", "",
        "The share of variance that a table of means per phone, third of the phone and voice explains on utterances it has not seen. With "
        "every channel at unit deviation it depends on the basis of the latents (a rotation changes it); of all variance it does not. "
        "Intervals are over channels.", "",
        "| result | of | channels at unit deviation | of all variance |", "|---|---|---:|---:|", *rows]


def table(folders: Sequence[str | os.PathLike], out: str | os.PathLike, seed: int = 0) -> tuple[str, list[comparison.Result], list[str]]:
    """(the text of OUT/rates.md, the results, what was skipped and why). Raises ValueError when no result has rates."""
    results, skipped = read(folders)
    chosen, heads = columns(results), [markdown.safe(result.name) for result in results]
    lines = []
    for result, head in zip(results, heads):
        known = rates(result)
        for condition in (*known, *(c for c in ("codec_unquantised", "recording") if any(scores.split(x["name"])[1] == c for x in result.last))):
            cells = [markdown.cell(result.score(measure, condition, key)) for measure, key, _ in chosen]
            rate = f"{known[condition]:.2f}" if condition in known else ""
            lines.append(f"| {head} | {label(condition)} | {rate} | {' | '.join(cells)} | {_more_errors(result, condition, seed)} |")
    notes = []
    for place, (measure, _, line) in enumerate(chosen, 1):
        others = [f"column {k}" for k, (name, *_) in enumerate(chosen, 1) if name == measure and k != place]
        warning = f" Not to be compared with {' and '.join(others)}." if others else ""
        said = "; ".join(f"{name} {markdown.safe(value)}" for name, value in comparison.about(line).items())
        notes.append(f"{place}. {NAMES[measure]}:{warning} {line['n']} utterances; {said}")
    makers = {}
    for result, head in zip(results, heads):
        for line in result.last:
            about, condition = line["fingerprint"], scores.split(line["name"])[1]
            if line.get("kbps") and (name := about.get("encoder") or about.get("model")):
                ogg = f", {about['kbps_with_ogg']:.2f} with its container" if "kbps_with_ogg" in about else ""
                who = f"{label(condition)} at {line['kbps']:.2f} kbit/s{ogg}" if "encoder" in about else "ours"
                makers[f"* {head}, {who}: {markdown.safe(name)}"] = True
    against = [line for result in results for line in _against(result, seed)]
    command = shlex.join(["python", "-m", "ns2_jax.evaluate", "rate", *(os.path.relpath(r.given) for r in results), f"--out={os.path.relpath(out)}"])
    heading = " | ".join(f"{NAMES[measure]} <sup>{k}</sup>" for k, (measure, _, _) in enumerate(chosen, 1))
    return "\n".join([
        "# Codecs over their rates", "", f"Made by `{command}`, so it is not edited.", "", "![the scores over kbit/s](rates.png)", "",
        "Each cell is a score and its 95 % bootstrap interval over utterances; distances and word error are better the smaller. Our rates are "
        "levels x log2(codes) x frames/s. Opus's are its packets', without container and headers, over all utterances. The number at a "
        "column's head is the note below that says by whom, how and on what.", "",
        f"| result | codec | kbit/s | {heading} | word error over the recordings', points, paired |",
        f"|---|---|---:|{'---:|' * len(chosen)}---:|", *lines, "",
        "## The codecs", "", *makers, "", "## The columns", "", *notes, "", "## Ours minus another at the same rate, paired", "",
        *(against or [f"No other codec has been scored within {100 * ALIKE:.0f} % of a rate of ours."]), *_predictability(results, heads), ""]), results, skipped


def plot(results: Sequence[comparison.Result]) -> bytes:
    """PNG: a panel a measure, a curve a codec with its 95 % intervals over kbit/s; lines where the recordings and the unquantised are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = columns(results)
    across = min(4, len(chosen))
    down = -(-len(chosen) // across)
    figure = Figure(figsize=(3.6 * across, 3.0 * down + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    named = lambda result, what: f"{result.name}, {what}" if len(results) > 1 else what
    kinds = [(result, kind) for result in results for kind in dict.fromkeys(map(curve, rates(result)))]
    ticks = sorted({round(kbps, 1) for result in results for c, kbps in rates(result).items() if curve(c) == "codec"})
    handles: dict[str, Any] = {}
    for place, (measure, key, _) in enumerate(chosen, 1):
        axes = figure.add_subplot(down, across, place)
        for number, (result, kind) in enumerate(kinds):
            found = [(kbps, result.score(measure, c, key)) for c, kbps in rates(result).items() if curve(c) == kind]
            points = [(kbps, line["value"], *line["interval"]) for kbps, line in found if line]
            if points:
                x, y, low, high = zip(*points)
                error = [[max(value - least, 0) for value, least in zip(y, low)], [max(most - value, 0) for value, most in zip(y, high)]]
                axes.errorbar(x, y, error, marker="o", markersize=4, capsize=2, linewidth=1.4, color=f"C{number}",
                              label=named(result, "ours" if kind == "codec" else kind))
            for condition, style, color in (("codec_unquantised", ":", f"C{number}"), ("recording", "--", "black")):
                line = result.score(measure, condition, key) if kind == "codec" else None
                if line:
                    axes.axhline(line["value"], linestyle=style, color=color, linewidth=1, label=named(result, label(condition)))
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45, fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set_title(NAMES[measure] + (" (less is better)" if measure in LESS else ""), fontsize=10)
        axes.set_xlabel("kbit/s", fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.grid(alpha=0.3)
        for handle, name in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(name, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=9, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def write(folders: Sequence[str | os.PathLike], out: str | os.PathLike, seed: int = 0) -> list[str]:
    """Writes OUT/rates.md and OUT/rates.png; returns what was skipped. Raises ValueError when no result has rates, ImportError without
    matplotlib."""
    pictures.check()
    text, results, skipped = table(folders, out, seed)
    picture = plot(results)
    scores.put(pathlib.Path(out) / "rates.md", text)
    (pathlib.Path(out) / "rates.png").write_bytes(picture)
    return skipped
