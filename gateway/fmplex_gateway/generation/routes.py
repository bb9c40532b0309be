"""POST /v1/chat/completions and /v1/completions. A vFM is a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import Reply
from fmplex_gateway.access import principal_of, requires
from fmplex_gateway.answers import Asking, generate, writer
from fmplex_gateway.calls import unless_disconnected
from fmplex_gateway.events import EventStream, follow
from fmplex_gateway.generation.bodies import ChatBody, CompletionBody, TextBody
from fmplex_gateway.generation.shapes import ChatShape, CompletionShape, Shape, envelope, usage
from fmplex_gateway.generation.text_calls import TextCall, translated_errors
from fmplex_gateway.wire import json_response, parse_body

router = APIRouter()


@router.post("/v1/chat/completions", dependencies=[requires("infer")])
async def chat(request: Request) -> Response:
    """Answer a chat, as OpenAI does: whole, or as events with `stream`."""
    return await _answer(
        request, await parse_body(request, ChatBody, request.app.state.spec.max_body_bytes), ChatShape()
    )


@router.post("/v1/completions", dependencies=[requires("infer")])
async def completions(request: Request) -> Response:
    """Complete prompts, as OpenAI does: whole, or as events with `stream`."""
    body = await parse_body(request, CompletionBody, request.app.state.spec.max_body_bytes)
    return await _answer(request, body, CompletionShape())


async def _answer(request: Request, body: TextBody, shape: Shape) -> Response:
    queue: QueueClient = request.app.state.queue
    asking = Asking(principal_of(request))
    if not body.stream:
        return json_response((await unless_disconnected(request.receive, generate(queue, body, shape, asking))).body)
    status = await writer(queue, body, asking)
    with translated_errors(body):
        call = TextCall.of(body)
    return EventStream(_parts(queue, body, call, shape, status.version))


async def _parts(
    queue: QueueClient, body: TextBody, call: TextCall, shape: Shape, version: str
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the answer in parts. Nothing is submitted before the first one is read, so that all that is submitted is also
    cancelled."""
    around = envelope(shape, body.model, version, part=True) | ({"usage": None} if body.wants_usage else {})
    outputs: dict[int, dict[str, Any]] = {}
    opened: set[int] = set()
    with translated_errors(body):
        async with aclosing(follow(await call.submit(queue))) as coming:
            async for at, got in coming:
                if isinstance(got, Reply):
                    outputs[at] = call.check(at, got).output
                    choices = [shape.closing(at, outputs[at]["finish_reason"])]
                elif got.text or got.logprobs:
                    choices = [shape.part(at, got)]
                else:  # its text is held back: it may be the beginning of a stop
                    continue
                if at not in opened:
                    opened.add(at)
                    choices = [*shape.opening(at), *choices]
                for choice in choices:
                    yield around | {"choices": [choice]}
    if body.wants_usage:
        in_order = [outputs[at] for at in range(len(outputs))]
        yield around | {"choices": [], "usage": usage(in_order, call.n)}
