"""The same routes on a cluster, by Ray Serve: a door that reads requests, and as many replicas of the model behind it as there
are to be, each with an engine and a process of its own. When a replica dies its requests are done by another.

Start it with `serve run mmada_lite.serve.ray_app:application replicas=2`, or name it in a file for `serve deploy`. It installs
with the extra [ray].
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from itertools import count
from typing import Any

from ray import exceptions, serve
from ray.serve.exceptions import DeploymentUnavailableError

from mmada_lite.errors import Error, did_you_mean
from mmada_lite.serve.engine import LAST, Broken, Closing, Engine, Event, Full, Task
from mmada_lite.serve.fair import FairQueue
from mmada_lite.serve.journal import fault, note, take_over
from mmada_lite.serve.limits import Options

DOOR, MODEL = "Door", "Model"  # the names of the deployments, for a file that changes more of them
_DEATHS = (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.ObjectLostError)
_CHANCES, _PAUSE = 8, 0.25  # of a task that no replica has begun; seconds between


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the application is told: `replicas` of the model, up to `most` where it is to grow with the load, each with so many
    `cpus` and `gpus` (0.5: two share one), each holding `ongoing` requests, of which the first run; `doors` that read requests.

    model: a bundle at that path on every node, whose files each node maps once, however many replicas it has. api_key: @FILE is
    a file with a key a line. host: where Ray's proxies listen; behind loopback, other names of this host are refused. The rest
    is as `limits.Options` has it.
    """

    replicas: int = 1
    most: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    ongoing: int = 4
    doors: int = 1
    model: str | None = None
    device: str = "auto"
    threads: int | None = None
    speed: str = "exact"
    host: str = "127.0.0.1"
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    waiting: int = 256
    seconds: float = 600.0
    body: int = 20_000_000
    pixels: int = 16_000_000


class Model:
    """A replica: an engine, and what it tells of each task."""

    async def __init__(self, options: Options) -> None:  # type: ignore[misc]  # Ray awaits it
        """Raises Broken where the model does not open; Ray then says that the deployment is unhealthy, and why."""
        self._engine = Engine(options)
        await self._engine.begin()
        self._keeper = asyncio.create_task(self._engine.run())
        await asyncio.wait({self._keeper, known := asyncio.create_task(self._engine.known())}, return_when="FIRST_COMPLETED")
        await known

    async def about(self) -> Event:
        """What the worker says of its model."""
        return await self._engine.known()

    async def work(self, content: Mapping[str, Any]) -> AsyncIterator[Event]:
        """The events of a task, up to its last. Where nobody reads on, the task ends within one run of a graph."""
        try:
            task = self._engine.submit(content)
        except (Broken, Closing, Full):  # nothing was begun, so that another replica may
            return
        try:
            while True:
                event = await task.events.get()
                yield event
                if event["event"] in LAST:
                    return
        finally:
            self._engine.leave(task)

    def check_health(self) -> None:
        """Raises where no process holds the model any more, so that Ray replaces the replica."""
        if self._keeper.done() or self._engine.why:
            raise Broken(self._engine.why or "the engine has ended")

    async def __del__(self) -> None:
        with suppress(Exception):
            await self._engine.end()


class Remote:
    """An engine as the routes know it, whose work replicas do. A task whose replica dies is done once more where no client has
    been told of it, and else ends with an error."""

    def __init__(self, models: Any, options: Options, most: int, watcher: Any) -> None:
        """models: a handle of the replicas; most: tasks that they hold, beyond which tasks wait here."""
        self._models, self._works = models, models.options(stream=True)
        self._options, self._most, self._watch = options, most, watcher
        self._numbers = count(1)
        self._drivers: dict[Task, asyncio.Task[None]] = {}
        self._queue = FairQueue[Task]()
        self._mean = 1.0
        self._about: Event = {}
        self._asking: asyncio.Task[None] | None = None
        self.closing, self.pid = False, None

    @property
    def ready(self) -> bool:
        """Whether a replica has said what its model is; who looks makes it ask."""
        if not self._about and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask())
        return bool(self._about)

    async def _ask(self) -> None:
        with suppress(Broken):
            await self.known()

    @property
    def running(self) -> int:
        return len(self._drivers)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def known(self) -> Event:
        """As `Engine.known`."""
        if not self._about:
            try:
                async with asyncio.timeout(self._options.seconds):
                    self._about = await self._models.about.remote()
            except (TimeoutError, DeploymentUnavailableError, exceptions.RayError) as error:
                raise Broken(str(error)) from None
        return self._about

    def submit(self, content: Mapping[str, Any], client: str = "") -> Task:
        """Put a task behind those of its client that wait for a replica. Raises Full."""
        if len(self._queue) >= self._options.waiting:
            raise Full(max(1, min(600, math.ceil(self._mean * self._options.waiting / self._most))))
        task = Task(next(self._numbers), content)
        task.timer = asyncio.get_running_loop().call_later(self._options.seconds, self._expire, task)
        self._queue.push(task, client)
        self._feed()
        return task

    def leave(self, task: Task) -> None:
        """Nobody waits for this task any more."""
        if task.timer is not None:
            task.timer.cancel()
        if driver := self._drivers.get(task):
            driver.cancel()
        else:
            self._queue.remove(task)

    def _feed(self) -> None:
        """Hand those to the replicas whose turn it is."""
        while self._queue and len(self._drivers) < self._most:
            task = self._queue.pop()
            self._drivers[task] = driver = asyncio.create_task(self._drive(task))
            driver.add_done_callback(partial(self._over, task))  # also of one that is cancelled before it began

    def _over(self, task: Task, driver: "asyncio.Task[None]") -> None:
        del self._drivers[task]
        self._feed()

    def _expire(self, task: Task) -> None:
        task.fail("timeout", f"the request took longer than {self._options.seconds:g} s, which is this server's limit")
        self.leave(task)

    async def _drive(self, task: Task) -> None:
        """See a task to its end."""
        try:
            for _ in range(_CHANCES):
                if await self._try(task):
                    return
                await asyncio.sleep(_PAUSE)
            task.fail("worker", "no replica of the model could begin with it; ask again")
        except DeploymentUnavailableError:
            task.fail("broken", "the model cannot be opened; the server's log says why")
        except Exception as error:
            fault("fault", error, task=task.number)
            task.fail("internal", "")

    async def _try(self, task: Task) -> bool:
        """Let one replica do it. Whether the task is over; False where another is to try."""
        stream, begun, over = self._works.work.remote(dict(task.content)), False, False
        try:
            async for event in stream:
                if not begun:
                    begun, task.started, task.tries = True, time.monotonic(), task.tries + 1
                    self._watch("waited", task.started - task.arrived)
                over = event["event"] in LAST
                if event["event"] == "again" and task.delivered:
                    over = True
                    task.fail("worker", "the process that holds the model ended while it answered; ask again")
                else:
                    task.events.put_nowait(event)
                if over:
                    self._count(task, event)
                    return True
        except _DEATHS as death:
            note("replica ended", task=task.number, message=f"{type(death).__name__}")
            self._watch("deaths", 1)
        finally:
            if not over:
                stream.cancel()
        if begun and (task.delivered or task.tries > 1):
            task.fail("worker", "the replica that holds the model ended while it answered; ask again")
            return True
        if begun:
            task.events.put_nowait({"event": "again"})
        return False

    def _count(self, task: Task, event: Event) -> None:
        seconds = time.monotonic() - task.started
        self._mean += 0.2 * (seconds - self._mean)
        if event["event"] == "done":
            self._watch("first", task.started - task.arrived + (event.get("first") or seconds))
            self._watch("calls", event["model_calls"])
            self._watch("tokens", len(event.get("tokens", ())))
            self._watch("seconds", event["seconds"])


def application(arguments: Mapping[str, Any]) -> Any:
    """The application, for `serve run` and for the args of a serveConfigV2. Raises Error for an argument that is none of
    `Cluster`'s."""
    cluster = _cluster(arguments)
    threads = cluster.threads or (int(cluster.cpus) if cluster.cpus >= 1 else None)
    named = ("model", "device", "speed", "seconds", "body", "pixels")
    same: dict[str, Any] = {name: getattr(cluster, name) for name in named}
    held = Options(**same, threads=threads, waiting=2 * cluster.ongoing)
    outer: dict[str, Any] = {"host": cluster.host, "api_key": _key(cluster.api_key), "origins": cluster.origins}
    said = Options(**same, **outer, waiting=cluster.waiting)
    deployed: Any = serve.deployment  # of a type that its own arguments do not fit
    scale: dict[str, Any] = {"num_replicas": cluster.replicas}
    if cluster.most > cluster.replicas:
        about = {"min_replicas": cluster.replicas, "max_replicas": cluster.most, "target_ongoing_requests": cluster.ongoing / 2}
        scale = {"autoscaling_config": about}
    models = deployed(
        Model,
        name=MODEL,
        ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": cluster.gpus},
        max_ongoing_requests=cluster.ongoing,
        **scale,
    ).bind(held)
    most = max(cluster.replicas, cluster.most)

    def door() -> Any:
        """The routes; Ray calls this in each replica of the door."""
        from mmada_lite.serve.app import application as routes
        from mmada_lite.serve.metrics import Metrics

        take_over("asyncio")
        metrics = Metrics()
        behind = serve.get_deployment_handle(MODEL, serve.get_replica_context().app_name)
        engine: Any = Remote(behind, said, most * cluster.ongoing, metrics.watch)
        return routes(engine, said, metrics)

    doors = deployed(
        serve.ingress(door)(),
        name=DOOR,
        num_replicas=cluster.doors,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=2 * (cluster.waiting + most * cluster.ongoing),
    )
    return doors.bind(models)


def _cluster(arguments: Mapping[str, Any]) -> Cluster:
    known = [each.name for each in fields(Cluster)]
    if wrong := next((name for name in arguments if name not in known), None):
        raise Error(f"there is no argument {wrong!r}; {did_you_mean(wrong, known, 'see mmada_lite.serve.ray_app.Cluster')}")
    kinds = {each.name: type(each.default) for each in fields(Cluster)}
    read = {name: _read(name, kinds[name], value) for name, value in arguments.items()}
    return Cluster(**read)


def _read(name: str, kind: type, value: Any) -> Any:
    """A value, which `serve run` gives as text."""
    try:
        if kind in (int, float) or (name == "threads" and value is not None):
            return int(value) if name == "threads" or kind is int else kind(value)
        return tuple(value.split(",") if isinstance(value, str) else value) if kind is tuple else value
    except (TypeError, ValueError):
        raise Error(f"{name} is {value!r}; use a number") from None


def _key(given: str | None) -> str | None:
    if given is None or not given.startswith("@"):
        return given
    with open(given[1:], encoding="utf-8") as file:
        keys = [line.strip() for line in file if line.strip()]
    if not keys:
        raise Error(f"{given[1:]} holds no key; write one a line")
    return "\n".join(keys)
