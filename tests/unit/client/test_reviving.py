"""`fmplex up` starts again whatever ends: at once, and ever later what keeps ending soon after its start."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fmplex.reviving import Reviver
from fmplex_broker.errors import BrokerUnavailable


class Fleet:
    """Processes that live as long as the test says. `stubborn`: how often the next revivals fail."""

    def __init__(self, *names: str) -> None:
        self.ended: list[str] = []
        self.begun: list[tuple[float, str]] = []
        self.stubborn = 0
        self.now = 1000.0
        self.names = names

    def dead(self) -> list[str]:
        return list(self.ended)

    def exit_reason(self, name: str) -> str:
        return "was killed by SIGABRT"

    def log(self, name: str) -> str:
        return f"{name} says hello\n{name} dies\n" if name in self.names else ""

    def revive(self, name: str) -> None:
        if self.stubborn:
            self.stubborn -= 1
            raise BrokerUnavailable("no room on the disk")
        self.ended.remove(name)
        self.begun.append((self.now - 1000.0, name))


def play(fleet: Fleet, reviver: Reviver, seconds: float, lives_s: float, name: str = "worker-0") -> list[str]:
    """Let time pass in quarters of a second; a process ends `lives_s` after each of its starts. Return what is printed."""
    lines: list[str] = []
    end = fleet.now + seconds
    while fleet.now < end:
        starts = [at for at, who in fleet.begun if who == name]
        if starts and name not in fleet.ended and fleet.now - 1000.0 - starts[-1] >= lives_s:
            fleet.ended.append(name)
        lines += reviver.look(fleet.now)
        fleet.now += 0.25
    return lines


@pytest.fixture
def fleet() -> Fleet:
    return Fleet("worker-0", "gateway")


def test_a_first_death_costs_no_pause_however_soon_it_comes(fleet: Fleet) -> None:
    fleet.ended.append("worker-0")
    assert Reviver(fleet).look(fleet.now) == [
        "worker-0 was killed by SIGABRT; it starts again now. Its log ends with: worker-0 dies"
    ]
    assert fleet.begun == [(0.0, "worker-0")]


def test_one_that_keeps_dying_is_started_ever_later_and_never_given_up(fleet: Fleet) -> None:
    reviver = Reviver(fleet)
    fleet.ended.append("worker-0")
    lines = play(fleet, reviver, 300, lives_s=1)
    starts = [at for at, _ in fleet.begun]
    pauses = [round(b - a - 1, 2) for a, b in pairwise(starts)]
    assert pauses[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert set(pauses[8:]) == {30}
    assert len([at for at in starts if at <= 42]) <= 8
    assert len(lines) == len(starts) + bool(fleet.ended)
    assert "; it starts again in 0.5 s. " in lines[1]


def test_one_that_lived_for_long_starts_at_once_again(fleet: Fleet) -> None:
    reviver = Reviver(fleet)
    fleet.ended.append("worker-0")
    play(fleet, reviver, 20, lives_s=1)
    early = len(fleet.begun)
    assert early > 3
    lines = play(fleet, reviver, 100, lives_s=40)
    assert len(fleet.begun) > early
    assert [line.partition(";")[2] for line in lines][-1].startswith(" it starts again now.")


def test_the_others_start_while_one_waits(fleet: Fleet) -> None:
    reviver = Reviver(fleet)
    fleet.ended.append("worker-0")
    play(fleet, reviver, 10, lives_s=0.5)
    fleet.ended = ["worker-0", "gateway"]
    reviver.look(fleet.now)
    assert fleet.ended == ["worker-0"]


def test_what_does_not_even_start_is_tried_again(fleet: Fleet) -> None:
    reviver = Reviver(fleet)
    fleet.ended.append("broker")
    fleet.stubborn = 2
    lines = play(fleet, reviver, 5, lives_s=100, name="broker")
    assert lines == [
        "broker was killed by SIGABRT; it starts again now",
        "broker does not start: no room on the disk",
        "broker was killed by SIGABRT; it starts again in 0.5 s",
        "broker does not start: no room on the disk",
        "broker was killed by SIGABRT; it starts again in 1 s",
    ]
    assert fleet.ended == []
