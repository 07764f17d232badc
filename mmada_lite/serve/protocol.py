"""HTTP by uvicorn, but for two things: what is no HTTP is refused in the form in which everything is refused here, and signals
are `server`'s, which lets what runs finish."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmada_lite.serve.refusals import error


class Protocol(H11Protocol):
    """uvicorn's own, with an error that OpenAI's clients can read."""

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": error(400, msg)}).encode()
        about = ("content-type: application/json", f"content-length: {len(body)}", "connection: close")
        self.transport.write("\r\n".join(("HTTP/1.1 400 Bad Request", *about, "", "")).encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's own, deaf to signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
