"""Batches on a fleet of real processes and the real MiniLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fmplex import Client
from fmplex.local import LocalFleet
from tests.integration.conftest import TEXTS
from tests.support.batch_runs import BatchHttp, infer_line, infer_url
from tests.support.fleets import gateway
from tests.support.packages import write_package
from tests.support.waiting import wait_until


@pytest.fixture
def batches(http: httpx.Client) -> BatchHttp:
    return BatchHttp(http)


def text(number: int) -> str:
    return f"{TEXTS[number % len(TEXTS)]} {number}"


def test_what_a_batch_answers_is_what_a_call_is_answered(fleet: LocalFleet, batches: BatchHttp) -> None:
    lines = [infer_line(f"id-{i}", text(i), "stars") for i in range(200)]
    lines += [infer_line(f"none-{i}", text(i), "nobody") for i in range(3)]
    lines += [
        {"custom_id": f"embed-{i}", "url": infer_url("embed-lora"), "body": {"inputs": [text(i), text(i + 1)]}}
        for i in range(20)
    ]
    shown = batches.ended(batches.order(lines))
    assert (shown["status"], shown["request_counts"]) == (
        "completed",
        {"total": 223, "completed": 220, "failed": 3},
    )
    output, errors = batches.files(shown)
    with Client(fleet.gateway_url) as client:
        for i in (0, 17, 199):
            [answered] = output[f"id-{i}"][1]
            assert answered["value"] == pytest.approx(client.infer("stars", text(i)).output["value"], abs=1e-4)
        vectors = [answered["embedding"] for answered in output["embed-5"][1]]
        alone = [client.infer("embed-lora", text(i)).output["embedding"].tolist() for i in (5, 6)]
        assert vectors == [pytest.approx(one, abs=1e-4) for one in alone]
        assert set(shown["versions"]) == {client.vfms.show(name).version for name in ("stars", "embed-lora")}
    assert errors == {f"none-{i}": (404, "unknown_vfm") for i in range(3)}


def test_the_shapes_of_openais_endpoints(batches: BatchHttp) -> None:
    lines = [
        {"custom_id": f"e-{i}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "embed", "input": text(i)}}
        for i in range(10)
    ]
    lines += [{"custom_id": "wrong", "url": "/v1/embeddings", "body": {"model": "stars", "input": "x"}}]
    shown = batches.ended(batches.order(lines, "/v1/embeddings"))
    content = batches.content(shown["output_file_id"])
    assert content.count(b'"object":"embedding"') == 10
    assert batches.files(shown)[1] == {"wrong": (400, "invalid_value")}


def test_two_gateways_feed_and_one_is_stopped(
    fleet: LocalFleet, place: Path, batches: BatchHttp, tmp_path: Path
) -> None:
    orders = [batches.order([infer_line(f"id-{i}", text(i), "stars") for i in range(300)]) for _ in range(4)]
    with (
        gateway(place / "fleet.toml", fleet.broker_url, tmp_path / "gateway.log") as (url, _),
        httpx.Client(base_url=url, timeout=60) as other,
    ):
        orders += [BatchHttp(other).order([infer_line(f"id-{i}", text(i), "stars") for i in range(300)])]
        wait_until(lambda: any(batches.done(one) for one in orders), "some lines are done")
    for one in orders:
        shown = batches.ended(one)
        assert (shown["status"], shown["request_counts"]["completed"]) == ("completed", 300)
        assert batches.files(shown)[0].keys() == {f"id-{i}" for i in range(300)}


def test_a_vfm_that_is_updated_and_removed_half_way(
    fleet: LocalFleet, place: Path, batches: BatchHttp, new_vfm: Callable[..., str], tmp_path: Path
) -> None:
    head = {"kind": "regression"}
    name = new_vfm(head, seed=1)
    batch = batches.order([infer_line(f"id-{i}", text(i), name) for i in range(4000)])
    with Client(fleet.gateway_url) as client:
        first = client.vfms.show(name).version
        wait_until(lambda: batches.done(batch) >= 300, "some lines are done")
        second = client.vfms.update(name, write_package(tmp_path / name, head, seed=2)).version
        wait_until(lambda: second in batches.show(batch).get("versions", ()), "the new version answers")
        client.vfms.remove(name)
    shown = batches.ended(batch)
    output, errors = batches.files(shown)
    assert shown["versions"] == [first, second]
    assert shown["status"] == "completed"
    assert len(output) + len(errors) == 4000
    assert not output.keys() & errors.keys()
    assert set(errors.values()) == {(404, "unknown_vfm")}


def test_a_batch_is_cancelled(batches: BatchHttp, http: httpx.Client) -> None:
    batch = batches.order([infer_line(f"id-{i}", text(i), "stars") for i in range(5000)])
    wait_until(lambda: batches.done(batch) > 100, "some lines are done")
    for _ in range(2):
        assert http.post(f"/v1/batches/{batch}/cancel").json()["status"] == "cancelling"
    shown = batches.ended(batch)
    output, errors = batches.files(shown)
    assert shown["status"] == "cancelled"
    assert set(errors.values()) == {(None, "batch_cancelled")}
    assert len(output) + len(errors) == 5000
    assert not output.keys() & errors.keys()


def test_the_record_of_a_batch_is_shown_to_its_openai_client(fleet: LocalFleet, batches: BatchHttp) -> None:
    openai = pytest.importorskip("openai")
    client: Any = openai.OpenAI(base_url=f"{fleet.gateway_url}/v1", api_key="unused")
    batch = batches.order([infer_line("a", text(1), "stars")], infer_url("stars"), metadata={"a": "b"})
    batches.ended(batch)
    found = client.batches.retrieve(batch)
    assert (found.status, found.metadata, found.request_counts.completed) == ("completed", {"a": "b"}, 1)
    assert batch in [one.id for one in client.batches.list(limit=3)]
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_" + "0" * 24)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch)
