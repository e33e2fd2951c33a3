"""One static HTML page of scores: systems side by side, curves, and every utterance to be heard and seen, worst first.

Self-contained: audio, pictures and style are inside the file. Two scores share a column only when their fingerprints say that
they measure the same: judge, normaliser, averaging, list of utterances and data set.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ns2_jax.audio import files
from ns2_jax.evals import scores, statistics
from ns2_jax.maths import pitch, spectral

SAME = ("evaluator", "normaliser", "averaging", "data", "split", "source", "list", "items", "reference", "level", "frame", "floor", "words", "picks", "piece")
RATE = 16000
FEWEST = 100  # utterances for a verdict


@dataclasses.dataclass
class Result:
    """A folder that `evaluate --out` (or `--follow`) wrote: its name, score lines, items by id, and the folder."""

    name: str
    folder: pathlib.Path
    lines: list[dict[str, Any]]
    items: dict[str, dict[str, Any]]

    @property
    def steps(self) -> list[int]:
        """The checkpoints that were scored, in order; empty for an export."""
        return sorted({line["fingerprint"]["step"] for line in self.lines if "step" in line["fingerprint"]})

    @property
    def last(self) -> list[dict[str, Any]]:
        """The scores of the last checkpoint, or all."""
        return [line for line in self.lines if not self.steps or line["fingerprint"].get("step") == self.steps[-1]]


def find(folders: Iterable[str | os.PathLike]) -> tuple[list[Result], list[str]]:
    """(results, what was skipped and why). A run is looked into for its `evaluation`. Names are made unique by their parents."""
    found, skipped, seen = [], [], set()
    for given in map(pathlib.Path, folders):
        folder = next((p for p in (given, given / "evaluation", given / "scores") if (p / "scores.jsonl").is_file()), None)
        if folder is None:
            skipped.append(f"{given}: no scores.jsonl in it")
            continue
        if folder.resolve() in seen:
            skipped.append(f"{given}: the same scores again")
            continue
        seen.add(folder.resolve())
        try:
            lines = scores.read(folder)
            newest = folder / str(max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)) / "items.jsonl"
            rows = newest if newest.is_file() else folder / "items.jsonl"
            items = [json.loads(line) for line in rows.read_text(encoding="utf8").split("\n") if line] if rows.is_file() else []
            for line in lines:
                if not {"name", "value", "unit", "interval", "n", "fingerprint"} <= set(line):
                    raise ValueError("a line lacks name, value, unit, interval, n or fingerprint")
                line["n"], line["value"] = int(line["n"]), float(line["value"])
                if "step" in line["fingerprint"]:
                    line["fingerprint"]["step"] = int(line["fingerprint"]["step"])
            by_id = {item["id"]: item for item in items}
        except (ValueError, KeyError, TypeError) as error:
            skipped.append(f"{given}: {error}")
            continue
        found.append(Result(str(given), rows.parent if rows.is_file() else folder, lines, by_id))
    short = [pathlib.Path(result.name).resolve() for result in found]
    for result, path in zip(found, short):
        alone = lambda depth: sum(other.parts[-depth:] == path.parts[-depth:] for other in short) == 1
        depth = next((d for d in range(1, len(path.parts)) if alone(d)), len(path.parts))
        result.name = "/".join(path.parts[-depth:])
    return found, skipped


def key(line: Mapping[str, Any]) -> str:
    """What must agree for two scores to stand in one column."""
    about = line["fingerprint"]
    return statistics.digest([scores.split(line["name"])[0], line["unit"], [about.get(name) for name in SAME]])


def columns(results: Sequence[Result]) -> list[tuple[str, str, dict[str, Any]]]:
    """(measure, key, one of its lines) in the order of `scores.MEASURES`; a measure with several fingerprints has several."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        for line in result.last:
            seen.setdefault((scores.split(line["name"])[0], key(line)), line)
    order = {measure: place for place, measure in enumerate(scores.MEASURES)}
    return [(*names, line) for names, line in sorted(seen.items(), key=lambda kv: (order.get(kv[0][0], 99), kv[0]))]


def paired(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Differences of word error between each two results on the utterances that both have, with paired intervals; only where the
    fingerprints say that both were measured alike."""

    def own(result: Result) -> tuple[str, str] | None:
        lines = {line["name"]: line for line in result.last}
        return next(((c, key(lines[f"wer_{c}"])) for c in ("synthesis", "wavs") if f"wer_{c}" in lines), None)

    out = []
    for i, a in enumerate(results):
        for b in results[i + 1 :]:
            mine, theirs = own(a), own(b)
            if mine is None or theirs is None or mine[1] != theirs[1]:
                continue
            rows = [(a.items[name]["word_error"][mine[0]], b.items[name]["word_error"][theirs[0]]) for name in a.items if name in b.items]
            if rows:
                errors = ([100.0 * pair[side]["errors"] for pair in rows] for side in (0, 1))
                out.append({"a": a.name, "b": b.name, **statistics.paired(*errors, [pair[0]["words"] for pair in rows])})
    return out


def _number(value: float, unit: str) -> str:
    digits = 1 if unit in ("%", "dB", "Hz", "cents") else 2 if unit in ("MOS", "MOS-LQO", "frames") else 3
    return f"{value:.{digits}f}"


def _table(results: Sequence[Result]) -> str:
    chosen = columns(results)
    labels, notes = [], []
    for measure, _, line in chosen:
        several = sum(m == measure for m, _, _ in chosen) > 1
        mark = f" <sup>{len(notes) + 1}</sup>"
        print_of = line["fingerprint"]
        about = ", ".join(f"{name}: {html.escape(str(print_of[name]))}" for name in SAME if print_of.get(name))
        warning = " (measured otherwise than the column of this name beside it: they do not compare)" if several else ""
        notes.append(f"<li><b>{html.escape(measure)}</b>{warning}: {about}</li>")
        labels.append(f"<th>{html.escape(measure.replace('_', ' '))}<small>{html.escape(line['unit'])}</small>{mark}</th>")
    rows = []
    for result in results:
        conditions = dict.fromkeys(scores.split(line["name"])[1] for line in result.last)
        step = f" <small>step {result.steps[-1]}</small>" if result.steps else ""
        for place, condition in enumerate(conditions):
            cells = []
            for measure, name, _ in chosen:
                line = next((x for x in result.last if scores.split(x["name"]) == (measure, condition) and key(x) == name), None)
                if line is None:
                    cells.append("<td></td>")
                    continue
                low, high = (_number(x, line["unit"]) for x in line["interval"])
                left = {word: line["fingerprint"].get(word, 0) for word in ("missing", "without", "short")}
                left = "".join(f"<small>{html.escape(str(count))} {word}</small>" for word, count in left.items() if count)
                value = _number(line["value"], line["unit"])
                cells.append(f"<td title='n = {line['n']}'>{value}<small>{low} to {high}</small>{left}</td>")
            head = f"<th rowspan={len(conditions)} class=name>{html.escape(result.name)}{step}</th>" if place == 0 else ""
            rows.append(f"<tr>{head}<th>{html.escape(condition.replace('_', ' '))}</th>{''.join(cells)}</tr>")
    head = f"<thead><tr><th></th><th></th>{''.join(labels)}</tr></thead>"
    return (f"<div class=scroll><table>{head}<tbody>{''.join(rows)}</tbody></table></div>"
            f"<details><summary>What each column is</summary><ol>{''.join(notes)}</ol></details>")


def curve(points: Sequence[tuple[float, float]], title: str, width: int = 300, height: int = 130) -> str:
    """A line chart as SVG."""
    x, y = (np.asarray(column, np.float64) for column in zip(*points))
    span = lambda v: max(float(v.max() - v.min()), 1e-12)
    place = lambda a, b: (36 + (a - x.min()) / span(x) * (width - 44), height - 22 - (b - y.min()) / span(y) * (height - 44))
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(a, b) for a, b in points))
    return (f"<svg viewBox='0 0 {width} {height}' width={width} height={height} role=img aria-label='{html.escape(title)}'>"
            f"<text x=36 y=14 class=t>{html.escape(title)}</text><polyline points='{line}'/>"
            f"<text x=2 y={height - 20}>{y.min():.3g}</text><text x=2 y=28>{y.max():.3g}</text>"
            f"<text x=36 y={height - 6}>{x.min():g}</text><text x={width - 8} y={height - 6} text-anchor=end>{x.max():g}</text></svg>")


def _curves(result: Result, folder: pathlib.Path) -> str:
    charts = []
    names = dict.fromkeys(line["name"] for line in result.lines)
    if len(result.steps) > 1:
        for name in names:
            points = [(line["fingerprint"]["step"], line["value"]) for line in result.lines if line["name"] == name]
            if len(points) > 1 and not name.startswith(("prosody", "secs_nearest")):
                charts.append(curve(sorted(points), name))
    metrics = next((p for p in (up / "metrics.jsonl" for up in (folder, *folder.parents[:2])) if p.is_file()), None)
    if metrics:
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf8").splitlines() if line.endswith("}")]
        for name in ("loss", "grad_norm", "learning_rate"):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if len(points) > 1:
                charts.append(curve(points[:: max(1, len(points) // 300)], f"training: {name}"))
    return f"<h3>{html.escape(result.name)}</h3><div class=charts>{''.join(charts)}</div>" if charts else ""


def picture(audio: np.ndarray) -> bytes:
    """PNG of the log-mel spectrogram of `[s]` at RATE with its pitch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mel = np.asarray(spectral.log_mel(np.pad(audio, (0, -len(audio) % RATE))[None], RATE, 800, 200, 80))[0, : len(audio) // 200]
    f0 = pitch.track_all([audio], RATE, 200)[0]
    figure, axes = plt.subplots(figsize=(max(2.4, len(audio) / RATE), 1.5), layout="constrained")
    axes.imshow(mel.T, origin="lower", aspect="auto", extent=(0, len(audio) / RATE, 0, 80), cmap="magma", vmin=-9, vmax=1)
    tones = axes.twinx()
    tones.plot((np.arange(len(f0)) + 0.5) * 200 / RATE, np.where(f0 > 0, f0, np.nan), color="cyan", linewidth=1.2)
    tones.set(ylim=(50, 400), yticks=(100, 200, 300))
    axes.set(yticks=())
    for one in (axes, tones):
        one.tick_params(labelsize=6)
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    plt.close(figure)
    return file.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _errors(item: Mapping[str, Any]) -> float:
    """How bad an utterance is: word error of the worst made condition, else how unlike its voice."""
    heard = item.get("word_error", {})
    rates = [row["errors"] / row["words"] for condition, row in heard.items() if condition != "recording"] or [
        row["errors"] / row["words"] for row in heard.values()]
    return max(rates) if rates else -min((row["own"] for row in item.get("speaker_similarity", {}).values()), default=0.0)


def _utterance(name: str, holders: Sequence[tuple[Result, dict[str, Any]]], pictures: bool) -> str:
    first = holders[0][1]
    parts, shown = [], set()
    for result, item in holders:
        conditions = dict.fromkeys(c for evaluator in item.values() if isinstance(evaluator, dict) for c in evaluator)
        for condition in conditions:
            path = result.folder / "audio" / f"{name.replace('/', '_')}-{condition}.flac"
            if condition == "recording" and (condition in shown or (not path.is_file() and result is not holders[-1][0])):
                continue  # the same for every system: once, with its player where anyone has it
            shown.add(condition)
            about = []
            if row := item.get("word_error", {}).get(condition):
                about.append(f"{row['errors']} of {row['words']} words wrong: <i>{html.escape(row['heard'] or '(nothing)')}</i>")
            if row := item.get("speaker_similarity", {}).get(condition):
                about.append(f"similarity {row['own']:.2f}")
            if row := item.get("acoustic_distance", {}).get(condition):
                about.append(f"MCD {row['mcd']:.1f} dB")
            if item.get("failure") and condition == "wavs":
                about.append(f"<b>{html.escape(item['failure'])}</b>")
            player = drawn = ""
            if path.is_file():
                player = f"<audio controls preload=none src='{_uri('audio/flac', path.read_bytes())}'></audio>"
                try:
                    source = _uri("image/png", picture(files.read(path, RATE))) if pictures else ""
                    drawn = f"<img alt='spectrogram of {html.escape(condition)}' src='{source}'>" if source else ""
                except files.AudioError as error:
                    about.append(f"<b>{html.escape(error.reason)}</b>")
            who = "" if condition == "recording" else f" <small>{html.escape(result.name)}</small>"
            parts.append(f"<div class=made><h4>{html.escape(condition)}{who}</h4>{player}{drawn}<p>{'<br>'.join(about)}</p></div>")
    head = f"<h3>{html.escape(first['text'])}</h3><p class=dim>{html.escape(name)}, {html.escape(first['speaker'])}</p>"
    return f"<section class=item>{head}<div class=row>{''.join(parts)}</div></section>"


STYLE = """
:root{--ink:#1c2430;--dim:#667085;--line:#e3e7ee;--back:#f7f8fa;--card:#fff;--blue:#2b5fd9}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebf0;--dim:#98a2b3;--line:#2c3440;--back:#12161c;--card:#1a2029;--blue:#7aa2ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1200px;padding:2rem 1.2rem;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0}h2{margin:2.2rem 0 .6rem;font-size:1.15rem}h3{margin:.2rem 0;font-size:1rem}
h4{margin:0 0 .3rem;font-size:.85rem}small,.dim{color:var(--dim);font-size:.8rem;font-weight:400}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%}
th,td{padding:.45rem .7rem;text-align:right;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
th:first-child,th:nth-child(2),tbody th{text-align:left}td small,th small{display:block;white-space:nowrap}
th.name{vertical-align:top}thead th{vertical-align:bottom;font-size:.8rem}.charts,.row{display:flex;flex-wrap:wrap;gap:.8rem}
svg{background:var(--card);border:1px solid var(--line);border-radius:8px}svg text{font-size:10px;fill:var(--dim)}
svg .t{fill:var(--ink);font-weight:600}polyline{fill:none;stroke:var(--blue);stroke-width:1.5}
.item{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.9rem 1rem;margin:.8rem 0}
.made{flex:1 1 260px;min-width:0}.made p{margin:.3rem 0;font-size:.85rem}audio{width:100%;height:34px}
img{width:100%;height:auto;border-radius:4px;display:block;margin-top:.3rem}details{margin:.6rem 0}
ol{font-size:.8rem;color:var(--dim)}
"""


def _difference(pair: Mapping[str, Any]) -> str:
    """A paired difference in words; under FEWEST utterances without a verdict."""
    low, high = pair["interval"]
    verdict = f" (under {FEWEST}: no verdict)" if pair["n"] < FEWEST else ""
    if pair["decided"] and not verdict:
        verdict = ", <b>worse</b>" if pair["value"] > 0 else ", <b>better</b>"
    return (f"{html.escape(pair['a'])} minus {html.escape(pair['b'])}: {pair['value']:+.1f} points of word error "
            f"({low:+.1f} to {high:+.1f}), {pair['n']} utterances{verdict}")


def page(results: Sequence[Result], skipped: Sequence[str] = (), utterances: int = 24, pictures: bool = True, title: str = "Scores") -> str:
    """The HTML. `utterances`: so many are shown (0: all), worst first. Raises ValueError when there is no result."""
    if not results:
        raise ValueError("nothing to report: " + ("; ".join(skipped) or "no folder is given"))
    pairs = "".join(f"<li>{_difference(pair)}</li>" for pair in paired(results))
    by_id: dict[str, list[tuple[Result, dict[str, Any]]]] = {}
    for result in results:
        for name, item in result.items.items():
            by_id.setdefault(name, []).append((result, item))
    worst = sorted(by_id, key=lambda name: (-max(_errors(item) for _, item in by_id[name]), name))
    heard = "".join(_utterance(name, by_id[name], pictures) for name in worst[: utterances or None])
    curves = "".join(_curves(result, result.folder) for result in results)
    left = f"<p class=dim>Skipped: {html.escape('; '.join(skipped))}</p>" if skipped else ""
    shown = f"<p class=dim>{min(len(worst), utterances or len(worst))} of {len(worst)}</p>"
    parts = {"Results": _table(results), "Differences, paired": pairs and f"<ul>{pairs}</ul>", "Curves": curves,
             "Utterances, worst first": heard and shown + heard}
    body = "".join(f"<h2>{head}</h2>{text}" for head, text in parts.items() if text)
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
            f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
            f"<p class=dim>{len(results)} results, {len(by_id)} utterances. Below each number is its 95 % bootstrap interval.</p>"
            f"{left}{body}</html>")


def write(folders: Sequence[str | os.PathLike], out: str | os.PathLike, utterances: int = 24,
          title: str = "Scores") -> tuple[pathlib.Path, list[str]]:
    """Writes OUT/index.html and returns (its path, what was skipped). Raises ValueError when no folder holds scores."""
    results, skipped = find(folders)
    text = page(results, skipped, utterances, title=title)
    path = pathlib.Path(out) / "index.html"
    scores.put(path, text)
    return path, skipped
