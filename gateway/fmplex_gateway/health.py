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
    """Answer that the process lives."""
    return json_response({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Answer whether the gateway can serve: the broker answers and a worker is alive; 503 if not."""
    queue: QueueClient = request.app.state.queue
    try:
        backbones = await queue.registry.backbones()
        workers = {name: len(await queue.registry.live_workers(name)) for name in backbones}
        if not any(workers.values()):
            raise NoWorker("no worker is alive; start one")
    except FmplexError as e:
        return error_response(e)
    return json_response({"status": "ready", "workers": workers})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Answer with Prometheus text: this gateway's requests, and the fleet as the broker shows it."""
    queue: QueueClient = request.app.state.queue
    try:
        view = await read_fleet(queue.redis, queue.registry)
    except FmplexError:
        view = None  # the broker is away; what the gateway itself counts still matters
    return Response(request.app.state.metrics.render(view), media_type="text/plain; version=0.0.4; charset=utf-8")
