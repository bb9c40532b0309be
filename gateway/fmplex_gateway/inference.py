"""POST /v1/vfms/{name}/infer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.errors import InvalidInput
from fmplex_broker.streams.queue_client import QueueClient, raise_first_error
from fmplex_broker.wire.messages import Reply
from fmplex_gateway import answers
from fmplex_gateway.access import principal_of, requires
from fmplex_gateway.answers import Asking, infer_body
from fmplex_gateway.calls import unless_disconnected
from fmplex_gateway.events import EventStream, follow
from fmplex_gateway.schemas import InferBody
from fmplex_gateway.wire import parse_body, respond

router = APIRouter()


@router.post("/v1/vfms/{name}/infer", dependencies=[requires("infer")])
async def infer(name: str, request: Request) -> Response:
    """Run every input through the vFM; outputs come back in the order of the inputs, and for each of them a run: which version
    it was, its units and times. With `params.stream` the one text comes as events with its parts, and at last one with what would
    have been the answer."""
    body = await parse_body(request, InferBody, request.app.state.spec.max_body_bytes)
    if body.params.get("stream") is True:
        if len(body.inputs) != 1:
            raise InvalidInput(
                "one text at a time can be streamed; send the others in calls of their own", field="inputs"
            )
        return EventStream(_stream(request.app.state.queue, name, body))
    running = answers.infer(request.app.state.queue, name, body, Asking(principal_of(request)))
    return await respond(request, (await unless_disconnected(request.receive, running)).body)


async def _stream(queue: QueueClient, name: str, body: InferBody) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the parts of one text, and at last the answer. Raises what went wrong."""
    pending = await queue.submit(
        name, body.inputs, body.params, timeout_ms=body.timeout_ms, idempotency_key=body.idempotency_key
    )
    async with aclosing(follow(pending)) as coming:
        async for _, got in coming:
            if isinstance(got, Reply):
                raise_first_error([got])
                yield infer_body(name, [got])
            else:
                yield {"text": got.text, "tokens": got.tokens, **({"logprobs": got.logprobs} if got.logprobs else {})}
