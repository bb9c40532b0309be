"""Batches from the order to the files: the application on a broker in memory, and a worker that answers texts with themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.streams import connection
from tests.support.batch_runs import ENDED, EchoWorker, Found, echoing, found, infer_line, infer_url, jsonl, rows
from tests.support.waiting import until
from tests.unit.gateway.site import Site, site, spec


class Office:
    """A gateway that takes batches, and what tests do with it."""

    def __init__(self, place: Site, worker: EchoWorker) -> None:
        self.place = place
        self.worker = worker

    async def upload(self, lines: Iterable[Any] | bytes, key: str | None = None) -> str:
        content = lines if isinstance(lines, bytes) else jsonl(lines)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        answer = await self.place.http.post(
            "/v1/files?purpose=batch&filename=a.jsonl", content=content, headers=headers
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def order(self, lines: Iterable[Any] | bytes, endpoint: str = infer_url("echo"), **more: Any) -> str:
        body = {"input_file_id": await self.upload(lines), "endpoint": endpoint, "completion_window": "24h", **more}
        answer = await self.place.ask("POST", "/v1/batches", body=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def show(self, batch: str) -> dict[str, Any]:
        shown: dict[str, Any] = (await self.place.ask("GET", f"/v1/batches/{batch}")).json()
        return shown

    async def reaches(self, batch: str, *statuses: str) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            shown = await self.show(batch)
            return shown if shown["status"] in statuses else None

        shown: dict[str, Any] = await until(look, f"the batch is {' or '.join(statuses)}", 30)
        return shown

    async def ended(self, batch: str) -> dict[str, Any]:
        return await self.reaches(batch, *ENDED)

    async def content(self, file: str | None) -> bytes:
        return b"" if file is None else (await self.place.ask("GET", f"/v1/files/{file}/content")).content

    async def files(self, shown: dict[str, Any]) -> tuple[Found, Found]:
        return found(await self.content(shown["output_file_id"])), found(await self.content(shown["error_file_id"]))


@asynccontextmanager
async def opened(folder: Path, **gateway: Any) -> AsyncIterator[Office]:
    async with site(folder, gateway) as place:
        await place.serve(spec("echo", head={"kind": "features"}))
        consumer = await place.worker("w2")
        async with echoing(consumer) as worker:
            yield Office(place, worker)


@pytest.fixture
async def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    monkeypatch.setattr(connection, "ANSWER_S", 60.0)
    async with opened(tmp_path) as office:
        yield office


async def test_a_batch_from_its_file_to_its_files(office: Office) -> None:
    lines = [infer_line(f"id-{i}", "fail" if i % 10 == 0 else f"text {i}") for i in range(300)]
    shown = await office.ended(await office.order(lines, metadata={"night": "1"}))
    assert (shown["status"], shown["errors"], shown["metadata"]) == ("completed", None, {"night": "1"})
    assert shown["request_counts"] == {"total": 300, "completed": 270, "failed": 30}
    output, errors = await office.files(shown)
    assert output == {f"id-{i}": (200, [{"text": f"text {i}"}]) for i in range(300) if i % 10}
    assert errors == {f"id-{i}": (500, "job_failed") for i in range(0, 300, 10)}
    assert office.worker.classes == {"offline": 300}
    assert shown["versions"] == [(await office.place.queue.registry.show("echo")).version]
    left = {p.name for p in (Path(office.place.app.state.files.store._storage.folder)).iterdir()}
    assert left == {shown["input_file_id"], shown["output_file_id"], shown["error_file_id"]}


async def test_every_time_is_told(office: Office) -> None:
    shown = await office.ended(await office.order([infer_line("a", "x")]))
    times = [shown[f"{word}_at"] for word in ("created", "in_progress", "finalizing", "completed")]
    assert times == sorted(times)
    assert shown["expires_at"] == shown["created_at"] + 86_400
    for word in ("failed", "expired", "cancelling", "cancelled"):
        assert shown[f"{word}_at"] is None
    assert (shown["object"], shown["completion_window"], shown["error_file_id"]) == ("batch", "24h", None)
    assert rows(await office.content(shown["output_file_id"]))[0]["line"] == 1
