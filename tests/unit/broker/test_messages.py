"""Envelopes: what goes in comes out, and no bytes whatever can do more than be refused."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker import errors
from fmplex_broker.wire.messages import (
    VERSION,
    Part,
    Reply,
    Request,
    SharedPayload,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    packb,
    read_reply,
    unpackb,
)
from fmplex_broker.wire.tensors import Tensor
from tests.unit.broker.strategies import tensors, values

params = st.dictionaries(st.text(max_size=8), st.integers() | st.booleans(), max_size=3).filter(
    lambda p: all(-(2**63) <= v < 2**64 for v in p.values())
)
times = st.floats(0, 1e9)


@given(values)
def test_what_goes_in_comes_out(value: Any) -> None:
    assert unpackb(packb(value)) == value


@given(values, params)
def test_request_round_trip(value: Any, params: dict[str, Any]) -> None:
    assert decode_request(encode_request(Request(value, params))) == Request(value, params)


@given(values, st.text(max_size=16), st.text(max_size=16), st.integers(0, 2**31), times, times)
def test_reply_round_trip(output: Any, version: str, worker: str, units: int, queue: float, run: float) -> None:
    got = decode_reply(encode_reply(Reply(output, None, version, worker, units, queue, run)))
    assert (got.output, got.error, got.version, got.worker, got.units) == (output, None, version, worker, units)
    assert (got.queue_ms, got.run_ms) == (round(queue, 3), round(run, 3))


@given(st.sampled_from([errors.JobFailed, errors.QueueFull, errors.TextTooLong]), st.text(max_size=30))
def test_an_error_travels_in_a_reply(kind: type[errors.FmplexError], message: str) -> None:
    error = decode_reply(encode_reply(Reply(error=kind(message, field="inputs.3", retry_after=1.5)))).error
    assert type(error) is kind
    assert (error.message, error.field, error.retry_after) == (message, "inputs.3", 1.5)


def test_tuples_arrive_as_lists() -> None:
    assert unpackb(packb((1, (2, "x")))) == [1, [2, "x"]]


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**70, -(2**70), "\ud800", {"deep": [{1}]}, [[[...]]], 1j])
def test_what_cannot_travel_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot travel"):
        packb(value)


def test_a_value_without_end_is_a_type_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="cannot travel"):
        packb(endless)


# --- garbage ----------------------------------------------------------------------------------------------------------


def refused(data: bytes) -> None:
    """Every reader either reads it or refuses it, in the way that its docstring says."""
    with suppress(ValueError):
        unpackb(data)
    with suppress(errors.InvalidInput):
        assert isinstance(decode_request(data).params, dict)
    with suppress(ValueError):
        assert isinstance(decode_reply(data), Reply)
    assert isinstance(read_reply(data), Reply)


@given(st.binary(max_size=200))
def test_garbage_bytes(data: bytes) -> None:
    refused(data)


@given(values)
def test_well_formed_but_meant_for_somebody_else(value: Any) -> None:
    refused(packb(value))


@given(st.lists(values, max_size=9), st.booleans())
def test_the_right_version_and_the_wrong_rest(rest: list[Any], as_error: bool) -> None:
    refused(packb([VERSION, None, {"code": rest, "message": rest}, *rest] if as_error else [VERSION, *rest]))


@given(st.data())
def test_one_wrong_byte(data: st.DataObject) -> None:
    good = data.draw(
        st.sampled_from(
            [
                encode_request(Request({"text": "hi"}, {})),
                encode_reply(Reply(Tensor("int32", (2,), b"8bytes.."))),
                encode_reply(Reply(error=errors.JobFailed("no"))),
            ]
        )
    )
    at = data.draw(st.integers(0, len(good) - 1))
    refused(good[:at] + data.draw(st.binary(max_size=2)) + good[at + 1 :])


@given(tensors(), st.data())
def test_cut_short(tensor: Tensor, data: st.DataObject) -> None:
    whole = encode_request(Request({"inputs_embeds": tensor}, {}))
    with pytest.raises(errors.InvalidInput, match="cannot be read"):
        decode_request(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(errors.InvalidInput, match="cannot be read"):
        decode_request(whole + b"\x00")


@pytest.mark.parametrize(
    "inner",
    [
        ["float32", [1], "text"],
        ["float32", [1], b"12345"],
        ["complex64", [1], b"12345678"],
        ["float32", [-1], b""],
        ["float32", ["1"], b"1234"],
        ["float32", 1, b"1234"],
        ["float32", [1.0], b"1234"],
        [["float32"], [1], b"1234"],
        ["float32", [True], b"1234"],
        ["float32", [2**62, 2**62], b""],
        [],
        None,
        "float32",
        {"dtype": "float32"},
    ],
)
def test_a_tensor_that_is_none(inner: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        unpackb(msgpack.packb(msgpack.ExtType(1, msgpack.packb(inner))))


@pytest.mark.parametrize("code", [0, 2, 127, 128, 254])
def test_unknown_extensions_are_refused(code: int) -> None:
    with pytest.raises(ValueError, match="extension"):
        unpackb(bytes([0xD4, code, 0]))


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1k", b"\x92\x01"])
def test_very_deep_nesting_is_refused(opener: bytes) -> None:
    refused(opener * 100_000 + b"\xc0")


def test_tensors_within_tensors_do_not_crash_the_reader() -> None:
    """A segmentation fault cannot be caught: in a process of its own."""
    code = """
import msgpack
from fmplex_broker.errors import InvalidInput
from fmplex_broker.wire.messages import decode_request
data = b"\\x01"
for _ in range(3000):
    data = msgpack.packb(msgpack.ExtType(1, b"\\x93" + data + b"\\xc0\\xc0"))
try:
    decode_request(data)
except InvalidInput:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_another_version_is_named() -> None:
    with pytest.raises(errors.InvalidInput, match="version 2"):
        decode_request(packb([2, "x", {}]))
    with pytest.raises(ValueError, match="version 2"):
        decode_reply(packb([2, None]))
    assert "version 2" in str(read_reply(packb([2, None])).error)


# --- what jobs share --------------------------------------------------------------------------------------------------


@given(values, params, params)
def test_what_jobs_share_goes_beneath_what_is_their_own(
    value: Any, common: dict[str, Any], own: dict[str, Any]
) -> None:
    parts = (Part.of("params", common), Part.of("input", value))
    payload = SharedPayload(encode_request(Request(None, own)), parts)
    assert decode_request(payload) == Request(value, common | own)


@given(values, params)
def test_an_input_of_its_own_stays(value: Any, common: dict[str, Any]) -> None:
    payload = SharedPayload(encode_request(Request(value, {})), (Part.of("params", common),))
    assert decode_request(payload) == Request(value, common)


def test_a_part_is_decoded_once() -> None:
    part = Part.of("input", ["a long text"] * 100)
    payloads = [SharedPayload(encode_request(Request(None, {"seed": n})), (part,)) for n in range(3)]
    assert len({id(decode_request(payload).input) for payload in payloads}) == 1


@given(st.binary(max_size=50) | values.map(packb), st.booleans())
def test_parts_that_are_none_are_refused(data: bytes, alone: bool) -> None:
    own = b"" if alone else encode_request(Request(None, {}))
    with suppress(errors.InvalidInput):
        assert isinstance(decode_request(SharedPayload(own, (Part(data),))).params, dict)


@given(st.dictionaries(st.sampled_from(["params", "input"]), values))
def test_parts_with_something_else_in_them_are_refused(value: dict[str, Any]) -> None:
    with suppress(errors.InvalidInput):
        assert isinstance(
            decode_request(SharedPayload(encode_request(Request(1, {})), (Part(packb(value)),))).params, dict
        )
