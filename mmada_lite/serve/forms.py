"""What the worker tells of a task, as OpenAI's clients read it: chunks of a stream, or one object at its end.

It knows events and JSON, and nothing of queues and sockets. Our own data stands in chunks whose `choices` are empty, beside the
choices and never in their deltas, which clients add up.
"""

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from mmada_lite.serve.refusals import error
from mmada_lite.serve.requests import Wish

Event = dict[str, Any]


def server_sent(content: Any, name: str | None = None) -> bytes:
    """One event of a stream."""
    return b"%sdata: %s\n\n" % (f"event: {name}\n".encode() if name else b"", json.dumps(content).encode())


class Chat:
    """An answer as /v1/chat/completions gives it."""

    kind, written, piece = "chatcmpl", "chat.completion", "chat.completion.chunk"
    done = b"data: [DONE]\n\n"

    def __init__(self, wish: Wish, model: str) -> None:
        self._wish = wish
        self._seed = wish.task["seed"]
        self._head = {"id": f"{self.kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._prompt = 0
        self._begun = False

    def chunks(self, event: Event) -> Iterator[bytes]:
        """What a stream says of an event."""
        if event["event"] == "began":
            self._prompt = event["prompt_tokens"]
        elif event["event"] == "step":
            yield server_sent(self._chunk([], denoise=_step(event, self._prompt)))
        elif event["event"] == "text":
            yield from self._delta(event["thought"], event["answer"])
        elif event["event"] == "done":
            yield from self._delta(*event["rest"])
            more = {"seed": self._seed, **_held(event)}
            yield server_sent(self._chunk([{"index": 0, "delta": {}, "finish_reason": _reason(event)}], **more))
            if self._wish.usage:
                yield server_sent(self._chunk([], usage=self._usage(event)))
            yield self.done

    def whole(self, events: Iterable[Event]) -> dict[str, Any]:
        """The answer when all of it is there."""
        for event in events:
            if event["event"] == "began":
                self._prompt = event["prompt_tokens"]
        said = {"object": self.written, "choices": [self._choice(event)], "usage": self._usage(event), "seed": self._seed}
        return {**self._head, **said, **_held(event)}

    def broken(self, failure: Event, status: int) -> bytes:
        """The one event by which a stream says that no more comes."""
        return server_sent({"error": error(status, failure["message"], code=failure["kind"])}, "error")

    def _delta(self, thought: str, answer: str) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            yield server_sent(self._chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]))
        for name, text in (("reasoning_content", thought), ("content", answer)):
            if text:
                yield server_sent(self._chunk([{"index": 0, "delta": {name: text}, "finish_reason": None}]))

    def _choice(self, event: Event) -> dict[str, Any]:
        message = {"role": "assistant", "content": event["answer"]}
        if event["thought"]:
            message["reasoning_content"] = event["thought"]
        return {"index": 0, "message": message, "finish_reason": _reason(event), "logprobs": None}

    def _chunk(self, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {**self._head, "object": self.piece, "choices": choices, **more}

    def _usage(self, event: Event) -> dict[str, int]:
        written = len(event["tokens"])
        return {"prompt_tokens": self._prompt, "completion_tokens": written, "total_tokens": self._prompt + written}


class Filled(Chat):
    """A text whose holes are filled, as /v1/completions gives it: all of it, in one piece."""

    kind, written, piece = "cmpl", "text_completion", "text_completion"

    def chunks(self, event: Event) -> Iterator[bytes]:
        """What a stream says of an event."""
        if event["event"] in ("began", "step"):
            yield from super().chunks(event)
        elif event["event"] == "done":
            yield server_sent(self._chunk([self._choice(event)], seed=self._seed, **_held(event)))
            if self._wish.usage:
                yield server_sent(self._chunk([], usage=self._usage(event)))
            yield self.done

    def _choice(self, event: Event) -> dict[str, Any]:
        return {"index": 0, "text": event["text"], "finish_reason": _reason(event), "logprobs": None}


class Pictures:
    """Drawings as /v1/images gives them."""

    done = b""

    def __init__(self, wish: Wish, verb: str) -> None:
        """verb: generation or edit, as OpenAI's events begin."""
        self._task, self._verb, self._previews = wish.task, f"image_{verb}", 0
        self._about = {"created_at": int(time.time()), "output_format": wish.task["format"].lower()}
        self._about |= {"background": "opaque", "quality": "auto"}

    def chunks(self, event: Event) -> Iterator[bytes]:
        """What a stream says of an event."""
        if event["event"] == "step":
            yield self._event("step", choices=[], denoise=_step(event, 0))
        elif event["event"] == "preview":
            yield self._event("partial_image", b64_json=event["image"], partial_image_index=self._previews, size="auto")
            self._previews += 1
        elif event["event"] == "drawn":
            yield self._event("completed", **_drawn(event, self._task["seed"]), size=event["size"])

    def whole(self, events: Iterable[Event]) -> dict[str, Any]:
        """All pictures when they are there."""
        drawn = [event for event in events if event["event"] == "drawn"]
        about = {name: self._about[name] for name in ("output_format", "background")}
        data = [_drawn(event, self._task["seed"]) for event in drawn]
        return {"created": self._about["created_at"], "data": data, "size": drawn[0]["size"], **about}

    def broken(self, failure: Event, status: int) -> bytes:
        """As `Chat.broken`."""
        return server_sent({"type": "error", "error": error(status, failure["message"], code=failure["kind"])}, "error")

    def _event(self, name: str, **content: Any) -> bytes:
        kind = f"{self._verb}.{name}"
        return server_sent({"type": kind, **self._about, **content}, kind)


def _step(event: Event, prompt: int) -> dict[str, Any]:
    """A step of the model's; positions count from the first token of the answer where the prompt's length is given, else from
    the first of the row."""
    names = ("picture", "step", "total_steps", "rows", "tokens", "confidence", "remaining", "model_calls", "text")
    said = {name: event[name] for name in names if name in event}
    return {**said, "positions": [position - prompt for position in event["positions"]]}


def _held(event: Event) -> dict[str, Any]:
    """What stands in the holes of an answer, and how likely each of the choices is, where there are any."""
    return {name: event[name] for name in ("spans", "likelihoods") if name in event}


def _drawn(event: Event, seed: int) -> dict[str, Any]:
    said = {name: event[name] for name in ("thought", "thought_fault") if event[name] is not None}
    return {"b64_json": event["image"], "seed": seed + event["picture"], "codes": event["codes"], **said}


def _reason(event: Event) -> str:
    return "stop" if event["complete"] else "length"
