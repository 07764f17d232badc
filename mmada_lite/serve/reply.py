"""The answer to a request that the worker does: it waits for the task's events, tells the client, and gives the task up as soon
as the client has left.

It knows tasks and connections, and nothing of what stands in an answer.
"""

import asyncio
import base64
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from mmada_lite.serve.engine import Broken, Closing, Engine, Event, Full, Task
from mmada_lite.serve.refusals import FAILURES, Refused, failed
from mmada_lite.serve.requests import Wish

_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_SILENT = ("began", "again")  # events that tell a client nothing, so that the task can still be done anew


class Form(Protocol):
    """How a task's events are written down."""

    def chunks(self, event: Event) -> Iterator[bytes]: ...

    def whole(self, events: Iterable[Event]) -> dict[str, Any]: ...

    def broken(self, failure: Event, status: int) -> bytes: ...


class Reply:
    """An ASGI answer. raw: the one picture itself in place of JSON, by its media type."""

    def __init__(self, engine: Engine, wish: Wish, form: Form, raw: str | None = None) -> None:
        self._engine, self._wish, self._form, self._raw = engine, wish, form, raw

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = submit(self._engine, self._wish.task, scope.get("mmada_client", ""))
        gone = asyncio.create_task(_left(receive))
        try:
            work = asyncio.create_task(self._stream(task, send) if self._wish.stream else self._answer(task, send))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
                else:
                    scope["mmada"]["left"] = True
            finally:
                work.cancel()
                with suppress(asyncio.CancelledError, Exception):  # it was said above, or nobody is left to hear
                    await work
        finally:
            gone.cancel()
            self._engine.leave(task)
            scope["mmada"] |= {
                "task": task.number,
                "queued": round(max(0.0, task.started - task.arrived), 4),
                "tries": task.tries,
            }

    async def _answer(self, task: Task, send: Send) -> None:
        events: list[Event] = []
        while True:
            event = await task.events.get()
            if event["event"] == "error":
                raise failed(event)
            events = [] if event["event"] == "again" else [*events, event]
            if event["event"] == "done":
                break
        if self._raw:
            body, kind = base64.b64decode(next(each["image"] for each in events if each["event"] == "drawn")), self._raw
        else:
            body, kind = json.dumps(self._form.whole(events)).encode(), "application/json"
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, task: Task, send: Send) -> None:
        while True:
            event = await task.events.get()
            if event["event"] == "error":
                if not task.delivered:
                    raise failed(event)
                status, words = FAILURES[event["kind"]]
                event["message"] = event["message"] or words
                await send({"type": "http.response.body", "body": self._form.broken(event, status), "more_body": False})
                return
            if not task.delivered and event["event"] not in _SILENT:
                task.delivered = True
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
            data, last = b"".join(self._form.chunks(event)), event["event"] == "done"
            if data or last:
                await send({"type": "http.response.body", "body": data, "more_body": not last})
            if last:
                return


def submit(engine: Engine, task: dict[str, Any], client: str = "") -> Task:
    """Put a task of a client's in the queue. Raises Refused where there is no place, or no model."""
    try:
        return engine.submit(task, client)
    except Full as full:
        words = f"the queue of this server is full; ask again in {full.after} s"
        raise Refused(429, words, code="queue_full", headers={"retry-after": str(full.after)}) from None
    except Closing:
        raise Refused(503, FAILURES["closing"][1], code="closing") from None
    except Broken:
        raise Refused(503, FAILURES["broken"][1], code="broken") from None


async def _left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
