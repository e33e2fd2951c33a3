"""The folder of a run: that it can be written, that nobody else trains in it, and what is written there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from ns2_jax.runtime.state import flatten

LOCK = "trainer.lock"
FULL = (errno.ENOSPC, errno.EDQUOT)


def claim(workdir: str, alone: bool = True) -> Any:
    """Makes the folder, tries to write into it, and with `alone` takes its lock for as long as what is returned stays open (the lock of a
    killed process is free).

    Raises ValueError when it cannot be written, or when another trainer has it. Where the file system knows no locks, None: then
    nothing keeps a second trainer out, and a line says so. A mounted bucket (gcsfuse) gives locks that other hosts do not see: there a second
    trainer is refused on the same host only.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir) as probe:
            probe.write(b"x" * 4096)
            probe.flush()
        if not alone:
            return None
        lock = open(os.path.join(workdir, LOCK), "a+", encoding="utf8")
    except OSError as error:
        reason = "its disk is full" if error.errno in FULL else error.strerror
        raise ValueError(f"--workdir={workdir} cannot be written: {reason}; free it, or give another folder") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read().strip() or "somebody who has not said"
        lock.close()
        raise ValueError(f"--workdir={workdir} is in use by {owner}: two trainers would overwrite each other's checkpoints. Wait for it, stop it, "
                         "or give another folder") from error
    except OSError as error:
        lock.close()
        print(f"--workdir={workdir}: its file system gives no locks ({error.strerror}), so nothing keeps a second trainer out: see to it yourself",
              file=sys.stderr, flush=True)
        return None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")
    lock.flush()
    return lock


def write_json(path: str, content: Any) -> None:
    """Written whole or not at all."""
    with open(path + ".part", "w", encoding="utf8") as f:
        json.dump(content, f, indent=1, default=list)
        f.write("\n")
    os.replace(path + ".part", path)


def plain(config: Any) -> dict[str, Any]:
    """A config as JSON has it."""
    return json.loads(json.dumps(config.to_dict(), default=list))


def changes(workdir: str, config: Any) -> list[str]:
    """Every field in which `config` differs from the config.json of a run or export; empty without one."""
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf8") as f:
        old = _fields(json.load(f))
    new = _fields(plain(config))
    differ = [name for name in sorted(set(old) | set(new)) if old.get(name) != new.get(name)]
    return [f"config.{name} was {old.get(name, 'not there')}, is {new.get(name, 'not there')}" for name in differ]


def _fields(tree: Mapping[str, Any]) -> dict[str, str]:
    """Dotted path -> value as text; lists are one value."""
    def texts(node: Any) -> Any:
        return {name: texts(value) for name, value in node.items()} if isinstance(node, Mapping) and node else json.dumps(node)

    return {path.replace("/", "."): value for path, value in flatten(texts(tree)).items()}
