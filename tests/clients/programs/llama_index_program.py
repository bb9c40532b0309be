"""The embeddings of `llama-index`."""

from __future__ import annotations

import openai
import pytest
from llama_index.embeddings.openai import OpenAIEmbedding


def vectors(model: str, url: str, key: str) -> OpenAIEmbedding:
    return OpenAIEmbedding(model_name=model, api_base=url, api_key=key, max_retries=0)


def test_texts_are_embedded_alone_and_together(url: str, key: str) -> None:
    model = vectors("vectors", url, key)
    texts = [f"text {i}" for i in range(25)]  # in calls of its own size
    many = model.get_text_embedding_batch(texts)
    assert [len(vector) for vector in many] == [32] * 25
    assert model.get_text_embedding(texts[7]) == pytest.approx(many[7], abs=1e-5)
    assert model.get_query_embedding(texts[7]) == pytest.approx(many[7], abs=1e-5)


def test_a_text_that_is_too_long_is_refused_as_openai_does(url: str, key: str, too_long: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        vectors("short-vectors", url, key).get_text_embedding(too_long)
    assert caught.value.code == "context_length_exceeded"
