"""A web server that answers byte ranges late, as an object store does: what the feed's reads in flight are measured against.

    python -m ns2_jax.data.range_server FOLDER [DELAY_MS]        prints its port, ends with its standard input

HTTP/1.1 with keep-alive, GET and HEAD, one `Range: bytes=a-b`; only for this machine.
"""

from __future__ import annotations

import asyncio
import functools
import os
import pathlib
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager


class Answers(asyncio.Protocol):
    """One connection; every answer leaves `delay` seconds after its question."""

    def __init__(self, root: pathlib.Path, delay: float):
        self.root, self.delay, self.held = root, delay, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *questions, self.held = (self.held + data).split(b"\r\n\r\n")
        for question in questions:
            asyncio.get_running_loop().call_later(self.delay, self.transport.write, self.answer(question.decode("latin1")))

    def answer(self, question: str) -> bytes:
        first, *lines = question.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        try:
            path, size = found(self.root, urllib.parse.unquote(target).lstrip("/"))
        except OSError:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        start, end, status, extra = 0, size, "200 OK", ""
        if (asked := headers.get("range", "")).startswith("bytes="):
            low, _, high = asked.removeprefix("bytes=").partition("-")
            start, end = int(low), min(int(high) + 1 if high else size, size)
            if start >= size:
                return f"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n".encode()
            status, extra = "206 Partial Content", f"Content-Range: bytes {start}-{end - 1}/{size}\r\n"
        head = f'HTTP/1.1 {status}\r\nContent-Length: {end - start}\r\nETag: "{size}"\r\nAccept-Ranges: bytes\r\n{extra}\r\n'.encode()
        if method == "HEAD":
            return head
        with open(path, "rb", buffering=0) as file:
            return head + os.pread(file.fileno(), end - start, start)


@functools.lru_cache
def found(root: pathlib.Path, name: str) -> tuple[pathlib.Path, int]:
    """Path and size. Raises FileNotFoundError for what is not a file below `root`."""
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise FileNotFoundError(path)
    return path, path.stat().st_size


async def serve(root: str, delay: float) -> None:
    """Until the standard input ends."""
    loop, folder = asyncio.get_running_loop(), pathlib.Path(root).resolve()
    server = await loop.create_server(lambda: Answers(folder, delay), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)  # whoever still waits for an answer waits no longer


@contextmanager
def running(root: str | os.PathLike, delay_ms: float = 0.0) -> Iterator[str]:
    """The URL of `root` as served by a process of its own."""
    words = [sys.executable, "-m", "ns2_jax.data.range_server", os.fspath(root), str(delay_ms)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], float((*sys.argv[2:], 0)[0]) / 1000))
