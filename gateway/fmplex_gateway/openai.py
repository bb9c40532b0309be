"""The part of OpenAI's API that embeddings need. A vFM is a model. (Text: `fmplex_gateway.generation`.)"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.tensors import Tensor
from fmplex_gateway.access import principal_of, require_model, requires
from fmplex_gateway.calls import call
from fmplex_gateway.dialect import callers_words
from fmplex_gateway.kinds import require_kind
from fmplex_gateway.schemas import EmbeddingsBody, as_inputs
from fmplex_gateway.wire import answer, json_response, parse_body

router = APIRouter()


@router.post("/v1/embeddings", dependencies=[requires("infer")])
async def embeddings(request: Request) -> Response:
    """Embed texts, as OpenAI does; token ids for vFMs that take them, with the special tokens that texts get."""
    body = await parse_body(request, EmbeddingsBody, request.app.state.spec.max_body_bytes)
    require_model(request, body.model)
    queue: QueueClient = request.app.state.queue
    vfm = (await queue.vfm(body.model)).spec
    require_kind(vfm, "embedding")
    params = body.params(vfm)
    with callers_words(_request_field):
        replies = await call(request, body.model, as_inputs(body.input), params)
    tokens = sum(reply.units for reply in replies)
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(reply.output["embedding"], body.encoding_format)}
        for i, reply in enumerate(replies)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    around = {"object": "list", "model": body.model, "usage": usage}
    response = await answer(request, around, {"data": data})
    response.headers["FMplex-Version"] = replies[0].version  # OpenAI's body has no place for it
    return response


def _request_field(path: Sequence[str]) -> Sequence[str]:
    """Return the path in the caller's body of a path in the job."""
    match path:
        case ["params", *rest]:
            return rest
        case ["inputs", *rest]:
            return ["input", *rest[:1]]
    return path


def _vector(tensor: Tensor, encoding: str) -> Any:
    return base64.b64encode(tensor.data).decode() if encoding == "base64" else tensor.tolist()


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
