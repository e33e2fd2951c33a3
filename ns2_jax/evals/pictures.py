"""What the report draws: spectrogram with pitch and phones, curves, durations against the recording. HTML and SVG that need no script.

An alignment, as `aligned` makes it and an item of items.jsonl has it per condition:

    "alignment": {"recording": {"phones": [["dh", 0.142, 0.201], ...], "words": [["the", 0.142, 0.244], ...]}, "synthesis": {...}}

name, start and end in seconds; "words" may be left out.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ns2_jax.maths import pitch, spectral
from ns2_jax.text import phones as inventory

RATE = 16000
HOP = 200
LOWEST, HIGHEST = 60.0, 500.0  # Hz, of the pitch axis
LINES = (100, 200, 400)
WIDTH = 150  # pixels a second at least where phones are written; fewer make them collide

Alignment = Mapping[str, Sequence[Sequence[Any]]]


def check() -> None:
    """Raises ImportError when a package that it needs is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"pictures need the package {error.name}: pip install -e '.[eval]'") from error
    del matplotlib


def aligned(phones: Sequence[Any], ends: Sequence[int], rate: int,
            words: Sequence[tuple[str, int, int]] = ()) -> dict[str, list[list[Any]]]:
    """The alignment of an utterance from its phones (names or ids), the samples where they end, and (word, first sample, end)."""
    names = list(phones) if len(phones) and isinstance(phones[0], str) else inventory.names(phones)
    seconds = [round(int(end) / rate, 3) for end in ends]
    out = {"phones": [[name, start, end] for name, start, end in zip(names, [0.0, *seconds[:-1]], seconds, strict=True)]}
    if words:
        out["words"] = [[word, round(int(start) / rate, 3), round(int(end) / rate, 3)] for word, start, end in words]
    return out


def check_alignment(alignment: Alignment) -> None:
    """Raises ValueError or TypeError for what is not an alignment."""
    if not isinstance(alignment, Mapping) or "phones" not in alignment:
        raise ValueError(f"an alignment has phones (and words), not {alignment!r:.80}")
    for kind in ("phones", "words"):
        for name, start, end in alignment.get(kind, ()):
            if not isinstance(name, str) or not 0 <= float(start) <= float(end):
                raise ValueError(f"alignment: {[name, start, end]} is no name with its start and end")


def spectrogram(audio: np.ndarray) -> bytes:
    """PNG of the log-mel spectrogram of `[s]` at RATE, a pixel a frame and band."""
    import matplotlib
    from PIL import Image

    mel = np.asarray(spectral.log_mel(np.pad(audio, (0, -len(audio) % RATE))[None], RATE, 4 * HOP, HOP, 80))[0, : max(len(audio) // HOP, 1)]
    image = Image.fromarray(np.rint(np.clip((mel.T[::-1] + 9) / 10, 0, 1) * 255).astype(np.uint8), "L")
    image.putpalette((matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255).astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _height(f0: float) -> float:
    """Where a pitch lies on the picture, from 0 at its top to 100."""
    return 100 - 100 * math.log(min(max(f0, LOWEST), HIGHEST) / LOWEST) / math.log(HIGHEST / LOWEST)


def _pitch_path(f0: np.ndarray) -> str:
    """SVG path of `[t]` in Hz, in milliseconds and percent; nothing where it is 0."""
    steps = []
    for t, value in enumerate(f0):
        if value > 0:
            steps.append(f"{'L' if t and f0[t - 1] > 0 else 'M'}{(t + 0.5) * HOP / RATE * 1000:.0f} {_height(value):.1f}")
    return "".join(steps)


def _row(kind: str, parts: Sequence[Sequence[Any]], seconds: float) -> str:
    """Names under their stretches of time; every second phone one line lower, so that short ones do not collide."""
    cells = []
    for name, start, end in parts:
        start, end = min(float(start), seconds), min(float(end), seconds)
        if end <= start:
            continue
        place = f"left:{100 * start / seconds:.2f}%;width:{100 * (end - start) / seconds:.2f}%"
        label = "" if name == inventory.SILENCE else html.escape(name)
        cells.append(f"<i style='{place}' title='{html.escape(name)}, {1000 * (end - start):.0f} ms'><b>{label}</b></i>")
    return f"<div class={kind}>{''.join(cells)}</div>"


def figure(audio: np.ndarray, name: str, alignment: Alignment | None = None, longest: float = 0.0) -> str:
    """Spectrogram of `[s]` at RATE with pitch, phones and words, as wide as its share of the `longest` seconds beside it."""
    seconds = len(audio) / RATE
    longest = max(longest, seconds)
    lines = "".join(f"M0 {_height(hz):.1f}H{1000 * seconds:.0f}" for hz in LINES)
    marks = "".join(f"<span style='top:{_height(hz):.1f}%'>{hz}{' Hz' if hz == LINES[-1] else ''}</span>" for hz in LINES)
    bounds = "".join(f"M{1000 * float(end):.0f} 0V100" for _, _, end in (alignment or {}).get("phones", ()) if float(end) < seconds)
    times = "".join(f"<span style='left:{100 * t / seconds:.2f}%'>{t:g}{' s' if t == 0 else ''}</span>"
                    for t in np.arange(0, seconds, 0.5 if longest < 8 else 1))
    tones = _pitch_path(pitch.track_all([audio], RATE, HOP)[0])
    rows = "".join(_row(kind, alignment[kind], seconds) for kind in ("phones", "words") if alignment and alignment.get(kind))
    return (f"<div class=wide><div class=figure style='min-width:{longest * WIDTH if alignment else 0:.0f}px'>"
            f"<div style='width:{100 * seconds / longest:.2f}%'><div class=mel>"
            f"<img alt='spectrogram of {html.escape(name)}' src='{uri('image/png', spectrogram(audio))}'>"
            f"<svg viewBox='0 0 {1000 * seconds:.0f} 100' preserveAspectRatio=none aria-hidden=true><path class=grid d='{lines}'/>"
            f"<path class=bounds d='{bounds}'/><path class=f0 d='{tones}'/></svg>{marks}</div>"
            f"<div class=times>{times}</div>{rows}</div></div></div>")


def _chart(title: str, width: int, height: int, drawn: str) -> str:
    title = html.escape(title)
    return (f"<figure class=chart><figcaption>{title}</figcaption><svg viewBox='0 0 {width} {height}' width={width} height={height} "
            f"role=img aria-label='{title}'>{drawn}</svg></figure>")


def curve(points: Sequence[Sequence[float]], title: str, width: int = 280, height: int = 110) -> str:
    """A line chart as SVG of points (x, y), or (x, y, low, high) whose intervals are drawn as a band."""
    x, y, *band = (np.asarray(column, np.float64) for column in zip(*points))
    low, high = (min(map(np.min, [y, *band])), max(map(np.max, [y, *band])))
    across, up = (max(float(v), 1e-12) for v in (np.ptp(x), high - low))
    path = lambda y: [f"{50 + (a - x.min()) / across * (width - 54):.1f},{height - 18 - (b - low) / up * (height - 26):.1f}" for a, b in zip(x, y)]
    drawn = f"<polygon points='{' '.join(path(band[0]) + path(band[1])[::-1])}'/>" if band else ""
    return _chart(title, width, height, f"{drawn}<polyline points='{' '.join(path(y))}'/><text x=44 y={height - 16} text-anchor=end>{low:.3g}</text>"
                  f"<text x=44 y=12 text-anchor=end>{high:.3g}</text><text x=50 y={height - 3}>{x.min():g}</text>"
                  f"<text x={width - 4} y={height - 3} text-anchor=end>{x.max():g}</text>")


def durations(a: Alignment, b: Alignment) -> list[tuple[float, float]]:
    """Seconds of each phone in both, silences left out; nothing where they are not the same phones."""
    silent = (inventory.SILENCE, inventory.PADDING)
    one, two = ([(name, float(end) - float(start)) for name, start, end in x["phones"] if name not in silent] for x in (a, b))
    return [(x, y) for (_, x), (_, y) in zip(one, two)] if [name for name, _ in one] == [name for name, _ in two] else []


def scatter(points: Sequence[tuple[float, float]], title: str, side: int = 200) -> str:
    """Durations in seconds against the recording's as SVG, with the diagonal on which they are equal."""
    top = max(max(max(point) for point in points), 1e-3)
    left, floor = 44, side + 10
    dots = "".join(f"M{left + x / top * side:.1f} {floor - y / top * side:.1f}h0" for x, y in points)
    return _chart(title, left + side + 12, floor + 30, (
        f"<path class=axis d='M{left} 10V{floor}h{side}'/><path class=equal d='M{left} {floor}l{side} -{side}'/>"
        f"<path class=dots d='{dots}'/>"
        f"<text x={left - 4} y={floor} text-anchor=end>0</text><text x={left - 4} y=16 text-anchor=end>{1000 * top:.0f} ms</text>"
        f"<text x={left + side} y={floor + 13} text-anchor=end>{1000 * top:.0f} ms</text>"
        f"<text x={left + side / 2:.0f} y={floor + 26} text-anchor=middle>in the recording</text>"))
