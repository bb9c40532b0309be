"""`langchain-openai`: chats, fall-backs to a model that takes more, structured output, embeddings."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Card(BaseModel):
    """Whether all is well."""

    ok: bool


def chat(model: str, url: str, key: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=url, api_key=key, temperature=0, max_retries=0, **more)


def test_a_chat_is_answered_and_streamed(url: str, key: str) -> None:
    whole = chat("long", url, key).invoke("the cat sat")
    assert whole.content
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] <= 12
    assert "".join(str(part.content) for part in chat("long", url, key).stream("the cat sat")) == whole.content


def test_a_turn_ends_where_the_chat_model_ends_it(url: str, key: str) -> None:
    talker = chat("talker", url, key)
    whole = talker.invoke("what is tea")
    assert whole.content == "leaves in hot water"
    assert whole.response_metadata["finish_reason"] == "stop"
    assert "".join(str(part.content) for part in talker.stream("what is tea")) == whole.content


@pytest.mark.parametrize("kind", [ContextOverflowError, openai.BadRequestError])
def test_a_text_that_is_too_long_goes_to_the_model_that_takes_it(
    url: str, key: str, too_long: str, kind: type[Exception]
) -> None:
    wanted = chat("long", url, key).invoke(too_long).content
    chain: Runnable[Any, Any] = chat("short", url, key).with_fallbacks(
        [chat("long", url, key)], exceptions_to_handle=(kind,)
    )
    assert chain.invoke(too_long).content == wanted
    assert "".join(str(part.content) for part in chain.stream(too_long)) == wanted


async def _ainvoke(chain: Runnable[Any, Any], text: str) -> Any:
    return await chain.ainvoke(text)


def test_other_errors_go_to_nobody_else(url: str, key: str) -> None:
    chain: Runnable[Any, Any] = chat("short", url, key, stop=["x"] * 17).with_fallbacks(
        [chat("long", url, key)], exceptions_to_handle=(ContextOverflowError,)
    )
    with pytest.raises(openai.BadRequestError, match="at most 16"):
        chain.invoke("the cat sat")
    with pytest.raises(openai.NotFoundError):
        chat("nobody", url, key).invoke("the cat sat")


def test_structured_output(url: str, key: str) -> None:
    asking = chat("long", url, key, max_tokens=200).with_structured_output(Card, method="json_schema")
    assert isinstance(asking.invoke("all well?"), Card)


def test_embeddings(url: str, key: str, too_long: str) -> None:
    """Its default sends token ids of OpenAI's vocabulary, and fetches that first; for other models it is to be switched off."""
    model = OpenAIEmbeddings(model="vectors", base_url=url, api_key=key, check_embedding_ctx_length=False)
    one, two = model.embed_documents(["the cat", "a dog"])
    assert len(one) == 32
    assert one != two
    assert model.embed_query("the cat") == pytest.approx(one, abs=1e-5)
    short = OpenAIEmbeddings(model="short-vectors", base_url=url, api_key=key, check_embedding_ctx_length=False)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 200 tokens"):
        short.embed_query(too_long)
