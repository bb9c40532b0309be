"""Whatever a caller sends, the answer is a typed error that says what to do, and the neighbours notice nothing."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from fmplex import AsyncClient, Client, FmplexError, InvalidInput, TooLarge
from fmplex.local import LocalFleet
from fmplex_broker.streams.embedded import EmbeddedServer, free_port
from fmplex_broker.wire.messages import packb
from fmplex_broker.wire.tensors import Tensor
from tests.integration.sending import refused, send
from tests.support.fleets import gateway, status, write_minilm_fleet
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("neighbours")


# --- requests --------------------------------------------------------------------------------------------------------


def embeds(shape: tuple[int, ...] = (4, 384), value: float = 0.0, dtype: str = "float32") -> dict[str, Tensor]:
    return {"inputs_embeds": Tensor.of(np.full(shape, value, dtype=dtype))}


NAN = np.zeros((4, 384), dtype=np.float32)
NAN[2, 7] = math.nan

# What is sent to the vFM `embed` -> status, code, field, what the message must say.
REQUESTS: dict[str, tuple[Any, int, str, str | None, str]] = {
    "an empty text": ([""], 422, "invalid_input", "inputs.0", "empty"),
    "a text of white space": (["fine", " \n\t"], 422, "invalid_input", "inputs.1", "empty"),
    "a megabyte of text": (["fine", "word " * 200_000], 413, "too_large", "inputs.1", "at most 786432 in an input; shorten"),
    "a text that is too long": (["fine", "word " * 300], 422, "text_too_long", "inputs.1", "has 302 tokens; shorten it, or send"),
    "a number": ([7], 422, "invalid_input", "inputs.0", "must be a string or a mapping, not int"),
    "nothing": ([None], 422, "invalid_input", "inputs.0", "must be a string or a mapping"),
    "a list": ([["a", "b"]], 422, "invalid_input", "inputs.0", "must be a string or a mapping"),
    "a text that is a number": ([{"text": 7}], 422, "invalid_input", "inputs.0.text", "must be a string, not int"),
    "inputs that are no list": ("a text", 422, "invalid_input", "inputs", "list"),
    "no inputs": ([], 422, "invalid_input", "inputs", "send at least one"),
    "ten thousand items": (["x"] * 10_000, 413, "too_large", "inputs", "at most 2048 are taken; split the call"),
    "an unknown field": ([{"text": "x", "txet": "x"}], 422, "invalid_input", "inputs.0.txet", "unknown field 'txet'; an input"),
    "text and ids": ([{"text": "x", "input_ids": [1]}], 422, "invalid_input", "inputs.0", "exactly one of"),
    "a pair for one text": ([{"text": "x", "text_pair": "y"}], 422, "invalid_input", "inputs.0.text_pair", "takes no text_pair"),
    "ids that are texts": ([{"input_ids": ["a"]}], 422, "invalid_input", "inputs.0.input_ids", "list of token ids"),
    "an id that is none": ([{"input_ids": [30_522]}], 422, "invalid_input", "inputs.0.input_ids", "from 0 to 30521"),
    "a negative id": ([{"input_ids": [-1]}], 422, "invalid_input", "inputs.0.input_ids", "token ids"),
    "an id without end": ([{"input_ids": [10**40]}], 422, "invalid_input", "inputs.0.input_ids", "token ids"),
    "no ids": ([{"input_ids": []}], 422, "invalid_input", "inputs.0.input_ids", "list of token ids"),
    "too many ids": ([{"input_ids": [1] * 257}], 422, "text_too_long", "inputs.0", "length is 256 tokens"),
    "embeddings in JSON": ([{"inputs_embeds": [[0.0]]}], 422, "invalid_input", "inputs.0.inputs_embeds", "float32 tensor (msg"),
    "half a character": (["\ud800"], 422, "invalid_input", "inputs.0", "not valid Unicode"),
    "a NaN tensor": (["x", {"inputs_embeds": Tensor.of(NAN)}], 422, "invalid_input", "inputs.1.inputs_embeds", "NaN"),
    "an infinite tensor": ([embeds(value=math.inf)], 422, "invalid_input", "inputs.0.inputs_embeds", "infinite"),
    "a tensor of the wrong width": ([embeds((4, 383))], 422, "invalid_input", "inputs.0.inputs_embeds", "[tokens, 384]"),
    "a tensor of the wrong rank": ([embeds((4,))], 422, "invalid_input", "inputs.0.inputs_embeds", "[tokens, hidden]"),
    "a tensor of the wrong type": ([embeds(dtype="float64")], 422, "invalid_input", "inputs.0.inputs_embeds", "float32"),
    "a tensor with no rows": ([embeds((0, 384))], 422, "invalid_input", "inputs.0.inputs_embeds", "empty"),
}  # fmt: skip


# What the SDK turns into something else, or refuses itself before it is sent.
HTTP_ONLY = ("inputs that are no list", "half a character", "an id without end")


@pytest.mark.parametrize("what", REQUESTS)
def test_a_bad_request_is_refused_by_name(http: httpx.Client, what: str) -> None:
    inputs, *expected = REQUESTS[what]
    refused(send(http, "/v1/vfms/embed/infer", {"inputs": inputs}), *expected)


async def test_the_sdk_raises_the_same_errors_both_ways(client: AsyncClient) -> None:
    for what in REQUESTS.keys() - HTTP_ONLY:
        inputs, status, code, field, says = REQUESTS[what]
        with pytest.raises(FmplexError) as caught:
            await client.infer("embed", inputs)
        error = caught.value
        assert (error.status, error.code, error.field) == (status, code, field), what
        assert says in error.message


async def test_what_cannot_travel_is_refused_before_it_is_sent(client: AsyncClient) -> None:
    for value in ("\ud800", {"text": object()}, object(), {1, 2}, b"bytes", {"input_ids": [10**40]}):
        with pytest.raises(InvalidInput):
            await client.infer("embed", value)


PARAMETERS = {
    "an unknown parameter": ({"params": {"colour": "red"}}, "colour", "unknown"),
    "an unknown key": ({"colour": "red"}, "colour", "unknown key; remove it"),
    "parameters that are no object": ({"params": 7}, "params", "dictionary"),
    "a parameter of the wrong type": ({"params": {"truncate": "perhaps"}}, "truncate", "boolean"),
    "no dimensions": ({"params": {"dimensions": 0}}, "dimensions", "between 1"),
    "too many dimensions": ({"params": {"dimensions": 385}}, "params.dimensions", "from 1 to 384"),
    "dimensions without end": ({"params": {"dimensions": 10**40}}, "dimensions", "between 1"),
    "a parameter of another head": ({"params": {"top_k": 2}}, "top_k", "means nothing to 'embed'"),
    "no time": ({"timeout_ms": 0}, "timeout_ms", "between 1 and 86400000"),
    "time without end": ({"timeout_ms": 1e300}, "timeout_ms", "between 1 and 86400000"),
    "time that is none": ({"timeout_ms": math.nan}, "timeout_ms", "between 1 and 86400000"),
    "an empty key": ({"idempotency_key": ""}, "idempotency_key", "at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", PARAMETERS)
def test_a_bad_parameter_is_refused_by_name(http: httpx.Client, what: str) -> None:
    more, field, says = PARAMETERS[what]
    refused(send(http, "/v1/vfms/embed/infer", {"inputs": ["x"]} | more), 422, "invalid_input", field, says)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"null", b'{"inputs": ["x"]} x', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(http: httpx.Client, body: bytes) -> None:
    response = http.post("/v1/vfms/embed/infer", content=body)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_input")
    assert "JSON" in response.text or "object" in response.text


def test_each_head_says_which_inputs_it_takes(http: httpx.Client) -> None:
    for vfm, value, says in (
        ("similar", "one text", "text_pair"),
        ("ranker", {"text": "one text"}, "text_pair is missing"),
        ("entities", {"input_ids": [101, 102]}, "tagging needs text"),
        ("raw", {"text": "a", "text_pair": "b"}, "takes no text_pair"),
    ):
        response = send(http, f"/v1/vfms/{vfm}/infer", {"inputs": [value]})
        assert response.status_code == 422
        assert says in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "name", ["nobody", "embed%00", "embed%20", "..%2fembed", "%7Bminilm%7D", "x" * 4000, "%F0%9F%90%88"]
)
def test_an_unknown_vfm_is_404(http: httpx.Client, name: str) -> None:
    response = send(http, f"/v1/vfms/{name}/infer", {"inputs": ["x"]})
    assert response.status_code == 404
    assert response.json()["error"]["code"] in ("unknown_vfm", "no_route")


async def test_a_megabyte_is_taken_where_a_vfm_allows_it(client: AsyncClient, new_vfm: Callable[..., str]) -> None:
    roomy = new_vfm(limits={"max_input_bytes": 2_000_000})
    with pytest.raises(InvalidInput, match="length is 256 tokens"):
        await client.infer(roomy, "word " * 200_000)
    whole = await client.infer(roomy, "word " * 200_000, truncate=True)
    assert whole.output["embedding"].shape == (384,)
    with pytest.raises(InvalidInput, match="length is 256 tokens"):
        await client.infer(roomy, embeds((257, 384)))
    with pytest.raises(TooLarge, match="at most 2000000"):
        await client.infer(roomy, "x" * 2_000_001)


def test_one_bad_item_among_many_is_named(http: httpx.Client) -> None:
    inputs = ["fine"] * 700
    inputs[613] = "word " * 300
    response = send(http, "/v1/vfms/embed/infer", {"inputs": inputs})
    refused(response, 422, "text_too_long", "inputs.613", "truncate")


def test_a_body_cut_off_is_forgotten(fleet: LocalFleet, http: httpx.Client) -> None:
    url = urlsplit(fleet.gateway_url)
    body = packb({"inputs": [embeds((200, 384))]})
    for cut in (1, len(body) // 2, len(body) - 1):
        with socket.create_connection((url.hostname, url.port), timeout=30) as s:
            s.sendall(b"POST /v1/vfms/embed/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/msgpack\r\n")
            s.sendall(b"content-length: %d\r\n\r\n" % len(body) + body[:cut])
    assert send(http, "/v1/vfms/embed/infer", {"inputs": ["x"]}).status_code == 200


SPEC = {"name": "embed", "backbone": "minilm", "head": {"kind": "embedding"}}


# --- the broker is away ----------------------------------------------------------------------------------------------


def test_a_gateway_started_before_its_broker_says_so_and_recovers(tmp_path: Path) -> None:
    port = free_port()
    broker_url = f"redis://127.0.0.1:{port}"
    log = tmp_path / "gateway.log"
    with (
        gateway(write_minilm_fleet(tmp_path), broker_url, log) as (url, _),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        assert http.get("/healthz").status_code == 200
        assert http.get("/metrics").status_code == 200
        calls = (
            http.get("/readyz"), http.get("/v1/models"), http.get("/v1/vfms"), http.delete("/v1/vfms/x"),
            send(http, "/v1/vfms/x/infer", {"inputs": ["x"]}), send(http, "/v1/vfms", {"spec": SPEC}),
        )  # fmt: skip
        for response in calls:
            refused(response, 503, "broker_unavailable", None, "is it running, and is its URL right?")
        with Client(broker_url, retries=0) as direct, pytest.raises(FmplexError, match="is it running") as caught:
            direct.infer("x", "x")
        assert caught.value.code == "broker_unavailable"
        with EmbeddedServer(tmp_path / "broker", port=port):
            wait_until(lambda: status(f"{url}/v1/models") == 200, "the gateway has found its broker")
            refused(http.get("/readyz"), 503, "no_worker", None, "start one")
            refused(send(http, "/v1/vfms/x/infer", {"inputs": ["x"]}), 404, "unknown_vfm", None, "fmplex vfms")
            refused(send(http, "/v1/vfms", {"spec": SPEC}), 422, "invalid_input", "backbone", "start a worker first")
        assert "Traceback" not in log.read_text()


async def test_a_gateway_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with AsyncClient(url, retries=0) as client:
        with pytest.raises(FmplexError, match=f"{url}.*does not answer") as caught:
            await client.infer("embed", "x")
    assert caught.value.status == 503
    with pytest.raises(InvalidInput, match=r"http\(s\)"):
        AsyncClient("ftp://somewhere")
