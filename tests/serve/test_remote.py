"""The engine of a cluster's door over replicas that are played: who dies when, what a client is told, who is told to stop."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason='needs pip install "mmada-lite[ray]"')

from mmada_lite.serve.engine import Full, Task  # noqa: E402  behind the skip
from mmada_lite.serve.limits import Options  # noqa: E402
from mmada_lite.serve.ray_app import Remote  # noqa: E402

BEGAN, TEXT = {"event": "began"}, {"event": "text"}
DONE = {"event": "done", "model_calls": 1, "seconds": 0.1}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
DIES, HANGS = {"event": "dies"}, {"event": "hangs"}


class Replicas:
    """A handle: each call plays the next of the parts, the last again and again."""

    def __init__(self, *parts: list[dict[str, Any]]) -> None:
        self.parts, self.stopped = list(parts), 0
        self.work = self

    def options(self, stream: bool) -> "Replicas":
        return self

    def remote(self, content: Mapping[str, Any]) -> "Replicas":
        self._part = self.parts.pop(0) if len(self.parts) > 1 else self.parts[0]
        return self

    def cancel(self) -> None:
        self.stopped += 1

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        for event in self._part:
            await asyncio.sleep(0.01)
            if event is DIES:
                raise ray.exceptions.RayActorError()
            if event is HANGS:
                await asyncio.sleep(60)
            yield dict(event)


def played(*parts: list[dict[str, Any]], delivered_at: str = "", leave_at: str = "") -> tuple[list[str], Replicas, Task]:
    """The events of one task, up to its last."""
    replicas = Replicas(*parts)

    async def run() -> tuple[list[str], Task]:
        remote = Remote(replicas, Options(seconds=5), 4, lambda name, value: None)
        task, seen = remote.submit({}), list[str]()
        while not seen or seen[-1] not in ("done", "error"):
            event = await task.events.get()
            seen.append(event["event"])
            task.delivered = task.delivered or event["event"] == delivered_at
            if event["event"] == leave_at:
                break
        remote.leave(task)
        await asyncio.sleep(0.05)
        assert (remote.running, remote.waiting) == (0, 0)
        return seen, task

    seen, task = asyncio.run(run())
    return seen, replicas, task


def test_a_task_is_done() -> None:
    seen, replicas, task = played([BEGAN, TEXT, DONE])
    assert (seen, replicas.stopped, task.tries) == (["began", "text", "done"], 0, 1)


def test_a_victim_is_done_once_more() -> None:
    seen, _, task = played([BEGAN, TEXT, DIES], [BEGAN, TEXT, DONE])
    assert (seen, task.tries) == (["began", "text", "again", "began", "text", "done"], 2)


def test_and_not_a_third_time() -> None:
    assert played([BEGAN, DIES])[0] == ["began", "again", "began", "error"]


def test_a_stream_that_has_begun_ends_with_one_error() -> None:
    assert played([BEGAN, TEXT, DIES], [BEGAN, DONE], delivered_at="text")[0] == ["began", "text", "error"]


def test_a_task_that_nobody_began_finds_another_replica() -> None:
    seen, _, task = played([DIES], [], [DIES], [BEGAN, DONE])
    assert (seen, task.tries) == (["began", "done"], 1)


def test_a_worker_that_dies_in_its_replica() -> None:
    """Its replica does the task again by itself: right where nothing was told, and else an error."""
    again = [BEGAN, TEXT, {"event": "again"}, BEGAN, DONE]
    assert played(again)[0] == ["began", "text", "again", "began", "done"]
    seen, _, _ = played(again, delivered_at="text")
    assert seen == ["began", "text", "error"]


def test_who_leaves_stops_the_loop() -> None:
    _, replicas, _ = played([BEGAN, TEXT, HANGS], leave_at="text")
    assert replicas.stopped == 1


def test_the_queue_is_bounded() -> None:
    async def run() -> int:
        remote = Remote(Replicas([BEGAN, HANGS]), Options(waiting=3), 2, lambda name, value: None)
        tasks = [remote.submit({}) for _ in range(5)]
        with pytest.raises(Full) as full:
            remote.submit({})
        for task in tasks:
            remote.leave(task)
        await asyncio.sleep(0.05)
        remote.leave(remote.submit({}))
        return full.value.after

    assert asyncio.run(run()) >= 1
