"""`instructor`: answers as objects, by JSON schemas."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
import pytest
from pydantic import BaseModel

ASKED: list[Any] = [{"role": "user", "content": "Where is my parcel?!"}]


class Card(BaseModel):
    urgent: bool
    topic: Literal["parcel", "invoice", "other"]


@pytest.fixture(scope="module")
def client(url: str, key: str) -> instructor.Instructor:
    ai = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=90)
    return instructor.from_openai(ai, mode=instructor.Mode.JSON_SCHEMA)


def test_an_answer_is_an_object(client: instructor.Instructor) -> None:
    card = client.chat.completions.create(
        model="long", messages=ASKED, response_model=Card, max_tokens=400, max_retries=0
    )
    assert isinstance(card, Card)


def test_an_object_comes_in_parts(client: instructor.Instructor) -> None:
    for _ in range(5):  # whoever reads late on a busy machine gets what has come meanwhile as one
        *parts, card = client.chat.completions.create_partial(
            model="long", messages=ASKED, response_model=Card, max_tokens=400
        )
        assert Card.model_validate(card.model_dump())
        if parts:
            break
    assert parts
