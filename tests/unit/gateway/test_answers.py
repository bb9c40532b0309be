"""An answer is the same whoever asks for it: a client that waits, or a batch."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import (
    BrokerMisconfigured,
    BrokerUnavailable,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    FmplexError,
    InvalidInput,
    JobFailed,
    NonFiniteOutput,
    NoWorker,
    PackageRejected,
    Poisoned,
    QueueFull,
    RateLimited,
    StaleVersion,
    TextTooLong,
    TooLarge,
    UnknownVfm,
    VfmClosed,
)
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.gateway import ANONYMOUS
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.streams.keys import REGISTRY_VFMS, Keys
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Reply, decode_request
from fmplex_broker.wire.tensors import Tensor
from fmplex_gateway.access import Principal
from fmplex_gateway.answers import CHAT, COMPLETIONS, EMBEDDINGS, ENDPOINTS, Answer, Asking, answer, may_pass, vfm_of
from fmplex_gateway.wire import dump
from tests.support.hosting import on_hosted
from tests.support.waiting import until_soon
from tests.unit.gateway.answering import answering
from tests.unit.gateway.site import BACKBONE, Site, site, spec

ANYBODY = Principal(ANONYMOUS, frozenset({"admin"}))
TEXT = {"text": "yes", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 1, "cached_tokens": 0}
FEATURES: dict[str, Any] = {"head": {"kind": "features"}}
INFER = "/v1/vfms/spam/infer"
CALLS = {
    EMBEDDINGS: {"model": "embed", "input": ["one", "two"], "encoding_format": "float"},
    CHAT: {"model": "bot", "messages": [{"role": "user", "content": "well?"}], "max_tokens": 4},
    COMPLETIONS: {"model": "bot", "prompt": ["well?", "so?"], "max_tokens": 4},
    INFER: {"inputs": ["one", "two", "three"]},
}
VARYING = ("id", "created", "runs")


def replies(job: Claimed) -> Reply:
    output = {
        "embed": {"embedding": Tensor("float32", (2,), bytes(8))},
        "bot": TEXT,
        "spam": {"features": Tensor("float32", (1, 2), bytes(8))},
    }
    return Reply(output=output[job.flow.vfm], version="v1", worker="w1", units=2)


async def served(place: Site) -> None:
    bot: VfmSpec = spec("bot", head={"kind": "generation"})
    await place.serve(spec("embed"), bot, spec("spam", **FEATURES))


def offline(key: str | None = "batch:1", **more: Any) -> Asking:
    return Asking(**{"principal": ANYBODY, "cls": OFFLINE, "idempotency_key": key, "timeout_ms": 60_000, **more})


def steady(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key not in VARYING}


@pytest.mark.parametrize("url", CALLS)
async def test_a_batch_is_answered_as_a_client_is(tmp_path: Path, url: str) -> None:
    async with site(tmp_path) as place:
        await served(place)
        async with answering(place, replies) as jobs:
            waited = await place.ask("POST", url, body=CALLS[url])
            got = await answer(place.queue, url, CALLS[url], offline())
        assert waited.status_code == 200, waited.text
        bodies = [waited.json(), json.loads(dump(got.body))]
        assert steady(bodies[0]) == steady(bodies[1])
        assert bodies[0].keys() == bodies[1].keys()
        assert got.version == "v1"
        assert {job.flow.cls for job in jobs} == {INTERACTIVE, OFFLINE}
        half = len(jobs) // 2
        assert [job.flow.cls for job in jobs] == [INTERACTIVE] * half + [OFFLINE] * half
        assert len(got.jobs) == half


async def test_what_was_answered_is_answered_again_until_it_is_forgotten(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await served(place)
        async with answering(place, replies) as jobs:
            first = await answer(place.queue, INFER, CALLS[INFER], offline())
            again = await answer(place.queue, INFER, CALLS[INFER], offline())
            assert (first, len(jobs)) == (again, 3)
            await place.queue.forget_results(first.jobs)
            anew = await answer(place.queue, INFER, CALLS[INFER], offline())
            assert len(jobs) == 6
        assert steady(anew.body) == steady(first.body)
        assert not {job.job for job in anew.jobs} & {job.job for job in first.jobs}


async def test_a_call_with_no_key_of_its_own_leaves_no_answer_that_anybody_finds(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await served(place)
        async with answering(place, replies) as jobs:
            for _ in range(2):
                await answer(place.queue, INFER, {"inputs": ["one"]}, offline(None))
        assert len(jobs) == 2


# --- errors -----------------------------------------------------------------------------------------------------------

WRONG = [
    (EMBEDDINGS, {"model": "embed", "input": ["x", " "]}, "input.1", 400),
    (EMBEDDINGS, {"model": "embed", "input": "x", "dimensions": "many"}, "dimensions", 400),
    (EMBEDDINGS, {"model": "bot", "input": "x"}, "model", 400),
    (EMBEDDINGS, {"model": "embed"}, "input", 400),
    (EMBEDDINGS, {}, "model", 400),
    (EMBEDDINGS, {"model": "\ud800", "input": "x"}, None, 404),
    (EMBEDDINGS, {"model": "embed", "input": "\ud800"}, "input.0", 400),
    (EMBEDDINGS, {"model": "a\0b", "input": "x"}, None, 404),
    (EMBEDDINGS, {"model": "nobody", "input": "x"}, None, 404),
    (CHAT, {"model": "spam", "messages": CALLS[CHAT]["messages"]}, "model", 400),
    (CHAT, {"model": "bot", "messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", 400),
    (CHAT, {"model": "bot", "messages": []}, "messages", 400),
    (COMPLETIONS, {"model": "bot", "prompt": "x", "temperature": -1}, "temperature", 400),
    (COMPLETIONS, {"model": "bot", "prompt": "x", "echo": True}, "echo", 400),
    (INFER, {"inputs": []}, "inputs", 422),
    (INFER, {"inputs": ["x"], "params": {"dimensions": 3}}, "dimensions", 422),
    (INFER, {"inputs": ["x"], "input": "y"}, "input", 422),
    ("/v1/vfms/nobody/infer", {"inputs": ["x"]}, None, 404),
]


@pytest.mark.parametrize(("url", "body", "field", "status"), WRONG)
async def test_a_batch_is_refused_as_a_client_is(
    tmp_path: Path, url: str, body: dict[str, Any], field: str | None, status: int
) -> None:
    async with site(tmp_path) as place:
        await served(place)
        waited = await place.http.post(url, content=json.dumps(body))
        assert waited.status_code == status
        with pytest.raises(FmplexError) as caught:
            await answer(place.queue, url, body, offline())
        said = waited.json()["error"]
        assert (caught.value.message, caught.value.field) == (said["message"], said["param"])
        assert (caught.value.field or "").startswith(field or "")


async def test_an_error_of_a_job_names_the_callers_field(tmp_path: Path) -> None:
    def refuse(job: Claimed) -> Reply:
        if decode_request(job.payload).input == "two":
            return Reply(error=TextTooLong("too long", field="input"))
        return replies(job)

    async with site(tmp_path) as place:
        await served(place)
        async with answering(place, refuse):
            for url, field in ((EMBEDDINGS, "input.1"), (INFER, "inputs.1")):
                with pytest.raises(TextTooLong) as caught:
                    await answer(place.queue, url, CALLS[url], offline())
                assert caught.value.field == field


@pytest.mark.parametrize(
    "url", ["/v1/models", "/v1/vfms/a/b/infer", "/v1/vfms//infer", "", "/v1/embeddings/", ENDPOINTS[3]]
)
async def test_other_urls_are_refused(tmp_path: Path, url: str) -> None:
    async with site(tmp_path) as place:
        with pytest.raises(InvalidInput, match="/v1/embeddings") as caught:
            await answer(place.queue, url, {}, offline())
        assert caught.value.field == "url"


@pytest.mark.parametrize(
    ("url", "vfm"),
    [
        (INFER, "spam"),
        ("/v1/vfms/\ud800/infer", None),
        ("/v1/vfms/a.b-c_1/infer", "a.b-c_1"),
        ("/v1/vfms/x/infer\n", None),
    ],
)
def test_the_vfm_of_a_url(url: str, vfm: str | None) -> None:
    assert vfm_of(url) == vfm


async def test_what_a_key_may_not_use_is_not_there(tmp_path: Path) -> None:
    mine = Principal("team", frozenset({"infer"}), ("mine-*",))
    async with site(tmp_path) as place:
        await served(place)
        for url in CALLS:
            with pytest.raises(UnknownVfm) as refused:
                await answer(place.queue, url, CALLS[url], offline(principal=mine))
            gone = {**CALLS[url], **({"model": "gone"} if url != INFER else {})}
            with pytest.raises(UnknownVfm) as unknown:
                await answer(place.queue, url.replace("spam", "gone"), gone, offline())
            names = ("spam", "embed", "bot")
            assert unknown.value.message in [refused.value.message.replace(name, "gone") for name in names]


# --- what passes, and what does not -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (RateLimited("r"), True),
        (QueueFull("q"), True),
        (NoWorker("n"), True),
        (VfmClosed("c"), True),
        (BrokerUnavailable("b"), True),
        (BrokerMisconfigured("b"), True),
        (Cancelled("c"), True),
        (UnknownVfm("u"), False),
        (InvalidInput("i"), False),
        (PackageRejected("p"), False),
        (StaleVersion("s"), False),
        (Conflict("c"), False),
        (TooLarge("t"), False),
        (JobFailed("j"), False),
        (NonFiniteOutput("n"), False),
        (Poisoned("p"), False),
        (DeadlineExceeded("d"), False),
        (FmplexError("f"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FmplexError) else "",
)
async def test_a_reply_that_may_pass_is_not_given_twice(tmp_path: Path, error: FmplexError, passes: bool) -> None:
    assert may_pass(error) is passes

    def fail(job: Claimed) -> Reply:
        return Reply(error=error) if decode_request(job.payload).input == "two" and len(jobs) == 2 else replies(job)

    async with site(tmp_path) as place:
        await served(place)
        async with answering(place, fail) as jobs:
            body = {"inputs": ["one", "two"]}
            with pytest.raises(type(error)):
                await answer(place.queue, INFER, body, offline())
            if passes:
                got = await answer(place.queue, INFER, body, offline())
                assert len(got.body["outputs"]) == 2
                assert [decode_request(job.payload).input for job in jobs] == ["one", "two", "two"]
            else:
                with pytest.raises(type(error)):
                    await answer(place.queue, INFER, body, offline())
                assert len(jobs) == 2


async def test_a_client_with_a_key_is_given_the_same_refusal_again(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await served(place)
        async with answering(place, lambda job: Reply(error=NoWorker("none"))) as jobs:
            for _ in range(2):
                got = await place.ask("POST", INFER, body={"inputs": ["one"], "idempotency_key": "k"})
                assert got.status_code == 503
            assert len(jobs) == 1


async def test_a_vfm_that_never_served_is_not_waited_for(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        one = spec("bad")
        version, vfms = on_hosted(bare(one).digest), Keys(BACKBONE).vfms
        worker = await place.worker()
        await place.queue.redis.hset(REGISTRY_VFMS, "bad", BACKBONE)
        await place.queue.scripts("propose", vfms, ["bad", version, one.model_dump_json(), -1, 9, 1.0, 0, 0])
        body = {"model": "bad", "input": "x"}
        with pytest.raises(VfmClosed):  # it may serve soon
            await answer(place.queue, EMBEDDINGS, body, offline())
        assert await place.queue.registry.vote(BACKBONE, "bad", version, "w1", JobFailed("no")) == "rejected"
        with pytest.raises(PackageRejected, match="deploy one") as caught:
            await answer(place.queue, EMBEDDINGS, body, offline())
        assert not may_pass(caught.value)
        assert (await place.ask("POST", EMBEDDINGS, body=body)).status_code == 503  # as ever
        await worker.leave()


# --- how it runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("in_body", "whole"), [(None, 60_000), (5_000, 5_000), (1e12, 60_000), (math.inf, 60_000)])
async def test_a_body_can_only_shorten_the_time(tmp_path: Path, in_body: float | None, whole: float) -> None:
    async with site(tmp_path) as place:
        await served(place)
        async with answering(place, replies) as jobs:
            more = {} if in_body is None else {"timeout_ms": in_body}
            await answer(place.queue, INFER, {"inputs": ["x"], **more}, offline())
        [job] = jobs
        assert job.deadline_ms - job.enqueued_ms == pytest.approx(whole, abs=100)


@pytest.mark.parametrize("in_body", [math.nan, 0, -5])
async def test_what_is_no_time_is_refused(tmp_path: Path, in_body: float) -> None:
    async with site(tmp_path) as place:
        await served(place)
        with pytest.raises(InvalidInput) as caught:
            await answer(place.queue, INFER, {"inputs": ["x"], "timeout_ms": in_body}, offline())
        assert caught.value.field == "timeout_ms"


async def test_the_lines_of_a_batch_are_named_by_the_batch(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await served(place)
        with pytest.raises(InvalidInput, match="leave it out") as caught:
            await answer(place.queue, INFER, {"inputs": ["x"], "idempotency_key": "mine"}, offline())
        assert caught.value.field == "idempotency_key"


@pytest.mark.parametrize("url", CALLS)
async def test_who_stops_waiting_takes_the_jobs_back(tmp_path: Path, url: str) -> None:
    async with site(tmp_path) as place:
        await served(place)
        waiting: asyncio.Task[Answer] = asyncio.create_task(answer(place.queue, url, CALLS[url], offline()))
        vfm = vfm_of(url) or CALLS[url]["model"]
        queue = f"{{{BACKBONE}}}:q:{OFFLINE}:{vfm}"

        async def is_empty() -> bool:
            return await place.queue.redis.xlen(queue) == 0

        await until_soon(lambda: place.queue.redis.xlen(queue), "the jobs wait")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # A call that was on its way when nobody waited any more is taken back once it has arrived.
        await until_soon(is_empty, "no job waits")
