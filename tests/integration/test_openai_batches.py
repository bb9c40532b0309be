"""Files and batches with the `openai` package, as a program written for OpenAI would use them, and with the SDK and the CLI."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from fmplex import AsyncClient, Client, DeadlineExceeded, InvalidInput, TextTooLong, UnknownVfm
from fmplex.local import LocalFleet
from tests.integration.conftest import TASKS, TEXTS
from tests.integration.shell import Shell
from tests.support.fleets import frozen
from tests.support.outputs import difference
from tests.support.waiting import wait_until

ENDED = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture(scope="module")
def ai(fleet: LocalFleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fleet.gateway_url}/v1", api_key="anything", max_retries=0, timeout=90) as client:
        yield client


def begin(ai: openai.OpenAI, lines: list[dict[str, Any]], endpoint: str = "/v1/embeddings", **more: Any) -> Batch:
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = ai.files.create(file=("lines.jsonl", io.BytesIO(content)), purpose="batch")
    return ai.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)  # type: ignore[arg-type]


def ended(ai: openai.OpenAI, batch: str) -> Batch:
    """The batch at its end; its counts are true on the way."""

    def look() -> Batch | None:
        seen = ai.batches.retrieve(batch)
        counts = seen.request_counts
        assert counts is not None
        assert counts.completed + counts.failed <= counts.total or seen.status == "validating"
        return seen if seen.status in ENDED else None

    found: Batch = wait_until(look, f"{batch} ends")
    return found


def rows(ai: openai.OpenAI, file: str | None) -> dict[str, Any]:
    """The rows of a file by their ids, none twice."""
    if file is None:
        return {}
    found = [json.loads(line) for line in ai.files.content(file).text.splitlines()]
    by_id = {row["custom_id"]: row for row in found}
    assert len(by_id) == len(found)
    return by_id


def embedding(custom_id: str, text: Any, **body: Any) -> dict[str, Any]:
    body = {"model": "embed-lora", "input": text, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}


def test_a_batch_goes_through_its_life(ai: openai.OpenAI, references: dict[str, list[Any]]) -> None:
    lines = [embedding(f"line {n}", TEXTS[n % len(TEXTS)]) for n in range(300)]
    lines[70]["body"]["model"] = "nobody"
    lines[150]["body"]["input"] = "word " * 300
    lines[299]["url"] = "/v1/chat/completions"
    batch = begin(ai, lines, metadata={"who": "the analyst"})
    assert batch.status in ("validating", "in_progress")
    done = ended(ai, batch.id)
    assert (done.status, done.metadata, done.endpoint) == ("completed", {"who": "the analyst"}, "/v1/embeddings")
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (300, 297, 3)
    good, bad = rows(ai, done.output_file_id), rows(ai, done.error_file_id)
    assert {*good, *bad} == {line["custom_id"] for line in lines}
    assert {*bad} == {"line 70", "line 150", "line 299"}
    assert bad["line 70"]["response"]["body"]["error"]["code"] == "model_not_found"
    assert bad["line 150"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert bad["line 299"]["error"]["code"] == "url_mismatch"
    assert bad["line 299"]["error"]["line"] == 300
    wanted = [output["embedding"].tolist() for output in references["embed-lora"]]
    for n in (0, 123, 298):
        answer = good[f"line {n}"]["response"]
        assert answer["status_code"] == 200
        assert answer["body"]["model"] == "embed-lora"
        assert difference(answer["body"]["data"][0]["embedding"], wanted[n % len(TEXTS)]) <= 1e-5


def test_batches_are_listed_page_by_page(ai: openai.OpenAI) -> None:
    made = [begin(ai, [embedding("a", "a text")]).id for _ in range(3)]
    listed = [batch.id for batch in ai.batches.list(limit=2)]
    assert listed[:3] == made[::-1], "the newest first; the package asks for the next page by itself"
    assert ai.batches.list(limit=2, after=made[2]).data[0].id == made[1]
    for batch in made:
        done = ended(ai, batch)
        assert {done.input_file_id, done.output_file_id} <= {file.id for file in ai.files.list()}
        assert ai.files.delete(done.input_file_id).deleted


def test_a_cancelled_batch_has_every_line_in_one_of_its_files(ai: openai.OpenAI) -> None:
    lines = [embedding(f"line {n}", f"text number {n}") for n in range(3000)]
    batch = begin(ai, lines)
    wait_until(lambda: ai.batches.retrieve(batch.id).status == "in_progress", "it is in progress")
    assert ai.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(ai, batch.id)
    assert done.status == "cancelled"
    assert ai.batches.cancel(batch.id).status == "cancelled", "twice"
    good, bad = rows(ai, done.output_file_id), rows(ai, done.error_file_id)
    assert not {*good} & {*bad}
    assert {*good, *bad} == {line["custom_id"] for line in lines}
    assert {row["error"]["code"] for row in bad.values()} == {"batch_cancelled"}
    assert bad, "it was not cancelled in time; more lines?"


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        ([], "empty_file", None),
        ([embedding("a", "x"), embedding("b", "x"), embedding("a", "y")], "duplicate_custom_id", 3),
    ],
)
def test_what_fails_a_batch_is_told(ai: openai.OpenAI, lines: list[Any], code: str, line: int | None) -> None:
    done = ended(ai, begin(ai, lines).id)
    assert done.status == "failed"
    assert done.errors is not None
    assert done.errors.data is not None
    (error,) = done.errors.data
    assert (error.code, error.line) == (code, line)


# --- the SDK and the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sentiment", "embed-lora", "similar"])
async def test_results_are_those_of_calls(fleet: LocalFleet, references: dict[str, list[Any]], name: str) -> None:
    inputs, wanted = TASKS[name].inputs, references[name]
    async with AsyncClient(fleet.gateway_url) as fm:
        batch = await fm.batches.submit(inputs, vfm=name)
        found = [result async for result in batch]
        assert all(difference(r.output, output) <= 1e-5 for r, output in zip(found, wanted, strict=True))
        assert {result.version for result in found} == {(await fm.vfms.show(name)).version}
        assert (batch.counts.completed, batch.counts.failed) == (len(inputs), 0)


def test_an_error_is_typed_and_in_its_place(fleet: LocalFleet, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n\n" + b"word " * 300 + b"\ncaf\xe9\n \nthe end")
    with Client(fleet.gateway_url) as fm:
        found = list(fm.batches.submit(tmp_path / "a.txt", vfm="sentiment"))
        assert [(result.line, result.code) for result in found] == [
            (1, None), (3, "text_too_long"), (4, "invalid_json_line"), (6, None),
        ]  # fmt: skip
        assert [type(result.error) for result in found[1:3]] == [TextTooLong, InvalidInput]
        (unknown,) = fm.batches.submit(["a"], vfm="nobody")
        assert isinstance(unknown.error, UnknownVfm)


def test_an_offline_job_through_a_gateway(fleet: LocalFleet, references: dict[str, list[Any]]) -> None:
    with Client(fleet.gateway_url) as fm:
        job = fm.enqueue("sentiment", TEXTS[0], offline=True, timeout=600_000)
        same = fm.enqueue("topics", TEXTS[0], offline=True, idempotency_key="once")
        again = fm.enqueue("topics", TEXTS[0], offline=True, idempotency_key="once")
        result = job.result()
        assert difference(result.output, references["sentiment"][0]) <= 1e-5
        assert (result.vfm, result.units > 0, result.run_ms > 0) == ("sentiment", True, True)
        assert same.result() == again.result()
        with frozen(fleet.processes["worker-0"]):
            late = fm.enqueue("sentiment", "a text", offline=True, timeout=0.001)
            time.sleep(0.5)  # it is late by much more than clocks differ
        with pytest.raises(DeadlineExceeded):
            late.result()
        with pytest.raises(UnknownVfm):
            fm.enqueue("nobody", "a text", offline=True).result()


def test_the_command_line_sends_a_file_and_comes_back(fmplex: Shell, references: dict[str, list[Any]]) -> None:
    (fmplex.folder / "mails.csv").write_text("id,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS)))
    sent = json.loads(fmplex("submit", "mails.csv", "--vfm", "sentiment", "--json", "--window", "90m"))
    assert sent["completion_window"] == "90m"
    wait_until(lambda: json.loads(fmplex("batches", "show", sent["id"]))["status"] == "completed", "it has ended")
    lines = [json.loads(line) for line in fmplex("batches", "fetch", sent["id"]).splitlines()]
    assert [line["line"] for line in lines] == [2, 3, 4, 5, 6]
    for line, wanted in zip(lines, references["sentiment"], strict=True):
        assert difference(line["output"], wanted) <= 1e-5
    assert sent["id"] in fmplex("batches", "list")
    done = fmplex.run("submit", "mails.csv", "--vfm", "sentiment", "-o", "out.jsonl")
    assert (done.returncode, (fmplex.folder / "out.jsonl").read_text().count("\n")) == (0, 5), done
