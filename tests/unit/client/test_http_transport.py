"""What the transport to a gateway makes of answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from fmplex import Result, Unavailable
from fmplex.call import make_call
from fmplex.http import HttpTransport
from fmplex_broker.wire.messages import packb

CALL = make_call("spam", ["one", "two"], {}, None)
RUN = {"version": "v1", "units": 7, "queue_ms": 1.25, "run_ms": 3.5, "load_ms": 0.5}
ANSWER = {"vfm": "spam", "version": "v1", "usage": {"units": 14}, "outputs": [1, 2], "runs": [RUN, {**RUN, "units": 8}]}
VFM = {"name": "spam", "backbone": "minilm", "status": "serving", "head": {"kind": "embedding", "new": 1}, "newer": 2}


class Gateway:
    """Answers every request with the same value."""

    def __init__(self) -> None:
        self.value: Any = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "application/msgpack"}, content=packb(self.value))


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
async def transport(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpTransport]:
    real = httpx.AsyncClient

    def client(**options: Any) -> httpx.AsyncClient:
        return real(**options | {"transport": httpx.MockTransport(gateway)})

    monkeypatch.setattr(httpx, "AsyncClient", client)
    opened = HttpTransport("http://nowhere", None)
    yield opened
    await opened.close()


async def test_every_output_has_a_result_of_its_own(transport: HttpTransport, gateway: Gateway) -> None:
    gateway.value = ANSWER
    assert await transport.infer(CALL) == [
        Result(1, "spam", "v1", 7, queue_ms=1.25, run_ms=3.5, load_ms=0.5),
        Result(2, "spam", "v1", 8, queue_ms=1.25, run_ms=3.5, load_ms=0.5),
    ]


@pytest.mark.parametrize(
    "value", [None, {}, {"outputs": [1, 2]}, {**ANSWER, "runs": [RUN]}, {**ANSWER, "runs": [1, 2]}]
)
async def test_another_answer_to_a_call_is_told(transport: HttpTransport, gateway: Gateway, value: Any) -> None:
    gateway.value = value
    with pytest.raises(Unavailable, match="does not answer like an FMplex gateway"):
        await transport.infer(CALL)


async def test_vfms_are_read_with_what_this_client_knows(transport: HttpTransport, gateway: Gateway) -> None:
    gateway.value = VFM
    shown = await transport.show("spam")
    assert (shown.name, shown.status, shown.head.kind) == ("spam", "serving", "embedding")
    gateway.value = {"vfms": [VFM, VFM], "total": 7}
    assert await transport.page("*", 2, "") == ([shown, shown], 7)


@pytest.mark.parametrize(
    ("value", "why"), [({**VFM, "head": {"kind": "video"}}, "head: .*video"), ({"name": "spam"}, "backbone: "), (3, "")]
)
async def test_a_vfm_of_a_kind_that_this_client_does_not_know_is_told(
    transport: HttpTransport, gateway: Gateway, value: Any, why: str
) -> None:
    gateway.value = value
    with pytest.raises(Unavailable, match=f"of this client's version.*{why}"):
        await transport.show("spam")
    gateway.value = {"vfms": [value], "total": 1}
    with pytest.raises(Unavailable, match=f"of this client's version.*{why}"):
        await transport.page("*", 2, "")
