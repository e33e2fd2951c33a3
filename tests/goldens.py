"""Numbers that stay what they are: `goldens.check("codec", {"loss": 1.25, ...})` holds them to `tests/systems/golden_codec.json`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

FOLDER = pathlib.Path(__file__).parent / "systems"


def check(name: str, found: Mapping[str, float], tolerance: float) -> None:
    """Every number is the stored one within `tolerance` of its size (of 0.01 for smaller ones).

    When a change to the mathematics was intended, delete the file and run twice: the first run writes it and fails.
    """
    path = FOLDER / f"golden_{name}.json"
    if not path.exists():
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        raise AssertionError(f"{path.name} was missing and has been written: look at it, commit it with the reason, run again")
    golden = json.loads(path.read_text())
    off = {key: (golden.get(key), found.get(key)) for key in golden.keys() | found.keys()
           if key not in golden or key not in found or not abs(found[key] - golden[key]) <= tolerance * max(abs(golden[key]), 1e-2)}
    assert not off, f"(golden, found) differ: {off}; if the mathematics was meant to change, delete {path.name} and run twice"
