"""What VALL-E costs, counted by hand: tests hold it against the compiler's own count and the arrays themselves."""

from __future__ import annotations

from typing import Any

from ns2_jax.systems.system import Sizes


def slots(system: Any, sizes: Sizes) -> int:
    """Of the cache: the text of prompt and target, the begin vector, the prompt's groups, and those to come."""
    return 2 * sizes["p"] + 1 + sizes["u"] // system.group + -(-sizes["t"] // system.group)


def cache(system: Any, sizes: Sizes) -> int:
    """Bytes of keys and values of all layers for `b` rows."""
    width = 2 if system.dtype == "bfloat16" else 4
    return 2 * system.ar["layers"] * sizes["b"] * slots(system, sizes) * system.width * width


def forward(system: Any, sizes: Sizes) -> float:
    """FLOPs of one training batch, forward: 2 per multiply-add of every matrix product."""
    b, p, frames, d = (float(x) for x in (sizes["b"], 2 * sizes["p"], sizes["u"] + sizes["t"], system.width))
    stack = lambda numbers, s: numbers["layers"] * (4 * s * d * d + 2 * s * s * d + 2 * s * d * numbers["hidden"])
    macs = 0.0
    if "ar" in system.parts:
        n, g = -(-frames // system.group), system.group
        macs += stack(system.ar, p + 1 + n) + (n + 1) * g * d * (system.codes + 1)
        macs += (2 * n + 1) * g * d * d if g > 1 else 0  # joined on the way in, spread on the way out
        macs += (n + 1) * p * d / system.ar["heads"] if system.guide_weight else 0
    if "nar" in system.parts:
        macs += stack(system.nar, p + frames) + frames * d * system.codes
        macs += (2 * system.nar["layers"] + 1) * 2 * d * d if system.norms == "projected" else 0
    return 2.0 * b * macs
