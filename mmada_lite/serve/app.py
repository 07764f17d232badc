"""The routes: OpenAI's, and those by which an operator sees that the server lives.

It reads a request, lets `requests` judge it, and answers by `Reply`. Who may come in is the guard's business.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mmada_lite.serve import requests
from mmada_lite.serve.engine import Broken, Engine
from mmada_lite.serve.forms import Chat, Filled, Pictures
from mmada_lite.serve.guard import Guard
from mmada_lite.serve.limits import Options
from mmada_lite.serve.metrics import Metrics
from mmada_lite.serve.refusals import FAILURES, Refused
from mmada_lite.serve.reply import Reply

_SLOWEST = 60.0  # seconds for the body of a request
_FIELDS = 64  # of a form
_PAGE = Path(__file__).parent / "page"
_FILES = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}
_POLICY = "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


class Routes:
    """What the server does for each path."""

    def __init__(self, engine: Engine, options: Options, metrics: Metrics) -> None:
        self._engine, self._options, self._metrics = engine, options, metrics
        self._created = int(time.time())

    async def page(self, request: Request) -> Response:
        """The page for a browser, which runs nothing but what came with it."""
        name, kind = _FILES[request.url.path]
        headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
        return Response((_PAGE / name).read_bytes(), media_type=kind, headers=headers)

    async def health(self, request: Request) -> Response:
        """The server lives, whatever its worker does."""
        return JSONResponse({"status": "ok"})

    async def readiness(self, request: Request) -> Response:
        """Whether a request would be worked on now."""
        if self._engine.ready:
            return JSONResponse({"status": "ready"})
        state = "closing" if self._engine.closing else "opening the model"
        return JSONResponse({"status": state}, 503, headers={"retry-after": "1"})

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.page(self._engine), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """The one model there is."""
        return JSONResponse({"object": "list", "data": [self._about(await self._model())]})

    async def model(self, request: Request) -> Response:
        known = await self._model()
        requests.of_model({"model": request.path_params["name"]}, known)
        return JSONResponse(self._about(known))

    async def chat(self, request: Request) -> Any:
        model, body = await self._model(), await self._json(request)
        wish = requests.chat(body, model)
        return Reply(self._engine, wish, Chat(wish, model["name"]))

    async def fill(self, request: Request) -> Any:
        model, body = await self._model(), await self._json(request)
        wish = requests.fill(body, model)
        return Reply(self._engine, wish, Filled(wish, model["name"]))

    async def generate(self, request: Request) -> Any:
        model, body = await self._model(), await self._json(request)
        return self._pictures(request, requests.picture(body, model), "generation")

    async def edit(self, request: Request) -> Any:
        model = await self._model()
        texts, files = await self._form(request)
        unknown = [name for name in files if name not in ("image", "image[]", "mask")]
        if unknown:
            raise Refused(400, f"there is no file {unknown[0][:80]!r}; send image and mask", unknown[0][:80])
        images = [*files.get("image", ()), *files.get("image[]", ())]
        if len(images) != 1 or len(files.get("mask", ())) > 1:
            raise Refused(
                400, f"there are {len(images)} pictures in the form; send one as image, and one mask at most", "image"
            )
        mask = next(iter(files.get("mask", ())), None)
        return self._pictures(request, requests.picture(requests.of_form(texts), model, images[0], mask), "edit")

    def _pictures(self, request: Request, wish: requests.Wish, verb: str) -> Reply:
        kind = f"image/{wish.task['format'].lower()}"
        raw = kind if kind in request.headers.get("accept", "") and not wish.stream else None
        if raw and wish.task["n"] > 1:
            raise Refused(400, f"{raw} holds one picture; ask for JSON, or for n 1", "n")
        return Reply(self._engine, wish, Pictures(wish, verb), raw)

    async def _model(self) -> Mapping[str, Any]:
        try:
            return await self._engine.known()
        except Broken:
            raise Refused(503, "the model cannot be opened; the server's log says why", code="broken") from None

    async def _json(self, request: Request) -> Mapping[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "send JSON, with the header Content-Type: application/json")
        async with _hurry():
            return requests.read_json(await request.body())

    async def _form(self, request: Request) -> tuple[dict[str, str], dict[str, list[bytes]]]:
        """The texts of a form, and its files by their names."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise Refused(415, "send a form, with the header Content-Type: multipart/form-data")
        texts: dict[str, str] = {}
        files: dict[str, list[bytes]] = {}
        try:
            async with _hurry(), request.form(max_files=4, max_fields=_FIELDS, max_part_size=self._options.body) as form:
                for name, value in form.multi_items():
                    if isinstance(value, UploadFile):
                        files.setdefault(name, []).append(await value.read())
                    elif name in texts:
                        raise Refused(400, f"the field {name[:80]!r} stands there twice", name[:80])
                    else:
                        texts[name] = value
        except (HTTPException, MultiPartException) as fault:
            said = fault.detail if isinstance(fault, HTTPException) else fault.message
            raise Refused(400, f"the form cannot be read: {said}") from None
        return texts, files

    def _about(self, model: Mapping[str, Any]) -> dict[str, Any]:
        about = {"id": model["name"], "object": "model", "created": self._created, "owned_by": "mmada-lite"}
        return about | {"max_model_len": model["max_tokens"], "resolution": model["resolution"]}


@asynccontextmanager
async def _hurry() -> AsyncIterator[None]:
    """The time that a body may take to arrive."""
    try:
        async with asyncio.timeout(_SLOWEST):
            yield
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {_SLOWEST:g} s") from None


async def _refuse(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    paths = "/v1/models, /v1/chat/completions, /v1/completions, /v1/images/generations, /v1/images/edits"
    words = {404: f"there is no such path; see {paths}"}
    said = words.get(error.status_code, f"{request.method} is not for this path" if error.status_code == 405 else error.detail)
    refused = Refused(error.status_code, said, headers=error.headers)
    return JSONResponse(refused.body, refused.status, headers=refused.headers)


async def _say(request: Request, error: Exception) -> Response:
    """What we refuse."""
    assert isinstance(error, Refused)
    request.scope["mmada"]["refused"] = error.code or error.status
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _nobody(request: Request, error: Exception) -> Response:
    """The client left before all of its request was there."""
    return Response(status_code=499)


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of ours; the guard writes it into the log."""
    return JSONResponse(Refused(500, FAILURES["internal"][1]).body, 500)


def application(engine: Engine, options: Options, metrics: Metrics) -> ASGIApp:
    """The whole server as an ASGI application."""
    does = Routes(engine, options, metrics)
    routes = [
        *(Route(path, does.page) for path in _FILES),
        Route("/healthz", does.health),
        Route("/readyz", does.readiness),
        Route("/metrics", does.metrics),
        Route("/v1/models", does.models),
        Route("/v1/models/{name:path}", does.model),
        Route("/v1/chat/completions", does.chat, methods=["POST"]),
        Route("/v1/completions", does.fill, methods=["POST"]),
        Route("/v1/images/generations", does.generate, methods=["POST"]),
        Route("/v1/images/edits", does.edit, methods=["POST"]),
    ]
    handlers: Any = {HTTPException: _refuse, Refused: _say, ClientDisconnect: _nobody, Exception: _fault}
    inner = Starlette(routes=routes, exception_handlers=handlers)
    inner.router.redirect_slashes = False
    return Guard(inner, options, metrics, [route.path for route in routes])
