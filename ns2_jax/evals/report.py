"""One static HTML page of scores: systems side by side, curves, and every utterance to be heard and seen, worst first.

Self-contained: audio, pictures and style are inside the file. Two scores share a column only when their fingerprints say that
they measure the same: judge, normaliser, averaging, list of utterances and data set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import pictures, scores, statistics

SAME = ("evaluator", "normaliser", "averaging", "data", "split", "source", "list", "items", "reference", "level", "frame", "floor",
        "picks", "piece", "rate", "takes", "device", "devices", "cores", "machine", "weights", "compute", "products", "jax")
GROUPS = {  # heads of the tables, and how the measures under them begin
    "Words": ("wer", "cer", "skips", "repeats", "bad_sentences"), "Voice": ("secs", "consistency", "drift"),
    "Sound": ("pesq", "stoi", "si_sdr", "mel_distance", "stft_distance", "dnsmos", "mcd", "f0", "voicing"),
    "Prosody": ("prosody", "diversity"), "Room": ("reverberation", "snr"), "Speed": ("rtf", "first_audio", "cold_start", "load", "compile")}
MAIN = {  # the main measures -> how a head names them
    "wer": "word error %", "skips": "words skipped %", "repeats": "words repeated %", "secs_own": "SECS",
    "secs_nearest": "right voice nearest %", "mcd": "MCD dB", "pesq": "PESQ-WB", "stoi": "STOI", "dnsmos_overall": "DNSMOS",
    "prosody_duration_correlation": "durations, correlation", "prosody_pitch_correlation": "pitch, correlation",
    "rtf": "real-time factor"}
RATE = pictures.RATE
LEFT = ("missing", "without", "short")  # counts of a fingerprint that stand beside the number
FEWEST = 100  # utterances for a verdict


@dataclasses.dataclass
class Result:
    """A folder that `evaluate --out` (or `--follow`) wrote: its name, how it was given, score lines, items by id, and the folder."""

    name: str
    given: str
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
        newest = self.steps[-1:]
        return [line for line in self.lines if not newest or line["fingerprint"].get("step") == newest[0]]

    def score(self, measure: str, condition: str, column: str) -> dict[str, Any] | None:
        """The line of a measure and a condition in the column of this `key`, or None."""
        return next((x for x in self.last if scores.split(x["name"]) == (measure, condition) and key(x) == column), None)


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
            scored = [int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "summary.json").is_file()]  # whole, not under way
            rows = (folder / str(max(scored)) if scored else folder) / "items.jsonl"
            items = [json.loads(line) for line in rows.read_text(encoding="utf8").split("\n") if line] if rows.is_file() else []
            for line in lines:
                if not {"name", "value", "unit", "interval", "n", "fingerprint"} <= set(line):
                    raise ValueError("a line lacks name, value, unit, interval, n or fingerprint")
                line["n"], line["value"] = int(line["n"]), float(line["value"])
                low, high = line["interval"]
                line["interval"] = [float(low), float(high)]
                if "step" in line["fingerprint"]:
                    line["fingerprint"]["step"] = int(line["fingerprint"]["step"])
            for item in items:
                _check_item(item)
            by_id = {item["id"]: item for item in items}
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            skipped.append(f"{given}: {error}")
            continue
        found.append(Result(str(given), str(given), rows.parent if rows.is_file() else folder, lines, by_id))
    short = [pathlib.Path(result.name).resolve() for result in found]
    for result, path in zip(found, short):
        alone = lambda depth: sum(other.parts[-depth:] == path.parts[-depth:] for other in short) == 1
        least = 2 if path.parent in short else 1  # results/a/hard beside results/a
        depth = next((d for d in range(least, len(path.parts)) if alone(d)), len(path.parts))
        result.name = "/".join(path.parts[-depth:])
    return found, skipped


def _said_of(line: Mapping[str, Any], name: str) -> Any:
    """What a fingerprint says of one thing; of takes how many were asked for: one that failed is no other measure."""
    found = line["fingerprint"].get(name)
    return max(found) if name == "takes" and isinstance(found, list) and found else found


def key(line: Mapping[str, Any]) -> str:
    """What must agree for two scores to stand in one column."""
    return statistics.digest([scores.split(line["name"])[0], line["unit"], [_said_of(line, name) for name in SAME]])


def about(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a column is: the part of the fingerprint that its scores share. The data set's hash by its first 12 digits."""
    print_of = {name: line["fingerprint"][name] for name in SAME if line["fingerprint"].get(name)}
    return print_of | ({"data": str(print_of["data"])[:12]} if "data" in print_of else {})


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names of what was not the same when two scores were measured."""
    names = [name for name in SAME if _said_of(a, name) != _said_of(b, name)]
    return ["unit"] * (a["unit"] != b["unit"]) + names


def columns(results: Sequence[Result]) -> list[tuple[str, str, dict[str, Any]]]:
    """(measure, key, one of its lines) in the order of `scores.MEASURES`; a measure with several fingerprints has several, in the
    order in which the results have them."""
    return _columns(line for result in results for line in result.last)


def _columns(lines: Iterable[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        seen.setdefault((scores.split(line["name"])[0], key(line)), line)
    order = {measure: place for place, measure in enumerate(scores.MEASURES)}
    return [(*names, line) for names, line in sorted(seen.items(), key=lambda kv: (order.get(kv[0][0], len(order)), kv[0][0]))]


PAIRED = {  # measure -> (evaluator, its words, unit, whether less is better, value of a row, what it is divided by)
    "wer": ("word_error", "points of word error", "%", True, lambda row: 100.0 * row["errors"], lambda row: row["words"]),
    "skips": ("robustness", "points of words skipped or repeated", "%", True,
              lambda row: 100.0 * (len(row["skipped"]) + len(row["repeated"])), lambda row: row["words"]),
    "secs_own": ("speaker_similarity", "SECS", "cosine", False, lambda row: row["own"], lambda row: 1.0),
    "mcd": ("acoustic_distance", "dB of MCD", "dB", True, lambda row: row["mcd"], lambda row: 1.0),
    "pesq": ("codec_quality", "PESQ-WB", "MOS-LQO", False, lambda row: row["pesq"], lambda row: 1.0),
    "stoi": ("codec_quality", "STOI", "", False, lambda row: row["stoi"], lambda row: 1.0),
    "mel_distance": ("spectral_distance", "mel distance", "log10", True, lambda row: row["mel"], lambda row: 1.0),
    "stft_distance": ("spectral_distance", "STFT distance", "log10", True, lambda row: row["stft"], lambda row: 1.0),
    "dnsmos_overall": ("dnsmos", "DNSMOS", "MOS", False, lambda row: row["dnsmos_overall"], lambda row: 1.0)}


def _sides(results: Sequence[Result], measure: str) -> list[tuple[tuple[Result, str], tuple[Result, str]]]:
    """Which (result, condition) are held against each other: what each two results made, codecs of the same levels too, and what a
    result made against the `wavs` that were scored beside it."""
    codec = PAIRED[measure][0] in ("codec_quality", "spectral_distance")
    fits = lambda c: c in ("codec" if codec else "synthesis", "wavs") or (codec and c.startswith("codec_"))
    found = [[c for m, c in (scores.split(line["name"]) for line in result.last) if m == measure and fits(c)] for result in results]
    found = [sorted(mine, key=lambda c: (c == "wavs", c)) for mine in found]
    pairs = []
    for i, (a, mine) in enumerate(zip(results, found)):
        pairs += [((a, mine[0]), (a, "wavs"))] if "wavs" in mine[1:] else []
        for b, other in zip(results[i + 1 :], found[i + 1 :]):
            same = [(c, c) for c in mine if c in other and c.startswith("codec_")]
            pairs += [((a, c), (b, d)) for c, d in dict.fromkeys([*zip(mine[:1], other[:1]), *same])]
    return pairs


def paired(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Differences on the utterances that both sides have, with paired intervals, and how many were `left` out because a side lacks
    them; only where the fingerprints say that both were measured alike."""
    out = []
    for measure, (evaluator, _, _, _, value, size) in PAIRED.items():
        for (a, c), (b, d) in _sides(results, measure):
            first, second = (next(key(line) for line in r.last if line["name"] == f"{measure}_{made}") for r, made in ((a, c), (b, d)))
            if first != second:
                continue
            both = [(x.get(evaluator, {}).get(c), b.items[name].get(evaluator, {}).get(d)) for name, x in a.items.items()
                    if name in b.items and b.items[name]["text"] == x["text"]]
            rows = [pair for pair in both if all(pair)]  # of no distance without an output
            if rows:
                one, two = ((a.name, b.name) if c == d == "synthesis" else (f"{a.name} {c}", f"{b.name} {d}"))
                sides = ([value(pair[side]) for pair in rows] for side in (0, 1))
                out.append({"a": one, "b": two, "measure": measure, "left": len(a.items | b.items) - len(rows),
                            **statistics.paired(*sides, [size(pair[0]) for pair in rows])})
    return out


def number(value: float, unit: str) -> str:
    digits = 1 if unit in ("%", "dB", "Hz", "cents") else 2 if unit in ("MOS", "MOS-LQO", "frames") else 3
    return f"{value:.{digits}f}"


def _cell(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "<td></td>"
    low, high = (number(x, line["unit"]) for x in line["interval"])
    left = {word: line["fingerprint"].get(word, 0) for word in LEFT}
    left = "".join(f"<small class=left>{html.escape(str(count))} {word}</small>" for word, count in left.items() if count)
    value = number(line["value"], line["unit"])
    return f"<td data-v={line['value']} title='n = {line['n']}'>{value}<small>{low} to {high}</small>{left}</td>"


def group(measure: str) -> str:
    """Under which head of the report a measure stands."""
    return next((name for name, begins in GROUPS.items() if measure.startswith(begins)), "Other")


def _tables(results: Sequence[Result]) -> str:
    """A table for each group of measures, rows that have none of them left out; and what every column is."""
    chosen = list(enumerate(columns(results), 1))
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
        others = [f"{j} ({', '.join(differing(line, other))})" for j, (name, _, other) in chosen if name == measure and j != k]
        warning = f" Measured otherwise than column {' and '.join(others)}: they do not compare." if others else ""
        said = ", ".join(f"{name}: {value}" for name, value in about(line).items())
        notes.append(f"<li><b>{html.escape(measure)}</b>.{html.escape(warning)} {html.escape(said)}</li>")
    return f"<ol>{''.join(notes)}</ol>"


def _checkpoints(result: Result) -> str:
    """Folded: the main measures of what every checkpoint made (of a codec alone where it makes nothing else), the newest first."""
    made = [(*scores.split(line["name"]), line) for line in result.lines if "step" in line["fingerprint"]]
    made = [(measure, condition, line) for measure, condition, line in made if measure in MAIN and condition != "recording"]
    made = [one for one in made if not one[1].startswith("codec")] or made
    cells = {(condition, measure, key(line), line["fingerprint"]["step"]): line for measure, condition, line in made}
    steps = sorted({step for *_, step in cells}, reverse=True)
    if len(steps) < 2:
        return ""
    chosen = list(enumerate(_columns(line for *_, line in made), 1))
    heads = {(condition, measure, column): _head(k, measure.removeprefix("prosody_"), f"{condition.replace('_', ' ')} {line['unit']}")
             for condition in dict.fromkeys(condition for _, condition, _ in made) for k, (measure, column, line) in chosen
             if any((condition, measure, column, step) in cells for step in steps)}
    rows = "".join(f"<tr><th scope=row data-v={step}>{step}</th>{''.join(_cell(cells.get((*head, step))) for head in heads)}</tr>"
                   for step in steps)
    return (f"<details><summary>{len(steps)} checkpoints of {html.escape(result.name)}</summary><div class='scroll long'><table><thead>"
            f"<tr><th><button>step</button></th>{''.join(heads.values())}</tr></thead><tbody>{rows}</tbody></table></div>"
            f"{_notes(chosen)}</details>")


def _curves(result: Result) -> str:
    """A chart for each score and fingerprint that several checkpoints have, with its interval; and the training's own curves."""
    charts = []
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in result.lines:
        if "step" in line["fingerprint"] and not line["name"].startswith(("prosody", "secs_nearest")):
            lines.setdefault((line["name"], key(line)), []).append(line)
    for (name, column), mine in lines.items():
        others = [other[0] for (also, judged), other in lines.items() if also == name and judged != column]
        apart = dict.fromkeys(what for other in others for what in differing(mine[0], other))
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


def _durations(results: Sequence[Result]) -> str:
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


def _errors(item: Mapping[str, Any]) -> float:
    """How bad an utterance is: word error of the worst made condition, else how unlike its voice."""
    heard = item.get("word_error", {})
    rates = [row["errors"] / row["words"] for condition, row in heard.items() if condition != "recording"] or [
        row["errors"] / row["words"] for row in heard.values()]
    return max(rates) if rates else -min((row["own"] for row in item.get("speaker_similarity", {}).values()), default=0.0)


def _check_item(item: Mapping[str, Any]) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError for a line of items.jsonl that can't be shown."""
    for name in ("id", "text", "speaker"):
        if not isinstance(item[name], str):
            raise ValueError(f"item {item['id']!r} has {name} {item[name]!r}, expected text")
    _errors(item)
    item.get("failures", {}).items()
    for alignment in item.get("alignment", {}).values():
        pictures.check_alignment(alignment)


def _file(result: Result, name: str, condition: str) -> pathlib.Path:
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


def _utterance(name: str, holders: Sequence[tuple[Result, dict[str, Any]]], drawn: bool) -> str:
    """The card of an utterance: every condition of every system, the recording once."""
    first = holders[0][1]
    made: list[tuple[Result, dict[str, Any], str, pathlib.Path]] = []
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


def difference(pair: Mapping[str, Any]) -> tuple[str, str]:
    """A paired difference in words, and the verdict: better, worse or nothing; under FEWEST utterances there is none."""
    low, high = pair["interval"]
    few = (f", {pair['left']} left out" if pair["left"] else "") + (f" (under {FEWEST}: no verdict)" if pair["n"] < FEWEST else "")
    _, words, unit, less, *_ = PAIRED[pair["measure"]]
    verdict = "" if pair["n"] < FEWEST or not pair["decided"] else "better" if (pair["value"] < 0) == less else "worse"
    value, low, high = ("+" * (x > 0) + number(x, unit) for x in (pair["value"], low, high))
    return f"{pair['a']} minus {pair['b']}: {value} {words} ({low} to {high}), {pair['n']} utterances{few}", verdict


def page(results: Sequence[Result], skipped: Sequence[str] = (), utterances: int = 24, drawn: bool = True, title: str = "Scores") -> str:
    """The HTML. `utterances`: so many are shown (0: all), those with audio first and among them the worst first. Raises ValueError
    when there is no result, ImportError when pictures are asked for and can't be drawn."""
    if not results:
        raise ValueError("nothing to report: " + ("; ".join(skipped) or "no folder is given"))
    cards: dict[tuple[str, str], list[tuple[Result, dict[str, Any]]]] = {}  # another list may call another text by the same id
    for result in results:
        for name, item in result.items.items():
            cards.setdefault((name, item["text"]), []).append((result, item))
    with_audio = {path for result in results for path in (result.folder / "audio").glob("*.flac")}
    kinds = ("recording", "synthesis", "wavs", "codec")
    audible = lambda card: any(_file(result, card[0], kind) in with_audio for result, _ in cards[card] for kind in kinds)
    if drawn and with_audio:
        pictures.check()
    worst = sorted(cards, key=lambda card: (not audible(card), -max(_errors(item) for _, item in cards[card]), card))
    heard = "".join(_utterance(card[0], cards[card], drawn) for card in tqdm.tqdm(worst[: utterances or None], "utterances", mininterval=2))
    pairs = [difference(pair) for pair in paired(results)]
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
    results, skipped = find(folders)
    text = page(results, skipped, utterances, title=title)
    path = pathlib.Path(out) / "index.html"
    scores.put(path, text)
    return path, skipped
