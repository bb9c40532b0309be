"""Answers, and errors as replies."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from starlette.requests import Request

from fmplex_broker.errors import (
    DeadlineExceeded,
    FmplexError,
    JobFailed,
    NoWorker,
    Poisoned,
    QueueFull,
    StreamRestarted,
)
from fmplex_broker.wire.messages import unpackb
from fmplex_broker.wire.tensors import Tensor
from fmplex_gateway.wire import MSGPACK, answer, error_response

TENSOR = Tensor("float32", (2,), bytes(8))


def asking(accept: str) -> Request:
    return Request({"type": "http", "headers": [(b"accept", accept.encode())]})


@pytest.mark.parametrize("many", [1, 16, 100])
async def test_an_answer_holds_its_lists(many: int) -> None:
    envelope: dict[str, Any] = {"vfm": "v", "usage": {"units": 7}}
    lists: dict[str, list[Any]] = {"runs": [{"units": i} for i in range(many)], "outputs": [TENSOR] * many}
    in_json = await answer(asking("application/json"), envelope, lists)
    assert json.loads(bytes(in_json.body)) == envelope | lists | {"outputs": [[0.0, 0.0]] * many}
    in_msgpack = await answer(asking(MSGPACK), envelope, lists)
    assert unpackb(bytes(in_msgpack.body)) == envelope | lists


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (DeadlineExceeded("late"), 1),
        (JobFailed("failed"), 1),
        (Poisoned("killed its worker"), 1),
        (StreamRestarted("differs"), 3),
        (NoWorker("none"), 3),
        (QueueFull("full", retry_after=0.01), 3),
        (FmplexError("the gateway failed"), 3),
    ],
)
def test_the_openai_package_sends_again_what_may_succeed(error: FmplexError, times: int) -> None:
    sent = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal sent
        sent += 1
        reply = error_response(error, "/v1/completions")
        headers = {**reply.headers, "retry-after-ms": "1"}  # so that the test need not wait
        return httpx.Response(reply.status_code, headers=headers, content=bytes(reply.body))

    with (
        openai.OpenAI(
            base_url="http://gateway/v1", api_key="any", http_client=httpx.Client(transport=httpx.MockTransport(answer))
        ) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.completions.create(model="poet", prompt="x")
    assert caught.value.code == ("rate_limit_exceeded" if isinstance(error, QueueFull) else error.code)
    assert sent == times
