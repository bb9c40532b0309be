"""A gateway is ready while every backbone of its fleet file has a live worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.gateway.site import site


async def test_ready_is_who_has_a_worker_for_every_backbone_of_the_file(tmp_path: Path) -> None:
    async with site(tmp_path, backbones=("one", "two")) as place:
        answer = await place.ask("GET", "/readyz")
        assert (answer.status_code, answer.json()["workers"]) == (503, {"one": 0, "two": 0})
        assert answer.json()["error"]["code"] == "no_worker"
        assert answer.json()["error"]["message"] == "no live worker hosts 'one', 'two'; start one"
        await place.worker("w1", "one")
        await place.worker("w2", "one")
        answer = await place.ask("GET", "/readyz")
        assert (answer.status_code, answer.json()["workers"]) == (503, {"one": 2, "two": 0})
        assert answer.json()["error"]["message"] == "no live worker hosts 'two'; start one"
        last = await place.worker("w3", "two")
        answer = await place.ask("GET", "/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "workers": {"one": 2, "two": 1}})
        await last.leave()
        assert (await place.ask("GET", "/readyz")).status_code == 503


async def test_backbones_of_others_are_counted_and_not_waited_for(tmp_path: Path) -> None:
    async with site(tmp_path, backbones=("mine",)) as place:
        await (await place.worker("w1", "theirs")).leave()
        assert (await place.ask("GET", "/readyz")).json()["workers"] == {"mine": 0, "theirs": 0}
        await place.worker("w2", "mine")
        answer = await place.ask("GET", "/readyz")
        assert (answer.status_code, answer.json()["workers"]) == (200, {"mine": 1, "theirs": 0})


async def test_health_needs_no_key_and_no_worker(tmp_path: Path) -> None:
    async with site(tmp_path, {"api_keys": ["a-key-of-somebody"]}) as place:
        assert (await place.ask("GET", "/healthz")).json() == {"status": "ok"}
        assert (await place.ask("GET", "/readyz")).status_code == 503
        await place.worker()
        assert (await place.ask("GET", "/readyz")).status_code == 200


async def test_a_broker_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path) as place:

        async def away(*_: object) -> None:
            raise OSError("gone")

        monkeypatch.setattr(place.queue.redis, "hgetall", away)
        answer = await place.ask("GET", "/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    assert "workers" not in answer.json()
