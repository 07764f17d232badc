"""The door: who may ask, from which page, and how much. It also writes one line of log a request and counts it.

It stands around the whole application and knows no route by its meaning.
"""

import hmac
import ipaddress
import json
import time
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmada_lite.serve.journal import fault, note
from mmada_lite.serve.limits import MEGABYTE, Options
from mmada_lite.serve.metrics import Metrics
from mmada_lite.serve.refusals import Refused

_LONGEST_HEADERS = 32_000  # bytes
OPEN_TO_ALL = ("/healthz", "/readyz", "/", "/page.js", "/page.css")  # they tell nothing but that the server lives


class Guard:
    """An ASGI application around another."""

    def __init__(self, inner: ASGIApp, options: Options, metrics: Metrics, routes: Iterable[str]) -> None:
        self._inner, self._options, self._metrics, self._routes = inner, options, metrics, frozenset(routes)
        self._loopback = is_loopback(options.host)
        self._keys = [key.encode() for key in (options.api_key or "").splitlines()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started, status, taken = time.monotonic(), 0, 0
        scope["mmada"] = {}
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        identity = uuid.uuid4().hex
        extra = [(b"x-request-id", identity.encode()), (b"x-content-type-options", b"nosniff"), *self._cors(headers)]

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        async def receiving() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._options.body:
                raise self._too_long()
            return message

        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _respond(sending, 204, b"", {})
            else:
                await self._inner(scope, receiving, sending)
        except Refused as refused:
            if not status:
                body = json.dumps(refused.body).encode()
                await _respond(sending, refused.status, body, {"content-type": "application/json", **refused.headers})
            scope["mmada"]["refused"] = refused.code or refused.status
        except Exception as error:
            fault("fault", error, request=identity)
            if not status:
                body = json.dumps(Refused(500, "a fault of the server's; its log says more").body).encode()
                await _respond(sending, 500, body, {"content-type": "application/json"})
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.answered(route, status or 499)
            seconds = round(time.monotonic() - started, 4)
            said = {"request": identity, "route": route, "method": scope["method"], "status": status or 499, "seconds": seconds}
            note("request", **said, **scope["mmada"])

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        """Raise Refused for who may not ask."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _LONGEST_HEADERS:
            raise Refused(431, f"the headers are longer than {_LONGEST_HEADERS:,} bytes; send fewer")
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._loopback and not is_loopback(_name_of(host)):
            raise Refused(403, "this server answers on loopback alone, under its own name", code="host")
        if origin is not None and origin not in self._options.origins and not _same_host(origin, host):
            raise Refused(403, "a page of another origin may not ask this server; start it with --allow-origin", code="origin")
        scope["mmada_client"] = str((scope.get("client") or ("",))[0])
        if self._keys and scope["path"] not in OPEN_TO_ALL and scope["method"] != "OPTIONS":
            given = headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
            found = [number for number, key in enumerate(self._keys) if hmac.compare_digest(given, key)]
            if found and len(self._keys) > 1:  # where all have one key, addresses tell clients apart
                scope["mmada_client"] = f"key {found[0]}"
            if not found:
                words = "this server wants a key; send the header Authorization: Bearer KEY"
                raise Refused(401, words, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._options.body):
            raise self._too_long()

    def _too_long(self) -> Refused:
        most = f"{self._options.body / MEGABYTE:g} MB"
        return Refused(413, f"the request is longer than {most}, which is this server's limit", headers={"connection": "close"})

    def _cors(self, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin")
        if origin not in self._options.origins or origin is None:
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-headers", b"authorization, content-type"),
            (b"access-control-allow-methods", b"GET, POST"),
            (b"vary", b"Origin"),
        ]


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, which no other reaches."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """The host of a Host header, without its port; "" where it says none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same_host(origin: str, host: str) -> bool:
    """Whether the page that asks came from this server."""
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and bool(rest) and rest == host


async def _respond(send: Send, status: int, body: bytes, headers: dict[str, Any]) -> None:
    named = {**headers, "content-length": str(len(body))}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
