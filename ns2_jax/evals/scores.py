"""Scores as files and as a table: `scores.jsonl` (a score a line), `items.jsonl` (an utterance a line), `summary.json`."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ns2_jax.evals import diversity, prosody

MEASURES = (  # how score names begin; the condition follows
    "wer_per_utterance", "wer", "cer", "skips", "repeats", "bad_sentences", "secs_own", "secs_others", "secs_nearest",
    "secs_target", "secs_source", "secs_turned", "notes_hit", "notes_voiced", "mcd", "f0_rmse",
    "f0_cents", "voicing_error", "pesq", "stoi", "si_sdr", "mel_distance", "stft_distance", "dnsmos_overall", "dnsmos_signal",
    "dnsmos_background", "dnsmos_p808", "consistency", "drift", "reverberation_error", "reverberation_kept", "snr_error", "snr_kept",
    *(f"diversity_{what}" for what in diversity.UNITS), "boundary_median", "boundary_within_20", "boundary_within_50",
    "turn_within_100", "turn_within_250",
    "rtf_batch", "rtf", "first_audio_short", "first_audio_long", "first_audio_stream", "first_audio_whole", "first_audio", "cold_start", "load",
    "cached_start", "cached_compile", "compile",
    "predictability_power", "predictability", "trial_distance", "window_loss", "window_ratio",
    *(f"prosody_{what}_{how}" for what in ("duration", "pitch") for how in (*prosody.MOMENTS, "rmse", "correlation")))


def split(name: str) -> tuple[str, str]:
    """`wer_codec_8` -> ("wer", "codec_8"): what was measured, and on what."""
    measure = next((m for m in MEASURES if name.startswith(m + "_")), name)
    return measure, name.removeprefix(measure).removeprefix("_")


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Measures down, conditions across; each cell is the value and its 95 % interval."""
    if not lines:
        return "no scores: no evaluator had anything to measure"
    measures: dict[str, dict[str, str]] = {}
    conditions: list[str] = []
    for line in lines:
        measure, condition = split(line["name"])
        digits = 1 if line["unit"] in ("%", "dB") else 2 if measure == "pesq" else 3
        cell = f"{line['value']:.{digits}f} ({line['interval'][0]:.{digits}f}-{line['interval'][1]:.{digits}f})"
        measures.setdefault(f"{measure} {line['unit']}".strip(), {})[condition] = cell
        conditions += [condition] if condition not in conditions else []
    width = [max(len(c), *(len(row.get(c, "")) for row in measures.values())) for c in conditions]
    first = max(map(len, measures))
    rows = [" " * first + "  " + "  ".join(c.ljust(w) for c, w in zip(conditions, width))]
    rows += [m.ljust(first) + "  " + "  ".join(row.get(c, "").ljust(w) for c, w in zip(conditions, width)) for m, row in measures.items()]
    return "\n".join(row.rstrip() for row in rows)


def summarise(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Score name -> value; `secs_own` and `secs_others` are those of the last stage there is."""
    values = {line["name"]: line["value"] for line in lines}
    for key in ("secs_own", "secs_others"):
        found = [values[f"{key}_{c}"] for c in ("synthesis", "wavs", "codec", "recording") if f"{key}_{c}" in values]
        values |= {key: found[0]} if found else {}
    return values


def put(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf8")
    os.replace(part, path)


def short(value: Any) -> Any:
    """JSON's `value` with six digits of every number in it that is not whole."""
    if isinstance(value, Mapping):
        return {name: short(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [short(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write(out: pathlib.Path, lines: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]]) -> None:
    """The three files, each whole or not at all; of the items six digits of every number."""
    dump = lambda rows, **how: "".join(json.dumps(row, ensure_ascii=False, **how) + "\n" for row in rows)
    files = {"scores.jsonl": dump(lines), "items.jsonl": dump(map(short, items), separators=(",", ":")),
             "summary.json": json.dumps(summarise(lines), indent=1) + "\n"}
    for name, text in files.items():
        put(out / name, text)


def read(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The score lines of a folder. Raises FileNotFoundError when it holds none."""
    path = pathlib.Path(folder) / "scores.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no scores.jsonl; python -m ns2_jax.evaluate --out={folder} writes it")
    return [json.loads(line) for line in path.read_text(encoding="utf8").split("\n") if line]


def gather(out: pathlib.Path) -> None:
    """OUT/scores.jsonl from the scores of every OUT/<step>/, in order of steps."""
    folders = sorted((path for path in out.iterdir() if path.name.isdigit() and (path / "summary.json").is_file()), key=lambda p: int(p.name))
    if not folders:
        return
    text = "".join((folder / "scores.jsonl").read_text(encoding="utf8") for folder in folders)
    put(out / "scores.jsonl", text)
