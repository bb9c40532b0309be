"""Gates: what a vFM does not take for now is asked for by few at once, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import gc

from fmplex_gateway.batches.gates import Gate, Gates
from tests.support.waiting import until


class Crowd:
    """Many who ask at one gate."""

    def __init__(self, gate: Gate, number: int) -> None:
        self.gate = gate
        self.inside: list[int] = []
        self.visits = {n: asyncio.create_task(self._visit(n)) for n in range(number)}

    async def _visit(self, number: int) -> None:
        await self.gate.enter()
        self.inside.append(number)

    async def reach(self, number: int) -> None:
        await until(lambda: len(self.inside) >= number, f"{number} are inside", 10)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(self.inside) == number


async def test_while_nothing_is_refused_64_ask_at_once_and_others_as_they_are_taken() -> None:
    """Should they be refused, no more have asked in vain."""
    gate = Gate()
    crowd = Crowd(gate, 300)
    for inside in range(64, 301):
        await crowd.reach(inside)
        gate.leave(taken=True)


async def test_after_a_refusal_one_asks_then_two_then_four_in_their_order() -> None:
    gate = Gate()
    visit = await gate.enter()
    gate.close(0.05)
    visit.end()
    crowd = Crowd(gate, 20)
    await crowd.reach(1)
    gate.leave(taken=True)
    await crowd.reach(3)
    gate.leave(taken=True)
    await crowd.reach(6)
    assert crowd.inside == list(range(6))
    gate.close(0.05)  # one of those is refused: the others that ask must have left before anybody comes again
    for _ in range(4):
        gate.leave(taken=False)
    await crowd.reach(7)
    for task in crowd.visits.values():
        task.cancel()


async def test_whoever_gives_up_waiting_is_in_nobodys_way() -> None:
    gate = Gate()
    visit = await gate.enter()
    gate.close(0.05)
    crowd = Crowd(gate, 5)
    await asyncio.sleep(0)
    for number in (0, 1, 3):
        crowd.visits[number].cancel()
    visit.end()
    visit.end()  # again is no mistake
    await crowd.reach(1)
    gate.leave(taken=True)
    await crowd.reach(2)
    assert crowd.inside == [2, 4]


async def test_gates_go_with_those_who_use_them() -> None:
    gates = Gates()
    gate = gates.of("a")
    assert gates.of("a") is gate
    assert gates.of("b") is not gate
    del gate
    gc.collect()
    assert len(gates._gates) == 0
