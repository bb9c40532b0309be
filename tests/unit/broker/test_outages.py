"""A cause is said once, and again when it has lasted; the end is said if the beginning was."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from fmplex_broker.errors import BrokerFault, BrokerUnavailable
from fmplex_broker.streams import outages
from fmplex_broker.streams.outages import Outage

log = logging.getLogger("test")


class Said:
    """An outage by a clock that the test moves, and what it has logged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 50.0
        monkeypatch.setattr(outages, "time", SimpleNamespace(monotonic=lambda: self.now))
        caplog.set_level(logging.INFO)
        self._caplog = caplog
        self.outage = Outage(log, "claiming")

    def fails(self, why: str, times: int = 1) -> None:
        for _ in range(times):
            self.outage.say(BrokerUnavailable(why))
            self.now += 0.5

    @property
    def lines(self) -> list[str]:
        return [r.getMessage() for r in self._caplog.records]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Said:
    return Said(monkeypatch, caplog)


def test_once_and_that_it_is_over(said: Said) -> None:
    said.fails("it is full", 100)
    assert said.lines == ["claiming: it is full (trying again until it works)"]
    said.outage.over()
    said.outage.over()
    assert said.lines[1:] == ["claiming works again"]
    said.fails("it is full", 2)
    assert len(said.lines) == 3


def test_two_causes_that_take_turns_are_said_once_each(said: Said) -> None:
    for _ in range(20):
        said.fails("it is full")
        said.fails("it is away")
    assert len(said.lines) == 2


def test_again_when_it_has_lasted_a_minute(said: Said) -> None:
    said.fails("it is full", 121)
    assert len(said.lines) == 2


def test_of_a_fault_it_is_said_where_it_came_from(said: Said, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise BrokerFault("WRONGTYPE")
    except BrokerFault as e:
        said.outage.say(e)
    assert "in test_of_a_fault" in caplog.text


def test_nothing_was_wrong(said: Said) -> None:
    said.outage.over()
    assert said.lines == []


def test_causes_that_are_ever_new_take_no_memory(said: Said) -> None:
    for n in range(1000):
        said.fails(f"cause {n}")
    assert len(said.outage._said) <= 32
