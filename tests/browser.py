"""A headless Chromium for tests, driven over a pipe by its own protocol: open a page, run a script in it, take a picture
of it. It knows nothing of the pages that it shows."""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
]
_PATIENCE = 60.0  # seconds


def find_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One tab. A script that throws, or a page that stays silent, is a RuntimeError with what the browser said."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded. A script that runs while the page changes has nowhere to run: again."""
        self._call("Page.navigate", url=url)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with suppress(RuntimeError):
                if self.run(f"return location.href === {json.dumps(url)} && document.readyState === 'complete'"):
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{url} did not load in {_PATIENCE:.0f} s")

    def resize(self, width: int, height: int) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def run(self, script: str) -> Any:
        """The value of the body of an async function, as JSON carries it."""
        expression = f"(async () => {{ {script} }})()"
        evaluation = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in evaluation:
            raise RuntimeError(evaluation["exceptionDetails"].get("exception", {}).get("description", str(evaluation)))
        return evaluation["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until the expression is true; it may also name what does not exist yet."""
        deadline = time.monotonic() + _PATIENCE
        while not self.run(f"try {{ return !!({condition}) }} catch {{ return false }}"):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{condition} did not come true; the page says: {self.run('return document.body.innerText')}"
                )
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """A key of the keyboard, as a person presses it: Tab, ArrowLeft, a space or a letter."""
        named = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        pressed: dict[str, Any] = {"key": key, "code": key if key in named else "Space" if key == " " else f"Key{key.upper()}"}
        pressed["windowsVirtualKeyCode"] = named.get(key) or ord(key.upper())
        self._call("Input.dispatchKeyEvent", type="keyDown", **pressed, **({} if key in named else {"text": key}))
        self._call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def heard(self) -> list[tuple[str, str]]:
        """What a screen reader is told of the page, in its order: (role, name) of what is not ignored."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        told = [(node.get("role", {}), node.get("name", {})) for node in nodes if not node.get("ignored")]
        return [(str(role.get("value", "")), str(name.get("value", "")).strip()) for role, name in told]

    def photograph(self) -> Image.Image:
        """What a person would see of the page."""
        return Image.open(io.BytesIO(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))).convert(
            "RGB"
        )

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._receive())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _receive(self) -> bytes:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._from, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError("the browser went away" if ready else f"the browser said nothing for {_PATIENCE:.0f} s")
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return message


@contextmanager
def browse(chromium: str) -> Iterator[Page]:
    """A browser with an empty profile and one tab; both are gone afterwards."""
    ours, theirs = os.pipe(), os.pipe()

    def pipes() -> None:  # the browser reads on 3 and writes on 4
        read, write = os.dup(ours[0]), os.dup(theirs[1])
        os.dup2(read, 3)
        os.dup2(write, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, preexec_fn=pipes, close_fds=False, stderr=subprocess.DEVNULL)
        os.close(ours[0])
        os.close(theirs[1])
        try:
            yield Page(ours[1], theirs[0])
        finally:
            os.close(ours[1])  # a browser whose pipe is closed ends
            os.close(theirs[0])
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")  # pages of another server may read
        super().end_headers()


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The files of a folder on this machine alone, as `python -m http.server` would serve them: the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
