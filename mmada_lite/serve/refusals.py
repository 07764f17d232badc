"""What a client is told when it does not get what it asked for: a status and one line, in OpenAI's form of an error."""

from collections.abc import Mapping
from typing import Any

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_LONGEST = 500  # characters of a message
# What a worker says went wrong: the status, and what stands there where it has no words that a client may know.
FAILURES: Mapping[str, tuple[int, str]] = {
    "request": (400, "the request cannot be answered"),
    "memory": (503, "memory ran out"),
    "internal": (500, "a fault of the server's; its log says more"),
    "timeout": (504, "the request took too long"),
    "worker": (503, "the process that holds the model ended"),
    "broken": (503, "the model cannot be opened"),
    "closing": (503, "the server is being stopped"),
}


class Refused(Exception):
    """A request that is not answered. param: which field of it is wrong; code: a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": error(self.status, self.message, self.param, self.code)}


def error(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it; its message is one line, and no longer than a person reads."""
    line = " ".join(message.split())
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...", "type": kind, "param": param, "code": code}


def failed(event: Mapping[str, Any]) -> Refused:
    """The refusal for a worker's error."""
    status, words = FAILURES.get(event["kind"], FAILURES["internal"])
    return Refused(status, event["message"] or words, event.get("param"), event["kind"] if status >= 500 else None)
