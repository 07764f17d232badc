"""The queue and the keeper of the worker, against a worker that is a script: it answers, waits, or dies as a task says."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mmada_lite.serve import engine as engines
from mmada_lite.serve.engine import Broken, Closing, Engine, Event, Full, Task
from mmada_lite.serve.limits import Options

# Its tasks: echo, steps (one step, then wait), wait (to be cancelled), deaf (for ever), die (each time), die once (by a file).
WORKER = """
import json, os, pathlib, sys, threading, time
cancelled = set()
lock = threading.Lock()
def say(**event):
    with lock:  # print writes a line in two pieces
        print(json.dumps(event), flush=True)
def read():
    for line in sys.stdin:
        task = json.loads(line)
        cancelled.add(task["cancel"]) if "cancel" in task else threading.Thread(target=do, args=(task,)).start()
    os._exit(0)
def do(task):
    number, what = task["id"], task["do"]
    say(id=number, event="began", prompt_tokens=1)
    if what == "die" or (what == "die once" and not os.path.exists(task["file"])):
        pathlib.Path(task.get("file", os.devnull)).write_text("x")
        os.kill(os.getpid(), 9)
    if what == "steps":
        say(id=number, event="step")
    while what in ("steps", "wait", "deaf"):
        if number in cancelled and what != "deaf":
            return say(id=number, event="stopped")
        time.sleep(0.005)
    say(id=number, event="done", first=0.0, model_calls=1, seconds=0.0, tokens=[1])
options = json.loads(sys.stdin.readline())
if options["model"]:
    say(event="failed", message=options["model"])
    sys.exit(2)
say(event="ready", name="script", seats=options["batch"] or 1)
read()
"""


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = asyncio.create_subprocess_exec

    async def start(*command: str, **named: Any) -> asyncio.subprocess.Process:
        return await real(sys.executable, "-c", WORKER, **named)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    monkeypatch.setattr(engines, "_PAUSES", (0.0,))


def with_engine(test: Callable[[Engine], Awaitable[None]], **options: Any) -> None:
    """Run a test on a running engine."""

    async def run() -> None:
        engine = Engine(Options(**options))
        keeper = asyncio.create_task(engine.run())
        try:
            async with asyncio.timeout(60):
                await engine.known()
                await test(engine)
        finally:
            await engine.end()
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    asyncio.run(run())


async def last(task: Task) -> Event:
    """The event that ends a task."""
    while (event := await task.events.get())["event"] not in engines.LAST:
        pass
    return event


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_tasks_are_done_in_the_order_they_came_and_a_full_queue_says_when() -> None:
    async def test(engine: Engine) -> None:
        first = engine.submit({"do": "wait"})
        await until(lambda: engine.running == 1)
        others = [engine.submit({"do": "echo"}) for _ in range(3)]
        with pytest.raises(Full) as full:
            engine.submit({"do": "echo"})
        assert 1 <= full.value.after <= 600
        ended: list[int] = []
        waits = [asyncio.create_task(last(task)) for task in others]
        for number, wait in enumerate(waits):
            wait.add_done_callback(lambda _, number=number: ended.append(number))
        engine.leave(first)
        await asyncio.gather(*waits)
        assert ended == [0, 1, 2]
        assert (engine.running, engine.waiting) == (0, 0)

    with_engine(test, waiting=3)


def test_who_leaves_the_queue_is_not_worked_for() -> None:
    async def test(engine: Engine) -> None:
        running, gone, kept = (engine.submit({"do": each}) for each in ("wait", "die", "echo"))
        await until(lambda: engine.running == 1)
        engine.leave(gone)
        engine.leave(running)
        assert (await last(kept))["event"] == "done"
        assert gone.tries == 0

    with_engine(test)


def test_a_single_request_does_not_wait_for_the_line_of_another_client() -> None:
    async def test(engine: Engine) -> None:
        running = engine.submit({"do": "wait"}, "many")
        line = [engine.submit({"do": "echo"}, "many") for _ in range(50)]
        await until(lambda: engine.running == 1)
        single = engine.submit({"do": "echo"}, "one")
        engine.leave(running)
        assert (await last(single))["event"] == "done"
        assert sum(0 < task.started <= single.started for task in line) == 0
        assert [(await last(task))["event"] for task in line] == ["done"] * 50

    with_engine(test)


def test_as_many_run_at_once_as_there_are_seats() -> None:
    async def test(engine: Engine) -> None:
        tasks = [engine.submit({"do": "wait"}) for _ in range(5)]
        await until(lambda: engine.running == 3)
        assert engine.waiting == 2
        engine.leave(tasks[1])
        await until(lambda: engine.waiting == 1)
        assert engine.running == 3
        for task in tasks:
            engine.leave(task)
        await until(lambda: engine.running == 0)

    with_engine(test, batch=3)


def test_a_task_that_kills_the_worker_does_not_take_its_neighbours_along() -> None:
    """All that ran are done once more, each alone."""

    async def test(engine: Engine) -> None:
        neighbours = [engine.submit({"do": "steps"}) for _ in range(2)]
        for task in neighbours:
            while (await task.events.get())["event"] != "step":
                pass
        victim = engine.submit({"do": "die"})
        neighbours[0].delivered = True
        assert (await last(neighbours[0]))["kind"] == "worker"  # its client has seen a part
        await until(lambda: neighbours[1].tries == 2)
        while (await neighbours[1].events.get())["event"] != "step":
            pass
        assert (engine.running, victim.tries) == (1, 1)
        engine.leave(neighbours[1])
        assert ((await last(victim))["kind"], victim.tries) == ("worker", 2)
        assert (await last(engine.submit({"do": "echo"})))["event"] == "done"

    with_engine(test, batch=3)


def test_a_worker_that_dies_is_replaced_and_its_task_done_once_more(tmp_path: Path) -> None:
    async def test(engine: Engine) -> None:
        before = engine.pid
        victim = engine.submit({"do": "die once", "file": str(tmp_path / "died")})
        behind = [engine.submit({"do": "echo"}) for _ in range(5)]
        assert (await last(victim))["event"] == "done"
        assert victim.tries == 2
        assert [(await last(each))["event"] for each in behind] == ["done"] * 5
        assert [each.tries for each in behind] == [1] * 5
        assert engine.pid != before

    with_engine(test)


def test_a_task_that_kills_twice_gets_one_error_and_the_others_an_answer() -> None:
    async def test(engine: Engine) -> None:
        victim, other = engine.submit({"do": "die"}), engine.submit({"do": "echo"})
        event = await last(victim)
        assert (event["event"], event["kind"], victim.tries) == ("error", "worker", 2)
        assert "twice" in event["message"]
        assert (await last(other))["event"] == "done"
        assert victim.events.empty()

    with_engine(test)


def test_what_a_client_has_seen_is_not_done_anew() -> None:
    async def test(engine: Engine) -> None:
        victim = engine.submit({"do": "steps"})
        while (await victim.events.get())["event"] != "step":
            pass
        victim.delivered = True
        assert engine.pid is not None
        os.kill(engine.pid, 9)
        event = await last(victim)
        assert (event["event"], event["kind"], victim.tries) == ("error", "worker", 1)
        assert (await last(engine.submit({"do": "echo"})))["event"] == "done"

    with_engine(test)


def test_an_idle_worker_that_dies_is_replaced() -> None:
    async def test(engine: Engine) -> None:
        assert engine.pid is not None
        os.kill(engine.pid, 9)
        await until(lambda: not engine.ready)
        assert (await last(engine.submit({"do": "echo"})))["event"] == "done"

    with_engine(test)


def test_time_ends_a_task_and_a_deaf_worker_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PATIENCE", 0.2)

    async def test(engine: Engine) -> None:
        before = engine.pid
        slow = engine.submit({"do": "deaf"})
        event = await last(slow)
        assert (event["event"], event["kind"]) == ("error", "timeout")
        assert (await last(engine.submit({"do": "echo"})))["event"] == "done"
        assert engine.pid != before

    with_engine(test, seconds=1.0)


def test_a_server_that_is_stopped_finishes_what_runs() -> None:
    async def test(engine: Engine) -> None:
        running, waiting = engine.submit({"do": "wait"}), engine.submit({"do": "echo"})
        await until(lambda: engine.running == 1)
        engine.close()
        assert (await last(waiting))["kind"] == "closing"
        with pytest.raises(Closing):
            engine.submit({"do": "echo"})
        assert engine.running == 1
        engine.leave(running)
        await until(lambda: engine.pid is None)  # its input is closed behind the last task

    with_engine(test)


def test_a_model_that_does_not_open_is_said() -> None:
    async def run() -> None:
        engine = Engine(Options(model="no such bundle"))
        with pytest.raises(Broken, match="no such bundle"):
            await asyncio.wait_for(engine.run(), 60)
        with pytest.raises(Broken):
            engine.submit({"do": "echo"})

    asyncio.run(run())
