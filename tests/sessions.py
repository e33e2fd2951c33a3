"""Who is left of a command that was killed: a process started with `start_new_session=True` leads a session of its own."""

from __future__ import annotations

import pathlib


def living(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [int(stat.parent.name)] if int(its) == session and state != "Z" else []
    return found
