"""The application on a cluster of this machine alone, with two replicas of the model: the library's answers, replicas that are
killed, clients that leave; and the recipe for bulk work."""

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from serving import PATIENCE, ROOT, Server
from test_faults import CHAT, HELLO, LONG, events, joined
from test_openai import SMALL, pixels

from mmada_lite import Error, Model, load

if importlib.util.find_spec("ray") is None:
    pytest.skip('needs pip install "mmada-lite[ray]"', allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
ONGOING, KILLS = 4, 2


class Cluster(Server):
    """As a server: its address, and plain requests to it."""

    def __init__(self, folder: Path, **arguments: Any) -> None:
        super().__init__(folder)
        self.folder, self._arguments = folder, arguments
        (folder / "home").mkdir()
        (folder / "token").write_text(os.urandom(32).hex())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder / "home"),
            "ORT_DISABLE_TELEMETRY": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        }

    def __enter__(self) -> Self:
        script = str(Path(__file__).with_name("ray_cluster.py"))
        words = [sys.executable, script, str(self.folder), str(self._port), json.dumps(self._arguments)]
        pipe = subprocess.PIPE
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=log, text=True, env=self.environment)
        assert self.process.stdout is not None
        for line in self.process.stdout:  # Ray prints the logs of its processes, too
            if line.startswith("http://"):
                self.url, self.environment["RAY_ADDRESS"] = line.split()
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return self
        raise AssertionError(self._log.read_text()[-4000:])

    def __exit__(self, *given: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=PATIENCE)
        finally:
            self.process.kill()

    def replicas(self) -> list[int]:
        """The processes of the replicas of the model."""
        return [pid for pid, parent in processes("ray::ServeReplica:default:Model") if str(self.folder) in words_of(parent)]

    def workers(self) -> list[int]:
        """The processes that hold a model."""
        replicas = self.replicas()
        return [pid for pid, parent in processes("mmada_lite.serve.worker") if parent in replicas]


def words_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def processes(name: str) -> Iterator[tuple[int, int]]:
    """Number and parent of the processes in whose command line the name stands."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and name in words_of(int(folder.name)):
            try:
                yield int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue


def worked(pids: list[int]) -> int:
    """Ticks of the processor that these have used."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in stats)


@pytest.fixture(scope="module")
def cluster(tiny_bundle: Path) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the names of Ray's sockets must be short
    try:
        given = {"model": str(tiny_bundle), "device": "cpu", "threads": 1, "replicas": 2, "ongoing": ONGOING}
        with Cluster(folder, **given) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return load(tiny_bundle, device="cpu", threads=1)


def test_every_answer_is_the_librarys(cluster: Cluster, model: Model) -> None:
    client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)
    assert [each.id for each in client.models.list().data] == [model.bundle.name]
    assert cluster.ask("GET", "/readyz").status == 200
    settings = model.text_defaults.replace(answer_length=24, steps=12, temperature=0.9)
    given: Any = {"model": model.bundle.name, "messages": HELLO["messages"], "max_tokens": 24, "temperature": 0.9}
    for seed in range(6):
        expected = model.chat(HELLO["messages"], settings, seed=seed).result().answer
        whole = client.chat.completions.create(**given, seed=seed, extra_body={"steps": 12})
        assert whole.choices[0].message.content == expected
        stream = client.chat.completions.create(**given, seed=seed, stream=True, extra_body={"steps": 12})
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == expected
    made = client.images.generate(model=model.bundle.name, prompt="a cat", extra_body={"seed": 7, **SMALL})
    drawn = model.paint("a cat", model.image_defaults.replace(**SMALL), seed=7).result()
    assert np.array_equal(pixels(made.data[0]), np.asarray(drawn.picture))
    with pytest.raises(openai.BadRequestError, match="did you mean 'temperature'"):
        client.chat.completions.create(**given, extra_body={"temprature": 1})


def test_the_bundle_is_mapped_once(cluster: Cluster) -> None:
    """Replicas of a node map one file, whose pages they share, and hold no copy of it."""
    workers = cluster.workers()
    assert len(workers) == 2
    mapped = [
        {tuple(line.split()[3:5]) for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "weights.bin" in line}
        for pid in workers
    ]
    assert mapped[0] == mapped[1]
    assert len(mapped[0]) == 1


def test_a_client_that_leaves_ends_the_loop(cluster: Cluster) -> None:
    workers, endless = cluster.workers(), {**LONG, "max_tokens": 200, "steps": 200}
    for _ in range(6):
        connection = http.client.HTTPConnection(urlsplit(cluster.url).netloc, timeout=60)
        connection.request("POST", CHAT, json.dumps(endless), {"content-type": "application/json"})
        assert connection.getresponse().read(64)
        connection.sock.close() if connection.sock else None
        connection.close()
    cluster.settle()
    time.sleep(0.5)
    before = worked(workers)
    time.sleep(1)
    assert worked(workers) - before <= 5
    assert cluster.workers() == workers


def test_a_replica_that_is_killed_loses_nobody_elses_request(cluster: Cluster) -> None:
    right = cluster.post(CHAT, HELLO).json["choices"][0]["message"]["content"]
    over, fates = threading.Event(), Counter[str]()

    def ask(number: int) -> None:
        while not over.is_set():
            stream = sum(fates.values()) % 2 == 1
            answer = cluster.post(CHAT, {**HELLO, "stream": stream})
            if answer.status == 503:  # it was begun anew, and that replica was killed too
                assert answer.json["error"]["code"] == "worker"
                fates["killed twice"] += 1
                continue
            assert answer.status == 200, answer.body
            if not stream:
                assert answer.json["choices"][0]["message"]["content"] == right
                fates["right"] += 1
                continue
            said = events(answer.body)
            errors = [each for each in said if each != "[DONE]" and "error" in json.loads(each)]
            assert len(errors) == (said[-1] != "[DONE]")
            assert not errors or said[-1] == errors[0]  # one, and nothing behind it
            assert errors or joined(answer.body) == right
            fates["broken off" if errors else "right"] += 1

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, number) for number in range(6)]
        try:
            for _ in range(KILLS):
                time.sleep(1)
                before = cluster.replicas()
                os.kill(before[0], signal.SIGKILL)
                deadline = time.monotonic() + PATIENCE
                while len(cluster.workers()) < 2 or before[0] in cluster.replicas():
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
        finally:
            deadline = time.monotonic() + PATIENCE
            while fates["right"] <= 20 and time.monotonic() < deadline:
                time.sleep(0.1)
            over.set()
    for each in asking:
        each.result()
    print(fates)
    assert fates["right"] > 20
    assert fates["broken off"] + 2 * fates["killed twice"] <= KILLS * ONGOING
    assert "mmada_worker_deaths_total 0.0" not in cluster.ask("GET", "/metrics").body.decode()


def test_the_recipe_of_the_manual(cluster: Cluster, tmp_path: Path) -> None:
    """The ten lines for bulk work, on the same machines; the packaged model's answers, in the order of the lines."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (recipe,) = (part.partition("```")[0] for part in page.split("```python\n")[1:] if "ray.data" in part)
    assert len([line for line in recipe.splitlines() if line.strip()]) <= 12
    prompts = [f"a red {thing}" for thing in ("apple", "heart", "cat", "tree")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    done = subprocess.run(
        [sys.executable, "-c", recipe], cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for file in sorted((tmp_path / "drawn").iterdir()) for line in file.read_text().splitlines()]
    model = load(threads=1)
    wanted = {each: model.paint(each, seed=1).result().codes.tolist() for each in prompts}
    assert {row["prompt"]: row["codes"] for row in rows} == wanted


def test_nothing_is_left_in_the_home(cluster: Cluster) -> None:
    assert [path for path in (cluster.folder / "home").rglob("*") if path.is_file()] == []


def test_the_arguments() -> None:
    from mmada_lite.serve.ray_app import application

    def made(**arguments: Any) -> tuple[Any, Any]:
        door = application(arguments)._bound_deployment
        return door, door.init_args[0]._bound_deployment

    door, models = made(replicas="2", gpus="0.5", doors=3)  # as `serve run` gives them
    assert (door.name, door.num_replicas, models.name, models.num_replicas) == ("Door", 3, "Model", 2)
    assert models.ray_actor_options["num_gpus"] == 0.5
    _, models = made(replicas=1, most=5)
    scale = models._deployment_config.autoscaling_config
    assert (scale.min_replicas, scale.max_replicas) == (1, 5)
    with pytest.raises(Error, match="did you mean 'replicas'"):
        application({"replica": 2})
    with pytest.raises(Error, match="cpus is 'many'; use a number"):
        application({"cpus": "many"})
