"""/v1/files in OpenAI's shape: upload, list, show, content, delete. A file belongs to the key that has made it."""

from __future__ import annotations

from typing import cast, get_args

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.files import PURPOSES, FileRecord, Purpose
from fmplex_broker.streams.file_list import Order
from fmplex_gateway.access import principal_of, requires
from fmplex_gateway.files.downloads import content
from fmplex_gateway.files.keeping import Files
from fmplex_gateway.files.uploads import upload
from fmplex_gateway.wire import answer, json_response

router = APIRouter()
_MAX_PAGE = 10_000


async def _find(request: Request, file: str) -> FileRecord:
    files: Files = request.app.state.files
    return await files.list.find(file, principal_of(request).name)


@router.post("/v1/files", dependencies=[requires("infer", "deploy")])
async def create(request: Request) -> Response:
    """Upload a file: a form as OpenAI's clients send it, or the file's bytes with `?purpose=batch&filename=…`."""
    return json_response((await upload(request)).shown())


@router.get("/v1/files", dependencies=[requires("infer", "deploy")])
async def list_files(
    request: Request, after: str = "", limit: str = str(_MAX_PAGE), order: str = "desc", purpose: str | None = None
) -> Response:
    """List a page of the files of the key, the newest first; `after` the last one of a page begins the next."""
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 9 and 1 <= int(limit) <= _MAX_PAGE):
        raise InvalidInput(f"limit: must be a whole number from 1 to {_MAX_PAGE}", field="limit")
    _check_one_of("order", order, get_args(Order))
    if purpose is not None:
        _check_one_of("purpose", purpose, PURPOSES)
    files: Files = request.app.state.files
    found, more = await files.list.page(
        principal_of(request).name,
        int(limit),
        after,
        order=cast(Order, order),
        purpose=cast(Purpose | None, purpose),
    )
    first, last = (found[0].id, found[-1].id) if found else (None, None)
    envelope = {"object": "list", "first_id": first, "last_id": last, "has_more": more}
    return await answer(request, envelope, {"data": [record.shown() for record in found]})


def _check_one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidInput(f"{field}: must be {' or '.join(map(repr, known))}", field=field)


@router.get("/v1/files/{file_id}", dependencies=[requires("infer", "deploy")])
async def show(file_id: str, request: Request) -> Response:
    """Show a file."""
    return json_response((await _find(request, file_id)).shown())


@router.get("/v1/files/{file_id}/content", dependencies=[requires("infer", "deploy")])
async def read(file_id: str, request: Request) -> Response:
    """Send the bytes of a file, or one range of them."""
    files: Files = request.app.state.files
    return await content(request, files.store, await _find(request, file_id))


@router.delete("/v1/files/{file_id}", dependencies=[requires("infer", "deploy")])
async def delete(file_id: str, request: Request) -> Response:
    """Delete a file. A batch that still reads it fails the lines that are left."""
    files: Files = request.app.state.files
    await files.remove(file_id, principal_of(request).name)
    return json_response({"id": file_id, "object": "file", "deleted": True})
