"""POST /v1/chat/completions and /v1/completions. A vFM is a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fmplex_broker.streams.queue_client import QueueClient, gather_replies
from fmplex_broker.wire.messages import Reply
from fmplex_gateway.calls import unless_gone
from fmplex_gateway.events import Events, follow
from fmplex_gateway.generation.asking import TextCall, in_their_words
from fmplex_gateway.generation.bodies import ChatBody, CompletionBody, TextBody
from fmplex_gateway.generation.shapes import ChatShape, Completion, Shape, head, usage
from fmplex_gateway.kinds import require
from fmplex_gateway.wire import json_response, parse_body

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    return await _answer(
        request, await parse_body(request, ChatBody, request.app.state.spec.max_body_bytes), ChatShape()
    )


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    body = await parse_body(request, CompletionBody, request.app.state.spec.max_body_bytes)
    return await _answer(request, body, Completion())


async def _answer(request: Request, body: TextBody, shape: Shape) -> Response:
    session: QueueClient = request.app.state.session
    status = await session.vfm(body.model)
    require(status.spec, "generation")
    with in_their_words(body):
        asked = TextCall.of(body)
        if body.stream:
            return Events(_parts(session, body, asked, shape, status.version))
        replies = await unless_gone(request.receive, gather_replies(await asked.submit(session)))
        outputs = [asked.check(at, reply).output for at, reply in enumerate(replies)]
    choices = [shape.choice(at, output) for at, output in enumerate(outputs)]
    around = head(shape, body.model, replies[0].version, part=False)
    return json_response(around | {"choices": choices, "usage": usage(outputs, asked.n)})


async def _parts(
    session: QueueClient, body: TextBody, asked: TextCall, shape: Shape, version: str
) -> AsyncGenerator[dict[str, Any], None]:
    """The answer in parts. Nothing is submitted before the first is asked for, so that what is submitted is also taken back."""
    around = head(shape, body.model, version, part=True) | ({"usage": None} if body.wants_usage else {})
    outputs: dict[int, dict[str, Any]] = {}
    opened: set[int] = set()
    with in_their_words(body):
        async with aclosing(follow(await asked.submit(session))) as coming:
            async for at, got in coming:
                if isinstance(got, Reply):
                    outputs[at] = asked.check(at, got).output
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
        yield around | {"choices": [], "usage": usage(in_order, asked.n)}
