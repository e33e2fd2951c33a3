"""One static HTML page of scores: systems side by side, curves, and every utterance to be heard and seen, worst first.

Self-contained: audio, pictures and style are inside the file. `comparison` decides what may share a column.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import comparison, pictures, scores

GROUPS = {  # heads of the tables, and how the measures under them begin
    "Words": ("wer", "cer", "skips", "repeats", "bad_sentences"), "Voice": ("secs", "consistency", "drift"),
    "Sound": ("pesq", "stoi", "si_sdr", "mel_distance", "stft_distance", "dnsmos", "mcd", "f0", "voicing"),
    "Prosody": ("prosody", "diversity"), "Alignment": ("boundary",), "Room": ("reverberation", "snr"), "Speed": ("rtf", "first_audio", "cold_start", "load", "compile")}
RATE = pictures.RATE


def _cell(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "<td></td>"
    low, high = (comparison.number(x, line["unit"]) for x in line["interval"])
    left = {word: line["fingerprint"].get(word, 0) for word in comparison.LEFT}
    left = "".join(f"<small class=left>{html.escape(str(count))} {word}</small>" for word, count in left.items() if count)
    value = comparison.number(line["value"], line["unit"])
    return f"<td data-v={line['value']} title='n = {line['n']}'>{value}<small>{low} to {high}</small>{left}</td>"


def group(measure: str) -> str:
    """Under which head of the report a measure stands."""
    return next((name for name, begins in GROUPS.items() if measure.startswith(begins)), "Other")


def _tables(results: Sequence[comparison.Result]) -> str:
    """A table for each group of measures, rows that have none of them left out; and what every column is."""
    chosen = list(enumerate(comparison.columns(results), 1))
    parts = []
    for name in (*GROUPS, "Other"):
        mine = [(k, *column) for k, column in chosen if group(column[0]) == name]
        rows = []
        for result in results:
            for condition in dict.fromkeys(scores.split(line["name"])[1] for line in result.last):
                found = [result.score(measure, condition, column) for _, measure, column, _ in mine]
                step = f", step {result.steps[-1]}" if result.steps else ""
                head = f"<th scope=row>{html.escape(condition.replace('_', ' '))}<small>{html.escape(result.name)}{step}</small></th>"
                rows += [f"<tr>{head}{''.join(map(_cell, found))}</tr>"] if any(found) else []
        labels = "".join(_head(k, measure.removeprefix("prosody_"), line["unit"]) for k, measure, _, line in mine)
        if rows:
            parts.append(f"<h3>{name}</h3><div class=scroll><table><thead><tr><th></th>{labels}</tr></thead>"
                         f"<tbody>{''.join(rows)}</tbody></table></div>")
    return f"{''.join(parts)}<details><summary>What each column is</summary>{_notes(chosen)}</details>"


def _head(k: int, measure: str, under: str) -> str:
    """The head of a column that note `k` explains; a click sorts by it."""
    return (f"<th><button>{html.escape(measure.replace('_', ' '))}&nbsp;<sup>{k}</sup></button>"
            f"<small>{html.escape(under) or '&nbsp;'}</small></th>")


def _notes(chosen: Sequence[tuple[int, tuple[str, str, dict[str, Any]]]]) -> str:
    """What every numbered column is, and which of the same measure do not compare."""
    notes = []
    for k, (measure, _, line) in chosen:
        others = [f"{j} ({', '.join(comparison.differing(line, other))})" for j, (name, _, other) in chosen if name == measure and j != k]
        warning = f" Measured otherwise than column {' and '.join(others)}: they do not compare." if others else ""
        said = ", ".join(f"{name}: {value}" for name, value in comparison.about(line).items())
        notes.append(f"<li><b>{html.escape(measure)}</b>.{html.escape(warning)} {html.escape(said)}</li>")
    return f"<ol>{''.join(notes)}</ol>"


def _checkpoints(result: comparison.Result) -> str:
    """Folded: the main measures of what every checkpoint made (of a codec alone where it makes nothing else), the newest first."""
    made = [(*scores.split(line["name"]), line) for line in result.lines if "step" in line["fingerprint"]]
    made = [(measure, condition, line) for measure, condition, line in made if measure in comparison.MAIN and condition != "recording"]
    made = [one for one in made if not one[1].startswith("codec")] or made
    cells = {(condition, measure, comparison.key(line), line["fingerprint"]["step"]): line for measure, condition, line in made}
    steps = sorted({step for *_, step in cells}, reverse=True)
    if len(steps) < 2:
        return ""
    chosen = list(enumerate(comparison.columns_of(line for *_, line in made), 1))
    heads = {(condition, measure, column): _head(k, measure.removeprefix("prosody_"), f"{condition.replace('_', ' ')} {line['unit']}")
             for condition in dict.fromkeys(condition for _, condition, _ in made) for k, (measure, column, line) in chosen
             if any((condition, measure, column, step) in cells for step in steps)}
    rows = "".join(f"<tr><th scope=row data-v={step}>{step}</th>{''.join(_cell(cells.get((*head, step))) for head in heads)}</tr>"
                   for step in steps)
    return (f"<details><summary>{len(steps)} checkpoints of {html.escape(result.name)}</summary><div class='scroll long'><table><thead>"
            f"<tr><th><button>step</button></th>{''.join(heads.values())}</tr></thead><tbody>{rows}</tbody></table></div>"
            f"{_notes(chosen)}</details>")


def _curves(result: comparison.Result) -> str:
    """A chart for each score and fingerprint that several checkpoints have, with its interval; and the training's own curves."""
    charts = []
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in result.lines:
        if "step" in line["fingerprint"] and not line["name"].startswith(("prosody", "secs_nearest")):
            lines.setdefault((line["name"], comparison.key(line)), []).append(line)
    for (name, column), mine in lines.items():
        others = [other[0] for (also, judged), other in lines.items() if also == name and judged != column]
        apart = dict.fromkeys(what for other in others for what in comparison.differing(mine[0], other))
        title = ", ".join([name, *(f"{what} {mine[0]['fingerprint'].get(what, mine[0].get(what))}" for what in apart)])
        points = sorted((line["fingerprint"]["step"], line["value"], *line["interval"]) for line in mine)
        if len(points) > 1:
            charts.append(pictures.curve(points, title))
    places = [up / name for up in (result.folder, *result.folder.parents[:2]) for name in ("metrics.jsonl", "curves.jsonl")]
    metrics = next((path for path in places if path.is_file()), None)
    if metrics:
        lines = []
        for text in metrics.read_text(encoding="utf8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # cut by a kill
                lines.append(json.loads(text))
        for name in ("loss", "grad_norm", "learning_rate"):
            points = [(line["step"], line[name]) for line in lines if isinstance(line, dict) and None not in (line.get("step"), line.get(name))]
            if len(points) > 1:
                charts.append(pictures.curve(points[:: max(1, len(points) // 300)], f"training: {name}"))
    return f"<h3>{html.escape(result.name)}</h3><div class=charts>{''.join(charts)}</div>" if charts else ""


def _durations(results: Sequence[comparison.Result]) -> str:
    """Phone durations against the recording's: a plot of every system and condition whose alignment is known."""
    charts = []
    for result in results:
        points: dict[str, list[tuple[float, float]]] = {}
        for item in result.items.values():
            found = item.get("alignment", {})
            for condition in found:
                if condition != "recording" and "recording" in found:
                    points.setdefault(condition, []).extend(pictures.durations(found["recording"], found[condition]))
        for condition, pairs in points.items():
            if len(pairs) > 1:
                charts.append(pictures.scatter(pairs, f"{result.name}, {condition}: {len(pairs)} phones"))
    return f"<div class=charts>{''.join(charts)}</div>" if charts else ""


def _file(result: comparison.Result, name: str, condition: str) -> pathlib.Path:
    return result.folder / "audio" / f"{name.replace('/', '_')}-{condition}.flac"


def _said(item: Mapping[str, Any], condition: str) -> list[str]:
    """What was measured of an output, as lines of HTML."""
    lines = []
    if row := item.get("word_error", {}).get(condition):
        heard = html.escape(str(row.get("heard") or "(nothing)"))
        lines.append(f"{html.escape(str(row['errors']))} of {html.escape(str(row['words']))} words wrong: <i>{heard}</i>")
    if row := item.get("robustness", {}).get(condition):
        lines += [f"{len(row[kind])} {kind}" for kind in ("skipped", "repeated") if row[kind]]
    if row := item.get("speaker_similarity", {}).get(condition):
        lines.append(f"similarity {row['own']:.2f}")
    if row := item.get("acoustic_distance", {}).get(condition):
        lines.append(f"MCD {row['mcd']:.1f} dB")
    if reason := item.get("failures", {}).get(condition):
        lines.append(f"<b>{html.escape(str(reason))}</b>")
    return lines


def _utterance(name: str, holders: Sequence[tuple[comparison.Result, dict[str, Any]]], drawn: bool) -> str:
    """The card of an utterance: every condition of every system, the recording once."""
    first = holders[0][1]
    made: list[tuple[comparison.Result, dict[str, Any], str, pathlib.Path]] = []
    audios: dict[pathlib.Path, np.ndarray | files.AudioError] = {}
    for result, item in holders:
        for condition in dict.fromkeys(c for evaluator in item.values() if isinstance(evaluator, dict) for c in evaluator):
            path = _file(result, name, condition)
            known = any(c == "recording" for _, _, c, _ in made)
            if condition == "recording" and (known or (not path.is_file() and result is not holders[-1][0])):
                continue  # the same for every system: once, with its player where anyone has it
            made.append((result, item, condition, path))
            if path.is_file():
                try:
                    audios[path] = files.read(path, RATE)
                except files.AudioError as error:
                    audios[path] = error
    longest = max((len(audio) / RATE for audio in audios.values() if isinstance(audio, np.ndarray)), default=0.0)
    parts = []
    for result, item, condition, path in made:
        audio, said, player, picture = audios.get(path), _said(item, condition), "", ""
        if path.is_file():
            player = f"<audio controls preload=none src='{pictures.uri('audio/flac', path.read_bytes())}'></audio>"
        if isinstance(audio, files.AudioError):
            said.append(f"<b>{html.escape(audio.reason)}</b>")
        elif audio is not None and drawn:
            known = item.get("alignment", {})
            times = known.get(condition) or (known.get("recording") if condition not in ("synthesis", "wavs") else None)  # a copy keeps its times
            picture = pictures.figure(audio, condition, times, longest)
        who = "" if condition == "recording" else f" <small>{html.escape(result.name)}</small>"
        text = f"<div class=said><h4>{html.escape(condition.replace('_', ' '))}{who}</h4>{player}<p>{'<br>'.join(said)}</p></div>"
        parts.append(f"<div class='made{' drawn' if picture else ''}'>{text}{picture}</div>")
    head = f"<h3>{html.escape(first['text'])}</h3><p class=dim>{html.escape(name)}, {html.escape(first['speaker'])}</p>"
    return f"<section class=item>{head}<div class=row>{''.join(parts)}</div></section>"


def page(results: Sequence[comparison.Result], skipped: Sequence[str] = (), utterances: int = 24, drawn: bool = True, title: str = "Scores") -> str:
    """The HTML. `utterances`: so many are shown (0: all), those with audio first and among them the worst first. Raises ValueError
    when there is no result, ImportError when pictures are asked for and can't be drawn."""
    if not results:
        raise ValueError("nothing to report: " + ("; ".join(skipped) or "no folder is given"))
    cards: dict[tuple[str, str], list[tuple[comparison.Result, dict[str, Any]]]] = {}  # another list may call another text by the same id
    for result in results:
        for name, item in result.items.items():
            cards.setdefault((name, item["text"]), []).append((result, item))
    with_audio = {path for result in results for path in (result.folder / "audio").glob("*.flac")}
    kinds = ("recording", "synthesis", "wavs", "codec")
    audible = lambda card: any(_file(result, card[0], kind) in with_audio for result, _ in cards[card] for kind in kinds)
    if drawn and with_audio:
        pictures.check()
    worst = sorted(cards, key=lambda card: (not audible(card), -max(comparison.badness(item) for _, item in cards[card]), card))
    heard = "".join(_utterance(card[0], cards[card], drawn) for card in tqdm.tqdm(worst[: utterances or None], "utterances", mininterval=2))
    pairs = [comparison.difference(pair) for pair in comparison.paired(results)]
    listed = "".join(f"<li>{html.escape(text)}{verdict and f', <b>{verdict}</b>'}</li>" for text, verdict in pairs)
    shown = f"<p class=dim>{min(len(worst), utterances or len(worst))} of {len(worst)}, {sum(map(audible, worst))} with audio</p>"
    parts = {"Results": _tables(results) + "".join(map(_checkpoints, results)),
             "Differences, paired": listed and f"<ul>{listed}</ul>", "Curves": "".join(map(_curves, results)),
             "Phone durations against the recording": _durations(results), "Utterances, worst first": heard and shown + heard}
    body = "".join(f"<h2>{head}</h2>{text}" for head, text in parts.items() if text)
    left = f"<p class=dim>Skipped: {html.escape('; '.join(skipped))}</p>" if skipped else ""
    many = lambda count, word: f"{count} {word}{'' if count == 1 else 's'}"
    intro = (f"<p class=dim>{many(len(results), 'result')}, {many(len(cards), 'utterance')}. Below each number is its 95 % bootstrap "
             f"interval; a click on a column's head sorts by it.</p>{left}")
    fill = {"TITLE": html.escape(title), "BODY": intro + body}
    return re.sub("@(TITLE|BODY)@", lambda match: fill[match[1]], pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf8"))


def write(folders: Sequence[str | os.PathLike], out: str | os.PathLike, utterances: int = 24,
          title: str = "Scores") -> tuple[pathlib.Path, list[str]]:
    """Writes OUT/index.html and returns (its path, what was skipped). Raises ValueError when no folder holds scores."""
    results, skipped = comparison.find(folders)
    text = page(results, skipped, utterances, title=title)
    path = pathlib.Path(out) / "index.html"
    scores.put(path, text)
    return path, skipped
