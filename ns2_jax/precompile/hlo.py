"""Collectives of a compiled program, read from its text: how often a step runs each, how many bytes it moves, over which network."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


@dataclasses.dataclass(frozen=True)
class Collective:
    """`times` a step; `bytes` of one result of one device; `groups` of partitions (`between`: of slices) that exchange, pairs for a
    permutation. Between slices the compiler reduces inside each slice first and sends a part of each device's own."""

    kind: str
    times: int
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    between: bool = False

    def sent(self) -> float:
        """Bytes that one device must send at least, each time, whatever the algorithm."""
        n = max((len(group) for group in self.groups), default=1)
        if self.kind == "collective-permute":
            return self.bytes if any(a != b for a, b in self.groups) else 0
        share = {"all-gather": (n - 1) / n, "all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "all-to-all": (n - 1) / n}
        return share.get(self.kind, 1) * self.bytes


def array_bytes(text: str, largest: bool = False) -> int:
    """Bytes of the arrays in an HLO shape, or of the largest: `(f32[4]{0}, f32[16]{0})` -> 80, or 64."""
    arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", text)
    sizes = [math.prod(int(n) for n in dims.split(",") if n) * BYTES.get(kind, 4) for kind, dims in arrays]
    return max(sizes, default=0) if largest else sum(sizes)


def _grid(shape: list[int], order: list[int], kept: int) -> tuple[tuple[int, ...], ...]:
    """Partitions 0, 1, ... laid out as `shape`, transposed to `order`, cut into rows of `kept`."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    flat = [0]
    for axis in order:
        flat = [i + strides[axis] * k for i in flat for k in range(shape[axis])]
    return tuple(tuple(flat[i : i + kept]) for i in range(0, len(flat), kept))


def groups(line: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Who exchanges with whom, in any of the compiler's ways of writing it: `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)`,
    `mesh['a'=2,'b'=4] {'b'}`; all devices where it is empty."""
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line):
        return tuple(tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d,]+)\}", found[1]))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape = [int(n) for n in found[3].split(",")]
        order = [int(n) for n in found[4].split(",")] if found[4] else list(range(len(shape)))
        return _grid(shape, order, int(found[2]))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        axes = [(name, int(size)) for name, size in re.findall(r"'([^']*)'=(\d+)", found[1])]
        inside = re.findall(r"'([^']*)'", found[2])
        order = [i for i, (name, _) in enumerate(axes) if name not in inside] + [i for i, (name, _) in enumerate(axes) if name in inside]
        return _grid([size for _, size in axes], order, math.prod(size for name, size in axes if name in inside))
    return (tuple(range(devices)),)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(name -> its instructions, the name of the entry)."""
    found: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = found.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return found, entry


def _constants(lines: Sequence[str]) -> dict[str, int]:
    """Name of a whole number that is written down -> the number."""
    return {name: int(value) for line in lines for name, value in re.findall(r"%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)", line)}


def trips(condition: Sequence[str], body: Sequence[str] = ()) -> int:
    """Of a loop that counts from zero to a constant, as every scan does, in the steps that its body takes; 1 for any other."""
    constants = _constants(condition)
    for line in condition:
        if "direction=LT" in line and (found := [constants[name] for name in re.findall(r"%([\w.\-]+)", line) if name in constants]):
            return math.ceil(found[0] / _step(condition, line, body))
    return max(constants.values(), default=1) if len(constants) == 1 else 1


def _step(condition: Sequence[str], compare: str, body: Sequence[str]) -> int:
    """What the body adds to the number that is compared: 2 in XLA's unrolled products of cut matrices; 1 where it is not said."""
    compared = re.findall(r"%([\w.\-]+)", compare.partition(" compare(")[2])
    places = [int(place) for line in condition for name, place in re.findall(r"%([\w.\-]+) = .* get-tuple-element\(.*index=(\d+)", line)
              if name in compared]
    out = next((re.findall(r"%([\w.\-]+)", line.partition(" tuple(")[2]) for line in body if "ROOT " in line and " tuple(" in line), [])
    sums = dict(found for line in body for found in re.findall(r"%([\w.\-]+) = [su]32\[\]\S* add\((.*?)\)", line))
    terms = re.findall(r"%([\w.\-]+)", sums.get(out[places[0]], "")) if places and places[0] < len(out) else []
    constants = _constants(body)
    return next((constants[name] for name in terms if name in constants), 1)


def _times(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often a step runs each computation that is reached from the entry."""
    calls: dict[str, list[tuple[str, int]]] = {}
    for name, lines in computations.items():
        for line in lines:
            count = 1
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                count = trips(computations.get(loop[1], ()), computations.get(loop[2], ()))
                called = [loop[2]]
            else:
                called = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line)
                for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                    called += [part.strip().lstrip("%") for part in branches.split(",")]
            calls.setdefault(name, []).extend((other, count) for other in called if other in computations)
    times: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for other, trips_of in calls.get(name, ()):
            visit(other, count * trips_of)

    visit(entry, 1)
    return times


def collectives(text: str, devices: int, slices: int = 1) -> Iterator[Collective]:
    """Every collective of a compiled program of so many devices, loops counted. What goes to other slices is a `send` to the
    multi-slice runtime."""
    computations, entry = _computations(text)
    lines = [line for part in computations.values() for line in part]
    channels = dict(found for line in lines for found in re.findall(r"%([\w.\-]+) = .* channel_id=(\d+)", line))
    starts = {name for line in lines if "AsyncCollectiveStart" in line for name in re.findall(r"%([\w.\-]+)", line.partition(" custom-call(")[2])}
    again = {channels[name] for name in starts & channels.keys()}  # written once more in the work that hides them, and in their ends
    for name, times in _times(computations, entry).items():
        for line in computations[name]:
            if (own := line.partition(" = ")[0].split("%")[-1]) not in starts and channels.get(own) in again:
                continue
            if match := re.search(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(", line):
                shape, kind, start = match.groups()
                yield Collective(kind, times, array_bytes(shape, largest=bool(start) and kind != "all-reduce"), groups(line, devices))
            elif match := re.search(r' = (.*?) send\(.*_xla_megascale_transfer_type="(\w+)"', line):
                shape, kind = match.groups()
                yield Collective(kind.lower().replace("_", "-"), times, array_bytes(shape, largest=True), (tuple(range(slices)),), True)


def summary(found: Sequence[Collective]) -> dict[str, dict[str, int]]:
    """`{"all-gather": {"count": 3, "bytes": 4096}}` of one device and one step: bytes are those of the results."""
    table: dict[str, dict[str, int]] = {}
    for one in found:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0})
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
    return table
