"""The application: wiring, who asks, and the one place where exceptions become replies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fmplex_broker.errors import BrokerFault, FmplexError, InvalidInput, UnknownVfm
from fmplex_broker.memory import Trimmer
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.checkpoints import CheckpointStore
from fmplex_broker.packages.files import FileStore
from fmplex_broker.specs.gateway import GatewaySpec
from fmplex_broker.streams.batch_list import BatchList
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.streams.tunes import Tunes
from fmplex_gateway import health, inference, openai, vfms
from fmplex_gateway.access import Access, check_declared
from fmplex_gateway.batches import routes as batches
from fmplex_gateway.batches.feeder import Feeder
from fmplex_gateway.broker_watch import watching
from fmplex_gateway.files import routes as files
from fmplex_gateway.files.keeping import Files, expiring
from fmplex_gateway.fine_tuning import routes as fine_tuning
from fmplex_gateway.fine_tuning.checker import Checker
from fmplex_gateway.generation import routes as generation
from fmplex_gateway.metrics import Metrics
from fmplex_gateway.reader import Reader
from fmplex_gateway.receiving import RECEIVED, ClientDisconnected
from fmplex_gateway.wire import error_response

log = logging.getLogger(__name__)
_TRIM_S = 2.0
_LARGE = 1 << 20  # bytes of a request and its answer after which the heap may hold much that is free


def create_app(
    queue: Callable[[], QueueClient], spec: GatewaySpec, store: ArtifactStore, backbones: Sequence[str]
) -> FastAPI:
    """Make the gateway's application. `queue`: opens the connection to the broker, called once the event loop runs; `store`: of
    packages that are deployed; `backbones`: names of those without which it is not ready.

    Raises `InvalidInput` when a key file cannot be read, `RuntimeError` for a route that does not say who may call it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _wire(app, queue(), store)
        app.state.feeder.start()
        app.state.checker.start()
        tasks = [asyncio.create_task(_trim(trimmer)), asyncio.create_task(expiring(app.state.files))]
        async with watching(app.state.queue.registry):
            yield
        for task in tasks:
            task.cancel()
        app.state.reader.close()
        await app.state.checker.close()
        await app.state.feeder.close()
        await app.state.queue.close()
        await app.state.feeder.drop()

    trimmer = Trimmer()
    app = FastAPI(title="FMplex gateway", lifespan=lifespan, swagger_ui_oauth2_redirect_url=None)
    app.state.spec, app.state.metrics, app.state.backbones = spec, Metrics(), tuple(backbones)
    for router in _routers():
        check_declared(router)
        app.include_router(router)
    app.add_exception_handler(FmplexError, _typed_error)
    app.add_exception_handler(ClientDisconnected, _client_disconnected)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(_Middleware, access=Access(spec), metrics=app.state.metrics, trimmer=trimmer)
    return app


def _wire(app: FastAPI, queue: QueueClient, store: ArtifactStore) -> None:
    """Make what the routes work with."""
    state = app.state
    state.queue = queue
    state.deployer = Deployer(queue.registry, store)
    state.files = Files(FileStore(store.url), FileList(queue.redis))
    state.batches = BatchList(queue.redis, queue.scripts)
    state.feeder = Feeder(queue, state.batches, state.files.list, state.files.store)
    state.tunes = Tunes(queue.redis, queue.scripts)
    state.checkpoints = CheckpointStore(store.url)
    state.checker = Checker(state.tunes, state.files)
    state.reader = Reader()


def _routers() -> list[APIRouter]:
    return [part.router for part in (inference, openai, generation, files, batches, fine_tuning, vfms, health)]


async def _trim(trimmer: Trimmer) -> None:
    while True:
        await asyncio.sleep(_TRIM_S)
        await asyncio.to_thread(trimmer.trim)


class _Middleware:
    """The outermost layer: says who asks, counts, and lets no exception out. Plain ASGI, so that a disconnect is seen at once."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, trimmer: Trimmer) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics
        self._trimmer = trimmer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, moved = time.monotonic(), 0, 0
        state = scope.setdefault("state", {})

        async def counting_send(message: Message) -> None:
            nonlocal status, moved
            if message["type"] == "http.response.start":
                status = message["status"]
            moved += len(message.get("body", b""))
            await send(message)

        try:
            state["principal"] = self._access.principal(scope)
            await self._app(scope, receive, counting_send)
        except Exception as e:
            if not isinstance(e, FmplexError):
                log.exception("%s %s failed", scope["method"], scope["path"])
                e = FmplexError("the gateway failed; its log says how")
            if status == 0:
                await error_response(e, scope["path"])(scope, receive, counting_send)
        route = getattr(scope.get("route"), "path", "(none)")
        self._metrics.request(route, status, time.monotonic() - start)
        moved += state.get(RECEIVED, 0)
        if moved >= _LARGE:
            self._trimmer.freed(moved)


async def _typed_error(request: Request, e: Exception) -> Response:
    assert isinstance(e, FmplexError)
    if isinstance(e, BrokerFault):
        log.error("%s %s failed", request.method, request.url.path, exc_info=e)
    return error_response(e, request.url.path)


async def _client_disconnected(request: Request, e: Exception) -> Response:
    return Response(status_code=499)


class _NoRoute(UnknownVfm):
    code = "no_route"


class _WrongMethod(InvalidInput):
    code, status = "wrong_method", 405


async def _no_route(request: Request, e: Exception) -> Response:
    assert isinstance(e, HTTPException)
    path = request.url.path
    where = f"{request.method} {path}"
    if e.status_code != 405:
        return error_response(_NoRoute(f"there is no {where}; /docs lists what there is"), path)
    allowed = ", ".join(_methods(request))
    response = error_response(_WrongMethod(f"there is no {where}; this path has {allowed}"), path)
    response.headers["Allow"] = allowed
    return response


def _methods(request: Request) -> list[str]:
    """Return the methods that the path of a request has, on all of its routes."""
    known = [*request.app.routes, *(route for router in _routers() for route in router.routes)]
    routes = [route for route in known if isinstance(route, Route)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in route.methods or ()})
