"""Batches in tests: lines, a worker that answers them, and what is in their files."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from fmplex_broker.errors import FmplexError, JobFailed
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.wire.messages import OFFLINE, Reply, decode_request, encode_reply
from tests.support.waiting import wait_until

ENDED = {"completed", "failed", "expired", "cancelled"}


def infer_url(vfm: str) -> str:
    return f"/v1/vfms/{vfm}/infer"


def infer_line(custom_id: str, text: str, vfm: str = "echo", **more: Any) -> dict[str, Any]:
    """A line that asks a vFM for one text."""
    body = {"inputs": [text]}
    return {"custom_id": custom_id, "method": "POST", "url": infer_url(vfm), "body": body, **more}


def jsonl(lines: Iterable[Any]) -> bytes:
    """Lines of a file; texts and bytes as they are."""
    raw = (line if isinstance(line, str | bytes) else json.dumps(line) for line in lines)
    return b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in raw)


Found = dict[str, tuple[int | None, Any]]


def rows(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def found(content: bytes) -> Found:
    """What a file says: custom id -> status and output, or code. Every id is there once."""
    out: Found = {}
    for row in rows(content):
        response = row["response"]
        assert row["custom_id"] not in out, f"{row['custom_id']} twice"
        if response is None:
            out[row["custom_id"]] = None, row["error"]["code"]
        elif response["status_code"] == 200:
            out[row["custom_id"]] = 200, response["body"].get("outputs")
        else:
            out[row["custom_id"]] = response["status_code"], response["body"]["error"]["code"]
    return out


class EchoWorker:
    """A worker that answers every text with itself, but `fail…` with an error. `ran`: how often each was run; `hold`: texts for
    which it has no answer until `stop_holding`."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.ran: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.hold: Callable[[str], bool] = lambda text: False
        self._held: list[tuple[str, Claimed, bytes]] = []

    def stop_holding(self) -> None:
        self.hold = lambda text: False

    async def run(self) -> None:
        while True:
            claim = await self._consumer.claim({OFFLINE: 64, "interactive": 64})
            had = [*self._held, *map(self._run, claim.jobs)]
            self._held, done = [], []
            for text, job, reply in had:
                if self.hold(text):
                    self._held.append((text, job, reply))
                else:
                    done.append((job, reply))
            await self._consumer.settle(done)
            if not claim.jobs:
                await asyncio.sleep(0.005)

    def _run(self, job: Claimed) -> tuple[str, Claimed, bytes]:
        text = decode_request(job.payload).input
        return text, job, self._answer(text, job)

    def _answer(self, text: str, job: Claimed) -> bytes:
        self.ran[text] += 1
        self.classes[job.flow.cls] += 1
        error: FmplexError | None = JobFailed("as it was told") if text.startswith("fail") else None
        output = None if error else {"text": text}
        return encode_reply(Reply(output, error, job.version, "echo", 1))


@asynccontextmanager
async def echoing(consumer: Consumer) -> AsyncIterator[EchoWorker]:
    """Run a worker that answers."""
    worker = EchoWorker(consumer)
    task = asyncio.create_task(worker.run())
    yield worker
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)


class BatchHttp:
    """Batches over HTTP, in words of a few letters. `http`: a client whose base is the gateway; it may be exchanged."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def upload(self, lines: Iterable[Any] | bytes) -> str:
        content = lines if isinstance(lines, bytes) else jsonl(lines)
        answer = self.http.post("/v1/files?purpose=batch&filename=lines.jsonl", content=content)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def order(self, lines: Iterable[Any] | bytes, endpoint: str = "/v1/vfms/{name}/infer", **more: Any) -> str:
        answer = self.http.post("/v1/batches", json={"input_file_id": self.upload(lines), "endpoint": endpoint, **more})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def show(self, batch: str) -> dict[str, Any]:
        """Show a batch; `{}` while nobody answers."""
        try:
            answer = self.http.get(f"/v1/batches/{batch}")
        except httpx.HTTPError:
            return {}
        return answer.json() if answer.status_code == 200 else {}

    def done(self, batch: str) -> int:
        counts = self.show(batch).get("request_counts", {})
        return int(counts.get("completed", 0) + counts.get("failed", 0))

    def ended(self, batch: str, patience_s: float = 90.0) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            shown = self.show(batch)
            return shown if shown.get("status") in ENDED else None

        shown: dict[str, Any] = wait_until(look, f"{batch} ends", patience_s)
        return shown

    def content(self, file: str | None) -> bytes:
        return b"" if file is None else self.http.get(f"/v1/files/{file}/content").content

    def files(self, shown: dict[str, Any]) -> tuple[Found, Found]:
        return found(self.content(shown["output_file_id"])), found(self.content(shown["error_file_id"]))
