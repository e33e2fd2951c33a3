"""What stands between the network and the API: sizes and times of bodies, names of hosts, and pages of others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import h11
from absl import logging
from uvicorn.protocols.http.h11_impl import H11Protocol

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
DRAIN = 256 << 20  # bytes of a refused body that are read and thrown away
POLICY = ("default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob: data:; "
          "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
HEADERS = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Refusal(Exception):
    """An answer that is an error, in the shape that OpenAI's clients read."""

    def __init__(self, status: int, message: str, code: str, seconds: int = 0):
        super().__init__(message.encode("utf-8", "replace").decode())  # half a surrogate pair of a client's text can't be sent back
        self.status, self.code, self.seconds = status, code, seconds

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        return {"error": {"message": str(self), "type": kind, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.seconds)} if self.seconds else {}


class PatientProtocol(H11Protocol):
    """Closes a connection whose next request has no whole head within uvicorn's `timeout_keep_alive`, which by itself counts from an answer to the
    next byte alone: silent connections would fill the server. A body's time is `Guard`'s to count."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.late:
            self.late.cancel()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            if self.late:
                self.late.cancel()
            self.late = None
        elif self.late is None:
            self.late = self.loop.call_later(self.timeout_keep_alive, self.transport.close)


class Guard:
    """ASGI middleware. A body may have `largest[path]` bytes (else `usual`) and take `patience` seconds to arrive; `hosts` are the names
    under which the server may be called (any, if empty), so that no foreign name can be pointed at a loopback address. `count` is told
    the route and the status of every answer. What nobody expected goes to the log, and the client learns that much of it."""

    def __init__(self, app: Any, usual: int, largest: dict[str, int], patience: float, hosts: Sequence[str], count: Callable[[str, int], Any]):
        self.app, self.usual, self.largest, self.patience, self.hosts, self.count = app, usual, largest, patience, tuple(hosts), count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        most, begun, total = self.largest.get(scope["path"], self.usual), asyncio.get_running_loop().time(), 0
        started = body_done = False
        refusal: Refusal | None = None  # what the framework would call a fault of the body

        async def answer(message: Any) -> None:
            nonlocal started
            if refusal is not None and not started:
                return
            if message["type"] == "http.response.start":
                started = True
                self.count(getattr(scope.get("route"), "path", "none"), message["status"])
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        async def limited() -> Any:
            nonlocal total, body_done, refusal
            left = None if body_done else max(self.patience - (asyncio.get_running_loop().time() - begun), 0.001)
            try:
                message = await asyncio.wait_for(receive(), left)
            except TimeoutError:
                refusal = Refusal(408, f"the request took longer than {self.patience:g} s to arrive", "slow_request")
                raise refusal from None
            if message["type"] == "http.request":
                total += len(message.get("body", b""))
                body_done = not message.get("more_body", False)
                if total > most:
                    refusal = Refusal(413, f"the request has more than {most} bytes", "too_large")
                    raise refusal
            return message

        async def drain() -> None:
            """Closed while its body still arrives, a connection is reset and the answer lost. A client that waits for a 100 has sent nothing."""
            nonlocal total, body_done
            end = total + DRAIN
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(begun + self.patience):
                    while not body_done and total < end and "expect" not in headers:
                        message = await receive()
                        total += len(message.get("body", b""))
                        body_done = not message.get("more_body", False)

        try:
            self._check(headers, most)
            await self.app(scope, limited, answer)
        except Refusal as raised:
            if started:
                raise
            refusal = raised
        except Exception:
            if started:
                raise  # the connection is cut, which says that the answer is not whole
            logging.exception("%s %s failed", scope["method"], scope["path"])
            refusal = Refusal(500, "a fault of the server; its log says more", "fault")
        if refusal is not None and not started:
            said, refusal = refusal, None
            body = json.dumps(said.body).encode()
            await drain()
            await answer({"type": "http.response.start", "status": said.status, "headers": [
                (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]})
            await answer({"type": "http.response.body", "body": body})

    def _check(self, headers: dict[str, str], most: int) -> None:
        host = headers.get("host", "")
        if self.hosts and _name(host) not in self.hosts:
            raise Refusal(421, f"this server does not answer to the name {host[:80]!r}; start it with --hosts", "wrong_host")
        origin = headers.get("origin")
        if origin and _place(origin) != host:
            raise Refusal(403, f"a page of {origin[:80]!r} may not use this server", "foreign_page")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 20 or int(length) > most:
            raise Refusal(413, f"the request has {length[:20]} bytes, at most {most} are accepted", "too_large")


def _place(origin: str) -> str:
    """Host and port of an origin, "" of what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name(host: str) -> str:
    """Without the port."""
    return host.rsplit(":", 1)[0] if host.rsplit(":", 1)[-1].isdecimal() and not host.endswith("]") else host
