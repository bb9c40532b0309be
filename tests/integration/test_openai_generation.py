"""The `openai` package against vFMs that generate, as a program written for OpenAI would use it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from fmplex import AsyncClient, Client, DeadlineExceeded, InvalidInput, TextTooLong
from fmplex.local import LocalFleet
from tests.support.decoders import generating_fleet
from tests.support.metrics import metric
from tests.support.waiting import wait_until

HI: list[Any] = [{"role": "user", "content": "the cat sat"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
ENDLESS: dict[str, Any] = {"max_tokens": 15_000, "extra_body": {"ignore_eos": True}}
CARD = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "mood": {"enum": ["fine", "so so"]}},
    "required": ["ok", "mood"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with generating_fleet(tmp_path_factory.mktemp("texts")) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def ai(texts: LocalFleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{texts.gateway_url}/v1", api_key="any", max_retries=0, timeout=90) as client:
        yield client


@pytest.fixture(params=["http", "redis"])
async def client(request: pytest.FixtureRequest, texts: LocalFleet) -> AsyncIterator[AsyncClient]:
    """The SDK, both ways to the fleet."""
    async with AsyncClient(texts.gateway_url if request.param == "http" else texts.broker_url, retries=0) as fm:
        yield fm


def idle(fleet: LocalFleet) -> bool:
    """No job is in the worker's hands, and none has keys and values there."""
    return metric(fleet.gateway_url, "fmplex_worker_held_jobs") == 0 == metric(fleet.gateway_url, "fmplex_kv_bytes")


# --- chat --------------------------------------------------------------------------------------------------------------


def test_a_chat_is_answered(ai: openai.OpenAI, texts: LocalFleet) -> None:
    answer = ai.chat.completions.create(model="plain", messages=HI, **GREEDY)
    choice, usage = answer.choices[0], answer.usage
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert (choice.index, choice.message.role) == (0, "assistant")
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert usage is not None
    assert 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    with Client(texts.gateway_url) as client:
        assert answer.system_fingerprint == client.vfms.show("plain").version
        same = client.infer("plain", {"messages": HI}, **GREEDY).output
    assert (same["text"], same["finish_reason"]) == (choice.message.content, choice.finish_reason)
    assert same["completion_tokens"] == usage.completion_tokens


def test_each_vfm_speaks_with_its_own_adapter_and_system_message(ai: openai.OpenAI) -> None:
    def say(model: str, *before: Any) -> str | None:
        return ai.chat.completions.create(model=model, messages=[*before, *HI], **GREEDY).choices[0].message.content

    system = {"role": "system", "content": "You are a poet."}
    assert len({say("plain"), say("pirate"), say("poet")}) == 3
    assert say("poet") == say("poet", system), "its own is put before chats that have none"
    assert say("plain") != say("plain", system)
    developer = {"role": "developer", "content": [{"type": "text", "text": "You are a poet."}]}
    assert say("plain", system) == say("plain", developer)


def test_the_vfm_says_how_long_a_text_is_if_the_call_does_not(ai: openai.OpenAI) -> None:
    body = {"ignore_eos": True}
    usage = ai.chat.completions.create(model="pirate", messages=HI, extra_body=body).usage
    assert usage is not None
    assert usage.completion_tokens == 12
    answer = ai.chat.completions.create(model="pirate", messages=HI, max_completion_tokens=3, extra_body=body)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_streamed_chat_is_the_whole_one_in_parts(ai: openai.OpenAI) -> None:
    whole = ai.chat.completions.create(model="pirate", messages=HI, **GREEDY)
    parts = list(
        ai.chat.completions.create(
            model="pirate", messages=HI, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    *told, last = parts
    assert [part.choices[0].delta.role for part in told] == ["assistant"] + [None] * (len(told) - 1)
    assert len(told) > 3, "as it comes, not all at once"
    assert "".join(part.choices[0].delta.content or "" for part in told) == whole.choices[0].message.content
    assert [p.choices[0].finish_reason for p in told if p.choices[0].finish_reason] == [whole.choices[0].finish_reason]
    assert {(p.id, p.model, p.object, p.system_fingerprint) for p in parts} == {
        (last.id, "pirate", "chat.completion.chunk", whole.system_fingerprint)
    }
    assert (last.choices, all(part.usage is None for part in told)) == ([], True)
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_without_being_asked_a_stream_tells_no_usage(ai: openai.OpenAI) -> None:
    parts = list(ai.chat.completions.create(model="plain", messages=HI, stream=True, **GREEDY))
    assert all(part.choices and part.usage is None for part in parts)


def ascii_part(text: str) -> str:
    """A letter or digit that is not at the beginning of a text."""
    return next(c for c in text[2:] if c.isascii() and c.isalnum() and c not in text[:2])


def test_a_text_ends_before_its_stop(ai: openai.OpenAI) -> None:
    def say(**more: Any) -> Any:
        return ai.chat.completions.create(model="plain", messages=HI, **(GREEDY | {"max_tokens": 80} | more)).choices[0]

    whole = say().message.content
    stop = ascii_part(whole)
    wanted = whole[: whole.index(stop)]
    for given in (stop, ["never seen", stop]):
        cut = say(stop=given)
        assert (cut.message.content, cut.finish_reason) == (wanted, "stop")
    parts = ai.chat.completions.create(
        model="plain", messages=HI, stream=True, stop=stop, **(GREEDY | {"max_tokens": 80})
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted


def test_a_seed_gives_the_same_text_again(ai: openai.OpenAI) -> None:
    def say(seed: int | None) -> str | None:
        answer = ai.chat.completions.create(
            model="poet", messages=HI, seed=seed, max_tokens=24, extra_body={"ignore_eos": True}
        )
        return answer.choices[0].message.content

    assert say(7) == say(7)
    assert len({say(7), say(8), say(None), say(None)}) == 4


def test_n_texts_have_the_seeds_that_follow(ai: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "poet", "messages": HI, "max_tokens": 10, "extra_body": {"ignore_eos": True}}
    three = ai.chat.completions.create(n=3, seed=5, **asked)
    alone = [ai.chat.completions.create(seed=5 + k, **asked) for k in range(3)]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert [c.message.content for c in three.choices] == [a.choices[0].message.content for a in alone]
    assert three.usage is not None
    assert alone[0].usage is not None
    assert (three.usage.prompt_tokens, three.usage.completion_tokens) == (alone[0].usage.prompt_tokens, 30)
    assert len({c.message.content for c in ai.chat.completions.create(n=3, **asked).choices}) == 3
    told = ["", "", ""]
    for part in ai.chat.completions.create(n=3, seed=5, stream=True, **asked):
        told[part.choices[0].index] += part.choices[0].delta.content or ""
    assert told == [c.message.content for c in three.choices]


def test_logprobs_are_told_for_every_token(ai: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "plain", "messages": HI, "logprobs": True, "top_logprobs": 3, **GREEDY}
    whole = ai.chat.completions.create(**asked)
    assert whole.choices[0].logprobs is not None
    assert whole.usage is not None
    told = whole.choices[0].logprobs.content
    assert told is not None
    assert len(told) == whole.usage.completion_tokens
    for token in told:
        ranked = [other.logprob for other in token.top_logprobs]
        assert len(ranked) == 3
        assert ranked == sorted(ranked, reverse=True)
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, ranked[0]), "greedy takes the best"
        assert token.bytes is not None
        assert bytes(token.bytes).decode(errors="replace") == token.token
    streamed = [
        token
        for part in ai.chat.completions.create(stream=True, **asked)
        if part.choices[0].logprobs is not None
        for token in part.choices[0].logprobs.content or []
    ]
    assert [token.token for token in streamed] == [token.token for token in told]


def test_a_json_schema_is_kept(ai: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "card", "strict": True, "schema": CARD}}
    for seed in range(3):
        choice = ai.chat.completions.create(
            model="plain", messages=HI, response_format=wanted, seed=seed, max_tokens=400
        ).choices[0]
        assert choice.finish_reason == "stop", choice.message.content
        card = json.loads(choice.message.content or "")
        assert isinstance(card["ok"], bool)
        assert card["mood"] in ("fine", "so so")
        assert len(card) == 2


def test_any_json_object_may_be_asked_for(ai: openai.OpenAI) -> None:
    choice = ai.chat.completions.create(
        model="plain", messages=HI, response_format={"type": "json_object"}, max_tokens=60, temperature=0.7, seed=1
    ).choices[0]
    assert choice.message.content is not None
    assert choice.message.content.lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_the_beginning_of_a_prompt_is_computed_once(ai: openai.OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "anna has seen paris and the dog has not; " * 12}]

    def cached(model: str) -> int:
        usage = ai.chat.completions.create(model=model, messages=long, **GREEDY).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    assert cached("pirate") == 0
    assert cached("pirate") > 100
    assert cached("poet") == 0, "what one vFM has computed is never another's"


# --- completions -------------------------------------------------------------------------------------------------------


def test_a_prompt_is_a_text_token_ids_or_many_of_them(ai: openai.OpenAI) -> None:
    def complete(prompt: Any) -> list[str]:
        answer = ai.completions.create(model="plain", prompt=prompt, **GREEDY)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        assert answer.id.startswith("cmpl-")
        assert answer.object == "text_completion"
        return [choice.text for choice in answer.choices]

    one, two = complete("the cat")[0], complete("a dog")[0]
    assert complete(["the cat", "a dog"]) == [one, two]
    first, second = complete([5, 6, 7])[0], complete([[8, 9]])[0]
    assert complete([[5, 6, 7], [8, 9]]) == [first, second]


def test_completions_of_many_prompts_come_n_by_n(ai: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "poet", "max_tokens": 8, "seed": 3, "extra_body": {"ignore_eos": True}}
    texts = [c.text for c in ai.completions.create(prompt=["the cat", "a dog"], n=2, **asked).choices]
    assert texts[:2] == [c.text for c in ai.completions.create(prompt="the cat", n=2, **asked).choices]
    assert texts[2:] == [c.text for c in ai.completions.create(prompt="a dog", n=2, **asked).choices]


def test_completions_stream_and_tell_logprobs(ai: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "plain", "prompt": "the cat", "logprobs": 2, **GREEDY}
    whole = ai.completions.create(**asked).choices[0]
    assert whole.logprobs is not None
    assert whole.logprobs.tokens is not None
    assert whole.logprobs.top_logprobs is not None
    assert whole.logprobs.text_offset is not None
    assert len(whole.logprobs.top_logprobs) == len(whole.logprobs.tokens) == len(whole.logprobs.text_offset)
    assert whole.logprobs.text_offset[0] == 0
    for token, at in zip(whole.logprobs.tokens, whole.logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or whole.text.startswith(token, at)
    parts = [part.choices[0] for part in ai.completions.create(stream=True, **asked)]
    assert "".join(part.text for part in parts) == whole.text
    assert parts[-1].finish_reason == whole.finish_reason
    assert [t for part in parts if part.logprobs for t in part.logprobs.tokens or []] == whole.logprobs.tokens


# --- by hand -----------------------------------------------------------------------------------------------------------


def test_curl_reads_server_sent_events(texts: LocalFleet) -> None:
    body = {"model": "plain", "messages": HI, "stream": True, **GREEDY}
    done = subprocess.run(
        ["curl", "-sSN", "-i", "--max-time", "90", f"{texts.gateway_url}/v1/chat/completions", "-d", json.dumps(body)],
        capture_output=True, check=True, text=True, timeout=120,
    )  # fmt: skip
    head, _, events = done.stdout.partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert "content-type: text/event-stream" in head.lower()
    lines = [line for line in events.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


# --- errors ------------------------------------------------------------------------------------------------------------

NESTED = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "kind", "param", "says"),
    [
        ({"model": "nobody"}, openai.NotFoundError, None, "fmplex vfms"),
        ({"model": "vectors"}, openai.BadRequestError, "model", "of kind embedding; call /v1/embeddings"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour", "unknown key"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools", "FMplex"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "greater than or equal to 0"),
        ({"top_logprobs": 21, "logprobs": True}, openai.BadRequestError, "top_logprobs", "20"),
        ({"max_tokens": 30_000}, openai.BadRequestError, "max_tokens", "20000"),
        ({"response_format": NESTED}, openai.BadRequestError, "response_format", "schema"),
        ({"model": "strict", "messages": [{"role": "system", "content": "x"}, *HI]}, openai.BadRequestError, "messages",
         "system messages are not for me"),
        ({"model": "small", "n": 5}, openai.APIStatusError, "n", "5 texts in one call, at most 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_by_name(
    ai: openai.OpenAI,
    stream: bool,
    asked: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str | None,
    says: str,
) -> None:
    with pytest.raises(kind, match=says) as caught:
        ai.chat.completions.create(**({"model": "plain", "messages": HI, "stream": stream} | asked))
    assert caught.value.param == param
    assert caught.value.status_code in (400, 404, 413)


def test_a_prompt_that_is_too_long_is_named(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 20000 tokens") as caught:
        ai.completions.create(model="plain", prompt=["fine", [5] * 20_001], max_tokens=3)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt.1")


def test_generating_vfms_give_no_embeddings_and_say_what_to_call(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="of kind generation; call /v1/chat/completions or"):
        ai.embeddings.create(model="plain", input="x")
    assert len(ai.embeddings.create(model="vectors", input="x").data[0].embedding) == 32


def test_what_goes_wrong_half_way_is_raised_by_the_stream(ai: openai.OpenAI, texts: LocalFleet) -> None:
    parts = ai.chat.completions.create(model="hasty", messages=HI, stream=True, **ENDLESS)
    for _ in range(3):
        next(parts)
    with pytest.raises(openai.APIError) as caught:
        list(parts)
    assert caught.value.code == "deadline_exceeded"
    wait_until(lambda: idle(texts), "the job has let go of its memory")


# --- hanging up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_closing_a_stream_frees_its_memory_on_the_worker(ai: openai.OpenAI, texts: LocalFleet, n: int) -> None:
    parts = ai.chat.completions.create(model="plain", messages=HI, stream=True, n=n, timeout=90, **ENDLESS)
    for _ in range(3 + 3 * n):
        next(parts)
    wait_until(
        lambda: metric(texts.gateway_url, "fmplex_worker_held_jobs") == n, "the worker says that it has the jobs"
    )
    parts.close()
    wait_until(lambda: idle(texts), "the jobs are gone")
    units = metric(texts.gateway_url, "fmplex_worker_pass_units_total")
    assert ai.chat.completions.create(model="plain", messages=HI, max_tokens=2, temperature=0).choices
    wait_until(
        lambda: metric(texts.gateway_url, "fmplex_worker_pass_units_total") > units,
        "the worker has told of the last call",
    )
    assert metric(texts.gateway_url, "fmplex_worker_pass_units_total") < units + 1000, (
        "nobody generates for a reader who has gone"
    )


def test_hanging_up_on_a_whole_answer_frees_its_memory_too(ai: openai.OpenAI, texts: LocalFleet) -> None:
    with pytest.raises(openai.APITimeoutError):
        ai.chat.completions.create(model="plain", messages=HI, timeout=1.5, **ENDLESS)
    wait_until(lambda: idle(texts), "the job is gone")


async def test_leaving_a_stream_of_the_sdk_early_takes_the_job_back(client: AsyncClient, texts: LocalFleet) -> None:
    async with client.stream("plain", "the cat", max_tokens=15_000, ignore_eos=True) as stream:
        assert await anext(stream)
    wait_until(lambda: idle(texts), "the job is gone")


# --- the SDK -----------------------------------------------------------------------------------------------------------


async def test_the_sdk_streams_what_infer_gives(client: AsyncClient) -> None:
    for value in ("the cat", {"text": "a dog"}, {"messages": HI}, {"input_ids": [5, 6, 7]}):
        whole = await client.infer("poet", value, **GREEDY)
        stream = client.stream("poet", value, **GREEDY)
        pieces = [piece async for piece in stream]
        assert "".join(pieces) == whole.output["text"]
        assert stream.result is not None
        assert stream.result.version == whole.version
        assert {**stream.result.output, "cached_tokens": 0} == {**whole.output, "cached_tokens": 0}


async def test_a_call_that_is_repeated_under_its_name_gives_the_same_text(client: AsyncClient) -> None:
    first = [piece async for piece in client.stream("poet", "x", idempotency_key="again", max_tokens=9)]
    second = [piece async for piece in client.stream("poet", "x", idempotency_key="again", max_tokens=9)]
    assert "".join(first) == "".join(second)


async def test_the_result_of_a_stream_is_the_same_both_ways(texts: LocalFleet) -> None:
    results = []
    for url in (texts.gateway_url, texts.broker_url):
        async with AsyncClient(url, retries=0) as fm:
            stream = fm.stream("poet", "x", idempotency_key="both-ways", max_tokens=9)
            assert "".join([piece async for piece in stream]) == stream.result.output["text"]
            results.append(stream.result)
    assert results[0] == results[1]
    assert (results[0].vfm, results[0].units > 0, results[0].run_ms > 0) == ("poet", True, True)


async def test_the_sdk_raises_typed_errors_from_a_stream(client: AsyncClient) -> None:
    with pytest.raises(TextTooLong):
        await anext(client.stream("plain", "x", max_tokens=30_000))
    with pytest.raises(InvalidInput, match="stream means nothing to 'vectors'"):
        await anext(client.stream("vectors", "x"))
    stream = client.stream("hasty", "x", max_tokens=15_000, ignore_eos=True)
    assert await anext(stream)
    with pytest.raises(DeadlineExceeded):
        async for _ in stream:
            pass


def test_metrics_tell_of_tokens_and_how_they_come(ai: openai.OpenAI, texts: LocalFleet) -> None:
    with Client(texts.gateway_url) as client:
        client.vfms.update("poet", slo={"ttft_ms": 400, "inter_token_ms": 100})

    def counts() -> list[float]:
        names = ("generated_tokens_total", "prompt_tokens_total", "ttft_seconds_count", "inter_token_seconds_count")
        return [metric(texts.gateway_url, f"fmplex_vfm_{name}", vfm="poet") for name in names]

    before = counts()
    usage = ai.chat.completions.create(model="poet", messages=HI, max_tokens=9, extra_body={"ignore_eos": True}).usage
    assert usage is not None
    wanted = [9, usage.prompt_tokens, 1, 8]
    wait_until(lambda: [b - a for a, b in zip(before, counts(), strict=True)] == wanted, "the text is counted")
    assert metric(texts.gateway_url, "fmplex_vfm_ttft_target_seconds", vfm="poet") == 0.4
    assert metric(texts.gateway_url, "fmplex_vfm_inter_token_target_seconds", vfm="poet") == 0.1
    assert metric(texts.gateway_url, "fmplex_kv_budget_bytes") == 33_554_432
    assert metric(texts.gateway_url, "fmplex_vfm_generated_tokens_total", vfm="vectors") == 0


# --- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions"])
def test_texts_of_a_batch_are_those_of_calls(ai: openai.OpenAI, endpoint: Any) -> None:
    chats = endpoint == "/v1/chat/completions"
    asked = {"messages": HI} if chats else {"prompt": "the cat"}
    bodies = [
        {"model": "plain", **asked, **GREEDY, **more} for more in ({}, {"max_tokens": 3}, {"stream": True}, {"n": 2})
    ]
    lines = [{"custom_id": str(i), "method": "POST", "url": endpoint, "body": body} for i, body in enumerate(bodies)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = ai.files.create(file=("lines.jsonl", content), purpose="batch")
    batch = ai.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    wait_until(lambda: ai.batches.retrieve(batch.id).status == "completed", "the batch ends")
    done = ai.batches.retrieve(batch.id)
    assert done.output_file_id is not None
    assert done.error_file_id is not None
    good, bad = (
        [json.loads(line) for line in ai.files.content(name).text.splitlines()]
        for name in (done.output_file_id, done.error_file_id)
    )
    assert {row["custom_id"]: row["error"]["code"] for row in bad} == {
        "2": "stream_not_supported",
        "3": "n_not_supported",
    }
    answers = {row["custom_id"]: row["response"]["body"] for row in good}
    calls = ai.chat.completions if chats else ai.completions
    for n in (0, 1):
        body, wanted = answers[str(n)], calls.create(**bodies[n]).model_dump()
        (got,), (choice,) = body["choices"], wanted["choices"]
        text = (lambda c: c["message"]["content"]) if chats else (lambda c: c["text"])
        assert (text(got), got["finish_reason"]) == (text(choice), choice["finish_reason"])
        assert body["usage"]["completion_tokens"] == wanted["usage"]["completion_tokens"]
        assert body["object"] == wanted["object"]
