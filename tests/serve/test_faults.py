"""What the world does to a server: its worker killed under load, clients that vanish, requests that are none."""

import base64
import http.client
import io
import json
import os
import random
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from serving import Answered, Server

CHAT, FILL, PAINT, EDIT = "/v1/chat/completions", "/v1/completions", "/v1/images/generations", "/v1/images/edits"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 48, "steps": 48, "seed": 1, "temperature": 0.8}
LONG = {**HELLO, "max_tokens": 200, "steps": 200, "stream": True, "stream_mode": "denoise"}


def events(body: bytes) -> list[str]:
    return [part.partition(b"data: ")[2].decode() for part in body.split(b"\n\n") if part]


def joined(body: bytes) -> str:
    chunks = [json.loads(each) for each in events(body) if each != "[DONE]"]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk.get("choices", ()))


@pytest.fixture(params=["server", "batching"])
def either(request: pytest.FixtureRequest) -> Server:
    """A server that does one request at a time, and one that does four."""
    found: Server = request.getfixturevalue(request.param)
    return found


def test_a_worker_that_is_killed_under_load_loses_nobody_elses_request(either: Server, request: pytest.FixtureRequest) -> None:
    kill_under_load(either, request.config.getoption("--kills"))


@pytest.mark.slow
def test_a_worker_that_is_killed_twenty_times_loses_nobody_elses_request(either: Server) -> None:
    kill_under_load(either, 20)


def kill_under_load(server: Server, kills: int) -> None:
    """Six clients ask all the while. A victim is answered, or told once: at most as many a kill as run at once."""
    seats = int(server.log("model opened")[-1]["seats"])
    right = server.post(CHAT, HELLO).json["choices"][0]["message"]["content"]
    over = threading.Event()

    def ask(number: int) -> list[str]:
        fates = []
        while not over.is_set():
            stream = len(fates) % 2 == 1
            answer = server.post(CHAT, {**HELLO, "stream": stream})
            if answer.status == 503:
                assert answer.json["error"]["code"] == "worker"
                fates.append("refused")
            elif not stream:
                assert answer.json["choices"][0]["message"]["content"] == right
                fates.append("right")
            else:
                said = events(answer.body)
                errors = [each for each in said if "error" in json.loads(each)] if said[-1] != "[DONE]" else []
                assert len(errors) == (said[-1] != "[DONE]")
                assert not errors or said[-1] == errors[0]  # one, and nothing behind it
                assert errors or joined(answer.body) == right
                fates.append("broken off" if errors else "right")
        return fates

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, number) for number in range(6)]
        try:
            for _ in range(kills):
                before = len(server.log("model opened"))
                time.sleep(0.2)
                os.kill(server.worker, signal.SIGKILL)
                deadline = time.monotonic() + 60
                while len(server.log("model opened")) == before:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
        finally:
            time.sleep(0.2)
            over.set()
    fates = [fate for each in asking for fate in each.result()]
    assert fates.count("right") >= 6
    assert len(fates) - fates.count("right") <= kills * seats
    assert server.post(CHAT, HELLO).json["choices"][0]["message"]["content"] == right


def test_clients_that_vanish_free_their_slot(either: Server) -> None:
    """A dozen begin long answers and leave after the first step; the next answer does not wait for the rest of theirs."""
    server = either
    server.settle()
    begun = time.monotonic()
    assert events(server.post(CHAT, LONG).body)[-1] == "[DONE]"
    whole = time.monotonic() - begun
    before, begun = len(server.log("request")), time.monotonic()
    for _ in range(12):
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        connection.request("POST", CHAT, json.dumps(LONG), {"content-type": "application/json"})
        assert connection.getresponse().read(64)
        connection.sock.close() if connection.sock else None
        connection.close()
    waiting = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)  # this one leaves without a word
    waiting.request(
        "POST", CHAT, json.dumps({**LONG, "stream": False, "stream_mode": "text"}), {"content-type": "application/json"}
    )
    waiting.close()
    assert server.post(CHAT, {**HELLO, "max_tokens": 8, "steps": 8}).status == 200
    assert time.monotonic() - begun < 6 * whole + 1
    server.settle()
    left = [each for each in server.log("request")[before:] if each.get("left") or each["status"] == 499]
    assert len(left) == 13


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it has this size, and holds one byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def seeing(data: bytes | str) -> dict[str, Any]:
    url = data if isinstance(data, str) else "data:image/png;base64," + base64.b64encode(data).decode()
    return {**HELLO, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def form(parts: list[tuple[str, str | None, bytes]]) -> tuple[bytes, str]:
    body = b""
    for name, file, data in parts:
        named = f'; filename="{file}"' if file else ""
        body += f'--cut\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + data + b"\r\n"
    return body + b"--cut--\r\n", "multipart/form-data; boundary=cut"


def _photo() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    return buffer.getvalue()


PHOTO = _photo()


def raw(server: Server, data: bytes) -> Answered:
    """What the server says to bytes that may be no HTTP."""
    host, port = urlsplit(server.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(data)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return Answered(response.status, dict(response.getheaders()), response.read())


def bad_fields(rng: random.Random) -> dict[str, Any]:
    wrong: list[Any] = [-1, 1.5, "x", [], {}, True, 10**400, -(2**70), "\ud800", [[[]]], 2**64]
    name = rng.choice(["max_tokens", "seed", "n", "stop", "messages", "stream", "stream_mode", "model", "steps", "temperature"])
    fine = {"max_tokens": (), "seed": (), "n": (True,), "stop": ("x",), "steps": (), "temperature": (1.5,), "stream": (True,)}
    value = rng.choice([each for each in wrong if each not in fine.get(name, ())])
    return {**HELLO, name: value if value != [] or name != "stop" else [""]}


def deep(count: int, opens: str, inner: str, closes: str) -> Any:
    return json.loads(opens * count + inner + closes * count)


def bad_form(rng: random.Random) -> dict[str, Any]:
    """What an answer must be, and cannot."""
    odd: list[Any] = [3, [], {}, True, "", "\ud800", {"type": "json_object"}, {"type": "json_schema"}, [["a"]], "[mask:0]"]
    schemas = [
        *({}, {"type": "object"}, {"type": "god"}, {"$ref": "#/nowhere"}, {"$ref": "#"}, {"pattern": "("}, {"enum": []}),
        *({"type": "string", "minLength": 10**30}, {"type": "array", "items": {"type": "null"}, "minItems": -1}, {"allOf": []}),
        *({"enum": ["\ud800" * 99]}, {"properties": 3}, {"required": ["x"]}, {"type": "string", "format": "god"}),
        *(deep(200, '{"items":', "{}", "}"), deep(200, '{"enum":[[', "1", "]]}"), {"const": "x" * 99}),
    ]
    patterns = [
        "(",
        "[z-a]",
        "a" * 70_000,
        "(?=x)",
        "\\",
        "\ud800",
        "\\p{Nope}",
        "a{5000}",
    ]
    choices = [[], ["a", "a"], [""], ["a" * 3000], ["\ud800"], ["x"] * 900, [None], [f"{n}" for n in range(65)]]
    answers = [
        "[mask:0]",
        "[mask:999999999999]",
        "[mask:1][mask:1]",
        "[foo:3]",
        "a" * 9000,
        "[mask:*]" * 9,
        "\ud800",
        "<|eot_id[mask:1]|>",
    ]
    more = rng.choice(
        [
            {"response_format": rng.choice([each for each in odd if each not in ("", "[mask:0]")] + ["x"])},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": rng.choice(schemas)}}},
            {"pattern": rng.choice([*patterns, 3, [], {}])},
            {"choices": rng.choice([*choices, 3, "yes", {}])},
            {"answer": rng.choice([*answers, 3, [], {}])},
            {"choices": ["a"], "pattern": "a"},
        ]
    )
    return {**HELLO, **more}


def bad_fill(rng: random.Random) -> dict[str, Any]:
    prompt = rng.choice(
        ["", "none", 3, None, [], ["[mask:1]"] * 2, {}, "[mask:0]", "[mask:1][mask:1]", "[mask:9999]", "\ud800[mask:1]"]
    )
    more = rng.choice([{"max_tokens": 3}, {"suffix": "x"}, {"echo": False}, {"best_of": 2}, {"logprobs": 5}, {"messages": []}])
    return rng.choice([{"prompt": prompt}, {"prompt": "a [mask:1]", **more}])


def bad_headers(rng: random.Random) -> dict[str, str]:
    return rng.choice(
        [
            *({"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example"}, {"content-type": "text/plain"}),
            *({"content-type": ""}, {"content-type": "multipart/form-data"}, {"x-long": "y" * 40_000}, {"host": ""}),
            *({"content-type": "application/json-patch+json"}, {"content-encoding": "gzip", "content-type": "x"}),
        ]
    )


def bad_message(rng: random.Random) -> dict[str, Any]:
    content = rng.choice(
        [None, 3, "", "  ", [], [3], [{"type": "audio"}], {"text": "x"}, "a" * 100_000, "\ud800", [{"type": "text"}]]
    )
    return {
        **HELLO,
        "messages": [rng.choice([3, None, "hi", {}, {"role": rng.choice(["user", "god", 3]), "content": content}])],
    }


def bad_paint(rng: random.Random) -> dict[str, Any]:
    one = [("size", "9x9"), ("n", 0), ("n", 99), ("prompt", ""), ("prompt", 3), ("steps", -1), ("steps", 10**9), ("think", 3)]
    more = [
        ("side", "left"),
        ("schedule", "nonsense"),
        ("guidance", -1),
        ("partial_images", 2),
        ("output_format", "exe"),
        ("nope", 1),
    ]
    name, value = rng.choice(one + more)
    return {"prompt": "a cat", name: value}


def bad_picture(rng: random.Random) -> dict[str, Any]:
    noise = rng.randbytes(rng.randrange(200))
    sizes = [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (5000, 5000), (0, 5), (1, 1 << 30)]
    given = [noise, png_of(*rng.choice(sizes)), PHOTO[: rng.randrange(40)], b"GIF89a", b"%!PS-Adobe-3.0", b"<svg/>"]
    return seeing(
        rng.choice([*given, "http://127.0.0.1:1/x", "file:///etc/passwd", "data:image/png;base64,@@@", "data:,", "\\\\host\\x"])
    )


def bad_json(rng: random.Random) -> bytes:
    text = json.dumps(HELLO).encode()
    cut = text[: rng.randrange(len(text))]
    odd = [b"", b"null", b"[]", b"3", b"NaN", b"[" * 90_000, b'{"a":' * 9_000, b'{"seed":1,"seed":2}', b"\xff\xfe", b"9" * 5000]
    return rng.choice([cut, rng.randbytes(50), *odd])


def bad_edit(rng: random.Random) -> tuple[bytes, str]:
    image, mask = ("image", "a.png", PHOTO), ("mask", "m.png", PHOTO)  # a mask that is black covers nothing
    words = ("prompt", None, b"a cat")
    return form(
        rng.choice(
            [
                *([image, words], [image, mask, words], [mask, words], [words], [image, image, mask, words]),
                *([image, mask], [image, mask, words, words], [image, ("other", "a.png", PHOTO), words], []),
                *(
                    [("image", "a.png", rng.randbytes(64)), mask, words],
                    [("image", "a.png", png_of(60_000, 60_000)), mask, words],
                ),
                *([image, words, ("side", None, b"up")], [image, words, ("side", None, b"left"), ("amount", None, b"9")]),
                *(
                    [image, words, ("amount", None, b"nan")],
                    [image, mask, words, ("size", None, b"3x3")],
                    [("image", None, b"x"), words],
                ),
            ]
        )
    )


TOO_LONG = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
TOO_LONG += b"Content-Length: 2100000\r\n\r\n"


def bad_bytes(rng: random.Random) -> bytes:
    lines = [
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"G\xe9T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /%2e%2e/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models/%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: \xff\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: \xff\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ]
    return rng.choice(lines)


@pytest.mark.parametrize(
    ("name", "seed"), [("server", 2), *(pytest.param("batching", seed, marks=pytest.mark.fuzz) for seed in range(3, 8))]
)
def test_three_hundred_bad_requests_are_refused_in_a_line(name: str, seed: int, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(name)
    server.settle()
    rng = random.Random(seed)
    made: list[Callable[[], Answered]] = [
        *(lambda: server.post(CHAT, bad_fields(rng)),) * 80,
        *(lambda: server.post(CHAT, bad_form(rng)),) * 30,
        *(lambda: server.post(FILL, bad_fill(rng)),) * 20,
        *(lambda: server.post(CHAT, HELLO, **bad_headers(rng)),) * 20,
        *(lambda: server.post(CHAT, bad_message(rng)),) * 40,
        *(lambda: server.post(PAINT, bad_paint(rng)),) * 30,
        *(lambda: server.post(CHAT, bad_picture(rng)),) * 35,
        *(lambda: server.post(CHAT, bad_json(rng)),) * 25,
        *(lambda: server.post(EDIT, (made := bad_edit(rng))[0], **{"content-type": made[1]}),) * 30,
        *(lambda: raw(server, bad_bytes(rng)),) * 25,
        *(lambda: raw(server, TOO_LONG),) * 2,
    ]
    rng.shuffle(made)
    assert len(made) >= 300
    quick, before, died = seconds_of_an_answer(server), resident(server), len(server.log("worker ended"))
    for send in made:
        answer = send()
        assert 400 <= answer.status < 500, (answer.status, answer.body[:300])
        assert str(Path(__file__).parents[2]) not in answer.said
        assert "Traceback" not in answer.said
        assert "/tmp" not in answer.said
    assert not server.log("fault"), server.log("fault")
    assert not server.log("task failed"), server.log("task failed")
    assert len(server.log("worker ended")) == died  # other tests kill the worker that they share
    assert resident(server) < before + 40e6
    assert seconds_of_an_answer(server) < 3 * quick + 0.1
    assert server.process.poll() is None


def seconds_of_an_answer(server: Server) -> float:
    """The least of five, so that a busy machine counts little."""
    taken = []
    for _ in range(5):
        begun = time.monotonic()
        assert server.post(CHAT, {**HELLO, "max_tokens": 8, "steps": 8}).status == 200
        taken.append(time.monotonic() - begun)
    return min(taken)


def resident(server: Server) -> int:
    """Bytes of the server and its worker."""
    return sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for pid in (server.process.pid, server.worker)
    )


def test_logs_hold_no_prompt(server: Server) -> None:
    secret = "xyzzyplugh"
    for content in ({**HELLO, "messages": [{"role": "user", "content": secret}]}, {"model": secret}, {**HELLO, secret: 1}):
        server.post(CHAT, content)
    server.post(PAINT, {"prompt": secret, "steps": 2, "think": "<think>"})
    server.ask("GET", f"/{secret}")
    server.settle()
    assert len(server.log("request")) >= 5
    assert secret not in server.everything


def test_what_runs_is_finished_when_the_server_is_stopped(tiny_bundle: Path, tmp_path: Path) -> None:
    with Server(tmp_path, "-m", tiny_bundle, "--threads", "1", "--batch", "1") as own:
        connection = http.client.HTTPConnection(urlsplit(own.url).netloc, timeout=60)
        connection.request("POST", CHAT, json.dumps(LONG), {"content-type": "application/json"})
        response = connection.getresponse()
        first = response.read(64)
        worker = own.worker
        own.process.send_signal(signal.SIGTERM)
        assert events(first + response.read())[-1] == "[DONE]"
        connection.close()
        assert own.process.wait(timeout=60) == 0
        assert not Path(f"/proc/{worker}/statm").exists()
        with pytest.raises(ConnectionRefusedError):
            own.ask("GET", "/healthz")


def test_no_worker_outlives_its_server(tiny_bundle: Path, tmp_path: Path) -> None:
    with Server(tmp_path, "-m", tiny_bundle, "--threads", "1", "--batch", "1") as own:
        worker = own.worker
        own.process.kill()
        own.process.wait()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{worker}").exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.02)
