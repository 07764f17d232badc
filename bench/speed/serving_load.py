"""Clients of a server of ours, for `bench.speed.serving`: a server as a process, requests of every kind with the answers that
the library gives, and many connections that ask them and obey a 429.

Load goes to this machine alone, and is bounded in count and time. It knows HTTP and the routes, and no tables.
"""

import base64
import http.client
import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from PIL import Image

from mmada_lite.decoding.settings import with_changes
from mmada_lite.errors import Error
from mmada_lite.model import Model
from mmada_lite.serve.deltas import said

CHAT, FILL, PAINT, EDIT = "/v1/chat/completions", "/v1/completions", "/v1/images/generations", "/v1/images/edits"
PATIENCE = 120.0  # seconds for one answer
SEEDS = 5  # of each kind of request
_TEXT = {"max_tokens": 16, "steps": 8, "temperature": 0.8}
_DRAW: dict[str, Any] = {"steps": 3}
Headers = dict[str, str]


class Serving:
    """`mmada-lite serve` on a free port of loopback, until the block ends. ready: seconds from the command to its line."""

    def __init__(self, folder: Path, *options: object) -> None:
        self.log_file, self._options = folder, [str(each) for each in options]

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "mmada_lite", "serve", "--port", "0", *self._options]
        begun = time.monotonic()
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.ready = time.monotonic() - begun
        found = re.search(r"http://[\d.:]+", line)
        if found is None:
            self.process.kill()
            lines = self.log_file.read_text(errors="replace").strip().splitlines()
            raise Error(f"mmada-lite serve does not start: {lines[-1] if lines else 'it says nothing'}")
        self.address = urlsplit(found[0]).netloc
        return self

    def __exit__(self, *given: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self, event: str) -> list[dict[str, Any]]:
        """What the log says of such an event."""
        return [each for each in map(json.loads, self.log_file.read_text().splitlines()) if each["event"] == event]

    def processes(self) -> dict[str, int]:
        """The server's own process, and the one that holds the model now."""
        return {"server": self.process.pid, "worker": int(self.log("model opened")[-1]["pid"])}

    def resident(self) -> dict[str, int]:
        """Bytes of both processes."""
        page = os.sysconf("SC_PAGE_SIZE")
        return {name: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for name, pid in self.processes().items()}

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address, timeout=PATIENCE)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, how to find in its answer what must be right, and that."""

    path: str
    body: bytes
    headers: Headers
    found: Callable[[bytes], Any]
    right: Any


def mixture(model: Model) -> list[Ask]:
    """Every kind of request, with some seeds: texts whole and as a stream of steps, holes, questions about a picture, drawings,
    and drawings under a mask."""
    picture = model.paint("a red apple", model.image_defaults.replace(**_DRAW), seed=1).picture
    mask = Image.new("L", picture.size)
    mask.paste(255, (0, 0, picture.width // 2, picture.height))
    makers = (_chat, _stream, _fill, lambda m, s: _question(m, s, picture), _paint, lambda m, s: _inpaint(m, s, picture, mask))
    return [make(model, seed) for seed in range(SEEDS) for make in makers]


def _chat(model: Model, seed: int, text: str = "what is 47 + 85?", settings: Mapping[str, Any] = _TEXT) -> Ask:
    right = _parts(model.chat(text, _settings(model, settings), seed=seed).result().text)
    return _json(CHAT, {"messages": [{"role": "user", "content": text}], **settings, "seed": seed}, _content, right)


def _stream(model: Model, seed: int) -> Ask:
    answer = model.chat("what is a cat?", _settings(model, _TEXT), seed=seed)
    right = [[token, place] for step in answer for token, place in zip(*_written(step, answer.prompt_length), strict=True)]
    messages = [{"role": "user", "content": "what is a cat?"}]
    asked = {"messages": messages, **_TEXT, "seed": seed, "stream": True, "stream_mode": "denoise"}
    return _json(CHAT, asked, _steps, right)


def _fill(model: Model, seed: int) -> Ask:
    text = "a cat [mask:3] red background"
    right = model.fill(text, with_changes(model.text_defaults, {"temperature": 0.8}), seed=seed).text
    return _json(FILL, {"prompt": text, "temperature": 0.8, "seed": seed}, lambda b: json.loads(b)["choices"][0]["text"], right)


def _question(model: Model, seed: int, picture: Image.Image) -> Ask:
    right = _parts(model.ask(picture, "what is this?", _settings(model, _TEXT), seed=seed).result().text)
    url = "data:image/png;base64," + base64.b64encode(_png(picture)).decode()
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return _json(CHAT, {"messages": [{"role": "user", "content": parts}], **_TEXT, "seed": seed}, _content, right)


def _paint(model: Model, seed: int, settings: Mapping[str, Any] = _DRAW) -> Ask:
    right = model.paint("a blue car", model.image_defaults.replace(**settings), seed=seed).result().codes.tolist()
    return _json(PAINT, {"prompt": "a blue car", **settings, "seed": seed}, _codes, right)


def _inpaint(model: Model, seed: int, picture: Image.Image, mask: Image.Image) -> Ask:
    settings = model.image_defaults.replace(**_DRAW)
    right = model.inpaint(picture, mask, "a green tree", settings, seed=seed).result().codes.tolist()
    words = {"prompt": "a green tree", "seed": seed, **_DRAW}
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in words.items()]
    parts += [
        f'name="{name}"; filename="{name}.png"\r\n\r\n'.encode() + _png(each)
        for name, each in (("image", picture), ("mask", mask))
    ]
    body = b"".join(b"--cut\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--cut--\r\n"
    return Ask(EDIT, body, {"content-type": "multipart/form-data; boundary=cut"}, _codes, right)


def alike(model: Model, work: str, count: int, quick: bool) -> list[Ask]:
    """Requests that differ in their seeds alone."""
    if work == "text":
        length = 8 if quick else 32
        text = {"max_tokens": length, "steps": length, "temperature": 0.8}
        return [_chat(model, seed, settings=text) for seed in range(count)]
    return [_paint(model, seed, {"steps": 2 if quick else 8}) for seed in range(count)]


def _settings(model: Model, asked: Mapping[str, Any]) -> Any:
    named = {"answer_length" if name == "max_tokens" else name: value for name, value in asked.items()}
    return with_changes(model.text_defaults, named)


def _written(step: Any, start: int) -> tuple[list[int], list[int]]:
    return step.tokens.tolist(), (step.positions - start).tolist()


def _json(path: str, content: Mapping[str, Any], found: Callable[[bytes], Any], right: Any) -> Ask:
    return Ask(path, json.dumps(content).encode(), {"content-type": "application/json"}, found, right)


def _content(body: bytes) -> Any:
    message = json.loads(body)["choices"][0]["message"]
    return [message.get("reasoning_content", ""), message["content"]]


def _parts(text: str) -> list[str]:
    """Thought and answer of a text, of which either may be cut off."""
    parts = said(text, (), ended=True)
    return [parts.thought, parts.answer]


def _codes(body: bytes) -> Any:
    return json.loads(body)["data"][0]["codes"]


def _steps(body: bytes) -> Any:
    chunks = [json.loads(part[6:]) for part in body.decode().split("\n\n") if part.startswith("data: {")]
    steps = [chunk["denoise"] for chunk in chunks if "denoise" in chunk]
    return [[token, place] for step in steps for token, place in zip(step["tokens"], step["positions"], strict=True)]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(slots=True)
class Outcome:
    """What came of many requests. seconds: of each answer, its waiting and what was refused before it included."""

    right: int = 0
    wrong: int = 0
    lost: int = 0
    refused: int = 0
    took: float = 0.0
    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def ask_all(serving: Serving, asks: Sequence[Ask], connections: int, limit: float, tell: Callable[[int], None]) -> Outcome:
    """Ask all, over so many connections at once, for `limit` seconds at most. tell: how many are answered, now and then."""
    todo: queue.SimpleQueue[Ask] = queue.SimpleQueue()
    for each in asks:
        todo.put(each)
    outcome, lock, begun = Outcome(), threading.Lock(), time.monotonic()

    def work() -> None:
        connection = serving.connect()
        while time.monotonic() - begun < limit:
            try:
                ask = todo.get_nowait()
            except queue.Empty:
                break
            started, refused, fault = time.monotonic(), 0, ""
            try:
                status, body, refused = _answer(connection, ask, begun + limit)
                right = status == 200 and ask.found(body) == ask.right
                fault = "" if right else f"{ask.path}: {status} {body[:200]!r}"
            except Exception as error:  # whatever it is, the request is lost, and the next one has a connection of its own
                status, right, fault = 0, False, f"{ask.path}: {type(error).__name__}: {error}"
                connection.close()
                connection = serving.connect()
            with lock:
                outcome.right += right
                outcome.wrong += status == 200 and not right
                outcome.lost += status != 200
                outcome.refused += refused
                outcome.seconds.append(time.monotonic() - started)
                outcome.faults += [fault] * (bool(fault) and len(outcome.faults) < 5)
                if len(outcome.seconds) % 200 == 0:
                    tell(len(outcome.seconds))
        connection.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.took = time.monotonic() - begun
    outcome.lost += todo.qsize()
    return outcome


def _answer(connection: http.client.HTTPConnection, ask: Ask, deadline: float) -> tuple[int, bytes, int]:
    """Status, body, and how often it was refused with 429 before, whose Retry-After is waited for."""
    refused = 0
    while True:
        connection.request("POST", ask.path, ask.body, ask.headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 429 or time.monotonic() > deadline:
            return response.status, body, refused
        refused += 1
        connection.close()  # the server would, before a long wait is over
        time.sleep(int(response.headers["retry-after"]))
