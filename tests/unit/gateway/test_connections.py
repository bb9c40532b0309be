"""Connections as clients have them who are slow, gone, or speak in an odd way; over real sockets."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fmplex_broker.streams.keys import Keys
from fmplex_broker.wire.messages import INTERACTIVE, Flow
from fmplex_gateway import protocol, receiving
from fmplex_gateway.protocol import REST_S
from tests.support.waiting import wait_until
from tests.unit.gateway.serving import LOOPS, Serving, answer, request, serving, status
from tests.unit.gateway.site import BACKBONE, spec

HEALTH = request("GET", "/healthz")
INFER = "/v1/vfms/v/infer"


@pytest.fixture(params=LOOPS)
def gateway(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """A gateway in a hurry."""
    monkeypatch.setattr(protocol, "HEAD_S", 0.5)
    monkeypatch.setattr(protocol, "REST_S", 2.0)
    monkeypatch.setattr(protocol, "STALL_S", 0.5)
    monkeypatch.setattr(protocol, "PROBE_S", 0.2)
    monkeypatch.setattr(receiving, "WINDOW_S", 0.5)
    with serving(tmp_path, loop=request.param) as served:
        yield served


async def waiting_vfm(gateway: Serving) -> None:
    """Make a vFM whose jobs nobody runs."""
    await gateway.place.serve(spec("v"))
    await gateway.place.worker("idle")


def depth(gateway: Serving) -> int:
    return int(gateway.do(gateway.place.queue.redis.xlen(Keys(BACKBONE).queue(Flow("v", INTERACTIVE)))))


# --- who sends too slowly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"G", b"GET /healthz HTTP/1.1\r\nhost: gate"])
def test_half_a_head_is_not_waited_for(gateway: Serving, begun: bytes) -> None:
    clients = [gateway.connect() for _ in range(20)]
    for client in clients:
        client.sendall(begun)
    answers = {answer(client)[:12] for client in clients}
    assert answers == {b"HTTP/1.1 408"} if begun else answers == {b""}
    wait_until(lambda: gateway.connections == 0, "the gateway has forgotten them", 30)
    for client in clients:
        client.close()


def test_a_head_that_comes_byte_by_byte_has_no_more_time(gateway: Serving) -> None:
    with gateway.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(100):
                client.sendall(b"x-more: x\r\n")
                time.sleep(0.05)


def test_the_next_head_on_a_connection_has_its_time_too(gateway: Serving) -> None:
    with gateway.connect() as client:
        for _ in range(3):
            client.sendall(HEALTH)
            assert status(client) == 200
            time.sleep(0.2)
        client.sendall(HEALTH[:20])
        assert answer(client).startswith(b"HTTP/1.1 408")


def test_a_connection_rests_longer_than_clients_keep_it(gateway: Serving) -> None:
    """Who writes to a connection that is just being closed gets no answer, and cannot know whether the request has run."""
    assert httpx.Limits().keepalive_expiry == 5.0, "of httpx's clients, which are ours and OpenAI's too"
    assert REST_S > 60, "of load balancers"
    with gateway.connect() as client:
        for _ in range(2):
            client.sendall(HEALTH)
            assert status(client) == 200
            time.sleep(1.2)  # more than for a head
        begun = time.monotonic()
        client.sendall(HEALTH[:20])
        assert answer(client).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begun > 0.4, "the next head has its time, however long it was waited for"


def test_a_connection_does_not_rest_for_ever(gateway: Serving) -> None:
    with gateway.connect() as client:
        client.sendall(HEALTH)
        assert status(client) == 200
        wait_until(lambda: gateway.connections == 0, "the gateway has closed it", 30)
        assert answer(client) == b""


@pytest.mark.parametrize("path", [INFER, "/v1/chat/completions", "/v1/vfms"])
def test_a_body_that_does_not_come_is_408(gateway: Serving, path: str) -> None:
    with gateway.connect() as client:
        client.sendall(request("POST", path, b'{"inputs": [', "content-type: application/x-tar", length=100_000))
        said = answer(client)
    assert said.startswith(b"HTTP/1.1 408")
    assert b'"code":"too_slow"' in said
    assert b"12 bytes of the body came in 0.5 s" in said
    wait_until(lambda: gateway.connections == 0, "the gateway has forgotten it", 30)


def test_a_body_that_comes_steadily_has_the_time_it_needs(gateway: Serving) -> None:
    body = b'{"inputs": [' + b" " * 59_986 + b"]}"
    with gateway.connect() as client:
        client.sendall(request("POST", INFER, length=len(body)))
        for at in range(0, len(body), 12_000):
            time.sleep(0.2)
            client.sendall(body[at : at + 12_000])
        assert status(client) == 404, "there is no such vFM, it says then"


def test_a_body_that_nobody_reads_is_not_taken_for_ever(gateway: Serving) -> None:
    with gateway.connect() as client:
        client.sendall(request("POST", "/v1/nothing", b"x", length=1 << 40))
        assert status(client) == 404
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(100):
                client.sendall(b"x" * 1000)
                time.sleep(0.05)


# --- who reads too slowly --------------------------------------------------------------------------------------------


def test_a_client_that_reads_nothing_is_given_up(gateway: Serving) -> None:
    with gateway.connect(4096) as client:
        for _ in range(200):  # of pages of some kilobytes each
            try:
                client.settimeout(0.5)
                client.sendall(request("GET", "/openapi.json") * 4)
            except OSError:
                break
        wait_until(lambda: gateway.connections == 0, "the gateway has given it up", 30)


def test_a_client_that_reads_slowly_gets_all_of_it(gateway: Serving) -> None:
    with gateway.connect(4096) as client:
        asked = 40
        client.sendall(
            request("GET", "/openapi.json") * (asked - 1) + request("GET", "/openapi.json", b"", "connection: close")
        )
        read = b""
        while part := client.recv(16_384):
            read += part
            time.sleep(0.001)
    assert read.count(b"HTTP/1.1 200") == asked
    assert read.endswith(b"}")


# --- who has closed their side ---------------------------------------------------------------------------------------


def test_a_client_that_has_closed_its_side_is_answered(gateway: Serving) -> None:
    for sent in (HEALTH, request("GET", "/readyz"), request("POST", INFER, b'{"inputs": ["x"]}')):
        with gateway.connect() as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            assert answer(client).startswith(b"HTTP/1.1 "), sent


def test_one_that_waits_long_is_answered_too_and_its_requests_in_order(gateway: Serving) -> None:
    gateway.do(waiting_vfm(gateway))
    with gateway.connect() as client:
        client.sendall(request("POST", INFER, b'{"inputs": ["x"], "timeout_ms": 500}') + HEALTH)
        client.shutdown(socket.SHUT_WR)
        said = answer(client)
    assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"), "a look whether it still listens"
    assert [status for status in re.findall(rb"HTTP/1.1 (\d+)", said) if status != b"100"] == [b"504", b"200"]


def test_one_that_speaks_http_1_0_gets_one_answer_and_nothing_else(gateway: Serving) -> None:
    gateway.do(waiting_vfm(gateway))
    with gateway.connect() as client:
        client.sendall(
            request("POST", INFER, b'{"inputs": ["x"], "timeout_ms": 500}').replace(b"HTTP/1.1", b"HTTP/1.0")
        )
        client.shutdown(socket.SHUT_WR)
        assert answer(client).startswith(b"HTTP/1.1 504")


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_one_that_has_hung_up_takes_its_jobs_with_it(gateway: Serving, how: str) -> None:
    gateway.do(waiting_vfm(gateway))
    client = gateway.connect()
    client.sendall(request("POST", INFER, b'{"inputs": ["x", "y"]}'))
    wait_until(lambda: depth(gateway) == 2, "the jobs are queued", 30)
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    wait_until(lambda: depth(gateway) == 0, "the jobs have left the queue", 30)
    wait_until(lambda: gateway.connections == 0, "the connection is gone", 30)


def test_half_a_body_and_no_more_is_no_request(gateway: Serving) -> None:
    with gateway.connect() as client:
        client.sendall(request("POST", INFER, b'{"inputs"', length=100))
        client.shutdown(socket.SHUT_WR)
        assert answer(client) == b""
    wait_until(lambda: gateway.connections == 0, "the gateway has forgotten it", 30)


# --- turns -----------------------------------------------------------------------------------------------------------


def test_a_body_in_tiny_chunks_leaves_turns_to_others(gateway: Serving) -> None:
    """The parser needs as long for a chunk of one byte as for one of a megabyte."""
    longest = 0

    def feed(self: protocol.Connection, data: bytes) -> None:
        nonlocal longest
        longest = max(longest, len(data))
        fed(self, data)

    fed = protocol.H11Protocol.data_received
    with pytest.MonkeyPatch.context() as patch, gateway.connect() as client:
        patch.setattr(protocol.H11Protocol, "data_received", feed)
        body = b"1\r\n \r\n" * 30_000 + b"0\r\n\r\n"
        client.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" % INFER.encode() + body)
        assert status(client) == 422
    assert 0 < longest <= 16_384
