"""/healthz (the process lives), /readyz (it can serve: broker and at least one worker answer), /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.errors import FmplexError, NoWorker
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.wire import error_response, json_response

router = APIRouter()


@router.get("/healthz")
async def healthz() -> Response:
    return json_response({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    session: QueueClient = request.app.state.session
    try:
        backbones = await session.registry.backbones()
        workers = {name: len(await session.registry.live_workers(name)) for name in backbones}
        if not any(workers.values()):
            raise NoWorker("no worker is alive; start one")
    except FmplexError as e:
        return error_response(e)
    return json_response({"status": "ready", "workers": workers})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text: this gateway's requests, and the fleet as the broker shows it."""
    session: QueueClient = request.app.state.session
    try:
        view = await read_fleet(session.redis, session.registry)
    except FmplexError:
        view = None  # the broker is away; what the gateway itself counts still matters
    return Response(request.app.state.metrics.render(view), media_type="text/plain; version=0.0.4; charset=utf-8")
