"""/v1/fine_tuning/jobs in OpenAI's shape. A job belongs to the key that has ordered it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.tune_records import Wish
from fmplex_broker.streams.tunes import Tunes
from fmplex_gateway.access import principal_of, requires
from fmplex_gateway.fine_tuning.checker import Checker
from fmplex_gateway.fine_tuning.ordering import Desk, ordered
from fmplex_gateway.fine_tuning.shapes import TuneBody
from fmplex_gateway.wire import json_response, parse_body

router = APIRouter()
_MAX_BODY = 262_144
_MAX_PAGE = 100


@router.post("/v1/fine_tuning/jobs", dependencies=[requires("deploy")])
async def create(request: Request) -> Response:
    """Order a tuning job: a vFM is trained on a file, beside what its backbone serves."""
    body = await parse_body(request, TuneBody, _MAX_BODY)
    tunes = _tunes(request)
    desk = Desk(request.app.state.queue.registry, tunes, request.app.state.files)
    record = await tunes.add(await ordered(body, principal_of(request), desk))
    checker: Checker = request.app.state.checker
    checker.wake()
    return json_response(record.shown())


@router.get("/v1/fine_tuning/jobs", dependencies=[requires("deploy")])
async def list_jobs(request: Request, limit: str = "20", after: str = "") -> Response:
    """List a page of the tuning jobs of the key, the newest first; `after` the last one of a page begins the next."""
    found, more = await _tunes(request).page(principal_of(request).name, _size(limit), after)
    return _page([record.shown() for record in found], more)


@router.get("/v1/fine_tuning/jobs/{job}", dependencies=[requires("deploy")])
async def show(job: str, request: Request) -> Response:
    """Show a tuning job: its state, how far it is, and in the end what it made."""
    return json_response((await _tunes(request).find(job, principal_of(request).name)).shown())


@router.post("/v1/fine_tuning/jobs/{job}/cancel", dependencies=[requires("deploy")])
async def cancel(job: str, request: Request) -> Response:
    """Cancel a tuning job; its checkpoints stay. Again is no mistake."""
    return await _ask(request, job, "cancel")


@router.post("/v1/fine_tuning/jobs/{job}/pause", dependencies=[requires("deploy")])
async def pause(job: str, request: Request) -> Response:
    """Pause a tuning job: what is learnt is kept, and its part of the device goes to others."""
    return await _ask(request, job, "pause")


@router.post("/v1/fine_tuning/jobs/{job}/resume", dependencies=[requires("deploy")])
async def resume(job: str, request: Request) -> Response:
    """Let a paused tuning job go on from where it was, on whichever worker."""
    return await _ask(request, job, "resume")


@router.get("/v1/fine_tuning/jobs/{job}/events", dependencies=[requires("deploy")])
async def events(job: str, request: Request, limit: str = "20", after: str = "", order: str = "desc") -> Response:
    """List a page of what a tuning job says, the newest first unless `order` is `asc`."""
    if order not in ("asc", "desc"):
        raise InvalidInput("order: must be 'asc' or 'desc'", field="order")
    owner = principal_of(request).name
    found, more = await _tunes(request).events(job, owner, _size(limit), after, oldest_first=order == "asc")
    return _page([event.shown() for event in found], more)


@router.get("/v1/fine_tuning/jobs/{job}/checkpoints", dependencies=[requires("deploy")])
async def checkpoints(job: str, request: Request, limit: str = "10", after: str = "") -> Response:
    """List the checkpoints of a tuning job that are kept, the newest first: the best and the last two."""
    tunes, owner = _tunes(request), principal_of(request).name
    vfm = (await tunes.find(job, owner)).vfm
    found, more = await tunes.checkpoints(job, owner, _size(limit), after)
    return _page([one.shown(job, vfm) for one in found], more)


def _tunes(request: Request) -> Tunes:
    tunes: Tunes = request.app.state.tunes
    return tunes


async def _ask(request: Request, job: str, wish: Wish) -> Response:
    return json_response((await _tunes(request).ask(job, principal_of(request).name, wish)).shown())


def _size(limit: str) -> int:
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 9 and 1 <= int(limit) <= _MAX_PAGE):
        raise InvalidInput(f"limit: must be a whole number from 1 to {_MAX_PAGE}", field="limit")
    return int(limit)


def _page(data: list[dict[str, object]], more: bool) -> Response:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return json_response({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more})
