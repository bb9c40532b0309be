"""The part of OpenAI's API that embeddings need. A vFM is a model. (Text: `fmplex_gateway.generation`.)"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.access import principal_of, requires
from fmplex_gateway.answers import Asking, embed
from fmplex_gateway.calls import unless_disconnected
from fmplex_gateway.schemas import EmbeddingsBody
from fmplex_gateway.wire import json_response, parse_body, respond

router = APIRouter()


@router.post("/v1/embeddings", dependencies=[requires("infer")])
async def embeddings(request: Request) -> Response:
    """Embed texts, as OpenAI does; token ids for vFMs that take them, with the special tokens that texts get."""
    body = await parse_body(request, EmbeddingsBody, request.app.state.spec.max_body_bytes)
    asking = Asking(principal_of(request))
    got = await unless_disconnected(request.receive, embed(request.app.state.queue, body, asking))
    response = await respond(request, got.body)
    response.headers["FMplex-Version"] = got.version  # OpenAI's body has no place for it
    return response


@router.get("/v1/models", dependencies=[requires("infer")])
async def models(request: Request) -> Response:
    """List the vFMs that serve, as OpenAI lists models; those that the key may use."""
    queue: QueueClient = request.app.state.queue
    usable = await queue.registry.every(only=principal_of(request).may_use)
    serving = [v for v in usable if v.status == "serving"]
    return json_response({"object": "list", "data": [_model(v.name, v.backbone) for v in serving]})


@router.get("/v1/models/{name}", dependencies=[requires("infer")])
async def model(name: str, request: Request) -> Response:
    """Show one vFM, as OpenAI shows a model."""
    queue: QueueClient = request.app.state.queue
    status = await queue.vfm(name)
    return json_response(_model(status.name, status.backbone))


def _model(name: str, backbone: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": backbone}
