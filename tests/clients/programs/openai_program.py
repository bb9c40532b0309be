"""The `openai` package: what it raises, which is what programs react to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

HI: list[Any] = [{"role": "user", "content": "the cat sat"}]


@pytest.fixture(scope="module")
def ai(url: str, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=90) as client:
        yield client


class Card(BaseModel):
    ok: bool


def test_chats_and_streams(ai: openai.OpenAI) -> None:
    whole = ai.chat.completions.create(model="long", messages=HI, temperature=0)
    parts = ai.chat.completions.create(model="long", messages=HI, temperature=0, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content


def test_parsed_answers(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.parse(model="long", messages=HI, response_format=Card, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Card)


@pytest.mark.parametrize("stream", [False, True])
def test_overflow(ai: openai.OpenAI, too_long: str, stream: bool) -> None:
    calls = [
        lambda: ai.chat.completions.create(
            model="short", messages=[{"role": "user", "content": too_long}], stream=stream
        ),
        lambda: ai.chat.completions.create(model="short", messages=HI, max_tokens=5000, stream=stream),
        lambda: ai.completions.create(model="short", prompt=too_long, stream=stream),
        lambda: ai.completions.create(model="short", prompt=too_long * 1000, stream=stream),
        lambda: ai.embeddings.create(model="short-vectors", input=["fine", too_long]),
    ]
    params = []
    for call in calls:
        with pytest.raises(openai.BadRequestError, match="This model's maximum context length is") as caught:
            call()
        assert (caught.value.status_code, caught.value.code) == (400, "context_length_exceeded")
        assert caught.value.type == "invalid_request_error"
        params.append(caught.value.param)
    assert params == ["messages", "max_tokens", "prompt.0", "prompt.0", "input.1"]


def test_what_is_wrong_is_named(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        ai.chat.completions.create(model="long", messages=HI, temperature=-1)
    assert (wrong.value.param, wrong.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError) as unknown:
        ai.chat.completions.create(model="nobody", messages=HI)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("nobody")
    with pytest.raises(openai.AuthenticationError) as stranger:
        ai.with_options(api_key="wrong").chat.completions.create(model="long", messages=HI)
    assert stranger.value.code == "invalid_api_key"


def test_a_rate_is_a_rate_limit(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        [ai.chat.completions.create(model="rationed", messages=HI) for _ in range(2)]
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) >= 1
