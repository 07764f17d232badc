"""The verb serve: answer over HTTP, by OpenAI's routes, with one model in a process of its own."""

import argparse
import time

from mmada_lite.cli import options, terminal
from mmada_lite.errors import Error

_STARTED = time.monotonic()  # this module is imported when its verb is called


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mmada_lite.serve.limits import MEGABYTE, Options

    default = Options()
    whole, number = options.whole, options.number
    options.add_model(parser)
    parser.add_argument("--host", default=default.host, metavar="ADDRESS", help=f"where it listens (default: {default.host})")
    parser.add_argument(
        "--port", type=whole, default=default.port, metavar="N", help=f"default: {default.port}; 0: any free one"
    )
    parser.add_argument("--api-key", metavar="KEY", help="what clients must send; @FILE: the keys in a file, one a line")
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a web page's origin that may ask; may be repeated",
    )
    parser.add_argument(
        "--queue", type=whole, default=default.waiting, metavar="N", help=f"requests that may wait (default: {default.waiting})"
    )
    parser.add_argument(
        "--time-limit",
        type=number,
        default=default.seconds,
        metavar="SECONDS",
        help=f"for a request, with its waiting (default: {default.seconds:g})",
    )
    parser.add_argument(
        "--grace",
        type=number,
        default=default.grace,
        metavar="SECONDS",
        help=f"for what runs when the server is stopped (default: {default.grace:g})",
    )
    parser.add_argument(
        "--max-body",
        type=number,
        default=default.body / MEGABYTE,
        metavar="MB",
        help=f"of a request (default: {default.body // MEGABYTE})",
    )
    parser.add_argument(
        "--max-pixels", type=whole, default=default.pixels, metavar="N", help=f"of a picture (default: {default.pixels:,})"
    )
    parser.add_argument(
        "--batch", type=whole, metavar="N", help="requests that run at once on a CPU (default: 8 of a small model, else 1)"
    )
    options.add_speed(parser)
    options.add_machine(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    from mmada_lite.cli.extras import needs
    from mmada_lite.serve.limits import MEGABYTE, Options

    _within("--port", arguments.port, 0, 65535)
    _within("--queue", arguments.queue, 0, 100_000)
    _within("--time-limit", arguments.time_limit, 1, 86_400)
    _within("--grace", arguments.grace, 0, 86_400)
    _within("--max-body", arguments.max_body, 0.001, 1000)
    _within("--batch", 1 if arguments.batch is None else arguments.batch, 1, 64)
    if (arguments.batch or 1) > 1 and arguments.device not in ("auto", "cpu"):
        raise Error(f"--batch {arguments.batch} is for --device cpu; leave one of them out")
    _within("--max-pixels", arguments.max_pixels, 1, 64_000_000)
    chosen = Options(
        model=arguments.model,
        device=arguments.device,
        threads=terminal.threads_of(arguments.threads),
        speed=arguments.speed,
        batch=arguments.batch,
        host=arguments.host,
        port=arguments.port,
        api_key=_key(arguments.api_key),
        origins=tuple(_origin(each) for each in arguments.allow_origin),
        waiting=arguments.queue,
        seconds=arguments.time_limit,
        grace=arguments.grace,
        body=int(arguments.max_body * MEGABYTE),
        pixels=arguments.max_pixels,
    )
    with needs("serve"):
        from importlib.util import find_spec

        for name in ("starlette", "uvicorn", "prometheus_client", "python_multipart"):
            if find_spec(name) is None:
                raise ModuleNotFoundError(name=name)
    from mmada_lite.serve.server import run as serve

    return serve(chosen, _STARTED)


def _within(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise Error(f"{option} is {value}; use {least:g} to {most:g}")


def _key(given: str | None) -> str | None:
    if given is None:
        return None
    keys = [given]
    if given.startswith("@"):
        with open(given[1:], encoding="utf-8") as file:
            keys = [line for line in file.read().splitlines() if line.strip()]
    keys = [key.strip() for key in keys]
    if not keys or not all(key and key.isascii() and key.isprintable() for key in keys):
        raise Error("--api-key is empty or no plain ASCII; give letters and digits, or @FILE with a key a line")
    return "\n".join(keys)


def _origin(given: str) -> str:
    scheme, _, host = given.partition("://")
    if scheme not in ("http", "https") or not host or "/" in host or not host.isascii():
        raise Error(f"--allow-origin {given}: write it as a browser does, such as https://example.org")
    return given
