"""The one table of all results as Markdown: systems and conditions down, the main measures across. Made by the tool, never by hand.

`comparison` decides what may share a column.
"""

from __future__ import annotations

import html
import os
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ns2_jax.evals import comparison, scores

MODEL = ("model", "step", "sampler", "seeds", "times", "command")  # what a fingerprint says of the system and not of the judge


def safe(text: Any) -> str:
    """As Markdown that shows it and nothing else, on one line."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _link(result: comparison.Result, given: str, out: pathlib.Path) -> str:
    page = pathlib.Path(given) / "README.md"
    target = os.path.relpath(page, out.parent).replace(os.sep, "/").replace(" ", "%20")
    return f"[{safe(result.name)}]({target})" if page.is_file() else safe(result.name)


def cell(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return ""
    value, low, high = (comparison.number(x, line["unit"]) for x in (line["value"], *line["interval"]))
    left = "".join(f", {line['fingerprint'][word]} {word}" for word in comparison.LEFT if line["fingerprint"].get(word))
    return f"{value}<br><sub>{low} to {high}{left}</sub>"


def _system(result: comparison.Result, head: str) -> str:
    """What the fingerprints say of the system: model, sampler, seeds, utterances."""
    found: dict[str, list[str]] = {}
    for line in result.last:
        for name in MODEL:
            value = line["fingerprint"].get(name)
            if value is not None:
                said = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
                found.setdefault(name, []).append(said)
    parts = [f"{name} {' or '.join(map(safe, dict.fromkeys(found[name])))}" for name in MODEL if name in found]
    return f"* {head}: " + "; ".join([*parts, f"{len(result.items)} utterances in items.jsonl" if result.items else "no items.jsonl"])


def table(folders: Sequence[str | os.PathLike], out: str | os.PathLike) -> tuple[str, list[str]]:
    """(the text of OUT, what was skipped and why). Links are relative to it, the printed command to where it was given.

    Raises ValueError when no folder holds scores.
    """
    out = pathlib.Path(out)
    results, skipped = comparison.find(folders)
    if not results:
        raise ValueError("no table: " + ("; ".join(skipped) or "no folder is given"))
    heads = [_link(result, result.given, out) for result in results]
    chosen = sorted((column for column in comparison.columns(results) if column[0] in comparison.MAIN), key=lambda c: list(comparison.MAIN).index(c[0]))
    lines, counts = [], [set() for _ in chosen]
    for result, head in zip(results, heads):
        for condition in dict.fromkeys(scores.split(line["name"])[1] for line in result.last):
            found = [result.score(measure, condition, key) for measure, key, _ in chosen]
            for count, line in zip(counts, found):
                count |= {line["n"]} if line else set()
            if any(found):
                lines.append(f"| {head} | {safe(condition.replace('_', ' '))} | " + " | ".join(map(cell, found)) + " |")
    notes = []
    for place, ((measure, _, line), count) in enumerate(zip(chosen, counts), 1):
        others = [f"column {k} ({', '.join(comparison.differing(line, other))})" for k, (name, _, other) in enumerate(chosen, 1)
                  if name == measure and k != place]
        warning = f" Not to be compared with {' and '.join(others)}." if others else ""
        size = " or ".join(map(str, sorted(count, reverse=True)))
        about = "; ".join(f"{name} {safe(value)}" for name, value in comparison.about(line).items())
        notes.append(f"{place}. {comparison.MAIN[measure]}:{warning} {size} utterances; {about}")
    pairs = [", ".join(filter(None, comparison.difference(pair))) for pair in comparison.paired(results) if pair["n"] >= comparison.FEWEST]
    places = [os.path.relpath(path) for path in (*(result.given for result in results), out)]
    words = ["python", "-m", "ns2_jax.evaluate", "table", *places[:-1], f"--out={places[-1]}"]
    rule = "|".join(["---"] * 2 + ["---:"] * len(chosen))
    return "\n".join([
        "# Results", "",
        f"Made by `{shlex.join(words)}`; a test holds it to that, so it is not edited.", "",
        "Each cell is a score and its 95 % bootstrap interval over utterances. A blank was not measured. The number at a column's head is "
        "the note below that says by whom, how and on what.", "",
        "| system | audio | " + " | ".join(f"{comparison.MAIN[measure]} <sup>{k}</sup>" for k, (measure, _, _) in enumerate(chosen, 1)) + " |",
        f"|{rule}|", *lines, "",
        "## The systems", "", *(_system(result, head) for result, head in zip(results, heads)), "",
        "## The columns", "", *notes, "",
        "## Differences, paired", "",
        *([f"* {safe(pair)}" for pair in pairs] or [f"No two have {comparison.FEWEST} utterances in common."]), ""]), skipped


def differences(folders: Sequence[str | os.PathLike]) -> tuple[list[str], list[str]]:
    """(a line for each paired difference of two results, or of a single one from its codec and recordings, however few utterances they share;
    what was skipped). Raises ValueError where no two were measured alike on the same utterances."""
    results, skipped = comparison.find(folders)
    pairs = [pair for pair in comparison.paired(results) if len(folders) == 1 or not pair["within"]]
    found = [", ".join(filter(None, comparison.difference(pair))) for pair in pairs]
    if not found:
        raise ValueError("no differences: " + ("; ".join(skipped) or "nothing was measured alike on the same utterances"))
    return found, skipped


def write_table(folders: Sequence[str | os.PathLike], out: str | os.PathLike) -> list[str]:
    """Writes `table` to the file OUT, whole or not at all; returns what was skipped. Raises ValueError as it does, and for an OUT
    that is no Markdown file."""
    if pathlib.Path(out).suffix != ".md":
        raise ValueError(f"--out={out} is not a Markdown file, expected a name that ends in .md")
    text, skipped = table(folders, out)
    scores.put(pathlib.Path(out), text)
    return skipped
