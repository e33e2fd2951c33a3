"""Kinds of TPU as the compiler sees them, and what their makers' pages promise (docs.cloud.google.com/tpu/docs, 2026)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device (a TPU7x chip is two). Peak FLOP/s in bfloat16, bytes of memory that a program may use, bytes/s of memory, bytes/s sent
    into the slice's network (half of the bidirectional figure) and into the data centre's (None where no page says)."""

    flops: float
    memory: int
    memory_rate: float
    slice_rate: float
    centre_rate: float | None


CHIPS = {
    "v4": Chip(275e12, 32 << 30, 1200e9, 300e9, None),
    "v5e": Chip(197e12, 16 << 30, 819e9, 200e9, 25e9 / 8),
    "v5p": Chip(459e12, 95 << 30, 2765e9, 600e9, 50e9 / 8),
    "v6e": Chip(918e12, 32 << 30, 1638e9, 400e9, 100e9 / 8),
    "tpu7x": Chip(2307e12 / 2, 96 << 30, 7380e9 / 2, 600e9 / 2, 100e9 / 8 / 2),
}


def chip(topology: str) -> Chip | None:
    """That of `FAMILY:SHAPE`; None for `cpu:N`."""
    return CHIPS.get(topology.partition(":")[0])


def cpus(topology: str) -> int:
    """N of `cpu:N`; 0 for anything else."""
    found = re.fullmatch(r"cpu:([1-9]\d*)", topology)
    return int(found[1]) if found else 0


def devices(name: str, slices: int = 1) -> list[Any]:
    """The devices of a topology. Raises ValueError for a name that does not exist, for slices of CPUs, or without libtpu."""
    family, _, shape = name.partition(":")
    if family == "cpu":
        if not cpus(name):
            raise ValueError(f"--topology={name}: how many CPU devices? As in cpu:8")
        if slices > 1:
            raise ValueError(f"--num_slices={slices}: CPU devices make no slices; take a TPU topology, as in v5e:4x4, or leave it out")
        return jax.devices("cpu")
    if family not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ValueError(f"--topology={name} is not FAMILY:SHAPE; families are {sorted(CHIPS)} (and cpu), a shape looks like 4x4 or 4x4x4")
    options = {"num_slices": slices} if slices > 1 else {}
    if family == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except Exception as error:  # pylint: disable=broad-except
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--topology={name}: the TPU compiler refuses it, or libtpu is not installed (pip install 'ns2_jax[tpu]'): {reason}") from error
