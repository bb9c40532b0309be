"""What takes long in one sandbox keeps nobody waiting who has another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from fmplex_worker.workloads.generation import sandboxes as module
from fmplex_worker.workloads.generation.sandbox import Refused
from fmplex_worker.workloads.generation.sandboxes import Sandboxes
from tests.support.waiting import wait_until


class Sandbox:
    """Does what its schemas say, one question at a time."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.busy = threading.Lock()

    def try_schema(self, schema: str, strict: bool = False) -> str:
        assert self.busy.acquire(blocking=False), "two questions at a time"
        try:
            self.asked.append(schema)
            ACTS.get(schema, lambda: None)()
        finally:
            self.busy.release()
        return schema

    def render(self, template: str, messages: Sequence[Mapping[str, str]], special: Mapping[str, str]) -> str:
        self.try_schema(template)
        return template

    def check(self, template: str) -> None:
        self.try_schema(template)


ACTS: dict[str, Callable[[], object]] = {}


class Bench:
    def __init__(self) -> None:
        self.made: list[Sandbox] = []
        self.gate = threading.Event()
        self.threads = ThreadPoolExecutor(8)
        ACTS.clear()
        ACTS["slow"] = lambda: self.gate.wait(60)
        self.sandboxes = Sandboxes(self._make)

    def _make(self) -> Any:
        self.made.append(Sandbox())
        return self.made[-1]

    def ask(self, schema: str) -> Future[str]:
        return self.threads.submit(self.sandboxes.try_schema, schema)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
    bench = Bench()
    yield bench
    bench.gate.set()
    bench.threads.shutdown()


def test_none_begins_before_it_is_needed_and_one_does_for_questions_in_turn(bench: Bench) -> None:
    assert bench.made == []
    for _ in range(3):
        bench.ask("quick").result(10)
    assert bench.sandboxes.render("t", [], {}) == "t"
    bench.sandboxes.check("t")
    assert len(bench.made) == 1


def test_another_one_answers_while_one_is_busy(bench: Bench) -> None:
    slow = bench.ask("slow")
    wait_until(lambda: bench.made and bench.made[0].asked, "it is at it")
    bench.ask("quick").result(10)
    assert [sandbox.asked for sandbox in bench.made] == [["slow"], ["quick"]]
    bench.gate.set()
    slow.result(10)


def test_there_are_never_more_than_a_few(bench: Bench) -> None:
    waiting = [bench.ask("slow") for _ in range(module._MOST)]
    wait_until(lambda: len(bench.made) == module._MOST, "all are busy")
    more = bench.ask("quick")
    bench.gate.set()
    for future in (*waiting, more):
        future.result(10)
    assert len(bench.made) == module._MOST


def test_one_that_refuses_is_asked_again(bench: Bench) -> None:
    def refuse() -> None:
        raise Refused("no")

    ACTS["bad"] = refuse
    for _ in range(2 * module._MOST):
        with pytest.raises(Refused):
            bench.ask("bad").result(10)
    bench.ask("quick").result(10)
    assert len(bench.made) == 1
