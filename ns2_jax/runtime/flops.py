"""Matrix products and convolutions of a traced function, counted in its jaxpr: scans by their length, what is computed again too."""

from __future__ import annotations

import math
from typing import Any

import jax


def _product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> float:
    """Multiply-adds with the zeros of a dilated input left out; those with the padding count."""
    numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    taps = math.prod(kernel[i] for i in numbers.rhs_spec[2:])
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * taps * kernel[numbers.rhs_spec[1]] / zeros


def kinds(jaxpr: Any) -> dict[str, float]:
    """`{"products": FLOPs, "convolutions": FLOPs}` (2 per multiply-add) of all devices together; the body of a loop of unknown length
    counts once, the dearest branch of a condition counts. `jaxpr` is closed or not, as in `jax.make_jaxpr(f)(...)` or
    `jit(f).trace(...).jaxpr`."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = {"products": 0.0, "convolutions": 0.0}
    for equation in jaxpr.eqns:
        name, factor, inner = equation.primitive.name, 1, []
        if name == "dot_general":
            total["products"] += _product(equation)
        elif name == "conv_general_dilated":
            total["convolutions"] += _convolution(equation)
        elif name == "cond":
            inner = [max(equation.params["branches"], key=count)]
        elif name == "while":
            inner = [equation.params["body_jaxpr"]]
        else:
            inner = [x for x in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(x)]
            if name.startswith("custom_"):
                inner = inner[:1]  # the function itself; its rules are other ways of writing it
            if name == "scan":
                factor = equation.params["length"]
            if name == "shard_map":  # its body is one device's
                mesh = equation.params["mesh"]
                factor = math.prod(mesh.shape[axis] for axis in equation.params.get("manual_axes", mesh.shape))
        for one in inner:
            for kind, flops in kinds(one).items():
                total[kind] += factor * flops
    return total


def count(jaxpr: Any) -> float:
    """FLOPs of both kinds."""
    return sum(kinds(jaxpr).values())


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
