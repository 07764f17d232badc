"""The process that holds the model: reads one task a line, and writes what happens to it, one object of JSON a line.

It knows the model and nothing of HTTP. `{"id": ..., "task": "text" or "picture", ...}` begins a task, `{"cancel": id}` ends it
within one run of a graph. The end of its input ends the process: no worker outlives its server. Standard output is the
protocol's alone; what anything prints goes to standard error.
"""

import base64
import io
import json
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from mmada_lite.errors import Error
from mmada_lite.serve.deltas import Deltas
from mmada_lite.serve.journal import fault, note, take_over

if TYPE_CHECKING:
    from mmada_lite.decoding.forward import Step
    from mmada_lite.model import Model
    from mmada_lite.streams import Answer, Drawing

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # of pictures that a client may send
Event = dict[str, Any]


class Stopped(Exception):
    """The task was ended from outside."""


class Desk:
    """Between the thread that reads and the one that works: which task runs, and whether it is to end."""

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: int | None = None
        self._stopped = set[int]()
        self.denoiser: Any = None

    def read(self, source: IO[bytes]) -> None:
        """Take lines until there are no more, then end the process, whatever runs."""
        for line in source:
            task = json.loads(line)
            if "cancel" not in task:
                self.tasks.put(task)
                continue
            with self._lock:
                self._stopped.add(task["cancel"])
                if task["cancel"] == self._running and self.denoiser is not None:
                    self.denoiser.interrupt(True)
        os._exit(0)

    def begin(self, number: int) -> None:
        with self._lock:
            self._running = number
        self.check()

    def check(self) -> None:
        """Raise Stopped where the running task is to end."""
        if self._running in self._stopped:
            raise Stopped

    def end(self) -> None:
        with self._lock:
            self._running = None
            self._stopped.clear()  # a task that is stopped runs or has run: there is one at a time
            self.denoiser.interrupt(False)


class Worker:
    """A model and the tasks that it does, one after another."""

    def __init__(self, model: "Model", pixels: int, out: IO[bytes]) -> None:
        self._model, self._pixels, self._out = model, pixels, out
        self._desk = Desk()
        self._desk.denoiser = model.denoiser
        special = model.vocabulary.special
        self._mask, self._ends = special.mask, (special.eos, special.eot)

    def run(self, source: IO[bytes]) -> None:
        """Do what comes, to the end of the source, which ends the process."""
        threading.Thread(target=self._desk.read, args=(source,), daemon=True).start()
        while True:
            self._do(self._desk.tasks.get())

    def _do(self, task: Event) -> None:
        number, begun = task["id"], []
        try:
            self._desk.begin(number)
            for event in self._text(task) if task["task"] == "text" else self._picture(task):
                begun += [event["event"]]
                self.say({"id": number, **event})
        except Exception as error:  # whatever a request causes, the next one is to be answered
            self.say({"id": number, **self._failure(error, bool(begun))})
        finally:
            self._desk.end()

    def _failure(self, error: Exception, begun: bool) -> Event:
        """What went wrong, as a client may know it: an argument before the work began, or a fault behind it."""
        from mmada_lite.ort.session import OutOfMemory

        try:
            self._desk.check()
        except Stopped:
            return {"event": "stopped"}
        message = str(error).replace(str(self._model.bundle.path), self._model.bundle.name)
        if isinstance(error, (OutOfMemory, MemoryError)):
            return {"event": "error", "kind": "memory", "message": message or "memory ran out"}
        if isinstance(error, Error) and not begun:
            return {"event": "error", "kind": "request", "message": message}
        fault("task failed", error)
        return {"event": "error", "kind": "internal", "message": message if isinstance(error, Error) else ""}

    def say(self, event: Event) -> None:
        self._out.write(json.dumps(event).encode() + b"\n")
        self._out.flush()

    def _text(self, task: Event) -> Iterator[Event]:
        from mmada_lite.decoding.settings import with_changes

        started = time.monotonic()
        model, settings = self._model, with_changes(self._model.text_defaults, task["settings"])
        messages = [{**message, "content": self._content(message["content"])} for message in task["messages"]]
        answer = model.chat(messages, settings, seed=task["seed"])
        yield {"event": "began", "prompt_tokens": answer.prompt_length}
        deltas, first = Deltas(task["stop"]), None
        for step in answer:
            first = time.monotonic() - started if first is None else first
            if task["steps"]:
                yield {"event": "step", **_step(step), "text": answer.so_far()}
            if task["stream"] or task["stop"]:
                thought, words = deltas.read(self._settled(answer)[0])
                if task["stream"] and (thought or words):
                    yield {"event": "text", "thought": thought, "answer": words}
            if deltas.said.stopped:
                break
            self._desk.check()
        text, ids, complete = self._settled(answer)
        thought, words = deltas.read(text, ended=True)
        yield {
            "event": "done",
            "thought": deltas.said.thought,
            "answer": deltas.said.answer,
            "rest": [thought, words],
            "tokens": ids,
            "complete": complete or deltas.said.stopped,
            **_cost(answer, first),
        }

    def _settled(self, answer: "Answer") -> tuple[str, list[int], bool]:
        """The text up to its first mask, its ids with the one that ends it, and whether it is ended."""
        ids = list[int]()
        for token in answer.ids.tolist():
            if token == self._mask:
                break
            ids.append(token)
            if token in self._ends:
                return self._model.decode(ids[:-1]), ids, True
        return self._model.decode(ids), ids, False

    def _picture(self, task: Event) -> Iterator[Event]:
        started, first = time.monotonic(), None
        calls, seconds = 0, 0.0
        drawings = [self._drawing(task, task["seed"] + number) for number in range(task["n"])]
        yield {"event": "began", "prompt_tokens": len(self._model.encode(task["prompt"]))}
        for number, drawing in enumerate(drawings):
            for step in drawing:
                first = time.monotonic() - started if first is None else first
                if task["steps"]:
                    thought = drawing.thought_so_far
                    yield {"event": "step", "picture": number, **_step(step), **({"text": thought} if thought else {})}
                every, last = task["preview_every"], step.remaining == 0
                if task["partial"] and step.total_steps:  # so many previews, evenly
                    every = max(1, -(-step.total_steps // (task["partial"] + 1)))
                if every and step.predicted_codes is not None and (step.index + 1) % every == 0 and not last:
                    yield {"event": "preview", "picture": number, "image": _written(drawing.preview(), task["format"])}
                self._desk.check()
            result = drawing.result()
            image = _written(result.picture, task["format"])
            size = f"{result.picture.width}x{result.picture.height}"
            drawn = {"image": image, "size": size, "thought": result.thought, "thought_fault": result.thought_fault}
            yield {"event": "drawn", "picture": number, "codes": result.codes.tolist(), **drawn}
            calls, seconds = calls + result.model_calls, seconds + result.seconds
        yield {"event": "done", "first": first, "model_calls": calls, "seconds": seconds}

    def _drawing(self, task: Event, seed: int) -> "Drawing":
        model, given = self._model, task["settings"]
        settings = model.image_defaults.replace(**given) if given else None  # the default's steps are cut for a small mask
        if task["kind"] == "paint":
            return model.paint(task["prompt"], settings, seed=seed, think=task["think"])
        picture = self._opened(task["image"], "the picture")
        if task["kind"] == "extend":
            return model.extend(picture, task["prompt"], settings, side=task["side"], amount=task["amount"], seed=seed)
        return model.inpaint(
            picture, _white_where_clear(self._opened(task["mask"], "the mask")), task["prompt"], settings, seed=seed
        )

    def _content(self, content: Any) -> Any:
        if isinstance(content, str):
            return content
        return [
            {"type": "image", "image": self._opened(part["image"], "the picture")} if part["type"] == "image" else part
            for part in content
        ]

    def _opened(self, data: str, what: str) -> Any:
        """A picture whose size is known and small enough; no pixel of it is decoded yet. Raises Error."""
        from PIL import Image, UnidentifiedImageError

        try:
            image = Image.open(io.BytesIO(base64.b64decode(data)), formats=FORMATS)
        except Image.DecompressionBombError:
            raise Error(f"{what} has far too many pixels; scale it below {self._pixels:,}") from None
        except UnidentifiedImageError:
            raise Error(f"{what} is no PNG, JPEG, WebP or GIF; convert it to one") from None
        except Exception as error:  # damaged files make pillow raise nearly everything, and its own limit is one of it
            raise Error(f"{what} cannot be read ({type(error).__name__}); write it anew as PNG") from None
        if image.width * image.height > self._pixels:
            raise Error(f"{what} has {image.width} x {image.height} pixels; scale it below {self._pixels:,}")
        return image


def _white_where_clear(mask: Any) -> Any:
    """A mask as the model reads it: OpenAI's is transparent where a picture is to be drawn anew, ours is white there."""
    from PIL import ImageOps

    if "A" not in mask.getbands() and "transparency" not in mask.info:
        return mask
    try:
        clear = mask.convert("RGBA").getchannel("A")
    except Exception as error:  # a damaged file, as above
        raise Error(f"the mask cannot be read ({type(error).__name__}); write it anew as PNG") from None
    return ImageOps.invert(clear) if clear.getextrema()[0] < 128 else mask


def _step(step: "Step") -> Event:
    import numpy as np

    return {
        "step": step.index + 1,
        "total_steps": step.total_steps,
        "positions": step.positions.tolist(),
        "tokens": step.tokens.tolist(),
        "confidence": np.exp(step.log_probabilities.astype(np.float64)).round(6).tolist(),
        "remaining": step.remaining,
        "model_calls": step.model_calls,
    }


def _cost(answer: "Answer", first: float | None) -> Event:
    last = answer.last
    return {"first": first, "model_calls": last.model_calls if last else 0, "seconds": last.seconds if last else 0.0}


def _written(image: Any, name: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, name)
    return base64.b64encode(buffer.getvalue()).decode()


def _open_all(model: "Model") -> None:
    """Open now what the library opens at first use, so that no request waits for it."""
    from mmada_lite.ort.lazy import LazyDenoiser

    if isinstance(model.denoiser, LazyDenoiser):
        _ = model.denoiser.opened
    if model.bundle.image is not None and "image_decoder" in model.bundle.graphs:
        _ = model.codec


def describe(model: "Model") -> Event:
    """What a server must know of its model: its name, what it reads and draws, and which settings a request may change."""
    image = model.bundle.image
    return {
        "event": "ready",
        "name": model.bundle.name,
        "device": model.device.name,
        "max_tokens": model.bundle.architecture.max_sequence_length,
        "text": sorted(model.text_defaults.flat()),
        "image": sorted(model.image_defaults.flat()),
        "answer_length": model.text_defaults.answer_length,
        "resolution": image.resolution if image is not None and "image_decoder" in model.bundle.graphs else None,
        "tokenizer": (model.bundle.path / "tokenizer.json").is_file(),
    }


def main() -> None:
    """Open the model that standard input's first line names, say what it is, and do what comes."""
    out, source = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what a library prints is no line of the protocol
    take_over("mmada_lite", "PIL")
    warnings.simplefilter("ignore")  # pillow's, of many pixels: the limit is ours
    options = json.loads(source.readline())
    try:
        from mmada_lite.model import load

        model = load(options["model"], device=options["device"], threads=options["threads"], speed=options["speed"])
        _open_all(model)
        worker = Worker(model, options["pixels"], out)
    except Exception as error:
        kind = "" if isinstance(error, Error) else f"{type(error).__name__}: "
        out.write(json.dumps({"event": "failed", "message": f"{kind}{error}"}).encode() + b"\n")
        out.flush()
        raise SystemExit(2) from None
    note("model opened", device=model.device.name, pid=os.getpid())
    worker.say(describe(model))
    worker.run(source)


if __name__ == "__main__":
    main()
