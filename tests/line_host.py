"""A host in another language as a test sees it: a program that is spoken to in lines of JSON. What is right is said by the
tests."""

import json
import subprocess
from pathlib import Path
from typing import Any


class Host:
    """One running test program. A result that says `error` is what a user would read; `thrown` is anything else."""

    def __init__(self, *command: str | Path) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def call(self, op: str, **job: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"op": op, **job}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the program died on {op}"
        found: dict[str, Any] = json.loads(line)
        return found

    def kill(self) -> None:
        """End it where it is."""
        self._process.kill()

    def close(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(timeout=30)
