"""Latency targets and deadlines, on the whole fleet."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from fmplex import Client
from fmplex.local import LocalFleet
from fmplex_broker.errors import DeadlineExceeded
from fmplex_broker.specs.fleet import load_fleet
from tests.integration.shell import Shell
from tests.support.waiting import wait_until


def test_a_latency_target_shortens_passes_while_its_vfm_is_in_use(
    fleet: LocalFleet, fmplex: Shell, new_vfm: Callable[..., str], http: httpx.Client
) -> None:
    name = new_vfm()
    full = load_fleet(fleet.config).backbone.pass_units

    def budget() -> int:
        fmplex("infer", name, "a text", "--url", fleet.gateway_url)
        seen: dict[str, Any] = json.loads(fmplex("top", "--broker", fleet.broker_url, "--json"))
        return int(seen["workers"][0]["budget_units"])

    assert budget() == full
    fmplex("vfms", "--url", fleet.gateway_url, "update", name, "--latency-ms", "30")
    wait_until(lambda: budget() < full, "the passes become shorter")
    target = f'fmplex_vfm_latency_target_seconds{{backbone="minilm",vfm="{name}"}} 0.03'
    assert target in wait_until(lambda: http.get("/metrics").text, "the metrics are there")
    fmplex("vfms", "--url", fleet.gateway_url, "update", name, "--latency-ms", "0")
    wait_until(lambda: budget() == full, "they are long again")


def test_a_target_that_is_none_is_refused(fleet: LocalFleet, new_vfm: Callable[..., str], http: httpx.Client) -> None:
    name = new_vfm()
    for wrong in (-1, 0, "soon", 1.5):
        answer = http.patch(f"/v1/vfms/{name}", json={"slo": {"latency_ms": wrong}})
        assert answer.status_code == 422
        assert "latency_ms" in answer.json()["error"]["message"]


def test_what_cannot_be_done_in_time_is_answered_before_its_deadline_and_not_run(
    fleet: LocalFleet, new_vfm: Callable[..., str]
) -> None:
    """Three times the texts that the fleet can do in that time: some are done, the others hear so, and nothing is left over."""
    name = new_vfm()
    text = "a long text that takes the worker some time " * 20
    with Client(fleet.gateway_url, retries=0) as client:
        begun = time.monotonic()
        client.infer(name, [text] * 32)
        seconds = time.monotonic() - begun
        jobs = [client.enqueue(name, text, timeout=seconds) for _ in range(96)]
        late = 0
        for job in jobs:
            try:
                job.result()
            except DeadlineExceeded:
                late += 1
        assert late > 0
        client.infer(name, "short")  # nobody has to wait for the late ones
