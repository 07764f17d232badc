"""Who may come in, from which page and with how much; what is refused is one line in OpenAI's form. Without sockets."""

import asyncio
import json
from typing import Any

import pytest
from serving import Answered

from mmada_lite.serve.app import application
from mmada_lite.serve.engine import Engine
from mmada_lite.serve.limits import Options
from mmada_lite.serve.metrics import Metrics

MODEL = {"name": "tiny", "text": ["temperature"], "image": ["steps"], "max_tokens": 64, "resolution": 16, "tokenizer": True}
CHAT = "/v1/chat/completions"


def ask(path: str, method: str = "GET", said: bytes = b"", headers: dict[str, str] | None = None, **options: Any) -> Answered:
    """One request to an application whose model is known and whose worker never comes."""
    chosen, sent = Options(**options), []
    engine = Engine(chosen)
    engine.model = MODEL
    named = {"host": "localhost:8080", **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items()],
        "http_version": "1.1",
    }
    parts = [said[:5], said[5:]]

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(application(engine, chosen, Metrics())(scope, receive, send))  # type: ignore[arg-type]
    if not sent:
        return Answered(499, {}, b"")
    pairs = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answered(sent[0]["status"], pairs, b"".join(each.get("body", b"") for each in sent[1:]))


def test_a_key_is_asked_of_all_but_those_who_look_whether_it_lives() -> None:
    assert ask("/healthz", api_key="secret").status == 200
    assert ask("/readyz", api_key="secret").status == 503  # it has no worker here
    for path in ("/metrics", "/v1/models"):
        assert ask(path).status == 200
        for given in ({}, {"authorization": "Bearer other"}, {"authorization": "Bearer \xff"}, {"authorization": ""}):
            refused = ask(path, headers=given, api_key="secret")
            assert refused.status == 401
            assert "Authorization: Bearer KEY" in refused.said
            assert refused.headers["www-authenticate"] == "Bearer"
        assert ask(path, headers={"authorization": "Bearer secret"}, api_key="secret").status == 200
    assert "secret" not in repr(Options(api_key="secret"))


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9", "http://localhost:8080.evil.example"])
def test_another_origin_is_refused(origin: str) -> None:
    refused = ask("/v1/models", headers={"origin": origin})
    assert refused.status == 403
    assert "--allow-origin" in refused.said
    assert "access-control-allow-origin" not in refused.headers


def test_an_allowed_origin_gets_cors_and_nobody_else() -> None:
    allowed = {"origins": ("https://good.example",)}
    answer = ask("/v1/models", headers={"origin": "https://good.example"}, **allowed)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://good.example")
    before = {"origin": "https://good.example", "access-control-request-method": "POST"}
    flight = ask(CHAT, "OPTIONS", headers=before, api_key="secret", **allowed)
    assert flight.status == 204
    assert "authorization" in flight.headers["access-control-allow-headers"]
    assert ask("/v1/models", headers={"origin": "http://localhost:8080"}).status == 200  # its own pages
    assert ask(CHAT, "OPTIONS", headers=before).status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "192.0.2.1", "", "[", "127.0.0.1.evil.example"])
def test_another_name_for_loopback_is_refused(host: str) -> None:
    """A page of evil.example, whose name was made to lead here, is of its own origin."""
    refused = ask("/v1/models", headers={"host": host, "origin": f"http://{host}"})
    assert refused.status == 403
    assert refused.said
    for name in ("127.0.0.1:8080", "[::1]:8080", "localhost", "LOCALHOST:1"):
        assert ask("/v1/models", headers={"host": name}).status == 200
    assert ask("/v1/models", headers={"host": "box.example"}, host="0.0.0.0").status == 200


def test_a_long_body_is_refused_before_it_is_read_and_while_it_is() -> None:
    content = {"content-type": "application/json"}
    for headers in ({"content-length": "101"}, {"content-length": "9" * 40}, {"transfer-encoding": "chunked"}):
        refused = ask(CHAT, "POST", b"x" * 101, {**content, **headers}, body=100)
        assert refused.status == 413
        assert "longer than" in refused.said
    assert ask(CHAT, "POST", b"x" * 100, content, body=100).status == 400


@pytest.mark.parametrize(
    ("path", "method", "kind", "status"),
    [
        ("/nowhere", "GET", "", 404),
        ("/v1/chat/completions/", "POST", "application/json", 404),
        (CHAT, "GET", "", 405),
        ("/v1/models", "DELETE", "", 405),
        (CHAT, "POST", "text/plain", 415),
        (CHAT, "POST", "", 415),
        ("/v1/images/edits", "POST", "application/json", 415),
        ("/v1/images/edits", "POST", "multipart/form-data", 400),
        ("/v1/images/edits", "POST", "multipart/form-data; boundary=x", 400),
    ],
)
def test_what_is_no_request_of_ours(path: str, method: str, kind: str, status: int) -> None:
    refused = ask(path, method, b"{}", {"content-type": kind} if kind else {})
    assert refused.status == status
    assert refused.said


def test_a_full_queue_says_when_to_come_again() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
    refused = ask(CHAT, "POST", body, {"content-type": "application/json"}, waiting=0)
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json["error"]["type"] == "rate_limit_error"


def test_a_fault_of_ours_tells_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(self: Metrics, engine: Engine) -> bytes:
        raise RuntimeError("in /a/path")

    monkeypatch.setattr(Metrics, "page", fail)
    answer = ask("/metrics")
    assert answer.status == 500
    assert "path" not in answer.said
    assert "in /a/path" in capfd.readouterr().err
