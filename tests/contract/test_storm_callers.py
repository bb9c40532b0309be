"""The callers of `benchmarks.storm` notice what must not be: a fleet that loses, doubles, spoils, hangs, or raises anything."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from benchmarks import storm_callers
from benchmarks.storm_callers import Calls
from benchmarks.storm_record import Found
from fmplex import BrokerUnavailable, DeadlineExceeded, Result
from tests.support.waiting import until_soon


class Fleet:
    """A client whose calls end as a script says: with an output or an error, in turn."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = itertools.chain(outcomes, itertools.repeat(outcomes[-1]))
        self.keys: list[str] = []
        self._runs = itertools.count()
        self._first: dict[str, list[Result]] = {}
        self.forgets = False

    async def infer(self, vfm: str, texts: list[str], *, timeout: float, idempotency_key: str) -> list[Result]:
        self.keys.append(idempotency_key)
        outcome = next(self._outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is None:
            await asyncio.Event().wait()
        run = float(next(self._runs))
        new = [Result(outcome, vfm, "v1", 1, queue_ms=run, run_ms=1.0, load_ms=0.0) for _ in texts]
        return new if self.forgets else self._first.setdefault(idempotency_key, new)


async def probed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, again: bool = False) -> Found:
    """Ask the only vFM, which should answer 1.0."""
    for name, seconds in {"_PAUSE_S": 0.001, "_HANGS_S": 0.05, "_PATIENCE_S": 0.1, "_THINK_S": 0.0}.items():
        monkeypatch.setattr(storm_callers, name, seconds)
    monkeypatch.setattr(storm_callers, "_AGAIN", float(again))
    monkeypatch.setattr(storm_callers, "_HANDLES", 0.0)
    found, over = Found(), asyncio.Event()
    calls = Calls({"only": fleet}, {"v": [("cat", 1.0), ("dog", 1.0), ("mat", 1.0)]}, found)  # type: ignore[dict-item]
    if again:
        coming = asyncio.create_task(calls.come(random.Random(1), over))
        await until_soon(lambda: found.did["answered again"] > 3 or found.doubled)
        over.set()
        await coming
    else:
        await calls.probe()
    assert calls.open == set()
    return found


def findings(found: Found) -> dict[str, int]:
    return {
        name: len(getattr(found, name))
        for name in ("lost", "doubled", "stuck", "wrong", "untyped")
        if getattr(found, name)
    }


async def test_a_call_is_sent_again_with_the_same_key_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(BrokerUnavailable("away"), BrokerUnavailable("away"), 1.0)
    found = await probed(fleet, monkeypatch)
    assert findings(found) == {}
    assert found.errors == {"broker_unavailable": 2}
    assert len(fleet.keys) == 3
    assert len(set(fleet.keys)) == 1


@pytest.mark.parametrize(
    ("outcome", "finding"),
    [
        (1.1, "wrong"),
        (1.00002, "wrong"),
        (float("nan"), "wrong"),
        (DeadlineExceeded("too late"), "wrong"),
        (BrokerUnavailable("for ever"), "lost"),
        (None, "stuck"),
    ],
)
async def test_what_must_not_be_is_found(monkeypatch: pytest.MonkeyPatch, outcome: Any, finding: str) -> None:
    found = await probed(Fleet(outcome), monkeypatch)
    assert findings(found) == {finding: 1}


async def test_an_error_without_a_type_is_found_and_the_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await probed(
        Fleet(RuntimeError("unable to perform operation on <TCPTransport closed=True>"), 1.0), monkeypatch
    )
    assert findings(found) == {"untyped": 1}
    assert found.did["answered"] == 1


async def test_who_asks_again_gets_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await probed(Fleet(1.0), monkeypatch, again=True)
    assert findings(found) == {}
    forgetful = Fleet(1.0)
    forgetful.forgets = True
    found = await probed(forgetful, monkeypatch, again=True)
    assert "doubled" in findings(found)
