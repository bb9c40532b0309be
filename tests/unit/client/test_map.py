"""`map` and `embed` of many inputs, against a fleet of a few lines: wrong inputs, small queues, any number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import fmplex.caller
from fmplex import (
    AsyncClient,
    Client,
    FmplexError,
    Forbidden,
    InvalidInput,
    JobFailed,
    NonFiniteOutput,
    QueueFull,
    RateLimited,
    Result,
    StaleVersion,
    Tensor,
    TextTooLong,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownVfm,
    VfmClosed,
)
from fmplex.call import Call
from tests.support.results import made_result

WRONG: dict[str, Callable[[str], FmplexError]] = {
    "": lambda field: InvalidInput("the text is empty", field=field),
    "long": lambda field: TextTooLong("too many tokens", field=f"{field}.text"),
    "large": lambda field: TooLarge("too many bytes", field=field),
    "nan": lambda field: NonFiniteOutput("not a number"),
    "fails": lambda field: JobFailed("it failed"),
}


class Fleet:
    """Echoes inputs; `WRONG` ones fail their call. `queue`: jobs that it holds, `call`: inputs that a call may have; `others`:
    jobs in the queue that are not this client's; `refusal`: of every call."""

    def __init__(self) -> None:
        self.queue, self.call, self.others = 4096, 2048, 0
        self.refusal: FmplexError | None = None
        self.depth, self.deepest, self.refused = 0, 0, 0
        self.calls: list[int] = []

    async def infer(self, call: Call) -> list[Result]:
        self.calls.append(len(call.inputs))
        if self.refusal is not None:
            raise self.refusal
        if len(call.inputs) > min(self.queue, self.call):
            raise TooLarge(f"{len(call.inputs)} inputs; split the call", field="inputs")
        if self.depth + self.others + len(call.inputs) > self.queue:
            self.refused += 1
            raise QueueFull("full", retry_after=0.01)
        self.depth += len(call.inputs)
        self.deepest = max(self.deepest, self.depth)
        try:
            await asyncio.sleep(0.002)
            for i, value in enumerate(call.inputs):
                if value in WRONG:
                    raise WRONG[value](f"inputs.{i}")
        finally:
            self.depth -= len(call.inputs)
        return [made_result(_output(call.vfm, value)) for value in call.inputs]

    async def close(self) -> None:
        pass


def _output(vfm: str, value: str) -> Any:
    return {"embedding": Tensor("int32", (1,), int(value).to_bytes(4, "little"))} if vfm == "embed" else value


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    transport = Fleet()
    monkeypatch.setattr(fmplex.caller, "open_transport", lambda *_: transport)
    return transport


@pytest.fixture(params=["sync", "async"])
async def mapped(request: pytest.FixtureRequest, fleet: Fleet) -> AsyncIterator[Callable[..., Any]]:
    """`await mapped(inputs, …)`: what a client's `map` gives, as a list."""
    if request.param == "sync":
        client = Client("http://nowhere")
        yield lambda inputs, **options: asyncio.to_thread(lambda: list(client.map("v", inputs, **options)))
        await asyncio.to_thread(client.close)
        return
    async with AsyncClient("http://nowhere") as awaited:

        async def run(inputs: Any, **options: Any) -> list[Any]:
            return [result async for result in awaited.map("v", inputs, **options)]

        yield run


# --- wrong inputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "field"), [("", "inputs.70"), ("long", "inputs.70.text"), ("large", "inputs.70")])
@pytest.mark.parametrize("window", [1, 7, 32, 256])
async def test_an_error_names_the_input_among_all(
    mapped: Callable[..., Any], bad: str, field: str, window: int
) -> None:
    texts = [str(i) for i in range(100)]
    texts[70] = bad
    with pytest.raises(FmplexError) as caught:
        await mapped(texts, window=window)
    assert caught.value.field == field


@pytest.mark.parametrize("wrong", [{70}, {0, 99}, {31, 32, 33}, set(range(100)), set()])
async def test_errors_are_returned_in_their_inputs_places(mapped: Callable[..., Any], wrong: set[int]) -> None:
    kinds = list(WRONG)
    texts = [kinds[i % len(kinds)] if i in wrong else str(i) for i in range(100)]
    got = await mapped(texts, on_error="return")
    assert len(got) == 100
    for i, (text, outcome) in enumerate(zip(texts, got, strict=True)):
        if i not in wrong:
            assert outcome.output == text
            continue
        expected = WRONG[text](f"inputs.{i}")
        assert (type(outcome), outcome.message, outcome.field) == (type(expected), expected.message, expected.field)


async def test_a_file_with_a_blank_line_goes_on(mapped: Callable[..., Any], tmp_path: Any) -> None:
    path = tmp_path / "mails.txt"
    path.write_text("one\n\ntwo\n")
    WRONG["\n"] = WRONG[""]
    try:
        with path.open() as lines:
            one, blank, two = await mapped(lines, on_error="return")
    finally:
        del WRONG["\n"]
    assert (one.output, two.output) == ("one\n", "two\n")
    assert (type(blank), blank.field) == (InvalidInput, "inputs.1")


CONCERN_ALL = [
    UnknownVfm("no vFM has this name"),
    Unauthorized("no key"),
    Forbidden("the key may not"),
    StaleVersion("deploy it again"),
    VfmClosed("closed"),
    InvalidInput("means nothing here", field="dimensions"),
]


@pytest.mark.parametrize("error", CONCERN_ALL, ids=lambda e: e.code)
async def test_what_is_wrong_with_all_inputs_is_raised_at_once(
    mapped: Callable[..., Any], fleet: Fleet, error: FmplexError
) -> None:
    fleet.refusal = error
    with pytest.raises(type(error)):
        await mapped(["a"] * 1000, on_error="return")
    assert len(fleet.calls) <= 256 / 32, "not one call an input"


@pytest.mark.parametrize("error", [Unavailable("away"), RateLimited("slow", retry_after=0.001)], ids=lambda e: e.code)
async def test_a_fleet_that_is_away_is_not_asked_for_every_input(
    mapped: Callable[..., Any], fleet: Fleet, error: FmplexError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fmplex.caller, "_BACKOFF_S", 0.001)
    fleet.refusal = error
    got = await mapped([str(i) for i in range(64)], on_error="return")
    assert [type(outcome) for outcome in got] == [type(error)] * 64
    assert len(fleet.calls) <= 2 * (2 + 3)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"on_error": "ignore"}, "on_error"), ({"window": 0}, "window"), ({"window": 2.5}, "window"),
     ({"window": float("nan")}, "window"), ({"timeout": float("nan")}, "timeout"), ({"timeout": 0}, "timeout")],
)  # fmt: skip
async def test_wrong_options_are_told_before_the_first_input(
    mapped: Callable[..., Any], options: dict[str, Any], field: str
) -> None:
    def inputs() -> Iterator[str]:
        raise AssertionError("drawn")
        yield ""

    with pytest.raises(InvalidInput) as caught:
        await mapped(inputs(), **options)
    assert caught.value.field == field


# --- small queues ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [1, 3, 31, 40, 100, 255])
@pytest.mark.parametrize("on_error", ["raise", "return"])
async def test_a_window_larger_than_the_queue_is_no_error(
    mapped: Callable[..., Any], fleet: Fleet, queue: int, on_error: str
) -> None:
    fleet.queue = queue
    texts = [str(i) for i in range(400)]
    assert [r.output for r in await mapped(texts, on_error=on_error)] == texts
    assert fleet.deepest > queue / 2, "it is used"
    assert fleet.refused < len(fleet.calls) / 2, "refusals are learned from"


async def test_a_call_of_too_many_bytes_is_split_too(mapped: Callable[..., Any], fleet: Fleet) -> None:
    fleet.call = 5
    texts = [str(i) for i in range(400)]
    assert [r.output for r in await mapped(texts, window=64)] == texts
    assert sum(size > 5 for size in fleet.calls) <= 64 / 32 * 3, "once learned, it is not tried again"


async def test_one_wrong_input_in_a_small_queue_is_one_error(mapped: Callable[..., Any], fleet: Fleet) -> None:
    fleet.queue = 10
    texts = ["long" if i == 70 else str(i) for i in range(100)]
    got = await mapped(texts, on_error="return")
    assert [i for i, outcome in enumerate(got) if isinstance(outcome, FmplexError)] == [70]
    assert got[70].field == "inputs.70.text"


async def test_a_queue_that_others_fill_is_waited_for_as_often_as_for_any_call(
    mapped: Callable[..., Any], fleet: Fleet
) -> None:
    fleet.queue, fleet.others = 40, 40
    with pytest.raises(QueueFull):
        await mapped(["a"] * 32)
    assert fleet.refused == 1 + 3


async def test_a_queue_that_others_leave_is_filled_again(mapped: Callable[..., Any], fleet: Fleet) -> None:
    fleet.queue, fleet.others = 400, 390

    def inputs() -> Iterator[str]:
        for i in range(2000):
            if i == 100:
                fleet.others, fleet.deepest = 0, 0
            yield str(i)

    assert len(await mapped(inputs(), window=256)) == 2000
    assert fleet.deepest > 20, "it has grown"


# --- embed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 2048, 2049, 5000])
async def test_any_number_of_texts_is_embedded(fleet: Fleet, count: int) -> None:
    texts = [str(i) for i in range(count)]
    async with AsyncClient("http://nowhere") as client:
        assert await client.embed("embed", texts) == [[i] for i in range(count)]
        assert await client.embed("embed", iter(texts)) == [[i] for i in range(count)]
    with Client("http://nowhere") as client_of_threads:
        assert client_of_threads.embed("embed", texts) == [[i] for i in range(count)]
    assert fleet.deepest <= 2048


async def test_embed_fits_a_small_queue_and_names_a_wrong_text(fleet: Fleet) -> None:
    fleet.queue = 100
    texts = [str(i) for i in range(700)]
    async with AsyncClient("http://nowhere") as client:
        assert await client.embed("embed", texts) == [[i] for i in range(700)]
        texts[500] = ""
        with pytest.raises(InvalidInput) as caught:
            await client.embed("embed", texts)
        assert caught.value.field == "inputs.500"
        with pytest.raises(InvalidInput, match="does not give embeddings"):
            await client.embed("v", ["a text"])
        with pytest.raises(InvalidInput, match="list of texts"):
            await client.embed("embed", "one text")
