"""`litellm`: its own errors, and fall-backs to a model that takes more."""

from __future__ import annotations

from typing import Any

import litellm
import pytest

HI = [{"role": "user", "content": "the cat sat"}]


def ask(model: str, url: str, key: str, text: str | None = None, **more: Any) -> Any:
    messages = HI if text is None else [{"role": "user", "content": text}]
    return litellm.completion(
        model=f"openai/{model}", api_base=url, api_key=key, messages=messages, temperature=0, max_retries=0, **more
    )


def content(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def test_a_chat_is_answered_and_streamed(url: str, key: str) -> None:
    whole = content(ask("long", url, key))
    assert whole
    assert "".join(part.choices[0].delta.content or "" for part in ask("long", url, key, stream=True)) == whole


@pytest.mark.parametrize("times", [1, 1000])
def test_a_text_that_is_too_long_exceeds_the_window(url: str, key: str, too_long: str, times: int) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        ask("short", url, key, too_long * times)


def test_a_text_that_is_too_long_goes_to_the_model_that_takes_it(url: str, key: str, too_long: str) -> None:
    wanted = content(ask("long", url, key, too_long))
    given = ask("short", url, key, too_long, context_window_fallback_dict={"openai/short": "openai/long"})
    assert content(given) == wanted
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": url, "api_key": key}}
        for name in ("short", "long")
    ]
    router = litellm.Router(model_list=models, context_window_fallbacks=[{"short": ["long"]}], num_retries=0)
    told: Any = [{"role": "user", "content": too_long}]
    assert content(router.completion(model="short", messages=told, temperature=0)) == wanted


def test_errors_are_of_their_kinds(url: str, key: str) -> None:
    with pytest.raises(litellm.NotFoundError):
        ask("nobody", url, key)
    with pytest.raises(litellm.AuthenticationError):
        ask("long", url, "wrong")
    with pytest.raises(litellm.BadRequestError) as caught:
        ask("long", url, key, top_p=7)
    assert not isinstance(caught.value, litellm.ContextWindowExceededError)
    with pytest.raises(litellm.RateLimitError):
        [ask("rationed", url, key) for _ in range(2)]


def test_embeddings(url: str, key: str, too_long: str) -> None:
    def embed(model: str, *texts: str) -> Any:
        return litellm.embedding(model=f"openai/{model}", api_base=url, api_key=key, input=list(texts), max_retries=0)

    assert [len(row["embedding"]) for row in embed("vectors", "the cat", "a dog").data] == [32, 32]
    with pytest.raises(litellm.ContextWindowExceededError):
        embed("short-vectors", too_long)
