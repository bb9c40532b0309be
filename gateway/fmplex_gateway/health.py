"""/healthz (the process lives), /readyz (it can serve: the broker and a worker of every backbone answer), /metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.errors import FmplexError, NoWorker
from fmplex_broker.streams.batch_list import BatchList
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.fleet_view import FleetView
from fmplex_gateway.access import requires_all_models
from fmplex_gateway.batches.feeder import Feeder
from fmplex_gateway.batches.metrics import families
from fmplex_gateway.dialect import error_body
from fmplex_gateway.wire import error_response, json_response

router = APIRouter()


@router.get("/healthz")
async def healthz() -> Response:
    """Answer that the process lives."""
    return json_response({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Answer whether the gateway can serve: the broker answers, and for each backbone of the fleet file a worker is alive; 503 if
    not. `workers` counts the live ones by backbone, of those too that only other fleet files name."""
    queue: QueueClient = request.app.state.queue
    wanted: tuple[str, ...] = request.app.state.backbones
    try:
        names = dict.fromkeys([*wanted, *await queue.registry.backbones()])
        workers = {name: len(await queue.registry.live_workers(name)) for name in names}
    except FmplexError as e:
        return error_response(e, request.url.path)
    if missing := [name for name in wanted if not workers[name]]:
        error = NoWorker(f"no live worker hosts {', '.join(map(repr, missing))}; start one")
        return json_response(error_body(error, request.url.path) | {"workers": workers}, error.status)
    return json_response({"status": "ready", "workers": workers})


@router.get("/metrics", dependencies=[requires_all_models()])
async def metrics(request: Request) -> Response:
    """Answer with Prometheus text: this gateway's requests, and the fleet as the broker shows it."""
    queue: QueueClient = request.app.state.queue
    batches: BatchList = request.app.state.batches
    feeder: Feeder = request.app.state.feeder
    view: FleetView | None = None
    open_batches: Counter[str] | None = None
    with suppress(FmplexError):  # the broker is away; what the gateway itself counts still matters
        view, open_batches = await read_fleet(queue.redis, queue.registry), await batches.count_open()
    # On a thread: of ten thousand vFMs it takes a while, and others get their turns.
    more = families(feeder.lines, open_batches)
    text = await asyncio.to_thread(request.app.state.metrics.render, view, more)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
