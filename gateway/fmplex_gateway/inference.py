"""POST /v1/vfms/{name}/infer."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_gateway.calls import call
from fmplex_gateway.schemas import InferBody
from fmplex_gateway.wire import answer, parse_body

router = APIRouter()


@router.post("/v1/vfms/{name}/infer")
async def infer(name: str, request: Request) -> Response:
    """Run every input through the vFM; outputs come back in the order of the inputs."""
    body = await parse_body(request, InferBody, request.app.state.spec.max_body_bytes)
    replies = await call(
        request, name, body.inputs, body.params, timeout_ms=body.timeout_ms, idempotency_key=body.idempotency_key
    )
    head = {"vfm": name, "version": replies[0].version, "usage": {"units": sum(reply.units for reply in replies)}}
    return await answer(request, head, "outputs", [reply.output for reply in replies])
