"""A batch: requests as OpenAI's batches write them, a line each, and their results in the same order.

It knows requests, results and the engine that does them; where results are kept, and who watches, is others' business.
"""

import asyncio
import base64
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmada_lite.contracts import json_of
from mmada_lite.errors import Error, shown
from mmada_lite.files import require_readable, unreadable
from mmada_lite.serve import requests
from mmada_lite.serve.engine import Broken, Engine, Event
from mmada_lite.serve.forms import Chat, Filled, Pictures
from mmada_lite.serve.refusals import Refused, failed

CHAT, FILL, PAINT, EDIT = URLS = ("/v1/chat/completions", "/v1/completions", "/v1/images/generations", "/v1/images/edits")
LONGEST = 64 << 20  # bytes of a line
AHEAD = 16  # lines that wait with the engine, which does those that are alike together
Result = dict[str, Any]
Keep = Callable[[int, str, bytes, str], str]  # line, custom_id, a picture, its format's ending -> the name of its file


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a batch. number: from 1; body: the request; fault: why there is none, in words."""

    number: int
    custom_id: str | None
    url: str = ""
    body: Mapping[str, Any] | None = None
    fault: str = ""


class Batch:
    """A file of requests, whose lines are read when their turn comes. sha256: of the whole file."""

    def __init__(self, path: Path) -> None:
        """Raises Error where the file cannot be read, or holds no line of JSON."""
        try:
            require_readable(path)
        except FileNotFoundError:
            raise Error(f"no file of requests at {path}; check the path") from None
        self._path = path
        self._places: list[tuple[int, int, int]] = []  # number, offset, bytes of each line that is not blank
        self._first: dict[str, int] = {}  # custom_id -> the line that had it first
        digest, offset, some = hashlib.sha256(), 0, False
        try:
            with path.open("rb") as source:
                for number, (head, size) in enumerate(_lines(source, digest.update), 1):
                    if head.strip() or size > LONGEST:
                        self._places.append((number, offset, size))
                        some |= self._note(number, head, size)
                    offset += size
        except OSError as fault:
            raise unreadable(path, fault) from fault
        self.sha256 = digest.hexdigest()
        if not some:
            raise Error(
                f'{path} holds no line of JSON; write a request a line, such as {{"custom_id": "1", "method": "POST", ...}}'
            )

    def __len__(self) -> int:
        return len(self._places)

    def lines(self, start: int = 0) -> Iterator[Line]:
        """The lines from this one on, counted without the blank ones."""
        with self._path.open("rb") as source:
            for number, offset, size in self._places[start:]:
                if size > LONGEST:
                    yield Line(number, None, fault=f"line {number} has {size:,} bytes; send at most {LONGEST:,}")
                    continue
                source.seek(offset)
                yield self._read(number, source.read(size))

    def _note(self, number: int, data: bytes, size: int) -> bool:
        """Remember whose line it is. Whether it is an object of JSON."""
        try:
            content = json_of(data) if size <= LONGEST else None
        except ValueError:
            return False
        if isinstance(content, Mapping) and isinstance(content.get("custom_id"), str):
            self._first.setdefault(content["custom_id"], number)
        return isinstance(content, Mapping)

    def _read(self, number: int, data: bytes) -> Line:
        try:
            content = json_of(data)
        except ValueError as fault:
            return Line(number, None, fault=f"line {number} is no JSON: {shown(str(fault))}")
        if not isinstance(content, Mapping):
            return Line(number, None, fault=f"line {number} is {shown(content)}; write an object of JSON")
        name = content.get("custom_id")
        if not isinstance(name, str) or not name or len(name) > 512:
            return Line(
                number, None, fault=f"line {number} has the custom_id {shown(name)}; write a text of its own in each line"
            )
        if (first := self._first[name]) != number:
            return Line(number, name, fault=f"line {number} has the custom_id of line {first}; write another")
        if content.get("method") != "POST":
            return Line(number, name, fault=f"line {number} has the method {shown(content.get('method'))}; write POST")
        if content.get("url") not in URLS:
            return Line(
                number, name, fault=f"line {number} has the url {shown(content.get('url'))}; use one of {', '.join(URLS)}"
            )
        if not isinstance(content.get("body"), Mapping):
            return Line(number, name, fault=f"line {number} has the body {shown(content.get('body'))}; write an object of JSON")
        return Line(number, name, content["url"], content["body"])


def _lines(source: Any, update: Callable[[bytes], None]) -> Iterator[tuple[bytes, int]]:
    """Each line, or the beginning of one that is too long, and its size."""
    while head := source.readline(LONGEST + 1):
        update(head)
        size, last = len(head), head
        while size > LONGEST and not last.endswith(b"\n") and (last := source.readline(LONGEST)):
            update(last)
            size += len(last)
        yield head, size


async def results(engine: Engine, batch: Batch, start: int = 0, keep: Keep | None = None) -> AsyncIterator[Result]:
    """The result of each line from `start` on, in the order of the lines. keep: takes each picture, which the result then names
    by its file. Raises Broken where no model can be had."""
    model = await engine.known()
    lines, ahead = batch.lines(start), deque[tuple[Line, asyncio.Task[Result]]]()
    try:
        while True:
            while len(ahead) < AHEAD and (line := next(lines, None)) is not None:
                ahead.append((line, asyncio.create_task(_result(engine, model, line))))
            if not ahead:
                return
            line, task = ahead.popleft()
            result = await task
            yield _kept(result, line, keep) if keep is not None and result["error"] is None else result
    finally:
        for _, task in ahead:
            task.cancel()


async def _result(engine: Engine, model: Mapping[str, Any], line: Line) -> Result:
    """One line of the output, as OpenAI writes it."""
    named = {"id": f"batch_req_{line.number}", "custom_id": line.custom_id}
    if line.body is None:
        return {**named, "response": None, "error": {"code": "invalid_line", "message": line.fault}}
    try:
        status, body = 200, await _answer(engine, model, line.url, line.body)
    except Refused as refused:
        status, body = refused.status, refused.body
    return {**named, "response": {"status_code": status, "request_id": named["id"], "body": body}, "error": None}


async def _answer(engine: Engine, model: Mapping[str, Any], url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    wish, form = _wish(url, body, model)
    if wish.stream:
        raise Refused(400, "a batch has no streams; leave stream out", "stream")
    task = engine.submit(wish.task)
    events: list[Event] = []
    try:
        while not events or events[-1]["event"] != "done":
            event = await task.events.get()
            if event["event"] == "error" and event["kind"] == "broken":
                raise Broken(event["message"])
            if event["event"] == "error":
                raise failed(event)
            events = [] if event["event"] == "again" else [*events, event]
    finally:
        engine.leave(task)
    return form.whole(events)


def _wish(url: str, body: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[requests.Wish, Chat | Pictures]:
    """What a request asks for, and how its answer is written. Of an edit the pictures are data URLs."""
    if url == CHAT:
        wish = requests.chat(body, model)
        return wish, Chat(wish, model["name"])
    if url == FILL:
        wish = requests.fill(body, model)
        return wish, Filled(wish, model["name"])
    files: dict[str, bytes] = {}
    if url == EDIT:
        for name in ("image", "mask"):
            if body.get(name) is not None:
                files[name] = base64.b64decode(requests._data(body[name], name, model))
        if "image" not in files:
            raise Refused(400, "image is missing; send the picture as data:image/png;base64,...", "image")
        body = {name: value for name, value in body.items() if name not in ("image", "mask")}
    wish = requests.picture(body, model, files.get("image"), files.get("mask"))
    return wish, Pictures(wish, "edit" if url == EDIT else "generation")


def _kept(result: Result, line: Line, keep: Keep) -> Result:
    """The result with the names of files in place of pictures."""
    body = result["response"]["body"]
    for number, item in enumerate(body.get("data", ())):
        name = f"{line.custom_id}-{number + 1}" if len(body["data"]) > 1 else str(line.custom_id)
        item["file"] = keep(line.number, name, base64.b64decode(item.pop("b64_json")), body["output_format"])
    return result
