"""Large bodies: they are read in a process beside the gateway, which answers others meanwhile, and what is wrong with them is
told as of small ones."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import FmplexError, InvalidInput, TooLarge, Unavailable
from fmplex_broker.wire.messages import packb
from fmplex_broker.wire.tensors import Tensor
from fmplex_gateway import reader
from fmplex_gateway.generation.bodies import ChatBody, CompletionBody
from fmplex_gateway.parsing import MOST_CONTAINERS, MOST_VALUES, decode, validate
from fmplex_gateway.reader import Reader
from fmplex_gateway.receiving import Body
from fmplex_gateway.schemas import Body as AnyBody
from fmplex_gateway.schemas import DeployBody, EmbeddingsBody, InferBody
from tests.support.waiting import until
from tests.unit.gateway.serving import answer, request, serving, status
from tests.unit.gateway.site import site


@pytest.fixture(scope="module")
def reading() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


@pytest.fixture
def alone() -> Iterator[Reader]:
    """A reader of one test."""
    made = Reader()
    yield made
    made.close()


async def body(raw: bytes) -> Body:
    made = Body()
    for at in range(0, len(raw), 100_000):
        await made.add(raw[at : at + 100_000])
    await made.end()
    return made


async def read(reading: Reader, kind: type[AnyBody], raw: bytes, *, msgpack: bool = False) -> AnyBody:
    given = await body(raw)
    try:
        return await reading.read(kind, given, "somebody", msgpack=msgpack)
    finally:
        given.close()


def listed(item: str, many: int) -> str:
    return "[" + ",".join([item] * many) + "]"


MB = 1 << 20
# Junk of a megabyte: each would be an error an item, or more in memory than on the wire.
JUNK: dict[str, tuple[type[AnyBody], str, type[FmplexError], str]] = {
    "no JSON": (InferBody, "x" * MB, InvalidInput, "cannot be read"),
    "no object": (InferBody, '"' + "x" * MB + '"', InvalidInput, "must be an object, not str"),
    "cut off": (InferBody, '{"inputs": ["' + "x" * MB, InvalidInput, "cannot be read"),
    "nested": (InferBody, '{"inputs":' * 90_000, InvalidInput, "cannot be read"),
    "lists": (InferBody, f'{{"inputs": {listed("[]", MB // 3)}}}', TooLarge, f"more than {MOST_CONTAINERS} lists"),
    "objects": (ChatBody, f'{{"messages": {listed("{}", MB // 3)}}}', TooLarge, f"more than {MOST_CONTAINERS} lists"),
    "numbers": (CompletionBody, f'{{"model": "m", "prompt": {listed("0", 2 * MB)}}}', TooLarge, f"{MOST_VALUES} values"),
    "wrong messages": (ChatBody, f'{{"model": "m", "messages": {listed("0", MB // 2)}}}', InvalidInput, "messages.0: "),
    "wrong texts": (EmbeddingsBody, f'{{"model": "m", "input": {listed("0.5", MB // 4)}}}', InvalidInput, "input: must be"),
    "stops": (ChatBody, f'{{"model": "m", "messages": [], "stop": {listed("0", MB // 2)}}}', InvalidInput, "stop.0: "),
    "keys": (InferBody, '{"inputs": [], ' + ",".join(f'"{i}": 0' for i in range(90_000)) + "}", InvalidInput, "unknown key"),
    "a long key": (InferBody, f'{{"inputs": [], "{"x" * MB}": 0}}', InvalidInput, "unknown key"),
    "labels": (
        DeployBody,
        f'{{"spec": {{"name": "v", "backbone": "m", "head": {{"kind": "classification", "labels": {listed("0", MB // 4)}}}}}}}',
        InvalidInput,
        "labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", JUNK)
async def test_junk_is_refused_with_one_short_error(reading: Reader, what: str) -> None:
    kind, raw, error, says = JUNK[what]
    with pytest.raises(error, match=says) as caught:
        await read(reading, kind, raw.encode())
    assert len(str(caught.value.to_wire())) < 4096


GOOD: dict[str, tuple[type[AnyBody], dict[str, Any]]] = {
    "texts": (InferBody, {"inputs": ["é" * 10_000] * 100, "params": {"truncate": True}, "timeout_ms": 5.5}),
    "ids": (CompletionBody, {"model": "m", "prompt": [list(range(1000))] * 500}),
    "one long text": (EmbeddingsBody, {"model": "m", "input": "x" * 3_000_000}),
    "a chat": (ChatBody, {"model": "m", "messages": [{"role": "user", "content": "x" * 100}] * 10_000}),
}


@pytest.mark.parametrize("what", GOOD)
@pytest.mark.parametrize("msgpack", [False, True])
async def test_what_is_right_is_read_as_it_would_be_here(reading: Reader, what: str, msgpack: bool) -> None:
    kind, value = GOOD[what]
    raw = packb(value) if msgpack else json.dumps(value).encode()
    assert await read(reading, kind, raw, msgpack=msgpack) == validate(kind, decode(raw, msgpack=msgpack))


async def test_tensors_come_through(reading: Reader) -> None:
    value = {"inputs": [{"inputs_embeds": Tensor("float32", (500, 384), bytes(4 * 500 * 384))}]}
    got = await read(reading, InferBody, packb(value), msgpack=True)
    assert isinstance(got, InferBody)
    assert got.inputs == value["inputs"]


async def test_what_takes_too_much_memory_is_refused_and_the_next_body_is_read(reading: Reader) -> None:
    """An empty mapping is one byte in msgpack and 64 in Python."""
    bomb = b"\x81\xa6inputs\xdd" + (20 * MB).to_bytes(4) + b"\x80" * (20 * MB)
    with pytest.raises(TooLarge, match="split the call"):
        await read(reading, InferBody, bomb, msgpack=True)
    assert await read(reading, InferBody, b'{"inputs": ["x"]}') == InferBody(inputs=["x"])


async def test_a_process_that_dies_takes_one_body_with_it(alone: Reader) -> None:
    await read(alone, InferBody, b'{"inputs": []}')
    [child] = alone._idle
    child._process.kill()
    child._process.wait()
    assert await read(alone, InferBody, b'{"inputs": []}') == InferBody(inputs=[]), "it died idle: nobody notices"


async def test_a_process_that_takes_too_long_is_ended(alone: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    await read(alone, InferBody, b'{"inputs": []}')
    [child] = alone._idle
    child._process.send_signal(19)  # SIGSTOP
    monkeypatch.setattr(reader, "_MOST_S", 0.2)
    with pytest.raises(TooLarge, match="time"):
        await read(alone, InferBody, b'{"inputs": []}')
    monkeypatch.undo()
    assert child._process.poll() is not None
    assert await read(alone, InferBody, b'{"inputs": []}') == InferBody(inputs=[])


async def test_closing_ends_the_process_of_a_body_that_is_being_read(alone: Reader) -> None:
    await read(alone, InferBody, b'{"inputs": []}')
    [child] = alone._idle
    child._process.send_signal(19)  # SIGSTOP
    waiting = asyncio.create_task(read(alone, InferBody, b'{"inputs": []}'))
    await until(lambda: child in alone._busy)
    alone.close()
    with pytest.raises(TooLarge):
        await waiting
    assert child._process.poll() is not None


async def test_a_process_that_does_not_start_says_so(alone: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_COMMAND", ("false",))
    with pytest.raises(Unavailable, match="log says more"):
        await read(alone, InferBody, b'{"inputs": []}')


async def test_nobodys_bodies_stand_in_the_way_of_all_others(alone: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one principal one body is read at a time, so that one of two processes is free for the others."""
    done: list[str] = []
    go = threading.Event()

    def slow(kind: type[AnyBody], given: Body, msgpack: bool) -> AnyBody:
        if given.size == 1:
            assert go.wait(30)
        return InferBody(inputs=[])

    monkeypatch.setattr(alone, "_read", slow)

    async def sent(who: str, raw: bytes) -> None:
        await alone.read(InferBody, await body(raw), who, msgpack=False)
        done.append(who)

    crowd = [asyncio.create_task(sent("crowd", b"x")) for _ in range(8)]
    await sent("other", b"xx")
    assert done == ["other"]
    go.set()
    await asyncio.gather(*crowd)


# --- through the gateway ---------------------------------------------------------------------------------------------


def test_others_are_answered_while_a_large_body_is_read(tmp_path: Path) -> None:
    """As many as come: the parser would hold the event loop from its first byte to its last."""
    junk = f'{{"model": "m", "messages": {listed("[]", 11 * MB)}}}'.encode()[:33_000_000]
    with serving(tmp_path) as gateway, gateway.connect() as sender, gateway.connect() as other:
        said: list[bytes] = []
        sender.sendall(request("POST", "/v1/chat/completions", junk, "connection: close"))
        waiting = threading.Thread(target=lambda: said.append(answer(sender)))
        waiting.start()
        answered = 0
        while not said:
            other.sendall(request("GET", "/healthz"))
            assert status(other) == 200
            answered += not said
            waiting.join(0.005)  # a client in a hurry would leave the parser, which gives way, no processor
        waiting.join()
    assert said[0].startswith(b"HTTP/1.1 4")
    assert len(said[0]) < 4096
    assert answered >= 10


WRONG: list[tuple[str, Callable[[str], Any], int, str | None]] = [
    ("/v1/vfms/v/infer", lambda text: {"inputs": [text]}, 404, None),
    ("/v1/vfms/v/infer", lambda text: {"inputs": text}, 422, "inputs"),
    ("/v1/completions", lambda text: {"model": "v", "prompt": text}, 404, None),
    ("/v1/embeddings", lambda text: {"model": "v", "input": [text, 5]}, 400, "input"),
    ("/v1/chat/completions", lambda text: {"model": "v", "messages": [{"role": text}]}, 400, "messages.0.role"),
    ("/v1/vfms", lambda text: {"spec": {"name": "v", "backbone": "m", "head": {"kind": text}}}, 422, "spec.head"),
]


@pytest.mark.parametrize("size", [10, 200_000, 3_000_000], ids=["small", "large", "on disk"])
async def test_what_is_wrong_is_told_whatever_the_size(tmp_path: Path, size: int) -> None:
    async with site(tmp_path) as place:
        for path, make, code, field in WRONG:
            got = await place.ask("POST", path, body=make("x" * size))
            assert (path, got.status_code, got.json()["error"].get("field")) == (path, code, field)
