"""How well a reader of the pitch's phase turns with it, in numpy (`layers.pitch_phase`)."""

from __future__ import annotations

import numpy as np


def coherence(z, f0, reader, period: float) -> list[float]:
    """Of each row: what of the reader's power is left when up to seven neighbours of a voiced stretch are averaged."""
    found = []
    for row, hz in zip(z, f0.astype(np.float64)):
        angle = 2 * np.pi * period * np.concatenate([[0], np.cumsum((hz[1:] + hz[:-1]) / 2)])
        m = (row @ reader[:, 0] + 1j * row @ reader[:, 1]) * np.exp(-1j * angle)
        stretches = [part for part in np.split(np.arange(len(hz)), np.flatnonzero(np.diff(hz > 0)) + 1) if hz[part[0]] > 0]
        means = [m[part[(part >= i - 3) & (part <= i + 3)]].mean() for part in stretches for i in part]
        power = sum(np.square(abs(m[part])).sum() for part in stretches)
        found.append(np.square(np.abs(means)).sum() / power if power else 0.0)
    return found
