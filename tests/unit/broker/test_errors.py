"""Errors: every class survives the wire, and unknown ones never crash who reads them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker import errors
from fmplex_broker.errors import MAX_FIELD, MAX_MESSAGE, FmplexError, from_wire
from fmplex_broker.wire.messages import packb, unpackb
from tests.unit.broker.strategies import values


def tree(root: type[FmplexError] = FmplexError) -> list[type[FmplexError]]:
    """List the kinds of errors of the broker package; others define some of their own."""
    children = [kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return [root, *(kind for child in children for kind in tree(child))]


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.code)
@pytest.mark.parametrize("more", [{}, {"field": "inputs.0"}, {"retry_after": 2.5}, {"field": "x", "retry_after": 0}])
def test_wire_round_trip(kind: type[FmplexError], more: dict[str, Any]) -> None:
    sent = kind("what went wrong", **more)
    wire = sent.to_wire()
    assert wire == {"code": kind.code, "message": "what went wrong", **more}
    got = from_wire(unpackb(packb(wire)))
    assert type(got) is kind
    assert (got.message, str(got), got.field, got.retry_after) == (
        "what went wrong",
        "what went wrong",
        more.get("field"),
        more.get("retry_after"),
    )


def test_codes_are_unique_and_the_tree_at_the_top_is_complete() -> None:
    codes = [kind.code for kind in tree()]
    assert len(set(codes)) == len(codes)
    for kind in tree():
        assert kind.__name__ in (errors.__doc__ or "")
        assert 400 <= kind.status < 600


@pytest.mark.parametrize(
    ("kind", "parent", "status"),
    [
        (errors.TextTooLong, errors.InvalidInput, 422),
        (errors.PackageRejected, errors.InvalidInput, 422),
        (errors.UnknownVfm, FmplexError, 404),
        (errors.Conflict, FmplexError, 409),
        (errors.TooLarge, FmplexError, 413),
        (errors.QueueFull, errors.Busy, 429),
        (errors.RateLimited, errors.Busy, 429),
        (errors.Cancelled, FmplexError, 499),
        (errors.Poisoned, errors.JobFailed, 500),
        (errors.NonFiniteOutput, errors.JobFailed, 500),
        (errors.StreamRestarted, FmplexError, 500),
        (errors.BrokerUnavailable, errors.Unavailable, 503),
        (errors.BrokerMisconfigured, errors.BrokerUnavailable, 503),
        (errors.BrokerFault, FmplexError, 500),
        (errors.VfmClosed, errors.Unavailable, 503),
        (errors.NoWorker, errors.Unavailable, 503),
        (errors.DeadlineExceeded, FmplexError, 504),
        (errors.Unauthorized, FmplexError, 401),
        (errors.Forbidden, FmplexError, 403),
    ],
)
def test_family_and_http_status(kind: type[FmplexError], parent: type[FmplexError], status: int) -> None:
    assert issubclass(kind, parent)
    assert kind.status == status


def test_an_unknown_code_becomes_the_base_class() -> None:
    got = from_wire({"code": "from_the_future", "message": "hello", "field": "f"})
    assert type(got) is FmplexError
    assert (got.message, got.field) == ("hello", "f")


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.code)
def test_no_error_is_longer_than_a_screen(kind: type[FmplexError]) -> None:
    """Whatever it quotes: what is wrong comes first, what to do last, and both stay."""
    error = kind("t330000 is unknown: " + "x" * 4_500_000 + "; save it again", field="f" * 100_000)
    assert len(error.message) == len(str(error)) == MAX_MESSAGE
    assert error.message.startswith("t330000 is unknown: xxx")
    assert error.message.endswith("xxx; save it again")
    assert "(4500035 characters)" in error.message
    assert error.field == "f" * MAX_FIELD
    assert len(packb(error.to_wire())) < MAX_MESSAGE + MAX_FIELD + 100
    again = from_wire({"code": kind.code, "message": "x" * 9999, "field": "f" * 9999})
    assert (len(again.message), len(again.field or "")) == (MAX_MESSAGE, MAX_FIELD)


@given(st.text(st.characters(), max_size=30), st.text(st.characters(categories=["Cs", "Lu"]), max_size=30))
def test_what_is_no_unicode_can_travel_all_the_same(message: str, field: str) -> None:
    sent = FmplexError(message, field=field)
    got = from_wire(unpackb(packb(sent.to_wire())))
    assert (got.message, got.field) == (sent.message, sent.field)
    assert "\ud800" not in sent.message


@given(st.dictionaries(st.sampled_from(["code", "message", "field", "retry_after", "else"]), values))
def test_whatever_comes_it_is_an_error(wire: dict[str, Any]) -> None:
    got = from_wire(wire)
    assert isinstance(got, FmplexError)
    assert isinstance(got.message, str)
