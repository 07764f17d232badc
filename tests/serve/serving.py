"""`mmada-lite serve` as a process of its own, on a port of the system's choice: its address, its log, and its end."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0  # seconds


class Server:
    """A running server; it is stopped where the block ends."""

    def __init__(self, folder: Path, *options: str | Path) -> None:
        self._log, self._options = folder / "log.jsonl", [str(each) for each in options]
        self.url = ""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "mmada_lite", "serve", "--port", "0", "--device", "cpu", *self._options]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://[\d.:]+", line)
        assert found, f"{line}{self._log.read_text()}"
        self.url = found[0]
        return self

    def __exit__(self, *given: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=PATIENCE)
        finally:
            self.process.kill()

    def log(self, event: str) -> list[dict[str, Any]]:
        """What the log says of such an event."""
        return [each for each in map(json.loads, self._log.read_text().splitlines()) if each["event"] == event]

    @property
    def everything(self) -> str:
        return self._log.read_text()

    @property
    def worker(self) -> int:
        """The process that holds the model now."""
        return int(self.log("model opened")[-1]["pid"])

    def ask(self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None) -> "Answered":
        """One plain request on a connection of its own."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answered(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def post(self, path: str, content: Any, **headers: str) -> "Answered":
        given = {"content-type": "application/json", **headers}
        return self.ask("POST", path, content if isinstance(content, bytes) else json.dumps(content), given)

    def settle(self) -> None:
        """Until nothing runs and nothing waits."""
        deadline = time.monotonic() + PATIENCE
        while (
            b'mmada_queue{state="running"} 0.0' not in (page := self.ask("GET", "/metrics").body)
            or b'waiting"} 0.0' not in page
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)


class Answered:
    """A status, headers by their names in lower case, and a body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.body = status, body
        self.headers = {name.lower(): value for name, value in headers.items()}

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def said(self) -> str:
        """The line of an error, in OpenAI's form."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        message = error["message"]
        assert isinstance(message, str)
        assert message
        assert "\n" not in message
        assert len(message) < 700
        return message
