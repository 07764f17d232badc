"""The queue and the worker's keeper: tasks wait in a fair order, as many run as the worker has seats, and when the process that
holds the model dies another is started and no task is lost that a client has not seen a part of.

It knows tasks and their events as plain data, and nothing of HTTP.
"""

import asyncio
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from mmada_lite.serve.fair import FairQueue
from mmada_lite.serve.journal import note
from mmada_lite.serve.limits import Options

Event = dict[str, Any]
LONGEST_LINE = 256 << 20  # bytes of an event: a picture that grew, as PNG
PATIENCE = 60.0  # seconds that a task may take to end once it is told to, as in one run of a codec; its worker is killed then
LAST = ("done", "error", "stopped")
_STARTS = 3  # of a worker that dies before it has ever been ready
_PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before a start, by how many failed before it


class Full(Exception):
    """Too many tasks wait. `after`: seconds until one of them will probably have ended."""

    def __init__(self, after: int) -> None:
        self.after = after


class Closing(Exception):
    """The server is being stopped."""


class Broken(Exception):
    """The model could not be opened. Says why, in one line."""


class Task:
    """Something that the worker is to do, and what came of it so far.

    `delivered` is set by who reads the events, once a client was told of one: from then on it cannot be done anew.
    """

    def __init__(self, number: int, content: Mapping[str, Any]) -> None:
        self.number, self.content = number, content
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.arrived, self.started = time.monotonic(), 0.0
        self.tries, self.delivered, self.left = 0, False, False
        self.timer: asyncio.TimerHandle | None = None

    def fail(self, kind: str, message: str) -> None:
        self.events.put_nowait({"event": "error", "kind": kind, "message": message})


class Engine:
    """One model in one process, and the tasks that wait for it."""

    def __init__(
        self,
        options: Options,
        watcher: Callable[[str, float], None] = lambda name, value: None,
        log: int | None = None,
    ) -> None:
        """watcher: told of figures by their name, as `metrics` counts them. log: the file of the worker's log, None for this
        process's standard error."""
        self._options, self._watch, self._log = options, watcher, log
        self._numbers = count(1)
        self._waiting = FairQueue[Task]()
        self._running: dict[int, Task] = {}
        self._seats = 1
        self._worker: asyncio.subprocess.Process | None = None
        self._open, self._closing = False, False
        self._mean = 1.0  # seconds of a task, a mean in which the last ones weigh most
        self._starts_failed = 0
        self._known = asyncio.Event()
        self.model: Event = {}
        self.why = ""  # the model does not open, in words

    @property
    def ready(self) -> bool:
        """Whether a task would run now."""
        return self._open and not self._closing

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def pid(self) -> int | None:
        """Of the worker, None where there is none."""
        return self._worker.pid if self._worker is not None and self._worker.returncode is None else None

    async def known(self) -> Event:
        """What the worker says of its model, once it has said it the first time. Raises Broken where it does not open."""
        if not self.model:
            try:
                async with asyncio.timeout(self._options.seconds):
                    await self._known.wait()
            except TimeoutError:
                raise Broken("the model is still being opened") from None
        if not self.model:
            raise Broken(self.why)
        return self.model

    async def begin(self) -> None:
        """Start the first worker; `run` then keeps one."""
        self._worker = await self._spawn()

    async def run(self) -> None:
        """Keep a worker until the engine is closed. Raises Broken where the model has never been opened and cannot be."""
        while not self._closing:
            try:
                worker = self._worker = self._worker or await self._spawn()
            except OSError as error:  # no memory, or no process more
                self._lost(f"no process can be started ({error.strerror})", 0)
                await asyncio.sleep(_PAUSES[-1])
                continue
            refused = ""
            assert worker.stdout is not None
            while line := await self._line(worker.stdout):
                event = json.loads(line)
                refused = event["message"] if event["event"] == "failed" else refused
                self._take(event)
            self._open, self._worker = False, None
            code = await worker.wait()
            if self._closing:
                return
            self._lost(refused, code)
            await asyncio.sleep(_PAUSES[min(self._starts_failed, len(_PAUSES) - 1)])

    def submit(self, content: Mapping[str, Any], client: str = "") -> Task:
        """Put a task behind those of its client that wait. Raises Full, Closing, and Broken where no worker can be had."""
        if self._closing:
            raise Closing
        if self.why:
            raise Broken(self.why)
        if len(self._waiting) >= self._options.waiting:
            raise Full(max(1, min(600, math.ceil(self._mean * len(self._waiting) / self._seats))))
        task = Task(next(self._numbers), content)
        task.timer = asyncio.get_running_loop().call_later(self._options.seconds, self._expire, task)
        self._waiting.push(task, client)
        self._feed()
        return task

    def leave(self, task: Task) -> None:
        """Nobody waits for this task any more. One that runs ends within one run of a graph, or its worker is killed."""
        task.left = True
        self._drop_timer(task)
        if task.number in self._running:
            self._send({"cancel": task.number})
            asyncio.get_running_loop().call_later(PATIENCE, self._kill_if_running, task)
        else:
            self._waiting.remove(task)

    def close(self) -> None:
        """Take nothing more, refuse what waits, and let what runs end."""
        self._closing = True
        for task in self._waiting:
            task.fail("closing", "the server is being stopped; ask again when it is back")
        self._waiting.clear()
        if not self._running:
            self._hang_up()

    async def end(self) -> None:
        """End the worker, at once."""
        self._closing = True
        worker = self._worker
        if worker is not None and worker.returncode is None:
            worker.kill()
            await worker.wait()

    async def _spawn(self) -> asyncio.subprocess.Process:
        package = str(Path(__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}
        pipe = asyncio.subprocess.PIPE
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mmada_lite.serve.worker"),
            stdin=pipe,
            stdout=pipe,
            stderr=self._log,
            env=environment,
            limit=LONGEST_LINE,
            start_new_session=True,  # Ctrl-C in a terminal is for the server, which lets it finish
        )
        assert worker.stdin is not None
        chosen = {name: getattr(self._options, name) for name in ("model", "device", "threads", "speed", "pixels", "batch")}
        worker.stdin.write(json.dumps(chosen).encode() + b"\n")
        return worker

    async def _line(self, source: asyncio.StreamReader) -> bytes:
        """The next whole line; nothing where the worker has died, be it in the middle of one."""
        try:
            line = await source.readline()
        except ValueError:  # longer than any event of ours
            return b""
        return line if line.endswith(b"\n") else b""

    def _send(self, content: Mapping[str, Any]) -> None:
        worker = self._worker
        if worker is not None and worker.stdin is not None and not worker.stdin.is_closing():
            worker.stdin.write(json.dumps(content).encode() + b"\n")

    def _hang_up(self) -> None:
        if self._worker is not None and self._worker.stdin is not None:
            self._worker.stdin.close()

    def _take(self, event: Event) -> None:
        if event["event"] == "ready":
            self.model, self.why, self._open, self._starts_failed = event, "", True, 0
            self._seats = event.get("seats", 1)
            self._known.set()
            self._feed()
            return
        task = self._running.get(event.get("id", 0))
        if task is None:
            return
        last = event["event"] in LAST
        if not task.left:
            task.events.put_nowait(event)
        if last:
            self._ended(task, event)
            self._feed()

    def _feed(self) -> None:
        """Give the worker those whose turn it is. A task that ran while a worker died runs alone: if it is the one that killed
        it, it kills nobody else's."""
        if self._closing and not self._running:
            self._hang_up()
        while self._open and self._waiting and len(self._running) < self._seats:
            alone = self._waiting.peek().tries > 0 or any(task.tries > 1 for task in self._running.values())
            if alone and self._running:
                return
            task = self._waiting.pop()
            self._running[task.number] = task
            task.tries, task.started = task.tries + 1, time.monotonic()
            self._watch("waited", task.started - task.arrived)
            self._send({"id": task.number, **task.content})

    def _ended(self, task: Task, event: Event) -> None:
        del self._running[task.number]
        self._drop_timer(task)
        seconds = time.monotonic() - task.started
        self._mean += 0.2 * (seconds - self._mean)
        if event["event"] == "done":
            self._watch("first", task.started - task.arrived + (event.get("first") or seconds))
            self._watch("calls", event["model_calls"])
            self._watch("tokens", len(event.get("tokens", ())))
            self._watch("seconds", event["seconds"])

    def _lost(self, refused: str, code: int) -> None:
        """The worker is gone: say so, and put its tasks in front once more, or say to their clients that they are lost."""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if refused and not self.model:  # said by whoever started the server
            self.why = refused
            self._known.set()
            raise Broken(refused)
        note("worker ended", how=how, message=refused or None, tasks=list(self._running) or None)
        self._watch("deaths", 1)
        victims, self._running = list(self._running.values()), {}
        for task in victims:
            if task.left:
                continue
            if task.delivered or task.tries > 1:
                again = "" if task.tries == 1 else " twice"
                task.fail("worker", f"the process that holds the model ended{again} ({how}) while it answered; ask again")
                self._drop_timer(task)
            else:
                while not task.events.empty():
                    task.events.get_nowait()
                task.events.put_nowait({"event": "again"})
                self._waiting.push_again(task)
        self._starts_failed += 1
        if refused or (not self.model and self._starts_failed >= _STARTS):
            self.why = refused or f"the process that opens the model ends each time ({how}); is there enough memory?"
            for each in self._waiting:
                each.fail("broken", "the model cannot be opened; the server's log says why")
                self._drop_timer(each)
            self._waiting.clear()
            if not self.model:
                self._known.set()
                raise Broken(self.why)

    def _drop_timer(self, task: Task) -> None:
        if task.timer is not None:
            task.timer.cancel()

    def _expire(self, task: Task) -> None:
        task.fail("timeout", f"the request took longer than {self._options.seconds:g} s, which is this server's limit")
        self.leave(task)

    def _kill_if_running(self, task: Task) -> None:
        if task.number in self._running and self._worker is not None and self._worker.returncode is None:
            note("worker killed", task=task.number, message=f"a task did not end within {PATIENCE:g} s of being told to")
            self._worker.kill()
