"""`instructor`: answers as objects, by JSON schemas."""

from __future__ import annotations

from typing import Literal

import instructor
import openai
import pytest
from pydantic import BaseModel


class Card(BaseModel):
    urgent: bool
    topic: Literal["parcel", "invoice", "other"]


@pytest.mark.parametrize("mode", [instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON])
def test_an_answer_is_an_object(url: str, key: str, mode: instructor.Mode) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=90), mode=mode)
    card = client.chat.completions.create(
        model="long", messages=[{"role": "user", "content": "Where is my parcel?!"}], response_model=Card,
        max_tokens=400, max_retries=0,
    )  # fmt: skip
    assert isinstance(card, Card)
