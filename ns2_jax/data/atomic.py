"""Files that appear whole or not at all, and what is left of those whose writer was killed."""

from __future__ import annotations

import os
import pathlib
import secrets
import socket
import time


def _process(pid: int) -> tuple[str, str]:
    """(state, when it began in ticks since the machine did) of a process of this machine; ("", "") where there is no /proc to tell."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def beside(path: pathlib.Path) -> pathlib.Path:
    """A temporary file or folder that no other process has, on this machine or another; its name says whose it is."""
    pid = os.getpid()
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(6)}-{pid}.{_process(pid)[1]}-{socket.gethostname()}")


def abandoned(temp: pathlib.Path) -> bool:
    """Whether whoever made a temporary file or folder (`beside`) has ended.

    Of a process of this machine that is known, a number in use again included. Of another machine's, and where the name does not say
    whose it is, it is taken to have ended when nothing was written for a day. Two containers count as two machines; given the same host
    name, each takes the other's processes for ended.
    """
    who, _, host = temp.name.rpartition(".tmp-")[2].partition("-")[2].partition("-")
    pid, _, began = who.partition(".")
    try:
        if host != socket.gethostname() or not pid.isdecimal() or not 0 < int(pid) < 1 << 31:
            return time.time() - temp.stat().st_mtime > 86400
        os.kill(int(pid), 0)
    except (ProcessLookupError, FileNotFoundError):
        return True
    except PermissionError:
        pass  # there is one, somebody else's
    state, since = _process(int(pid))
    return state == "Z" or bool(began and since) and began != since  # Z: killed, and nobody asked how it ended


def write_atomic(path: pathlib.Path, data: bytes) -> None:
    """`data` in `path`, wholly or not at all: temp file, fsync, rename."""
    temp = beside(path)
    with open(temp, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temp, path)
