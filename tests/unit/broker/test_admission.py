"""Admission: what is refused before the queue, and that the refusal names the field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.admission.requests import MAX_INPUTS, admit, check_bytes, check_key, timeout_ms
from fmplex_broker.errors import FmplexError, InvalidInput, TooLarge
from fmplex_broker.specs.heads import Head
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import Limits, Slo, VfmSpec
from fmplex_broker.streams.producer import stored_bytes
from fmplex_broker.wire.messages import SharedPayload, decode_request, packb, split
from fmplex_broker.wire.tensors import Tensor
from tests.unit.broker.strategies import values

HEADS: dict[str, dict[str, Any]] = {
    "embedding": {},
    "classification": {"labels": ["no", "yes"]},
    "regression": {},
    "tagging": {"labels": ["name"]},
    "similarity": {},
    "ranking": {},
    "features": {},
    "generation": {},
}
PAIR = {"text": "a", "text_pair": "b"}


def vfm(kind: str = "embedding", **limits: Any) -> VfmSpec:
    head = parse(Head, {"kind": kind, **HEADS[kind]})  # type: ignore[arg-type]
    return VfmSpec(name="v", backbone="m", head=head, limits=Limits(**limits))


def floats(*shape: int) -> Tensor:
    size = 4
    for n in shape:
        size *= n
    return Tensor("float32", shape, bytes(size))


def ids(*shape: int, dtype: str = "int64") -> Tensor:
    size = 8 if dtype.endswith("64") else 4
    for n in shape:
        size *= n
    return Tensor(dtype, shape, bytes(size))


def refused(inputs: Any, params: Any = None, kind: str = "embedding", **limits: Any) -> FmplexError:
    with pytest.raises(FmplexError) as caught:
        admit(vfm(kind, **limits), inputs, params)
    assert caught.value.message
    return caught.value


# --- what is let in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((kind, "text") for kind in HEADS if kind not in ("similarity", "ranking")),
        *((kind, {"text": "text"}) for kind in HEADS if kind not in ("similarity", "ranking")),
        *((kind, PAIR) for kind in ("similarity", "ranking", "classification", "regression")),
        ("embedding", {"input_ids": [1, 2, 3]}),
        ("embedding", {"input_ids": ids(3)}),
        ("embedding", {"input_ids": ids(3, dtype="int32")}),
        ("features", {"inputs_embeds": floats(3, 4)}),
    ],
)
def test_let_in_and_read_by_the_worker_as_it_was_sent(kind: str, value: Any) -> None:
    [(payload, units)] = admit(vfm(kind), [value])
    assert decode_request(payload).input == value
    assert units >= 1


def test_one_payload_an_input_in_order() -> None:
    texts = [f"text {n}" for n in range(MAX_INPUTS)]
    assert [decode_request(p).input for p, _ in admit(vfm(), texts)] == texts


def test_units_grow_with_the_text() -> None:
    [(_, small), (_, large)] = admit(vfm(), ["word", "word " * 1000])
    assert (small, large) == (1, 1250)


def test_parameters_travel_without_defaults() -> None:
    [(payload, _)] = admit(vfm(), ["x"], {"truncate": True, "dimensions": 8})
    assert decode_request(payload).params == {"truncate": True, "dimensions": 8}
    [(payload, _)] = admit(vfm(), ["x"], {"truncate": None, "dimensions": None})
    assert decode_request(payload).params == {}
    [(payload, _)] = admit(vfm(), ["x"], {"truncate": False})  # the vFM may cut by itself
    assert decode_request(payload).params == {"truncate": False}


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u2003"])
def test_empty_text(text: str) -> None:
    error = refused(["fine", text])
    assert (type(error), error.field) == (InvalidInput, "inputs.1")
    assert refused([{"text": text}]).field == "inputs.0.text"
    assert refused([{"text": "a", "text_pair": text}], kind="ranking").field == "inputs.0.text_pair"


def test_a_megabyte_of_text_is_too_large() -> None:
    error = refused(["fine", "x" * 1_000_000])
    assert (type(error), error.field) == (TooLarge, "inputs.1")
    assert "786432" in error.message


def test_the_limit_counts_bytes_and_both_texts() -> None:
    assert type(refused(["é" * 6], max_input_bytes=10)) is TooLarge
    admit(vfm(max_input_bytes=12), ["é" * 6])
    assert type(refused([{"text": "123456", "text_pair": "123456"}], kind="ranking", max_input_bytes=10)) is TooLarge
    assert type(refused([{"inputs_embeds": floats(10, 10)}], max_input_bytes=399)) is TooLarge
    assert type(refused([{"input_ids": [1] * 10}], max_input_bytes=79)) is TooLarge


def test_too_many_inputs() -> None:
    error = refused(["x"] * 10_000)
    assert (type(error), error.field) == (TooLarge, "inputs")
    assert str(MAX_INPUTS) in error.message


def test_more_inputs_than_the_queue_holds() -> None:
    """Could never be taken as a whole: trying again does not help."""
    error = refused(["x"] * 11, max_pending=10)
    assert (type(error), error.field) == (TooLarge, "inputs")
    assert len(admit(vfm(max_pending=10), ["x"] * 10)) == 10


@pytest.mark.parametrize("inputs", [[], (), "text", {"text": "x"}, None, 5, {"a"}, iter(["x"])])
def test_inputs_must_be_a_list_with_something_in_it(inputs: Any) -> None:
    error = refused(inputs)
    assert (type(error), error.field) == (InvalidInput, "inputs")


@pytest.mark.parametrize("value", [5, 1.5, None, True, b"bytes", ["list"], floats(2, 2)])
def test_wrong_type(value: Any) -> None:
    error = refused(["fine", "fine", value])
    assert (type(error), error.field) == (InvalidInput, "inputs.2")
    error = refused([{"text": value}])
    assert (type(error), error.field) == (InvalidInput, "inputs.0.text")


def test_text_that_is_not_unicode() -> None:
    error = refused(["fine \ud800"])
    assert (type(error), error.field) == (InvalidInput, "inputs.0")
    assert "position 5" in error.message


@pytest.mark.parametrize("key", ["txt", "Text", "labels", "", "text "])
def test_unknown_fields_are_named(key: str) -> None:
    error = refused([{"text": "x", key: 1}])
    assert (type(error), error.field) == (InvalidInput, f"inputs.0.{key}")
    assert "text_pair" in error.message  # and what there is


def test_unknown_fields_of_any_type() -> None:
    assert refused([{"text": "x", 7: 1, None: 2}]).field == "inputs.0.7"


@pytest.mark.parametrize(
    "value",
    [{}, {"text_pair": "x"}, {"text": "a", "input_ids": [1]}, {"input_ids": [1], "inputs_embeds": floats(1, 1)}],
)
def test_exactly_one_form(value: dict[str, Any]) -> None:
    assert refused([value]).field in ("inputs.0", "inputs.0.text_pair")


@pytest.mark.parametrize(
    "tensor",
    [floats(4), floats(1, 2, 3), ids(2, 2), Tensor("float64", (1, 1), bytes(8)), floats(0, 4), [[0.5]], "x", None],
)
def test_inputs_embeds_of_the_wrong_shape(tensor: Any) -> None:
    error = refused([{"inputs_embeds": tensor}])
    assert (type(error), error.field) == (InvalidInput, "inputs.0.inputs_embeds")


@pytest.mark.parametrize(
    "tokens", [ids(2, 2), floats(2), ids(0), [], [1.0], [True], ["1"], [-1], [2**40], (1, 2), "12", None, 5]
)
def test_input_ids_of_the_wrong_shape(tokens: Any) -> None:
    error = refused([{"input_ids": tokens}])
    assert (type(error), error.field) == (InvalidInput, "inputs.0.input_ids")


@pytest.mark.parametrize("kind", ["similarity", "ranking"])
def test_pairs_where_two_texts_are_compared(kind: str) -> None:
    assert "text_pair" in refused(["x"], kind=kind).message
    assert refused([{"text": "x"}], kind=kind).field == "inputs.0.text_pair"
    assert type(refused([{"input_ids": [1]}], kind=kind)) is InvalidInput


@pytest.mark.parametrize("kind", ["embedding", "tagging", "features"])
def test_no_pairs_elsewhere(kind: str) -> None:
    error = refused([PAIR], kind=kind)
    assert (type(error), error.field) == (InvalidInput, "inputs.0.text_pair")
    assert kind in error.message


@pytest.mark.parametrize("value", [{"input_ids": [1]}, {"inputs_embeds": floats(1, 4)}])
def test_tagging_needs_text(value: dict[str, Any]) -> None:
    assert "spans" in refused([value], kind="tagging").message


@pytest.mark.parametrize(
    ("params", "field", "kind"),
    [
        ({"nonsense": 1}, "nonsense", "embedding"),
        ({"dimensions": 0}, "dimensions", "embedding"),
        ({"dimensions": -3}, "dimensions", "embedding"),
        ({"dimensions": "many"}, "dimensions", "embedding"),
        ({"dimensions": 2**70}, "dimensions", "embedding"),
        ({"top_k": 3}, "top_k", "embedding"),
        ({"dimensions": 3}, "dimensions", "classification"),
        ({"top_k": 0}, "top_k", "classification"),
        ({"truncate": "perhaps"}, "truncate", "embedding"),
        ({"temperature": 0}, "temperature", "embedding"),
        ({"schema": {}}, "schema", "classification"),
        ({"truncate": True}, "truncate", "generation"),
        ({"dimensions": 3}, "dimensions", "generation"),
        ({"schema_": {}}, "schema_", "generation"),
        ([1], "(whole)", "embedding"),
        ("truncate", "(whole)", "embedding"),
    ],
)
def test_parameters_are_checked_and_named(params: Any, field: str, kind: str) -> None:
    error = refused(["x"], params, kind)
    assert (type(error), error.field) == (InvalidInput, field)


def test_a_parameter_of_other_kinds_is_refused_in_plain_words() -> None:
    assert refused(["x"], {"top_k": 3}).message.endswith("which is an embedding vFM")
    assert refused(["x"], {"top_k": 3}, kind="ranking").message.endswith("which is a ranking vFM")


def field_of_refusal(inputs: Any, params: Any = None, kind: str = "embedding") -> str | None:
    """None if it was let in, and then as it was sent."""
    try:
        payloads = admit(vfm(kind), inputs, params)
    except (InvalidInput, TooLarge) as e:
        return e.field or ""
    assert [decode_request(p).input for p, _ in payloads] == inputs
    return None


@given(st.lists(values, max_size=3), st.sampled_from(sorted(HEADS)))
def test_whatever_comes_is_let_in_or_refused_with_a_field(inputs: list[Any], kind: str) -> None:
    field = field_of_refusal(inputs, kind=kind)
    assert field is None or field.startswith("inputs")


@given(st.dictionaries(st.text(max_size=10), values, max_size=3))
def test_whatever_parameters_come(params: dict[str, Any]) -> None:
    assert field_of_refusal(["x"], params) != ""


@pytest.mark.parametrize("wanted", [0, -5, 86_400_001, float("nan"), float("inf"), True, "100", [1]])
def test_timeouts_out_of_bounds(wanted: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        timeout_ms(Slo(), wanted)
    assert caught.value.field == "timeout_ms"


def test_timeouts() -> None:
    assert timeout_ms(Slo(deadline_ms=700), None) == 700
    assert [timeout_ms(Slo(), wanted) for wanted in (1, 1500.7, 86_400_000)] == [1, 1500, 86_400_000]


# --- bytes of a call --------------------------------------------------------------------------------------------------

SCHEMA = {"properties": {f"p{n}": {"const": n} for n in range(500)}}


def test_what_a_call_has_in_common_is_shared_by_its_payloads() -> None:
    payloads = [payload for payload, _ in admit(vfm("generation"), ["x", "y", "z"], {"schema": SCHEMA})]
    assert all(isinstance(payload, SharedPayload) for payload in payloads)
    assert len({id(part) for payload in payloads for part in split(payload)[1]}) == 1
    assert [decode_request(payload).input for payload in payloads] == ["x", "y", "z"]
    assert stored_bytes(payloads) < 1.1 * len(packb(SCHEMA)) + 3 * 300


def test_a_call_of_one_job_shares_nothing() -> None:
    [(payload, _)] = admit(vfm("generation"), ["x" * 5000], {"schema": SCHEMA})
    assert isinstance(payload, bytes)


@given(st.lists(st.text(min_size=1, max_size=3000).filter(str.strip), min_size=1, max_size=4), st.integers(1, 4))
def test_shared_or_not_the_jobs_are_the_same(texts: list[str], n: int) -> None:
    spec = vfm("generation")
    for params in ({"temperature": 0}, {"schema": SCHEMA, "temperature": 0.7}, {"temperature": 0.5, "seed": 7}):
        jobs = [decode_request(payload) for payload, _ in admit(spec, texts, params, call="c", n=n)]
        assert [job.input for job in jobs] == [text for text in texts for _ in range(n)]
        seeds = [job.params.pop("seed", None) for job in jobs]
        assert len(set(seeds)) == {0: 1, 0.7: len(jobs), 0.5: n}[params["temperature"]]
        assert all(job.params == {k: v for k, v in params.items() if k != "seed"} for job in jobs)


def test_a_call_over_its_cap_is_refused_before_it_is_encoded() -> None:
    error = refused(["x" * 600] * 2000, max_call_bytes=100_000)
    assert (type(error), error.field) == (TooLarge, "inputs")
    assert "100000 (limits.max_call_bytes)" in error.message
    assert "limits.max_pending_bytes" in refused(["x" * 600] * 2000, max_pending_bytes=100_000).message


def test_the_bytes_of_a_call_are_checked_as_they_are_stored() -> None:
    spec = vfm(max_call_bytes=2_000)
    check_bytes(spec, 2_000)
    with pytest.raises(TooLarge, match="2001 bytes"):
        check_bytes(spec, 2_001)


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513, "\ud800", 7, b"k"])
def test_a_key_that_is_none_or_too_long(key: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_key(key)
    assert caught.value.field == "idempotency_key"


@pytest.mark.parametrize("key", [None, "k", "x" * 1024])
def test_a_key_that_will_do(key: str | None) -> None:
    check_key(key)
