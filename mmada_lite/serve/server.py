"""The server as a process: a socket, the first worker, the application on it, and an end in which what runs is finished."""

import asyncio
import errno
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mmada_lite.errors import Error
from mmada_lite.serve.engine import Broken, Engine
from mmada_lite.serve.journal import note, take_over
from mmada_lite.serve.limits import Options


def run(options: Options, started: float | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns 0. Raises Error where the port cannot be had, or the model not be opened.

    started: when the command began, by `time.monotonic`, for the line that says how long it took to be ready.
    """
    with listening(options.host, options.port) as ear:
        try:
            return asyncio.run(_serve(options, ear, time.monotonic() if started is None else started))
        except Broken as broken:
            raise Error(str(broken)) from None


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound. Raises Error where it cannot be, in the words of what to change."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        ear = socket.socket(family, kind, protocol)
    except OSError as fault:
        raise Error(f"--host {host}: {fault.strerror or fault}; use an address of this machine, such as 127.0.0.1") from None
    with ear:
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            ear.bind(address)
        except OSError as fault:
            if fault.errno == errno.EADDRINUSE:
                raise Error(f"port {port} on {host} is in use; choose another with --port, or 0 for any free one") from None
            if fault.errno == errno.EACCES:
                raise Error(f"port {port} is for the system's own programs; choose one above 1023 with --port") from None
            raise Error(
                f"--host {host}: {fault.strerror or fault}; use an address of this machine, such as 127.0.0.1"
            ) from None
        yield ear


async def _serve(options: Options, ear: socket.socket, started: float) -> int:
    holder: list[Any] = []
    engine = Engine(options, lambda name, value: holder[0].watch(name, value) if holder else None)
    await engine.begin()  # it opens the model while the rest of the server is imported
    keeper: asyncio.Task[None] | None = None
    try:
        import uvicorn

        from mmada_lite.serve.app import application
        from mmada_lite.serve.guard import is_loopback
        from mmada_lite.serve.metrics import Metrics
        from mmada_lite.serve.protocol import Protocol, Server

        take_over("uvicorn", "uvicorn.error", "asyncio", "python_multipart", "python_multipart.multipart")
        metrics = Metrics()
        holder.append(metrics)
        config = uvicorn.Config(
            application(engine, options, metrics),
            http=Protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=max(1, round(options.grace)),
        )
        server = Server(config)
        if options.api_key is None and not is_loopback(options.host):
            note("warning", message=f"whoever reaches {options.host} may ask this server; start it with --api-key")
        keeper = asyncio.create_task(engine.run())
        keeper.add_done_callback(lambda _: setattr(server, "should_exit", True))
        _on_signals(server, engine)
        greeting = asyncio.create_task(_greet(engine, ear, started))
        await server.serve(sockets=[ear])
        greeting.cancel()
        if keeper.done() and not engine.closing:
            keeper.result()
    finally:
        await engine.end()
        if keeper is not None:
            keeper.cancel()
            with suppress(asyncio.CancelledError, Broken):
                await keeper
    note("stopped")
    return 0


def _on_signals(server: Any, engine: Engine) -> None:
    """The first SIGTERM or Ctrl-C lets what runs finish, the second does not."""

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True
        server.should_exit = True
        engine.close()

    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop)


async def _greet(engine: Engine, ear: socket.socket, started: float) -> None:
    """One line on standard output once the model is open, for a person and for a program that started this one."""
    with suppress(Broken, OSError):
        model = await engine.known()
        host, port = ear.getsockname()[:2]
        url, seconds = f"http://{f'[{host}]' if ':' in host else host}:{port}", round(time.monotonic() - started, 3)
        note("ready", url=url, model=model["name"], device=model["device"], seconds=seconds)
        print(f"{model['name']} on {model['device']}: {url}/v1 (ready in {seconds:.2f} s; Ctrl-C stops it)", flush=True)
