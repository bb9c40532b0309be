"""/v1/batches in OpenAI's shape: order, list, show, cancel. A batch belongs to the key that has ordered it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.errors import InvalidInput
from fmplex_broker.streams.batch_list import BatchList
from fmplex_gateway.access import principal_of, requires
from fmplex_gateway.batches.feeder import Feeder
from fmplex_gateway.batches.shapes import BatchBody
from fmplex_gateway.files.keeping import Files
from fmplex_gateway.wire import json_response, parse_body

router = APIRouter()
_MAX_BODY = 65_536
_MAX_PAGE = 100


@router.post("/v1/batches", dependencies=[requires("infer")])
async def create(request: Request) -> Response:
    """Order a batch: the lines of a file that was uploaded for it are answered within its completion window."""
    order = (await parse_body(request, BatchBody, _MAX_BODY)).order(principal_of(request))
    files: Files = request.app.state.files
    file = await files.list.find(order.input_file_id, order.owner)
    if file.purpose != "batch":
        raise InvalidInput(
            f"input_file_id: {file.id} has purpose {file.purpose!r}; upload the lines of a batch with 'batch'",
            field="input_file_id",
        )
    batches: BatchList = request.app.state.batches
    record = await batches.create(order)
    _wake(request)
    return json_response(record.shown())


@router.get("/v1/batches", dependencies=[requires("infer")])
async def list_batches(request: Request, limit: str = "20", after: str = "") -> Response:
    """List a page of the batches of the key, the newest first; `after` the last one of a page begins the next."""
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 9 and 1 <= int(limit) <= _MAX_PAGE):
        raise InvalidInput(f"limit: must be a whole number from 1 to {_MAX_PAGE}", field="limit")
    batches: BatchList = request.app.state.batches
    found, more = await batches.page(principal_of(request).name, int(limit), after)
    first, last = (found[0].order.id, found[-1].order.id) if found else (None, None)
    page = {"object": "list", "data": [record.shown() for record in found]}
    return json_response(page | {"first_id": first, "last_id": last, "has_more": more})


@router.get("/v1/batches/{batch_id}", dependencies=[requires("infer")])
async def show(batch_id: str, request: Request) -> Response:
    """Show a batch: its state, how far it is, and in the end its files."""
    batches: BatchList = request.app.state.batches
    return json_response((await batches.find(batch_id, principal_of(request).name)).shown())


@router.post("/v1/batches/{batch_id}/cancel", dependencies=[requires("infer")])
async def cancel(batch_id: str, request: Request) -> Response:
    """Cancel a batch: what is answered stays, the other lines go to the error file. Again is no mistake."""
    batches: BatchList = request.app.state.batches
    record = await batches.cancel(batch_id, principal_of(request).name)
    _wake(request)
    return json_response(record.shown())


def _wake(request: Request) -> None:
    feeder: Feeder = request.app.state.feeder
    feeder.wake()
