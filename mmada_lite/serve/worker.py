"""The process that holds the model: reads one task a line, and writes what happens to it, one object of JSON a line.

It knows the model and nothing of HTTP. `{"id": ..., "task": "text", "fill" or "picture", ...}` begins a task, `{"cancel": id}`
ends it within one run of a graph. The end of its input ends the process: no worker outlives its server. Standard output is the
protocol's alone; what anything prints goes to standard error.
"""

import base64
import io
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from mmada_lite.errors import Error
from mmada_lite.forms.letters import while_waiting
from mmada_lite.serve.deltas import Deltas
from mmada_lite.serve.desk import Desk, Stopped
from mmada_lite.serve.journal import fault, note, take_over
from mmada_lite.serve.together import Together

if TYPE_CHECKING:
    from mmada_lite.decoding.forward import Step
    from mmada_lite.model import Model
    from mmada_lite.streams import Answer, Drawing

FORMS = {"choices": "choices", "pattern": "pattern", "schema": "response_format", "answer": "answer"}  # of tasks, of requests
SEATS, SMALL = 8, 1 << 26  # tasks at once on a CPU, and the bytes of weights up to which that pays: bench/results/serve.json
_OPEN = "\0[open]\0"  # a mask, in a text that has no such thing
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # of pictures that a client may send
Event = dict[str, Any]


class Worker:
    """A model and the tasks that it does: one after another, or as many at once as it has seats."""

    def __init__(self, model: "Model", pixels: int, out: IO[bytes], seats: int = 1) -> None:
        self._model, self._pixels, self._out, self._seats = model, pixels, out, seats
        self._together = model.denoiser = Together(model.denoiser)
        self._desk = Desk(self._together)
        self._lock = threading.Lock()
        special = model.vocabulary.special
        self._mask, self._ends = special.mask, (special.eos, special.eot)

    def run(self, source: IO[bytes]) -> None:
        """Do what comes, to the end of the source, which ends the process."""
        for _ in range(self._seats):
            threading.Thread(target=self._sit, daemon=True).start()
        self._desk.read(source)

    def _sit(self) -> None:
        while True:
            self._do(self._desk.tasks.get())

    def _do(self, task: Event) -> None:
        number, begun = task["id"], False
        work = self._picture if task["task"] == "picture" else self._text
        try:
            self._desk.begin(number)
            while_waiting.set(lambda: self._desk.check(number))
            with self._together.seat(lambda: self._desk.check(number)):
                for event in work(task):
                    begun = True
                    self.say({"id": number, **event})
        except Exception as error:  # whatever a request causes, the next one is to be answered
            self.say({"id": number, **self._failure(task, error, begun)})
        finally:
            self._desk.end(number)

    def _failure(self, task: Event, error: Exception, begun: bool) -> Event:
        """What went wrong, as a client may know it: an argument before the work began, or a fault behind it."""
        from mmada_lite.ort.session import OutOfMemory

        try:
            self._desk.check(task["id"])
        except Stopped:
            return {"event": "stopped"}
        message = str(error).replace(str(self._model.bundle.path), self._model.bundle.name)
        if isinstance(error, (OutOfMemory, MemoryError)):
            return {"event": "error", "kind": "memory", "message": message or "memory ran out"}
        if isinstance(error, Error) and not begun:
            param = None
            with suppress(Exception):  # it is advice alone
                param = self._blamed(task)
            return {"event": "error", "kind": "request", "message": message, "param": param}
        fault("task failed", error)
        return {"event": "error", "kind": "internal", "message": message if isinstance(error, Error) else ""}

    def _blamed(self, task: Event) -> str | None:
        """The field without which a task could have begun: a setting, a form that cannot be, or a given answer; None where none
        of them is."""
        from mmada_lite.decoding.settings import with_changes

        for name, value in task["settings"].items():
            try:
                if task["task"] == "picture":
                    self._model.image_defaults.replace(**{name: value})
                else:
                    with_changes(self._model.text_defaults, {name: value})
            except Error:
                return str(name)
        for name, field in FORMS.items():
            if name in task:
                with suppress(Exception):
                    self._begun({key: value for key, value in task.items() if key != name})
                    return field
        return "prompt" if task["task"] == "fill" else None

    def say(self, event: Event) -> None:
        line = json.dumps(event).encode() + b"\n"
        with self._lock:
            self._out.write(line)
            self._out.flush()

    def _begun(self, task: Event) -> "Answer":
        """The text of a task, before its first step. Raises Error."""
        from mmada_lite.decoding.settings import with_changes

        model, settings = self._model, with_changes(self._model.text_defaults, task["settings"])
        form = {name: task.get(name) for name in ("choices", "pattern", "schema")}
        if task["task"] == "fill":
            return model.fill(task["text"], settings, seed=task["seed"], **form)
        messages = [{**message, "content": self._content(message["content"])} for message in task["messages"]]
        return model.chat(messages, settings, answer=task.get("answer"), seed=task["seed"], **form)

    def _text(self, task: Event) -> Iterator[Event]:
        started = time.monotonic()
        try:
            answer = self._begun(task)
        except RecursionError:
            raise Error("the schema nests too deeply; make it flatter") from None
        yield {"event": "began", "prompt_tokens": answer.prompt_length}
        deltas, first = Deltas(task["stop"]), None
        shaped = task["task"] == "fill" or any(name in task for name in FORMS)
        follows = (task["stream"] or bool(task["stop"])) and not (task["task"] == "fill" or _tries_several(task))
        for step in answer:
            first = time.monotonic() - started if first is None else first
            if task["steps"]:
                yield {"event": "step", **_step(step), "text": answer.so_far()}
            if follows:
                thought, words = deltas.read(_up_to_a_mask(answer) if shaped else self._settled(answer)[0])
                if task["stream"] and (thought or words):
                    yield {"event": "text", "thought": thought, "answer": words}
            if deltas.said.stopped:
                break
            self._desk.check(task["id"])
        text, ids, complete = self._settled(answer)
        more: Event = {}
        if shaped and not deltas.said.stopped:
            result = answer.result()
            text, complete, ids = result.text, result.complete, [token for span in result.spans for token in span.ids]
            more = {
                "text": text,
                "spans": [{"start": s.start, "stop": s.stop, "text": s.text, "mean": s.mean} for s in result.spans],
            }
            chosen = [
                {"text": c.text, "log_likelihood": c.log_likelihood, "probability": c.probability} for c in result.choices
            ]
            more |= {"likelihoods": chosen} if chosen else {}
        thought, words = deltas.read(text, ended=True)
        yield {
            "event": "done",
            "thought": deltas.said.thought,
            "answer": deltas.said.answer,
            "rest": [thought, words],
            "tokens": ids,
            "complete": complete or deltas.said.stopped,
            **more,
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
                self._desk.check(task["id"])
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


def _tries_several(task: Event) -> bool:
    """Whether the answer is the likeliest of several, so that none is known before the last step."""
    from mmada_lite.forms.holes import read_partial

    return "choices" in task or any(hole.length is None for hole in read_partial(task.get("answer", "")).holes)


def _up_to_a_mask(answer: "Answer") -> str:
    return answer.so_far(_OPEN).partition(_OPEN)[0]


def _step(step: "Step") -> Event:
    import numpy as np

    return {
        "step": step.index + 1,
        "total_steps": step.total_steps,
        "positions": step.positions.tolist(),
        **({"rows": step.rows.tolist()} if step.rows.any() else {}),
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
    from mmada_lite.ort.lazy import LazyDenoiser, SideDenoiser

    if model.bundle.image is not None and "image_decoder" in model.bundle.graphs:
        _ = model.codec
    if isinstance(model.denoiser, (LazyDenoiser, SideDenoiser)):
        _ = model.denoiser.opened


def seats_for(model: "Model", asked: int | None) -> int:
    """How many tasks are done at once: what was asked for, else what was measured to be fast. Raises Error where a device does
    one at a time."""
    device = model.device.name
    if asked is not None and asked > 1 and device != "cpu":
        raise Error(f"--batch {asked} is for the CPU, and this model is on {device}; leave it out")
    small = sum(group.bytes or 0 for group in model.bundle.quantization.values()) <= SMALL
    return asked or (SEATS if small and device == "cpu" else 1)


def describe(model: "Model", seats: int) -> Event:
    """What a server must know of its model: its name, what it reads and draws, which settings a request may change, how many
    tasks it does at once."""
    image = model.bundle.image
    return {
        "event": "ready",
        "name": model.bundle.name,
        "device": model.device.name,
        "max_tokens": model.bundle.architecture.max_sequence_length,
        "text": sorted(model.text_defaults.flat()),
        "image": sorted(model.image_defaults.flat()),
        "answer_length": model.text_defaults.answer_length,
        "seats": seats,
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
        seats = seats_for(model, options.get("batch"))
        worker = Worker(model, options["pixels"], out, seats)
    except Exception as error:
        kind = "" if isinstance(error, Error) else f"{type(error).__name__}: "
        out.write(json.dumps({"event": "failed", "message": f"{kind}{error}"}).encode() + b"\n")
        out.flush()
        raise SystemExit(2) from None
    note("model opened", device=model.device.name, pid=os.getpid(), seats=seats)
    worker.say(describe(model, seats))
    worker.run(source)


if __name__ == "__main__":
    main()
