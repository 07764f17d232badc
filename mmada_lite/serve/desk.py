"""Between the thread of a worker that reads its tasks and those that do them: which tasks run, and whether they are to end.

It knows tasks by their number, and one denoiser whose forward in flight can be ended. It knows nothing of models.
"""

import json
import os
import queue
import threading
from typing import IO, Any

from mmada_lite.serve.together import Together

Event = dict[str, Any]


class Stopped(Exception):
    """The task was ended from outside."""


class Desk:
    """Where tasks lie until one of the threads takes them."""

    def __init__(self, denoiser: Together) -> None:
        self.tasks: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._denoiser = denoiser
        self._change = threading.Condition()
        self._running = set[int]()
        self._stopped = set[int]()
        self._interrupted: int | None = None

    def read(self, source: IO[bytes]) -> None:
        """Take lines until there are no more, then end the process, whatever runs."""
        for line in source:
            task = json.loads(line)
            if "cancel" in task:
                self._cancel(task["cancel"])
            else:
                with self._change:
                    self._running.add(task["id"])
                self.tasks.put(task)
        os._exit(0)

    def _cancel(self, number: int) -> None:
        """A forward in flight is ended where it is of this task alone; one that others share runs to its end."""
        with self._change:
            if number not in self._running:
                return
            self._stopped.add(number)
            if self._running == {number}:
                self._interrupted = number
                self._denoiser.interrupt(True)
        self._denoiser.wake()

    def begin(self, number: int) -> None:
        """Wait until a forward that was ended has ended. Raises Stopped."""
        with self._change:
            while self._interrupted not in (None, number):
                self._change.wait()
        self.check(number)

    def check(self, number: int) -> None:
        """Raise Stopped where the task is to end."""
        if number in self._stopped:
            raise Stopped

    def end(self, number: int) -> None:
        with self._change:
            self._running.discard(number)
            self._stopped.discard(number)
            if self._interrupted == number:
                self._interrupted = None
                self._denoiser.interrupt(False)
                self._change.notify_all()
