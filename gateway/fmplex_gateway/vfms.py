"""/v1/vfms: deploy, list, show, change, offer a version, roll back, remove; /v1/artifacts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.archive import MEDIA_TYPE, unpack
from fmplex_broker.packages.package import Package, bare
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.vfm import VfmChange
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.access import principal_of, require_name, requires
from fmplex_gateway.files.keeping import Files
from fmplex_gateway.fine_tuning.checkpoints import checkpoint_package
from fmplex_gateway.receiving import received
from fmplex_gateway.schemas import DeployBody, RollBackBody
from fmplex_gateway.wire import json_response, parse_body

router = APIRouter()
_MAX_BODY = 4_194_304
_MAX_PAGE = 1000


@asynccontextmanager
async def _package(request: Request, vfm: str | None = None) -> AsyncGenerator[Package, None]:
    """Read the package of a request: an archive (`fmplex pack` makes one), `{"spec": …}` of a vFM without files, or a checkpoint
    of a tuning job, `{"checkpoint": …, "name": …}`. `vfm`: the name that is in the path already.

    It is checked before anything is stored, and its files stay on disk. Raises `PackageRejected`, `InvalidInput`, and what
    `received` raises.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
        what = await parse_body(request, DeployBody, _MAX_BODY)
        what.check()
        yield await _checkpoint(request, what, vfm) if what.spec is None else bare(what.spec)
        return
    async with received(request, request.app.state.spec.max_package_bytes) as body:
        yield await asyncio.to_thread(unpack, body.view())


async def _checkpoint(request: Request, body: DeployBody, vfm: str | None) -> Package:
    name = body.name or vfm
    if name is None or body.checkpoint is None:
        raise InvalidInput("name: say what the vFM is called that the checkpoint becomes", field="name")
    state, owner = request.app.state, principal_of(request).name
    return await checkpoint_package(body.checkpoint, name, owner, state.tunes, state.checkpoints)


def _changed(queue: QueueClient, status: VfmStatus) -> Response:
    """Answer with the status of a vFM that has changed, and forget what this gateway has cached of it."""
    queue.forget(status.name)
    return _shown(status)


def _shown(status: VfmStatus, code: int = 200) -> Response:
    return json_response(status.describe().plain(), code)


@router.get("/v1/vfms", dependencies=[requires("infer", "deploy")])
async def list_vfms(request: Request, match: str = "*", limit: str = "100", after: str = "") -> Response:
    """List a page of the vFMs that the key may use, by name; `after` the last name of one page begins the next; `total` counts
    all that match."""
    # Digits of other scripts are digits to Python, and some of them are no numbers.
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 9 and 1 <= int(limit) <= _MAX_PAGE):
        raise InvalidInput(f"limit: must be a whole number from 1 to {_MAX_PAGE}", field="limit")
    queue: QueueClient = request.app.state.queue
    who = principal_of(request)
    found, total = await queue.registry.page(match, int(limit), after, only=who.may_use)
    return json_response({"vfms": [v.describe().plain(prompts=who.sees_prompts) for v in found], "total": total})


@router.post("/v1/vfms", dependencies=[requires("deploy")])
async def deploy(request: Request) -> Response:
    """Deploy a vFM: answer when every live worker of the backbone has accepted it (201), or say why it cannot serve."""
    deployer: Deployer = request.app.state.deployer
    async with _package(request) as package:
        require_name(principal_of(request), package.spec.name)
        return _shown(await deployer.deploy(package), 201)


@router.get("/v1/vfms/{name}", dependencies=[requires("infer", "deploy")])
async def show(name: str, request: Request) -> Response:
    """Show the status of a vFM; its prompts only to those who may deploy."""
    queue: QueueClient = request.app.state.queue
    status = await queue.registry.show(name)
    return json_response(status.describe().plain(prompts=principal_of(request).sees_prompts))


@router.patch("/v1/vfms/{name}", dependencies=[requires("deploy")])
async def change(name: str, request: Request) -> Response:
    """Change weight, limits and SLO of a vFM, at once."""
    queue: QueueClient = request.app.state.queue
    status = await queue.registry.change(name, await parse_body(request, VfmChange, _MAX_BODY))
    return _changed(queue, status)


@router.post("/v1/vfms/{name}/versions", dependencies=[requires("deploy")])
async def offer(name: str, request: Request) -> Response:
    """Offer a new version; it serves once every live worker has accepted it, and until then the old one does."""
    queue: QueueClient = request.app.state.queue
    deployer: Deployer = request.app.state.deployer
    await queue.registry.find(name)  # before megabytes are read
    async with _package(request, name) as package:
        return _changed(queue, await deployer.update(name, package))


@router.post("/v1/vfms/{name}/rollback", dependencies=[requires("deploy")])
async def roll_back(name: str, request: Request) -> Response:
    """Go back to the version that served before, or to the one that is named."""
    queue: QueueClient = request.app.state.queue
    deployer: Deployer = request.app.state.deployer
    status = await deployer.roll_back(name, (await parse_body(request, RollBackBody, _MAX_BODY)).version)
    return _changed(queue, status)


@router.delete("/v1/vfms/{name}", dependencies=[requires("deploy")])
async def remove(name: str, request: Request) -> Response:
    """Remove a vFM: answer when its last key is gone. Jobs that wait get ten seconds to run, then an answer."""
    queue: QueueClient = request.app.state.queue
    await queue.registry.remove(name)
    queue.forget(name)
    return json_response({"name": name, "status": "gone"})


@router.post("/v1/artifacts/prune", dependencies=[requires("admin")])
async def prune(request: Request) -> Response:
    """Delete artifacts, older than an hour, that no vFM serves, has on offer or could be rolled back to; and files that have
    expired, or whose upload never ended."""
    deployer: Deployer = request.app.state.deployer
    files: Files = request.app.state.files
    return json_response({"pruned": await deployer.prune(), "files": await files.prune()})
