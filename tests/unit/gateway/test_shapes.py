"""Texts as OpenAI's objects."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion as OpenAICompletion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fmplex_broker.wire.streaming import Delta
from fmplex_gateway.generation.shapes import ChatShape, CompletionShape, envelope, usage

HALF = {"id": 6, "token": " �", "logprob": float("-inf"), "bytes": [0x20, 0xE2, 0x82]}
TOLD = [
    {"id": 5, "token": "né", "logprob": -0.5, "at": 0, "top": [{"id": 5, "token": "né", "logprob": -0.5}]},
    {**HALF, "at": 2, "top": [{"id": 7, "token": "x", "logprob": -1.0}]},
]


def output(**more: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": 10, "completion_tokens": 3, "cached_tokens": 8}
    return {"text": "né!", "finish_reason": "stop", **counts, **more}


def test_a_chat_is_what_the_openai_package_expects() -> None:
    around = envelope(ChatShape(), "poet", "v1", part=False)
    whole = around | {"choices": [ChatShape().choice(0, output(logprobs=TOLD))], "usage": usage([output()], 1)}
    chat = ChatCompletion.model_validate(whole)
    assert chat.id.startswith("chatcmpl-")
    assert (chat.model, chat.system_fingerprint) == ("poet", "v1")
    assert (chat.choices[0].message.role, chat.choices[0].message.content) == ("assistant", "né!")
    told = chat.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    first, second = told.content
    assert (first.token, first.logprob, first.bytes) == ("né", -0.5, [110, 195, 169])
    assert first.top_logprobs[0].token == "né"
    assert (second.bytes, second.logprob) == ([0x20, 0xE2, 0x82], -9999.0), "JSON has no infinity"


def test_a_prompt_counts_once_however_many_texts_go_on_from_it() -> None:
    assert usage([output(), output(), output(), output()], 2) == {
        "prompt_tokens": 20,
        "completion_tokens": 12,
        "total_tokens": 32,
        "prompt_tokens_details": {"cached_tokens": 16},
    }


def test_parts_of_a_chat_begin_with_the_role_and_end_with_the_reason() -> None:
    shape, around = ChatShape(), envelope(ChatShape(), "poet", "v1", part=True)
    choices = [*shape.opening(1), shape.part(1, Delta(0, "né", 0, 1, TOLD[:1])), shape.closing(1, "length")]
    parts = [ChatCompletionChunk.model_validate(around | {"choices": [choice]}) for choice in choices]
    assert [part.choices[0].index for part in parts] == [1, 1, 1]
    assert [part.choices[0].delta.role for part in parts] == ["assistant", None, None]
    assert [part.choices[0].delta.content for part in parts] == ["", "né", None]
    assert [part.choices[0].finish_reason for part in parts] == [None, None, "length"]
    assert len({part.id for part in parts}) == 1


def test_logprobs_of_a_completion_say_where_in_the_text_they_are() -> None:
    shape = CompletionShape()
    whole = envelope(shape, "poet", "v1", part=False) | {"choices": [shape.choice(0, output(logprobs=TOLD))]}
    told = OpenAICompletion.model_validate(whole).choices[0].logprobs
    assert told is not None
    half = "bytes: \\xe2\\x82"
    assert (told.tokens, told.text_offset, told.token_logprobs) == (["né", half], [0, 2], [-0.5, -9999.0])
    assert told.top_logprobs == [{"né": -0.5}, {"x": -1.0, half: -9999.0}], "the chosen one is always there"
    held_back = shape.part(0, Delta(0, "", 1, 1, TOLD[1:]))
    assert held_back["logprobs"]["text_offset"] == [2], "where the token is, not where the text has come to"


def test_tokens_that_read_alike_are_told_apart() -> None:
    top = [
        {"id": 1, "token": "A", "logprob": -0.1},
        {"id": 2, "token": "A", "logprob": -0.2},  # the byte 0x41
        {"id": 3, "token": "�", "logprob": -0.3},  # a character that was written
        {"id": 4, "token": "�", "logprob": -0.4, "bytes": [0xE2]},
        {"id": 5, "token": "\\xe2", "logprob": -0.5},
        {"id": 6, "token": "�", "logprob": -0.6, "bytes": list(b"\\xe2\xe2")},
    ]
    entry = {**top[0], "at": 0, "top": top}
    [best] = CompletionShape().choice(0, output(logprobs=[entry]))["logprobs"]["top_logprobs"]
    assert best == {
        "A": -0.1, "bytes:A": -0.2, "�": -0.3, "bytes:\\xe2": -0.4, "\\xe2": -0.5, "bytes:\\x5cxe2\\xe2": -0.6,
    }  # fmt: skip


@pytest.mark.parametrize("shape", [ChatShape(), CompletionShape()])
def test_logprobs_that_were_not_asked_for_are_null(shape: ChatShape | CompletionShape) -> None:
    assert shape.choice(0, output())["logprobs"] is None
    assert shape.part(0, Delta(0, "x", 0, 1))["logprobs"] is None
