"""Admission of what generates: prompts, parameters, and seeds that are the same when a call is repeated."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.admission.requests import MAX_SCHEMA_BYTES, admit
from fmplex_broker.errors import FmplexError, InvalidInput, TooLarge
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.sampling import SAMPLING, GenerationParams
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import Limits, VfmSpec
from fmplex_broker.wire.messages import Request, decode_request
from fmplex_broker.wire.tensors import Tensor
from tests.unit.broker.strategies import values

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0}


def vfm(name: str = "v", max_tokens: int = 256, **limits: Any) -> VfmSpec:
    return VfmSpec(name=name, backbone="m", head=Generation(max_tokens=max_tokens), limits=Limits(**limits))


def let_in(inputs: list[Any], params: dict[str, Any] | None = None, **more: Any) -> list[Request]:
    return [decode_request(payload) for payload, _ in admit(vfm(), inputs, params, **more)]


def refused(inputs: Any, params: Any = None, **limits: Any) -> FmplexError:
    with pytest.raises(FmplexError) as caught:
        admit(vfm(**limits), inputs, params)
    return caught.value


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "Once upon",
        " ",
        "\n",
        {"text": "Once upon"},
        {"text": " "},
        {"input_ids": [1, 2, 3]},
        {"input_ids": Tensor("int64", (2,), bytes(16))},
        {"messages": CHAT},
        {"messages": [{"role": "tool", "content": ""}]},
        {"messages": [{"role": "a role of its own", "content": "x"}] * 100},
    ],
)
def test_let_in_and_read_by_the_worker_as_it_was_sent(value: Any) -> None:
    assert let_in([value, value], GREEDY) == [Request(value, GREEDY)] * 2


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("", ""),
        (None, ""),
        (CHAT, ""),
        ({}, ""),
        ({"text": "x", "messages": CHAT}, ""),
        ({"text": "x", "input_ids": [1]}, ""),
        ({"text": ""}, ".text"),
        ({"text": "x\ud800"}, ".text"),
        ({"text": 5}, ".text"),
        ({"input_ids": []}, ".input_ids"),
        ({"input_ids": [-1]}, ".input_ids"),
        ({"inputs_embeds": Tensor("float32", (1, 1), bytes(4))}, ".inputs_embeds"),
        ({"text": "a", "text_pair": "b"}, ".text_pair"),
        ({"message": CHAT}, ".message"),
        ({"messages": []}, ".messages"),
        ({"messages": "Hello"}, ".messages"),
        ({"messages": tuple(CHAT)}, ".messages"),
        ({"messages": {"role": "user", "content": "x"}}, ".messages"),
        ({"messages": [*CHAT, "Hello"]}, ".messages.2"),
        ({"messages": [*CHAT, {}]}, ".messages.2.content"),
        ({"messages": [{"role": "user"}]}, ".messages.0.content"),
        ({"messages": [{"content": "x"}]}, ".messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, ".messages.0.name"),
        ({"messages": [{"role": "user", "content": "x", 7: "Ann"}]}, ".messages.0.7"),
        ({"messages": [{"role": "user", "content": None}]}, ".messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, ".messages.0.content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, ".messages.0.content"),
        ({"messages": [{"role": "", "content": "x"}]}, ".messages.0.role"),
        ({"messages": [{"role": "r" * 65, "content": "x"}]}, ".messages.0.role"),
        ({"messages": [{"role": "\ud800", "content": "x"}]}, ".messages.0.role"),
        ({"messages": [{"role": 7, "content": "x"}]}, ".messages.0.role"),
    ],
)
def test_what_is_no_prompt_is_named(value: Any, field: str) -> None:
    error = refused(["fine", value])
    assert (type(error), error.field) == (InvalidInput, f"inputs.1{field}")


def test_messages_are_for_what_generates() -> None:
    spec = VfmSpec.model_validate({"name": "v", "backbone": "m", "head": {"kind": "embedding"}})
    with pytest.raises(InvalidInput) as caught:
        admit(spec, [{"messages": CHAT}])
    assert caught.value.field == "inputs.0.messages"


def test_the_byte_limit_counts_what_is_put_around_messages_too() -> None:
    assert type(refused(["x" * 101], max_input_bytes=100)) is TooLarge
    assert type(refused([{"messages": [{"role": "user", "content": "x" * 97}]}], max_input_bytes=100)) is TooLarge
    error = refused(["x", {"messages": [{"role": "u", "content": ""}] * 100_000}])
    assert (type(error), error.field) == (TooLarge, "inputs.1")


def test_units_are_those_of_the_prompt_and_of_the_text_to_come() -> None:
    def units(value: Any, params: dict[str, Any] | None = None) -> int:
        return admit(vfm(max_tokens=30), [value], params)[0][1]

    assert units("x" * 400) == 100 + 30
    assert units("x" * 400, {"max_tokens": 7}) == 100 + 7
    assert units("x", {"max_tokens": 1}) == 1 + 1
    assert units({"messages": [{"role": "user", "content": "x" * 380}]}) == 100 + 30


# --- parameters -------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": -1.0,
    "frequency_penalty": 0.5,
    "seed": 7,
    "stop": ["\n", "END"],
    "stop_token_ids": [2],
    "ignore_eos": True,
    "logprobs": 3,
    "stream": True,
    "min_tokens": 2,
    "skip_special_tokens": False,
    "add_special_tokens": False,
    "continue_final_message": True,
    "add_generation_prompt": False,
    "chat_template_kwargs": {"enable_thinking": False, "names": ["a", None]},
}
DEFAULTS: dict[str, Any] = {
    "max_tokens": None,
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "seed": None,
    "stop": [],
    "stop_token_ids": [],
    "ignore_eos": False,
    "logprobs": None,
    "schema": None,
    "stream": False,
    "min_tokens": 0,
    "skip_special_tokens": True,
    "add_special_tokens": None,
    "continue_final_message": False,
    "add_generation_prompt": None,
    "chat_template_kwargs": {},
}


def test_parameters_travel_and_are_read_as_they_were_sent() -> None:
    [request] = let_in(["x"], EVERYTHING)
    assert request.params == EVERYTHING
    assert parse(GenerationParams, request.params) == parse(GenerationParams, EVERYTHING)
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2.5, None]}}}
    assert let_in(["x"], {"schema": schema, **GREEDY})[0].params == {"schema": schema, "temperature": 0}


def test_defaults_do_not_travel_but_where_the_model_may_have_others() -> None:
    assert DEFAULTS.keys() == EVERYTHING.keys() | {"schema"}
    assert set(let_in(["x"])[0].params) == {"seed"}
    said = {name: DEFAULTS[name] for name in SAMPLING}
    assert let_in(["x"], {**DEFAULTS, "seed": 0, "logprobs": 0})[0].params == {"seed": 0, "logprobs": 0, **said}


@pytest.mark.parametrize("stop", ["", [""], [], ["", "END", ""], "END"])
def test_empty_stops_are_none(stop: Any) -> None:
    wanted = ["END"] if "END" in stop else None
    assert let_in(["x"], {"stop": stop, **GREEDY})[0].params.get("stop") == wanted


def test_minus_one_is_no_top_k() -> None:
    assert let_in(["x"], {"top_k": -1, **GREEDY})[0].params == {"top_k": 0, "temperature": 0}


def test_no_fewer_tokens_than_at_most() -> None:
    for most in ({"max_tokens": 5}, {}):  # of this vFM: 256
        error = refused(["x"], {"min_tokens": 257, **most})
        assert (error.field, error.code) == ("min_tokens", "invalid_input")
    let_in(["x"], {"min_tokens": 256})


def test_variables_of_a_template_are_json_and_not_its_own_parameters() -> None:
    for name in ("messages", "tools", "chat_template", "add_generation_prompt"):
        error = refused(["x"], {"chat_template_kwargs": {name: "x"}})
        assert error.field == "chat_template_kwargs"
        assert name in error.message
    assert refused(["x"], {"chat_template_kwargs": {"a": {1, 2}}}).field == "chat_template_kwargs"
    assert refused(["x"], {"chat_template_kwargs": {"a": "x" * MAX_SCHEMA_BYTES}}).code == "too_large"


def test_a_message_may_have_what_was_thought_before() -> None:
    messages = [{"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}]
    assert let_in([{"messages": messages}])[0].input == {"messages": messages}
    messages[0]["reasoning_content"] = 5  # type: ignore[assignment]
    assert refused([{"messages": messages}]).field == "inputs.0.messages.0.reasoning_content"


def test_one_stop_string_need_be_no_list() -> None:
    assert let_in(["x"], {"stop": "END", **GREEDY})[0].params["stop"] == ["END"]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"tempersture": 1}, "tempersture"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2_000_000}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"top_k": 2**63}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63)}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["x", "y" * 257]}, "stop.1"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["\ud800"]}, "stop.0"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids.0"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"schema": "object"}, "schema"),
        ({"schema": {"type": "object"}, "ignore_eos": True}, "schema"),
        ({"stream": "perhaps"}, "stream"),
        ([1], "(whole)"),
    ],
)
def test_parameters_out_of_bounds_are_named(params: Any, field: str) -> None:
    error = refused(["x"], params)
    assert (type(error), error.field) == (InvalidInput, field)


def test_a_parameter_of_other_vfms_is_told_apart_from_a_misspelt_one() -> None:
    assert "means nothing to 'v', which is a generation vFM" in refused(["x"], {"truncate": True}).message
    assert "spelling" in refused(["x"], {"truncat": True}).message


# --- schemas ----------------------------------------------------------------------------------------------------------


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"a": schema}
    return schema


@pytest.mark.parametrize(
    "inner", [b"bytes", {1, 2}, float("nan"), 2**70, "\ud800", Tensor("int32", (1,), bytes(4)), object(), deep(10_000)]
)
def test_a_schema_is_json(inner: Any) -> None:
    error = refused(["x"], {"schema": {"enum": [inner]}})
    assert (type(error), error.field) == (InvalidInput, "schema")


def test_an_endless_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    assert refused(["x"], {"schema": schema}).field == "schema"


def test_python_ways_of_saying_json_are_understood() -> None:
    [request] = let_in(["x"], {"schema": {"enum": ("a", 1), "map": {1: True}}})
    assert request.params["schema"] == {"enum": ["a", 1], "map": {"1": True}}


def test_a_schema_is_no_load() -> None:
    """It travels with every input."""
    error = refused(["x"], {"schema": {"enum": ["x" * MAX_SCHEMA_BYTES]}})
    assert (type(error), error.field) == (TooLarge, "schema")


@given(values)
def test_whatever_schema_comes_is_let_in_as_json_or_refused(value: Any) -> None:
    field, schema = "", {}
    try:
        [request] = let_in(["x"], {"schema": {"const": value}})
        schema = request.params["schema"]
    except (InvalidInput, TooLarge) as e:
        field = e.field or ""
    assert field == "schema" or json.loads(json.dumps(schema)) == schema


# --- seeds ------------------------------------------------------------------------------------------------------------


def seeds(inputs: int, params: dict[str, Any] | None = None, **more: Any) -> list[int]:
    return [request.params["seed"] for request in let_in(["x"] * inputs, params, **more)]


def test_a_repeated_call_gives_the_same_payloads() -> None:
    assert admit(vfm(), ["x", "y"], call="k") == admit(vfm(), ["x", "y"], call="k")


@given(st.text(max_size=10), st.text(max_size=10))
def test_every_input_of_every_call_gets_a_seed_of_its_own(one: str, two: str) -> None:
    drawn = seeds(5, call=one) + seeds(5, call=two)
    assert len(set(drawn)) == (10 if one != two else 5)
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_of_two_vfms_too() -> None:
    payloads = [admit(vfm(name), ["x"], call="k")[0][0] for name in "ab"]
    assert len({decode_request(p).params["seed"] for p in payloads}) == 2


def test_a_seed_that_was_sent_is_that_of_every_input() -> None:
    for seed in (7, 0, -1, 2**63 - 1):
        assert seeds(3, {"seed": seed}, call="k") == [seed] * 3


def test_without_chance_there_is_no_seed_unless_it_was_sent() -> None:
    assert let_in(["x"], GREEDY, call="k")[0].params == GREEDY
    assert let_in(["x"], {"seed": 3, **GREEDY})[0].params == {"seed": 3, **GREEDY}


def test_drawn_seeds_stay_what_they_were() -> None:
    """Written down: a call that is repeated through another version of the gateway is the same call."""
    assert seeds(2, call="k") == [2676868024892658936, 1223746182706765841]


# --- several texts of a prompt ----------------------------------------------------------------------------------------

_MOST = 2**63 - 1


def test_the_texts_of_an_input_stand_next_to_each_other_and_count_up_from_the_seed() -> None:
    got = let_in(["x", "y"], {"seed": 7}, n=3)
    assert [(request.input, request.params["seed"]) for request in got] == [(x, 7 + k) for x in "xy" for k in range(3)]


@given(seed=st.one_of(st.integers(-_MOST, _MOST), st.integers(_MOST - 130, _MOST)), n=st.integers(2, 128))
def test_every_seed_may_be_sent_with_n_and_its_texts_differ(seed: int, n: int) -> None:
    got = [request.params["seed"] for request in let_in(["x"], {"seed": seed}, n=n)]
    assert got[0] == seed
    assert len(set(got)) == n
    assert all(parse(GenerationParams, {"seed": s}) for s in got)


def test_without_a_seed_every_text_of_every_input_has_its_own() -> None:
    drawn = seeds(4, call="k", n=3)
    assert len(set(drawn)) == 12


def test_each_text_is_priced_like_any_other() -> None:
    [(_, alone)] = admit(vfm(), ["x"])
    assert [units for _, units in admit(vfm(), ["x"], n=4)] == [alone] * 4


def test_more_texts_than_the_queue_holds_are_refused_at_once() -> None:
    assert len(admit(vfm(max_pending=10), ["a", "b"], n=5)) == 10
    with pytest.raises(TooLarge, match="12 texts in one call, at most 10") as caught:
        admit(vfm(max_pending=10), ["a", "b"], n=6)
    assert caught.value.field == "n"
