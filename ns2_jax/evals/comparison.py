"""What evaluations wrote, held side by side: which scores compare, and by how much two systems differ.

Two scores share a column only when their fingerprints say that they measure the same: judge, normaliser, averaging, list of
utterances and data set. Differences are paired, over the utterances that both sides have.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ns2_jax.evals import pictures, scores, statistics

SAME = ("evaluator", "normaliser", "averaging", "data", "clean", "split", "source", "list", "items", "reference", "level", "frame", "floor",
        "picks", "piece", "rate", "takes", "device", "devices", "cores", "machine", "weights", "compute", "products", "jax")
MAIN = {  # the main measures -> how a head names them
    "wer": "word error %", "skips": "words skipped %", "repeats": "words repeated %", "secs_own": "SECS",
    "secs_target": "SECS with the target", "secs_source": "SECS with the source", "notes_hit": "notes hit %",
    "secs_nearest": "right voice nearest %", "mcd": "MCD dB", "pesq": "PESQ-WB", "stoi": "STOI", "dnsmos_overall": "DNSMOS",
    "prosody_duration_correlation": "durations, correlation", "prosody_pitch_correlation": "pitch, correlation",
    "rtf": "real-time factor", "boundary_median": "phone boundaries, ms"}
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
        above = [k for k, parent in enumerate(path.parents, 2) if parent in short]
        least = max(above, default=1)  # results/a/voices/hard beside results/a
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
    return columns_of(line for result in results for line in result.last)


def columns_of(lines: Iterable[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
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


CEILINGS = ("codec", "recording")
"""Conditions of a run that what it synthesises can hardly surpass."""


def _sides(results: Sequence[Result], measure: str) -> list[tuple[tuple[Result, str], tuple[Result, str]]]:
    """Which (result, condition) are held against each other: what each two results made, codecs of the same levels too, and what a
    result made against the `wavs` that were scored beside it, against what it made with other steps, and against its ceilings: the codec and
    the recordings of the same run (but for voices that were to be changed)."""
    codec = PAIRED[measure][0] in ("codec_quality", "spectral_distance")
    fits = lambda c: c in ("codec" if codec else "synthesis", "wavs") or c.startswith("codec_" if codec else "synthesis_")
    every = [{c: line for line in result.last for m, c in [scores.split(line["name"])] if m == measure} for result in results]
    found = [sorted(filter(fits, mine), key=lambda c: (c == "wavs", c)) for mine in every]
    pairs = []
    for i, (a, mine) in enumerate(zip(results, found)):
        pairs += [((a, mine[0]), (a, c)) for c in mine[1:] if c == "wavs" or c.startswith("synthesis_")]
        made = mine[0] if mine else "codec"
        changed = measure == "secs_own" and every[i].get(made, {}).get("fingerprint", {}).get("task") == "convert"
        pairs += [((a, made), (a, c)) for c in CEILINGS if made in every[i] and c in every[i] and c != made and not changed]
        for b, other in zip(results[i + 1 :], found[i + 1 :]):
            same = [(c, c) for c in mine if c in other and c.startswith("codec_")]
            pairs += [((a, c), (b, d)) for c, d in dict.fromkeys([*zip(mine[:1], other[:1]), *same])]
    return pairs


def paired(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Differences on the utterances that both sides have, with paired intervals, and how many were `left` out because a side lacks
    them; only where the fingerprints say that both were measured alike. Those `within` a result are of it and its own codec or recordings."""
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
                out.append({"a": one, "b": two, "measure": measure, "within": a is b and d in CEILINGS,
                            "left": len(a.items | b.items) - len(rows), **statistics.paired(*sides, [size(pair[0]) for pair in rows])})
    return out


def number(value: float, unit: str) -> str:
    digits = 1 if unit in ("%", "dB", "Hz", "cents", "ms") else 2 if unit in ("MOS", "MOS-LQO", "frames") else 3
    return f"{value:.{digits}f}"


def badness(item: Mapping[str, Any]) -> float:
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
    badness(item)
    item.get("failures", {}).items()
    for alignment in item.get("alignment", {}).values():
        pictures.check_alignment(alignment)


def difference(pair: Mapping[str, Any]) -> tuple[str, str]:
    """A paired difference in words, and the verdict: better, worse or nothing; under FEWEST utterances there is none."""
    low, high = pair["interval"]
    few = (f", {pair['left']} left out" if pair["left"] else "") + (f" (under {FEWEST}: no verdict)" if pair["n"] < FEWEST else "")
    _, words, unit, less, *_ = PAIRED[pair["measure"]]
    verdict = "" if pair["n"] < FEWEST or not pair["decided"] else "better" if (pair["value"] < 0) == less else "worse"
    value, low, high = ("+" * (x > 0) + number(x, unit) for x in (pair["value"], low, high))
    return f"{pair['a']} minus {pair['b']}: {value} {words} ({low} to {high}), {pair['n']} utterances{few}", verdict
