"""/v1/vfms: deploy, list, show, change, remove."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages import Package, bare, read_package
from fmplex_broker.specs import VfmChange
from fmplex_broker.streams.session import Session
from fmplex_gateway.schemas import DeployBody
from fmplex_gateway.wire import json_response, parse_body

router = APIRouter()
_MAX_BODY = 4_194_304


async def _read(request: Request, package: str) -> Package:
    return await asyncio.to_thread(read_package, Path(package), request.app.state.roots)


@router.get("/v1/vfms")
async def list_vfms(request: Request) -> Response:
    session: Session = request.app.state.session
    return json_response({"vfms": [v.describe() for v in await session.registry.all()]})


@router.post("/v1/vfms")
async def deploy(request: Request) -> Response:
    """Answers when every live worker of the backbone has accepted the vFM (201), or says why it cannot serve."""
    body = await parse_body(request, DeployBody, _MAX_BODY)
    session: Session = request.app.state.session
    if (body.package is None) == (body.spec is None):
        raise InvalidInput("send either package (a folder) or spec (a vFM without files)", field="package")
    package = await _read(request, body.package) if body.package is not None else bare(body.spec)  # type: ignore[arg-type]
    status = await session.registry.deploy(package.spec, package.digest, body.package)
    return json_response(status.describe(), 201)


@router.get("/v1/vfms/{name}")
async def show(name: str, request: Request) -> Response:
    session: Session = request.app.state.session
    return json_response((await session.registry.show(name)).describe())


@router.patch("/v1/vfms/{name}")
async def change(name: str, request: Request) -> Response:
    """Weight, limits and SLO at once; a package becomes a new version once every live worker has accepted it."""
    body = await parse_body(request, VfmChange, _MAX_BODY)
    session: Session = request.app.state.session
    version = None
    if body.package is not None:
        package = await _read(request, body.package)
        version = (package.spec, package.digest)
    status = await session.registry.change(name, body, version=version)
    session.forget(name)
    return json_response(status.describe())


@router.delete("/v1/vfms/{name}")
async def remove(name: str, request: Request) -> Response:
    """Answers when the last key of the vFM is gone. Jobs that wait get ten seconds to run, then an answer."""
    session: Session = request.app.state.session
    await session.registry.remove(name)
    session.forget(name)
    return json_response({"name": name, "status": "gone"})
