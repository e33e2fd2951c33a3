"""Where a data set's bytes are: a folder of this machine, read by pread, or a URL, read by TensorStore.

Both answer many questions at once. A local file answers in microseconds, one after the other; an object store takes tens of
milliseconds for each, so all reads of a batch are under way together.
"""

from __future__ import annotations

import collections
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorstore

SCHEMES = ("gs://", "s3://", "http://", "https://")
OPEN_FILES = 256  # descriptors kept; the least recently used is closed first
IN_FLIGHT = 512  # requests; TensorStore's own default of 32 gives a thousand a second at 30 ms
RETRIES = 6  # of a request, at doubling intervals from a second on
FEW_RETRIES = 2  # of the first request to a data set, which may have been mistyped


class _Files(collections.OrderedDict):
    """Name -> open descriptor, closed with it."""

    def __del__(self, close=os.close) -> None:  # bound early: at the interpreter's end `os` is gone
        for file in self.values():
            close(file)


class Folder:
    """Files below a folder; every thread has its own open, and so has a copy in another process."""

    remote = False

    def __init__(self, root: pathlib.Path):
        self.root = root
        self._own = threading.local()

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Whole files; None for one that is not there."""
        return [path.read_bytes() if (path := self.root / name).exists() else None for name in names]

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
        """(name, offset, length) each, read as they are taken; what lies past the end of a file is missing."""
        if not hasattr(self._own, "files"):
            self._own.files = _Files()
        files = self._own.files
        return (os.pread(self._open(files, name), length, offset) for name, offset, length in wanted)

    def _open(self, files: _Files, name: str) -> int:
        if name not in files:
            files[name] = os.open(self.root / name, os.O_RDONLY)
            while len(files) > OPEN_FILES:
                os.close(files.popitem(last=False)[1])
        files.move_to_end(name)
        return files[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])


class Bucket:
    """Files below a URL. Raises ConnectionError, after the retries, when it does not answer."""

    remote = True

    def __init__(self, root: str, retries: int | None = None):
        self.root = root.rstrip("/")
        about: dict[str, Any] = {}
        for kind in ("gcs", "s3", "http"):
            about[f"{kind}_request_concurrency"] = {"limit": IN_FLIGHT}
            about[f"{kind}_request_retries"] = {"max_retries": RETRIES if retries is None else retries}
        self._store = tensorstore.KvStore.open(self.root + "/", context=tensorstore.Context(about)).result()

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Whole files; None for one that is not there."""
        return list(self._all([(name, None) for name in names]))

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
        """(name, offset, length) each, all under way at once; what is missing or runs past the end is empty."""
        return (data or b"" for data in self._all([(name, slice(at, at + length)) for name, at, length in wanted]))

    def _all(self, questions: Sequence[tuple[str, slice | None]]) -> Iterator[bytes | None]:
        futures = [self._store.read(name, byte_range=where) for name, where in questions]
        for (name, _), future in zip(questions, futures):
            try:
                got = future.result()
            except Exception as error:  # TensorStore has no classes of its own
                if not str(error).startswith("OUT_OF_RANGE"):
                    raise ConnectionError(f"{self.root}/{name} cannot be read: {error}") from error
                yield None
            else:
                yield None if got.state == "missing" else got.value

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])


def at(root: str | os.PathLike, retries: int | None = None) -> Folder | Bucket:
    """The storage at `root`; `retries` of a URL's requests, usually RETRIES. Raises ValueError for a URL that is not gs://, s3:// or http(s)://."""
    text = os.fspath(root)
    if text.startswith(SCHEMES):
        return Bucket(text, retries)
    if "://" in text:
        raise ValueError(f"{text}: data sets are read from folders and from {', '.join(SCHEMES)}")
    return Folder(pathlib.Path(text).expanduser())
