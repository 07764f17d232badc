"""The verb batch: answer a file of requests, as OpenAI's batches write them, into a file of results."""

import argparse
import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmada_lite.cli import options, terminal
from mmada_lite.errors import Error

if TYPE_CHECKING:
    from mmada_lite.serve.batch import Batch
    from mmada_lite.serve.resumed import Resumed

_BAR = 24  # characters
_NO_LIMIT = 365 * 86_400.0  # seconds of a line: nobody waits for one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("requests", metavar="IN.jsonl", help="a request a line: custom_id, method, url and body")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT.jsonl", help="the results, a line each, in the same order"
    )
    parser.add_argument("--pictures", metavar="FOLDER", help="pictures go there as files, which the results name")
    options.add_force(parser)
    options.add_model(parser)
    options.add_speed(parser)
    options.add_machine(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer what has no answer yet. Returns 1 where a line failed."""
    from mmada_lite.serve.batch import Batch
    from mmada_lite.serve.resumed import Resumed

    started, target = time.monotonic(), Path(arguments.output)
    threads = terminal.threads_of(arguments.threads)
    batch = Batch(Path(arguments.requests))
    if target.exists() and target.samefile(arguments.requests):
        raise Error(f"{target} holds the requests; give the results another name with -o")
    folder = Path(arguments.pictures) if arguments.pictures else None
    results = Resumed(target, _about(arguments, batch), force=arguments.force)
    if folder is not None:
        _check(folder, results.resumes or arguments.force)
    with terminal.Progress(quiet=arguments.json) as progress:
        progress.show("loading the model")
        failed = asyncio.run(_work(arguments, threads, batch, results, folder, progress))
    if arguments.json:
        seconds = round(time.monotonic() - started, 3)
        terminal.print_json({"result": str(target), "lines": len(batch), "failed": failed, "seconds": seconds})
    else:
        if failed:
            terminal.note(f"mmada-lite: {failed} of {len(batch)} lines failed; {target} says why")
        print(target)
    return 1 if failed else 0


async def _work(
    arguments: argparse.Namespace,
    threads: int | None,
    batch: "Batch",
    results: "Resumed",
    folder: Path | None,
    progress: terminal.Progress,
) -> int:
    """Do the lines that are left. Returns how many failed, in earlier runs too."""
    from mmada_lite.serve.batch import AHEAD
    from mmada_lite.serve.batch import results as answers
    from mmada_lite.serve.engine import Broken, Engine
    from mmada_lite.serve.limits import Options

    given = {"model": arguments.model, "device": arguments.device, "threads": threads, "speed": arguments.speed}
    with _log(progress) as log:
        engine = Engine(Options(**given, waiting=2 * AHEAD, seconds=_NO_LIMIT), log=log)
        await engine.begin()
        keeper = asyncio.create_task(engine.run())
        try:
            await engine.known()
            with results:
                failed = sum(_failed(json.loads(line)) for line in results.earlier()) if results.done else 0
                now, began = 0, time.monotonic()
                progress.show(_bar(results.done, len(batch), now, 0.0, failed))
                keep = None if folder is None else _keeper(folder)
                async for result in answers(engine, batch, results.done, keep):
                    results.add(json.dumps(result).encode())
                    now, failed = now + 1, failed + _failed(result)
                    progress.show(_bar(results.done + now, len(batch), now, time.monotonic() - began, failed))
                results.commit()
        except Broken as broken:
            raise Error(str(broken)) from None
        finally:
            await engine.end()
            keeper.cancel()
            with suppress(asyncio.CancelledError, Broken):
                await keeper
    return failed


def _about(arguments: argparse.Namespace, batch: "Batch") -> dict[str, Any]:
    """What the results depend on, by the words in which a change of it is said."""
    from mmada_lite.files import sha256_of

    bundle = Path(arguments.model) if arguments.model else Path(__file__).parents[1] / "models" / "emoji"
    manifest = bundle / "bundle.json"
    return {
        "file of requests": batch.sha256,
        "model": sha256_of(manifest) if manifest.is_file() else str(bundle),
        "--speed": arguments.speed,
        "--device": arguments.device,
        "--pictures": arguments.pictures,
    }


def _check(folder: Path, mine: bool) -> None:
    """Raise Error where pictures cannot go there."""
    if folder.exists() and not folder.is_dir():
        raise Error(f"{folder} is a file; name a folder for --pictures")
    if not folder.absolute().parent.is_dir():
        raise Error(f"there is no folder {folder.absolute().parent}; make it first")
    if folder.is_dir() and not mine and any(folder.iterdir()):
        raise Error(f"{folder} is not empty; name another folder for --pictures, or add --force to write into it")


def _keeper(folder: Path) -> Any:
    """What writes a picture and says where."""
    from mmada_lite.cli import output
    from mmada_lite.files import write_whole

    folder.mkdir(exist_ok=True)
    for left in folder.glob(".??????-*.part"):  # by a run that was killed while it wrote a picture
        left.unlink(missing_ok=True)

    def keep(line: int, name: str, picture: bytes, ending: str) -> str:
        path = folder / f"{line:06d}-{Path(output.named_after(name)).stem}.{ending}"
        write_whole(path, picture)
        return str(path)

    return keep


def _failed(result: dict[str, Any]) -> bool:
    return result["error"] is not None or result["response"]["status_code"] != 200


def _bar(done: int, total: int, now: int, seconds: float, failed: int) -> str:
    """`12/200 ██░░ 3 s, 47 s left, 1 failed`."""
    filled = round(done / total * _BAR)
    left = f", {seconds / now * (total - done):.0f} s left" if now else ""
    return f"{done}/{total} {'█' * filled}{'░' * (_BAR - filled)} {seconds:.0f} s{left}" + (
        f", {failed} failed" if failed else ""
    )


@contextmanager
def _log(progress: terminal.Progress) -> Iterator[int]:
    """Where the process of the model writes its log: what it warns of, and what went wrong there, become notes."""
    reader, writer = os.pipe()

    def read() -> None:
        with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError):
                    said = json.loads(line)
                    if words := said.get("message") or said.get("error"):
                        progress.keep(f"mmada-lite: {words}")

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield writer
    finally:
        os.close(writer)
        thread.join(timeout=1)
